"""Clusters of fake nodes."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.bench.ports import free_ports
from cluster.topology import LocalNode, Topology, local

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
