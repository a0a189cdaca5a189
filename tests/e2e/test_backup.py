"""Backups of a store that real nodes serve, while it is written to and nodes are killed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cluster.backup import taking
from cluster.backup.digest import StoredEvent
from cluster.backup.door import Door
from cluster.backup.file import Finished
from cluster.client import Client, Event
from tests.e2e.conftest import Cluster

pytestmark = pytest.mark.e2e

EVENTS = 40_000
BATCH = 1_000


def addresses(running: Cluster) -> list[str]:
    return [client.address for client in running.clients.values()]


async def fill(client: Client, count: int) -> None:
    """Events of every kind that there is, in a few hundred streams."""
    for start in range(0, count, BATCH):
        numbers = range(start, start + BATCH)
        events = [
            (f"s-{n % 300}", Event("T", {"n": n} if n % 5 else b"\x00\xff", {"by": n}))
            for n in numbers
        ]
        await client.append_many(events)


async def test_a_backup_under_load_is_the_store_as_of_its_beginning_though_nodes_die(
    cluster: Cluster, tmp_path: Path
) -> None:
    path, stop = tmp_path / "b", asyncio.Event()
    leader = await cluster.leader()
    follower = next(name for name in cluster.clients if name != leader)
    async with Client(*addresses(cluster), timeout_s=30) as client:
        await fill(client, EVENTS)

        async def write() -> None:
            while not stop.is_set():
                await client.append("busy", [Event("T", 1)])

        writing = asyncio.create_task(write())
        killed: list[asyncio.Task[int]] = []

        def advance(count: int) -> None:
            if not killed:
                victim = cluster.supervisor[follower]
                killed.append(asyncio.create_task(victim.kill()))

        async with Door(addresses(cluster), "my_store", timeout_s=30) as door:
            with await taking.begin(door, path, ()) as written:
                await taking.take(door, written, advance)
                await asyncio.to_thread(written.finish, lambda _: None)
                await killed[0]
            stop.set()
            await writing
            position = (await door.facts())["position"]
        read = [(e.position, e.id, e.data, e.metadata) async for e in client.read()]
    with Finished.open(path) as found:
        events = list(found.events())
        assert found.head.until == len(events) and EVENTS <= len(events) < position
    assert [_of(event) for event in events] == read[: len(events)]


def _of(event: StoredEvent) -> tuple[int, str, object, object]:
    return event.position, event.event_id, event.data, event.metadata
