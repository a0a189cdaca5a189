"""The pipelined client, against a served API."""

from __future__ import annotations

import asyncio

import pytest

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
