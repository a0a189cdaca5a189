"""Three real node processes for each test, on free ports, killed at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from cluster import topology
from cluster.bench.ports import free_ports
from cluster.supervisor import Supervisor
from cluster.topology import Topology
from tests.e2e.client import Client

NODES = 3
INTERVAL_MS = 1_000


class Cluster:
    """Node processes, and a client of each by node id."""

    def __init__(self, supervisor: Supervisor, session: aiohttp.ClientSession) -> None:
        self.supervisor = supervisor
        self.clients = {
            node.node_id: Client(session, node.url) for node in supervisor.topology.nodes
        }

    @property
    def any(self) -> Client:
        return next(iter(self.clients.values()))

    async def leader(self) -> str:
        """The leader's node id; there is one, because the cluster was waited for."""
        leader = await self.any.leader()
        assert leader is not None
        return leader


@pytest.fixture
def layout(tmp_path: Path) -> Topology:
    ports = free_ports(2 * NODES)
    return topology.local(
        NODES,
        tmp_path / "nodes",
        http_port=ports[0],
        raft_port=ports[NODES],
        options=(f"--persistence-interval={INTERVAL_MS}",),
    )


@pytest.fixture
async def cluster(layout: Topology, tmp_path: Path) -> AsyncIterator[Cluster]:
    timeout = aiohttp.ClientTimeout(total=20)
    supervisor = Supervisor(layout, log_dir=tmp_path / "logs")
    async with supervisor, aiohttp.ClientSession(timeout=timeout) as session:
        try:
            yield Cluster(supervisor, session)
        finally:
            await supervisor.kill()
