"""A leader whose disk takes nothing is asked to change the members.

What stands in its log it must keep, and a promise that cannot be kept ends the process. So it
begins no change that it could not keep: the only voter may be the only one that has everything.
"""

from __future__ import annotations

import asyncio

import pytest

from node.errors import PersistenceFailed
from tests.raft.harness import Cluster
from tests.raft.test_blank_interplay import promote, with_learner
from tests.raft.test_membership_change import add, changed, ready, voters
from tests.raft.virtual_time import simulate


def test_the_only_voter_adds_nobody_and_goes_on() -> None:
    async def scenario() -> None:
        cluster = Cluster(1, spares=1)
        leader = await cluster.ready()
        await cluster.start("n2")
        cluster.disks[leader].full = True
        with pytest.raises(PersistenceFailed, match="disk"):
            await cluster[leader].add_member("n2", "n2:1", 2_000)
        await cluster.append(leader)
        assert cluster[leader].leads and voters(cluster, leader) == "1"
        cluster.disks[leader].full = False
        await add(cluster, "n2", leader)
        await changed(cluster, "12")
        cluster.check()

    simulate(scenario)


def test_a_leader_removes_nobody_whoever_is_asked() -> None:
    async def scenario() -> None:
        cluster = Cluster(3)
        leader = await ready(cluster)
        asked, goes = cluster.followers()
        cluster.disks[leader].full = True
        for node_id in (leader, asked):
            for removed in (goes, leader):
                with pytest.raises(PersistenceFailed, match="disk"):
                    await cluster[node_id].remove_member(removed, 2_000)
        assert cluster[leader].leads
        await cluster.append(leader)
        cluster.disks[leader].full = False
        membership = await cluster[asked].remove_member(goes, 2_000)
        assert membership.version == 1 and cluster[leader].leads
        cluster.check()

    simulate(scenario)


def test_a_learner_is_counted_when_there_is_room(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        cluster = Cluster(3, spares=1)
        leader = await with_learner(cluster, "n4")
        cluster.disks[leader].full = True
        promote(cluster, leader)
        await asyncio.sleep(12)
        refused = [one for one in caplog.messages if "n4 is not counted yet" in one]
        assert 2 <= len(refused) <= 3
        await cluster.append(leader)
        cluster.disks[leader].full = False
        await changed(cluster, "1234")
        cluster.check()

    simulate(scenario)
