"""Fetching events of a persistent subscription, and settling them.

A fetch is a command, so it is only proposed where this node's own state says that it may find
something: something waits, a delivery is over, or an event that matches is behind the cursor.
Otherwise a long poll waits for the store's next change or the next delivery to be over; at its end
it moves a cursor past events that did not match, so that the lag of an idle subscription is 0.

A delivery id is opaque to clients: which life of the subscription, which event, the number of the
delivery. Settling an id that is over harms nothing; the answer names it in `stale`.

Acknowledgements gather: while one command of a subscription is under way, what comes for it waits
and shares the next one, so that they cost appends little. At most `settlements_waiting_max` ids
wait on a node.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import NamedTuple

from node.api.arrivals import Arrivals, canceller
from node.api.bodies import AckBody, BodyReader, Decoder, FetchBody, NackBody
from node.api.filters import Scan
from node.api.levels import UNKNOWN_STORE_MS, Levels
from node.api.limits import ApiLimits
from node.api.media import sent
from node.api.names import checked_name
from node.api.parameters import timeout
from node.api.ports import Clock, Replica
from node.api.records import Pacer, written_page
from node.api.refusals import refusal
from node.api.routes import Reply, Route
from node.api.stores import CHANGE_PROBLEMS
from node.api.subscriptions import PATH, stalled
from node.api.wire import Answer, Request
from node.core import subscription_commands as asked
from node.core.outcomes import Fetched, Settled
from node.core.store import Store
from node.core.subscription import Subscription
from node.core.subscription_commands import Delivery
from node.errors import (
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    ReadBarrierTimeout,
    StoreMissing,
    SubscriptionMissing,
)

_ACTIONS = {"retry": asked.RETRY, "park": asked.PARK, "skip": asked.SKIP}
_ID = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,15})-([0-9a-f]{1,15})").fullmatch
_PROBLEMS = (
    *CHANGE_PROBLEMS,
    ReadBarrierTimeout,
    StoreMissing,
    SubscriptionMissing,
    PayloadTooLarge,
)


class _Waiting(NamedTuple):
    """The settlements of one request."""

    settlements: list[tuple[Delivery, int]]
    timeout_ms: int
    answered: asyncio.Future[list[int]]


class Deliveries:
    """The routes by which consumers work."""

    def __init__(
        self,
        replica: Replica,
        clock: Clock,
        levels: Levels,
        arrivals: Arrivals,
        bodies: BodyReader,
        limits: ApiLimits,
    ) -> None:
        self._replica = replica
        self._clock = clock
        self._levels = levels
        self._arrivals = arrivals
        self._bodies = bodies
        self._limits = limits
        self._timeout = timeout(limits)
        self._decode_fetch = Decoder(FetchBody, limits)
        self._decode_ack = Decoder(AckBody, limits)
        self._decode_nack = Decoder(NackBody, limits)
        self._waiting: dict[tuple[str, str], deque[_Waiting]] = {}
        self._waiting_ids = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def routes(self) -> list[Route]:
        """What this family offers."""
        return [
            Route(
                "POST",
                PATH + "/fetch",
                self.fetch,
                "Fetch events of a persistent subscription.",
                (Reply(200, "Events, each with the id of its delivery.", "Deliveries"),),
                (self._timeout,),
                body="FetchBody",
                problems=_PROBLEMS,
            ),
            Route(
                "POST",
                PATH + "/ack",
                self.ack,
                "Acknowledge events.",
                (Reply(200, "They are done.", "Settled"),),
                (self._timeout,),
                body="AckBody",
                problems=_PROBLEMS,
            ),
            Route(
                "POST",
                PATH + "/nack",
                self.nack,
                "Refuse events: to be tried again, parked, or skipped.",
                (Reply(200, "It is noted.", "Settled"),),
                (self._timeout,),
                body="NackBody",
                problems=_PROBLEMS,
            ),
        ]

    # --- fetching ----------------------------------------------------------------------------

    async def fetch(self, request: Request, store_name: str, name: str) -> Answer:
        """`POST /v1/stores/{store}/subscriptions/{name}/fetch`."""
        media = sent(request.message.headers)
        body = self._decode_fetch(await self._bodies.read(request), media)
        checked_name(body.consumer, "consumer")
        if body.max > asked.FETCHED_MAX:
            raise PayloadTooLarge("max: too many", limit=asked.FETCHED_MAX, actual=body.max)
        if body.wait_ms > self._limits.wait_ms_max:
            raise PayloadTooLarge(
                "wait_ms: too long", limit=self._limits.wait_ms_max, actual=body.wait_ms
            )
        wait_ms = min(request.parameters["timeout_ms"], UNKNOWN_STORE_MS)
        store = await self._levels.known(store_name, wait_ms)
        fetched = await self._fetched(request, store, name, body)
        store = await self._levels.known(store_name, wait_ms)
        records = [store.record(position) for position, _ in fetched.deliveries]
        beside = [
            {"delivery_id": f"{fetched.uid:x}-{position:x}-{attempt:x}", "attempt": attempt}
            for position, attempt in fetched.deliveries
        ]
        one = store.subscriptions.by_name.get(name)
        fields = {
            "lag": 0 if one is None else max(0, store.position - one.cursor),
            "stalled": None if one is None else stalled(one, store, self._clock()),
        }
        raw = await written_page(records, fields, request.wants, Pacer(), beside)
        return Answer(200, raw, request.wants.type)

    async def _fetched(self, request: Request, store: Store, name: str, body: FetchBody) -> Fetched:
        """What a fetch finds at once, or within `wait_ms`."""
        fetched = await self._propose(request, store.name, name, body)
        if fetched.deliveries or not body.wait_ms:
            return fetched
        self._arrivals.enter()
        try:
            async with asyncio.timeout(body.wait_ms / 1000):
                await self._until_there_is_something(request, store.name, name)
        except TimeoutError:
            pass
        finally:
            self._arrivals.leave()
        return await self._propose(request, store.name, name, body)

    async def _propose(self, request: Request, store: str, name: str, body: FetchBody) -> Fetched:
        """Fetch, and go on where a command ended at its own bounds with nothing found."""
        while True:
            command = asked.fetch(store, self._clock(), name, body.consumer, body.max)
            outcome, _ = await self._replica.propose(command, request.parameters["timeout_ms"])
            if not isinstance(outcome, Fetched):
                raise refusal(outcome)
            if outcome.deliveries or not outcome.has_more:
                return outcome

    async def _until_there_is_something(self, request: Request, store_name: str, name: str) -> None:
        """Return when a fetch may find something, or would say why it never will."""
        looked = 0
        while not self._arrivals.stopped:
            change = self._arrivals.next(store_name)
            request.on_gone = canceller(change)
            try:
                store = await self._levels.known(store_name, UNKNOWN_STORE_MS)
                one = store.subscriptions.by_name.get(name)
                if one is None or self._may_hand_out(one):
                    return
                found, looked = await self._matches_ahead(one, store, max(looked, one.cursor))
                if found:
                    return
                await asyncio.wait({change}, timeout=self._expires_in_s(one))
                if change.cancelled():
                    raise asyncio.CancelledError
            finally:
                request.on_gone = None
                self._arrivals.forget(store_name, change)

    def _may_hand_out(self, one: Subscription) -> bool:
        expiry_us = one.next_expiry_us()
        if expiry_us is not None and expiry_us <= self._clock():
            return True
        return bool(one.ready) and one.room > 0

    async def _matches_ahead(self, one: Subscription, store: Store, after: int) -> tuple[bool, int]:
        """Whether there is an event behind `after` that is wanted, and up to where was looked."""
        if one.room <= 0:
            return False, after
        scan = Scan(one.definition.wanted, False, 1, after, None, [])
        while not scan.rows and not scan.is_end(store.position):
            await scan.run(store, self._limits, Pacer(), self._limits.positions_per_scan_max)
        return bool(scan.rows), scan.next

    def _expires_in_s(self, one: Subscription) -> float | None:
        expiry_us = one.next_expiry_us()
        return None if expiry_us is None else max(0.001, (expiry_us - self._clock()) / 1e6)

    # --- settling ----------------------------------------------------------------------------

    async def ack(self, request: Request, store: str, name: str) -> Answer:
        """`POST /v1/stores/{store}/subscriptions/{name}/ack`."""
        media = sent(request.message.headers)
        body = self._decode_ack(await self._bodies.read(request), media)
        return await self._settled(request, store, name, body.delivery_ids, asked.ACK)

    async def nack(self, request: Request, store: str, name: str) -> Answer:
        """`POST /v1/stores/{store}/subscriptions/{name}/nack`."""
        media = sent(request.message.headers)
        body = self._decode_nack(await self._bodies.read(request), media)
        return await self._settled(request, store, name, body.delivery_ids, _ACTIONS[body.action])

    async def _settled(
        self, request: Request, store: str, name: str, ids: list[str], action: int
    ) -> Answer:
        if len(ids) > asked.SETTLED_MAX:
            raise PayloadTooLarge(
                "delivery_ids: too many", limit=asked.SETTLED_MAX, actual=len(ids)
            )
        if self._waiting_ids + len(ids) > self._limits.settlements_waiting_max:
            raise Overloaded("too many settlements wait", limit="settlements_waiting_max")
        settlements = [(_delivery(one), action) for one in ids]
        answered: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        key = store, name
        if key not in self._waiting:
            self._waiting[key] = deque()
            task = asyncio.create_task(self._settle(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._waiting[key].append(_Waiting(settlements, request.parameters["timeout_ms"], answered))
        self._waiting_ids += len(ids)
        stale = await answered
        media = request.wants
        found = {"settled": len(ids) - len(stale), "stale": [ids[at] for at in stale]}
        return Answer(200, media.encode(found), media.type)

    async def _settle(self, key: tuple[str, str]) -> None:
        """One command after another, as long as something waits."""
        waiting = self._waiting[key]
        await asyncio.sleep(0)  # what comes in this turn of the loop goes together
        while waiting:
            batch = _batch(waiting)
            settlements = [each for one in batch for each in one.settlements]
            self._waiting_ids -= len(settlements)
            try:
                command = asked.settle(key[0], self._clock(), key[1], settlements)
                patience_ms = max(one.timeout_ms for one in batch)
                outcome, _ = await self._replica.propose(command, patience_ms)
                if not isinstance(outcome, Settled):
                    raise refusal(outcome)
            except Exception as error:
                for one in batch:
                    if not one.answered.done():
                        one.answered.set_exception(error)
            else:
                _tell(batch, outcome)
        del self._waiting[key]


def _batch(waiting: deque[_Waiting]) -> list[_Waiting]:
    """As many requests from the beginning as one command may settle."""
    batch = [waiting.popleft()]
    size = len(batch[0].settlements)
    while waiting and size + len(waiting[0].settlements) <= asked.SETTLED_MAX:
        batch.append(waiting.popleft())
        size += len(batch[-1].settlements)
    return batch


def _tell(batch: list[_Waiting], outcome: Settled) -> None:
    """Give each request what is stale of its own."""
    stale = set(outcome.stale)
    first = 0
    for one in batch:
        count = len(one.settlements)
        if not one.answered.done():
            one.answered.set_result([at for at in range(count) if first + at in stale])
        first += count


def _delivery(text: str) -> Delivery:
    parts = _ID(text)
    if parts is None:
        raise InvalidRequest(f"{text[:80]!r} is no delivery id", parameter="delivery_ids")
    uid, position, attempt = (int(part, 16) for part in parts.groups())
    return Delivery(uid & (2**63 - 1), position, attempt)
