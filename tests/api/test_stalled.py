"""A persistent subscription that does not move says why, and one that moves says nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from node.api import subscriptions
from node.core import subscription as core
from tests.api import fakes
from tests.api.fakes import Node
from tests.api.test_conversation import talking
from tests.api.test_socket_consumers import consume, deliveries, idle, named
from tests.api.test_subscriptions import ONE, fetched, ids, made

Pass = Callable[[float], None]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Pass:
    """Lets so many seconds pass on the node's clock."""

    def later(seconds: float) -> None:
        monkeypatch.setattr(fakes, "NOW_US", fakes.NOW_US + int(seconds * 1_000_000))

    return later


async def stalled(node: Node) -> str | None:
    """Why it is, as all doors say."""
    one = (await node.ask("GET", ONE)).body["stalled"]
    [listed] = (await node.ask("GET", "/v1/stores/main/subscriptions")).body["subscriptions"]
    metrics = (await node.ask("GET", "/metrics")).raw.decode()
    line = f'exesdb_subscription_stalled{{store="main",subscription="workers"}} {float(bool(one))}'
    assert listed["stalled"] == one and line in metrics
    return None if one is None else str(one)


async def test_nobody_fetches(node: Node, passes: Pass):
    await made(node)
    passes(3_600)
    await node.append("s")
    passes(29)
    assert await stalled(node) is None
    passes(2)
    assert await stalled(node) == "no_consumer"
    answer = await fetched(node)
    assert answer.body["stalled"] is None and await stalled(node) is None


async def test_who_waits_over_a_websocket_is_a_consumer(node: Node, passes: Pass):
    await made(node, filter={"types": ["Never"]})
    async with talking(node) as client:
        await consume(client, 1)
        await idle(node)
        await node.append("s", 300)
        await idle(node)
        passes(3_600)
        assert await stalled(node) is None


async def test_a_consumer_that_never_acknowledges_is_told_of(node: Node, passes: Pass):
    await made(node, ack_timeout_ms=100, max_retries=1_000)
    await node.append("s")
    async with talking(node) as client:
        for _ in range(6):
            await consume(client, 1, "a", 1)
            await deliveries(client, 1, 1)
            assert await stalled(node) is None
            passes(5.001)
            assert (await client.final(1))[1]["code"] == "slow_consumer"
        await consume(client, 1, "a", 1)
        found = await deliveries(client, 1, 1)
        assert await stalled(node) == "not_acknowledged"
        await client.ask("ack", "workers", named(found))
        assert await stalled(node) is None


async def test_a_consumer_that_takes_its_time_is_no_stall(node: Node, passes: Pass):
    await made(node, max_in_flight=1, ack_timeout_ms=60_000)
    passes(3_600)
    await node.append("s")
    await fetched(node)
    passes(59)
    assert await stalled(node) is None
    passes(2)
    assert await stalled(node) == "not_acknowledged"


async def test_a_refusal_after_long_silence_is_no_stall(node: Node, passes: Pass):
    await made(node)
    passes(3_600)
    await node.append("s")
    await node.ask("POST", ONE + "/nack", json={"delivery_ids": ids(await fetched(node))})
    await fetched(node)
    assert await stalled(node) is None


async def test_a_clock_that_was_far_ahead_hides_no_stall(node: Node, passes: Pass):
    await made(node)
    await node.append("s")
    passes(48 * 3_600)
    await node.ask("POST", ONE + "/ack", json={"delivery_ids": ids(await fetched(node))})
    passes(-48 * 3_600)
    await node.append("s")
    await fetched(node)
    passes(61)
    assert await stalled(node) == "not_acknowledged"


async def test_too_much_is_parked(node: Node, monkeypatch: pytest.MonkeyPatch):
    for module in (subscriptions, core):
        monkeypatch.setattr(module, "PARKED_MAX", 1)
    await made(node)
    await node.append("s")
    refused = {"delivery_ids": ids(await fetched(node)), "action": "park"}
    await node.ask("POST", ONE + "/nack", json=refused)
    assert await stalled(node) == "parked_full"
    await node.ask("POST", ONE + "/parked/replay")
    assert await stalled(node) is None
