"""Changes of the members that somebody did not hear of, or not that they came into force."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from node.errors import ExesdbError, MembershipChangeOpen, OutcomeUnknown
from node.raft import entries
from node.raft.journal import Journal
from node.raft.messages import AppendEntries, Message
from tests.raft.harness import STORE, Cluster
from tests.raft.solo import Disk, starting_at
from tests.raft.test_blank_interplay import promote, with_learner
from tests.raft.test_membership import D, named
from tests.raft.test_membership_change import add, knows, ready, removed
from tests.raft.test_rebuilding import settled
from tests.raft.virtual_time import simulate


def test_of_two_with_one_version_the_committed_one_counts() -> None:
    journal = Journal(starting_at(10, 1), Disk(), "a", named("abc"))
    in_vain, committed = named("abc").with_learner(D), named("abc").without("c")
    assert in_vain.version == committed.version
    journal.add(entries.encode_membership(in_vain), 11, 1)
    assert journal.memberships.current == in_vain
    journal.memberships.learned(committed)
    assert journal.memberships.current == journal.memberships.newest == committed
    assert not journal.memberships.open


def test_a_deposed_leader_builds_no_change_on_one_that_came_to_nothing() -> None:
    async def scenario() -> None:
        cluster = Cluster(3, spares=1, leader_fallback_ms=60_000)
        deposed = await with_learner(cluster, "n4")
        others = [node for node in cluster.ids if node != deposed]
        links = cluster.links
        links.blackholes |= {(deposed, other) for other in others}
        promote(cluster, deposed)
        await cluster.until(lambda: len(cluster["n4"].voters) == 4)
        links.cut(deposed, "n4")
        links.blackholes.clear()
        leader = await cluster.led(*others)
        (other,) = [node for node in others if node != leader]
        await cluster[leader].remove_member("n4", 2000)
        await cluster.until(lambda: cluster[other]._journal.memberships.committed.learner is None)
        committed = cluster[leader]._journal.memberships.committed
        links.heal_pair("n4", other)  # by it, what was committed comes to the deposed leader
        await cluster.until(lambda: cluster[deposed]._journal.memberships.committed == committed)
        assert cluster[deposed]._journal.memberships.current == committed
        with pytest.raises(ExesdbError):
            await cluster[deposed].remove_member(other, 500)
        await cluster.append(leader)
        links.heal()
        await settled(cluster, deposed, *others)
        cluster.check()

    simulate(scenario)


@pytest.mark.parametrize("founders", [2, 3])
def test_a_wiped_node_waits_where_its_being_alone_was_only_heard_of(founders: int) -> None:
    """Who was removed last may not know that its removal was committed, and what came since."""

    async def scenario() -> None:
        cluster = Cluster(founders, spares=2)
        leader = await ready(cluster)
        last, *others = cluster.followers()
        for other in others:
            await cluster[leader].remove_member(other, 2000)
            await cluster.until(lambda other=other: knows(cluster, other, {leader, last}))
            cluster.crash(other)

        def heard_enough(sender: str, to: str, _: Message) -> bool:
            heard = cluster.disks[last].heard
            return not ((sender, to) == (leader, last) and heard and heard.voter_ids == {leader})

        cluster.links.watchers.append(heard_enough)
        await cluster[leader].remove_member(last, 2000)
        cluster.links.cut(last)
        cluster.links.watchers.pop()
        assert knows(cluster, leader, {leader}) and knows(cluster, last, {leader, last})
        for spare in cluster.spares:
            await add(cluster, spare)
        await settled(cluster, leader, *cluster.spares)
        cluster.crash(leader)
        cluster.wipe(leader)
        await cluster.append(await cluster.led(*cluster.spares))
        cluster.links.heal(last)
        cluster.links.cut(*cluster.spares)
        await cluster.start(leader)
        await asyncio.sleep(20)
        assert cluster[leader].recovering and not cluster[last].leads
        assert "when this node was the only one" in cluster[leader].not_ready_reasons()[0]
        cluster.links.heal()
        await cluster.until(lambda: not cluster[leader].recovering)
        cluster.check()

    simulate(scenario)


def test_a_wiped_node_waits_where_only_a_dropped_learner_tells_of_the_members() -> None:
    """It was the only voter then, and may have decided alone what came since."""

    async def scenario() -> None:
        cluster = Cluster(1, spares=3)
        leader = await ready(cluster)
        dropped, *others = cluster.spares
        await cluster.start(dropped)
        cluster[leader]._changes._promote = lambda _: None  # type: ignore[method-assign]
        await cluster[leader].add_member(dropped, f"{dropped}:1", 500)
        await cluster.until(lambda: cluster.disks[dropped].membership.learner_id == dropped)
        cluster.links.cut(dropped)
        await cluster[leader].remove_member(dropped, 2000)
        del cluster[leader]._changes._promote
        for other in others:
            await add(cluster, other)
        await settled(cluster, leader, *others)
        cluster.crash(leader)
        cluster.wipe(leader)
        cluster.spares.append(leader)  # it is started with --join
        command = cluster.command()
        await cluster.append(await cluster.led(*others), command)
        cluster.links.heal(dropped)
        cluster.links.cut(*others)
        await cluster.start(leader)
        await asyncio.sleep(20)
        assert not cluster[leader].leads, "the others have a majority without it"
        assert "when this node was the only one" in cluster[leader].not_ready_reasons()[0]
        cluster.links.heal()
        await settled(cluster, leader, *others)
        assert cluster.holds(leader, command)
        cluster.check()

    simulate(scenario)


@pytest.mark.parametrize("joins", [True, False])
def test_a_removal_is_not_answered_before_the_only_other_one_that_stays_knows(joins: bool) -> None:
    """Were the leader's disk lost then, and the one that went stopped, none could say who stays."""

    async def scenario() -> None:
        cluster = Cluster(3, tails=True)
        leader = await ready(cluster)
        other, goes = cluster.followers()
        cluster.links.watchers.append(
            lambda _, to, __: to != other or not knows(cluster, leader, {leader, other})
        )
        removal = asyncio.ensure_future(cluster[leader].remove_member(goes, 5_000))
        await cluster.until(lambda: knows(cluster, leader, {leader, other}))
        await asyncio.sleep(0.1)
        assert not knows(cluster, other, {leader, other})
        assert not removal.done()
        cluster.crash(leader)
        cluster.wipe(leader)
        with pytest.raises(ExesdbError):
            await removal
        cluster.links.watchers.pop()
        if joins:
            cluster.spares.append(leader)
        await cluster.start(leader)
        await cluster.led(leader, other)
        await cluster.until(lambda: not cluster[leader].recovering)
        cluster.check()

    simulate(scenario)


