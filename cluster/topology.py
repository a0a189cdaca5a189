"""Topology: which nodes a local cluster has, and the command line of each.

All nodes of a local cluster run on this machine, listen on loopback on neighbouring ports, and
keep their files in neighbouring directories:

    node   HTTP            Raft            files
    n1     127.0.0.1:8101  127.0.0.1:7101  data/n1
    n2     127.0.0.1:8102  127.0.0.1:7102  data/n2
    n3     127.0.0.1:8103  127.0.0.1:7103  data/n3

A topology is a value: it starts nothing. `supervisor.py` runs what stands here. The options used
here are a node's public ones, so the printed command line of a node is one that a person can type.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
NODES_MAX = 9
"""More voters make a cluster slower, not safer; and their ports must not run into others'."""


@dataclass(frozen=True)
class LocalNode:
    """One node of a local cluster. `options` are its further command-line options, as typed."""

    node_id: str
    http_port: int
    raft_port: int
    data_dir: Path
    peers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Where its HTTP API is."""
        return f"http://{HOST}:{self.http_port}"

    @property
    def program(self) -> tuple[str, ...]:
        """What runs a node; the tests of the supervisor put another program here."""
        return (sys.executable, "-m", "node")

    @property
    def argv(self) -> tuple[str, ...]:
        """The whole command line."""
        named = {
            "--node-id": self.node_id,
            "--http-address": f"{HOST}:{self.http_port}",
            "--raft-address": f"{HOST}:{self.raft_port}",
            "--data-dir": str(self.data_dir),
        }
        own = [word for pair in named.items() for word in pair]
        peers = [word for peer in self.peers for word in ("--peer", peer)]
        return (*self.program, *own, *peers, *self.options)


@dataclass(frozen=True)
class Topology:
    """The nodes of a local cluster, in the order of their ids."""

    nodes: tuple[LocalNode, ...]

    @property
    def urls(self) -> list[str]:
        """Where the nodes' HTTP APIs are."""
        return [node.url for node in self.nodes]

    @property
    def ports(self) -> list[int]:
        """Every port that the cluster listens on."""
        return [port for node in self.nodes for port in (node.http_port, node.raft_port)]

    def node(self, node_id: str) -> LocalNode:
        """The node of this id. Raises KeyError."""
        return {node.node_id: node for node in self.nodes}[node_id]


def local(
    count: int = 3,
    data_dir: Path = Path("data"),
    http_port: int = 8101,
    raft_port: int = 7101,
    options: tuple[str, ...] = (),
    node_type: type[LocalNode] = LocalNode,
) -> Topology:
    """A cluster of `count` nodes, n1 and on, on ports from the given ones upwards.

    `options` are given to every node. Raises ValueError if the ports overlap or do not exist.
    """
    if not 1 <= count <= NODES_MAX:
        raise ValueError(f"a local cluster has 1..{NODES_MAX} nodes")
    if abs(http_port - raft_port) < count:
        raise ValueError(f"HTTP and Raft ports must be at least {count} apart")
    if not 1 <= min(http_port, raft_port) <= max(http_port, raft_port) + count - 1 <= 65535:
        raise ValueError("ports are 1..65535")
    ids = [f"n{number}" for number in range(1, count + 1)]
    addresses = {node_id: f"{HOST}:{raft_port + offset}" for offset, node_id in enumerate(ids)}
    return Topology(
        tuple(
            node_type(
                node_id,
                http_port + offset,
                raft_port + offset,
                data_dir / node_id,
                tuple(f"{peer}={at}" for peer, at in addresses.items() if peer != node_id),
                options,
            )
            for offset, node_id in enumerate(ids)
        )
    )
