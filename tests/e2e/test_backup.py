"""Backups of a store that real nodes serve, while it is written to and nodes are killed."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import cbor2
import pytest

from cluster import topology
from cluster.backup import carrying, lives, restoring, taking
from cluster.backup.digest import StoredEvent
from cluster.backup.door import Door
from cluster.backup.file import Advance, Finished
from cluster.bench.ports import free_ports
from cluster.client import Client, Event
from cluster.supervisor import Supervisor
from tests.cluster.test_backup import unwatched
from tests.e2e.conftest import Cluster

pytestmark = pytest.mark.e2e

EVENTS = 40_000
BATCH = 1_000
SNAPSHOTS = 50


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
            with await taking.begin(door, path, unwatched) as written:
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


async def test_a_backup_comes_back_the_same_in_a_second_store_and_in_a_new_cluster(
    cluster: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "b"
    async with Client(*addresses(cluster), timeout_s=30) as client:
        await fill(client, EVENTS // 4)
    async with Door(addresses(cluster), "my_store", timeout_s=30) as door:
        await door.ask("POST", "/append", [], as_cbor())
        await door.ask("PUT", "/checkpoints/reader", [], cbor2.dumps({"position": 77}))
        for version in range(SNAPSHOTS):
            body = cbor2.dumps({"source_type": "T", "data": {1: b"\x00", "n": version}})
            await door.ask("PUT", f"/snapshots/a/s-1/{version}", [], body)
        await door.ask("PUT", "/subscriptions/workers", [], cbor2.dumps({"start_after": 50}))
        await remove_some(door)
        with await taking.begin(door, path, unwatched) as written:
            await taking.take(door, written, lambda _: None)
            await asyncio.to_thread(written.finish, lambda _: None)
    victim = cluster.supervisor[await cluster.leader()]
    killed: list[asyncio.Task[int]] = []

    def kill(_: int) -> None:
        if not killed:
            killed.append(asyncio.create_task(victim.kill()))

    with Finished.open(path) as found:
        assert list(found.beside.checkpoints()) == [("reader", 77)]
        assert 0 < found.count < found.head.until and len(list(found.beside.lives())) == 103
        assert len(list(found.beside.snapshots())) == SNAPSHOTS
        await restored_alike(found, addresses(cluster), "copy", kill)
        assert await killed[0] == -9
        await cluster.supervisor.kill()
        ports = free_ports(2)
        fresh = topology.local(1, tmp_path / "fresh", ports[0], ports[1])
        async with Supervisor(fresh, tmp_path / "logs") as other:
            await restored_alike(found, other.topology.urls, "my_store", lambda _: None)
            await restored_alike(found, other.topology.urls, "my_store", lambda _: None)


async def remove_some(door: Door) -> None:
    """Streams of every life, some of them behind events that are not in the backup's file."""
    for n in range(0, 300, 3):
        metadata = cbor2.dumps({"truncate_before": n % 40, "max_count": 30, "max_age_ms": 10**9})
        await door.ask("PUT", f"/streams/s-{n}/metadata", [], metadata)
    await door.ask("DELETE", "/streams/s-1", [])
    await door.ask("DELETE", "/streams/s-2", [("hard", "true")])
    await door.ask("DELETE", "/streams/s-4", [])
    events = [{"stream": "s-4", "event_type": "Anew"}, {"stream": "s-5", "event_type": "T"}]
    await door.ask("POST", "/append", [], cbor2.dumps({"events": events}))


async def restored_alike(found: Finished, urls: list[str], store: str, advance: Advance) -> None:
    """Restore, and compare every field but the times; once more changes nothing."""
    async with Door(urls, store, timeout_s=60) as door:
        begun = await restoring.begin(door, found, lambda _: None)
        await restoring.restore(door, found, begun.position, advance)
        await lives.remove(door, found, lambda _: None)
        until = found.head.until
        answered = await restoring.digest(door, restoring.NOTHING, until, lambda _: None)
        assert answered == found.link
        facts = await door.facts()
        assert (facts["events"], facts["position"]) == (found.count, until)
        await carrying.restore(door, found, lambda _: None)
        await lives.limit(door, found, lambda _: None)
        await carrying.subscribe(door, found)
        assert await carrying.digest(door, until, lambda _: None) == found.digest_beside
        assert (await door.ask("GET", "/checkpoints/reader", []))["position"] == 77


def as_cbor() -> bytes:
    """What only a CBOR request can say."""
    values = [math.inf, {"nested": b"\x01"}, {1: "a"}, b"", None, 2**70, -0.0]
    events = [
        {"stream": "cbor", "event_type": "T", "data": value, "metadata": metadata}
        for value in values
        for metadata in (None, b"\x00", {2: [b"x"]})
    ]
    typed = {"stream": "cbor", "event_type": "T", "data": "a,b", "data_content_type": "text/csv"}
    return cbor2.dumps({"events": [*events, typed]})
