"""Consumers of persistent subscriptions, against a served API."""

from __future__ import annotations

import asyncio
import gc
import textwrap
from typing import Any

import pytest

from cluster import client_consumer, client_subscriptions
from cluster.client import Client, Event, Filter
from cluster.client_consumer import Consumer, Delivery
from cluster.client_errors import InvalidRequest, NotFound, SubscriptionExists, Unavailable
from cluster.client_errors import OutcomeUnknown as ClientOutcomeUnknown
from node.errors import NoLeader, OutcomeUnknown
from tests.api import fakes
from tests.api.fakes import Node, eventually

NAME = "mails"


async def appended(client: Client, *streams: str) -> None:
    """An event a stream; its data is how many were there before."""
    for stream in streams:
        await client.append(stream, [Event("Happened", await client.version(stream) + 1)])


async def taken(consumer: Consumer, count: int) -> list[Delivery]:
    async with asyncio.timeout(5):
        return [await anext(consumer) for _ in range(count)]


async def in_flight(client: Client) -> int:
    found = await client.subscription(NAME)
    assert found is not None
    return found.in_flight


def asked(client: Client) -> list[str]:
    """The paths of all requests from now on."""
    paths: list[str] = []
    once = client._once

    async def noted(method: str, url: str, path: str, *rest: Any) -> Any:
        paths.append(path)
        return await once(method, url, path, *rest)

    client._once = noted  # type: ignore[assignment, method-assign]
    return paths


async def test_events_come_in_the_order_of_their_stream_and_are_done_once_acknowledged(
    client: Client,
):
    await appended(client, "s", "t", "s", "s")
    await client.create_subscription(NAME)
    seen = []
    async with client.consume(NAME, "c1") as consumer:
        for _ in range(4):
            (delivery,) = await taken(consumer, 1)
            seen.append((delivery.event.stream, delivery.event.data, delivery.attempt))
            assert await delivery.ack()
    assert [one for one in seen if one[0] == "s"] == [("s", 0, 1), ("s", 1, 1), ("s", 2, 1)]
    found = await client.subscription(NAME)
    assert found is not None
    assert (found.totals["acked"], found.totals["redelivered"], found.lag) == (4, 0, 0)
    assert found.settled_position == found.position == 4 and found.done


async def test_what_is_acknowledged_together_is_sent_together(client: Client):
    await appended(client, *map(str, range(30)))
    await client.create_subscription(NAME)
    async with client.consume(NAME, "c1", max_in_flight=30) as consumer:
        deliveries = await taken(consumer, 30)
        paths = asked(client)
        answers = [one.ack() if at % 2 else one.nack("skip") for at, one in enumerate(deliveries)]
        assert all(await asyncio.gather(*answers))
        settling = [path.rsplit("/", 1)[1] for path in paths if not path.endswith("fetch")]
    assert sorted(settling) == ["ack", "nack"]


async def test_a_refused_event_is_tried_again_parked_replayed_or_skipped(client: Client):
    await appended(client, "s")
    await client.create_subscription(NAME)
    async with client.consume(NAME, "c1") as consumer:
        for attempt, action in ((1, "retry"), (2, "park")):
            (delivery,) = await taken(consumer, 1)
            assert delivery.attempt == attempt
            assert await delivery.nack(action)  # type: ignore[arg-type]
        (parked,) = [one async for one in client.parked(NAME)]
        assert (parked.event.stream, parked.attempts, parked.why) == ("s", 2, "by_consumer")
        assert parked.consumer == "c1"
        assert await client.replay_parked(NAME, [parked.event.position + 1]) == 0
        assert await client.replay_parked(NAME) == 1
        (delivery,) = await taken(consumer, 1)
        assert delivery.attempt == 3 and await delivery.nack("skip")
    found = await client.subscription(NAME)
    assert found is not None and (found.in_flight, found.waiting, found.parked) == (0, 0, 0)


async def test_a_late_acknowledgement_learns_that_it_is_stale(
    client: Client, monkeypatch: pytest.MonkeyPatch
):
    await appended(client, "s")
    await client.create_subscription(NAME, ack_timeout_ms=1_000)
    async with client.consume(NAME, "c1", 1) as one, client.consume(NAME, "c2", 1) as other:
        (late,) = await taken(one, 1)
        monkeypatch.setattr(fakes, "NOW_US", fakes.NOW_US + 1_000_000)
        (again,) = await taken(other, 1)
        assert (again.event.id, again.attempt) == (late.event.id, 2)
        assert not await late.ack()
        assert await again.ack()
        assert not await late.ack()


