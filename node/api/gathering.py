"""Appends that come in one turn of the event loop share a command.

A command costs every node some 10 us, whatever is in it: calls into C that encode and decode it, a
number, a deadline and a future in the raft package, a look at its fields. So the appends of a turn,
of all connections, are gathered, and become one `AppendEach`; an append that comes alone is an
`Append`. Each is judged for itself where the command is applied. What ends the command without an
outcome (no leader, an unknown outcome) ends all of its appends alike.

Commands are handed to the leader in the order in which their appends came. (What one leader lost is
handed to the next one after what has come since: a client that needs an order of its own sends the
second append when the first is answered, or says what version it expects.) A command holds appends
to one store with one patience: others begin the next one. It also ends at `_APPENDS_MAX` appends or
with the one that reaches `_BYTES_MAX`.

Bound: `appends_waiting_max` appends without an outcome; a further one is refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from node.api.limits import ApiLimits
from node.api.ports import Clock, Replica
from node.core import commands
from node.core.outcomes import AppendedEach, Outcome
from node.errors import Overloaded

logger = logging.getLogger(__name__)

_APPENDS_MAX = 250
_BYTES_MAX = 128 * 1024

Then = Callable[[Outcome | BaseException, int], None]
"""Called once with the outcome and its Raft index, or with what was raised, and 0."""


class _Gathered:
    """The appends of the next command, in columns."""

    __slots__ = ("bytes", "counts", "expected", "frames", "store", "streams", "thens", "timeout_ms")

    def __init__(self, store: str, timeout_ms: int) -> None:
        self.store = store
        self.timeout_ms = timeout_ms
        self.streams: list[str] = []
        self.expected: list[int] = []
        self.counts: list[int] = []
        self.frames: list[bytes] = []
        self.thens: list[Then] = []
        self.bytes = 0

    def command(self, now_us: int) -> bytes:
        """All of it, encoded: once, because the frames are let go with that."""
        frames, self.frames = self.frames, []
        if len(self.streams) == 1:
            return commands.append(self.store, now_us, self.streams[0], self.expected[0], frames)
        return commands.append_each(
            self.store, now_us, self.streams, self.expected, self.counts, frames
        )

    def resolve(self, outcome: Outcome | BaseException, index: int) -> None:
        """Tell everybody."""
        if type(outcome) is AppendedEach:
            for place, then in enumerate(self.thens):
                _tell(then, outcome.of(place, self.streams[place], self.counts[place]), index)
        else:
            for then in self.thens:
                _tell(then, outcome, index)


class Gathering:
    """The appends of this node's clients, on their way into commands."""

    def __init__(self, replica: Replica, clock: Clock, limits: ApiLimits) -> None:
        self._replica = replica
        self._clock = clock
        self._waiting_max = limits.appends_waiting_max
        self._open: _Gathered | None = None
        self._waiting = 0

    def append(
        self,
        store: str,
        stream: str,
        expected: int,
        frames: Sequence[bytes],
        timeout_ms: int,
        then: Then,
    ) -> None:
        """Have the frames appended to a stream. Raises `Overloaded`: certainly not stored.

        What `Replica.propose` raises comes to `then`.
        """
        if self._waiting >= self._waiting_max:
            raise Overloaded("too many requests wait for an outcome", limit="proposals_max")
        self._waiting += 1
        gathered = self._open
        if (
            gathered is None
            or gathered.bytes >= _BYTES_MAX
            or gathered.store != store
            or gathered.timeout_ms != timeout_ms
            or len(gathered.thens) == _APPENDS_MAX
        ):
            gathered = self._begin(store, timeout_ms)
        gathered.streams.append(stream)
        gathered.expected.append(expected)
        gathered.thens.append(then)
        gathered.counts.append(len(frames))
        gathered.frames += frames
        for frame in frames:
            gathered.bytes += len(frame)

    def appended(
        self, store: str, stream: str, expected: int, frames: Sequence[bytes], timeout_ms: int
    ) -> Awaitable[tuple[Outcome, int]]:
        """The same, for who waits for it."""
        future = asyncio.get_running_loop().create_future()
        self.append(store, stream, expected, frames, timeout_ms, partial(_complete, future))
        return future

    def propose(self, command: bytes, timeout_ms: int, then: Then) -> None:
        """Propose a command of another kind, behind the appends that came before it."""
        self.send()
        self._propose(command, timeout_ms, then)

    def send(self) -> None:
        """Propose what is gathered: at the end of the turn, or sooner."""
        gathered, self._open = self._open, None
        if gathered is not None:
            command = gathered.command(self._clock())
            self._propose(command, gathered.timeout_ms, partial(self._resolved, gathered))

    def _begin(self, store: str, timeout_ms: int) -> _Gathered:
        self.send()
        asyncio.get_running_loop().call_soon(self.send)
        self._open = _Gathered(store, timeout_ms)
        return self._open

    def _propose(self, command: bytes, timeout_ms: int, then: Then) -> None:
        try:
            proposed = asyncio.ensure_future(self._replica.propose(command, timeout_ms))
        except Exception as error:
            then(error, 0)
        else:
            proposed.add_done_callback(partial(_unpack, then))

    def _resolved(self, gathered: _Gathered, outcome: Outcome | BaseException, index: int) -> None:
        self._waiting -= len(gathered.thens)
        gathered.resolve(outcome, index)


def _unpack(then: Then, proposed: asyncio.Future[tuple[Outcome, int]]) -> None:
    try:
        outcome, index = proposed.result()
    except (Exception, asyncio.CancelledError) as error:
        then(error, 0)
    else:
        then(outcome, index)


def _tell(then: Then, outcome: Outcome | BaseException, index: int) -> None:
    try:
        then(outcome, index)
    except Exception:  # one that fails must not keep it from the others
        logger.exception("the outcome of an append could not be told")


def _complete(future: asyncio.Future[Any], outcome: Outcome | BaseException, index: int) -> None:
    if future.done():
        return  # nobody waits any more
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result((outcome, index))
