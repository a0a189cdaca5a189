"""A real node whose files were damaged while it was down: it names them and comes back whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.topology import Topology
from tests.e2e.conftest import Cluster

pytestmark = pytest.mark.e2e

FRAME_BYTES = 24 + 16 * 1024


def flip(path: Path) -> None:
    """One bit of the last page that was written."""
    content = bytearray(path.read_bytes())
    content[-min(len(content), FRAME_BYTES) // 2] ^= 16
    path.write_bytes(content)


def shorten(path: Path) -> None:
    """Less than was said to be on disk."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - FRAME_BYTES])


@pytest.mark.parametrize(
    ("pattern", "damage", "named"),
    [
        ("node.db-wal", flip, True),
        ("stores/*.db-wal", flip, True),
        ("node.db-wal", shorten, False),  # what is missing is in the log's tail
        ("stores/*.db-wal", shorten, True),
        ("node.db", Path.unlink, True),
        ("state.1", flip, True),
    ],
)
async def test_a_killed_node_with_damaged_files_comes_back_whole(
    cluster: Cluster,
    layout: Topology,
    tmp_path: Path,
    pattern: str,
    damage: Callable[[Path], None],
    named: bool,
) -> None:
    for number in range(30):
        assert (await cluster.any.append("s", f"{number}")).status == 201
        if number % 10 == 5:
            await cluster.any.flush()
    await cluster.any.flush()
    node = cluster.supervisor["n2"]
    await node.kill()
    (damaged,) = layout.node("n2").data_dir.glob(pattern)
    damage(damaged)
    log = tmp_path / "logs" / "n2.log"
    said_before = log.stat().st_size

    await node.start()
    await node.wait_ready()

    events = await cluster.clients["n2"].events(min_position=30)
    assert [event["data"] for event in events] == [f"{number}" for number in range(30)]
    said = log.read_bytes()[said_before:].decode()
    assert (damaged.name.removesuffix("-wal") in said) == named