async def test_no_more_is_held_than_was_asked_for(client: Client):
    await appended(client, *map(str, range(9)))
    await client.create_subscription(NAME)
    async with client.consume(NAME, "c1", max_in_flight=3) as consumer:
        held = await taken(consumer, 3)
        waiting = asyncio.create_task(anext(consumer))
        await asyncio.sleep(0.05)
        assert await in_flight(client) == 3 and not waiting.done()
        assert await held[0].ack()
        async with asyncio.timeout(5):
            await waiting
        assert await in_flight(client) == 3


async def test_a_program_that_stands_still_is_not_handed_the_same_events_for_ever(client: Client):
    await appended(client, *map(str, range(4)))
    await client.create_subscription(NAME, ack_timeout_ms=100)
    async with client.consume(NAME, "c1", max_in_flight=2) as consumer:
        (first,) = await taken(consumer, 1)
        await asyncio.sleep(0.35)
        assert first.overdue
        found = await client.subscription(NAME)
        assert found is not None and found.totals["delivered"] == 2
        # The second was fetched ahead and is overdue: another may have it.
        (third,) = await taken(consumer, 1)
        assert third.event.position == 3
    async with asyncio.timeout(5):
        assert not await first.ack()


async def test_who_leaves_sends_the_last_words_and_gives_back_the_rest(client: Client):
    await appended(client, *map(str, range(5)))
    await client.create_subscription(NAME)
    async with client.consume(NAME, "c1") as consumer:
        one, two, _ = await taken(consumer, 3)
        one.ack()
        answer = two.nack("park")
    assert await answer and await one.ack() and await in_flight(client) == 0
    async with client.consume(NAME, "c2") as consumer:
        again = await taken(consumer, 3)
        assert sorted(each.event.position for each in again) == [3, 4, 5]


async def test_who_leaves_gives_back_the_answer_that_was_on_its_way(node: Node, client: Client):
    await client.create_subscription(NAME, max_retries=0)
    one = node.state.stores["main"].subscriptions.by_name[NAME]
    for turns in range(24):
        async with client.consume(NAME, "c1") as consumer:
            ended = asyncio.create_task(anext(consumer, None))
            await asyncio.sleep(0.01)
            before = one.counts.delivered
            appending = asyncio.create_task(appended(client, f"s-{turns}"))
            while one.counts.delivered == before:  # noqa: ASYNC110
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            if ended.done():
                assert (had := ended.result()) is not None and await had.ack()
        await appending
        if not (ended.done() and ended.result()):
            assert await ended is None
            await eventually(lambda: not one.in_flight, 0.5)
    assert not one.parked


async def test_leaving_is_not_held_up_by_a_fetch_without_an_end(node: Node, client: Client):
    await client.create_subscription(NAME)
    began = asyncio.get_running_loop().time()
    async with client.consume(NAME, "c1") as consumer:
        ended = asyncio.create_task(anext(consumer, None))
        await asyncio.sleep(0.05)
    assert await ended is None
    assert asyncio.get_running_loop().time() - began < 0.5


async def test_leaving_uses_up_no_retries_of_what_was_fetched_ahead(client: Client):
    await appended(client, "s", "t")
    await client.create_subscription(NAME, max_retries=0)
    async with client.consume(NAME, "c1") as consumer:
        (had,) = await taken(consumer, 1)
    assert [one.event.id async for one in client.parked(NAME)] == [had.event.id]
    async with client.consume(NAME, "c1") as consumer:
        (again,) = await taken(consumer, 1)
        assert again.event.id != had.event.id and again.attempt == 2
        assert await again.nack("give_back")
        (again,) = await taken(consumer, 1)
        assert again.attempt == 3 and await again.ack()


async def test_what_is_said_after_leaving_does_not_count(client: Client):
    await appended(client, "s")
    await client.create_subscription(NAME)
    async with client.consume(NAME, "c1") as consumer:
        (delivery,) = await taken(consumer, 1)
        ended = asyncio.create_task(anext(consumer))
        await asyncio.sleep(0)
    assert not await delivery.ack()
    with pytest.raises(StopAsyncIteration):
        await ended


async def test_an_error_in_the_program_gives_the_event_back_at_once(client: Client):
    await appended(client, "s")
    await client.create_subscription(NAME)
    with pytest.raises(ZeroDivisionError):
        async with client.consume(NAME, "c1") as consumer:
            async for _ in consumer:
                raise ZeroDivisionError
    assert await in_flight(client) == 0


