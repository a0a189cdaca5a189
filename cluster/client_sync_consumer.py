"""A consumer of a persistent subscription without `await`; see `client_consumer`, which it is.

    with client.consume("mails", consumer="c1") as consumer:
        for delivery in consumer:
            try:
                send_mail(delivery.event.data)
            except BadAddress:
                delivery.nack("park")                   # nobody will try again by himself
            else:
                delivery.ack()

The loop goes on for ever. A program that ends once there is nothing more to do takes the deliveries
one by one, and waits so long for each:

    with client.consume("mails", consumer="c1") as consumer:
        while delivery := consumer.take(timeout_s=0.5):
            if not delivery.ack().result():             # wait until it counts
                print("too late:", delivery.event.position)

Words are sent behind the program's back, and cost it nothing; their `result()` says whether they
counted. Several threads may share a consumer: each gets deliveries of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any, Literal

from cluster.client_consumer import Action, Consumer, Delivery, checked
from cluster.client_loop import LoopThread, NotRunning


class SyncDelivery:
    """An event that was handed to this consumer, for the `attempt`th time (from 1)."""

    def __init__(self, consumer: SyncConsumer, delivery: Delivery) -> None:
        self.event = delivery.event
        self.attempt = delivery.attempt
        self.id = delivery.id
        self._consumer = consumer
        self._delivery = delivery

    @property
    def overdue(self) -> bool:
        """Whether its deadline is over, as far as this process can tell."""
        return self._consumer.time() >= self._delivery.until

    def ack(self) -> Future[bool]:
        """It is done. The result is whether that counted.

        It raises `ClientError` if no node could be told in time.
        """
        return self._consumer.settle(self._delivery, "ack")

    def nack(self, action: Action = "retry") -> Future[bool]:
        """It is not done: "retry", "park", "skip" or "give_back", as `client_consumer` says."""
        return self._consumer.settle(self._delivery, checked(action))


class SyncConsumer:
    """Deliveries as an iterator, in a context; see the module."""

    def __init__(self, consumer: Consumer, loop: LoopThread) -> None:
        self.name = consumer.name
        self._consumer = consumer
        self._loop = loop
        self._entered = False
        self._said: set[Future[bool]] = set()  # words whose outcome is not known yet

    def __enter__(self) -> SyncConsumer:
        self._loop.wait(self._consumer.__aenter__())
        self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.wait(self._consumer.__aexit__(kind, error, trace))
        wait(self._said.copy())

    def __iter__(self) -> SyncConsumer:
        return self

    def __next__(self) -> SyncDelivery:
        delivery = self._wait(_next(self._consumer))
        if delivery is None:
            raise StopIteration
        return SyncDelivery(self, delivery)

    def take(self, timeout_s: float) -> SyncDelivery | None:
        """The next delivery, or None if none comes in time, or after the context was left."""
        delivery = self._wait(_within(self._consumer, timeout_s))
        return None if delivery is None else SyncDelivery(self, delivery)

    def _wait(self, work: Coroutine[Any, Any, Delivery | None]) -> Delivery | None:
        try:
            return self._loop.wait(work)
        except NotRunning:
            if self._entered:  # the client was left, which ends it
                return None
            raise

    def settle(self, delivery: Delivery, action: Action | Literal["ack"]) -> Future[bool]:
        """Have a word about a delivery sent; `SyncDelivery.ack` and `nack` are the way here."""
        said = self._loop.begin(_settled(delivery, action))
        self._said.add(said)
        said.add_done_callback(self._said.discard)
        return said

    def time(self) -> float:
        """What deadlines are compared with, in seconds."""
        return self._loop.time()


async def _next(consumer: Consumer) -> Delivery | None:
    return await anext(consumer, None)


async def _within(consumer: Consumer, timeout_s: float) -> Delivery | None:
    try:
        async with asyncio.timeout(timeout_s):
            return await _next(consumer)
    except TimeoutError:
        return None


async def _settled(delivery: Delivery, action: Action | Literal["ack"]) -> bool:
    return await (delivery.ack() if action == "ack" else delivery.nack(action))
