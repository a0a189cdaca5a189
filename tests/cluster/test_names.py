"""Names that clients must send as they are, though they mean a place in a path elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.access import request
from cluster.client import Client, Event
from cluster.client_values import quoted
from tests.api.fakes import Node, serving
from tests.cluster.test_backup_beside import everything, restore, take

DOTS = (".", "..")


@pytest.mark.parametrize("name", DOTS)
async def test_dots_are_names_like_others(client: Client, name: str) -> None:
    await client.append(name, [Event("A")])
    assert [event.stream async for event in client.read_stream(name)] == [name]
    await client.record_snapshot(name, name, 0, "T", 1)
    assert await client.latest_snapshot(name, name) is not None
    await client.create_subscription(name)
    assert await client.delete_subscription(name)
    assert await client.delete_stream(name) and await client.version(name) == -1


async def test_a_snapshot_of_dots_is_not_a_stream_of_that_number(
    node: Node, client: Client
) -> None:
    await client.append("5", [Event("A")])
    assert not await client.delete_snapshot("..", "streams", 5)
    path = f"/v1/stores/main/snapshots/{quoted('..')}/streams/5"
    reply = await request("DELETE", [f"http://127.0.0.1:{node.port}"], path)
    assert reply.body["code"] == "snapshot_not_found"
    assert await client.version("5") == 0


async def test_dots_come_back_from_a_backup(node: Node, client: Client, tmp_path: Path) -> None:
    for name in DOTS:
        await client.append(name, [Event("A"), Event("B")])
        await client.set_stream_metadata(name, max_count=1)
        await client.record_snapshot(name, name, 0, "T", 1)
        await client.create_subscription(name)
        await node.ask("PUT", f"/v1/stores/main/checkpoints/{name}", json={"position": 1})
    await take(node, tmp_path / "b")
    async with serving() as other:
        await restore(other, tmp_path / "b")
        assert await everything(other) == await everything(node)
