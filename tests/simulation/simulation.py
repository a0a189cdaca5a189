"""One seed, one run: a cluster, clients, faults, calm, and the reckoning.

`run(seed, size)` makes everything from the seed: the bounds, the profile (what may be lost), the
kinds of faults (each seed draws a few, so that their mixtures differ), and every chance after that.
The same seed gives the same run, message by message: `Report.trace` is a digest of all of it.

    minority   at most a minority lacks its memory at any time: nothing acknowledged is lost, ever
    kills      kill -9 of any number of processes, as long as most have a whole tail: nothing
               acknowledged is lost, and who has such a tail comes back as if nothing had been
    lossy      now and then all processes or all machines end at once: what comes back is a prefix,
               with everything that was acknowledged as persisted, and the rest up to one interval
               and flush before the end
    override   as minority; then a majority is lost for good, and the survivors go on by an
               operator's order: all that the furthest of them held is kept (see `rescue`)

In some seeds of each profile an operator changes the members meanwhile (see `members`).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.raft.membership import Membership, founding
from node.raft.messages import Ask, Message
from tests.raft import virtual_time
from tests.simulation import consumers, doors, removers
from tests.simulation.clients import Client, History, Operation, judge
from tests.simulation.deliveries import Ledger
from tests.simulation.faults import Director
from tests.simulation.listening import listening
from tests.simulation.loop import SimulatedLoop
from tests.simulation.members import Operator
from tests.simulation.nodes import STORE, Life, Node
from tests.simulation.rescue import Rescue
from tests.simulation.snapshots import SnapshotClient
from tests.simulation.watch import Chronicle
from tests.simulation.wires import Wires

CALM_S = 40.0
SPARES = 6  # so many nodes may be added in a run
STOP_S = 90.0  # a stop that is under way on a slow disk ends within it
PROFILES = ("minority", "minority", "kills", "lossy")


@dataclass
class Report:
    """What a run came to."""

    seed: int
    size: int
    profile: str = ""
    violations: list[str] = field(default_factory=list)
    trace: str = ""
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    counts: Counter[str] = field(default_factory=Counter)


class Simulation:
    """The cluster of one seed."""

    def __init__(self, seed: int, size: int, root: Path, loop: SimulatedLoop) -> None:
        self.chance = random.Random(f"{seed}/{size}")
        self.report = Report(seed, size)
        self.loop = loop
        self.profile = self.report.profile = self.chance.choice(PROFILES)
        self.interval_ms = self.chance.choice([100, 300, 1000, 3000])
        ids = [f"n{number}" for number in range(1, size + 1)]
        spare_ids = [f"n{number}" for number in range(size + 1, size + SPARES + 1)]
        self.links = Wires([*ids, *spare_ids], seed, loop.time, root)
        founders = founding({node_id: f"{node_id}:1" for node_id in ids})
        self.chronicle = Chronicle(self.fail, founders)
        self.history = History()
        self.rescue = Rescue(self, random.Random(f"{seed}/{size}/rescue"))
        self.former_voters = self._drawn("a former voter", 0.2) and size > 4 and not self.rescue.due
        options = {
            # A leader that is not run falls back as it goes on, before it hears anybody. With this
            # one does not, as if it had only been cut off for less than its time.
            "leader_fallback_ms": 30_000 if self.former_voters else 1_000,
            "persistence_interval": self.interval_ms,
            "log_tail_entries_max": self.chance.choice([5, 20, 200, 10_000]),
        }

        def node(node_id: str, members: list[str], joins: bool) -> Node:
            return Node(
                node_id,
                members,
                root,
                loop,
                self.links,
                self.chronicle,
                f"{seed}/{node_id}",
                self.fail,
                joins,
                **options,
            )

        self._node = node
        self._spare_ids = spare_ids
        self.nodes = {node_id: node(node_id, ids, False) for node_id in ids}
        self.asked = list(self.nodes.values())  # whom clients ask
        self.retired: list[Node] = []
        self.snapshot_clients = [
            SnapshotClient(source, self.asked, loop, self.history, self._chance(), self.fail)
            for source in ("p", "q")
        ]
        self.clients = [
            *(Client(self.asked, loop, self.history, self._chance(), self.fail) for _ in range(4)),
            *self.snapshot_clients,
        ]
        self.late_hand_overs = self._drawn("hand-overs", 0.2)
        self.unaware_leaders = size > 1 and self._drawn("leaders that do not know", 0.2)
        self.endangered_changes = self._drawn("endangered changes", 0.1)
        self.overtaken_leaders = size > 2 and self._drawn("overtaken leaders", 0.1)
        self.shrinks = self._drawn("few voters", 0.5)
        self.sole_voters = self.shrinks and size > 1 and self._drawn("a sole voter", 0.2)
        self.forgets_in_another_lineage = self._drawn("in another lineage", 0.5)
        if self.rescue.due:
            self.profile, self.report.profile = "minority", "override"
        self.operator = Operator(self, random.Random(f"{seed}/{size}/of members"))
        self.consumers = consumers.made(
            random.Random(f"{seed}/{size}/consumers"), self.asked, loop, self.history, self.fail
        )
        self.removers = removers.made(
            random.Random(f"{seed}/{size}/removers"), self.asked, loop, self.history, self.fail
        )
        self.links.watchers.append(self._watch)
        self.bounds = {
            "entries_in_flight_max": self.chance.choice([1, 2, 2, 8]),
            "peer_window_bytes": self.chance.choice([300, 3000, 1 << 20]),
            "entry_commands_max": self.chance.choice([2, 10, 1000]),
        }

    def fail(self, what: str) -> None:
        """A rule is broken."""
        if len(self.report.violations) < 10:
            self.report.violations.append(
                f"{self.loop.time() - virtual_time.EPOCH_S:.3f} s: {what}"
            )

    def _chance(self) -> random.Random:
        return random.Random(self.chance.random())

    def _drawn(self, what: str, share: float) -> bool:
        """Whether this seed is one of so many that have something. Of a chance of its own, so that
        what is added leaves the other seeds as they are.
        """
        return random.Random(f"{self.report.seed}/{self.report.size}/{what}").random() < share

    def _watch(self, sender: str, receiver: str, message: Message) -> None:
        speaks, hears = (
            node.life if node else None
            for node in (self.nodes.get(sender), self.nodes.get(receiver))
        )
        if isinstance(message, Ask) and message.topic == "fill_begin":
            self.report.counts["fills"] += 1
        if speaks is not None:
            speaks.chronicle.said(speaks, _built(hears), receiver, message)

    async def run(self) -> None:
        """All of it."""
        try:
            await self._course()
        finally:
            self.report.trace = self._trace()

    async def _course(self) -> None:
        director = Director(self, self._chance())
        await self._begin()
        await director.run()
        await self.operator.done()
        if self.sound and self.rescue.due:
            self._no_more_faults()
            await self.rescue.run()
            if self.sound and self.forgets_in_another_lineage:
                await director.in_another_lineage()
        if self.sound:
            await self._calm()
        if self.sound and self.chance.random() < 0.5:
            await self._restart()
        if self.sound:
            self._reckon()

    @property
    def sound(self) -> bool:
        """Whether no rule is broken so far."""
        return not self.report.violations

    def _trace(self) -> str:
        trace = hashlib.sha256(self.links.digest() + self.chronicle.digest.digest())
        trace.update(repr(self.history.operations).encode())
        trace.update(repr(sorted(self.report.counts.items())).encode())
        return trace.hexdigest()

    # --- beginning and end -------------------------------------------------------------------

    async def _begin(self) -> None:
        self.clients += [*self.consumers, *self.removers]
        for node in self.nodes.values():
            await node.start()
        await self.until(lambda: self.leader() is not None and self._store_made(), "I14: no start")

    def _store_made(self) -> bool:
        up = [node.life for node in self.nodes.values() if node.life is not None]
        return all(STORE in life.replica.state.stores for life in up)

    async def _calm(self) -> None:
        """No more faults: everything comes back, and writes succeed."""
        self._no_more_faults()
        await self.all_up()
        await self.until(self.settled, "I14: the cluster does not settle")
        if self.sound:
            for client in self.clients:
                began = self.loop.time()
                operation = await client.append(tries=40)
                if operation.acked_at is None and self.loop.time() - began > 5.0:
                    self.fail("I14: no append succeeded within 5 s of calm")
            for consumer in self.consumers:
                await consumer.settles_in_calm()
            await self.until(self.settled, "I14: the cluster does not settle again")

    def _no_more_faults(self) -> None:
        self.links.loss, self.links.refusing, self.links.delay_s = 0.0, 0.0, lambda _: 0.001
        self.links.heal()
        for node in self.nodes.values():
            node.disk.faults.mend()
            if node.life is not None:
                self.loop.resume(node.life)

    async def all_up(self) -> None:
        """Start whoever is down, by all that an operator may do."""
        end = self.loop.time() + STOP_S
        while self.loop.time() < end:
            down = [node for node in self.nodes.values() if not node.up]
            for node in down:
                if not await node.start():
                    await self.operator_looks_after(node)
            if not down:
                return
            await asyncio.sleep(0.1)
        self.fail(f"I14: {[node for node in self.nodes.values() if not node.up]} do not start")

    async def operator_looks_after(self, node: Node) -> None:
        """Room is made on a full disk; who refuses damaged files gets an empty one, as told."""
        refusal, node.refusal = node.refusal, None
        node.disk.faults.mend()
        if type(refusal).__name__ in ("StateFileDamaged", "TailFileDamaged"):
            node.wipe()
            self.report.counts["replaced"] += 1

    async def _restart(self) -> None:
        """I13: a clean stop and a start, or a loss of all power after a flush, change nothing."""
        for node in self.nodes.values():
            await node.stop()
        for node in self.nodes.values():
            if node.forgetful and self.is_member(node):
                self.fail(f"I13: {node} could not stop cleanly in calm")
            if self.chance.random() < 0.5:
                node.disk.lose_power()
        await self.all_up()
        await self.until(self.settled, "I14: the cluster does not settle after a clean stop")

    def _reckon(self) -> None:
        self.operator.judge()
        self.rescue.judge()
        for node in self.retired:
            if node.alarms:
                self.fail(f"alarms of {node}: {node.alarms}")
        for node in self.nodes.values():
            life = node.life
            assert life is not None
            if life.replica.alarms or node.alarms:
                self.fail(f"alarms of {node}: {life.replica.alarms + node.alarms}")
            try:
                life.replica.state.check()
            except AssertionError as error:
                self.fail(f"I3: the state of {node} is not sound: {error!r}")
            self.chronicle.check_state(node, life.replica.state)
        judge(self.history, self.chronicle.state.stores[STORE], self.fail)
        for client in self.snapshot_clients:
            client.judge(self.chronicle.state.stores[STORE])
        if self.consumers:
            self._reckon_deliveries()
        for told in [*self.consumers, *self.removers]:
            told.judge(self.chronicle.entries)

    def _reckon_deliveries(self) -> None:
        """All members have the same subscriptions, see I13; one of them shows what it owes."""
        ledger = Ledger(self.chronicle.entries, self.fail)
        member = next(life for life in self.lives() if self.is_member(life.node))
        if self.sound:
            ledger.judge(member, member.replica.state.stores[STORE])

    # --- members -----------------------------------------------------------------------------

    def spare(self) -> Node | None:
        """A node that has never run, to be added as a member; None if there is none any more."""
        if not self._spare_ids:
            return None
        node_id = self._spare_ids.pop(0)
        members = sorted({node_id, *self.chronicle.membership.voter_ids})
        node = self.nodes[node_id] = self._node(node_id, members, True)
        self.asked.append(node)
        return node

    def retire(self, node: Node) -> None:
        """A node that is no member any more is taken away, and its disk with it."""
        node.end("kill")
        del self.nodes[node.node_id]
        self.asked[:] = [one for one in self.asked if one is not node]
        self.retired.append(node)

    def begins_anew(self, lineage: str, certain: int, membership: Membership) -> None:
        """The survivors go on in a lineage of their own, with what is certain up to this index.

        What had certainly come to nothing in the old one, and was handed on again, may stand in a
        survivor's log, and come to something now.
        """
        for operation in self.history.operations:
            operation.unknown |= operation.handed_on_again
        old = self.chronicle
        self.chronicle = old.branch(lineage, certain, membership)
        self.may_be_lost_after(certain)

    def may_be_lost_after(self, certain: int) -> list[Operation]:
        """Let clients forget what they were told of later entries; which appends those are."""
        lost = [
            operation
            for operation in self.history.operations
            if operation.acked_at is not None
            and operation.index > certain
            and not operation.may_be_lost
        ]
        for operation in lost:
            operation.may_be_lost = True
        entry = self.chronicle.entries.get(certain)
        position = entry.after[STORE].position if entry and STORE in entry.after else 0
        self.history.acked_position = min(self.history.acked_position, position)
        for client in self.clients:
            client.forget(position, certain)
        return lost

    def only_members_are_left(self) -> list[Node]:
        """All power was lost: what is not on the disk of a member may never have been."""
        self.operator.forget()
        known = [one for node in self.nodes.values() for one in node.memberships()[:1]]
        self.chronicle.forget_memberships_after(max(one.version for one in known))
        wanted = {node_id for one in self.electorates() for node_id in one.addresses}
        for node in [node for name, node in self.nodes.items() if name not in wanted]:
            node.wipe()
        return [node for node in self.nodes.values() if self.is_member(node)]

    def is_member(self, node: Node) -> bool:
        """Whether the cluster counts the node, or is about to."""
        return node.node_id in self.chronicle.membership.addresses

    def electorates(self) -> list[Membership]:
        """The newest committed membership, and those that may come after it: each of them may be
        the one by which a majority is counted.
        """
        newest = self.chronicle.membership
        known = {one for node in self.nodes.values() for one in node.memberships()}
        later = [one for one in known if one.version > newest.version]
        return [newest, *sorted(later, key=Membership.plain)]

    # --- looking -----------------------------------------------------------------------------

    def lives(self) -> Iterator[Life]:
        """All that are up."""
        return (node.life for node in self.nodes.values() if node.life and node.life.serving)

    def leader(self) -> str | None:
        """Who leads the highest term, and is sure of the past."""
        leading = [
            (life.replica._engine.term, life.node_id)
            for life in self.lives()
            if life.replica._engine.leads_with_own_entry_applied()
        ]
        return max(leading)[1] if leading else None

    def settled(self) -> bool:
        """Whether all are up, none recovers, and all have applied the same, which is all.

        Of nodes that are no members only the first is asked.
        """
        everyone, membership = list(self.lives()), self.chronicle.membership
        lives = [life for life in everyone if self.is_member(life.node)]
        if any(life.memberships()[0] != membership for life in lives) or membership.learner:
            return False
        ends = {life.replica._journal.last_index for life in lives}
        ends |= {life.replica.applied_index for life in lives}
        recovering = any(life.replica.recovering for life in lives)
        up = len(everyone) == len(self.nodes) and len(lives) == len(membership.voters)
        return up and not recovering and len(ends) == 1 and self.leader() is not None

    async def until(self, holds: Callable[[], object], otherwise: str) -> None:
        """Wait until something holds; a broken rule if it does not within `CALM_S`."""
        end = self.loop.time() + CALM_S
        while self.sound and not holds():
            if self.loop.time() > end:
                states = [
                    f"{life} at {life.replica.applied_index} of {life.replica._journal.last_index} "
                    f"{life.replica.not_ready_reasons()} {life.memberships()[:1]}"
                    for life in self.lives()
                ]
                self.fail(f"{otherwise}: {'; '.join(states)}")
            await asyncio.sleep(0.01)


def _built(life: Life | None) -> Life | None:
    return life if life is not None and hasattr(life.service, "_replica") else None


def run(seed: int, size: int, script: Mapping[str, Any] | None = None) -> Report:
    """One whole run. `script` sets attributes of the simulation before it begins (kept seeds)."""
    root = Path(tempfile.mkdtemp(prefix="simulation-", dir=_memory()))
    loop = SimulatedLoop()
    try:
        with doors.opened(loop):
            simulation = Simulation(seed, size, root, loop)
            for name, value in (script or {}).items():
                setattr(simulation, name, value)
            with listening(simulation.fail), doors.raft_bounds(simulation.bounds):
                try:
                    loop.run_until_complete(simulation.run())
                finally:
                    _end(simulation)
        return _report(simulation)
    finally:
        loop.close()
        shutil.rmtree(root)


def _end(simulation: Simulation) -> None:
    loop = simulation.loop
    for node in simulation.nodes.values():
        node.end("kill")
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(asyncio.sleep(0.001))


def _report(simulation: Simulation) -> Report:
    report = simulation.report
    for failure in simulation.loop.failures:
        simulation.fail(failure)
    report.acknowledged, report.refused, report.unknown = simulation.history.counts()
    memberships = simulation.chronicle.memberships.values()
    report.counts["left alone"] = sum(len(one.voters) == 1 for one in memberships)
    report.counts["reads"] = simulation.history.reads
    report.counts["starts"] = sum(
        node.starts for node in [*simulation.nodes.values(), *simulation.retired]
    )
    report.counts["terms"] = len(simulation.chronicle.leaders)
    report.counts["entries"] = len(simulation.chronicle.entries)
    report.counts["deliveries"] = sum(one.delivered for one in simulation.consumers)
    report.counts["deletions"] = sum(one.removed for one in simulation.removers)
    report.counts["settlements"] = sum(one.settled for one in simulation.consumers)
    return report


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
