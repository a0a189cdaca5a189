"""Clusters of fake nodes, and a client of an API that is served here."""

import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cluster.bench.ports import free_ports
from cluster.client import Client
from cluster.topology import LocalNode, Topology, local
from tests.api.fakes import Node, serving

FAKE = Path(__file__).with_name("fake_node.py")


class FakeNode(LocalNode):
    """A local node whose program is the fake one."""

    @property
    def program(self) -> tuple[str, ...]:
        return (sys.executable, str(FAKE))


MakeTopology = Callable[..., Topology]


@pytest.fixture
def fake_topology(tmp_path: Path) -> MakeTopology:
    """Makes the topology of a cluster of fake nodes that behave as told."""

    def make(count: int = 3, behave: str = "well") -> Topology:
        first = free_ports(2 * count)[0]
        return local(
            count, tmp_path, first, first + count, ("--behave", behave), node_type=FakeNode
        )

    return make


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    """An API without a network behind it."""
    async with serving() as served:
        yield served


@pytest.fixture
async def client(node: Node) -> AsyncIterator[Client]:
    """A client of it."""
    async with Client(f"127.0.0.1:{node.port}", store="main", timeout_s=5) as made:
        yield made
