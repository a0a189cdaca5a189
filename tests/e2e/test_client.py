"""The client against real nodes that are killed under it."""

from __future__ import annotations

import asyncio
import textwrap

import pytest

from cluster import client_sync
from cluster.client import NO_STREAM, Client, Event, Filter
from cluster.client_errors import WrongExpectedVersion
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
            async with asyncio.timeout(20):
                while len(stored) < count + 20:  # noqa: ASYNC110
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
