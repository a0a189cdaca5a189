"""Consumers of persistent subscriptions over a WebSocket: events come as long as there is credit.

A consumption keeps what it has sent and what is, as far as this node knows, still in flight. With
less than its credit in flight, and while the client takes what is sent, it waits at the desk of its
subscription for the rest, so nothing is fetched for who cannot take it. A delivery that is settled,
wherever that happened, or whose time is over by this node's clock, counts no longer.

A failover does not end it: where the cluster could not answer it asks again, for `_PATIENCE_S`.

When it ends, what is in flight is given back: others get it at once. Where the client has not asked
for the end, each of these deliveries counts as a failure, as it does when its time is over; so an
event that kills whoever is handed it is parked in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

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
from node.errors import NoLeader, OutcomeUnknown, Overloaded, ReadBarrierTimeout

_PIECE_BYTES = 256 * 1024
_PATIENCE_S = 10.0
_AGAIN_S = 0.1
_PAUSE_S_MIN = 0.001

T = TypeVar("T")

Send = Callable[[bytes], Awaitable[None]]


class Consumption:
    """One consumer. `send` gives the client one answer when it has room for it."""

    def __init__(
        self, request: Consume, desks: Desks, store_name: str, socket: Socket, send: Send
    ) -> None:
        self.events_sent = 0
        self._id = cbor2.dumps(request.id)
        self._name = request.name
        self._consumer = request.consumer
        self._credit = request.credit
        self._desks = desks
        self._store_name = store_name
        self._socket = socket
        self._send = send
        self._uid = 0
        self._in_flight: dict[int, int] = {}  # position -> which delivery of it
        self._desk: Desk | None = None
        self._in_order = False

    def add_credit(self, events: int) -> None:
        """Let so many more be in flight; not more than `CREDIT_MAX` at all."""
        self._credit = min(self._credit + events, CREDIT_MAX)
        if self._desk is not None:
            self._desk.tell()

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
            await desk.moved(self._over_in_s(one))

    async def _taken(self, desk: Desk, most: int) -> Fetched:
        return await self._patiently(lambda: desk.take(self._consumer, most, self._is_full))

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
        self._in_flight.update(fetched.deliveries)
        _, store = await desk.subscription()
        kept = self._desks.kept(store, self._name, fetched)
        records = [store.record(position) for position, _ in kept.deliveries]
        for piece in _pieces(kept, records):
            await self._send(answer_of_deliveries(self._id, piece))
            self.events_sent += len(piece)

    def _is_full(self) -> bool:
        return self._socket.is_full

    def _forget_settled(self, one: Subscription) -> None:
        """Count only what is in flight, and whose time is not over."""
        timeout_us = one.definition.ack_timeout_ms * 1_000
        latest = self._desks.clock() - timeout_us
        known = one.in_flight if one.uid == self._uid else {}
        for position, attempt in list(self._in_flight.items()):
            handed = known.get(position)
            if handed is None or handed.attempt != attempt or handed.handed_us <= latest:
                del self._in_flight[position]

    def _over_in_s(self, one: Subscription) -> float:
        """After how many seconds the time of the first delivery is over; some are in flight."""
        first_us = min(one.in_flight[position].handed_us for position in self._in_flight)
        over_us = first_us + one.definition.ack_timeout_ms * 1_000
        return max(_PAUSE_S_MIN, (over_us - self._desks.clock()) / 1e6)

    def _give_back(self) -> None:
        deliveries = [Delivery(self._uid, *one) for one in self._in_flight.items()]
        self._desks.settlements.give_back(
            self._store_name, self._name, deliveries, failed=not self._in_order
        )


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
