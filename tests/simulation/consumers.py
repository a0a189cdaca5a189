"""Clients that share persistent subscriptions: they fetch, settle, let deadlines pass, replay.

They speak to any node, whose clock may be hours off, and repeat what got no answer elsewhere; so a
fetch whose answer was lost leaves deliveries that nobody knows of, and a delivery may be settled
twice. Now and then the subscription is removed, or its bounds are changed. In a share of the seeds
only, and each of them does a bounded number of things.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from node.core import subscription_commands as asked
from node.core.filters import Filter
from node.core.outcomes import (
    Fetched,
    Settled,
    Subscribed,
    SubscriptionNotFound,
    Unsubscribed,
)
from node.core.subscription_commands import Definition, Delivery
from tests.simulation.nodes import STORE
from tests.simulation.told import ToldClient

SHARE = 0.4  # of the seeds
STEPS_MAX = 24
PAUSE_S = 0.4
CALM_ROUNDS = 3

FILTERS = (
    Filter(),
    Filter(types=("t1",)),
    Filter(types=("t0", "t2"), stream_prefix="s"),
    Filter(stream="s1"),
    Filter(types=("t1", "t2"), stream="s2"),
)


class Consumer(ToldClient):
    """One of those that share a subscription."""

    def __init__(self, name: str, subscription: str, definition: Definition, *others: Any) -> None:
        super().__init__(name, *others)
        self._subscription = subscription
        self._definition = definition
        self._steps_left = STEPS_MAX
        self._held: list[Delivery] = []
        self.delivered = self.settled = 0

    async def run(self, until: float, pause_s: float) -> None:
        """Requests, one after the other."""
        while self._loop.time() < until and self._steps_left:
            await asyncio.sleep(self._chance.expovariate(1 / PAUSE_S))
            self._steps_left -= 1
            kinds = [self._fetch, self._settle, self._replay, self._change_the_bounds]
            (step,) = self._chance.choices([*kinds, self._remove], [8, 8, 1, 0.5, 0.3])
            await step()

    async def settles_in_calm(self) -> None:
        """Without faults, what is fetched is handed out, and settled."""
        for _ in range(CALM_ROUNDS):
            await self._fetch()
            await self._acknowledge(self._held)

    # --- steps -------------------------------------------------------------------------------

    async def _fetch(self) -> None:
        most = self._chance.randint(1, 5)
        outcome = await self._ask(
            lambda now_us: asked.fetch(STORE, now_us, self._subscription, self._name, most)
        )
        if isinstance(outcome, SubscriptionNotFound):
            await self._subscribe()
        elif isinstance(outcome, Fetched):
            self._held += [Delivery(outcome.uid, *one) for one in outcome.deliveries]
            self.delivered += len(outcome.deliveries)
        elif outcome is not None:
            self._fail(f"I17: a fetch was answered {outcome}")

    async def _settle(self) -> None:
        """Some of what it holds; the rest it lets pass, or settles too late."""
        chance = self._chance
        some = [one for one in self._held if chance.random() < 0.8]
        kept = [one for one in self._held if one not in some and chance.random() < 0.5]
        actions = chance.choices(range(asked.GIVE_BACK + 1), [10, 4, 1, 1, 1], k=len(some))
        self._held = kept + [one for one in some if chance.random() < 0.1]
        await self._book(list(zip(some, actions, strict=True)))

    async def _acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self._held = []
        await self._book([(one, asked.ACK) for one in deliveries])

    async def _book(self, settlements: list[tuple[Delivery, int]]) -> None:
        if not settlements:
            return
        outcome = await self._ask(
            lambda now_us: asked.settle(STORE, now_us, self._subscription, settlements)
        )
        if isinstance(outcome, Settled):
            self.settled += len(settlements) - len(outcome.stale)
        elif not isinstance(outcome, SubscriptionNotFound | None):
            self._fail(f"I17: a settlement was answered {outcome}")

    async def _replay(self) -> None:
        named = [one.position for one in self._held] if self._chance.random() < 0.3 else []
        await self._ask(lambda now_us: asked.replay(STORE, now_us, self._subscription, named))

    async def _subscribe(self) -> None:
        outcome = await self._ask(
            lambda now_us: asked.subscribe(STORE, now_us, self._subscription, self._definition)
        )
        if not isinstance(outcome, Subscribed | None):
            self._fail(f"I17: a subscription was answered {outcome}")

    async def _change_the_bounds(self) -> None:
        self._definition = bounded(self._chance, self._definition)
        await self._subscribe()

    async def _remove(self) -> None:
        outcome = await self._ask(lambda _: asked.unsubscribe(STORE, self._subscription))
        if not isinstance(outcome, Unsubscribed | SubscriptionNotFound | None):
            self._fail(f"I17: a removal was answered {outcome}")


def made(chance: random.Random, *others: Any) -> list[Consumer]:
    """The consumers of a seed, which may be none: two or three of each subscription."""
    if chance.random() >= SHARE:
        return []
    consumers = []
    for subscription in ["u", "v"][: chance.randint(1, 2)]:
        start = chance.choice([0, 0, 3, asked.START_AT_END])
        timeout_ms = chance.choice([100, 1000, 5000])
        definition = bounded(chance, Definition(chance.choice(FILTERS), start, timeout_ms, 0, 1))
        for number in range(chance.randint(2, 3) if subscription == "u" else 1):
            own = random.Random(chance.random())
            name = f"{subscription}{number}"
            *asking, fail = others
            consumers.append(Consumer(name, subscription, definition, *asking, own, fail))
    return consumers


def bounded(chance: random.Random, definition: Definition) -> Definition:
    """The definition with other bounds."""
    return definition._replace(
        max_retries=chance.choice([0, 1, 3]), max_in_flight=chance.choice([1, 3, 50])
    )
