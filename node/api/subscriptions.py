"""Persistent subscriptions: making one, looking at it, and what is parked in it.

What they promise stands in `core.subscription`; handing out and settling in `deliveries`. Looking
at one tells how far it is and whether it is stalled: `parked_full` (it hands out nothing until
something is replayed), `not_acknowledged` (what is in flight has failed before, or is so for long,
and nothing was settled for `_PATIENCE_US` or the ack timeout), `no_consumer` (there is something to
do, and nobody fetched for as long). `settled_position` tells behind which position another one must
begin to miss nothing but what is parked here.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from node.api.answers import Answer
from node.api.bodies import BodyReader, Decoder, ReplayBody, SubscriptionBody
from node.api.levels import READ_PROBLEMS, Levels
from node.api.limits import ApiLimits
from node.api.media import sent
from node.api.pacing import Pacer
from node.api.parameters import integer, page_limit, timeout
from node.api.ports import Clock, Replica
from node.api.records import written_page
from node.api.refusals import refusal
from node.api.routes import Reply, Route
from node.api.stores import CHANGE_PROBLEMS
from node.api.wanted import described, filter_of
from node.api.wire import Request
from node.core import subscription_commands as asked
from node.core.fields import NUMBER_MAX
from node.core.outcomes import Replayed, Subscribed, Unsubscribed
from node.core.store import Store
from node.core.subscription import BY_CONSUMER, MOVED_MAX, PARKED_MAX, Subscription
from node.errors import (
    ExesdbError,
    InvalidCount,
    InvalidRequest,
    OutcomeUnknown,
    PayloadTooLarge,
    StoreMissing,
    SubscriptionExists,
    SubscriptionMissing,
)

PATH = "/v1/stores/{store}/subscriptions/{name}"

_PATIENCE_US = 30_000_000
_CHANGES = (*CHANGE_PROBLEMS, StoreMissing)


class SubscriptionRoutes:
    """The routes about subscriptions as a whole."""

    def __init__(
        self, replica: Replica, clock: Clock, levels: Levels, bodies: BodyReader, limits: ApiLimits
    ) -> None:
        self._replica = replica
        self._clock = clock
        self._levels = levels
        self._bodies = bodies
        self._limits = limits
        self._timeout = timeout(limits)
        self._decode = Decoder(SubscriptionBody, limits)
        self._decode_replay = Decoder(ReplayBody, limits, optional=True)

    def routes(self) -> list[Route]:
        """What this family offers."""
        levels = self._levels.store_parameters
        missing = (*READ_PROBLEMS, SubscriptionMissing)
        return [
            Route(
                "GET",
                "/v1/stores/{store}/subscriptions",
                self.all,
                "List the persistent subscriptions.",
                (Reply(200, "All of the store, sorted by name.", "SubscriptionList"),),
                levels,
                problems=READ_PROBLEMS,
            ),
            Route(
                "GET",
                PATH,
                self.one,
                "Look at a persistent subscription.",
                (Reply(200, "How it is.", "Subscription"),),
                levels,
                problems=missing,
            ),
            Route(
                "PUT",
                PATH,
                self.put,
                "Make a persistent subscription, or change its bounds.",
                (
                    Reply(201, "It was made.", "SubscriptionMade"),
                    Reply(200, "It was there already.", "SubscriptionMade"),
                ),
                (self._timeout,),
                body="SubscriptionBody",
                problems=(*_CHANGES, SubscriptionExists, PayloadTooLarge),
            ),
            Route(
                "DELETE",
                PATH,
                self.delete,
                "Remove a persistent subscription.",
                (Reply(204, "It is gone."),),
                (self._timeout,),
                problems=(*_CHANGES, SubscriptionMissing),
            ),
            *self._parked_routes(),
        ]

    def _parked_routes(self) -> list[Route]:
        levels = self._levels.store_parameters
        return [
            Route(
                "GET",
                PATH + "/parked",
                self.parked,
                "List parked events that were not removed, by position.",
                (Reply(200, "A page of parked events.", "ParkedPage"),),
                (
                    integer("after", "Begin behind this position.", default=0),
                    page_limit(self._limits, InvalidCount),
                    *levels,
                ),
                problems=(*READ_PROBLEMS, SubscriptionMissing),
            ),
            Route(
                "POST",
                PATH + "/parked/replay",
                self.replay,
                "Deliver parked events again.",
                (Reply(200, "They will be handed out first.", "Replayed"),),
                (self._timeout,),
                body="ReplayBody",
                body_required=False,
                problems=(*_CHANGES, SubscriptionMissing, PayloadTooLarge),
            ),
        ]

    async def all(self, request: Request, store_name: str) -> Answer:
        """`GET /v1/stores/{store}/subscriptions`."""
        store = await self._levels.store(request, store_name)
        found = sorted(store.subscriptions.by_name.items())
        pacer, statuses = Pacer(), []
        for _, one in found:
            statuses.append(status(one, store, self._clock()))
            await pacer.breathe()
        return _answer(request, 200, {"subscriptions": statuses})

    async def one(self, request: Request, store_name: str, name: str) -> Answer:
        """`GET /v1/stores/{store}/subscriptions/{name}`."""
        store = await self._levels.store(request, store_name)
        return _answer(request, 200, status(_known(store, name), store, self._clock()))

    async def put(self, request: Request, store: str, name: str) -> Answer:
        """`PUT /v1/stores/{store}/subscriptions/{name}`."""
        media = sent(request.message.headers)
        body = await self._decode(await self._bodies.read(request), media)
        definition = _definition(body)
        command = asked.subscribe(store, self._clock(), name, definition)
        outcome, _ = await self._replica.propose(command, request.parameters["timeout_ms"])
        if not isinstance(outcome, Subscribed):
            raise refusal(outcome)
        return _answer(request, 201 if outcome.created else 200, {"name": name})

    async def delete(self, request: Request, store: str, name: str) -> Answer:
        """`DELETE /v1/stores/{store}/subscriptions/{name}`."""
        command = asked.unsubscribe(store, name)
        outcome, _ = await self._replica.propose(command, request.parameters["timeout_ms"])
        if not isinstance(outcome, Unsubscribed):
            raise refusal(outcome)
        return Answer(204)

    async def parked(self, request: Request, store_name: str, name: str) -> Answer:
        """`GET /v1/stores/{store}/subscriptions/{name}/parked`."""
        store = await self._levels.store(request, store_name)
        one = _known(store, name)
        after, limit = request.parameters["after"], request.parameters["limit"]
        positions = sorted(at for at in one.parked if at > after and store.kept(at))
        page, size = [], 0
        for position in positions[:limit]:
            page.append(store.record(position))
            size += len(page[-1].frame)
            if size >= self._limits.page_bytes_max:
                break
        beside = [_parked(one, record.position) for record in page]
        following = page[-1].position if len(page) < len(positions) else None
        media = request.wants
        raw = await written_page(page, {"next": following}, media, Pacer(), beside)
        return Answer(200, raw, media.type)

    async def replay(self, request: Request, store: str, name: str) -> Answer:
        """`POST /v1/stores/{store}/subscriptions/{name}/parked/replay`."""
        raw = await self._bodies.read(request)
        media = sent(request.message.headers) if raw else request.wants
        positions = (await self._decode_replay(raw, media)).positions
        if positions is not None and not positions:
            return _answer(request, 200, {"replayed": 0})
        positions = positions or []
        if len(positions) > asked.SETTLED_MAX:
            raise PayloadTooLarge(
                "positions: too many", limit=asked.SETTLED_MAX, actual=len(positions)
            )
        if not all(0 <= position <= NUMBER_MAX for position in positions):
            raise InvalidRequest("positions: not all of them are positions", parameter="positions")
        replayed = 0
        for _ in range(-(-PARKED_MAX // MOVED_MAX)):  # all that were parked when it came
            command = asked.replay(store, self._clock(), name, positions)
            try:
                outcome, _ = await self._replica.propose(command, request.parameters["timeout_ms"])
            except ExesdbError as error:
                if replayed:
                    raise OutcomeUnknown("not all of them are replayed; ask again") from error
                raise
            if not isinstance(outcome, Replayed):
                raise refusal(outcome)
            replayed += outcome.events
            if not outcome.has_more:
                break
        return _answer(request, 200, {"replayed": replayed})


def status(one: Subscription, store: Store, now_us: int) -> dict[str, Any]:
    """How a subscription is, judged by this node's clock."""
    wanted, start, ack_timeout_ms, max_retries, max_in_flight = one.definition
    timeout_us = ack_timeout_ms * 1_000
    return {
        "name": one.name,
        "filter": described(wanted),
        "start_after": "end" if start == asked.START_AT_END else start,
        "ack_timeout_ms": ack_timeout_ms,
        "max_retries": max_retries,
        "max_in_flight": max_in_flight,
        "position": one.cursor,
        "settled_position": one.settled_up_to,
        "lag": max(0, store.position - one.cursor),
        "streams_behind": sum(line.behind is not None for line in one.lines.values()),
        "in_flight": len(one.in_flight),
        "overdue": sum(
            handed.handed_us + timeout_us <= now_us for handed in one.in_flight.values()
        ),
        "waiting": one.waiting,
        "parked": len(one.parked),
        "totals": one.counts._asdict(),
        "consumers": dict(Counter(handed.consumer for handed in one.in_flight.values())),
        "last_fetch_epoch": one.fetched_us,
        "last_progress_epoch": one.progressed_us,
        "stalled": stalled(one, store, now_us),
    }