async def test_a_subscription_that_is_not_there_or_goes_ends_its_consumers(client: Client):
    with pytest.raises(NotFound):
        async with client.consume(NAME, "c1"):
            pass
    await client.create_subscription(NAME)
    await appended(client, "s")
    async with client.consume(NAME, "c1") as consumer:
        (delivery,) = await taken(consumer, 1)
        ended = asyncio.gather(*(anext(consumer) for _ in range(3)), return_exceptions=True)
        await asyncio.sleep(0)
        assert await client.delete_subscription(NAME)
        async with asyncio.timeout(5):
            assert [type(one) for one in await ended] == [NotFound] * 3
        with pytest.raises(NotFound):
            await delivery.ack()
    assert not await client.delete_subscription(NAME) and await client.subscription(NAME) is None


async def test_a_dead_node_and_refusals_for_now_do_not_end_a_consumer(node: Node):
    async with Client("127.0.0.1:9", f"127.0.0.1:{node.port}", store="main") as client:
        await client.create_subscription(NAME)
        async with client.consume(NAME, "c1") as consumer:
            for number, error in enumerate((NoLeader("?"), OutcomeUnknown("?"))):
                await appended(client, "s")
                node.replica.propose_error = error
                waiting = asyncio.create_task(taken(consumer, 1))
                await asyncio.sleep(0.05)
                node.replica.propose_error = None
                (delivery,) = await waiting
                assert delivery.event.data == number and await delivery.ack()


async def test_a_fetch_whose_answer_is_lost_is_made_again(client: Client):
    await appended(client, "s")
    await client.create_subscription(NAME)
    once, lost = client._once, 0

    async def losing(method: str, url: str, path: str, *rest: Any) -> Any:
        nonlocal lost
        if path.endswith("fetch") and not lost:
            lost += 1
            raise ClientOutcomeUnknown("the connection was lost")
        return await once(method, url, path, *rest)

    client._once = losing  # type: ignore[assignment, method-assign]
    async with client.consume(NAME, "c1") as consumer:
        (delivery,) = await taken(consumer, 1)
        assert lost and await delivery.ack()


async def test_who_is_cancelled_while_he_leaves_leaves_nobody_waiting(node: Node, client: Client):
    await appended(client, "s")
    await client.create_subscription(NAME)
    said: asyncio.Future[asyncio.Future[bool]] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        async with client.consume(NAME, "c1") as consumer:
            (delivery,) = await taken(consumer, 1)
            node.replica.propose_error = NoLeader("?")
            said.set_result(delivery.ack())

    working = asyncio.create_task(work())
    answer = await said
    await asyncio.sleep(0.02)
    working.cancel()
    async with asyncio.timeout(2):
        await asyncio.wait({working})
        assert not await answer


async def test_an_acknowledgement_that_cannot_be_sent_says_so(
    node: Node, caplog: pytest.LogCaptureFixture
):
    async with Client(f"127.0.0.1:{node.port}", store="main", timeout_s=1) as client:
        await appended(client, "s", "t")
        await client.create_subscription(NAME)
        async with client.consume(NAME, "c1") as consumer:
            one, two = await taken(consumer, 2)
            node.replica.propose_error = NoLeader("?")
            two.ack()  # nobody looks at its outcome
            with pytest.raises(Unavailable):
                await one.ack()
        assert await in_flight(client) == 2
        del one, two, consumer
    gc.collect()
    assert not caplog.records  # such as: the exception of a future was never retrieved


async def test_who_waits_for_an_answer_gets_one_whatever_happens(client: Client):
    await appended(client, "s")
    await client.create_subscription(NAME)
    async with client.consume(NAME, "c1") as consumer:
        (delivery,) = await taken(consumer, 1)
        await client.__aexit__(None, None, None)
        async with asyncio.timeout(2):
            with pytest.raises(RuntimeError):
                await delivery.ack()
        await client.__aenter__()


async def test_who_no_longer_waits_for_an_acknowledgement_has_given_it_all_the_same(client: Client):
    await appended(client, "s")
    await client.create_subscription(NAME)
    async with client.consume(NAME, "c1") as consumer:
        (delivery,) = await taken(consumer, 1)
        delivery.ack().cancel()
        assert await delivery.ack()
    assert await in_flight(client) == 0


async def test_tasks_that_share_a_consumer_get_deliveries_of_their_own(client: Client):
    await appended(client, *map(str, range(40)))
    await client.create_subscription(NAME)
    seen: list[int] = []

    async def work(consumer: Consumer) -> None:
        async for delivery in consumer:
            seen.append(delivery.event.position)
            await delivery.ack()

    async with client.consume(NAME, "c1", max_in_flight=7) as consumer:
        working = asyncio.gather(*(work(consumer) for _ in range(4)))
        await eventually(lambda: len(seen) == 40)
    await working
    assert sorted(seen) == list(range(1, 41))


