"""A leader that was not run, or was cut off for a moment, while another one changed the members.

It remembers what it was acknowledged in its own term. Those who acknowledged it have voted in a
later one since, and cut it off; of the members that there are now they may be a majority.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from node.errors import ExesdbError
from node.raft.entries import decode_membership, is_membership
from node.raft.lineage import Standing
from node.raft.membership import NOBODY
from node.raft.messages import Ack, AppendEntries, Gossip, MembershipNotice, Message, RequestVote
from tests.raft.harness import Cluster
from tests.raft.solo import Disk
from tests.raft.test_blank_interplay import promote, with_learner
from tests.raft.test_membership_change import knows, ready
from tests.raft.test_rebuilding import settled
from tests.raft.virtual_time import simulate

FALLBACKS_MS = [1_000, 60_000]  # the default; and one that stands for a leader that was not run


class Overtaken:
    """A leader, and an append that its witnesses have acknowledged: fewer than a majority."""

    def __init__(self, cluster: Cluster, leader: str, *witnesses: str) -> None:
        self.leader, self.witnesses = leader, witnesses
        self.others = [one for one in cluster.replicas if one not in (leader, *witnesses)]
        self._cluster = cluster
        self._command = cluster.command()

    async def half_replicated(self) -> None:
        """Append through the leader, and let only the witnesses hear of it."""

        def passes(sender: str, to: str, message: Message) -> bool:
            entries = isinstance(message, AppendEntries)
            return not (sender == self.leader and to in self.others and entries)

        cluster, engine = self._cluster, self._cluster[self.leader]._engine
        cluster.links.watchers.append(passes)
        before = engine.journal.last_index
        self._appending = asyncio.ensure_future(cluster.append(self.leader, self._command, 20_000))
        await cluster.until(lambda: all(engine.match_index(one) > before for one in self.witnesses))

    async def replaced_by(self, successor: str) -> None:
        """Cut the leader off, and let this one lead next."""
        cluster = self._cluster
        cluster.links.cut(self.leader)
        cluster.links.watchers.pop()
        rest = [one for one in (*self.witnesses, *self.others) if one != successor]
        for one in rest:
            cluster[one]._election._may_stand = lambda: False  # type: ignore[method-assign]
        await cluster.led(successor)
        for one in rest:
            del cluster[one]._election._may_stand

    async def judged(self, *members: str) -> None:
        """All of these hold the append, or nobody does and nobody was told that it is stored."""
        assert not self._cluster.chronicle.violations, "two histories"
        await settled(self._cluster, *members)
        held = [self._cluster.holds(one, self._command) for one in members]
        assert len({*held}) == 1, "two histories"
        self._appending.cancel()
        with suppress(ExesdbError, asyncio.CancelledError):
            await self._appending
            assert all(held), "an acknowledged append is lost"
        self._cluster.check()


@pytest.mark.parametrize("fallback_ms", FALLBACKS_MS)
def test_old_acknowledgements_are_not_counted_among_fewer_members(fallback_ms: int) -> None:
    async def scenario() -> None:
        cluster = Cluster(5, tails=True, leader_fallback_ms=fallback_ms)
        leader = await ready(cluster)
        witness, successor, *gone = cluster.followers()
        overtaken = Overtaken(cluster, leader, witness)
        await overtaken.half_replicated()
        await overtaken.replaced_by(successor)
        for one in gone:
            await cluster[successor].remove_member(one, 1_000)
        await cluster.append(successor)
        assert cluster[leader].leads
        cluster.links.heal()
        await overtaken.judged(leader, witness, successor)

    simulate(scenario)


@pytest.mark.parametrize("fallback_ms", FALLBACKS_MS)
@pytest.mark.parametrize("meets", ["everybody", "the removed one"])
def test_old_acknowledgements_are_not_counted_when_one_was_replaced(
    fallback_ms: int, meets: str
) -> None:
    """The one that is counted now had acknowledged as a learner what nobody else has."""

    async def scenario() -> None:
        cluster = Cluster(3, tails=True, spares=1, leader_fallback_ms=fallback_ms)
        leader = await with_learner(cluster, "n4")
        successor, removed = (one for one in cluster.ids if one != leader)
        overtaken = Overtaken(cluster, leader, "n4")
        await overtaken.half_replicated()
        await overtaken.replaced_by(successor)
        promote(cluster, successor)
        await cluster.until(lambda: knows(cluster, successor, {*cluster.ids, "n4"}))
        await cluster[successor].remove_member(removed, 1_000)
        await cluster.append(successor)
        assert cluster[leader].leads
        if meets == "the removed one":
            cluster.links.heal_pair(leader, removed)
            await cluster.until(lambda: knows(cluster, leader, {leader, successor, "n4"}))
        cluster.links.heal()
        await overtaken.judged(leader, successor, "n4")

    simulate(scenario)


def test_a_leader_does_not_take_its_own_change_for_the_same_one_of_a_later_term() -> None:
    """Both leaders remove the same node. The deposed one must not build on the other's removal."""

    async def scenario() -> None:
        cluster = Cluster(5, tails=True, leader_fallback_ms=60_000)
        leader = await ready(cluster)
        witness, successor, next_, first = cluster.followers()
        overtaken = Overtaken(cluster, leader, witness)
        await overtaken.half_replicated()
        cluster.links.blackholes |= {(leader, one) for one in cluster.ids}
        with pytest.raises(ExesdbError):
            await cluster[leader].remove_member(first, 10)
        await overtaken.replaced_by(successor)
        cluster.links.blackholes.clear()
        await cluster[successor].remove_member(first, 1_000)
        await cluster.append(successor)
        assert cluster[leader]._journal.memberships.newest == cluster[successor]._engine.membership
        # What the leader says may be lost: else the witness would tell it of the later term.
        cluster.links.blackholes.add((leader, witness))
        cluster.links.heal_pair(leader, witness)
        await asyncio.sleep(0.1)  # now it has been told
        with pytest.raises(ExesdbError):
            await cluster[leader].remove_member(next_, 300)
        cluster.links.heal()
        await overtaken.judged(leader, witness, successor, next_)

    simulate(scenario)