def stalled(one: Subscription, store: Store, now_us: int) -> str | None:
    """Why nothing moves although something should; None if all is well."""
    if len(one.parked) >= PARKED_MAX:
        return "parked_full"
    patience_us = max(_PATIENCE_US, one.definition.ack_timeout_ms * 1_000)
    if _is_in_vain(one, store, now_us - patience_us):
        return "not_acknowledged"
    expiry_us = one.next_expiry_us()
    if one.ready or (expiry_us is not None and expiry_us <= now_us):
        since_us = one.fetched_us
    elif one.cursor < store.position:
        since_us = max(one.fetched_us, store.record(one.cursor + 1).created_us)
    else:
        return None
    return "no_consumer" if now_us - since_us > patience_us else None


def _is_in_vain(one: Subscription, store: Store, before_us: int) -> bool:
    """Whether consumers have events that came before that time, and have not settled any since."""
    if not one.in_flight or one.progressed_us >= before_us:
        return False
    if store.record(min(one.in_flight)).created_us >= before_us:
        return False
    return any(handed.failures or handed.handed_us < before_us for handed in one.in_flight.values())


def _definition(body: SubscriptionBody) -> asked.Definition:
    """Raises `InvalidRequest`, `PayloadTooLarge`."""
    start = asked.START_AT_END if body.start_after == "end" else body.start_after
    return asked.Definition(
        filter_of(body.filter),
        int(start),
        body.ack_timeout_ms,
        body.max_retries,
        body.max_in_flight,
    )


def _parked(one: Subscription, position: int) -> dict[str, Any]:
    attempt, why, parked_us, consumer = one.parked[position]
    return {
        "attempts": attempt,
        "why": "by_consumer" if why == BY_CONSUMER else "after_retries",
        "parked_epoch": parked_us,
        "consumer": consumer,
    }


def _known(store: Store, name: str) -> Subscription:
    found = store.subscriptions.by_name.get(name)
    if found is None:
        raise SubscriptionMissing(
            f"no subscription {name!r} in store {store.name!r}",
            store=store.name,
            subscription=name,
        )
    return found


def _answer(request: Request, code: int, body: dict[str, Any]) -> Answer:
    media = request.wants
    return Answer(code, media.encode(body), media.type)
