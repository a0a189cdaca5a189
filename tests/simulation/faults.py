"""Who lets things go wrong, and how much may go wrong at once.

A `Director` draws some of the kinds of faults for its seed and then, for some seconds, does one
after the other at random. The kinds that may take a node's memory go through `may_end`, which
keeps the profile's promise: at most a minority lacks its memory at any time. Only `_all_end` breaks
it, in the lossy profile, and tells the chronicle and the clients what may be lost by it.

Most chance is given to short scenarios that are dangerous by design (`_squeeze` and those below
it), because faults that merely rain on a cluster seldom meet at the moment that matters.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from contextvars import copy_context
from typing import TYPE_CHECKING

from node.errors import ExesdbError
from node.raft.messages import Message, TimeoutNow, Vote
from tests.simulation.changes import Changes
from tests.simulation.nodes import Life, Node

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

FAULTS_S = 12.0
KINDS_DRAWN = (3, 7)

Fault = Callable[[], Awaitable[None]]


class Director:
    """The faults of one run."""

    def __init__(self, simulation: Simulation, chance: random.Random) -> None:
        self._simulation = simulation
        self._chance = chance
        self._nodes = simulation.nodes
        self._links = simulation.links
        self._loop = simulation.loop
        self._voters_end = ""
        self._successor_sleeps = False
        self._uncalm_until = 0.0
        self._context = copy_context()
        self._links.watchers += [self._on_vote, self._on_hand_over]
        self._changes = Changes(simulation, self, chance)

    @property
    def _ids(self) -> list[str]:
        return list(self._nodes)

    @property
    def _minority(self) -> int:
        return (len(self._simulation.chronicle.membership.voters) - 1) // 2

    async def in_another_lineage(self) -> None:
        """What is dangerous for who remembers too little, once more, behind an override."""
        simulation = self._simulation
        for _ in range(3):
            await self.all_well()
            end = self._loop.time() + 4.0
            clients = [
                self._loop.create_task(client.run(end, 0.05)) for client in simulation.clients
            ]
            await self._unaware_leader()
            for client in clients:
                await client

    async def run(self) -> None:
        """Faults and clients, for `FAULTS_S`."""
        chance, links = self._chance, self._links
        links.loss = chance.choice([0.0, 0.0, 0.01, 0.05])
        links.delay_s = _delay
        links.refusing = chance.choice([0.0, 0.0, 0.02])
        kinds = self._kinds()
        end = self._loop.time() + FAULTS_S
        pause_s = chance.choice([0.01, 0.03, 0.1])
        clients = [
            self._loop.create_task(client.run(end, pause_s)) for client in self._simulation.clients
        ]
        rate = chance.choice([1.0, 2.5])
        while self._loop.time() < end and self._simulation.sound:
            await asyncio.sleep(chance.expovariate(rate))
            await self._come_back()
            if len(self._ids) > 1:  # a cluster of one has no links to cut
                await chance.choice(kinds)()
        self._voters_end = ""
        for client in clients:
            await client

    def _kinds(self) -> list[Fault]:
        kinds: list[Fault] = [
            self._forget_one,
            self._cut_off,
            self._blackhole,
            self._reconnect,
            self._stop_cleanly,
            self._stall,
            self._bad_disk,
            self._die_at_a_sync,
            self._hand_over,
            self._flush,
            self._skew,
            self._squeeze,
            self._squeeze,
            self._fall_behind,
            self._end_voters,
            self._rot,
        ]
        profile = self._simulation.profile
        if profile == "kills":
            kinds.remove(self._rot)
        drawn = self._chance.sample(kinds, self._chance.randint(*KINDS_DRAWN))
        extra = {"lossy": self._all_end, "kills": self._many_killed}.get(profile)
        drawn += [extra] * max(1, len(drawn) // 3) if extra else []
        if self._simulation.late_hand_overs:
            drawn += [self._late_hand_over] * 2
        if self._simulation.unaware_leaders:
            drawn += [self._unaware_leader] * 2
        drawn += self._changes.kinds(len(drawn))
        return drawn + self._simulation.operator.kinds(len(drawn))

    # --- what may be lost --------------------------------------------------------------------

    def may_end(self, victims: Iterable[Node], how: str) -> bool:
        """Whether these may end so now, and still only a minority lacks its memory."""
        lacking = {node.node_id for node in self._nodes.values() if node.lacks_memory}
        lacking |= {node.node_id for node in victims if node.forgets(how)}
        return all(
            2 * len(lacking & one.voter_ids) < len(one.voters)
            for one in self._simulation.electorates()
        )

    def way_to_end(self) -> str:
        """One of the ways in which a process may end without warning."""
        if self._simulation.profile == "kills":
            return "kill"
        return self._chance.choice(["kill", "kill", "power", "power", "wipe"])

    async def _come_back(self) -> None:
        """Start somebody who is down, and mend some of what is broken."""
        chance = self._chance
        for node in list(self._nodes.values()):  # members come and go while one starts
            if node.life is None and chance.random() < 0.5:
                await self.start(node)
            if chance.random() < 0.2:
                node.disk.faults.mend()
        if chance.random() < 0.35:
            self._links.heal()

    async def start(self, node: Node) -> None:
        if node.life is None and not await node.start() and node.refusal is not None:
            await self._simulation.operator_looks_after(node)

    async def _take_memory(self, node: Node) -> None:
        """End a node without warning, in one of the ways there are."""
        how = self.way_to_end()
        if not self.may_end([node], how):
            return
        self.note(f"ends by {how}")
        node.end("kill" if how == "wipe" else how)
        if how == "wipe":
            node.wipe()

    # --- single faults -----------------------------------------------------------------------

    async def _forget_one(self) -> None:
        await self._take_memory(self._victim())

    async def _cut_off(self) -> None:
        count = self._chance.randint(1, len(self._ids) - 1)
        self._links.cut(*self._chance.sample(self._ids, count))
        self.uncalm()

    async def _blackhole(self) -> None:
        one, other = self._chance.sample(self._ids, 2)
        self._links.blackholes.add((one, other))
        self.uncalm()

    async def _reconnect(self) -> None:
        """Sessions end and begin anew, several times in a row."""
        for _ in range(self._chance.randint(1, 5)):
            one, other = self._chance.sample(self._ids, 2)
            self._links.cut_pair(one, other)
            await asyncio.sleep(self._chance.choice([0.0, 0.001, 0.02]))
            self._links.heal()

    async def _stop_cleanly(self) -> None:
        node = self._victim()
        if node.up and not node.lacks_memory and self.may_end([node], "power"):
            await node.stop()
            if self._chance.random() < 0.5:
                node.end("power")  # a clean stop holds even then

    async def _stall(self) -> None:
        life = self._victim().life
        if life is not None and life.serving:
            seconds = self._chance.choice([0.1, 0.5, 1.5, 4.0])
            self.stall_for(life, seconds)
            self.uncalm(seconds)

    def stall_for(self, life: Life, seconds: float) -> None:
        self._loop.stall(life)
        self._loop.call_later(seconds, self._loop.resume, life)

    async def _bad_disk(self) -> None:
        faults = self._victim().disk.faults
        kind = self._chance.randrange(3)
        if kind == 0:
            faults.slowness = self._chance.choice([10.0, 100.0, 500.0])
        elif kind == 1:
            faults.failing = self._chance.choice([0.01, 0.1])
        else:
            faults.full = True
        self.uncalm(0.05 * faults.slowness)

    async def _die_at_a_sync(self) -> None:
        """In the midst of a cycle, an election, a start: wherever the disk is used."""
        node = self._victim()
        if not self.may_end([node], "power"):
            return
        node.disk.faults.dies_at = self._chance.randint(1, 6)
        node.disk.faults.dies_by = "power" if self.way_to_end() == "power" else "kill"
        await asyncio.sleep(self._chance.uniform(0.0, 1.0))
        node.disk.faults.dies_at = None

    async def _hand_over(self) -> None:
        life = self._victim().life
        if life is None or not life.serving:
            return
        target = self._chance.choice([None, *self._ids])
        await self._ask(life, lambda: life.replica.transfer_leadership(target, 1000))

    async def _flush(self) -> None:
        life = self._victim().life
        if life is None or not life.serving:
            return
        index = life.replica.applied_index
        worker = life.service._worker
        if await self._ask(life, lambda: worker.force(None, index, 1000)):
            life.node.reported_cut = max(life.node.reported_cut, index)

    async def _ask(self, life: Life, ask: Callable[[], Awaitable[object]]) -> bool:
        async def work() -> bool:
            try:
                await ask()
            except ExesdbError:
                return False
            return True

        asked = self._loop.create_task(work(), context=life.context)
        await asyncio.wait([asked], timeout=2.0)
        if asked.done() and not asked.cancelled():
            return asked.result() and life.alive
        asked.cancel()
        return False

    async def _skew(self) -> None:
        self._victim().skew_s += self._chance.choice([-3600.0, -1.0, 0.5, 3600.0])

    async def _rot(self) -> None:
        """A bit of a file of a node that is down flips."""
        node = self._victim()
        if node.life is None or not self.may_end([node], "wipe"):
            return
        node.end("kill")
        node.forgetful = True
        if node.disk.rot(lambda name: not name.endswith((".new", ".spare", ".before"))) is not None:
            self.note("rotten")
            node.damage_expected = True
            self._simulation.chronicle.forgets_votes(node.node_id)
        await self.start(node)

    # --- scenarios ---------------------------------------------------------------------------

    async def _squeeze(self) -> None:
        """A bare majority holds the newest entries, one of it loses its memory, and is left with
        those that never had them.
        """
        chance, links = self._chance, self._links
        ready = await self.all_well()
        leader = self._simulation.leader()
        if not ready or leader is None:
            return
        self.note("squeezes")
        keepers, slow = self._keepers_of(leader)
        links.cut(*slow)
        await asyncio.sleep(chance.uniform(0.1, 1.0))
        victim = self._nodes.get(keepers[0] if keepers else leader)
        if victim is not None:  # its removal may have been under way
            await self._take_memory(victim)
            await self.start(victim)
        await asyncio.sleep(chance.choice([0.0, 0.003, 0.01, 0.05, 0.3]))
        links.heal()
        links.cut(leader, *keepers[1:])
        await asyncio.sleep(chance.uniform(1.0, 3.0))

    async def _late_hand_over(self) -> None:
        """A follower that is told to lead sleeps over it, and stands, with no word before it, when
        the others have gone on and one of a bare majority of them has just lost its memory.
        """
        chance, links = self._chance, self._links
        leader = self._simulation.leader() if await self.all_well() else None
        if leader is None:
            return
        keepers, slow = self._keepers_of(leader)
        if not keepers:
            return
        self.note("late hand-overs")
        life, victim = self._nodes[leader].life, self._nodes[keepers[0]]
        assert life is not None
        self._successor_sleeps = True
        await self._ask(life, lambda: life.replica.transfer_leadership(slow[0], 300))
        self._successor_sleeps = False
        for one in slow[1:]:
            self._silence(one)
        await asyncio.sleep(chance.uniform(0.1, 0.5))
        if self.may_end([victim], "wipe"):
            hear = [*slow, victim.node_id]
            victim.end("power")
            if chance.random() < 0.5:
                victim.wipe()
            for one in (leader, *keepers[1:]):
                self._silence(one)  # a cut would take back what the successor was told
            links.blackholes -= {(one, other) for one in hear for other in hear}
            await self.start(victim)
        await asyncio.sleep(chance.uniform(1.0, 2.0))

    def _silence(self, node_id: str) -> None:
        others = [one for one in self._ids if one != node_id]
        self._links.blackholes |= {(node_id, one) for one in others}
        self._links.blackholes |= {(one, node_id) for one in others}

    def _on_hand_over(self, _: str, receiver: str, message: Message) -> None:
        life = self._nodes[receiver].life if receiver in self._nodes else None
        if self._successor_sleeps and isinstance(message, TimeoutNow) and life is not None:
            self.stall_for(life, self._chance.uniform(0.8, 1.2))

    def _keepers_of(self, leader: str) -> tuple[list[str], list[str]]:
        """Voters who make a bare majority with the leader, and the others."""
        voters = self._simulation.chronicle.membership.voter_ids
        others = [one for one in self._ids if one != leader and one in voters]
        others = self._chance.sample(others, len(others))
        return others[: self._minority], others[self._minority :]

    async def _fall_behind(self) -> None:
        """A node misses so much that it is filled, and somebody ends while it is."""
        chance = self._chance
        node = self._nodes[chance.choice(self._ids)]
        self._links.cut(node.node_id)
        await asyncio.sleep(chance.uniform(0.5, 2.5))
        self._links.heal()
        await asyncio.sleep(chance.choice([0.01, 0.03, 0.06, 0.1]))
        leader = self._simulation.leader()
        victim = chance.choice([node, self._nodes[leader] if leader else node])
        if chance.random() < 0.5:
            await self._take_memory(victim)
        elif leader is not None:
            self._links.cut(leader)

    async def _unaware_leader(self) -> None:
        """A leader is not run, and does not know that there is another one when it goes on.

        Then it meets one of those who have followed the other, and ended since; the other is away.
        """
        chance, deposed = self._chance, self._simulation.leader()
        life = self._nodes[deposed].life if deposed is not None else None
        if life is None:
            return
        stalled_s = chance.choice([2.0, 3.0])
        self.stall_for(life, stalled_s)
        self.uncalm(stalled_s + 3.0)
        await asyncio.sleep(stalled_s - 0.3)
        leader = self._simulation.leader()
        followers = [one for one in self._nodes.values() if one.node_id not in (deposed, leader)]
        if not followers:  # two are left of the members
            return
        victim, how = chance.choice(followers), chance.choice(["kill", "power", "wipe", "wipe"])
        if leader in (None, deposed) or not victim.up or not self.may_end([victim], how):
            return
        self.note(f"ends by {how}")
        self.note("unaware leaders")
        self._links.cut(leader)
        await self.end_and_start(victim, how)
        await asyncio.sleep(chance.choice([0.5, 2.0]))
        self._links.heal()

    async def _end_voters(self) -> None:
        """From now on some who vote end just then, and come back at once; and an election."""
        self._voters_end = self._chance.choice([self.way_to_end(), "stop"])
        leader = self._simulation.leader()
        if leader is not None:
            life = self._nodes[leader].life
            assert life is not None
            self.stall_for(life, 1.5)
        await asyncio.sleep(2.0)
        self._voters_end = ""

    def _on_vote(self, sender: str, _: str, message: Message) -> None:
        if not self._voters_end or not isinstance(message, Vote) or self._chance.random() < 0.5:
            return
        pause_s = self._chance.choice([0.0, 0.002])
        # What is scheduled here must not end with the voter, as whose word this is told.
        self._loop.call_later(pause_s, self._voter_ends, sender, context=self._context)

    def _voter_ends(self, voter: str) -> None:
        node = self._nodes.get(voter)
        how = self._voters_end or "kill"
        if node is not None and node.up and self.may_end([node], "power" if how == "stop" else how):
            self.note("voters")
            self._loop.create_task(self.end_and_start(node, how))

    async def end_and_start(self, node: Node, how: str) -> None:
        if how == "stop":
            await node.stop()
        else:
            node.end("kill" if how == "wipe" else how)
        if how == "wipe":
            node.wipe()
        await self.start(node)

    async def _many_killed(self) -> None:
        """As many processes as there are, as long as hardly any of them forgets by it."""
        chance, nodes = self._chance, list(self._nodes.values())
        victims = chance.choice([nodes, chance.sample(nodes, chance.randint(1, len(nodes)))])
        if self.may_end(victims, "kill"):
            self.note("killed together")
            for node in victims:
                node.end("kill")
            await self._come_back_in_turn()

    async def _all_end(self) -> None:
        """All processes end at once, or all machines."""
        how = self._chance.choice(["kill", "power", "power"])
        nodes = list(self._nodes.values())
        lossy = not self.may_end(nodes, how)
        applied = max((life.replica.applied_index for life in self._simulation.lives()), default=0)
        for node in nodes:
            node.end(how)
        if lossy:
            nodes = self._simulation.only_members_are_left()
            self.note("losses")
            self._lost_after(max(node.reported_cut for node in nodes), applied)
        await self._come_back_in_turn()
        self._links.heal()
        await self._simulation.all_up()
        await asyncio.sleep(self._chance.uniform(0.5, 3.0))

    async def _come_back_in_turn(self) -> None:
        """Some come back much sooner than the last."""
        for node in self._chance.sample(list(self._nodes.values()), len(self._nodes)):
            await self.start(node)
            await asyncio.sleep(self._chance.choice([0.0, 0.0, 0.02, 1.5]))
        self.uncalm()  # what they hold in their tails is committed, and persisted, from now on

    def _lost_after(self, certain: int, applied: int) -> None:
        """I15: what is behind what was known to be on some disk may be lost, and that is little.

        No more is owed than what a node that was up knew to be committed, up to `applied`: where
        the only one that knew had gone before, nobody was there to write it. And a node that has
        come back counts its interval anew: what it had in its tail takes one more to be written.
        """
        simulation = self._simulation
        bound_s = simulation.interval_ms / 1000 + 0.5
        settled_at = self._loop.time() - bound_s - 3.0
        healthy = self._uncalm_until < settled_at
        came_up_at = max(node.came_up_at for node in self._nodes.values())
        simulation.chronicle.nothing_is_certain_after(certain)
        for operation in simulation.may_be_lost_after(certain):
            if operation.persisted:
                simulation.fail(f"I15: index {operation.index} was acknowledged as persisted, "
                                f"the furthest disk is at {certain}")  # fmt: skip
            late = operation.acked_at < self._loop.time() - bound_s
            late = late and (came_up_at < operation.acked_at or came_up_at < settled_at)
            if healthy and late and operation.index <= applied:
                simulation.fail(f"I15: what was acknowledged at {operation.acked_at:.3f} s "
                                f"(index {operation.index}) is on no disk")  # fmt: skip

    # --- small things ------------------------------------------------------------------------

    def _victim(self) -> Node:
        leader = self._simulation.leader()
        if leader is not None and self._chance.random() < 0.4:
            return self._nodes[leader]
        return self._nodes[self._chance.choice(self._ids)]

    async def all_well(self) -> bool:
        """Bring everybody back; whether nobody lacks its memory after a while."""
        self._links.heal()
        await self._simulation.all_up()
        for _ in range(20):
            if not any(map(self._lacks_memory, self._nodes.values())):
                return True
            await asyncio.sleep(0.1)
        return False

    def _lacks_memory(self, node: Node) -> bool:
        return node.lacks_memory and self._simulation.is_member(node)

    def uncalm(self, for_s: float = 0.0) -> None:
        self._uncalm_until = max(self._uncalm_until, self._loop.time() + for_s)

    def note(self, what: str) -> None:
        self._simulation.report.counts[what] += 1


def _delay(chance: random.Random) -> float:
    return chance.choice([0.0005, 0.001, 0.002, 0.02, 0.1 * chance.random()])
