"""Disks that stand still: whoever writes to them waits, as long as it takes, and is not told why.

Each node has a small file system of its own, which `fsfreeze` stops. The tails are in memory
(`--tail-dir`): in the file system that stands still, the tail would stop its node as well.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from cluster import topology
from cluster.bench.ports import free_ports
from cluster.topology import Topology
from tests.e2e.client import Client
from tests.e2e.conftest import INTERVAL_MS, NODES, Cluster
from tests.e2e.disk import Disk, mounted
from tests.e2e.test_killed import metric

pytestmark = pytest.mark.e2e

MEMORY = Path("/dev/shm")
FROZEN_S = 5.0
PAUSE_MAX_S = 2.0  # seen: 0.05 to 0.25, more beside other load; what matters: not FROZEN_S
SMALL = ("--tail-bytes-max=16MiB",)
LITTLE = ("--body-bytes-max=1MiB", "--event-bytes-max=64KiB", "--unpersisted-bytes-max=2MiB")


@pytest.fixture
def options() -> tuple[str, ...]:
    return ()


@pytest.fixture
def layout(tmp_path: Path, options: tuple[str, ...]) -> Iterator[Topology]:
    ports = free_ports(2 * NODES)
    tails = MEMORY / f"exesdb-test-{ports[0]}"
    tails.mkdir()
    yield topology.local(
        NODES,
        tmp_path / "nodes",
        http_port=ports[0],
        raft_port=ports[NODES],
        options=(f"--persistence-interval={INTERVAL_MS}", f"--tail-dir={tails}", *options),
    )
    shutil.rmtree(tails)


@pytest.fixture
def disks(layout: Topology, tmp_path: Path) -> Iterator[dict[str, Disk]]:
    """Every node's data directory on a disk of its own. Starts before the cluster does."""
    made: dict[str, Disk] = {}
    try:
        for node in layout.nodes:
            made[node.node_id] = mounted(tmp_path / f"{node.node_id}.image", node.data_dir)
        yield made
    finally:
        for disk in made.values():
            disk.unmount("--lazy")


@asynccontextmanager
async def frozen(disks: list[Disk]) -> AsyncIterator[None]:
    """Let them stand still within the block."""
    try:
        for disk in disks:
            await asyncio.to_thread(disk.freeze)
        yield
    finally:
        for disk in disks:
            disk.thaw()


class Appends:
    """A client of each node that appends without a pause, and how long it had to wait at most."""

    def __init__(self, cluster: Cluster, data: str = "x") -> None:
        self.acknowledged: dict[str, int] = dict.fromkeys(cluster.clients, 0)
        self.worst_s = 0.0
        self._data = data
        self._tasks = [
            asyncio.create_task(self._append(node_id, client))
            for node_id, client in cluster.clients.items()
        ]

    async def _append(self, node_id: str, client: Client) -> None:
        while True:
            started = time.monotonic()
            try:
                answer = await client.append(f"by-{node_id}", self._data)
            except aiohttp.ClientError:
                return  # the node is gone
            assert answer.status == 201, answer
            self.worst_s = max(self.worst_s, time.monotonic() - started)
            self.acknowledged[node_id] += 1

    async def end(self) -> None:
        """Stop them; raises what one of them met."""
        for task in self._tasks:
            task.cancel()
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended


async def assert_all_there(cluster: Cluster, acknowledged: dict[str, int]) -> None:
    for client in cluster.clients.values():
        events = await client.events(min_position=sum(acknowledged.values()))
        for node_id, count in acknowledged.items():
            found = sum(event["event_stream_id"] == f"by-{node_id}" for event in events)
            assert found >= count


@pytest.mark.parametrize("standing", [1, NODES])
async def test_appends_go_on_through_every_node_while_disks_stand_still(
    disks: dict[str, Disk], cluster: Cluster, standing: int
) -> None:
    leader = await cluster.leader()
    followers = [node_id for node_id in disks if node_id != leader]
    appends = Appends(cluster)
    async with frozen([disks[node_id] for node_id in (*followers, leader)[:standing]]):
        before = dict(appends.acknowledged)
        await asyncio.sleep(FROZEN_S)
        for node_id, client in cluster.clients.items():
            assert await metric(client, "raft_tail_whole") == 1
            assert appends.acknowledged[node_id] > before[node_id] + 50
    await appends.end()
    print(f"{standing} frozen: worst append {appends.worst_s * 1000:.0f} ms")
    assert appends.worst_s < PAUSE_MAX_S
    assert await cluster.leader() == leader
    await cluster.any.flush()
    await assert_all_there(cluster, appends.acknowledged)


async def test_what_was_acknowledged_while_all_disks_stood_still_outlives_a_kill_of_all(
    disks: dict[str, Disk], cluster: Cluster
) -> None:
    appends = Appends(cluster)
    async with frozen(list(disks.values())):
        await asyncio.sleep(INTERVAL_MS / 1000 + 0.5)
        for node in cluster.supervisor.nodes.values():
            node._signal(signal.SIGKILL)  # those who wait for a disk end only when it moves again
    await cluster.supervisor.kill()
    await appends.end()
    await cluster.supervisor.start()
    await assert_all_there(cluster, appends.acknowledged)
    for client in cluster.clients.values():
        assert await metric(client, "raft_started_recovering") == 0


@pytest.mark.parametrize("options", [SMALL])
async def test_a_tail_that_is_full_leaves_a_gap_says_so_and_is_whole_again_later(
    disks: dict[str, Disk], cluster: Cluster
) -> None:
    """The disk does not pass what the tail holds, so there comes a time when it holds no more."""
    troubled = cluster.clients["n3"]
    async with frozen([disks["n3"]]):
        await asyncio.sleep(INTERVAL_MS / 1000 + 0.5)
        appends = Appends(cluster, "x" * 50_000)
        await until(troubled, "raft_tail_whole", 0)
        await appends.end()
        assert appends.worst_s < PAUSE_MAX_S
        cluster.supervisor["n3"]._signal(signal.SIGKILL)
    await cluster.supervisor["n3"].kill()
    await cluster.supervisor["n3"].start()
    await cluster.supervisor["n3"].wait_ready()
    assert await metric(troubled, "raft_started_recovering") == 1
    await until(troubled, "raft_tail_whole", 1)
    await assert_all_there(cluster, appends.acknowledged)


@pytest.mark.parametrize("options", [LITTLE])
async def test_a_disk_that_stands_still_for_long_refuses_appends_until_it_moves(
    disks: dict[str, Disk], cluster: Cluster
) -> None:
    client = cluster.clients[await cluster.leader()]
    event = "x" * 30_000
    taken = 0
    async with frozen(list(disks.values())), asyncio.timeout(60):
        while (answer := await client.append("s", event)).status == 201:
            taken += 1
        assert (answer.status, answer.body["code"]) == (503, "overloaded"), answer
        assert taken > 60, "two mebibytes"
        assert len(await client.events()) == taken, "reads go on"
    await client.append_until_taken("s", "after", within_s=60)


async def until(client: Client, name: str, value: float) -> None:
    """Until a metric of a node has a value; each question takes its time."""
    end = time.monotonic() + 60
    while await metric(client, name) != value:
        assert time.monotonic() < end, f"{name} did not become {value:g}"
        await asyncio.sleep(0.1)
