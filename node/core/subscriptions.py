"""The persistent subscriptions of one store, by name.

`apply` is what `state` calls for their commands. Whatever is asked of a subscription that exists
counts as a change of it: a command carries the time, and the time is part of what all nodes share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from node.core.outcomes import (
    Outcome,
    Subscribed,
    SubscriptionExists,
    SubscriptionNotFound,
    SubscriptionsFull,
    Unsubscribed,
)
from node.core.subscription import Subscription
from node.core.subscription_commands import (
    START_AT_END,
    Definition,
    Fetch,
    Settle,
    Subscribe,
    SubscriptionCommand,
    Unsubscribe,
)

if TYPE_CHECKING:  # a store holds its subscriptions
    from node.core.store import Store

SUBSCRIPTIONS_MAX = 1_000


class Subscriptions:
    """All of one store. `changed_index` is the Raft index of the last change to any of them."""

    def __init__(self) -> None:
        self.by_name: dict[str, Subscription] = {}
        self.changed_index = 0

    def apply(
        self, command: SubscriptionCommand, store: Store, place: int, index: int
    ) -> tuple[Outcome, bool]:
        """The outcome, and whether something changed; `place` is that of the command, in the entry
        at `index`."""
        if isinstance(command, Subscribe):
            outcome = self._subscribe(command, store, place)
        else:
            known = self.by_name.get(command.name)
            if known is None:
                return SubscriptionNotFound(command.store, command.name), False
            outcome = self._apply_to(known, command, store)
        changed = not isinstance(outcome, SubscriptionExists | SubscriptionsFull)
        if changed:
            self.changed_index = index
            if command.name in self.by_name:
                self.by_name[command.name].changed_index = index
        return outcome, changed

    def load(self, subscriptions: Mapping[str, Subscription], changed_index: int) -> None:
        """Set all of them, as of `changed_index`."""
        self.by_name = dict(subscriptions)
        self.changed_index = changed_index

    def check(self, store: Store) -> None:
        """Raise `AssertionError` unless everything that must hold of them holds."""
        assert len(self.by_name) <= SUBSCRIPTIONS_MAX
        for name, one in self.by_name.items():
            assert one.name == name
            assert one.changed_index <= self.changed_index
            one.check(store)

    def _apply_to(self, known: Subscription, command: SubscriptionCommand, store: Store) -> Outcome:
        if isinstance(command, Unsubscribe):
            del self.by_name[command.name]
            return Unsubscribed(command.name)
        if isinstance(command, Fetch):
            return known.fetch(store, command.now_us, command.consumer, command.max_events)
        if isinstance(command, Settle):
            return known.settle(command.now_us, command.settlements)
        assert not isinstance(command, Subscribe)
        return known.replay(store, command.now_us, command.positions)

    def _subscribe(self, command: Subscribe, store: Store, place: int) -> Outcome:
        name, definition = command.name, command.definition
        known = self.by_name.get(name)
        if known is not None:
            return _redefined(known, definition)
        if len(self.by_name) >= SUBSCRIPTIONS_MAX:
            return SubscriptionsFull(SUBSCRIPTIONS_MAX)
        start = definition.start_after
        cursor = store.position if start == START_AT_END else start
        made = self.by_name[name] = Subscription(name, place, definition, cursor)
        made.clock_us = made.fetched_us = made.progressed_us = command.now_us
        return Subscribed(name, True)


def _redefined(known: Subscription, definition: Definition) -> Subscribed | SubscriptionExists:
    """Change the bounds. Filter and start stay: events would be missed, or come again."""
    for field in ("wanted", "start_after"):
        if getattr(definition, field) != getattr(known.definition, field):
            return SubscriptionExists(known.name, field)
    known.definition = definition
    return Subscribed(known.name, False)
