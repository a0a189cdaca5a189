"""Consumers of one persistent subscription at several real nodes, one of which is killed."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import cbor2
import pytest

from tests.e2e.client import STORE, Client
from tests.e2e.conftest import Cluster

pytestmark = pytest.mark.e2e

STREAMS = 6
EVENTS = 240
WORKERS = f"/v1/stores/{STORE}/subscriptions/workers"


class Work:
    """What was delivered, judged at each delivery: in order per stream, whoever gets it."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.done: dict[str, int] = {}  # of each stream, how many events
        self.again = 0
        self.over = asyncio.Event()

    @property
    def count(self) -> int:
        return sum(self.done.values())

    def takes(self, stream: str, number: int) -> bool:
        """Whether to acknowledge the delivery; else it is refused, and comes again."""
        done = self.done.setdefault(stream, 0)
        assert number <= done, f"event {number} of {stream} came before event {done} was done"
        if number == done and self.chance.random() < 0.2:
            return False
        self.again += number < done
        self.done[stream] = max(done, number + 1)
        if self.count == EVENTS:
            self.over.set()
        return True

    async def consume(self, consumer: str, addresses: list[str]) -> None:
        """Work at one node after the other, until all is done."""
        async with aiohttp.ClientSession() as session:
            for address in itertools.cycle(addresses):
                if self.over.is_set():
                    return
                with suppress(aiohttp.ClientError, ConnectionError):
                    url = f"{address}/v1/stores/{STORE}/ws"
                    async with session.ws_connect(url) as socket:
                        await self._talk(socket, consumer)
                await asyncio.sleep(0.05)

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse, consumer: str) -> None:
        await socket.send_bytes(cbor2.dumps([["consume", 0, "workers", consumer, 20]]))
        ending = asyncio.create_task(self._end(socket))
        try:
            async for message in socket:
                for request_id, kind, body in cbor2.loads(message.data):
                    if request_id == 0 and kind in (200, 503):
                        return  # cancelled, or sent away
                    assert request_id != 0 or kind == "deliveries", body
                    if request_id == 0:
                        await socket.send_bytes(cbor2.dumps([self._word(one) for one in body]))
        finally:
            ending.cancel()

    def _word(self, delivery: list[Any]) -> list[Any]:
        stream, number, delivery_id = delivery[3], delivery[1], delivery[5]
        return ["ack" if self.takes(stream, number) else "nack", 1, "workers", [delivery_id]]

    async def _end(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        await self.over.wait()
        await socket.send_bytes(cbor2.dumps([["cancel", 0]]))


async def made(client: Client, **bounds: Any) -> None:
    assert (await client.request("PUT", WORKERS, bounds)).status == 201


async def test_nothing_is_lost_and_no_order_broken_by_the_death_of_a_consumers_node(
    cluster: Cluster,
):
    leader = await cluster.leader()
    addresses = {name: client.address for name, client in cluster.clients.items()}
    second, third = (name for name in addresses if name != leader)
    await made(cluster.clients[third], ack_timeout_ms=1_500, max_retries=1_000)
    seed = random.randrange(2**32)
    print("seed", seed)
    work = Work(seed)

    async def write() -> None:
        for number in range(EVENTS):
            stream = f"s{work.chance.randrange(STREAMS)}"
            await cluster.clients[third].append_until_taken(stream, str(number))

    async with asyncio.timeout(180):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(work.consume("first", [addresses[leader], addresses[second]]))
            tasks.create_task(work.consume("second", [addresses[second], addresses[third]]))
            tasks.create_task(write())
            while work.count < EVENTS // 4:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await cluster.supervisor[leader].kill()
        one = (await cluster.clients[third].request("GET", WORKERS)).body
        while one["in_flight"] or one["waiting"] or one["lag"]:
            await asyncio.sleep(0.1)
            one = (await cluster.clients[third].request("GET", WORKERS)).body
    assert (one["parked"], one["streams_behind"], one["stalled"]) == (0, 0, None)
    assert one["totals"]["acked"] == EVENTS
    assert work.again <= 2 * 20 + STREAMS  # what two consumers may have had in flight


async def test_a_node_that_stops_gives_back_what_its_consumer_has(cluster: Cluster):
    leader = await cluster.leader()
    other = next(client for name, client in cluster.clients.items() if name != leader)
    await made(other, ack_timeout_ms=600_000, max_retries=0)
    for number in range(5):
        await other.append_until_taken(f"s{number}", "held")
    async with aiohttp.ClientSession() as session, asyncio.timeout(120):
        async with _consuming(session, cluster.clients[leader].address) as socket:
            assert [one[6] for one in await _deliveries(socket, 5)] == [1] * 5
            stopping = asyncio.create_task(cluster.supervisor[leader].stop())
            [[_, status, problem]] = cbor2.loads((await socket.receive()).data)
            assert (status, problem["code"]) == (503, "not_ready")
        async with _consuming(session, other.address) as socket:
            again = await _deliveries(socket, 5)
            assert [one[6] for one in again] == [2] * 5
            await socket.send_bytes(cbor2.dumps([["ack", 1, "workers", [one[5] for one in again]]]))
            [[_, status, body]] = cbor2.loads((await socket.receive()).data)
            assert (status, body) == (200, {"settled": 5, "stale": []})
        assert await stopping == 0
    assert (await other.request("GET", WORKERS)).body["parked"] == 0


@pytest.mark.slow
async def test_a_subscription_that_nobody_consumes_is_reported_by_every_node(cluster: Cluster):
    await made(cluster.any)
    await cluster.any.append("s", "alone")
    async with asyncio.timeout(60):
        for client in cluster.clients.values():
            while (await client.request("GET", WORKERS)).body["stalled"] is None:  # noqa: ASYNC110
                await asyncio.sleep(0.5)
            assert (await client.request("GET", WORKERS)).body["stalled"] == "no_consumer"
            assert await metric(client, "stalled") == 1
    work = Work(0)
    work.chance.random = lambda: 1.0  # type: ignore[method-assign]
    consuming = asyncio.create_task(work.consume("late", [cluster.any.address]))
    async with asyncio.timeout(20):
        while await metric(cluster.any, "stalled"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        assert (await cluster.any.request("GET", WORKERS)).body["stalled"] is None
    consuming.cancel()
    await asyncio.wait([consuming])


@asynccontextmanager
async def _consuming(
    session: aiohttp.ClientSession, address: str
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with session.ws_connect(f"{address}/v1/stores/{STORE}/ws") as socket:
        await socket.send_bytes(cbor2.dumps([["consume", 0, "workers", "a", 20]]))
        yield socket


async def _deliveries(socket: aiohttp.ClientWebSocketResponse, count: int) -> list[Any]:
    """The next so many deliveries."""
    found: list[Any] = []
    while len(found) < count:
        for _, kind, body in cbor2.loads((await socket.receive()).data):
            assert kind == "deliveries", body
            found += body
    return found


async def metric(client: Client, name: str) -> float:
    """A metric of the subscription."""
    line = f'exesdb_subscription_{name}{{store="{STORE}",subscription="workers"}} '
    url = client.address + "/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        text = await answer.text()
    return float(text.split(line)[1].split("\n")[0])
