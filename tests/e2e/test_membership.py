"""A cluster that grows from three nodes to five and shrinks again, while clients append."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from cluster import topology
from cluster.bench.ports import free_ports
from cluster.supervisor import NodeProcess, Supervisor
from cluster.topology import HOST, LocalNode, Topology
from tests.e2e.client import Answer, Client
from tests.e2e.conftest import INTERVAL_MS, NODES, Cluster

GROWN = 5


class Growing(Cluster):
    """A cluster whose further nodes are started with --join."""

    def __init__(
        self, supervisor: Supervisor, session: aiohttp.ClientSession, nodes: list[LocalNode]
    ) -> None:
        super().__init__(supervisor, session)
        self.joining = {node.node_id: NodeProcess(node) for node in nodes}
        self.clients |= {node.node_id: Client(session, node.url) for node in nodes}

    async def add(self, node_id: str) -> None:
        process = self.joining[node_id]
        await process.start()
        body = {"id": node_id, "raft_address": f"{HOST}:{process.node.raft_port}"}
        answer = await self.change(self.any, "POST", "", body)
        assert answer.status == 201, answer
        await process.wait_ready()

    async def remove(self, node_id: str) -> None:
        via = next(client for one, client in self.clients.items() if one != node_id)
        answer = await self.change(via, "DELETE", f"/{node_id}")
        assert answer.status == 200, answer

    async def change(self, via: Client, method: str, path: str, body: object = None) -> Answer:
        """Ask until nothing else is under way: a member may just have come up, a leader be gone.

        Both 409 and 503 say that nothing was changed.
        """
        async with asyncio.timeout(120):
            while True:
                path_and_query = f"/v1/cluster/members{path}?timeout_ms=15000"
                answer = await via.request(method, path_and_query, body)
                if answer.status not in (409, 503):
                    return answer
                await asyncio.sleep(0.1)


@pytest.fixture
def ports() -> list[int]:
    return free_ports(2 * GROWN)


@pytest.fixture
def layout(tmp_path: Path, ports: list[int]) -> Topology:
    return topology.local(
        NODES,
        tmp_path / "nodes",
        http_port=ports[0],
        raft_port=ports[GROWN],
        options=(f"--persistence-interval={INTERVAL_MS}",),
    )


@pytest.fixture
async def cluster(layout: Topology, ports: list[int], tmp_path: Path) -> AsyncIterator[Growing]:
    founders = tuple(f"{node.node_id}={HOST}:{node.raft_port}" for node in layout.nodes)
    joining = [
        LocalNode(
            f"n{at + 1}",
            ports[0] + at,
            ports[GROWN] + at,
            tmp_path / "nodes" / f"n{at + 1}",
            founders[:1],
            ("--join=true", *layout.nodes[0].options),
        )
        for at in range(NODES, GROWN)
    ]
    timeout = aiohttp.ClientTimeout(total=30)
    supervisor = Supervisor(layout, log_dir=tmp_path / "logs")
    async with supervisor, aiohttp.ClientSession(timeout=timeout) as session:
        growing = Growing(supervisor, session, joining)
        try:
            yield growing
        finally:
            for process in growing.joining.values():
                await process.kill()
            await supervisor.kill()


async def append_on(cluster: Growing, taken: list[str], members: list[str]) -> None:
    """Append through whoever is a member, the same event again until there is a clear answer."""
    number = 0
    while True:
        number += 1
        label, event_id = f"label-{number}", str(uuid.uuid4())
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                client = cluster.clients[members[number % len(members)]]
                answer = await client.append(f"stream-{number % 7}", label, event_ids=[event_id])
                if answer.status in (200, 201):
                    break
            number += len(members) + 1
            await asyncio.sleep(0.02)
        taken.append(label)


@pytest.mark.e2e
async def test_from_three_to_five_and_back_under_load_nothing_is_lost(cluster: Growing) -> None:
    taken: list[str] = []
    members = ["n1", "n2", "n3"]
    appending = asyncio.create_task(append_on(cluster, taken, members))
    for new in ("n4", "n5"):
        await cluster.add(new)
        members.append(new)
    leader = await cluster.leader()
    for gone in (leader, *[one for one in ("n1", "n2", "n3") if one != leader][:1]):
        members.remove(gone)
        await cluster.remove(gone)
    await asyncio.sleep(1)
    assert not appending.done(), appending
    appending.cancel()
    await asyncio.gather(appending, return_exceptions=True)
    histories = [
        await cluster.clients[member].events(min_position=len(taken)) for member in members
    ]
    labels = [event["data"] for event in histories[0]]
    assert len(members) == 3
    assert len(taken) > 50
    assert set(taken) <= set(labels)
    assert len(set(labels)) == len(labels)
    assert all(history == histories[0] for history in histories)
    status = (await cluster.clients[members[0]].request("GET", "/v1/cluster")).body
    assert [one["id"] for one in status["members"] if one["voter"]] == sorted(members)
    told = await cluster.clients[leader].request("GET", "/health/ready")
    assert told.status == 503
    assert "removed" in told.body["detail"]
