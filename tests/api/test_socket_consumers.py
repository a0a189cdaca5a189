"""Consumers of persistent subscriptions over a WebSocket, through the doors of clients."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import cbor2
import pytest

from node.api import desks, socket_consumers
from node.core.outcomes import Fetched
from node.core.subscription import Subscription
from node.core.subscription_commands import FETCH, SETTLE
from node.errors import NoLeader
from tests.api.fakes import Node, eventually, serving
from tests.api.test_conversation import Client, event, talking
from tests.api.test_subscriptions import ONE, held, made

NAME = "workers"


def subscription(node: Node) -> Subscription:
    return node.state.stores["main"].subscriptions.by_name[NAME]


def commands_of(node: Node, *kinds: int) -> list[Any]:
    """All commands of these kinds that are proposed from now on."""
    propose, found = node.replica.propose, []

    async def noting(command: bytes, timeout_ms: int) -> Any:
        fields = cbor2.loads(command)
        if fields[1] in kinds:
            found.append(fields)
        return await propose(command, timeout_ms)

    node.replica.propose = noting  # type: ignore[method-assign]
    return found


async def deliveries(client: Client, request_id: int, count: int) -> list[Any]:
    """The next so many deliveries of a consume; exactly so many have come."""
    found: list[Any] = []
    while len(found) < count:
        for kind, body in client.answers.pop(request_id, ()):
            assert kind == "deliveries", body
            found += body
        if len(found) < count:
            await client.hear()
    assert len(found) == count
    return found


def places(found: list[Any]) -> list[int]:
    return [delivery[0] for delivery in found]


def named(found: list[Any]) -> list[str]:
    return [delivery[5] for delivery in found]


async def consume(client: Client, request_id: int, consumer: str = "a", *credit: int) -> None:
    await client.send(["consume", request_id, NAME, consumer, *credit])


async def idle(node: Node) -> None:
    """Return when whoever consumes waits at the desk, and nothing is there for anybody."""
    assert (await node.ask("GET", "/health/live")).status == 200
    at = node.api._talks._desks._desks
    await eventually(lambda: all(desk._waiting for desk in at.values()))


async def test_what_is_there_and_what_comes_is_delivered_and_acknowledged(node: Node):
    await made(node)
    await node.append("s", 1, data={"n": 7})
    async with talking(node) as client:
        await consume(client, 1)
        [first] = await deliveries(client, 1, 1)
        position, number, created_us, stream, stored, delivery_id, attempt = first
        assert (position, number, stream, attempt) == (1, 0, "s", 1)
        assert stored[2] == "Happened" and cbor2.loads(stored[5]) == {"n": 7}
        assert created_us == node.state.stores["main"].record(1).created_us
        await client.send(["append", 2, "t", [event()]], ["ack", 3, NAME, [delivery_id]])
        assert await client.final(3) == (200, {"settled": 1, "stale": []})
        [second] = await deliveries(client, 1, 1)
        assert second[3] == "t"
        assert await client.ask("nack", NAME, [second[5]], "park") == (
            *(200, {"settled": 1, "stale": []}),
        )
        assert await client.ask("ack", NAME, [second[5], "1-1-1"]) == (
            *(200, {"settled": 0, "stale": [second[5], "1-1-1"]}),
        )
    assert (subscription(node).counts.acked, len(subscription(node).parked)) == (1, 1)


async def test_what_a_node_that_stops_can_deliver_no_more_is_given_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    await made(node, max_retries=0)
    take = desks.Desk.take

    async def take_and_stop(desk: desks.Desk, *wish: Any) -> Fetched:
        fetched = await take(desk, *wish)
        desk._desks.arrivals.stop()
        return fetched

    monkeypatch.setattr(desks.Desk, "take", take_and_stop)
    async with talking(node) as client:
        await consume(client, 1)
        await node.append("s")
        assert (await client.final(1))[0] == 503
    await eventually(lambda: not subscription(node).in_flight, 1)
    assert (subscription(node).counts.delivered, len(subscription(node).parked)) == (1, 0)


async def test_no_more_is_in_flight_than_the_credit(node: Node):
    await made(node)
    for number in range(10):
        await node.append(f"s{number}")
    async with talking(node) as client:
        await consume(client, 1, "a", 3)
        found = await deliveries(client, 1, 3)
        assert await client.ask("ping") == (200, None)
        assert len(subscription(node).in_flight) == 3
        await client.ask("ack", NAME, named(found[:2]))
        found = found[2:] + await deliveries(client, 1, 2)
        assert len(subscription(node).in_flight) == 3
        await client.send(["credit", 1, 2])
        found += await deliveries(client, 1, 2)
        await node.ask("POST", ONE + "/ack", json={"delivery_ids": named(found)})
        assert places(await deliveries(client, 1, 3)) == [8, 9, 10]


async def test_a_delivery_whose_time_is_over_gives_its_place_to_the_next(node: Node):
    await made(node, ack_timeout_ms=100)
    await node.append("s")
    await node.append("t")
    async with talking(node) as client:
        now = [node.api._talks._desks.clock()]
        node.api._talks._desks.clock = lambda: now[0]
        await consume(client, 1, "a", 2)
        first, second = await deliveries(client, 1, 2)
        await client.ask("ack", NAME, named([second]))
        now[0] += 100_001
        [again] = await deliveries(client, 1, 1)
        assert (first[0], first[6], again[0], again[6]) == (1, 1, 1, 2)
        assert await client.ask("ack", NAME, named([first])) == (
            *(200, {"settled": 0, "stale": named([first])}),
        )


async def test_who_says_nothing_is_sent_away_and_may_come_again(node: Node):
    await made(node, ack_timeout_ms=100, max_retries=1)
    await node.append("s")
    async with talking(node) as client, talking(node) as other:
        now = [node.api._talks._desks.clock()]
        node.api._talks._desks.clock = lambda: now[0]
        await consume(client, 1)
        await deliveries(client, 1, 1)
        now[0] += 50_000
        await node.append("t")
        [held] = await deliveries(client, 1, 1)
        now[0] += 50_001
        status, body = await client.final(1)
        assert (status, body["code"]) == (503, "slow_consumer")
        await consume(other, 1)
        assert [(one[0], one[6]) for one in await deliveries(other, 1, 1)] == [(1, 2)]
        assert (await client.ask("ack", NAME, named([held])))[1]["settled"] == 1
        await node.append("u")
        await other.send(["cancel", 1])
        await other.final(1)
        await consume(client, 1)
        assert len(await deliveries(client, 1, 2)) == 2


# --- several consumers ------------------------------------------------------------------------


async def test_one_event_is_fetched_once_however_many_wait(node: Node):
    await made(node, filter={"stream_prefix": "wanted"})
    async with talking(node) as client:
        for number in range(4):
            await consume(client, number, f"c{number}")
        await idle(node)
        fetches = commands_of(node, FETCH)
        for _ in range(100):
            await node.append("other")
        assert not fetches
        for number in range(4):
            await node.append(f"wanted-{number}")
            [found] = await deliveries(client, number, 1)
            assert found[0] == 101 + number
            await idle(node)
        assert [fields[5] for fields in fetches] == ["c0", "c1", "c2", "c3"]


async def test_who_leaves_while_the_desk_looks_ends_nobody_else(node: Node, monkeypatch):
    await made(node)
    await node.append("s", 1)
    look, looking, done = desks.Desk._there_may_be, asyncio.Event(), asyncio.Event()

    async def slow(self, *args):
        found = await look(self, *args)
        looking.set()
        await done.wait()
        return found

    monkeypatch.setattr(desks.Desk, "_there_may_be", slow)
    with node.api._talks._desks.at("main", ONE.rsplit("/", 1)[1]) as desk:
        leaves = asyncio.create_task(desk.take("a", 1, lambda: True))
        stays = asyncio.create_task(desk.take("b", 1))
        await asyncio.wait_for(looking.wait(), 5)
        leaves.cancel()
        await asyncio.wait({leaves})
        done.set()
        assert len((await asyncio.wait_for(stays, 5)).deliveries) == 1


async def test_what_is_there_is_shared_out(node: Node):
    await made(node)
    for number in range(40):
        await node.append(f"s{number}")
    async with talking(node) as client:
        await consume(client, 1, "a", 1)
        await deliveries(client, 1, 1)
        await client.send(*(["consume", n, NAME, f"c{n}"] for n in range(2, 5)))
        for number in range(2, 5):
            assert len(await deliveries(client, number, 13)) == 13


class Judge:
    """What consumers were given and what they acknowledged, judged at each delivery."""

    def __init__(self, node: Node, seed: int) -> None:
        self.chance = random.Random(seed)
        self.node = node
        self.done: dict[str, list[int]] = {}

    def takes(self, delivery: Any) -> str:
        """What is to be said of a delivery."""
        number, stream = delivery[1], delivery[3]
        done = self.done.setdefault(stream, [])
        if number < len(done):
            return ""  # given back on one connection while it was acknowledged: at least once
        assert number == len(done), "out of turn"
        word = self.chance.choices(["ack", "retry", "skip"], [7, 2, 1])[0]
        if word != "retry":
            done.append(number)
        return word

    async def work(self, consumer: str, count: int) -> None:
        """Consume over connection after connection until `count` events are done."""
        while sum(map(len, self.done.values())) < count:
            async with talking(self.node) as client:
                await consume(client, 1, consumer, self.chance.randint(1, 5))
                for _ in range(self.chance.randint(1, 8)):
                    await self._batch(client, count)
                if self.chance.random() < 0.5:
                    await client.send(["cancel", 1])
                    assert await client.final(1) == (200, None)

    async def _batch(self, client: Client, count: int) -> None:
        try:
            async with asyncio.timeout(0.01):
                while 1 not in client.answers:
                    await client.hear()
        except TimeoutError:
            return
        for _, found in client.answers.pop(1):
            for delivery in found:
                word = self.takes(delivery)
                kind = ["nack", 2, NAME, [delivery[5]], word]
                await client.send(["ack", 2, NAME, [delivery[5]]] if word == "ack" else kind)
                status, body = await client.final(2)
                assert (status, body["stale"]) == (200, [])


async def test_each_event_in_order_of_its_stream_whoever_comes_and_goes(node: Node):
    await made(node, max_retries=1_000)
    seed = random.randrange(2**32)
    print("seed", seed)
    judge = Judge(node, seed)
    for number in range(120):
        await node.append(f"s{judge.chance.randrange(9)}")
        if number == 60:
            workers = [asyncio.create_task(judge.work(one, 120)) for one in "abc"]
    await asyncio.wait_for(asyncio.gather(*workers), 20)
    one = subscription(node)
    assert (one.counts.acked + one.counts.skipped, one.cursor) == (120, 120)
    assert not one.in_flight and not one.lines and not one.parked


# --- the end ----------------------------------------------------------------------------------


async def test_what_is_in_flight_at_a_cancel_is_given_back_untried(node: Node):
    await made(node, max_retries=0)
    for number in range(3):
        await node.append(f"s{number}")
    async with talking(node) as one, talking(node) as other:
        await consume(one, 1)
        found = await deliveries(one, 1, 3)
        await one.send(["ack", 2, NAME, named(found[:1])], ["cancel", 1])
        assert await one.final(1) == (200, None)
        assert await one.final(2) == (200, {"settled": 1, "stale": []})
        await consume(other, 1)
        again = await deliveries(other, 1, 2)
        assert [(each[0], each[6]) for each in again] == [(2, 2), (3, 2)]


async def test_what_was_in_flight_on_a_lost_connection_comes_again_at_once(node: Node):
    await made(node, max_retries=1)
    for number in range(3):
        await node.append(f"s{number}")
    for attempt in (1, 2):
        async with talking(node) as client:
            await consume(client, 1)
            found = await deliveries(client, 1, 3 if attempt == 1 else 2)
            assert {each[6] for each in found} == {attempt}
            await client.send(["ack", 2, NAME, named(found[:1])])
            client.socket._response.connection.transport.abort()  # type: ignore[union-attr]
        await eventually(lambda: not subscription(node).in_flight)
    assert (subscription(node).counts.acked, sorted(subscription(node).parked)) == (2, [3])


async def test_a_consume_ends_with_its_subscription_and_its_store(node: Node):
    await made(node)
    await node.append("s")
    await node.ask("PUT", "/v1/stores/other")
    await node.ask("PUT", f"/v1/stores/other/subscriptions/{NAME}", json={})
    async with talking(node) as client, talking(node, "other") as other:
        await client.send(*(["consume", n, NAME, "a", 1] for n in range(3)))
        await client.hear()
        await node.ask("DELETE", ONE)
        for number in range(3):
            status, body = await client.final(number)
            assert (status, body["code"]) == (404, "subscription_not_found")
        await consume(other, 1)
        await idle(node)
        await node.ask("DELETE", "/v1/stores/other")
        assert (await other.final(1))[1]["code"] == "store_not_found"


async def test_the_last_words_of_a_node_that_stops():
    async with serving(stop_s=2, linger_s=0.2) as node, talking(node) as client:
        await made(node, max_retries=0)
        await node.append("s")
        await client.send(["consume", 1, NAME, "a", 1], ["consume", 2, NAME, "b"])
        await deliveries(client, 1, 1)
        stop = asyncio.create_task(node.api.stop())
        for number in (1, 2):
            status, body = await client.final(number)
            assert (status, body["code"]) == (503, "not_ready")
        await client.socket.close()
        await asyncio.wait_for(stop, 5)
        assert (subscription(node).waiting, len(subscription(node).parked)) == (1, 0)


# --- bounds -----------------------------------------------------------------------------------


async def test_nothing_is_fetched_for_who_does_not_read():
    async with serving(stream_buffer_bytes_max=50_000, ping_s=5) as node:
        for _ in range(25):
            await node.append("big", 8, data="x" * 100_000)
        await made(node, start_after="end")
        async with talking(node) as slow, talking(node) as other:
            await consume(slow, 1, "slow")
            await idle(node)
            await slow.send(["subscribe", 2, {}])
            await eventually(lambda: any(c.writing_paused for c in node.api._server.connections))
            await consume(other, 1, "other")
            await idle(node)
            for number in range(20):
                await node.append(f"s{number}")
            assert places(await deliveries(other, 1, 20)) == list(range(201, 221))
            assert len(await slow.records(2, 220)) == 220
            await other.send(["cancel", 1])
            assert places(await deliveries(slow, 1, 20)) == list(range(201, 221))


async def test_settlements_of_one_turn_share_a_command(node: Node):
    await made(node)
    for number in range(50):
        await node.append(f"s{number}")
    async with talking(node) as client:
        await consume(client, 1)
        found = named(await deliveries(client, 1, 50))
        settles = commands_of(node, SETTLE)
        await client.send(*(["ack", 2 + n, NAME, [one]] for n, one in enumerate(found)))
        for number in range(50):
            assert (await client.final(2 + number))[1] == {"settled": 1, "stale": []}
        assert sum(len(fields[5]) for fields in settles) == 50 and len(settles) <= 3


async def test_who_settles_waits_as_long_as_it_may_also_behind_another():
    async with serving(timeout_ms_max=200) as node, talking(node) as client:
        await made(node)
        await node.append("s")
        await node.append("t")
        await consume(client, 1)
        one, other = named(await deliveries(client, 1, 2))
        gate = held(node)
        await client.send(["ack", 2, NAME, [one]])
        await asyncio.sleep(0.05)
        async with asyncio.timeout(3):
            await client.send(["ack", 3, NAME, [other]])
            status, problem = await client.final(3)
        assert (status, problem["code"]) == (504, "outcome_unknown")
        gate.set()
        status, settled = await client.ask("ack", NAME, [other])
        assert (status, settled) == (200, {"settled": 0, "stale": [other]}), "it was taken"


async def test_each_request_is_told_what_is_stale_of_its_own(node: Node):
    await made(node)
    for number in range(6):
        await node.append(f"s{number}")
    async with talking(node) as client:
        await consume(client, 1)
        found = named(await deliveries(client, 1, 6))
        over = "1-1-1"
        asked = (found[:3], [found[3], over], found[4:], [over])
        await client.send(*(["ack", 10 + n, NAME, some] for n, some in enumerate(asked)))
        told = [(await client.final(10 + number))[1]["stale"] for number in range(4)]
        assert told == [[], [over], [], [over]]


async def test_each_answer_goes_to_who_asked(node: Node):
    await made(node)
    await node.ask("PUT", "/v1/stores/main/subscriptions/second", json={"filter": {"stream": "t"}})
    await node.append("s")
    await node.append("t")
    async with talking(node) as client:
        await client.send(["consume", 8, NAME, "a"], ["consume", 9, "second", "a"])
        both = await deliveries(client, 8, 2)
        [other] = await deliveries(client, 9, 1)
        assert (places(both), places([other])) == ([1, 2], [2])
        await client.send(
            ["ack", 3, NAME, named(both[:1])],
            ["ack", 4, "second", named(both[1:])],
            ["nack", 5, "second", named([other]), "skip"],
        )
        assert await client.final(5) == (200, {"settled": 1, "stale": []})
        assert await client.final(4) == (200, {"settled": 0, "stale": named(both[1:])})
        assert await client.final(3) == (200, {"settled": 1, "stale": []})


async def test_what_makes_no_sense_is_refused():
    async with serving(socket_feeds_max=2) as node, talking(node) as client:
        await made(node)
        for fields, status in (
            (("consume", "nothing", "a"), 404),
            (("consume", "$x", "a"), 400),
            (("consume", NAME, ""), 400),
            (("consume", NAME, "a", 0), 400),
            (("consume", NAME, "a", 1_001), 400),
            (("ack", "nothing", []), 404),
            (("ack", NAME, ["x"]), 400),
            (("ack", NAME, ["x"] * 1_001), 413),
            (("nack", NAME, ["x"] * 1_001, "skip"), 413),
            (("nack", NAME, [], "later"), 400),
        ):
            assert (await client.ask(*fields))[0] == status, fields
        await client.send(*(["consume", n, NAME, "a"] for n in (1, 2, 3, 1)))
        assert (await client.final(3))[1]["limit"] == "socket_feeds_max"
        assert (await client.final(1))[0] == 400


# --- a cluster in trouble -----------------------------------------------------------------------


async def test_a_cluster_without_a_leader_for_a_moment_ends_nothing(node: Node):
    await made(node)
    await node.append("s")
    node.replica.propose_error = NoLeader("an election")
    async with talking(node) as client:
        await consume(client, 1)
        assert await client.ask("ping") == (200, None)
        await asyncio.sleep(0.15)
        node.replica.propose_error = None
        assert places(await deliveries(client, 1, 1)) == [1]


async def test_a_node_that_is_cut_off_sends_its_consumers_away(node: Node, monkeypatch):
    monkeypatch.setattr(desks, "_LAGS_S", 0.02)
    monkeypatch.setattr(desks, "_CUT_OFF_S", 0.06)
    await made(node)
    async with talking(node) as client:
        await consume(client, 1)
        await idle(node)
        node.replica.reasons = ["no leader is known"]
        status, body = await client.final(1)
        assert (status, body["code"]) == (503, "not_ready")
        assert body["reasons"] == ["no leader is known"]


async def test_a_cluster_without_a_leader_for_long_ends_a_consume(node: Node, monkeypatch):
    monkeypatch.setattr(socket_consumers, "_PATIENCE_S", 0.05)
    await made(node)
    await node.append("s")
    node.replica.propose_error = NoLeader("none")
    async with talking(node) as client:
        await consume(client, 1)
        status, body = await client.final(1)
        assert (status, body["code"]) == (503, "no_leader")
