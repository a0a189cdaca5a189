"""A cluster in one process, on virtual time, with links that can be cut, slowed and made to lose.

What runs is the product: whole replicas over real states, encoded messages, real group commit. What
is replaced is what a replica asks of the world, through the doors that it offers for that:

* time       `virtual_time`: an event loop on which waiting takes none, and `library.use_clock`;
* network    `links`: sessions, FIFO, delay, loss, cuts (`ports.Network`);
* disk       `solo.Disk`: what a node finds again when it starts (`ports.Promises`).

`Cluster` is the director: it starts, stops and crashes nodes. `Chronicle` watches what all of them
apply and who leads, and fails at once where two nodes differ. One seed gives one run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from node.api.bodies import RecoveryBody
from node.core import commands
from node.core.frames import ABSENT, encode_frame
from node.core.outcomes import Appended, Outcome
from node.core.state import State
from node.errors import ExesdbError
from node.override import objection
from node.raft.lineage import Lineage, Standing
from node.raft.membership import Membership, founding
from node.raft.messages import AppendEntries, Message
from node.raft.ports import StartingPoint
from node.raft.replica import Replica
from tests.raft.links import Links, Port
from tests.raft.solo import FOUNDERS, Disk, settings_of
from tests.raft.tails import FakeTail

STORE = "main"


class Chronicle:
    """What the cluster has applied and who led, as told by every node; they may never differ."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[int, list[bytes]]] = {}
        self.leaders: dict[int, str] = {}
        self.violations: list[str] = []

    def applied(self, node_id: str, index: int, term: int, batch: Sequence[bytes]) -> None:
        """A node has applied an entry."""
        entry = term, list(batch)
        known = self.entries.setdefault(index, entry)
        if known != entry:
            self._violated(f"{node_id} applied another entry at {index}: {entry} not {known}")

    def leads(self, node_id: str, term: int) -> None:
        """A node has begun to lead."""
        known = self.leaders.setdefault(term, node_id)
        if known != node_id:
            self._violated(f"{node_id} and {known} both lead term {term}")

    def _violated(self, what: str) -> None:
        # A replica goes on after an exception, so it is also kept for whoever waits for the end.
        self.violations.append(what)
        raise AssertionError(what)


class WatchedState(State):
    """A state that tells the chronicle what is applied."""

    def __init__(self, node_id: str, chronicle: Chronicle) -> None:
        super().__init__()
        self._node_id = node_id
        self._chronicle = chronicle

    def apply(self, index: int, term: int, encoded: Sequence[bytes]) -> list[Outcome]:
        assert index == self.applied_index + 1, "entries are applied in order, each once"
        self._chronicle.applied(self._node_id, index, term, encoded)
        return super().apply(index, term, encoded)


def event(number: int, event_type: str = "happened") -> bytes:
    """A frame whose id is its number."""
    return encode_frame(
        number.to_bytes(16, "big"), event_type, b"\x01", ABSENT, "application/json", ""
    )


