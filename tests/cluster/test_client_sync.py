"""The client without `await`, and its consumers, against a served API."""

from __future__ import annotations

import asyncio
import gc
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest

from cluster import client_sync_consumer
from cluster.client import Event
from cluster.client_errors import NotFound, OutcomeUnknown, Unavailable
from cluster.client_loop import LoopThread
from cluster.client_sync import SyncClient
from node.errors import NoLeader
from tests.api.fakes import Node, serving

NAME = "mails"


@pytest.fixture
def node() -> Iterator[Node]:
    """A node that is served beside the thread of the test."""
    loop = LoopThread()
    loop.start()
    served = serving()
    yield loop.wait(served.__aenter__())
    loop.wait(served.__aexit__(None, None, None))
    loop.stop()


@pytest.fixture
def client(node: Node) -> Iterator[SyncClient]:
    with SyncClient(f"127.0.0.1:{node.port}", store="main", timeout_s=5) as made:
        yield made


def in_flight(client: SyncClient) -> int:
    found = client.subscription(NAME)
    assert found is not None
    return found.in_flight


def subscribed(client: SyncClient, *values: Any) -> None:
    client.create_subscription(NAME)
    for at, value in enumerate(values):
        client.append(f"s-{at}", [Event("M", value)])


def test_it_looks_after_subscriptions(client: SyncClient):
    client.create_subscription(NAME, max_in_flight=3)
    (one,) = client.subscriptions()
    assert one.max_in_flight == 3 and one == client.subscription(NAME)
    assert list(client.parked(NAME)) == [] and client.replay_parked(NAME) == 0
    assert client.delete_subscription(NAME)


def test_the_examples_of_a_consumer_work(client: SyncClient, capsys: pytest.CaptureFixture[str]):
    class BadAddress(Exception):
        pass

    class Enough(Exception):
        pass

    sent: list[str] = []

    def send_mail(address: str) -> None:
        if address == "enough":
            raise Enough
        if "@" not in address:
            raise BadAddress
        sent.append(address)

    parts = (client_sync_consumer.__doc__ or "").split("\n\n")
    endless, ending = (textwrap.dedent(part) for part in parts if part.startswith("    with"))
    names: dict[str, Any] = {"send_mail": send_mail, "BadAddress": BadAddress, "client": client}
    subscribed(client, "a@x", "nonsense", "b@x", "enough")
    with pytest.raises(Enough):
        exec(endless, names)
    assert sent == ["a@x", "b@x"]
    assert [one.event.data for one in client.parked(NAME)] == ["nonsense"]
    exec(ending, names)
    found = client.subscription(NAME)
    assert found is not None and found.done and found.totals["acked"] == 3
    assert capsys.readouterr().out == ""


def test_a_refused_event_is_tried_again_and_a_second_word_does_not_count(client: SyncClient):
    subscribed(client, 1)
    with client.consume(NAME, "c1", max_in_flight=1) as consumer:
        (first,) = islice(consumer, 1)
        assert (first.event.data, first.attempt, first.overdue) == (1, 1, False)
        assert first.nack().result()
        (second,) = islice(consumer, 1)
        assert second.attempt == 2 and second.id != first.id
        assert second.ack().result() and second.nack("park").result()
        assert consumer.take(timeout_s=0.05) is None
    assert list(client.parked(NAME)) == [] and in_flight(client) == 0
    assert list(consumer) == []  # it was left


def test_leaving_sends_the_last_words_and_lets_go_of_the_rest(client: SyncClient):
    subscribed(client, 1, 2, 3)
    with client.consume(NAME, "c1") as consumer:
        one, two = islice(consumer, 2)
        word = one.ack()
    assert word.done() and word.result() and not two.ack().result()
    assert in_flight(client) == 0
    with client.consume(NAME, "c2") as consumer:
        assert sorted(again.event.data for again in islice(consumer, 2)) == [2, 3]


def test_a_word_that_cannot_be_sent_says_so(node: Node):
    with SyncClient(f"127.0.0.1:{node.port}", store="main", timeout_s=1) as client:
        subscribed(client, 1)
        with client.consume(NAME, "c1") as consumer:
            (one,) = islice(consumer, 1)
            node.replica.propose_error = NoLeader("?")
            with pytest.raises(Unavailable):
                one.ack().result()
    with (
        SyncClient(f"127.0.0.1:{node.port}", store="main") as client,
        pytest.raises(NotFound),
        client.consume("none", "c1"),
    ):
        pass


def test_threads_that_share_a_consumer_get_deliveries_of_their_own(client: SyncClient):
    subscribed(client, *range(40))
    seen: list[int] = []

    def work() -> None:
        while delivery := consumer.take(timeout_s=0.5):
            seen.append(delivery.event.data)
            delivery.ack()

    with (
        client.consume(NAME, "c1", max_in_flight=7) as consumer,
        ThreadPoolExecutor(4) as threads,
    ):
        for working in [threads.submit(work) for _ in range(4)]:
            working.result(10)
    assert sorted(seen) == list(range(40))


