"""Persistent subscriptions through the HTTP API."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import cbor2
import pytest

from node.api import subscriptions
from node.api.desks import Desk
from node.core import commands
from node.core import subscription as core
from node.core.subscription_commands import FETCH
from node.errors import NoLeader
from tests.api import fakes
from tests.api.fakes import NOW_US, Answered, Node, Turns, eventually

ONE = "/v1/stores/main/subscriptions/workers"


async def made(node: Node, **body: Any) -> None:
    assert (await node.ask("PUT", ONE, json=body)).status == 201


async def fetched(node: Node, **body: Any) -> Answered:
    answer = await node.ask("POST", ONE + "/fetch", json={"consumer": "a", **body})
    assert answer.status == 200, answer.body
    return answer


def places(answer: Answered) -> list[int]:
    return [event["position"] for event in answer.body["events"]]


def ids(answer: Answered) -> list[str]:
    return [event["delivery_id"] for event in answer.body["events"]]


def held(node: Node) -> asyncio.Event:
    """Proposals wait until this is set."""
    gate, propose = asyncio.Event(), node.replica.propose

    async def wait(command: bytes, timeout_ms: int) -> Any:
        await gate.wait()
        return await propose(command, timeout_ms)

    node.replica.propose = wait  # type: ignore[method-assign]
    return gate


async def test_events_are_fetched_in_order_of_their_stream_and_acknowledged(node: Node):
    await node.append("s", 2)
    await node.append("t", 1)
    await made(node)
    first = await fetched(node)
    assert places(first) == [1, 3]
    assert places(await fetched(node)) == []
    looked = (await node.ask("GET", ONE)).body
    assert (looked["position"], looked["settled_position"]) == (3, 0)
    done = await node.ask("POST", ONE + "/ack", json={"delivery_ids": ids(first)})
    assert done.body == {"settled": 2, "stale": []}
    assert places(await fetched(node)) == [2]
    again = await node.ask("POST", ONE + "/ack", json={"delivery_ids": ids(first)})
    assert again.body == {"settled": 0, "stale": ids(first)}
    assert (await node.ask("GET", ONE)).body["settled_position"] == 1


async def test_who_settles_waits_as_long_as_it_said_also_behind_another(node: Node):
    await node.append("s")
    await node.append("t")
    await made(node)
    one, other = ids(await fetched(node))
    gate = held(node)

    async def acked(delivery: str, timeout_ms: int) -> Answered:
        target = f"{ONE}/ack?timeout_ms={timeout_ms}"
        return await node.ask("POST", target, json={"delivery_ids": [delivery]})

    patient = asyncio.create_task(acked(one, 60_000))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    answer = await acked(other, 100)
    assert (answer.status, answer.code) == (504, "outcome_unknown")
    assert time.monotonic() - began < 2 and not patient.done()
    gate.set()
    assert (await patient).body == {"settled": 1, "stale": []}
    assert (await acked(other, 60_000)).body == {"settled": 0, "stale": [other]}, "it was taken"


async def test_a_refused_event_comes_again_and_is_parked_and_replayed(node: Node):
    await node.append("s", 1)
    await made(node, max_retries=1)
    for attempt in (1, 2):
        answer = await fetched(node)
        assert [event["attempt"] for event in answer.body["events"]] == [attempt]
        await node.ask("POST", ONE + "/nack", json={"delivery_ids": ids(answer)})
    parked = await node.ask("GET", ONE + "/parked")
    assert [(e["position"], e["why"]) for e in parked.body["events"]] == [(1, "after_retries")]
    assert places(await fetched(node)) == []
    assert (await node.ask("POST", ONE + "/parked/replay")).body == {"replayed": 1}
    assert places(await fetched(node)) == [1]


async def test_all_that_is_parked_is_replayed_by_a_few_commands(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    for module in (core, subscriptions):
        monkeypatch.setattr(module, "MOVED_MAX", 2)
    for number in range(5):
        await node.append(f"s-{number}")
    await made(node)
    refused = {"delivery_ids": ids(await fetched(node)), "action": "park"}
    await node.ask("POST", ONE + "/nack", json=refused)
    assert (await node.ask("POST", ONE + "/parked/replay")).body == {"replayed": 5}
    await node.ask(
        "POST", ONE + "/nack", json={**refused, "delivery_ids": ids(await fetched(node))}
    )
    propose, proposed = node.replica.propose, 0

    async def once(command: bytes, timeout_ms: int) -> Any:
        nonlocal proposed
        proposed += 1
        if proposed == 2:
            raise NoLeader("?")
        return await propose(command, timeout_ms)

    monkeypatch.setattr(node.replica, "propose", once)
    answer = await node.ask("POST", ONE + "/parked/replay")
    assert (answer.status, answer.code) == (504, "outcome_unknown"), "two of them are replayed"
    assert (await node.ask("GET", ONE)).body["waiting"] == 2


async def test_a_list_of_busy_subscriptions_lets_others_have_their_turns(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    for number in range(20):
        await node.ask("PUT", f"/v1/stores/main/subscriptions/s-{number}", json={})
    status, began = subscriptions.status, list[int]()

    def dear(*told: Any) -> dict[str, Any]:
        began.append(turns.count)
        time.sleep(0.01)  # as it takes with 10,000 deliveries in flight
        return status(*told)

    monkeypatch.setattr(subscriptions, "status", dear)
    async with Turns() as turns:
        listed = await node.ask("GET", "/v1/stores/main/subscriptions")
    assert len(listed.body["subscriptions"]) == len(set(began)) == 20


async def test_what_is_given_back_untried_is_no_failure(node: Node):
    await node.append("s", 1)
    await made(node, max_retries=0)
    for attempt in (1, 2):
        answer = await fetched(node)
        assert [event["attempt"] for event in answer.body["events"]] == [attempt]
        body = {"delivery_ids": ids(answer), "action": "give_back"}
        assert (await node.ask("POST", ONE + "/nack", json=body)).body["settled"] == 1
    assert (await node.ask("GET", ONE)).body["parked"] == 0


async def test_a_fetch_waits_for_an_event_that_matches(node: Node):
    await made(node, filter={"stream_prefix": "wanted"})
    waiting = asyncio.create_task(fetched(node, wait_ms=5_000))
    await eventually(lambda: node.api.arrivals.reads == 1)
    await node.append("other")
    await node.append("wanted")
    assert places(await waiting) == [2]


def counted_fetches(node: Node) -> list[bytes]:
    """All fetches that are proposed from now on."""
    propose, fetches = node.replica.propose, []

    async def counting(command: bytes, timeout_ms: int) -> Any:
        if cbor2.loads(command)[1] == FETCH:
            fetches.append(command)
        return await propose(command, timeout_ms)

    node.replica.propose = counting  # type: ignore[method-assign]
    return fetches


async def test_of_those_who_wait_as_many_fetch_as_there_are_events(node: Node):
    await made(node)
    waiting = {asyncio.create_task(fetched(node, wait_ms=5_000)) for _ in range(4)}
    await eventually(lambda: node.api.arrivals.reads == 4)
    fetches = counted_fetches(node)
    found: list[list[int]] = []
    for number in range(4):
        await node.append(f"s{number}")
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        done = {one for one in waiting if one.done()}
        found += [places(await one) for one in done]
        waiting -= done
        assert len(fetches) == number + 1
    assert found == [[1], [2], [3], [4]]


async def test_what_nobody_can_be_given_is_not_fetched(node: Node):
    await made(node, filter={"stream_prefix": "wanted"})
    await node.append("wanted")
    busy = await fetched(node)
    waiting = asyncio.create_task(fetched(node, wait_ms=5_000))
    await eventually(lambda: node.api.arrivals.reads == 1)
    fetches = counted_fetches(node)
    for _ in range(20):
        await node.append("other")
        await node.append("wanted")
    assert not fetches
    await node.ask("POST", ONE + "/ack", json={"delivery_ids": ids(busy)})
    assert places(await waiting) == [3] and len(fetches) == 1


async def test_what_was_fetched_for_one_who_left_is_given_back(node: Node):
    await made(node, max_retries=0)
    waiting = asyncio.create_task(fetched(node, wait_ms=5_000))
    await eventually(lambda: node.api.arrivals.reads == 1)
    propose, gate = node.replica.propose, asyncio.Event()
    fetches = []

    async def held(command: bytes, timeout_ms: int) -> Any:
        outcome = await propose(command, timeout_ms)
        if cbor2.loads(command)[1] == FETCH:
            fetches.append(command)
            await gate.wait()
        return outcome

    node.replica.propose = held  # type: ignore[method-assign]
    await node.append("s")
    await eventually(lambda: len(fetches) == 1)
    waiting.cancel()
    await eventually(lambda: node.api.arrivals.reads == 0)
    gate.set()
    one = node.state.stores["main"].subscriptions.by_name["workers"]
    await eventually(lambda: one.waiting == 1)
    assert (places(await fetched(node)), len(one.parked)) == ([1], 0)


async def test_a_fetch_waits_for_what_another_consumer_lets_pass(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    await node.append("s")
    await made(node, ack_timeout_ms=100)
    await fetched(node)
    waiting = asyncio.create_task(fetched(node, consumer="b", wait_ms=60_000))
    await eventually(lambda: node.api.arrivals.reads == 1)
    monkeypatch.setattr(fakes, "NOW_US", fakes.NOW_US + 100_000)
    async with asyncio.timeout(4):  # a desk looks every 5 s in any case
        answer = await waiting
    assert [(e["position"], e["attempt"]) for e in answer.body["events"]] == [(1, 2)]


async def test_a_fetch_waits_for_what_another_consumer_refuses(node: Node):
    await node.append("s")
    await made(node)
    refused = ids(await fetched(node))
    waiting = asyncio.create_task(fetched(node, consumer="b", wait_ms=60_000))
    await eventually(lambda: node.api.arrivals.reads == 1)
    await node.ask("POST", ONE + "/nack", json={"delivery_ids": refused})
    async with asyncio.timeout(10):
        assert places(await waiting) == [1]


@pytest.mark.parametrize("is_there", [True, False])
async def test_who_leaves_while_its_fetch_looks_keeps_nothing_from_others(
    node: Node, monkeypatch: pytest.MonkeyPatch, is_there: bool
):
    await made(node)
    if is_there:
        await node.append("s")
    propose, looking, go_on = node.replica.propose, asyncio.Event(), asyncio.Event()

    async def slowly(*command: Any) -> Any:
        looking.set()
        await go_on.wait()
        return await propose(*command)

    monkeypatch.setattr(node.replica, "propose", slowly)
    leaving = asyncio.create_task(fetched(node, consumer="gone", wait_ms=60_000))
    await looking.wait()
    leaving.cancel()
    await asyncio.wait({leaving})
    await eventually(lambda: not any(one.transport for one in node.api._server.connections))
    go_on.set()
    await eventually(lambda: not node.api._server.connections)  # it is not waited for
    if not is_there:
        await node.append("s")
    assert places(await fetched(node, wait_ms=4_000)) == [1]


async def test_who_shares_a_command_is_told_of_its_own_deliveries(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    for stream in "abcd":
        await node.append(stream)
    await made(node)
    over, *held = ids(await fetched(node))
    await node.ask("POST", ONE + "/ack", json={"delivery_ids": [over]})
    propose, go_on, commands = node.replica.propose, asyncio.Event(), list[bytes]()

    async def slow(command: bytes, timeout_ms: int) -> Any:
        commands.append(command)
        await go_on.wait()
        return await propose(command, timeout_ms)

    monkeypatch.setattr(node.replica, "propose", slow)

    def settling(*delivery_ids: str) -> asyncio.Task[Answered]:
        return asyncio.create_task(
            node.ask("POST", ONE + "/ack", json={"delivery_ids": delivery_ids})
        )

    first = settling(held[0])
    await eventually(lambda: len(commands) == 1)
    second, third = settling(over, held[1]), settling(held[2], over)
    for _ in range(3):  # meanwhile they arrive
        await node.ask("GET", ONE)
    go_on.set()
    answers = [(await one).body for one in (first, second, third)]
    assert answers == [
        {"settled": 1, "stale": []},
        {"settled": 1, "stale": [over]},
        {"settled": 1, "stale": [over]},
    ]
    assert len(commands) <= 3


async def test_a_stream_whose_last_event_is_handed_out_is_not_behind(node: Node):
    await node.append("s", 3)
    await node.append("t", 1)
    await made(node)
    seen = []
    for _ in range(3):
        answer = await fetched(node)
        seen.append(places(answer))
        await node.ask("POST", ONE + "/ack", json={"delivery_ids": ids(answer)})
    assert seen == [[1, 4], [2], [3]]
    body = (await node.ask("GET", ONE)).body
    assert (body["streams_behind"], body["lag"], body["in_flight"]) == (0, 0, 0)


async def test_the_lag_of_a_subscription_to_which_nothing_comes_becomes_0(node: Node):
    await made(node, filter={"types": ["None"]})
    await node.append("s", 9)
    assert (await node.ask("GET", ONE)).body["lag"] == 9
    assert places(await fetched(node, wait_ms=1)) == []
    assert (await node.ask("GET", ONE)).body["lag"] == 0


async def test_filter_and_start_do_not_change(node: Node):
    await made(node, start_after="end")
    assert (await node.ask("PUT", ONE, json={"start_after": "end"})).status == 200
    other = await node.ask("PUT", ONE, json={"start_after": 3})
    assert (other.status, other.code, other.body["field"]) == (
        409,
        "subscription_exists",
        "start_after",
    )


async def test_what_is_not_there_is_404(node: Node):
    for method, target, body in (
        ("GET", ONE, None),
        ("DELETE", ONE, None),
        ("POST", ONE + "/fetch", {"consumer": "a"}),
        ("POST", ONE + "/ack", {"delivery_ids": []}),
        ("POST", ONE + "/parked/replay", None),
    ):
        answer = await node.ask(method, target, json=body)
        assert (answer.status, answer.code) == (404, "subscription_not_found"), target


@pytest.mark.parametrize("action", ["ack", "nack"])
async def test_too_many_deliveries_are_refused_without_a_look_at_one(node: Node, action: str):
    await made(node)
    answer = await node.ask("POST", f"{ONE}/{action}", json={"delivery_ids": ["x"] * 1_001})
    assert (answer.status, answer.code) == (413, "payload_too_large")
    assert (answer.body["limit"], answer.body["actual"]) == (1_000, 1_001)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", ONE + "/fetch", {"consumer": "c", "max": 1 << 16_000}),
        ("POST", ONE + "/fetch", {"consumer": "c", "wait_ms": 1 << 16_000}),
        ("PUT", ONE, {"filter": {"where": [{"path": ["data", 1 << 16_000], "exists": True}]}}),
    ],
    ids=["max", "wait_ms", "path"],
)
async def test_numbers_of_thousands_of_digits_are_refused(
    node: Node, method: str, path: str, body: dict[str, Any]
):
    headers = {"Content-Type": "application/cbor"}
    answer = await node.ask(method, path, data=cbor2.dumps(body), headers=headers)
    assert (answer.status, answer.code) == (400, "invalid_request")


async def test_what_is_fetched_as_time_runs_out_is_answered(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    """uvloop runs timers before what was made ready in the turn before; here that is forced."""
    await made(node)
    timeout, take = asyncio.timeout, Desk.take
    patience: list[asyncio.Timeout] = []

    def noted(delay: float | None) -> asyncio.Timeout:
        made_now = timeout(delay)
        if delay == 60:
            patience.append(made_now)
        return made_now

    async def at_the_last_moment(*args: Any) -> Any:
        fetched = await take(*args)
        patience[0].reschedule(0)
        return fetched

    monkeypatch.setattr(asyncio, "timeout", noted)
    monkeypatch.setattr(Desk, "take", at_the_last_moment)
    waiting = asyncio.create_task(fetched(node, wait_ms=60_000))
    await eventually(lambda: node.api.arrivals.reads == 1)
    await node.append("s")
    assert places(await waiting) == [1]


async def test_what_was_fetched_of_a_store_that_is_made_anew_is_nothing(node: Node):
    await made(node)
    await node.append("s")
    propose = node.replica.propose

    async def made_anew(command: bytes, timeout_ms: int) -> Any:
        outcome = await propose(command, timeout_ms)
        if cbor2.loads(command)[1] == FETCH:
            node.replica.apply(commands.delete_store("main"))
            node.replica.apply(commands.create_store("main", NOW_US))
        return outcome

    node.replica.propose = made_anew  # type: ignore[method-assign]
    assert places(await fetched(node)) == []