async def test_subscriptions_are_made_changed_listed_and_differ_for_good(client: Client):
    await client.create_subscription(NAME, Filter(("A",), "order-"), start_after="end")
    await client.create_subscription("another", stream="s", max_retries=0)
    await client.create_subscription(NAME, Filter(("A",), "order-"), None, "end", max_in_flight=7)
    another, one = await client.subscriptions()
    assert (another.stream, another.max_retries, another.start_after) == ("s", 0, 0)
    assert (one.wanted, one.start_after) == (Filter(("A",), "order-"), "end")
    assert one.max_in_flight == 7 and one.stalled is None
    for other, field in (({"wanted": Filter(("B",))}, "filter"), ({"stream": "s"}, "filter")):
        with pytest.raises(SubscriptionExists) as caught:
            await client.create_subscription(NAME, **other)  # type: ignore[arg-type]
        assert caught.value.field == field and not caught.value.retry
    with pytest.raises(InvalidRequest):
        await client.create_subscription(NAME, ack_timeout_ms=1)
    for wrong in (0, 1_001):
        with pytest.raises(ValueError):
            client.consume(NAME, "c1", wrong)


async def test_the_example_of_a_consumer_works(client: Client):
    class BadAddress(Exception):
        pass

    sent: list[str] = []

    def send_mail(address: str) -> None:
        if "@" not in address:
            raise BadAddress
        sent.append(address)

    example = textwrap.dedent((client_consumer.__doc__ or "").split("\n\n")[1])
    names: dict[str, Any] = {"send_mail": send_mail, "BadAddress": BadAddress}
    exec("async def example(client):\n" + textwrap.indent(example, "    "), names)
    await client.create_subscription("mails")
    await client.append("s", [Event("M", address) for address in ("a@x", "nonsense", "b@x")])
    running = asyncio.create_task(names["example"](client))
    await eventually(lambda: len(sent) == 2)
    running.cancel()
    await asyncio.wait({running})
    assert sent == ["a@x", "b@x"]
    assert [one.event.data async for one in client.parked("mails")] == ["nonsense"]


async def test_the_example_of_subscriptions_works(
    client: Client, capsys: pytest.CaptureFixture[str]
):
    await appended(client, "s")
    await client.append("s", [Event("OrderPlaced")])
    example = textwrap.dedent((client_subscriptions.__doc__ or "").split("\n\n")[1])
    names: dict[str, Any] = {"Filter": Filter}
    exec("async def example(client):\n" + textwrap.indent(example, "    "), names)
    await names["example"](client)
    async with client.consume("mails", "c1") as consumer:
        (delivery,) = await taken(consumer, 1)
        await delivery.nack("park")
    await names["example"](client)
    assert capsys.readouterr().out == "0\n2 1 by_consumer\n1\n"


async def test_leaving_the_client_ends_a_consumer_that_waits(node: Node):
    async with Client(f"127.0.0.1:{node.port}", store="main") as client:
        await client.create_subscription(NAME)
        consumer = await client.consume(NAME, "c1").__aenter__()
        waiting = asyncio.create_task(anext(consumer, None))
        await eventually(lambda: consumer._waiting == 1)
    async with asyncio.timeout(2):
        assert await waiting is None
        await consumer.__aexit__(None, None, None)


async def test_a_consumer_outside_its_context_says_what_to_do(client: Client):
    await client.create_subscription(NAME)
    consumer = client.consume(NAME, "c1")
    async with asyncio.timeout(2):
        with pytest.raises(RuntimeError, match="async with"):
            await anext(consumer)
        async with consumer:
            with pytest.raises(RuntimeError, match="another one"):
                await consumer.__aenter__()
        with pytest.raises(RuntimeError, match="another one"):
            await consumer.__aenter__()


async def test_a_word_that_is_none_is_refused_at_once_and_settles_nothing(client: Client):
    await appended(client, "s")
    await client.create_subscription(NAME)
    async with client.consume(NAME, "c1") as consumer:
        (delivery,) = await taken(consumer, 1)
        with pytest.raises(ValueError, match="'Park' is no action"):
            delivery.nack("Park")  # type: ignore[arg-type]
        assert await delivery.nack("park")
    assert len([one async for one in client.parked(NAME)]) == 1