def test_a_leader_that_is_slow_to_apply_a_change_goes_on_leading() -> None:
    """Those who follow have applied it first, and say so."""

    async def scenario() -> None:
        cluster = Cluster(3)
        leader = await ready(cluster)
        stays, gone = cluster.followers()
        engine, changes = cluster[leader]._engine, cluster[leader]._changes
        term, apply, told = engine.term, engine._apply, []

        def apply_late(index: int, term: int, entry: bytes) -> None:
            if is_membership(entry):
                told.append(decode_membership(entry))
                changes.told(stays, MembershipNotice(told[-1].plain()))
            apply(index, term, entry)

        engine._apply = apply_late
        removed = await cluster[leader].remove_member(gone, 2_000)
        assert told == [removed]
        assert engine.leads and engine.term == term

    simulate(scenario)


@pytest.mark.parametrize("told", ["late, as it was removed", "in vain"])
def test_an_overtaken_leader_does_not_count_a_former_voter_that_is_being_added_anew(
    told: str,
) -> None:
    """It lost its disk, with it its vote for the next leader, and asks nobody as it is `new`.

    Nobody else loses anything. L leads term 1 and is cut off (or not run); the witness alone has
    its last append. Y was elected without the witness, by the vote of X. Then X loses its disk, is
    removed, and L is removed, and X is being added again.
    """

    async def scenario() -> None:
        cluster = Cluster(5, tails=True, leader_fallback_ms=60_000)
        links = cluster.links
        leader = await ready(cluster)
        witness, successor, other, lost = cluster.followers()
        overtaken = Overtaken(cluster, leader, witness)
        await overtaken.half_replicated()
        await overtaken.replaced_by(successor)
        await cluster.append(successor)
        cluster.crash(lost)
        cluster.wipe(lost)
        await cluster[successor].remove_member(lost, 2_000)
        if told == "in vain":  # one message to it is lost: then it need not even be removed
            links.watchers.append(
                lambda sender, to, message: (
                    not ((sender, to) == (lost, leader) and isinstance(message, MembershipNotice))
                )
            )
        else:
            await cluster[successor].remove_member(leader, 2_000)
        assert cluster[leader].leads
        # X comes back with an empty disk, meets Y for a moment, and then only the removed leader.
        cluster.ids = [witness, successor, other]
        cluster.spares.append(lost)
        links.heal_pair(leader, lost)
        links.cut_pair(lost, other)
        links.cut_pair(lost, witness)
        await cluster.start(lost)
        links.cut_pair(lost, successor)
        await asyncio.sleep(1)
        learns = await cluster[successor].add_member(lost, f"{lost}:1", 500)
        assert learns.learner_id == lost and knows(cluster, other, learns.voter_ids)
        # Everything up to here may take as long as it wants. Now X meets a follower.
        said: list[str] = []
        links.watchers.append(
            lambda sender, to, message: (
                said.append(sender)
                if isinstance(message, Gossip) and (sender, to) == (leader, lost)
                else None
            )
        )
        await cluster.until(lambda: said)
        links.heal_pair(lost, other)
        await asyncio.sleep(1)
        links.heal()
        await overtaken.judged(witness, successor, other)

    simulate(scenario)


