"""The command lines of a local cluster's nodes."""

import sys
from pathlib import Path

import pytest

from cluster.topology import local


def test_each_node_is_told_its_own_place_and_everybody_elses() -> None:
    topology = local(3, Path("data"))
    assert topology.urls == [f"http://127.0.0.1:{port}" for port in (8101, 8102, 8103)]
    assert " ".join(topology.node("n2").argv) == (
        f"{sys.executable} -m node --node-id n2 --http-address 127.0.0.1:8102"
        " --raft-address 127.0.0.1:7102 --data-dir data/n2"
        " --peer n1=127.0.0.1:7101 --peer n3=127.0.0.1:7103"
    )


def test_further_options_go_to_every_node() -> None:
    for node in local(2, options=("--log-level", "debug")).nodes:
        assert node.argv[-2:] == ("--log-level", "debug")


def test_a_cluster_of_one_has_no_peers() -> None:
    assert "--peer" not in local(1).nodes[0].argv


@pytest.mark.parametrize(
    "settings", [{"count": 0}, {"count": 10}, {"http_port": 8101, "raft_port": 8102},
                 {"http_port": 65_535}, {"raft_port": 0}]
)  # fmt: skip
def test_a_cluster_that_cannot_be_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        local(**settings)  # type: ignore[arg-type]