async def elected_beside_its_own_removal(cluster: Cluster) -> tuple[str, str]:
    """Of two, one leads whose removal stands in its log; the one that stays, and that one."""
    stays = await ready(cluster)
    (goes,) = cluster.followers()
    await cluster.append(stays)
    await cluster.settled()
    cluster.links.blackholes.add((goes, stays))
    with pytest.raises(OutcomeUnknown):
        await cluster[stays].remove_member(goes, 100)
    await cluster.until(lambda: not cluster[stays].leads)
    cluster[stays]._election._may_stand = lambda: False  # type: ignore[method-assign]
    cluster.links.heal()
    cluster.links.watchers.append(
        lambda sender, _, message: sender != goes or not isinstance(message, AppendEntries)
    )
    await cluster.until(lambda: cluster[goes].leads)  # and nothing is committed yet
    return stays, goes


def has_applied(cluster: Cluster, goes: str, stays: str) -> bool:
    """Whether the one that goes is past its removal, and waits for the word of the other one."""
    unsaid = cluster[goes]._journal.memberships.unsaid
    return unsaid is not None and unsaid.membership.voter_ids == {stays}


def hold_back_that_it_is_committed(cluster: Cluster, goes: str, stays: str) -> None:
    cluster.links.watchers[:] = [
        lambda sender, to, _: (sender, to) != (goes, stays) or not has_applied(cluster, goes, stays)
    ]


def test_a_leader_that_goes_leads_until_the_only_one_that_stays_knows() -> None:
    async def scenario() -> None:
        cluster = Cluster(2)
        stays, goes = await elected_beside_its_own_removal(cluster)
        removal = asyncio.ensure_future(cluster[goes].remove_member(goes, 5_000))
        await asyncio.sleep(0)
        cluster.links.watchers.pop()
        await removal
        assert knows(cluster, stays, {stays}), "before it is answered"
        del cluster[stays]._election._may_stand  # type: ignore[attr-defined]
        await cluster.until(lambda: removed(cluster, goes) and cluster[stays].leads)
        cluster.crash(goes)
        await cluster.append(stays)

    simulate(scenario)


def test_a_removal_is_not_answered_while_the_only_one_that_stays_does_not_know() -> None:
    """Whoever believed it and stopped the other one would leave a node that waits for ever."""

    async def scenario() -> None:
        cluster = Cluster(2, tails=True)
        stays, goes = await elected_beside_its_own_removal(cluster)
        removal = asyncio.ensure_future(cluster[goes].remove_member(goes, 15_000))
        await asyncio.sleep(0)
        hold_back_that_it_is_committed(cluster, goes, stays)
        await cluster.until(lambda: has_applied(cluster, goes, stays))
        cluster.crash(stays)  # killed: its tail forgets nothing, and counts both
        with pytest.raises(MembershipChangeOpen):
            await cluster[goes].add_member("n9", "n9:1", 100)
        with pytest.raises(OutcomeUnknown):
            await removal
        cluster.links.watchers.pop()
        await cluster.start(stays)
        await cluster.until(lambda: cluster[stays].leads)
        await cluster.until(lambda: removed(cluster, goes))
        await cluster.append(stays)

    simulate(scenario)


@pytest.mark.parametrize("down_s", [0, 3])
def test_the_only_one_that_stays_goes_on_from_the_log_of_the_one_that_goes(down_s: int) -> None:
    """It lost its memory, and with it what both have acknowledged while they were two."""

    async def scenario() -> None:
        cluster = Cluster(2)
        stays, goes = await elected_beside_its_own_removal(cluster)
        removal = asyncio.ensure_future(cluster[goes].remove_member(goes, 5_000))
        await asyncio.sleep(0)
        hold_back_that_it_is_committed(cluster, goes, stays)
        del cluster[stays]._election._may_stand  # type: ignore[attr-defined]
        await cluster.until(lambda: has_applied(cluster, goes, stays))
        cluster.crash(stays)
        await asyncio.sleep(down_s)  # after a second the other one leads no more
        await cluster.start(stays)
        cluster.links.watchers.pop()
        assert cluster[goes].leads == (down_s == 0)
        with suppress(ExesdbError):
            await removal
        await cluster.until(lambda: cluster[stays].leads and removed(cluster, goes))
        assert STORE in cluster[stays].state.stores
        cluster.check()

    simulate(scenario)
