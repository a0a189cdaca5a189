"""Scenarios in which something goes wrong just as the members change.

Faults that rain on a cluster seldom meet a change of its members at the moment that matters. Here
the messages that carry the change say when that is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from node.raft.entries import decode_membership, is_membership
from node.raft.membership import Membership
from node.raft.messages import AppendEntries, MembershipNotice, Message

if TYPE_CHECKING:
    from tests.simulation.faults import Director
    from tests.simulation.nodes import Node
    from tests.simulation.simulation import Simulation


class Carried(NamedTuple):
    """A message that carries a membership."""

    sender: str
    receiver: str
    membership: Membership


class Changes:
    """The scenarios of one run. They happen where `Simulation.endangered_changes` says so, and
    where `overtaken_leaders`, `former_voters` and `sole_voters` do.
    """

    def __init__(self, simulation: Simulation, director: Director, chance: random.Random) -> None:
        self._simulation = simulation
        self._director = director
        self._chance = chance
        self._nodes = simulation.nodes
        self._links = simulation.links
        self._awaited: Callable[[Carried], bool] | None = None
        self._came: asyncio.Future[Carried] | None = None
        self._seen_now: list[Carried] = []
        self._unsaid: tuple[str, str] | None = None  # who tells whom in vain who the members are
        self._links.watchers.append(self._on_message)

    def kinds(self, others: int) -> list[Callable[[], Awaitable[None]]]:
        """The scenarios that happen among so many other faults."""
        simulation, kinds = self._simulation, list[Callable[[], Awaitable[None]]]()
        if simulation.rescue.due:
            return kinds
        if simulation.endangered_changes:
            kinds += [self._struck_change, self._unseen_promotion, self._unknown_change]
        if simulation.overtaken_leaders:
            kinds.append(self._overtaken_leader)
        if simulation.former_voters:
            kinds.append(self._former_voter)
        if simulation.sole_voters:
            kinds.append(self._sole_voter)
        return kinds * max(1, others // 3)

    # --- a change that is struck -------------------------------------------------------------

    async def _struck_change(self) -> None:
        """In the midst of a change some are cut off, and some end, and come back at once.

        Those who took part in it are struck more often than the others.
        """
        chance, director = self._chance, self._director
        if chance.random() < 0.5 and not await director.all_well():
            return
        left = chance.choice([1, 1, 2, 3, 5, 9])

        def is_the_last(_: Carried) -> bool:
            nonlocal left
            left -= 1
            return left == 0

        carried = await self._carried(self._simulation.operator.change, is_the_last, 2.0)
        involved = [carried.sender, carried.receiver] if carried else []
        director.note("struck changes")
        for _ in range(chance.choice([1, 1, 2, 3])):
            await asyncio.sleep(chance.choice([0.0, 0.0, 0.002, 0.02, 0.3, 1.0]))
            if chance.random() < 0.7:
                self._cut_some_off(involved)
            if chance.random() < 0.7:
                await self._strike(chance.choice([*involved, *involved, *self._nodes]))
        director.uncalm(3.0)
        await asyncio.sleep(chance.uniform(0.0, 3.0))

    def _cut_some_off(self, involved: list[str]) -> None:
        others = [one for one in self._nodes if one not in involved]
        count = min(len(others), self._chance.choice([0, 0, 1, 2]))
        apart = involved[: self._chance.choice([0, 1, 2])] + self._chance.sample(others, count)
        self._links.heal()
        self._links.cut(*apart)

    async def _strike(self, victim: str) -> None:
        node, how = self._nodes.get(victim), self._director.way_to_end()
        if node is not None and node.up and self._director.may_end([node], how):
            self._director.note(f"ends by {how}")
            await self._director.end_and_start(node, how)

    # --- a promotion that its leader does not hear of ----------------------------------------

    async def _unseen_promotion(self) -> None:
        """A leader counts a new voter, and does not hear that the others do, who go on without it.

        Then the new voter loses its disk, or another one, and is left with that leader and those
        who know of nothing either. There are just so many of them that they would be a majority.
        """
        director, simulation, chance = self._director, self._simulation, self._chance
        if await director.all_well():
            await simulation.operator.make_even()
        if not await director.all_well():
            return
        newest = simulation.chronicle.membership
        before = newest.voter_ids

        def is_promotion(one: Carried) -> bool:
            # Who lags is sent old memberships as well.
            return one.membership.version > newest.version and one.membership.voter_ids > before

        carried = await self._carried(simulation.operator.add, is_promotion, 4.0)
        deposed = self._nodes.get(carried.sender) if carried else None
        if carried is None or deposed is None or deposed.life is None:
            return
        self._links.blackholes |= {(one, deposed.node_id) for one in self._nodes}
        voters = carried.membership.voter_ids
        newcomers = sorted(voters - before)
        others = sorted(voters - {deposed.node_id, *newcomers})
        unaware = chance.sample(others, len(voters) // 2 - 1)
        aware = [one for one in [*others, *newcomers] if one not in unaware]
        await asyncio.sleep(chance.choice([0.003, 0.05]))
        stalled_s = chance.choice([2.0, 3.0])
        director.stall_for(deposed.life, stalled_s)
        director.uncalm(stalled_s + 3.0)
        self._links.cut(*unaware)
        await asyncio.sleep(stalled_s - 0.3)
        victim = self._nodes.get(chance.choice([*aware, *newcomers * len(aware)]))
        if simulation.leader() in aware and victim is not None:
            director.note("unseen promotions")
            await self._left_with(victim, aware)
        self._links.heal()

    async def _left_with(self, victim: Node, aware: list[str]) -> None:
        """The victim loses its disk if it may, and sees nobody any more who knows what happened."""
        if not self._director.may_end([victim], "wipe"):
            return
        victim.end("kill")
        victim.wipe()
        self._links.heal()
        self._links.cut(*(one for one in aware if one != victim.node_id))
        await self._director.start(victim)
        await asyncio.sleep(self._chance.choice([0.5, 2.0]))

    # --- a change that some do not know of ---------------------------------------------------

    async def _unknown_change(self) -> None:
        """A change is made while some are cut off; then one of the others loses its disk, and is
        left with them. Of the members there were before they would be a majority.
        """
        director, simulation, chance = self._director, self._simulation, self._chance
        if not await director.all_well():
            return
        newest = simulation.chronicle.membership
        before = newest.voter_ids

        def is_news(one: Carried) -> bool:
            # Who lags is sent old memberships as well.
            return one.membership.version > newest.version and one.membership.voter_ids != before

        carried = await self._carried(simulation.operator.change, is_news, 4.0)
        if carried is None:
            return
        now = carried.membership.voter_ids
        unaware = sorted(before - now)
        candidates = sorted(before & now - {carried.sender})
        unaware += chance.sample(candidates, len(before) // 2 - len(unaware))
        aware = sorted(now - {*unaware})
        self._links.cut(*unaware)
        await asyncio.sleep(chance.choice([0.1, 0.5, 1.5]))
        victim = self._nodes.get(chance.choice(aware))
        if simulation.leader() in aware and victim is not None:
            director.note("unknown changes")
            await self._left_with(victim, aware)
        self._links.heal()

    # --- changes that a leader sleeps through ------------------------------------------------

    async def _overtaken_leader(self) -> None:
        """A leader is not run while another one changes the members, and more than once.

        One of those who are left then has what is newest in its log, as nobody else: a voter, or
        one that was just being added. Of so few members the two would be a majority.
        """
        director, simulation, chance = self._director, self._simulation, self._chance
        if not await director.all_well():
            return
        newcomer = await self._newcomer() if chance.random() < 0.5 else None
        deposed = simulation.leader()
        node = self._nodes.get(deposed) if deposed is not None else None
        others = sorted(simulation.chronicle.membership.voter_ids - {deposed})
        if node is None or node.life is None or len(others) < 2:
            return
        witness = newcomer or chance.choice(others)
        if not await self._overtake(node, witness, 6.0):
            return
        if await self._others_change({node.node_id, witness}, newcomer):
            director.note("overtaken leaders")
        if chance.random() < 0.5:
            self._links.heal_pair(node.node_id, chance.choice(others))
        else:
            self._links.heal()
        if node.life is not None:
            simulation.loop.resume(node.life)
        await asyncio.sleep(chance.choice([0.1, 0.5, 2.0]))
        self._links.heal()

    async def _overtake(self, leader: Node, witness: str, for_s: float) -> bool:
        """Let only the witness hear of a leader's last appends; then run it no more, for a while.

        False if it has ended meanwhile.
        """
        self._links.blackholes |= {(leader.node_id, one) for one in self._nodes if one != witness}
        await asyncio.sleep(self._chance.choice([0.03, 0.1, 0.3]))
        if leader.life is None:
            return False
        self._director.stall_for(leader.life, for_s)
        self._director.uncalm(for_s + 3.0)
        self._links.cut(leader.node_id)
        return True

    async def _newcomer(self) -> str | None:
        """One that is just being added."""
        newest = self._simulation.chronicle.membership

        def is_adding(one: Carried) -> bool:
            return one.membership.version > newest.version and one.membership.learner is not None

        carried = await self._carried(self._simulation.operator.add, is_adding, 2.0)
        await asyncio.sleep(self._chance.choice([0.02, 0.1, 0.3]))
        return carried.membership.learner_id if carried else None

    async def _others_change(self, staying: set[str], newcomer: str | None) -> bool:
        """Count the newcomer, and remove who need not stay until few are left; whether it was so.

        The first of those who stay is not run.
        """
        simulation, chance = self._simulation, self._chance
        voters: frozenset[str] | set[str] = set()
        for _ in range(60):
            await asyncio.sleep(0.05)
            leader, voters = simulation.leader(), simulation.chronicle.membership.voter_ids
            away = leader is None or leader in staying or leader not in self._nodes
            if away or (newcomer is not None and newcomer not in voters):
                continue
            leaving = sorted(voters - staying - {leader})
            if len(voters) <= 3 or not leaving:
                break
            gone = self._nodes.get(chance.choice(leaving))
            if gone is not None:
                await simulation.operator.remove_by(self._nodes[leader], gone)
        return len(voters) == 3 and staying <= voters

    # --- a voter that meets, as a new node, the leader it helped to depose ---------------------

    async def _former_voter(self) -> None:
        """One of those who deposed a leader, which is not run, loses its disk, is removed and added
        anew, and meets that leader first.

        Of the members that leader knows the two, and one that has its last appends, would be a
        majority.
        """
        simulation, chance, links = self._simulation, self._chance, self._links
        if not await self._director.all_well():
            return
        deposed = self._nodes.get(simulation.leader() or "")
        if deposed is None or len(simulation.chronicle.membership.voters) < 5:
            return
        others = sorted(simulation.chronicle.membership.voter_ids - {deposed.node_id})
        witness = chance.choice(others)
        if not await self._overtake(deposed, witness, 12.0):
            return
        electors = [one for one in others if one != witness]
        links.cut(deposed.node_id, witness)
        successor = await self._led_by(electors)
        links.heal(witness)
        links.cut_pair(deposed.node_id, witness)
        if successor is not None:
            lost = self._nodes.get(
                chance.choice([one for one in electors if one != successor.node_id])
            )
            if lost is not None and await self._removed_without_its_disk(successor, lost):
                if chance.random() < 0.5:
                    await simulation.operator.remove_by(successor, deposed)
                await self._added_beside(deposed, successor, lost)
        links.heal()
        if deposed.life is not None:
            simulation.loop.resume(deposed.life)

    async def _led_by(self, electors: list[str]) -> Node | None:
        """Which of these leads now; None if none of them does within a while."""
        for _ in range(40):
            await asyncio.sleep(0.05)
            leader = self._simulation.leader()
            if leader in electors:
                return self._nodes.get(leader)
        return None

    async def _removed_without_its_disk(self, leader: Node, lost: Node) -> bool:
        """Remove one that has lost its disk; whether that was done."""
        if not self._director.may_end([lost], "wipe"):
            return False
        lost.end("kill")
        lost.wipe()
        await asyncio.sleep(self._chance.choice([0.1, 0.5]))
        await self._simulation.operator.remove_by(leader, lost)
        is_there = self._nodes.get(lost.node_id) is lost  # another removal may have taken it away
        return is_there and not self._simulation.is_member(lost)

    async def _added_beside(self, deposed: Node, leader: Node, lost: Node) -> None:
        """Add it anew: it sees the leader for a moment, then the deposed one, which runs again, and
        then a follower, who tells it that it is being added. What it says of that may be lost.
        """
        links, chance, loop = self._links, self._chance, self._simulation.loop
        newest = self._simulation.chronicle.membership
        followers = sorted(newest.voter_ids - {leader.node_id, deposed.node_id})
        links.cut(lost.node_id)
        links.heal_pair(lost.node_id, leader.node_id)
        links.heal_pair(lost.node_id, deposed.node_id)
        links.blackholes.discard((deposed.node_id, lost.node_id))
        self._unsaid = (lost.node_id, deposed.node_id) if chance.random() < 0.5 else None
        lost.joins = True
        await self._director.start(lost)
        await asyncio.sleep(chance.choice([1.2, 2.0]))
        links.cut_pair(lost.node_id, leader.node_id)
        await self._simulation.operator.add_by(leader, lost)
        if deposed.life is not None and lost.life is not None and followers:
            self._director.note("former voters")
            loop.resume(deposed.life)
            await asyncio.sleep(chance.choice([0.1, 0.5, 1.0]))
            links.heal_pair(lost.node_id, chance.choice(followers))
            await asyncio.sleep(1.0)
        self._unsaid = None

    # --- the only voter, on a full disk ------------------------------------------------------

    async def _sole_voter(self) -> None:
        """All voters but one are removed. That one takes appends, and is asked for changes of the
        members, while its disk is full, or takes nothing. What it acknowledges then is in one
        memory only.
        """
        director, chance, operator = self._director, self._chance, self._simulation.operator
        if not await director.all_well():
            return
        node = await self._left_alone()
        if node is None:
            return
        director.note("sole voters")
        node.disk.faults.full = chance.random() < 0.5
        node.disk.faults.failing = 0.0 if node.disk.faults.full else 1.0
        for _ in range(chance.choice([1, 2, 3])):
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            await chance.choice([operator.add, operator.add, operator.change])()
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        if director.may_end([node], "kill") and chance.random() < 0.5:
            await director.end_and_start(node, "kill")
        node.disk.faults.mend()
        director.uncalm()  # what came meanwhile is on no disk yet

    async def _left_alone(self) -> Node | None:
        """Remove one after the other; who is left, if it is only one."""
        simulation = self._simulation
        for _ in range(12):
            newest = simulation.chronicle.membership
            leader = self._nodes.get(simulation.leader() or "")
            if leader is None or leader.life is None:
                return None
            if newest.learner is None and newest.voter_ids == {leader.node_id}:
                return leader
            others = sorted(newest.voter_ids - {leader.node_id})
            gone = self._nodes.get(newest.learner_id or self._chance.choice(others))
            if gone is not None:
                await simulation.operator.remove_by(leader, gone)
            await asyncio.sleep(0.05)
        return None

    # --- the moment --------------------------------------------------------------------------

    async def _carried(
        self,
        begin: Callable[[], Awaitable[None]],
        which: Callable[[Carried], bool],
        within_s: float,
    ) -> Carried | None:
        """Begin a change; the first message of it for which `which` holds, if there is one."""
        self._came = asyncio.get_running_loop().create_future()
        self._awaited = which
        await begin()
        await asyncio.wait([self._came], timeout=within_s)
        came, self._came, self._awaited = self._came, None, None
        return came.result() if came.done() else None

    def _on_message(self, sender: str, receiver: str, message: Message) -> bool:
        """Whether it reaches its receiver."""
        self._look_for_changes(sender, receiver, message)
        return (sender, receiver) != self._unsaid or not isinstance(message, MembershipNotice)

    def _look_for_changes(self, sender: str, receiver: str, message: Message) -> None:
        if self._awaited is None or not isinstance(message, AppendEntries):
            return
        seen = [Carried(sender, receiver, one) for one in _memberships_in(message)]
        if seen and not self._seen_now:
            asyncio.get_running_loop().call_soon(self._judge)
        self._seen_now += seen

    def _judge(self) -> None:
        """All that came at one moment, in an order of its own: theirs is that of a set."""
        seen, self._seen_now = sorted(self._seen_now, key=_order), []
        for carried in seen:
            if self._awaited is None or self._came is None or self._came.done():
                return
            if self._awaited(carried):
                self._came.set_result(carried)


def _order(carried: Carried) -> tuple[str, str, int]:
    return carried.sender, carried.receiver, carried.membership.version


def _memberships_in(message: AppendEntries) -> Iterator[Membership]:
    return (decode_membership(entry) for _, entry in message.entries if is_membership(entry))