class Cluster:
    """Nodes n1, n2, … and the world around them. With `tails` a killed node forgets nothing.

    `spares` more nodes may be added as members later.
    """

    def __init__(
        self, size: int, seed: int = 1, tails: bool = False, spares: int = 0, **changes: Any
    ) -> None:
        everyone = [f"n{number}" for number in range(1, size + spares + 1)]
        self.ids, self.spares = everyone[:size], everyone[size:]
        self.links = Links(everyone, seed)
        self.chance = random.Random(seed + 1)
        self.chronicle = Chronicle()
        self.chronicles = {FOUNDERS.lineage: self.chronicle}
        self.disks = {node_id: Disk() for node_id in everyone}
        self.replicas: dict[str, Replica] = {}
        self.ports: dict[str, Port] = {}
        self.alarms: list[str] = []
        self.links.watchers.append(self._watch_leaders)
        self._changes = changes
        self._tails = tails
        self._events = 0
        self._restarts: list[asyncio.Task[None]] = []

    def _watch_leaders(self, sender: str, _: str, message: Message) -> None:
        # Who sends entries leads: seen here it needs no word of the node itself.
        if isinstance(message, AppendEntries):
            self.chronicle_of(sender).leads(sender, message.term)

    def chronicle_of(self, node_id: str) -> Chronicle:
        """What happened in the lineage that a node follows; another one may differ from it."""
        return self.chronicles[self.disks[node_id].standing.lineage]

    # --- life and death ---

    async def start(self, *node_ids: str) -> None:
        """Start these nodes, or all that are down, from their disks."""
        for node_id in node_ids or [one for one in self.ids if one not in self.replicas]:
            await self._start(node_id)

    async def _start(self, node_id: str) -> None:
        disk = self.disks[node_id]
        disk.incarnation += 1
        disk.lives = (*disk.lives, disk.incarnation) if disk.blank else ()
        remembers = disk.clean
        if not disk.clean and disk.kept is not None:
            disk.tail, remembers = disk.kept.behind(disk.cut)
        disk.kept = FakeTail() if self._tails else None
        disk.forgetful, disk.clean = disk.forgetful or not remembers, False
        state = self._load(node_id, disk)
        lineage = Lineage(
            lambda: self.disks[node_id].standing, lambda newer: self._quarantine(node_id, newer)
        )
        self.ports[node_id] = port = Port(self.links, node_id, disk.incarnation, lineage)
        replica = Replica(
            settings_of(node_id, self.ids, joins=node_id in self.spares, **self._changes),
            port,
            StartingPoint(
                disk.incarnation,
                disk.term,
                disk.vote,
                state.applied_index,
                state.applied_term,
                disk.forgetful,
                disk.tail,
                disk.blank,
                disk.membership,
                disk.heard,
                disk.lives,
                disk.unsaid,
            ),
            state,
            disk,
            lambda: False,
            lambda: disk.cut,
            random.Random(self.chance.random()),
            disk.kept,
        )
        chronicle = self.chronicle_of(node_id)
        replica.open_reigns_with(lambda: chronicle.leads(node_id, replica._engine.term) or ())
        self.replicas[node_id] = replica
        await replica.start()

    def _load(self, node_id: str, disk: Disk) -> State:
        chronicle = self.chronicle_of(node_id)
        state = WatchedState(node_id, chronicle)
        state.applied_index = 1
        for index in range(2, disk.cut + 1):
            state.apply(index, *chronicle.entries[index])
        if disk.cut == 0:
            state.applied_index = 0
        return state

    def persist(self, *node_ids: str) -> None:
        """Let these nodes' disks (or all) reach what their states have applied."""
        for node_id in node_ids or self.replicas:
            self.disks[node_id].cut = max(
                self.disks[node_id].cut, self.replicas[node_id].applied_index
            )

    async def wiped_meets_deposed(self, deposed: str, one: str, other: str) -> tuple[str, bytes]:
        """Two go on without a leader; then one of them is wiped and meets that leader first.

        Gives the wiped one, and what the other one had acknowledged with it.
        """
        self.links.cut(deposed)
        await self.until(lambda: self[one].leads or self[other].leads)
        leader, victim = (one, other) if self[one].leads else (other, one)
        command = self.command()
        await self.append(leader, command)
        self.crash(victim)
        self.wipe(victim)
        self.links.cut(leader)
        self.links.heal(deposed)
        self.links.cut_pair(deposed, leader)
        await self.start(victim)
        return victim, command

    def crash(self, *node_ids: str) -> None:
        """Kill these nodes (or all): their memory is gone, their disks stay."""
        for node_id in node_ids or list(self.replicas):
            replica = self.replicas.pop(node_id)
            self.alarms += replica.alarms
            self.ports.pop(node_id).cut_off()
            for task in replica._timers:
                task.cancel()
            replica.filling.cancel()
            replica._proposals.stop()

    async def stop(self, *node_ids: str) -> None:
        """Stop these nodes (or all) in order: nothing is forgotten."""
        for node_id in node_ids or list(self.replicas):
            replica = self.replicas.pop(node_id)
            self.alarms += replica.alarms
            await replica.stop()
            disk = self.disks[node_id]
            disk.cut = max(disk.cut, replica.applied_index)
            disk.tail = tuple(replica.log_tail(disk.cut))
            disk.clean = True

    def wipe(self, node_id: str) -> None:
        """Give a node that is down a new, empty disk. (Its peers know it in a later life.)"""
        self.disks[node_id] = Disk(incarnation=self.disks[node_id].incarnation)

    def _quarantine(self, node_id: str, newer: Standing) -> None:
        """What a node does that learns that its lineage was given up: it ends, and starts anew."""
        self.disks[node_id] = self.disks[node_id].quarantined(newer)
        loop = asyncio.get_running_loop()
        loop.call_soon(self.crash, node_id)
        loop.call_later(0.5, lambda: self._restarts.append(loop.create_task(self._start(node_id))))

    async def override(self, node_id: str, order: RecoveryBody) -> str | None:
        """Give a node an operator's order, as `override` carries it out; why it is refused."""
        replica, disk = self[node_id], self.disks[node_id]
        reason = objection(order, node_id, disk.standing.lineage, replica.outlook())
        if reason is None:
            await self.stop(node_id)
            known = self.chronicles[order.parent].entries
            self.chronicles.setdefault(order.lineage, Chronicle()).entries.update(
                {index: known[index] for index in known if index <= disk.cut}
            )
            disk.rebuild(
                order.lineage,
                Membership(order.membership_version, founding(order.voters).voters),
            )
            await self._start(node_id)
        return reason

    # --- looking ---

    def __getitem__(self, node_id: str) -> Replica:
        return self.replicas[node_id]

    def leader(self) -> str | None:
        """The leader of the highest term, if one believes to lead."""
        leading = [(one._engine.term, name) for name, one in self.replicas.items() if one.leads]
        return max(leading)[1] if leading else None

    def followers(self) -> list[str]:
        """Everyone up who does not lead."""
        return [name for name, replica in self.replicas.items() if not replica.leads]

    async def until(self, holds: Callable[[], object], timeout_s: float = 20.0) -> None:
        """Wait (virtual time) until `holds()`; fails at the bound."""
        end = asyncio.get_running_loop().time() + timeout_s
        while not holds():
            assert self.chronicle.violations == []
            assert asyncio.get_running_loop().time() < end, "it did not happen in time"
            await asyncio.sleep(0.005)

    async def led(self, *among: str) -> str:
        """Wait until one of these (or of all that are up) leads and is sure of the past."""

        def ready() -> str | None:
            leader = self.leader()
            good = leader is not None and (not among or leader in among)
            if good and self[leader]._engine.leads_with_own_entry_applied():
                return leader
            return None

        await self.until(ready)
        leader = ready()
        assert leader is not None
        return leader

    async def settled(self) -> None:
        """Wait until all that are up have applied the same, and none recovers."""

        def same() -> bool:
            up = list(self.replicas.values())
            indexes = {replica.applied_index for replica in up}
            ends = {replica._journal.last_index for replica in up}
            return indexes == ends and len(ends) == 1 and not any(one.recovering for one in up)

        await self.led()
        await self.until(same)

    async def ready(self) -> str:
        """Start everyone, make the store, and give the leader's id."""
        await self.start()
        store_made = False
        while not store_made:
            await asyncio.sleep(0.01)
            with suppress(ExesdbError):  # the first leader need not be the one that stays
                await self[await self.led()].propose(commands.create_store(STORE, 1), 5000)
                store_made = True
        await self.settled()
        return await self.led()

    # --- using ---

    def command(self, stream: str = "s", events: int = 1) -> bytes:
        """An append of new events to a stream."""
        numbers = range(self._events, self._events + events)
        self._events += events
        return commands.append(STORE, 1, stream, commands.ANY, [event(one + 1) for one in numbers])

    def append(
        self, node_id: str, command: bytes | None = None, timeout_ms: int = 5000
    ) -> Awaitable[tuple[Outcome, int]]:
        """Submit an append at a node."""
        return self[node_id].propose(command or self.command(), timeout_ms)

    async def fill_log(self, node_id: str, appends: int) -> None:
        """Append so many events, one entry after the other."""
        for _ in range(appends):
            outcome, _ = await self.append(node_id)
            assert isinstance(outcome, Appended)

    def check(self) -> None:
        """No rule was broken, no alarm raised anywhere, and all states hold together."""
        for chronicle in self.chronicles.values():
            assert chronicle.violations == []
        assert self.alarms == []
        for replica in self.replicas.values():
            assert replica.alarms == []
            replica.state.check()

    def contents(self, node_id: str) -> list[Any]:
        """Everything in the store of a node, in order."""
        store = self[node_id].state.stores[STORE]
        return [store.record(at) for at in range(1, store.position + 1)]

    def holds(self, node_id: str, command: bytes) -> bool:
        """Whether the events of an append are in the store of a node."""
        decoded = commands.decode(command)
        assert isinstance(decoded, commands.Append)
        frames = {record.frame for record in self.contents(node_id)}
        return all(frame in frames for frame in decoded.frames)
