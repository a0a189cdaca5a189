"""What a node still believes of what was before: of a membership, or of another node."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from cluster.recover_plan import make
from node.errors import ExesdbError
from node.raft.membership import Membership, Unsaid
from node.raft.messages import Ack, AppendEntries
from tests.raft.harness import Chronicle, Cluster
from tests.raft.test_membership_change import ready
from tests.raft.test_rebuilding import order, reports
from tests.raft.virtual_time import simulate


async def wiped_comes_back(cluster: Cluster, victim: str) -> None:
    """A voter that lost its disk waits for nobody who is not there."""
    cluster.crash(victim)
    cluster.wipe(victim)
    await cluster.start(victim)
    await cluster.settled()
    cluster.check()


def test_a_fill_ends_what_was_heard_of_a_membership_that_came_to_nothing() -> None:
    """A wiped voter would wait for ever for a node that was never added."""

    async def scenario() -> None:
        cluster = Cluster(3, spares=1, tails=True, log_tail_entries_max=100)
        away = await ready(cluster)
        one, other = cluster.followers()
        pairs = [(away, one), (away, other)]
        cluster.links.blackholes |= {*pairs, *(pair[::-1] for pair in pairs)}
        with suppress(ExesdbError):
            await cluster[away].add_member("n4", "n4:1", 300)
        assert cluster[away]._journal.memberships.heard.learner_id == "n4"
        leader = await cluster.led(one, other)
        await cluster.fill_log(leader, 500)
        cluster.persist()
        await asyncio.sleep(1)
        assert cluster[leader]._journal.base_index > 100
        cluster.links.heal()
        await cluster.settled()
        assert cluster[away].filling.receiver.counters["fill_events_received"]
        await wiped_comes_back(cluster, other if leader == one else one)

    simulate(scenario)


def test_a_learner_is_not_counted_on_the_word_of_an_earlier_life() -> None:
    """It is blank, and waits for a voter that is down; with it counted the others are too few."""

    async def scenario() -> None:
        cluster = Cluster(3, spares=1)
        leader = await ready(cluster)
        await cluster.start("n4")
        await cluster[leader].add_member("n4", "n4:1", 5_000)
        await cluster[leader].remove_member("n4", 5_000)
        one, down = (node for node in cluster.ids if node != leader)
        cluster.crash(down)
        cluster.links.watchers.append(
            lambda sender, to, message: not ((sender, to) == (one, leader) and type(message) is Ack)
        )
        with suppress(ExesdbError):
            await cluster[leader].add_member("n4", "n4:1", 200)
        assert cluster[leader]._members.role_of("n4") == "follower"
        cluster.crash("n4")
        cluster.wipe("n4")
        await cluster.start("n4")
        await cluster.until(lambda: "n4" in cluster[leader]._incarnations)
        await asyncio.sleep(0.1)
        assert cluster[leader]._members.role_of("n4") == "unreachable"
        cluster.links.watchers.pop()
        await asyncio.sleep(5)
        await cluster.fill_log(await cluster.led(leader, one), 1)
        assert "n4" not in cluster[leader].voters
        cluster.check()

    simulate(scenario)


def test_wiped_voters_that_wait_for_one_gone_for_good_can_be_removed_one_by_one() -> None:
    """Neither they nor the one they wait for could be, because another one recovers."""

    async def scenario() -> None:
        cluster = Cluster(7)
        leader = await ready(cluster)
        gone, one, other, *_ = cluster.followers()
        cluster.crash(gone, one, other)
        for victim in (one, other):
            cluster.wipe(victim)
            await cluster.start(victim)
        await asyncio.sleep(5)
        assert cluster[one].recovering and cluster[other].recovering
        for leaving in (one, other, gone):
            await cluster[leader].remove_member(leaving, 2_000)
        for new in (one, other):
            await cluster[leader].add_member(new, f"{new}:1", 5_000)
        await cluster.settled()
        cluster.check()

    simulate(scenario)


def test_where_a_change_keeps_a_majority_from_electing_a_leader_a_plan_is_made() -> None:
    """n4 was to be removed, which only one of the survivors has in its log: by that it counts."""

    async def scenario() -> None:
        cluster = Cluster(5, tails=True)
        await ready(cluster)
        leader = await cluster["n1"].transfer_leadership("n1", 5_000)
        assert leader == "n1"
        await asyncio.sleep(1)
        cluster.links.watchers.append(
            lambda _, to, message: (
                not (to in ("n3", "n5") and isinstance(message, AppendEntries) and message.entries)
            )
        )
        with suppress(ExesdbError):
            await cluster["n1"].remove_member("n4", 300)
        cluster.crash("n1", "n3")
        cluster.links.watchers.pop()
        await asyncio.sleep(60)
        assert cluster.leader() is None
        plan = make(reports(cluster, ["n2", "n4", "n5"]), [], ["n1", "n3"])
        for node_id in plan.todo:
            assert await cluster.override(node_id, order(plan)) is None
        await cluster.led("n2", "n4", "n5")

    simulate(scenario)


def test_a_membership_that_a_killed_leader_kept_and_never_had_in_its_log_is_forgotten() -> None:
    """Its log is whole, so it does not recover; a wiped voter would wait for who was to come."""

    async def scenario() -> None:
        cluster = Cluster(3, spares=1, tails=True)
        leader = await ready(cluster)
        disk = cluster.disks[leader]
        keep = disk.save_membership

        def killed(committed: Membership, heard: Membership, unsaid: Unsaid | None) -> None:
            keep(committed, heard, unsaid)
            cluster.crash(leader)
            raise OSError("nobody runs any more")

        disk.save_membership = killed  # type: ignore[method-assign]
        with suppress(OSError, ExesdbError):
            await cluster[leader].add_member("n4", "n4:1", 300)
        del disk.save_membership
        assert disk.heard is not None and disk.heard.learner_id == "n4"
        await cluster.start(leader)
        await cluster.settled()
        assert not cluster[leader]._recovery.was_needed
        victim = next(one for one in cluster.followers() if one != leader)
        await wiped_comes_back(cluster, victim)

    simulate(scenario)


@pytest.mark.parametrize(
    ("lost_entries", "new_entries", "words"),
    [(10, 30, "another history"), (50, 3, "was not found to agree")],
)
def test_a_removed_node_with_a_history_that_the_members_lost_says_so(
    lost_entries: int, new_entries: int, words: str
) -> None:
    """Their power was gone, its was not: it has applied what nobody can take back any more."""

    async def scenario() -> None:
        cluster = Cluster(3)
        leader = await ready(cluster)
        cluster.persist()
        cut = cluster.disks[leader].cut
        await cluster.fill_log(leader, lost_entries)
        await cluster.settled()
        goes, stays = cluster.followers()
        await cluster[leader].remove_member(goes, 2_000)
        await cluster.until(lambda: cluster[goes].voters == cluster[leader].voters)
        cluster.persist(goes)
        await cluster.stop(goes)
        cluster.crash(leader, stays)
        lost, known = Chronicle(), cluster.chronicle_of
        lost.entries.update(cluster.chronicle.entries)
        for index in [at for at in cluster.chronicle.entries if at > cut]:
            del cluster.chronicle.entries[index]
        cluster.chronicles["lost"] = lost
        cluster.chronicle_of = lambda node: lost if node == goes else known(node)  # type: ignore[method-assign]
        await cluster.start(leader, stays)
        leader = await cluster.led()
        await cluster.fill_log(leader, new_entries)
        await cluster.start(goes)
        await cluster[leader].add_member(goes, f"{goes}:1", 5_000)
        await asyncio.sleep(30)
        assert goes not in cluster[leader].voters
        assert words in cluster[goes].not_ready_reasons()[0]
        assert len(cluster[goes].alarms + cluster[leader].alarms) == 1

    simulate(scenario)
