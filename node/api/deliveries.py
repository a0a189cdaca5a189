"""What consumers of a persistent subscription ask for over HTTP: events, and to settle them.

Fetching and waiting is the business of `desks`, settling that of `settlements`. A fetch that waits
proposes once at its beginning and once at its end, so that the cursor also passes what did not
match, and the lag of an idle subscription is 0.
"""

from __future__ import annotations

import asyncio

from node.api.answers import Answer
from node.api.arrivals import canceller
from node.api.bodies import AckBody, BodyReader, Decoder, FetchBody, NackBody
from node.api.desks import Desks
from node.api.levels import UNKNOWN_STORE_MS, Levels
from node.api.limits import ApiLimits
from node.api.media import sent
from node.api.names import checked_name
from node.api.pacing import Pacer
from node.api.parameters import timeout
from node.api.ports import Clock
from node.api.records import written_page
from node.api.routes import Reply, Route
from node.api.settlements import ACTIONS, deliveries_of, delivery_id, settled_body
from node.api.stores import CHANGE_PROBLEMS
from node.api.subscriptions import PATH, stalled
from node.api.wire import Request
from node.core import subscription_commands as asked
from node.core.outcomes import Fetched
from node.core.store import Store
from node.errors import (
    NotReady,
    PayloadTooLarge,
    ReadBarrierTimeout,
    StoreMissing,
    SubscriptionMissing,
)

_PROBLEMS = (
    *CHANGE_PROBLEMS,
    ReadBarrierTimeout,
    StoreMissing,
    SubscriptionMissing,
    PayloadTooLarge,
)


class Deliveries:
    """The routes by which consumers work."""

    def __init__(
        self,
        clock: Clock,
        levels: Levels,
        desks: Desks,
        bodies: BodyReader,
        limits: ApiLimits,
    ) -> None:
        self._clock = clock
        self._levels = levels
        self._arrivals = desks.arrivals
        self._desks = desks
        self._settlements = desks.settlements
        self._bodies = bodies
        self._limits = limits
        self._timeout = timeout(limits)
        self._decode_fetch = Decoder(FetchBody, limits)
        self._decode_ack = Decoder(AckBody, limits)
        self._decode_nack = Decoder(NackBody, limits)

    def routes(self) -> list[Route]:
        """What this family offers."""
        return [
            Route(
                "POST",
                PATH + "/fetch",
                self.fetch,
                "Fetch events of a persistent subscription: at most one of each stream, and none "
                "of a stream while an earlier event of it is with a consumer.",
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
        body = await self._decode_fetch(await self._bodies.read(request), media)
        checked_name(body.consumer, "consumer")
        if body.max > asked.FETCHED_MAX:
            raise PayloadTooLarge("max: too many", limit=asked.FETCHED_MAX, actual=body.max)
        if body.wait_ms > self._limits.wait_ms_max:
            raise PayloadTooLarge(
                "wait_ms: too long", limit=self._limits.wait_ms_max, actual=body.wait_ms
            )
        request.on_gone = _stays_no_longer
        wait_ms = min(request.parameters["timeout_ms"], UNKNOWN_STORE_MS)
        store = await self._levels.known(store_name, wait_ms)
        fetched = await self._fetched(request, store, name, body)
        store = await self._levels.known(store_name, wait_ms)
        fetched = self._desks.kept(store, name, fetched)
        records = [store.record(position) for position, _ in fetched.deliveries]
        beside = [
            {"delivery_id": delivery_id(fetched.uid, position, attempt), "attempt": attempt}
            for position, attempt in fetched.deliveries
        ]
        one = store.subscriptions.by_name.get(name)
        fields = {
            "lag": 0 if one is None else max(0, store.position - one.cursor),
            "stalled": None if one is None else stalled(one, store, self._clock()),
        }
        raw = await written_page(records, fields, request.wants, Pacer(), beside)
        if request.is_gone:
            self._desks.give_back(store.name, name, fetched)
        return Answer(200, raw, request.wants.type)

    async def _fetched(self, request: Request, store: Store, name: str, body: FetchBody) -> Fetched:
        """What a fetch finds at once, or within `wait_ms`."""
        wish = store.name, name, body.consumer, body.max, request.parameters["timeout_ms"]
        fetched = await self._desks.fetch(*wish)
        if fetched.deliveries or not body.wait_ms or request.is_gone:
            return fetched
        self._arrivals.enter()
        try:
            with self._desks.at(store.name, name) as desk:
                taking = asyncio.create_task(desk.take(body.consumer, body.max))
                request.on_gone = canceller(taking)
                async with asyncio.timeout(body.wait_ms / 1000):
                    return await taking
        except TimeoutError:
            if not taking.cancelled():  # both were over in one turn of the loop
                return taking.result()
            return await self._desks.fetch(*wish)
        except NotReady:  # where the node stops
            return await self._desks.fetch(*wish)
        finally:
            request.on_gone = _stays_no_longer
            self._arrivals.leave()

    # --- settling ----------------------------------------------------------------------------

    async def ack(self, request: Request, store: str, name: str) -> Answer:
        """`POST /v1/stores/{store}/subscriptions/{name}/ack`."""
        media = sent(request.message.headers)
        body = await self._decode_ack(await self._bodies.read(request), media)
        return await self._settled(request, store, name, body.delivery_ids, asked.ACK)

    async def nack(self, request: Request, store: str, name: str) -> Answer:
        """`POST /v1/stores/{store}/subscriptions/{name}/nack`."""
        media = sent(request.message.headers)
        body = await self._decode_nack(await self._bodies.read(request), media)
        return await self._settled(request, store, name, body.delivery_ids, ACTIONS[body.action])

    async def _settled(
        self, request: Request, store: str, name: str, ids: list[str], action: int
    ) -> Answer:
        patience_ms = request.parameters["timeout_ms"]
        deliveries = deliveries_of(ids)
        stale = await self._settlements.settle(store, name, deliveries, action, patience_ms)
        media = request.wants
        return Answer(200, media.encode(settled_body(ids, stale)), media.type)


def _stays_no_longer() -> None:
    """A fetch is for a client that stays to settle what it gets: the connection ends with it (see
    `Connection.eof_received`), and `is_gone` is asked in the end.
    """
