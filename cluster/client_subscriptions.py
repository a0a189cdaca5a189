"""Persistent subscriptions, for the client: events that several consumers share.

    await client.create_subscription("mails", Filter(types=("OrderPlaced",)), max_retries=3)
    async for parked in client.parked("mails"):            # what was given up, and why
        print(parked.event.position, parked.attempts, parked.why)
    print(await client.replay_parked("mails"))             # have it handed out once more

The store keeps who has what and what became of it. Each event that matches is handed to one
consumer (`client_consumer`) after the other until one acknowledges it: at least once, and in order
per stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.client_asking import Asking
from cluster.client_consumer import IN_FLIGHT, Consumer
from cluster.client_errors import NotFound
from cluster.client_events import Filter, Recorded
from cluster.client_values import quoted

_PAGE_EVENTS = 1_000


@dataclass(frozen=True, slots=True)
class PersistentSubscription:
    """How a subscription is.

    `position` is how far its scan has got, `lag` how many positions are left; of `streams_behind`
    there may be events before it that wait for one in flight. One that is made anew misses nothing
    but what is parked here if it starts after `settled_position`. `stalled` says why nothing moves
    although something should: "parked_full", "not_acknowledged" or "no_consumer". `totals` counts
    what happened since it was made, `consumers` what each has in flight. Times are in microseconds
    since 1970.
    """

    name: str
    wanted: Filter
    stream: str | None
    start_after: int | Literal["end"]
    ack_timeout_ms: int
    max_retries: int
    max_in_flight: int
    position: int
    settled_position: int
    lag: int
    streams_behind: int
    in_flight: int
    waiting: int
    parked: int
    totals: Mapping[str, int]
    consumers: Mapping[str, int]
    last_fetch_us: int
    last_progress_us: int
    stalled: str | None

    @property
    def done(self) -> bool:
        """Whether every event so far was acknowledged, skipped or parked."""
        return not (self.lag or self.streams_behind or self.in_flight or self.waiting)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> PersistentSubscription:
        """From the API's form."""
        wanted = plain["filter"]
        same = ("name", "start_after", "ack_timeout_ms", "max_retries", "max_in_flight",
                "position", "settled_position", "lag", "streams_behind", "in_flight", "waiting",
                "parked", "totals", "consumers", "stalled")  # fmt: skip
        return cls(
            **{name: plain[name] for name in same},
            wanted=Filter(tuple(wanted["types"]), wanted["stream_prefix"], tuple(wanted["where"])),
            stream=wanted["stream"],
            last_fetch_us=plain["last_fetch_epoch"],
            last_progress_us=plain["last_progress_epoch"],
        )


@dataclass(frozen=True, slots=True)
class Parked:
    """An event that was given up after so many `attempts`, last with `consumer`.

    `why` is "by_consumer" (one said so) or "after_retries"; `parked_us` in microseconds since 1970.
    """

    event: Recorded
    attempts: int
    why: str
    parked_us: int
    consumer: str

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Parked:
        """From the API's form."""
        return cls(
            Recorded.of(plain),
            plain["attempts"],
            plain["why"],
            plain["parked_epoch"],
            plain["consumer"],
        )


class SubscriptionCalls(Asking):
    """What a client can do with persistent subscriptions. Every method raises `ClientError`."""

    async def create_subscription(
        self,
        name: str,
        wanted: Filter | None = None,
        stream: str | None = None,
        start_after: int | Literal["end"] = 0,
        ack_timeout_ms: int = 30_000,
        max_retries: int = 10,
        max_in_flight: int = 1_000,
    ) -> None:
        """Make a subscription of the events behind a position, or behind the "end".

        A delivery is over after `ack_timeout_ms`, 100 ms to a day; an event is delivered again up
        to `max_retries` times (at most 1,000), then parked; `max_in_flight` (at most 10,000) bounds
        what all consumers together have not settled. If it is there, its bounds are changed. Raises
        `SubscriptionExists` if it is there with another filter or start.
        """
        body = {
            "filter": {**(wanted or Filter()).plain(), "stream": stream},
            "start_after": start_after,
            "ack_timeout_ms": ack_timeout_ms,
            "max_retries": max_retries,
            "max_in_flight": max_in_flight,
        }
        await self._ask("PUT", subscription_path(name), [], body)

    async def subscription(self, name: str) -> PersistentSubscription | None:
        """How a subscription is; None if there is none of this name."""
        try:
            return PersistentSubscription.of(await self._read(subscription_path(name), []))
        except NotFound as error:
            if error.code == "subscription_not_found":
                return None
            raise

    async def subscriptions(self) -> list[PersistentSubscription]:
        """All of the store, by name."""
        found = await self._read("/subscriptions", [])
        return [PersistentSubscription.of(plain) for plain in found["subscriptions"]]

    async def delete_subscription(self, name: str) -> bool:
        """Remove it with all that it remembers; False if there was none, or an earlier try had."""
        try:
            await self._ask("DELETE", subscription_path(name), [])
        except NotFound as error:
            if error.code == "subscription_not_found":
                return False
            raise
        return True

    def consume(self, name: str, consumer: str, max_in_flight: int = IN_FLIGHT) -> Consumer:
        """Work on a subscription under the name `consumer`; see `client_consumer`.

        At most `max_in_flight` deliveries, 1 to 1,000, are held at a time: those that were handed
        out and are not settled, and those fetched ahead.
        """
        return Consumer(self, subscription_path(name), consumer, max_in_flight)

    async def parked(self, name: str, after: int = 0) -> AsyncIterator[Parked]:
        """The parked events behind a position, in order."""
        following: int | None = after
        while following is not None:
            query = [("after", str(following)), ("limit", str(_PAGE_EVENTS))]
            page = await self._read(f"{subscription_path(name)}/parked", query)
            for plain in page["events"]:
                yield Parked.of(plain)
            following = page["next"]

    async def replay_parked(self, name: str, positions: Sequence[int] | None = None) -> int:
        """Have parked events delivered again, all or those at at most 1,000 positions; how many.

        Where the answer to a first try was lost, the number is only that of the last try.
        """
        body = {} if positions is None else {"positions": list(positions)}
        answer = await self._ask("POST", f"{subscription_path(name)}/parked/replay", [], body)
        return int(answer["replayed"])


def subscription_path(name: str) -> str:
    """Where a subscription is, below its store."""
    return f"/subscriptions/{quoted(name)}"
