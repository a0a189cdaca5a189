"""Voters that lost their disks, while the members, or the lineage, change."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from node.errors import ExesdbError
from node.raft.messages import (
    AppendEntries,
    MembershipNotice,
    Message,
    PreVoteRequest,
    RequestVote,
)
from tests.raft.harness import STORE, Cluster
from tests.raft.test_membership_change import ready
from tests.raft.test_rebuilding import rebuilt, survivors
from tests.raft.virtual_time import simulate


async def with_learner(cluster: Cluster, learner: str) -> str:
    """Add a node that is not counted before `promote`; gives the leader."""
    leader = await ready(cluster)
    await cluster.start(learner)
    for replica in cluster.replicas.values():
        replica._changes._promote = lambda _: None  # type: ignore[method-assign]
    await cluster[leader].add_member(learner, f"{learner}:1", 500)
    await cluster.settled()
    assert cluster.leader() == leader
    return leader


def promote(cluster: Cluster, leader: str) -> None:
    """Let the leader count the learner as soon as it would."""
    del cluster[leader]._changes._promote


async def voter_forgets_a_learner(
    cluster: Cluster, learner: str, leader: str, slow: str, victim: str
) -> None:
    """`victim` votes for the learner, and is wiped before `slow` is asked; `leader` stands, too."""
    held: list[Message] = []

    def watch(sender: str, to: str, message: Message) -> bool:
        if (sender, to) == (learner, slow) and (held or isinstance(message, RequestVote)):
            held.append(message)  # the connection stands still from here on
            return False
        late = held and to == slow and isinstance(message, RequestVote | AppendEntries)
        other = held and isinstance(message, PreVoteRequest) and sender != leader
        return not late and not other

    cluster.links.watchers.append(watch)
    await cluster.until(lambda: held and cluster.disks[victim].vote == learner)
    await asyncio.sleep(0.01)  # and its vote has arrived
    term = cluster[victim]._engine.term
    assert isinstance(held[0], RequestVote) and held[0].term == term
    cluster.crash(victim)
    cluster.wipe(victim)
    cluster.links.heal()
    cluster.links.cut_pair(leader, learner)
    cluster.links.cut_pair(victim, learner)
    await cluster.start(victim)
    with suppress(AssertionError):
        await cluster.until(
            lambda: cluster[leader].leads and cluster[leader]._engine.term == term, 3
        )
    cluster[slow].received(learner, held[0])
    await asyncio.sleep(0.1)
    cluster.links.watchers.remove(watch)
    cluster.links.heal()


def all_hold(cluster: Cluster, command: bytes, *node_ids: str) -> bool:
    """Whether the events of an append are on these nodes."""
    return all(
        STORE in cluster[node].state.stores and cluster.holds(node, command) for node in node_ids
    )


def test_a_deposed_leader_that_knows_a_voter_as_its_learner_commits_nothing_with_it() -> None:
    """It promoted the learner, which then helped to depose it, acknowledged, and lost its disk."""

    async def scenario() -> None:
        # A leader that is not run for a while does not notice that it leads no more.
        cluster = Cluster(4, spares=1, leader_fallback_ms=60_000)
        deposed = await with_learner(cluster, "n5")
        one, other, third = [node for node in cluster.ids if node != deposed]
        # The promotion arrives, the acks of it do not.
        for node in (one, other, "n5"):
            cluster.links.blackholes.add((node, deposed))
        cluster.links.blackholes.add((deposed, third))
        promote(cluster, deposed)
        await cluster.until(
            lambda: all("n5" in cluster[node].voters for node in (one, other, "n5"))
        )
        cluster.links.cut(deposed, third)
        cluster.links.blackholes.clear()
        await cluster.until(lambda: any(cluster[node].leads for node in (one, other, "n5")))
        leader = await cluster.led(one, other, "n5")
        command = cluster.command()
        await cluster.append(leader, command)
        await cluster.until(lambda: all_hold(cluster, command, one, other))
        waiting = asyncio.ensure_future(cluster.append(deposed, None, 5_000))
        await asyncio.sleep(0.2)
        cluster.crash("n5")
        cluster.wipe("n5")
        cluster.links.heal("n5")
        cluster.links.cut_pair(one, "n5")
        cluster.links.cut_pair(other, "n5")
        await cluster.start("n5")
        with pytest.raises(ExesdbError):
            await waiting
        cluster.links.heal()
        await cluster.until(lambda: all_hold(cluster, command, *cluster.replicas))
        cluster.check()

    simulate(scenario)


def test_a_wiped_survivor_of_a_rebuilt_cluster_is_blank_although_it_is_quarantined_first() -> None:
    """As seed 31286, in a second lineage."""

    async def scenario() -> None:
        cluster = Cluster(7, leader_fallback_ms=60_000)
        await cluster.fill_log(await cluster.ready(), 10)
        await cluster.settled()
        living, dead = await survivors(cluster, 3)
        plan = await rebuilt(cluster, living, dead)
        deposed = await cluster.led(*living)
        one, other = [node for node in living if node != deposed]
        victim, command = await cluster.wiped_meets_deposed(deposed, one, other)
        with pytest.raises(ExesdbError):
            await cluster.append(deposed, None, 5_000)
        assert cluster.disks[victim].standing.lineage == plan.lineage
        cluster.links.heal()
        await cluster.until(lambda: all_hold(cluster, command, *living))
        cluster.check()

    simulate(scenario)


def test_a_learner_that_stands_is_asked_by_a_wiped_voter_that_may_have_voted_for_it() -> None:
    """Else two lead one term, if what the learner says to another voter is slow."""

    async def scenario() -> None:
        cluster = Cluster(3, spares=1)
        leader = await with_learner(cluster, "n4")
        slow, victim = [node for node in cluster.ids if node != leader]
        cluster.links.cut(leader)
        cluster.links.cut_pair(slow, victim)  # so that only the learner is long without a leader
        await cluster.until(lambda: not cluster[leader].leads)
        await voter_forgets_a_learner(cluster, "n4", leader, slow, victim)
        await cluster.settled()
        cluster.check()

    simulate(scenario)


def test_a_wiped_voter_waits_for_the_one_with_which_alone_it_decided() -> None:
    """Of two, one was away when a third was counted; with that the other one went on."""

    async def scenario() -> None:
        cluster = Cluster(2, spares=1)
        leader = await with_learner(cluster, "n3")
        away = next(node for node in cluster.ids if node != leader)
        await cluster.stop(away)
        promote(cluster, leader)
        await cluster.until(
            lambda: "n3" in cluster[leader]._journal.memberships.committed.voter_ids
        )
        command = cluster.command()
        await cluster.append(leader, command)
        await cluster.settled()
        await cluster.stop("n3")
        cluster.crash(leader)
        cluster.wipe(leader)
        await cluster.start(leader, away)
        await asyncio.sleep(10)
        assert cluster.leader() is None, "n3 holds what these two do not know of"
        await cluster.start("n3")
        await cluster.until(lambda: all_hold(cluster, command, *cluster.replicas))
        await cluster.settled()
        cluster.check()

    simulate(scenario)


def test_a_founder_without_others_that_lost_its_disk_joins_those_who_came_after_it() -> None:
    """Started as it was founded, it could not know that it is alone no more."""

    async def scenario() -> None:
        cluster = Cluster(1, spares=1)
        await cluster.ready()
        await cluster.start("n2")
        await cluster["n1"].add_member("n2", "n2:1", 5_000)
        command = cluster.command()
        await cluster.append("n1", command)
        await cluster.settled()
        cluster.crash("n1")
        cluster.wipe("n1")
        cluster.spares.append("n1")  # it is started with --join
        cluster.links.cut("n1")
        await cluster.start("n1")
        await asyncio.sleep(2)
        assert not cluster["n1"].leads
        cluster.links.heal()
        await cluster.settled()
        cluster.check()

    simulate(scenario)


def test_two_of_five_that_lost_their_disks_and_join_wait_for_those_who_came_later() -> None:
    """The third one was away when the cluster grew from three to five. Started as founders, the two
    would take the founding membership for the newest.
    """

    async def scenario() -> None:
        cluster = Cluster(3, spares=2)
        leader = await ready(cluster)
        away, other = cluster.followers()
        cluster.links.watchers.append(
            lambda _, to, message: (
                not (to == away and isinstance(message, AppendEntries | MembershipNotice))
            )
        )
        for new in cluster.spares:
            await cluster.start(new)
            await cluster[leader].add_member(new, f"{new}:1", 5_000)
        assert set(cluster[leader].voters) == {"n1", "n2", "n3", "n4", "n5"}
        command = cluster.command()
        await cluster.append(leader, command)
        await cluster.until(lambda: all_hold(cluster, command, leader, other, *cluster.spares))
        await cluster.stop(*cluster.spares, away)
        cluster.crash(leader, other)
        cluster.wipe(leader)
        cluster.wipe(other)
        cluster.spares += [leader, other]  # they are started with --join
        cluster.links.watchers.pop()
        await cluster.start("n1", "n2", "n3")
        await asyncio.sleep(10)
        assert cluster.leader() is None, "n4 and n5 hold what these three do not know of"
        await cluster.start("n4", "n5")
        await cluster.until(lambda: all_hold(cluster, command, *cluster.replicas))
        cluster.check()

    simulate(scenario)


@pytest.mark.parametrize("seed", range(8))
def test_a_learner_whose_addition_only_the_wiped_leader_knew_does_not_lead_beside_another(
    seed: int,
) -> None:
    """It had been removed, kept its disk, and was being added again."""

    async def scenario() -> None:
        cluster = Cluster(4, seed=seed)
        victim = await ready(cluster)
        leader, slow, learner = cluster.followers()
        await cluster[victim].remove_member(learner, 2_000)
        await cluster.until(
            lambda: all(
                cluster[one]._journal.memberships.committed.version == 1 for one in cluster.ids
            )
        )
        cluster.links.blackholes |= {(victim, leader), (victim, slow)}
        cluster.links.blackholes |= {(leader, victim), (slow, victim)}
        cluster.links.cut_pair(leader, slow)
        cluster.links.cut_pair(leader, learner)
        with suppress(ExesdbError):
            await cluster[victim].add_member(learner, f"{learner}:1", 300)
        await cluster.until(
            lambda: cluster[learner]._journal.memberships.current.learner_id == learner
        )
        await voter_forgets_a_learner(cluster, learner, leader, slow, victim)
        await cluster.led(leader, slow, victim)
        cluster.check()

    simulate(scenario)


def test_a_wiped_voter_does_not_wait_for_a_node_whose_addition_came_to_nothing() -> None:
    """Those who had heard of it lost their logs, and recovered without it."""

    async def scenario() -> None:
        cluster = Cluster(3, spares=1)
        leader = await ready(cluster)
        one, other = cluster.followers()
        cluster.persist()
        cluster.links.blackholes |= {(leader, other), (one, leader)}
        with suppress(ExesdbError):
            await cluster[leader].add_member("n4", "n4:1", 300)
        assert cluster.disks[one].heard is not None and cluster.disks[one].heard.version == 1
        cluster.crash()
        cluster.links.heal()
        await cluster.start("n1", "n2", "n3")
        await cluster.settled()
        assert cluster[other]._journal.memberships.current.learner is None
        cluster.crash(other)
        cluster.wipe(other)
        await cluster.start(other)
        await cluster.settled()
        cluster.check()

    simulate(scenario)