def interrupted(waits: Callable[[], bool], work: Callable[[], Any]) -> None:
    """Do work that `waits` at some time, and press Ctrl-C then."""
    main, over = threading.get_ident(), threading.Event()

    def press() -> None:
        while not (waits() or over.wait(0.005)):
            pass
        if not over.is_set():
            signal.pthread_kill(main, signal.SIGINT)

    # Where the tests run in the background of a shell, it is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    presser = threading.Thread(target=press)
    presser.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        over.set()
        presser.join()
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_consumer_which_gives_back_what_it_has(client: SyncClient):
    subscribed(client, 1, 2)
    consumer = client.consume(NAME, "c1")

    def work() -> None:
        with consumer:
            list(consumer)

    interrupted(lambda: consumer._consumer._waiting == 1 and in_flight(client) == 2, work)
    assert in_flight(client) == 0 and consumer._consumer._waiting == 0


def test_ctrl_c_ends_a_follower(client: SyncClient):
    client.append("s", [Event("M", 1)])
    following: Any = client.subscribe()
    assert next(following).data == 1
    interrupted(lambda: bool(asyncio.all_tasks(client._loop._loop)), lambda: next(following))
    assert list(following) == [] and client.version("s") == 0


def test_leaving_the_client_ends_who_still_waits(node: Node):
    ended: list[BaseException] = []

    def work() -> None:
        try:
            next(consumer)
        except BaseException as error:
            ended.append(error)

    waiting = threading.Thread(target=work, daemon=True)
    with SyncClient(f"127.0.0.1:{node.port}", store="main") as client:
        subscribed(client)
        consumer = client.consume(NAME, "c1")
        consumer.__enter__()
        waiting.start()
        while not consumer._consumer._waiting:
            assert not ended
    waiting.join(5)
    assert [type(error) for error in ended] == [StopIteration]


def until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.001)


def within(timeout_s: float, work: Callable[[], Any]) -> Any:
    """What the work returns or raises, in a thread that does not hold up the tests if it hangs."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result(timeout_s)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.append("s", [Event("M")]),
        lambda client: next(client.read("s")),
        lambda client: next(client.subscribe()),
        lambda client: client.consume(NAME, "c1").__enter__(),
        lambda client: next(client.consume(NAME, "c1")),
    ],
)
def test_outside_its_context_a_client_says_what_to_do(call: Callable[[SyncClient], Any]):
    with pytest.raises(RuntimeError, match="`with`"):
        within(5, lambda: call(SyncClient("127.0.0.1:9")))


def test_a_consumer_that_was_not_entered_says_what_to_do(client: SyncClient):
    client.create_subscription(NAME)
    consumer = client.consume(NAME, "c1")
    for call in (lambda: next(consumer), lambda: consumer.take(timeout_s=1)):
        with pytest.raises(RuntimeError, match="`with`"):
            within(5, call)


def test_an_iterator_that_outlives_its_client_ends_without_a_word(node: Node):
    made = SyncClient(f"127.0.0.1:{node.port}", store="main")
    for _ in range(2):  # a client may be entered again
        with made as client:
            client.append("s", [Event("M", n) for n in range(3)])
            following, reading, dropped = client.subscribe(), client.read(), client.subscribe()
            assert next(following).position == next(reading).position == next(dropped).position
        del dropped
        gc.collect()  # what is said now about what was left open fails the test
        assert list(following) == []
        with pytest.raises(RuntimeError, match="`with`"):
            list(reading)
        following.close()


def test_a_client_that_is_never_entered_leaves_nothing_open():
    SyncClient("127.0.0.1:9")
    gc.collect()


def test_leaving_the_client_ends_threads_that_follow_or_append(
    node: Node, monkeypatch: pytest.MonkeyPatch
):
    over = threading.Event()

    async def late(command: bytes, timeout_ms: int) -> Any:
        await asyncio.to_thread(over.wait, 10)
        raise NoLeader("?")

    monkeypatch.setattr(node.replica, "propose", late)
    with ThreadPoolExecutor(2) as threads:
        with SyncClient(f"127.0.0.1:{node.port}", store="main", timeout_s=30) as client:
            following = client.subscribe()
            ended = threads.submit(list, following)
            appended = threads.submit(client.append, "s", [Event("M")])
            within(5, lambda: until(lambda: following.caught_up and len(client._loop._awaited) > 1))
        assert ended.result(5) == []
        with pytest.raises(OutcomeUnknown):
            appended.result(5)
    over.set()


def test_a_follower_knows_how_far_it_is(client: SyncClient):
    client.append("s", [Event("M")])
    following = client.subscribe()
    assert next(following).position == following.position == 1
    assert following.lineage == client.lineage == "zero"
    following.close()


def test_a_word_that_is_none_is_refused_at_once(client: SyncClient):
    subscribed(client, 1)
    with client.consume(NAME, "c1") as consumer:
        (delivery,) = islice(consumer, 1)
        with pytest.raises(ValueError, match="'Park' is no action"):
            delivery.nack("Park")  # type: ignore[arg-type]
        assert delivery.ack().result(5)
