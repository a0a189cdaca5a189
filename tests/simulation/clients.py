"""Clients that append, retry, read and remember what they were told; and the judge of all of it.

A client speaks to one node at a time, as over HTTP: a node that dies takes the requests with it,
and what became of them is unknown. An append that was refused or whose fate is unknown is often
repeated on another node, with the same event ids.

    I1   what was acknowledged stands in the end where the answer said, byte for byte
    I2   what was only ever refused does not stand there
    I5   an append that expected a version stands right behind it
    I6   all events of an append stand there, or none
    I7   no event stands there twice, however often it was sent
    I8   a linearizable read sees all that was acknowledged before it began; a client that brings
         the position it has seen never reads an older state; what was acknowledged before another
         append began stands before it
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from node.core import commands
from node.core.commands import ANY, NO_STREAM
from node.core.frames import ABSENT, encode_frame
from node.core.outcomes import Appended, WrongExpectedVersion
from node.core.store import Store
from node.errors import ExesdbError
from tests.simulation.loop import SimulatedLoop
from tests.simulation.nodes import STORE, Life, Node

STREAMS = 4
TRIES_MAX = 4
TIMEOUT_MS = 2000
READ_MS = 1000


class Gone(Exception):
    """The node is not there, or died while it was asked: the answer never came."""


@dataclass
class Operation:
    """One append, all of its tries, and what they came to."""

    events: list[tuple[str, bytes]]
    began: float
    positions: tuple[int, ...] = ()
    index: int = 0
    acked_at: float | None = None
    persisted: bool = False
    unknown: bool = False
    handed_on_again: bool = False  # or perhaps another one of that node
    may_be_lost: bool = False


@dataclass
class History:
    """What all clients were told. `acked_position` is the furthest that anyone saw acknowledged."""

    operations: list[Operation] = field(default_factory=list)
    acked_position: int = 0
    reads: int = 0
    events: int = 0

    def counts(self) -> tuple[int, int, int]:
        """Appends acknowledged, refused and unknown."""
        acked = sum(one.acked_at is not None for one in self.operations)
        unknown = sum(one.acked_at is None and one.unknown for one in self.operations)
        return acked, len(self.operations) - acked - unknown, unknown


class Client:
    """One client: a sequence of requests to nodes that it chooses."""

    def __init__(
        self,
        nodes: Sequence[Node],
        loop: SimulatedLoop,
        history: History,
        chance: random.Random,
        fail: Callable[[str], None],
    ) -> None:
        self._nodes = nodes
        self._loop = loop
        self._history = history
        self._chance = chance
        self._fail = fail
        self._seen = 0  # the position that it brings along
        self._versions: dict[str, int] = {}
        self.forgets = 0

    async def run(self, until: float, pause_s: float) -> None:
        """Requests, one after the other."""
        while self._loop.time() < until:
            await asyncio.sleep(self._chance.expovariate(1 / pause_s))
            if self._chance.random() < 0.7:
                await self.append()
            else:
                await self._read()

    # --- appending ---------------------------------------------------------------------------

    async def append(self, tries: int = TRIES_MAX) -> Operation:
        """One append, repeated until it is answered, or the client has had enough."""
        operation, command, expected = self._new()
        self._history.operations.append(operation)
        for _ in range(tries):
            node = self._chance.choice(self._nodes)
            settled = await self._try(node, operation, command, expected)
            if settled or self._chance.random() < 0.2:
                break
            await asyncio.sleep(self._chance.choice([0.01, 0.1, 0.5]))
        return operation

    async def _try(
        self, node: Node, operation: Operation, command: bytes, expected: tuple[str, int]
    ) -> bool:

        async def propose(life: Life) -> tuple[Any, int]:
            counters = life.replica._proposals.counters
            before = counters["commands_handed_on_again"]
            try:
                return await life.replica.propose(command, TIMEOUT_MS)
            finally:
                operation.handed_on_again |= counters["commands_handed_on_again"] > before

        try:
            outcome, index = await self._asked(node, propose, TIMEOUT_MS)
        except ExesdbError as error:
            operation.unknown |= error.stored != "no"
            return False
        except Gone as error:
            operation.unknown |= bool(error.args)
            return False
        if isinstance(outcome, Appended):
            self._acknowledged(operation, outcome, index, expected)
            if self._chance.random() < 0.1:
                await self._persist(node, operation)
        elif isinstance(outcome, WrongExpectedVersion):
            self._versions[outcome.stream] = outcome.current
        else:
            self._fail(f"I1: an append was answered {outcome}")
        return True

    def _acknowledged(
        self, operation: Operation, outcome: Appended, index: int, expected: tuple[str, int]
    ) -> None:
        stream, version = expected
        if version != ANY and outcome.first_version != version + 1:
            self._fail(f"I5: {stream} was expected at {version}, the answer is {outcome}")
        operation.positions = tuple(outcome.positions)
        operation.index = index
        operation.acked_at = self._loop.time()
        self._versions.update(outcome.streams)
        self._saw(max(operation.positions))
        history = self._history
        history.acked_position = max(history.acked_position, *operation.positions)

    async def _persist(self, node: Node, operation: Operation) -> None:
        """What `durability=persisted` waits for."""
        try:
            await self._asked(
                node,
                lambda life: life.service._durability.reach(operation.index, TIMEOUT_MS),
                TIMEOUT_MS,
            )
        except (ExesdbError, Gone):
            return
        operation.persisted = True

    def _new(self) -> tuple[Operation, bytes, tuple[str, int]]:
        chance = self._chance
        streams = [f"s{chance.randrange(STREAMS)}" for _ in range(chance.choice([1, 1, 1, 2]))]
        events = [
            (stream, self._event()) for stream in streams for _ in range(chance.randint(1, 3))
        ]
        operation = Operation(events, self._loop.time())
        created_us = int((self._loop.time() + chance.choice([0, 0, -1000, 1000])) * 1e6)
        stream = streams[0]
        if len(set(streams)) > 1:
            checkpoint = ("c", chance.randrange(10**9)) if chance.random() < 0.3 else None
            if checkpoint is None:
                command = commands.append_many(STORE, created_us, events, [], None)
                return operation, command, (stream, ANY)
        expected = ANY
        if chance.random() < 0.3:
            expected = self._versions.get(stream, NO_STREAM)
        frames = [frame for _, frame in events]
        operation.events = [(stream, frame) for frame in frames]
        command = commands.append(STORE, created_us, stream, expected, frames)
        return operation, command, (stream, expected)

    def _event(self) -> bytes:
        self._history.events += 1
        number = self._history.events
        kind = f"t{number % 3}"
        data = b"\x58" + bytes([number % 200]) + bytes(number % 200)
        return encode_frame(number.to_bytes(16, "big"), kind, data, ABSENT, "application/json", "")

    # --- reading -----------------------------------------------------------------------------

    async def _read(self) -> None:
        level = self._chance.choice(["local", "leader", "linearizable"])
        node = self._chance.choice(self._nodes)
        acked, seen, forgets = self._history.acked_position, self._seen, self.forgets

        async def read(life: Life) -> int:
            if life.replica.recovering:
                raise Gone
            if level != "local":
                await life.replica.barrier(level, READ_MS)
            await life.replica.wait_position(STORE, seen, READ_MS)
            store = life.replica.state.stores.get(STORE)
            return store.position if store else 0

        try:
            position = await self._asked(node, read, 3 * READ_MS)
        except (ExesdbError, Gone):
            return
        self._history.reads += 1
        if forgets != self.forgets:
            return  # all power was lost meanwhile
        if level == "linearizable" and position < acked:
            self._fail(
                f"I8: a linearizable read on {node} saw {position}, {acked} was acknowledged"
            )
        if position >= seen:
            self._saw(position)

    def _saw(self, position: int) -> None:
        self._seen = max(self._seen, position)

    def forget(self, position: int, certain: int) -> None:
        """All power was lost: what was seen behind `position`, that of the entry `certain`, may be
        gone.
        """
        self.forgets += 1
        self._seen = min(self._seen, position)

    # --- the way to a node -------------------------------------------------------------------

    async def _asked(self, node: Node, ask: Callable[[Life], Any], timeout_ms: int) -> Any:
        """What a node answers. Raises `Gone`, with a word if it was asked, and `ExesdbError`."""
        life = node.life
        if life is None or not life.serving:
            raise Gone
        work = self._loop.create_task(_call(ask, life), context=life.context)
        await asyncio.wait([work], timeout=timeout_ms / 1000 + 1.0)
        if not work.done() or work.cancelled() or not life.alive:
            work.cancel()
            work.add_done_callback(_let_go)
            raise Gone("no answer")
        return work.result()


def _let_go(work: asyncio.Task[Any]) -> None:
    """Whatever it came to, it came too late, or from a node that is no more."""
    if not work.cancelled():
        work.exception()


async def _call(ask: Callable[[Life], Any], life: Life) -> Any:
    return await ask(life)


def judge(history: History, store: Store, fail: Callable[[str], None]) -> None:
    """Compare what clients were told with what the cluster holds in the end."""
    at: dict[bytes, int] = {}
    for position in range(1, store.position + 1):
        record = store.record(position)
        if record.frame in at:
            fail(f"I7: the event at {at[record.frame]} stands at {position} as well")
        at[record.frame] = position
    for operation in history.operations:
        _judge(operation, store, at, fail)
    _judge_order(history.operations, fail)


def _judge(
    operation: Operation, store: Store, at: dict[bytes, int], fail: Callable[[str], None]
) -> None:
    found = tuple(at.get(frame, 0) for _, frame in operation.events)
    if operation.acked_at is not None:
        # An earlier try of unknown fate may have survived where the acknowledged one did not.
        lost = operation.may_be_lost and (operation.unknown or not any(found))
        if found != operation.positions and not lost:
            fail(f"I1: acknowledged at {operation.positions} (index {operation.index}, "
                 f"{operation.acked_at:.3f} s), in the end at {found}")  # fmt: skip
    elif any(found) and not operation.unknown:
        fail(f"I2: refused, and stands at {found}")
    if any(found) and not all(found):
        fail(f"I6: half of an append stands at {found}")
    for position, (stream, _) in zip(found, operation.events, strict=True):
        if position and store.record(position).stream != stream:
            fail(f"I1: an event for {stream} stands in {store.record(position).stream}")


def _judge_order(operations: Sequence[Operation], fail: Callable[[str], None]) -> None:
    acked = [one for one in operations if one.acked_at is not None and not one.may_be_lost]
    acked.sort(key=lambda one: one.positions[0], reverse=True)
    earliest = float("inf")  # the earliest answer among those that stand further back
    for operation in acked:
        if earliest < operation.began:
            fail(f"I8: an append that began at {operation.began:.3f} s stands before one that "
                 f"was answered at {earliest:.3f} s")  # fmt: skip
        assert operation.acked_at is not None
        earliest = min(earliest, operation.acked_at)
