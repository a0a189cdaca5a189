"""Nodes that come back with less than the leader's log holds, or with files that are damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import topology
from cluster.bench.ports import free_ports
from cluster.topology import Topology
from tests.e2e.client import STORE
from tests.e2e.conftest import INTERVAL_MS, NODES, Cluster

pytestmark = pytest.mark.e2e

EVENTS_IN_APPEND = 20
SNAPSHOTS = f"/v1/stores/{STORE}/snapshots"


@pytest.fixture
def layout(tmp_path: Path) -> Topology:
    """Logs so short that who was away for a moment has to be filled."""
    ports = free_ports(2 * NODES)
    return topology.local(
        NODES,
        tmp_path / "nodes",
        http_port=ports[0],
        raft_port=ports[NODES],
        options=(f"--persistence-interval={INTERVAL_MS}", "--log-tail-entries-max=100"),
    )


async def append(cluster: Cluster, node_id: str, appends: int) -> None:
    """Appends one after the other, so that each is an entry of its own; some snapshots between."""
    for number in range(appends):
        labels = [f"{number}-{at}" for at in range(EVENTS_IN_APPEND)]
        answer = await cluster.clients[node_id].append(f"stream-{number % 7}", *labels)
        assert answer.status == 201, answer
        if number % 10 == 0:
            path = f"{SNAPSHOTS}/o-{number % 3}/stream/{number}"
            body = {"source_type": "Order", "data": "x" * 20_000}
            answer = await cluster.clients[node_id].request("PUT", path, body)
            assert answer.status in (200, 201), answer


async def filled(cluster: Cluster, node_id: str) -> float:
    """How many events the node was sent by fills since its start."""
    session, address = cluster.clients[node_id]._session, cluster.clients[node_id].address
    async with session.get(address + "/metrics") as response:
        lines = (await response.text()).splitlines()
    name = "exesdb_raft_fill_events_received "
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


async def compare(cluster: Cluster, events: int) -> None:
    histories = [await client.events(min_position=events) for client in cluster.clients.values()]
    assert len(histories[0]) == events
    assert all(history == histories[0] for history in histories)
    path = f"{SNAPSHOTS}?limit=1000&consistency=leader"
    lists = [(await client.request("GET", path)).body for client in cluster.clients.values()]
    assert len(lists[0]["snapshots"]) >= 15
    assert all(one == lists[0] for one in lists)


def flip(path: Path) -> None:
    """Damage a file in its middle."""
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 2, len(content) // 2 + 64):
        content[at] ^= 0x55
    path.write_bytes(content)


def wipe(directory: Path) -> None:
    shutil.rmtree(directory)


def damage_store(directory: Path) -> None:
    (path,) = directory.glob(f"stores/{STORE}.*.db")
    flip(path)


def damage_node_file(directory: Path) -> None:
    path = directory / "node.db"
    path.write_bytes(b"not a database" * 500)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (wipe, None),
        (damage_store, f"stores/{STORE}."),
        (damage_node_file, "node.db.damaged-"),
    ],
)
async def test_a_node_without_its_files_is_filled_and_names_what_it_set_aside(
    cluster: Cluster, layout: Topology, damage: Callable[[Path], None], named: str | None
) -> None:
    leader = await cluster.leader()
    await append(cluster, leader, 150)
    await cluster.any.flush()
    victim = next(node_id for node_id in cluster.clients if node_id != leader)
    await cluster.supervisor[victim].stop()
    await append(cluster, leader, 150)
    for node_id in cluster.clients.keys() - {victim}:
        await cluster.clients[node_id].request("POST", "/v1/persistence/force?scope=node")
    damage(layout.node(victim).data_dir)

    await cluster.supervisor[victim].start()
    await cluster.supervisor[victim].wait_ready()

    await compare(cluster, 300 * EVENTS_IN_APPEND)
    assert await filled(cluster, victim) >= 290 * EVENTS_IN_APPEND
    status = (await cluster.clients[victim].request("GET", "/v1/persistence")).body
    damaged = [name for name in status["set_aside"] if "damaged" in name]
    if named is None:
        assert status["set_aside"] == []
    else:
        assert len(damaged) == 1
        assert damaged[0].startswith(named)
        assert (layout.node(victim).data_dir / damaged[0]).exists()
    await cluster.any.flush()
    await cluster.supervisor.kill()
    await cluster.supervisor.start()
    await compare(cluster, 300 * EVENTS_IN_APPEND)


async def test_a_node_that_was_away_is_sent_only_what_it_missed(cluster: Cluster) -> None:
    leader = await cluster.leader()
    await append(cluster, leader, 150)
    await cluster.any.flush()
    victim = next(node_id for node_id in cluster.clients if node_id != leader)
    await cluster.supervisor[victim].stop()
    await append(cluster, leader, 250)
    for node_id in cluster.clients.keys() - {victim}:
        await cluster.clients[node_id].request("POST", "/v1/persistence/force?scope=node")

    await cluster.supervisor[victim].start()
    await cluster.supervisor[victim].wait_ready()

    await compare(cluster, 400 * EVENTS_IN_APPEND)
    assert 0 < await filled(cluster, victim) <= 250 * EVENTS_IN_APPEND
