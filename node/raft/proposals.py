"""From a command to its outcome: queue, group commit, forwarding, deadlines.

Whoever takes a request calls `submit` and awaits the outcome. Commands that arrive in one turn of
the event loop, or while `entries_in_flight_max` entries are under way, share the next log entry. A
follower sends its commands to the leader, which puts them into its entries under the follower's
name; every node resolves its own when it applies the entry (see `entries`).

What is certain, and what is not, decides how a submission ends:

* resolved           this node has applied it;
* `Overloaded`       a bound was reached before it was taken: certainly not stored;
* `PayloadTooLarge`  it would not fit into a message between nodes: certainly not stored;
* `NoLeader`         no leader took it in time: certainly not stored;
* `OutcomeUnknown`   it was handed on and not heard of in time: perhaps stored. The client repeats
                     it with the same event ids.

A submission is handed on in a term, and the leader puts it only into an entry of that very term.
Terms never decrease along the log, so when this node applies an entry of a later term, what was
handed on in an earlier one and has not come by certainly never will: it is handed on again, to
whoever leads now. A change of leader is a pause for the client, not an error.

A leader begins its reign with the commands that `opening` gives, before all that waits: what must
be there before anything else is, such as the default store.

Bounds: `proposals_max` submissions of this node and as many of peers, `proposal_bytes_max` for
each; beyond them `Overloaded`. A submission without a leader waits for `leader_wait_ms`. One may
be as long as a message between nodes (`frame_bytes_max`), less the rest of an entry: what is sent
and never arrives would be sent for ever. It may be several times as long as the request was: 0.5
takes three bytes there, and nine as it is stored.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from node.core.commands import is_dear
from node.core.outcomes import Outcome
from node.errors import ExesdbError, NoLeader, OutcomeUnknown, Overloaded, PayloadTooLarge
from node.raft import entries
from node.raft.entries import Group
from node.raft.library import Engine, now
from node.raft.messages import Message, Propose, Refused
from node.raft.ports import RaftSettings

Resolved = tuple[Outcome, int]

_NOT_LEADING = "not leading"
_FULL = "full"

_ENVELOPE_BYTES = 1024 * 1024  # what a message says about the commands in it

_WAITING = 0  # the term of what is not handed on
_OUT_OF_SIGHT = 2**62  # later than any term: what became of it will not be learned here


class _Pending:
    """A submission of this node that has no outcome yet."""

    __slots__ = ("command", "deadline", "future", "handed_term", "since")

    def __init__(self, command: bytes, future: asyncio.Future[Resolved], timeout_s: float) -> None:
        self.command = command
        self.future = future
        self.since = now()
        self.deadline = self.since + timeout_s
        self.handed_term = _WAITING


class _Foreign(NamedTuple):
    """A command that a peer asked this leader to propose, in a term."""

    term: int
    origin: str
    incarnation: int
    sequence: int
    command: bytes


class _Room:
    """What the next entry has room for. An entry is applied in one go, so it ends with the last of
    the dear commands that it may have."""

    def __init__(self, settings: RaftSettings) -> None:
        self._commands = settings.entry_commands_max
        self._bytes = settings.entry_bytes_max
        self._dear = settings.entry_dear_max

    @property
    def left(self) -> bool:
        """Whether another command may go in."""
        return self._commands > 0 and self._bytes > 0 and self._dear > 0

    def take(self, command: bytes) -> None:
        """One goes in."""
        self._commands -= 1
        self._bytes -= len(command)
        self._dear -= is_dear(command)


class Proposals:
    """Submissions of this node, and what peers ask it to propose while it leads."""

    def __init__(
        self,
        engine: Engine,
        settings: RaftSettings,
        incarnation: int,
        send: Callable[[str, Message], bool],
        overloaded: Callable[[], bool],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.opening: Callable[[], Sequence[bytes]] = tuple
        self._engine = engine
        self._settings = settings
        beside = settings.entry_bytes_max + _ENVELOPE_BYTES
        self._command_bytes_max = settings.frame_bytes_max - beside
        self._incarnation = incarnation
        self._send = send
        self._overloaded = overloaded
        self._sequence = 0
        self._pending: dict[int, _Pending] = {}
        self._pending_bytes = 0
        self._unsent: deque[int] = deque()
        self._foreign: deque[_Foreign] = deque()
        self._foreign_bytes = 0
        self._passed_over = False  # the last entry had no room for foreign ones: they go first
        self._in_flight: deque[int] = deque()
        self._in_flight_term = 0
        self._applied_term = 0
        self._pump_scheduled = False
        self._pauses = 0
        self._ended_term = 0  # its leader leads no more

    # --- this node's submissions -------------------------------------------------------------

    def submit(self, command: bytes, timeout_ms: int) -> asyncio.Future[Resolved]:
        """Queue a command; the future gives (outcome, Raft index) or one of the errors above."""
        self._check_bounds(len(command))
        self._sequence += 1
        self._unsent.append(self._sequence)
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self.pump)
        return self._wait_for(self._sequence, command, timeout_ms)

    def _wait_for(self, sequence: int, command: bytes, timeout_ms: int) -> asyncio.Future[Resolved]:
        future = asyncio.get_running_loop().create_future()
        self._pending[sequence] = _Pending(command, future, timeout_ms / 1000)
        self._pending_bytes += len(command)
        return future

    def pump(self) -> None:
        """Move what waits: into the log if this node leads, else to the leader."""
        self._pump_scheduled = False
        if self._engine.leads:
            self._fill_entries()
        else:
            self._refuse_foreign()
            leader = self._engine.leader
            if self._unsent and leader is not None and self._engine.term > self._ended_term:
                self._forward(leader)

    def sweep(self) -> None:
        """End the submissions whose time is over; called several times a second."""
        moment = now()
        patience_s = self._settings.leader_wait_ms / 1000
        leaderless = self._engine.leader is None
        for sequence, pending in list(self._pending.items()):
            if pending.handed_term != _WAITING:
                if moment >= pending.deadline:
                    self._end(sequence, OutcomeUnknown("the outcome was not learned in time"))
            elif pending.future.done():
                self._take(sequence)
            elif moment >= pending.deadline or (
                leaderless and moment >= pending.since + patience_s
            ):
                self._end(sequence, NoLeader("no leader took the request in time"))
        if len(self._unsent) > len(self._pending):
            # Where nobody leads, what has ended is not passed over by handing on what has not.
            self._unsent = deque(one for one in self._unsent if one in self._pending)

    def stop(self) -> None:
        """End everything that waits."""
        for sequence, pending in list(self._pending.items()):
            if pending.handed_term != _WAITING:
                self._end(
                    sequence, OutcomeUnknown("the node stopped before it learned the outcome")
                )
            else:
                self._end(sequence, NoLeader("the node is stopping"))

    def pause(self) -> None:
        """Propose nothing from now on, until as many have said `resume` as have said `pause`."""
        self._pauses += 1

    def resume(self) -> None:
        """Propose again, once nobody else has paused it."""
        self._pauses -= 1

    @property
    def waiting(self) -> int:
        """Submissions of this node that have no outcome yet."""
        return len(self._pending)

    def _check_bounds(self, size: int) -> None:
        settings = self._settings
        if size > self._command_bytes_max:
            raise PayloadTooLarge(
                "it is too long, as it is stored, to be sent to the other nodes",
                limit=self._command_bytes_max,
                actual=size,
            )
        if len(self._pending) >= settings.proposals_max:
            raise Overloaded("too many requests wait for an outcome", limit="proposals_max")
        if self._pending and self._pending_bytes + size > settings.proposal_bytes_max:
            raise Overloaded("too many bytes wait for an outcome", limit="proposal_bytes_max")
        if self._overloaded():
            raise Overloaded("the disk is too far behind the memory", limit="unpersisted_bytes_max")

    # --- leading -----------------------------------------------------------------------------

    def _fill_entries(self) -> None:
        if self._in_flight_term != self._engine.term:
            self._begin_reign()
        while (
            (self._unsent or self._foreign)
            and len(self._in_flight) < self._settings.entries_in_flight_max
            and not self._pauses
        ):
            groups = list(self._next_groups())
            if not groups:
                return
            self._in_flight.append(self._engine.append(entries.encode(groups)))
            self.counters["entries_proposed"] += 1

    def _begin_reign(self) -> None:
        """This node leads a new term: what it opens with goes before all that waits."""
        self._in_flight_term, self._passed_over = self._engine.term, False
        # What is left of an earlier reign may have been cut off, and would block this one.
        self._in_flight.clear()
        for command in self.opening():
            self._sequence += 1
            self._unsent.appendleft(self._sequence)
            ended = self._wait_for(self._sequence, command, self._settings.leader_wait_ms)
            ended.add_done_callback(_let_go)

    def _next_groups(self) -> Iterator[Group]:
        """The groups of the next entry, within its bounds; at least one command if there is one."""
        room = _Room(self._settings)
        if self._passed_over:
            yield from self._foreign_groups(room)
        yield from self._own_group(room)
        # There are always some of our own where consumers ask here: few of theirs fill an entry.
        self._passed_over = not self._passed_over and not room.left and bool(self._foreign)
        yield from self._foreign_groups(room)

    def _own_group(self, room: _Room) -> Iterator[Group]:
        own = Group(self._settings.node_id, self._incarnation, [], [])
        while self._unsent and room.left:
            sequence = self._unsent.popleft()
            pending = self._pending.get(sequence)
            if pending is None or pending.future.done():
                continue
            pending.handed_term = self._engine.term
            own.sequences.append(sequence)
            own.commands.append(pending.command)
            room.take(pending.command)
        if own.commands:
            yield own

    def _foreign_groups(self, room: _Room) -> Iterator[Group]:
        groups: dict[tuple[str, int], Group] = {}
        while self._foreign and room.left:
            one = self._next_foreign()
            if one.term != self._engine.term:
                self._refuse(one)  # this node led, ceased to, and leads again
                continue
            key = one.origin, one.incarnation
            group = groups.setdefault(key, Group(one.origin, one.incarnation, [], []))
            group.sequences.append(one.sequence)
            group.commands.append(one.command)
            room.take(one.command)
        yield from groups.values()

    def proposed(self, peer: str, incarnation: int, message: Propose) -> None:
        """A peer asks this node to propose."""
        term, sequences, commands = message
        if not self._engine.leads or term != self._engine.term:
            self._send(peer, Refused(incarnation, term, sequences, _NOT_LEADING))
            return
        if (
            len(self._foreign) + len(commands) > self._settings.proposals_max
            or self._foreign_bytes > self._settings.proposal_bytes_max
            or self._overloaded()
        ):
            self._send(peer, Refused(incarnation, term, sequences, _FULL))
            return
        for sequence, command in zip(sequences, commands, strict=True):
            self._foreign.append(_Foreign(term, peer, incarnation, sequence, command))
            self._foreign_bytes += len(command)
        self.counters["commands_forwarded_here"] += len(commands)

    def _refuse_foreign(self) -> None:
        """This node leads no more: what it has not put into its log it certainly will not."""
        while self._foreign:
            self._refuse(self._next_foreign())

    def _refuse(self, one: _Foreign) -> None:
        self._send(one.origin, Refused(one.incarnation, one.term, [one.sequence], _NOT_LEADING))

    def _next_foreign(self) -> _Foreign:
        one = self._foreign.popleft()
        self._foreign_bytes -= len(one.command)
        return one

    # --- following ---------------------------------------------------------------------------

    def _forward(self, leader: str) -> None:
        while self._unsent:
            sequences, commands = self._next_forward()
            if not sequences:
                return
            term = self._engine.term
            if not self._send(leader, Propose(term, sequences, commands)):
                self._unsent.extendleft(reversed(sequences))
                return
            for sequence in sequences:
                self._pending[sequence].handed_term = term

    def _next_forward(self) -> tuple[list[int], list[bytes]]:
        sequences: list[int] = []
        commands: list[bytes] = []
        size = 0
        while self._unsent and size < self._settings.entry_bytes_max:
            if len(sequences) >= self._settings.entry_commands_max:
                break
            sequence = self._unsent.popleft()
            pending = self._pending.get(sequence)
            if pending is None or pending.future.done():
                continue
            sequences.append(sequence)
            commands.append(pending.command)
            size += len(pending.command)
        return sequences, commands

    def refused(self, peer: str, message: Refused) -> None:
        """The leader did not take these: certainly not stored."""
        if message.incarnation != self._incarnation:
            return  # it speaks of an earlier life, whose numbers were others
        known = self._engine.leader, self._engine.term
        if message.reason == _NOT_LEADING and (peer, message.term) == known:
            # Who has ceased to lead a term never leads it again, and is believed to for a while.
            self._ended_term = message.term
        for sequence in message.sequences:
            pending = self._pending.get(sequence)
            if pending is None or pending.handed_term != message.term:
                continue  # it has ended, or was handed on again since
            if message.reason == _FULL:
                self._end(sequence, Overloaded("the leader has too much to do", limit="leader"))
            else:
                self._take_back(sequence, pending)

    def _take_back(self, sequence: int, pending: _Pending) -> None:
        """It was not stored: let it wait for a leader as if it had just come."""
        pending.handed_term = _WAITING
        pending.since = now()
        self._unsent.append(sequence)

    # --- outcomes ----------------------------------------------------------------------------

    def applied(
        self, index: int, term: int, groups: Sequence[Group], outcomes: Sequence[Outcome]
    ) -> bool:
        """An entry is applied; True if it held commands of another node than the leader."""
        while self._in_flight and self._in_flight[0] <= index:
            self._in_flight.popleft()
        if term > self._applied_term:
            self._applied_term = term
            self._take_back_before(term)
        foreign, at = False, 0
        for group in groups:
            if group.origin == self._settings.node_id and group.incarnation == self._incarnation:
                for sequence, outcome in zip(group.sequences, outcomes[at:], strict=False):
                    self._resolve(sequence, outcome, index)
            else:
                foreign = True
            at += len(group.commands)
        return foreign

    def skipped(self) -> None:
        """The state was brought past entries that this node never saw applied (see `fill`)."""
        self._in_flight.clear()
        for pending in self._pending.values():
            if pending.handed_term != _WAITING:
                pending.handed_term = _OUT_OF_SIGHT

    def _take_back_before(self, term: int) -> None:
        """An entry of `term` is applied: what was handed on in an earlier one comes no more."""
        for sequence, pending in self._pending.items():
            if _WAITING < pending.handed_term < term and not pending.future.done():
                self.counters["commands_handed_on_again"] += 1
                self._take_back(sequence, pending)

    def _resolve(self, sequence: int, outcome: Outcome, index: int) -> None:
        pending = self._take(sequence)
        if pending is not None and not pending.future.done():
            pending.future.set_result((outcome, index))

    def _end(self, sequence: int, error: ExesdbError) -> None:
        pending = self._take(sequence)
        if pending is not None and not pending.future.done():
            self.counters[f"ended_{error.code}"] += 1
            pending.future.set_exception(error)

    def _take(self, sequence: int) -> _Pending | None:
        pending = self._pending.pop(sequence, None)
        if pending is not None:
            self._pending_bytes -= len(pending.command)
        return pending


def _let_go(ended: asyncio.Future[Resolved]) -> None:
    """Nobody waits for it, and an opening that failed is repeated by the next reign."""
    if not ended.cancelled():
        ended.exception()
