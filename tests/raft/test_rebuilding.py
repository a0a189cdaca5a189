"""Whole clusters, on virtual time, that an operator rebuilds without members gone for good."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cluster.recover_plan import NoPlan, Plan, Report, make
from node.api.bodies import RecoveryBody
from node.core.outcomes import Appended
from node.raft.lineage import Lineage, Standing
from tests.raft.harness import Cluster
from tests.raft.virtual_time import simulate


def reports(cluster: Cluster, node_ids: Sequence[str]) -> list[Report]:
    """What `GET /v1/cluster/recovery` of these nodes would say."""
    made = []
    for node_id in node_ids:
        standing, outlook = cluster.disks[node_id].standing, cluster[node_id].outlook()
        made.append(
            Report(
                url=node_id,
                node_id=node_id,
                cluster="c",
                quarantined=None,
                recovering=cluster[node_id].recovering,
                persistent=True,
                positions={},
                **standing._asdict(),
                **outlook._asdict()
                | {
                    "counted": tuple(outlook.counted),
                    "reaches": tuple(outlook.reaches),
                },
            )
        )
    return made


def order(plan: Plan) -> RecoveryBody:
    return RecoveryBody(**plan.order())


async def survivors(cluster: Cluster, count: int) -> tuple[list[str], list[str]]:
    """Let the leader and others die, so that so many are left; they, and the dead."""
    dead = [await cluster.led()]
    dead += cluster.followers()[: len(cluster.ids) - count - 1]
    cluster.crash(*dead)
    await asyncio.sleep(3)
    left = [node_id for node_id in cluster.ids if node_id not in dead]
    assert cluster.leader() is None
    return left, sorted(dead)


async def rebuilt(cluster: Cluster, left: list[str], dead: list[str]) -> Plan:
    """Make the plan, and have every survivor carry it out."""
    plan = make(reports(cluster, left), [], dead)
    for node_id in plan.todo:
        assert await cluster.override(node_id, order(plan)) is None
    await cluster.led(*left)
    await settled(cluster, *left)
    return plan


async def settled(cluster: Cluster, *node_ids: str) -> None:
    """Wait until these have recovered and applied the same."""
    await cluster.until(
        lambda: (
            not any(cluster[one].recovering for one in node_ids)
            and len({cluster[one].applied_index for one in node_ids}) == 1
        )
    )


def joined(met: Sequence[Standing]) -> Standing:
    """Where a node stands that was started with `--join` and met members that stand so, in turn."""
    lineage = Lineage(lambda: Standing("none yet", (), founded=False), lambda _: None)
    taken_over = next(one for one in met if lineage.not_to_be_joined("n1", one) is None)
    return taken_over._replace(founded=False)


async def only_the_third_has_it(cluster: Cluster) -> tuple[list[str], list[str], bytes]:
    """Three survivors of seven, those that are gone for good, and an acknowledged append of which
    only the third survivor knows."""
    leader = await cluster.ready()
    first, second, third, *others = cluster.followers()
    cluster.links.cut(first, second)
    command = cluster.command()
    outcome, _ = await cluster.append(leader, command)
    assert isinstance(outcome, Appended)
    await cluster.until(lambda: cluster.holds(third, command))
    dead = [leader, *others]
    cluster.crash(*dead)
    cluster.links.heal()
    await asyncio.sleep(3)
    return [first, second, third], dead, command


class TestRebuilt:
    @pytest.mark.parametrize("left", [1, 2])
    def test_survivors_of_five_lead_and_the_others_return_as_strangers(self, left: int) -> None:
        async def scenario() -> None:
            cluster = Cluster(5)
            await cluster.fill_log(await cluster.ready(), 10)
            await cluster.settled()
            cluster.persist()
            living, dead = await survivors(cluster, left)
            plan = await rebuilt(cluster, living, dead)
            await cluster.fill_log(await cluster.led(*living), 5)
            await settled(cluster, *living)
            assert all(len(cluster.contents(node_id)) == 15 for node_id in living)
            await cluster.start(*dead)
            await asyncio.sleep(10)
            for node_id in dead:
                disk = cluster.disks[node_id]
                assert disk.standing.lineage == plan.lineage and not disk.standing.founded
                assert [kept.standing.lineage for kept in disk.aside] == [plan.parent]
                assert disk.aside[0].cut > 10, "kept as it was"
                assert cluster[node_id].recovering
                assert cluster[node_id].state.stores == {}, "and nothing of it is merged"
            await cluster.fill_log(await cluster.led(*living), 5)
            with pytest.raises(NoPlan, match="leads"):
                make(reports(cluster, living), [], dead)
            cluster.check()

        simulate(scenario)

    def test_all_survivors_are_needed_for_one_of_them_alone_may_hold_an_event(self) -> None:
        """A majority of the new members is not enough, also of members that forgot nothing."""

        async def scenario() -> None:
            cluster = Cluster(7)
            (first, second, third), dead, command = await only_the_third_has_it(cluster)
            plan = make(reports(cluster, [first, second, third]), [], dead)
            assert plan.furthest == third
            for node_id in (first, second):
                assert await cluster.override(node_id, order(plan)) is None
            await asyncio.sleep(20)
            assert cluster.leader() is None
            assert await cluster.override(third, order(plan)) is None
            await cluster.led(first, second, third)
            await settled(cluster, first, second, third)
            assert all(cluster.holds(node_id, command) for node_id in (first, second, third))
            cluster.check()

        simulate(scenario)

    def test_a_survivor_wiped_afterwards_comes_back_as_a_member(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(7)
            await cluster.fill_log(await cluster.ready(), 10)
            await cluster.settled()
            living, dead = await survivors(cluster, 3)
            plan = await rebuilt(cluster, living, dead)
            victim = cluster.followers()[0]
            cluster.crash(victim)
            cluster.wipe(victim)
            await cluster.start(victim)
            await cluster.until(lambda: victim not in cluster.replicas)
            await cluster.until(lambda: victim in cluster.replicas)
            await settled(cluster, *living)
            assert cluster.disks[victim].standing.lineage == plan.lineage
            assert len(cluster.contents(victim)) == 10
            cluster.check()

        simulate(scenario)


class TestInterrupted:
    @pytest.mark.parametrize("after", [1, 2])
    def test_after_any_node_nobody_leads_and_another_run_finishes(self, after: int) -> None:
        async def scenario() -> None:
            cluster = Cluster(7)
            await cluster.fill_log(await cluster.ready(), 10)
            await cluster.settled()
            living, dead = await survivors(cluster, 3)
            plan = make(reports(cluster, living), [], dead)
            for node_id in plan.todo[:after]:
                await cluster.override(node_id, order(plan))
            await asyncio.sleep(10)
            assert cluster.leader() is None
            cluster.persist()
            cluster.crash(*living)
            await cluster.start(*living)
            await asyncio.sleep(5)
            assert cluster.leader() is None
            again = make(reports(cluster, living), [], dead)
            assert (again.lineage, again.order()) == (plan.lineage, plan.order())
            assert again.todo == plan.todo[after:]
            for node_id in again.todo:
                assert await cluster.override(node_id, order(again)) is None
            await cluster.led(*living)
            await settled(cluster, *living)
            assert all(len(cluster.contents(node_id)) == 10 for node_id in living)
            cluster.check()

        simulate(scenario)

    def test_if_a_survivor_is_lost_half_way_the_others_go_on_with_what_one_of_them_alone_has(
        self,
    ) -> None:
        async def scenario() -> None:
            cluster = Cluster(7)
            (first, second, third), dead, command = await only_the_third_has_it(cluster)
            plan = make(reports(cluster, [first, second, third]), [], dead)
            for node_id in (first, second):
                assert await cluster.override(node_id, order(plan)) is None
            cluster.crash(first)
            finishing = make(reports(cluster, [second, third]), [], [*dead, first])
            assert (finishing.todo, finishing.lost) == ((third,), (first,))
            assert await cluster.override(third, order(finishing)) is None
            await rebuilt(cluster, [second, third], [first])
            assert cluster.holds(second, command) and cluster.holds(third, command)
            cluster.check()

        simulate(scenario)

    def test_if_the_missing_return_half_way_the_old_cluster_goes_on_and_is_not_disturbed(
        self,
    ) -> None:
        async def scenario() -> None:
            cluster = Cluster(5)
            await cluster.fill_log(await cluster.ready(), 10)
            await cluster.settled()
            cluster.persist()
            dead = [await cluster.led(), *cluster.followers()[:2]]
            moved, stayed = cluster.followers()[2:]
            await cluster.stop(*dead)
            await asyncio.sleep(3)
            plan = make(reports(cluster, [moved, stayed]), [], dead)
            assert await cluster.override(moved, order(plan)) is None
            await cluster.start(*dead)
            leader = await cluster.led(stayed, *dead)
            await cluster.fill_log(leader, 5)
            await asyncio.sleep(10)
            assert not any(disk.aside for disk in cluster.disks.values()), "nobody is quarantined"
            assert cluster[moved].recovering and not cluster[moved].leads
            assert all(not cluster.links.connected(moved, other) for other in (stayed, *dead))
            with pytest.raises(NoPlan, match="leads"):
                make(reports(cluster, [moved, stayed]), [], dead)
            refused = await cluster.override(stayed, order(plan))
            assert refused is not None and "leads" in refused

            cluster.crash(moved)
            cluster.wipe(moved)
            await cluster.start(moved)
            await cluster.settled()
            assert all(len(cluster.contents(node_id)) == 15 for node_id in cluster.ids)
            cluster.check()

        simulate(scenario)

    def test_if_a_survivor_is_lost_then_it_makes_up_no_numbers_of_a_plan_that_came_to_nothing(
        self,
    ) -> None:
        """Of two survivors one has obeyed, and could lead with the other one. That one led the old
        lineage with the returned, loses its disk, and meets first the one that has obeyed.
        """

        async def scenario() -> None:
            cluster = Cluster(4, tails=True, spares=1)
            lost = "n5"
            leader = await cluster.ready()
            await cluster.start(lost)
            await cluster[leader].add_member(lost, f"{lost}:1", 5_000)
            await cluster.settled()
            if cluster.leader() == lost:
                await cluster[lost].transfer_leadership("n2", 1_000)
            moved = next(one for one in cluster.ids if not cluster[one].leads)
            dead = [one for one in cluster.ids if one != moved]
            cluster.crash(*dead)
            await asyncio.sleep(3)
            plan = make(reports(cluster, [moved, lost]), [], dead)
            assert await cluster.override(moved, order(plan)) is None
            await cluster.start(*dead)
            leader, command = await cluster.led(*dead, lost), cluster.command()
            await cluster.append(leader, command)
            await settled(cluster, *dead, lost)
            cluster.crash(lost)
            cluster.wipe(lost)
            met = [cluster.disks[one].standing for one in (moved, leader)]
            assert not met[0].founded
            cluster.disks[lost].standing = joined(met)
            await cluster.start(lost)
            await asyncio.sleep(10)
            assert not any(disk.aside for disk in cluster.disks.values()), "nobody is quarantined"
            await settled(cluster, *dead)
            assert all(cluster.holds(one, command) for one in dead)

        simulate(scenario)


def test_a_node_wiped_before_a_cold_start_takes_nothing_from_the_others() -> None:
    async def scenario() -> None:
        cluster = Cluster(3)
        leader = await cluster.ready()
        await cluster.fill_log(leader, 10)
        await cluster.settled()
        cluster.persist()
        cluster.crash()
        cluster.wipe(leader)
        await cluster.start()
        await cluster.settled()
        assert all(len(cluster.contents(node_id)) == 10 for node_id in cluster.ids)
        assert cluster.disks[leader].aside == []
        cluster.check()

    simulate(scenario)


def test_an_order_that_comes_again_makes_nobody_forget_what_it_promised_since() -> None:
    """A survivor that loses its disk in the new lineage may have voted there."""

    async def scenario() -> None:
        cluster = Cluster(7, leader_fallback_ms=60_000)
        await cluster.fill_log(await cluster.ready(), 10)
        await cluster.settled()
        left, dead = await survivors(cluster, 3)
        plan = await rebuilt(cluster, left, dead)
        deposed = await cluster.led(*left)
        one, other = [node for node in left if node != deposed]
        cluster.links.cut(deposed)
        await cluster.until(lambda: cluster[one].leads or cluster[other].leads)
        leader, victim = (one, other) if cluster[one].leads else (other, one)
        await cluster.append(leader)
        cluster.crash(victim)
        cluster.wipe(victim)
        cluster.links.cut(leader)
        cluster.links.cut(victim)
        await cluster.start(victim)
        await cluster.override(victim, order(plan))
        assert cluster.disks[victim].blank
        cluster.links.heal(deposed)
        cluster.links.cut_pair(deposed, leader)
        outcome = asyncio.ensure_future(cluster.append(deposed, None, 5_000))
        await asyncio.sleep(10)
        cluster.links.heal()
        await asyncio.wait([outcome])
        await settled(cluster, *left)
        cluster.check()

    simulate(scenario)
