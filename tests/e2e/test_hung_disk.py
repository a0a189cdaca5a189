"""Disks whose device answers no more: what is in the page cache can still be changed.

The tails are where they are by default, on those disks. Each node's disk is an image that lies on
another small file system, and that one is frozen: then the device below the node's files hangs, and
their file system does not know. (With the node's own file system frozen it is another matter: see
`test_frozen_disk`.)
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import topology
from cluster.bench.ports import free_ports
from cluster.topology import Topology
from tests.e2e.conftest import INTERVAL_MS, NODES, Cluster
from tests.e2e.disk import Disk, mounted
from tests.e2e.test_frozen_disk import (
    PAUSE_MAX_S,
    SMALL,
    Appends,
    assert_all_there,
    frozen,
    until,
)
from tests.e2e.test_killed import metric

pytestmark = pytest.mark.e2e


@pytest.fixture
def layout(tmp_path: Path) -> Topology:
    ports = free_ports(2 * NODES)
    return topology.local(
        NODES,
        tmp_path / "nodes",
        http_port=ports[0],
        raft_port=ports[NODES],
        options=(f"--persistence-interval={INTERVAL_MS}", *SMALL),
    )


@pytest.fixture
def devices(layout: Topology, tmp_path: Path) -> Iterator[dict[str, Disk]]:
    """What each node's disk lies on. Starts before the cluster does."""
    disks: list[Disk] = []
    below: dict[str, Disk] = {}
    try:
        for node in layout.nodes:
            under = tmp_path / f"below-{node.node_id}"
            disks.append(mounted(tmp_path / f"{node.node_id}.image", under, mib=160))
            below[node.node_id] = disks[-1]
            disks.append(mounted(under / "image", node.data_dir, mib=128))
        yield below
    finally:
        for disk in reversed(disks):
            disk.unmount("--lazy")


async def test_appends_go_on_while_all_devices_hang_and_nodes_know_what_they_would_forget(
    devices: dict[str, Disk], cluster: Cluster
) -> None:
    leader = await cluster.leader()
    async with frozen(list(devices.values())):
        await asyncio.sleep(INTERVAL_MS / 1000 + 0.5)  # until they all wait for their disks
        appends = Appends(cluster, "x" * 20_000)
        for client in cluster.clients.values():
            await until(client, "raft_tail_whole", 0)
        before = dict(appends.acknowledged)
        await asyncio.sleep(1)
        assert all(appends.acknowledged[one] > before[one] for one in before), "also without it"
        await appends.end()
    print(f"worst append {appends.worst_s * 1000:.0f} ms")
    assert appends.worst_s < PAUSE_MAX_S
    assert await cluster.leader() == leader
    for client in cluster.clients.values():
        await until(client, "raft_tail_whole", 1)
    await assert_all_there(cluster, appends.acknowledged)


async def test_a_node_that_is_killed_with_a_gap_has_forgotten_and_finds_it_all_again(
    devices: dict[str, Disk], cluster: Cluster
) -> None:
    async with frozen([devices["n3"]]):
        await asyncio.sleep(INTERVAL_MS / 1000 + 0.5)
        appends = Appends(cluster, "x" * 20_000)
        await until(cluster.clients["n3"], "raft_tail_whole", 0)
        await appends.end()
        cluster.supervisor["n3"]._signal(signal.SIGKILL)
    await cluster.supervisor["n3"].kill()
    await cluster.supervisor["n3"].start()
    await cluster.supervisor["n3"].wait_ready()
    assert await metric(cluster.clients["n3"], "raft_started_recovering") == 1
    await assert_all_there(cluster, appends.acknowledged)
