"""A node whose files can no longer be written: what it still does, and what it must not do.

Its disk is a small file system of its own, which is told to have found an error: ext4 then lets
nobody write any more, as it does when a real disk fails. Made with `mount -o remount,ro` it would
not be true to life: that is refused as long as files are open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.supervisor import NodeFailed
from cluster.topology import Topology
from node.identity import EXIT_PROMISE_LOST
from tests.e2e.client import STORE
from tests.e2e.conftest import Cluster
from tests.e2e.disk import Disk, mounted
from tests.e2e.test_durability import persistence_of

pytestmark = pytest.mark.e2e

EXIT_NOT_WRITTEN = 3


@pytest.fixture
def disk(layout: Topology, tmp_path: Path) -> Iterator[Disk]:
    """The data directory of n3 on a disk of its own. Starts before the cluster does."""
    disk = mounted(tmp_path / "image", layout.node("n3").data_dir)
    try:
        yield disk
    finally:
        disk.unmount("--lazy")


async def led_by_another(cluster: Cluster) -> str:
    """n3 must follow, because who becomes a leader needs its disk; the leader's id."""
    if await cluster.leader() == "n3":
        answer = await cluster.any.request("POST", "/v1/cluster/leader", {"to": "n1"})
        assert answer.status == 200, answer
    return await cluster.leader()


async def test_a_node_whose_disk_became_read_only_serves_on_and_says_so(
    disk: Disk, cluster: Cluster
) -> None:
    await led_by_another(cluster)
    troubled = cluster.clients["n3"]
    assert (await troubled.append("s", "before")).status == 201
    await cluster.any.flush()

    disk.fail()
    for number in range(20):
        assert (await troubled.append("s", f"{number}")).status == 201
    failing = await persistence_of(troubled, lambda store: store["last_error"] is not None)
    assert failing["pending_events"] == 20
    assert failing["oldest_unpersisted_ms"] > 0
    assert str(disk.path) in failing["last_error"]
    durable = f"/v1/stores/{STORE}/streams/s/events?durability=persisted"
    event = {"events": [{"event_type": "Labelled", "data": "durable"}]}
    answer = await cluster.any.request("POST", durable, event)
    assert answer.status == 201, "two disks of three are a majority"

    assert await cluster.supervisor["n3"].stop() == EXIT_NOT_WRITTEN
    disk.repair()
    await cluster.supervisor["n3"].start()
    await cluster.supervisor["n3"].wait_ready()
    healed = await persistence_of(troubled, lambda store: store["persisted_position"] == 22)
    assert healed["last_error"] is None


async def test_a_node_that_cannot_write_a_promise_ends_and_the_others_go_on(
    disk: Disk, cluster: Cluster
) -> None:
    old = await led_by_another(cluster)
    disk.fail()
    new = next(one for one in ("n1", "n2") if one != old)
    await cluster.clients[old].request("POST", "/v1/cluster/leader", {"to": new})

    async with asyncio.timeout(60):
        assert await cluster.supervisor["n3"].wait_exit() == EXIT_PROMISE_LOST
    await cluster.clients[old].append_until_taken("s", "without n3")

    disk.repair()
    await cluster.supervisor["n3"].start()
    await cluster.supervisor["n3"].wait_ready()
    assert len(await cluster.clients["n3"].events(min_position=1)) == 1


async def test_a_node_on_a_full_disk_keeps_its_promises_and_takes_part_in_elections(
    disk: Disk, cluster: Cluster
) -> None:
    old = await led_by_another(cluster)
    await cluster.any.flush()
    disk.fill()
    other = next(one for one in ("n1", "n2") if one != old)
    for leader in ("n3", old, "n3"):
        disk.fill()
        answer = await cluster.clients[old].request("POST", "/v1/cluster/leader", {"to": leader})
        assert answer.status == 200, answer
        await cluster.clients[old].append_until_taken("s", f"{leader} leads")
    await cluster.supervisor[other].kill()
    await cluster.clients[old].append_until_taken("s", "with n3 only")
    await cluster.supervisor[old].kill()
    await cluster.supervisor[old].start()
    await cluster.clients["n3"].append_until_taken("s", "after an election")
    assert cluster.supervisor["n3"].running


async def test_a_node_does_not_start_on_files_that_it_cannot_write_and_says_which(
    disk: Disk, cluster: Cluster
) -> None:
    node = cluster.supervisor["n3"]
    assert await node.stop() == 0
    before = sorted(disk.path.rglob("*"))
    disk.unmount()
    disk.mount("ro")
    await node.start()
    with pytest.raises(NodeFailed, match="cannot start") as failed:
        await node.wait_ready()
    assert str(disk.path) in str(failed.value)
    assert node.exit_code == 1

    disk.repair()
    assert sorted(disk.path.rglob("*")) == before, "nothing was moved or made"
    await node.start()
    await node.wait_ready()
