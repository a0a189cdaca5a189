"""Consumers of persistent subscriptions over a WebSocket: events come as long as there is credit.

A consumption keeps what it has sent and what is, as far as this node knows, still in flight. With
less than its credit in flight, and while the client takes what is sent, it waits at the desk of its
subscription for the rest, so nothing is fetched for who cannot take it. A delivery that is settled,
wherever that happened, or whose time is over by this node's clock, counts no longer.

A client that stands still must not be handed the same events time and again, until they are parked
while others could do them. So a consumption ends where a delivery's time is over and the client has
said nothing of this subscription since it was sent. What else it holds stays with it till its time.

A failover does not end it: where the cluster could not answer it asks again, for `_PATIENCE_S`.

When it ends for another reason, what is in flight is given back: others get it at once. Where the
client has not asked for the end, each of these deliveries counts as a failure, as it does when its
time is over; so an event that kills whoever is handed it is parked in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import cbor2

from node.api.desks import Desk, Desks
from node.api.settlements import delivery_id
from node.api.socket_messages import CREDIT_MAX, Consume
from node.api.socket_records import Delivered, answer_of_deliveries
from node.api.sockets import Socket
from node.core.outcomes import Fetched
from node.core.store import Record
from node.core.subscription import Subscription
from node.core.subscription_commands import Delivery
from node.errors import NoLeader, OutcomeUnknown, Overloaded, ReadBarrierTimeout, SlowConsumer

_PIECE_BYTES = 256 * 1024
_PATIENCE_S = 10.0
_AGAIN_S = 0.1
_PAUSE_S_MIN = 0.001

T = TypeVar("T")

Send = Callable[[bytes], Awaitable[None]]


class _Sent(NamedTuple):
    """Which delivery of an event was sent, when its time is over, and how much was said before."""

    attempt: int
    over_us: int
    words: int


class Consumption:
    """One consumer. `send` gives the client one answer when it has room for it."""

    def __init__(
        self, request: Consume, desks: Desks, store_name: str, socket: Socket, send: Send
    ) -> None:
        self._id = cbor2.dumps(request.id)
        self._name = request.name
        self._consumer = request.consumer
        self._credit = request.credit
        self._desks = desks
        self._store_name = store_name
        self._socket = socket
        self._send = send
        self._uid = 0
        self._in_flight: dict[int, _Sent] = {}  # by position
        self._words = 0  # how often the client has said what became of deliveries
        self._keeps = False
        self._desk: Desk | None = None
        self._in_order = False

    def add_credit(self, events: int) -> None:
        """Let so many more be in flight; not more than `CREDIT_MAX` at all."""
        self._credit = min(self._credit + events, CREDIT_MAX)
        if self._desk is not None:
            self._desk.tell()

    def heard(self, name: str) -> None:
        """The client has said what became of deliveries of this subscription."""
        if name == self._name:
            self._words += 1

    def stop(self) -> None:
        """It is about to end because the client, or this node, wants it so."""
        self._in_order = True

    def last_words(self) -> None:
        """There is nothing to say to who has cancelled it."""

    async def run(self) -> None:
        """Send until it is cancelled.

        Raises `SubscriptionMissing`, `StoreMissing`, `Unavailable`, `Unfinished`,
        `ConnectionError`.
        """
        with self._desks.at(self._store_name, self._name) as desk:
            self._desk = desk
            try:
                while True:
                    free = await self._free(desk)
                    await self._socket.room()
                    fetched = await self._taken(desk, free)
                    if fetched.deliveries:
                        await self._deliver(desk, fetched)
            finally:
                self._give_back()

    async def _free(self, desk: Desk) -> int:
        """How many events may be fetched, as soon as there is credit for one."""
        while True:
            one, _ = await self._patiently(desk.subscription)
            self._forget_settled(one)
            free = self._credit - len(self._in_flight)
            if free > 0:
                return free
            await desk.moved(self._over_in_s())

    async def _taken(self, desk: Desk, most: int) -> Fetched:
        return await self._patiently(lambda: desk.take(self._consumer, most, self._is_unable))

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """An answer of the cluster, which may be without a leader for a moment."""
        loop = asyncio.get_running_loop()
        began: float | None = None
        while True:
            try:
                return await ask()
            except (NoLeader, Overloaded, OutcomeUnknown, ReadBarrierTimeout):
                began = began or loop.time()
                if loop.time() - began > _PATIENCE_S:
                    raise
            await asyncio.sleep(_AGAIN_S)

    async def _deliver(self, desk: Desk, fetched: Fetched) -> None:
        """Send what was handed out, in pieces."""
        if fetched.uid != self._uid:
            self._uid, self._in_flight = fetched.uid, {}
        try:
            one, store = await desk.subscription()
        except BaseException:
            self._desks.give_back(self._store_name, self._name, fetched)
            raise
        kept = self._desks.kept(store, self._name, fetched)
        now_us = self._desks.clock()
        for position, attempt in kept.deliveries:
            handed = one.in_flight.get(position)
            over_us = (handed.handed_us if handed else now_us) + _timeout_us(one)
            self._in_flight[position] = _Sent(attempt, over_us, self._words)
        records = [store.record(position) for position, _ in kept.deliveries]
        for piece in _pieces(kept, records):
            await self._send(answer_of_deliveries(self._id, piece))

    def _is_unable(self) -> bool:
        """Whether nothing should be fetched for it before it has looked at what is in flight."""
        if self._socket.is_full:
            return True
        oldest = next(iter(self._in_flight.values()), None)
        return oldest is not None and oldest.over_us <= self._desks.clock()

    def _forget_settled(self, one: Subscription) -> None:
        """Count only what is in flight, and whose time is not over.

        Raises `SlowConsumer` where that time went by without a word of the client.
        """
        now_us = self._desks.clock()
        known = one.in_flight if one.uid == self._uid else {}
        for position, sent in list(self._in_flight.items()):
            handed = known.get(position)
            is_over = sent.over_us <= now_us
            if is_over or handed is None or handed.attempt != sent.attempt:
                del self._in_flight[position]
            if is_over and sent.words == self._words:
                self._keeps = True
                raise SlowConsumer("a delivery's time is over, and nothing was said since it came")

    def _over_in_s(self) -> float:
        """After how many seconds the time of the first delivery is over; some are in flight."""
        over_us = min(sent.over_us for sent in self._in_flight.values())
        return max(_PAUSE_S_MIN, (over_us - self._desks.clock()) / 1e6)

    def _give_back(self) -> None:
        if self._keeps:
            return
        deliveries = [
            Delivery(self._uid, position, sent.attempt)
            for position, sent in self._in_flight.items()
        ]
        self._desks.settlements.give_back(
            self._store_name, self._name, deliveries, failed=not self._in_order
        )


def _timeout_us(one: Subscription) -> int:
    return one.definition.ack_timeout_ms * 1_000


def _pieces(fetched: Fetched, records: Sequence[Record]) -> Iterator[list[Delivered]]:
    """What was handed out, some of it at a time."""
    piece: list[Delivered] = []
    size = 0
    for (position, attempt), record in zip(fetched.deliveries, records, strict=True):
        piece.append((record, delivery_id(fetched.uid, position, attempt), attempt))
        size += len(record.frame)
        if size >= _PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
