"""What a cluster of real processes remembers when they are killed and nothing was flushed."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import aiohttp
import pytest

from cluster import topology
from cluster.bench.ports import free_ports
from cluster.topology import Topology
from tests.e2e.client import Client
from tests.e2e.conftest import NODES, Cluster

pytestmark = pytest.mark.e2e

NEVER_MS = 86_400_000


@pytest.fixture
def options() -> tuple[str, ...]:
    return ()


@pytest.fixture
def layout(tmp_path: Path, options: tuple[str, ...]) -> Topology:
    """Nodes whose disks get nothing of what is appended."""
    ports = free_ports(2 * NODES)
    return topology.local(
        NODES,
        tmp_path / "nodes",
        http_port=ports[0],
        raft_port=ports[NODES],
        options=(f"--persistence-interval={NEVER_MS}", *options),
    )


class Load:
    """Clients that append to all nodes, and what was acknowledged to them."""

    def __init__(self, cluster: Cluster) -> None:
        self.acknowledged: dict[tuple[str, int], str] = {}
        self.many = asyncio.Event()
        self._cluster = cluster

    async def until_the_end(self, enough: int) -> None:
        """Append through every node until it answers no more.

        A busy machine may elect a leader at any time: before there is enough, a refusal ends
        nobody, else nobody is left to write what the test waits for.
        """
        async with asyncio.TaskGroup() as writers:
            for (name, client), number in itertools.product(
                self._cluster.clients.items(), range(8)
            ):
                writers.create_task(self._write(client, f"{name}-{number}", enough))

    async def _write(self, client: Client, stream: str, enough: int) -> None:
        for label in map(str, itertools.count()):
            try:
                answer = await client.append(stream, label)
            except (aiohttp.ClientError, OSError):
                return
            if answer.status != 201:
                if self.many.is_set():
                    return
                await asyncio.sleep(0.05)
                continue
            self.acknowledged[stream, answer.body["first_version"]] = label
            if len(self.acknowledged) >= enough:
                self.many.set()

    async def assert_all_there(self) -> None:
        for client in self._cluster.clients.values():
            found = {
                (event["event_stream_id"], event["event_number"]): event["data"]
                for event in await client.events(min_position=len(self.acknowledged))
            }
            assert self.acknowledged.items() <= found.items()


async def metric(client: Client, name: str) -> float:
    """One number of a node's metrics."""
    async with client._session.get(client.address + "/metrics") as response:
        lines = (await response.text()).splitlines()
    (line,) = [line for line in lines if line.startswith(f"exesdb_{name} ")]
    return float(line.split()[1])


async def under_load_kill(cluster: Cluster, *node_ids: str) -> Load:
    """Append through all nodes, and kill some of them in the middle of it, all at once."""
    load = Load(cluster)
    writing = asyncio.create_task(load.until_the_end(enough=1000))
    async with asyncio.timeout(60):
        await load.many.wait()
    await asyncio.gather(*(cluster.supervisor[node_id].kill() for node_id in node_ids))
    if len(node_ids) == NODES:
        await writing
    else:
        writing.cancel()
        await asyncio.wait([writing])
    return load


@pytest.mark.parametrize("victims", [("n2",), ("n1", "n3"), ("n1", "n2", "n3")])
async def test_however_many_are_killed_nothing_acknowledged_is_lost_and_nobody_recovers(
    cluster: Cluster, victims: tuple[str, ...]
) -> None:
    load = await under_load_kill(cluster, *victims)
    started = asyncio.get_running_loop().time()
    await cluster.supervisor.start()
    print(f"{len(victims)} killed: ready after {asyncio.get_running_loop().time() - started:.2f} s")

    await load.assert_all_there()
    for victim in victims:
        assert await metric(cluster.clients[victim], "raft_started_recovering") == 0
        assert await metric(cluster.clients[victim], "raft_tail_whole") == 1
    persisted = await cluster.any.request("GET", "/v1/persistence")
    assert persisted.body["stores"]["my_store"]["persisted_position"] == 0


async def test_two_of_three_that_were_all_killed_serve_without_the_third(
    cluster: Cluster,
) -> None:
    load = await under_load_kill(cluster, "n1", "n2", "n3")
    for node_id in ("n1", "n2"):
        await cluster.supervisor[node_id].start()
    for node_id in ("n1", "n2"):
        await cluster.supervisor[node_id].wait_ready()
    await cluster.clients["n1"].append_until_taken("after", "the kill")
    await cluster.supervisor["n3"].start()
    await cluster.supervisor["n3"].wait_ready()
    await load.assert_all_there()


@pytest.mark.parametrize("options", [("--tail-enabled=false",)])
async def test_without_a_tail_a_killed_node_has_forgotten(cluster: Cluster) -> None:
    assert (await cluster.any.append("s", "1")).status == 201
    await cluster.supervisor["n2"].kill()
    await cluster.supervisor["n2"].start()
    await cluster.supervisor["n2"].wait_ready()
    assert await metric(cluster.clients["n2"], "raft_started_recovering") == 1
    exit_codes = await cluster.supervisor.stop()
    assert set(exit_codes.values()) == {0}
    await cluster.supervisor.start()
    for client in cluster.clients.values():
        assert await metric(client, "raft_started_recovering") == 0
