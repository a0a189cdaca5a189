"""The client against real nodes that are killed under it."""

from __future__ import annotations

import asyncio
import textwrap
from typing import Any

import pytest

from cluster import client_snapshots, client_streams, client_sync
from cluster.client import NO_STREAM, Client, Event, Filter
from cluster.client_errors import Deleted, WrongExpectedVersion
from cluster.client_sync import SyncClient
from tests.e2e.conftest import Cluster

pytestmark = pytest.mark.e2e

KILLS = 4


def addresses(running: Cluster) -> list[str]:
    return [client.address for client in running.clients.values()]


async def test_append_read_and_conflict(cluster: Cluster):
    async with Client(*addresses(cluster)) as client:
        events = [Event("A", {"n": number}, b"\x00") for number in range(3)]
        first = await client.append("s/1 ü", events, NO_STREAM)
        assert first.streams == {"s/1 ü": 2}
        assert (await client.append("s/1 ü", events, NO_STREAM)).idempotent
        with pytest.raises(WrongExpectedVersion) as caught:
            await client.append("s/1 ü", [Event("A")], NO_STREAM)
        assert caught.value.current == 2
        await client.append_many(
            [("t", Event("B")), ("s/1 ü", Event("C"))], {"t": NO_STREAM}, ("reader", 3)
        )
        read = [event async for event in client.read_stream("s/1 ü")]
        assert [(one.number, one.type) for one in read] == [(0, "A"), (1, "A"), (2, "A"), (3, "C")]
        assert (read[0].data, read[0].metadata) == ({"n": 0}, b"\x00")
        backward = [one.number async for one in client.read_stream("s/1 ü", backward=True)]
        assert backward == [3, 2, 1, 0]
        assert [one.position async for one in client.read(1, Filter(("B", "C")))] == [4, 5]
        assert await client.version("s/1 ü") == 3 and await client.version("none") == -1
        assert await client.checkpoint("reader") == 3 and await client.checkpoint("x") is None


async def test_every_event_comes_once_and_in_order_through_the_deaths_of_leaders(cluster: Cluster):
    async with Client(*addresses(cluster), timeout_s=30) as client:
        stored: list[int] = []
        killed = asyncio.Event()

        async def write() -> None:
            while not killed.is_set():
                appended = await client.append("s", [Event("A", len(stored))])
                stored.extend(appended.positions)

        async def read() -> list[tuple[int, int]]:
            seen: list[tuple[int, int]] = []
            async for event in client.subscribe():
                if event.type == "End":
                    break
                seen.append((event.position, event.data))
            return seen

        reading, writing = asyncio.create_task(read()), asyncio.create_task(write())
        for _ in range(KILLS):
            count = len(stored)
            async with asyncio.timeout(60):
                while len(stored) < count + 20 and not writing.done():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            leader = cluster.supervisor[await cluster.leader()]
            await leader.kill()
            await leader.start()
            await leader.wait_ready()
        killed.set()
        await asyncio.wait_for(writing, 30)
        await client.append("s", [Event("End")])
        seen = await asyncio.wait_for(reading, 30)
    positions = [position for position, _ in seen]
    assert positions == list(range(1, len(positions) + 1))
    assert set(stored) <= set(positions)
    # One writer, so what it wrote came in its order, each once.
    assert [data for _, data in seen] == list(range(len(seen)))


async def test_the_example_of_the_synchronous_client_works(cluster: Cluster, capsys):
    given = '"127.0.0.1:8101", "127.0.0.1:8102"'
    example = (client_sync.__doc__ or "").split("\n\n")[1]
    assert given in example
    names = {"SyncClient": SyncClient, "Event": Event, "nodes": addresses(cluster)}
    await asyncio.to_thread(exec, textwrap.dedent(example.replace(given, "*nodes")), names)
    assert capsys.readouterr().out == "0 OrderPlaced\n"


async def test_the_example_of_folding_from_a_snapshot_reads_only_what_came_since(cluster: Cluster):
    example = textwrap.dedent((client_snapshots.__doc__ or "").split("\n\n")[1])
    fold = "async def fold(client):\n" + textwrap.indent(example, "    ") + "\n    return total\n"
    names: dict[str, Any] = {}
    exec(fold, names)
    async with Client(*addresses(cluster), timeout_s=30) as client:
        read: list[int] = []
        whole = client.read_stream

        def counted(stream: str, start: int) -> Any:
            read.append(start)
            return whole(stream, start)

        client.read_stream = counted  # type: ignore[assignment, method-assign]
        for amounts, total in (([1, 2, 3], 6), ([4], 10), ([5, 6], 21)):
            await client.append("payments-7", [Event("Paid", {"amount": one}) for one in amounts])
            assert await names["fold"](client) == total
        assert read == [0, 3, 4]
        assert [one.version async for one in client.snapshots("order-7", "payments-7")] == [2, 3, 5]
        await cluster.supervisor[await cluster.leader()].kill()
        latest = await client.latest_snapshot("order-7", "payments-7", max_version=4)
        assert latest is not None
        assert (latest.version, latest.data, latest.source_type) == (3, 10, "Order")
        assert await client.record_snapshot("order-7", "payments-7", 3, "Order", b"\x00", {"a": 1})
        assert await client.delete_snapshot("order-7", "payments-7", 2)
        assert not await client.delete_snapshot("order-7", "payments-7", 2)
        found = [one async for one in client.snapshots("order-7", "payments-7", min_version=1)]
        assert [(one.version, one.data) for one in found] == [(3, b"\x00"), (5, 21)]


async def test_the_example_of_what_a_stream_keeps_works(cluster: Cluster, capsys):
    example = textwrap.dedent((client_streams.__doc__ or "").split("\n\n")[1])
    work = "async def work(client):\n" + textwrap.indent(example, "    ")
    names: dict[str, Any] = {"Event": Event}
    exec(work, names)
    async with Client(*addresses(cluster), timeout_s=30) as client:
        await names["work"](client)
        assert capsys.readouterr().out == "2 [2, 3, 4]\nNone\n"
        again = await client.append("visits", [Event("Visited")], NO_STREAM)
        assert again.streams == {"visits": 5}
        await cluster.supervisor[await cluster.leader()].kill()
        assert await client.delete_stream("visits", hard=True)
        assert not await client.delete_stream("visits", hard=True)
        with pytest.raises(Deleted):
            await client.append("visits", [Event("Visited")])


async def test_the_synchronous_client_records_snapshots(cluster: Cluster):
    def work() -> tuple[Any, ...]:
        with SyncClient(*addresses(cluster)) as client:
            made = client.record_snapshot("o", "s", 4, "Order", {"total": 1})
            latest = client.latest_snapshot("o", "s")
            versions = [one.version for one in client.snapshots("o", "s")]
            return made, latest and latest.data, versions, client.delete_snapshot("o", "s", 4)

    assert await asyncio.to_thread(work) == (False, {"total": 1}, [4], True)


async def test_the_synchronous_client_follows(cluster: Cluster):
    def work() -> list[int]:
        with SyncClient(*addresses(cluster)) as client:
            client.append("s", [Event("A"), Event("A")])
            seen = []
            for event in client.subscribe():
                seen.append(event.position)
                if len(seen) == 2:
                    return seen
        return []

    assert await asyncio.to_thread(work) == [1, 2]