def test_a_voter_without_its_disk_does_not_judge_old_answers_by_the_members_of_now() -> None:
    """X alone loses its disk. It had voted for D, which has too few votes yet. All but D answer it,
    in the term of L. Then D is elected, hands over, and is removed; nobody else is asked anew.
    """

    async def scenario() -> None:
        cluster = Cluster(7, tails=True, leader_fallback_ms=60_000)
        links = cluster.links
        leader = await ready(cluster)
        lost, removed, next_, other, witness, second = cluster.followers()
        rest = [next_, other, witness, second]
        overtaken = Overtaken(cluster, leader, witness, second)
        await overtaken.half_replicated()
        links.cut(leader)
        links.watchers.pop()
        asked: dict[str, Message] = {}  # D's link is slow just when it asks for votes

        def slow(sender: str, to: str, message: Message) -> bool:
            if sender != removed or to == lost:
                return True
            if isinstance(message, RequestVote):
                asked.setdefault(to, message)
            return not asked

        links.watchers.append(slow)
        for one in (lost, *rest):
            cluster[one]._election._may_stand = lambda: False  # type: ignore[method-assign]
        await cluster.until(lambda: cluster.disks[lost].vote == removed)
        await asyncio.sleep(0.01)
        cluster.crash(lost)
        cluster.wipe(lost)
        links.cut_pair(lost, removed)
        links.heal_pair(lost, leader)
        links.watchers.append(
            lambda sender, to, message: (
                not ((sender, to) == (lost, leader) and isinstance(message, MembershipNotice))
            )
        )
        await cluster.start(lost)
        recovery = cluster[lost]._recovery
        await cluster.until(lambda: recovery._reports.keys() == {leader, *rest})
        for one in (next_, other, second):
            links.cut_pair(lost, one)
        for one in (next_, other):
            cluster[one].received(removed, asked[one])
        links.watchers.remove(slow)
        await cluster.led(removed)
        await cluster[removed].transfer_leadership(next_, 1_000)
        await cluster.led(next_)
        await cluster[next_].remove_member(removed, 1_000)
        await asyncio.sleep(1)
        links.heal()
        await overtaken.judged(leader, lost, *rest)

    simulate(scenario)


def given_up(cluster: Cluster) -> Disk:
    """A disk whose lineage was given up, and which is quarantined."""
    first = Disk(7, None, 50, blank=False, standing=Standing("before", (), founded=True))
    return first.quarantined(cluster.disks["n1"].standing)


async def first_disk_meets(
    cluster: Cluster, lost: str, first: Disk, met: str, incarnation: int
) -> None:
    """A node's disk is lost, and its machine is started with an older one, in this incarnation (the
    clock's, as in `identity`); it meets one node first.
    """
    cluster.crash(lost)
    cluster.disks[lost] = first
    cluster.disks[lost].incarnation = incarnation
    cluster.links.cut(lost)
    cluster.links.heal_pair(lost, met)
    await cluster.start(lost)
    await asyncio.sleep(2)
    cluster.links.heal()


def test_a_disk_of_a_given_up_lineage_is_not_believed_to_have_promised_nothing() -> None:
    """X was given up, came again with a new disk, was added and voted. Then that disk is lost, and
    the machine is started with its first one, which is quarantined.
    """

    async def scenario() -> None:
        cluster = Cluster(5, tails=True, leader_fallback_ms=60_000)
        leader = await ready(cluster)
        witness, successor, _, lost = cluster.followers()
        overtaken = Overtaken(cluster, leader, witness)
        await overtaken.half_replicated()
        await overtaken.replaced_by(successor)  # by the vote of X
        await cluster.append(successor)
        cluster.spares.append(lost)  # whatever the options say: its membership is NOBODY on disk
        first, incarnation = given_up(cluster), cluster.disks[lost].incarnation
        await first_disk_meets(cluster, lost, first, leader, incarnation)
        await overtaken.judged(leader, witness, successor)

    simulate(scenario)


@pytest.mark.parametrize("started_before", [False, True])
@pytest.mark.parametrize("first_was", ["quarantined", "never a member"])
def test_a_disk_from_before_the_one_that_was_added_does_not_take_itself_for_that(
    first_was: str, started_before: bool
) -> None:
    """Another one was used under its id, was added, and voted; and is lost. The first one was a
    stranger once, or its process stood still all the while.
    """

    async def scenario() -> None:
        cluster = Cluster(4, tails=True, spares=1, leader_fallback_ms=60_000)
        links, lost = cluster.links, "n5"
        cluster.disks[lost].incarnation = 100  # of the second disk
        leader = await with_learner(cluster, lost)
        witness, successor, _ = (one for one in cluster.ids if one != leader)

        def passes(sender: str, to: str, message: Message) -> bool:
            word = isinstance(message, Ack | MembershipNotice)
            return not (word and to == leader and sender != witness)

        # The leader counts it, and does not hear that this is committed.
        links.watchers.append(passes)
        promote(cluster, leader)
        await cluster.until(
            lambda: all(
                lost in one._engine.membership.voter_ids for one in cluster.replicas.values()
            )
        )
        await asyncio.sleep(0.3)
        overtaken = Overtaken(cluster, leader, witness)
        await overtaken.half_replicated()
        await overtaken.replaced_by(successor)  # by its vote
        await cluster.append(successor)
        links.watchers.pop()
        first = Disk(membership=NOBODY, heard=NOBODY)
        if first_was == "quarantined":
            first = given_up(cluster)
        first.lives = (51,) if started_before else ()
        await first_disk_meets(cluster, lost, first, leader, 200)
        await overtaken.judged(leader, witness, successor)

    simulate(scenario)
