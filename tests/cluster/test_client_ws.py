"""The pipelined client, against a served API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import cbor2
import pytest
from aiohttp import WSMessage, web

from cluster import client_ws
from cluster.client import NO_STREAM, Client, Event
from cluster.client_errors import (
    EventIdReused,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    WrongExpectedVersion,
)
from cluster.client_ws import UNDER_WAY_MAX, connect, recorded
from node.api.limits import ApiLimits
from tests.api.fakes import Node, eventually, serving
from tests.cluster.fake_http import answering

Talk = Callable[[web.WebSocketResponse], Awaitable[Any]]


@pytest.fixture
async def node():
    async with serving() as served:
        yield served


def address(node: Node) -> str:
    return f"127.0.0.1:{node.port}"


async def test_appends_are_sent_together_and_each_has_its_own_outcome(node: Node):
    async with connect(address(node), "main") as pipeline:
        event = Event("OrderPlaced", {"total": 12}, {"by": "me"})
        first = pipeline.append("order-7", [event], NO_STREAM)
        second = pipeline.append("order-8", [Event("OrderPlaced", b"\x00")])
        third = pipeline.append("order-7", [Event("OrderPaid")], NO_STREAM)
        assert (await first).positions == [1] and (await second).positions == [2]
        with pytest.raises(WrongExpectedVersion) as refused:
            await third
        assert refused.value.current == 0 and not refused.value.stored
        again = await pipeline.append("order-7", [event], NO_STREAM)
        assert again.idempotent and again.positions == [1]
        page = await pipeline.read("order-7")
        assert page["events"][0]["data"] == {"total": 12}
        with pytest.raises(InvalidRequest):
            await pipeline.read(limit=0)
        await pipeline.ping()


async def test_what_is_open_is_repeated_over_a_websocket_and_not_by_the_other_client(node: Node):
    event = Event("OrderPlaced", {"total": 12})
    async with connect(address(node), "main") as pipeline:
        await pipeline.append("s", [event])
    async with connect(address(node), "main") as pipeline:
        assert (await pipeline.append("s", [event])).idempotent
    async with Client(address(node), store="main") as client:
        with pytest.raises(EventIdReused):
            await client.append("s", [event])


async def test_a_subscription_gives_what_was_and_what_comes(node: Node):
    async with connect(address(node), "main") as pipeline:
        for number in range(5):
            await pipeline.append("s", [Event("A", number)])
        seen = []
        subscription = pipeline.subscribe(credit=3, after=1)
        async for said in subscription:
            assert said.position >= len(seen)
            for record in said.records:
                event = recorded(record)
                assert event.stream == "s" and event.type == "A"
                seen.append(event.data)
                subscription.add_credit(1)
            if said.kind == "caught_up":
                pipeline.append("s", [Event("A", 5)])
            if 5 in seen:
                subscription.cancel()
        assert seen == [1, 2, 3, 4, 5]


async def test_no_store_and_no_node_are_told(node: Node):
    with pytest.raises(NotFound):
        async with connect(address(node), "none"):
            pass
    await node.api.stop()
    with pytest.raises(Unavailable):
        async with connect(address(node), "main"):
            pass


async def test_a_lost_connection_ends_all_that_is_under_way(node: Node):
    never = asyncio.Event()

    async def held(command, timeout_ms):
        await never.wait()

    async with connect(address(node), "main") as pipeline:
        subscription = pipeline.subscribe()
        assert (await anext(subscription)).kind == "caught_up"
        node.replica.propose = held  # type: ignore[method-assign]
        append = pipeline.append("s", [Event("A")])
        await eventually(lambda: any(c._under_way for c in node.api._talks.conversations))
        for connection in list(node.api._server.connections):
            connection.transport.abort()
        with pytest.raises(OutcomeUnknown) as unknown:
            await append
        assert unknown.value.stored
        with pytest.raises(Unavailable):
            await anext(subscription)
        with pytest.raises(Unavailable):
            pipeline.append("s", [Event("A")])
        with pytest.raises(Unavailable):
            await anext(pipeline.subscribe())


def talking(talk: Talk) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A server that does this with each WebSocket, and then reads on; it answers no ping."""

    async def answer(asked: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(asked)
        await talk(socket)
        async for _ in socket:
            pass
        return socket

    return answer


async def say_nothing(socket: web.WebSocketResponse) -> None:
    """As a node that is broken."""


async def stand_still(socket: web.WebSocketResponse) -> None:
    """As a process that is stopped: the buffers on the way to it fill."""
    await asyncio.Event().wait()


@pytest.mark.parametrize("talk", [say_nothing, stand_still])
async def test_a_node_that_says_nothing_more_ends_all_that_is_under_way(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client_ws, "_PING_S", 0.1)
    monkeypatch.setattr(client_ws, "_CLOSE_S", 0.1)
    async with asyncio.timeout(10), answering(talking(talk)) as url:
        async with connect(url, "main") as pipeline:
            subscription = pipeline.subscribe()
            appends = [pipeline.append("s", [Event("A", b"x" * 900_000)]) for _ in range(30)]
            reading = asyncio.create_task(pipeline.read("s"))
            for append in appends:
                with pytest.raises(OutcomeUnknown, match="says nothing") as unknown:
                    await append
                assert unknown.value.stored
            with pytest.raises(Unavailable):
                await reading
            with pytest.raises(Unavailable):
                await anext(subscription)
            with pytest.raises(Unavailable):
                pipeline.append("s", [Event("A")])
            left = time.monotonic()
        assert time.monotonic() - left < 1


async def test_a_node_that_has_nothing_to_say_is_not_taken_for_lost(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client_ws, "_PING_S", 0.05)
    async with connect(address(node), "main") as pipeline:
        await asyncio.sleep(0.6)
        assert (await pipeline.append("s", [Event("A")])).positions == [1]


async def test_a_node_that_pings_is_answered():
    pongs: list[WSMessage] = []

    async def ping(socket: web.WebSocketResponse) -> None:
        await socket.ping(b"you?")
        pongs.append(await socket.receive())

    async with answering(talking(ping)) as url, connect(url, "main"):
        await eventually(lambda: bool(pongs))
    assert pongs[0].data == b"you?"


async def test_who_does_not_take_events_does_not_take_the_node_for_lost(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    for _ in range(15):
        await node.append("s", 1_000)
    monkeypatch.setattr(client_ws, "_PING_S", 0.05)
    async with connect(address(node), "main") as pipeline:
        subscription = pipeline.subscribe()
        await eventually(lambda: subscription._waiting >= 10_000)
        await asyncio.sleep(0.6)
        while (said := await anext(subscription)).kind != "caught_up":
            pass
        assert said.position == 15_000


@pytest.mark.parametrize(
    "message",
    [b"\xff", cbor2.dumps(5), cbor2.dumps([5]), cbor2.dumps([[1]]), cbor2.dumps([[1, 201, "x"]])],
)
async def test_a_message_that_cannot_be_read_ends_all_that_is_under_way(message: bytes):
    async def talk(socket: web.WebSocketResponse) -> None:
        await socket.receive()
        await socket.send_bytes(message)

    async with (
        asyncio.timeout(5),
        answering(talking(talk)) as url,
        connect(url, "main") as pipeline,
    ):
        subscription = pipeline.subscribe()
        appends = [pipeline.append("s", [Event("A")]) for _ in range(3)]
        for append in appends:
            with pytest.raises(OutcomeUnknown, match="cannot be read"):
                await append
        with pytest.raises(Unavailable):
            await anext(subscription)


async def test_who_asks_for_deliveries_is_given_all_of_them_and_the_last_word(node: Node):
    told: list[tuple[Any, Any]] = []
    await node.ask("PUT", "/v1/stores/main/subscriptions/workers", json={})
    async with asyncio.timeout(5), connect(address(node), "main") as pipeline:
        consume = pipeline.ask(lambda *said: told.append(said), "consume", "workers", "me", 1)
        for position in range(1, 4):
            await pipeline.append("s", [Event("A")])
            await eventually(lambda: len(told) >= position)  # noqa: B023
            kind, [[at, *_, delivery, _]] = told[-1]
            assert (kind, at, pipeline.under_way) == ("deliveries", position, 1)
            pipeline.ask(lambda *_: None, "ack", "workers", [delivery])
            await eventually(lambda: pipeline.under_way == 1)
        pipeline.tell("cancel", consume)
        await eventually(lambda: told[-1] == (200, None))
        assert len(told) == 4 and pipeline.under_way == 0


async def test_what_cannot_be_written_is_refused_alone(node: Node):
    async with connect(address(node), "main") as pipeline, asyncio.timeout(5):
        first = pipeline.append("s", [Event("A")])
        wrong = pipeline.append("s", [Event("A")], object())  # type: ignore[arg-type]
        followed = pipeline.subscribe(after=object())
        last = pipeline.append("s", [Event("A")])
        assert ((await first).positions, (await last).positions) == ([1], [2])
        with pytest.raises(InvalidRequest) as refused:
            await wrong
        assert not refused.value.stored
        with pytest.raises(InvalidRequest):
            await anext(followed)


async def test_no_more_goes_into_one_message_than_a_node_takes(node: Node):
    """What one turn of the event loop has to say may be more than a node reads at once."""
    async with connect(address(node), "main") as pipeline, asyncio.timeout(30):
        event = b"x" * (ApiLimits().body_bytes_max // 20)
        appends = [pipeline.append("s", [Event("A", event)]) for _ in range(20)]
        appends.append(pipeline.append("t", [Event("B")]))
        stored = await asyncio.gather(*appends)
        assert [one.positions for one in stored] == [[position] for position in range(1, 22)]


async def test_the_bound_is_refused_and_can_be_waited_for(node: Node):
    async with connect(address(node), "main") as pipeline:
        futures = [pipeline.append("s", [Event("A")]) for _ in range(UNDER_WAY_MAX)]
        with pytest.raises(Unavailable):
            pipeline.append("s", [Event("A")])
        await pipeline.room()
        futures.append(pipeline.append("s", [Event("A")]))
        stored = await asyncio.gather(*futures)
        assert [one.first_version for one in stored] == list(range(UNDER_WAY_MAX + 1))


async def test_who_does_not_take_events_stops_the_node_from_sending(node: Node):
    for _ in range(15):
        await node.append("s", 1_000)
    async with connect(address(node), "main") as pipeline:
        subscription = pipeline.subscribe()
        await eventually(lambda: subscription._waiting >= 10_000)
        await asyncio.sleep(0.02)
        assert subscription._waiting < 14_000
        seen = 0
        async for said in subscription:
            seen += len(said.records)
            if said.kind == "caught_up":
                break
        assert seen == 15_000
