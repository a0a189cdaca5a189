"""Ports that are free right now, and clusters of fake nodes."""

import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.topology import LocalNode, Topology, local

FAKE = Path(__file__).with_name("fake_node.py")


class FakeNode(LocalNode):
    """A local node whose program is the fake one."""

    @property
    def program(self) -> tuple[str, ...]:
        return (sys.executable, str(FAKE))


def neighbouring_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    for first in range(20_000, 60_000, count):
        with ExitStack() as probes:
            try:
                for port in range(first, first + count):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RuntimeError("no free ports")


MakeTopology = Callable[..., Topology]


@pytest.fixture
def fake_topology(tmp_path: Path) -> MakeTopology:
    """Makes the topology of a cluster of fake nodes that behave as told."""

    def make(count: int = 3, behave: str = "well") -> Topology:
        first = neighbouring_ports(2 * count)
        return local(
            count, tmp_path, first, first + count, ("--behave", behave), node_type=FakeNode
        )

    return make
