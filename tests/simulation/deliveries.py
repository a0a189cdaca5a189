"""The judge of persistent subscriptions: the whole history, and what each node would still do.

    I18  every answer of a subscription is one that its rules allow, from its making on: in order
         per stream, each delivery of an event counted once, parked once, nothing passed over
    I19  what is owed in the end is handed out: whoever fetches from any node, with all parked
         events replayed, gets every event that matches and was neither acknowledged nor skipped

The rules are those of `tests.core.subscription_reference`, which walks the history beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from node.core import commands
from node.core import subscription_commands as asked
from node.core.commands import Append, AppendMany
from node.core.frames import decode_frame
from node.core.outcomes import (
    Appended,
    Expired,
    Fetched,
    MetadataSet,
    Replayed,
    Settled,
    StreamRemoved,
    Subscribed,
    Unsubscribed,
)
from node.core.snapshots import PLACE_BITS
from node.core.state import State
from node.core.store import Store
from node.core.subscription_commands import START_AT_END, Delivery
from node.core.subscription_state import decode, encode, take
from tests.core.subscription_reference import DONE, GONE, PARKED, Reference
from tests.simulation.nodes import STORE
from tests.simulation.watch import Entry

DRAIN_MOST = 1_000
DRAIN_ROUNDS_MAX = 2_000


class Ledger:
    """What the history says of each subscription that there is in the end."""

    def __init__(self, entries: Mapping[int, Entry], fail: Callable[[str], None]) -> None:
        self.references: dict[str, Reference] = {}
        self._events: list[tuple[str, str]] = []
        self._state = State()
        self._first: dict[str, int] = {}
        self._fail = fail
        for index, entry in sorted(entries.items()):
            for at, (command, outcome) in enumerate(zip(entry.batch, entry.outcomes, strict=True)):
                place = (index << PLACE_BITS) + at
                self._state._apply_one(command, place)
                try:
                    self._take(place, commands.decode(command), outcome)
                except AssertionError as error:
                    fail(f"I18: entry {index}, command {at}: {error}, {outcome}")
                    return

    def judge(self, who: object, store: Store) -> None:
        """Compare a node in the end with the history, and have it hand out what it owes. Once."""
        kept = store.subscriptions.by_name
        if kept.keys() != self.references.keys():
            self._fail(f"I19: {who} has the subscriptions {sorted(kept)}")
            return
        for name in self.references:
            try:
                self._drain(name, store)
            except AssertionError as error:
                self._fail(f"I19: subscription {name} of {who}: {error}")

    def _take(self, place: int, command: Any, outcome: Any) -> None:
        if isinstance(outcome, Appended):
            self._appended(command, outcome)
        elif isinstance(outcome, Subscribed):
            self._subscribed(place, command, outcome.created)
        elif isinstance(outcome, Unsubscribed):
            del self.references[command.name]
        elif isinstance(outcome, Fetched):
            self.references[command.name].fetched(command.now_us, command.max_events, outcome)
        elif isinstance(outcome, Settled):
            self.references[command.name].settled(command.now_us, command.settlements, outcome)
        elif isinstance(outcome, Replayed):
            self.references[command.name].replayed(command.now_us, command.positions, outcome)
        if isinstance(outcome, Appended | StreamRemoved | MetadataSet | Expired):
            self._see_what_is_removed()

    def _see_what_is_removed(self) -> None:
        """What the state has removed by now; that it does so rightly is judged elsewhere."""
        for stream in self._state.stores[STORE].stream_list:
            for position in stream.positions[self._first.get(stream.name, 0) : stream.first]:
                for reference in self.references.values():
                    reference.removed(position)
            self._first[stream.name] = stream.first

    def _appended(self, command: Append | AppendMany, outcome: Appended) -> None:
        if outcome.idempotent:
            return
        if isinstance(command, Append):
            events = [(command.stream, frame) for frame in command.frames]
        else:
            events = list(command.events)
        for stream, frame in events:
            self._events.append((stream, decode_frame(frame).event_type))
            for reference in self.references.values():
                reference.appended(len(self._events), *self._events[-1])

    def _subscribed(self, place: int, command: asked.Subscribe, created: bool) -> None:
        definition = command.definition
        if not created:
            self.references[command.name].redefined(definition)
            return
        assert command.name not in self.references
        if definition.start_after == START_AT_END:
            definition = definition._replace(start_after=len(self._events))
        made = self.references[command.name] = Reference(place, definition, command.now_us)
        store = self._state.stores[STORE]
        for position, (stream, kind) in enumerate(self._events, 1):
            made.appended(position, stream, kind)
            if not store.kept(position):
                made.removed(position)

    def _drain(self, name: str, store: Store) -> None:
        """Hand out all that a copy of the subscription owes, as if its consumers were back."""
        known = store.subscriptions.by_name[name]
        owing = decode(name, known.changed_index, encode(take(known)), store)
        reference = self.references[name]
        assert sorted(owing.parked) == sorted(reference.of(PARKED)), "others are parked"
        now_us = owing.clock_us
        for _ in range(DRAIN_ROUNDS_MAX):
            reference.replayed(now_us, [], owing.replay(store, now_us, []))
            now_us += owing.definition.ack_timeout_ms * 1_000
            fetched = owing.fetch(store, now_us, "judge", DRAIN_MOST)
            reference.fetched(now_us, DRAIN_MOST, fetched)
            settlements = [
                (Delivery(fetched.uid, *delivery), asked.ACK) for delivery in fetched.deliveries
            ]
            reference.settled(now_us, settlements, owing.settle(now_us, settlements))
            if not (settlements or owing.parked or fetched.has_more):
                break
        lost = reference.events.keys() - set(reference.of(DONE, GONE))
        assert not lost, f"{sorted(lost)} are never handed out"
