"""Replicated histories to persist: a state that is driven as Raft would drive it."""

from __future__ import annotations

import random
from typing import Any

from node.core import commands
from node.core import life_commands as life
from node.core import subscription_commands as asked
from node.core.filters import Filter
from node.core.frames import ABSENT, encode_frame
from node.core.snapshots import KEPT_MAX, encode_content
from node.core.state import State
from node.core.stream import Limits
from node.core.subscription_commands import Definition, Delivery
from node.core.subscription_state import encode, take
from tests.core.observed import seen_frame

CREATED_US = 1_700_000_000_000_000


class History:
    """A state, and short ways to let things happen to it. Each call is one entry of the log."""

    def __init__(self, state: State | None = None, term: int = 1) -> None:
        self.state = State() if state is None else state
        self.term = term
        self._ids = random.Random(self.state.applied_index + 1)

    @property
    def index(self) -> int:
        return self.state.applied_index

    def apply(self, *encoded: bytes) -> None:
        self.state.apply(self.index + 1, self.term, encoded)

    def create(self, store: str) -> None:
        self.apply(commands.create_store(store, CREATED_US + self.index))

    def put(self, store: str, durability: str) -> None:
        self.apply(commands.put_store(store, CREATED_US + self.index, durability))

    def delete(self, store: str) -> None:
        self.apply(commands.delete_store(store))

    def checkpoint(self, store: str, name: str, position: int) -> None:
        self.apply(commands.put_checkpoint(store, name, position))

    def snapshot(self, store: str, source: str, version: int, size: int = 20) -> None:
        content = encode_content("Order", self._ids.randbytes(size), ABSENT)
        created_us = CREATED_US + self.index
        self.apply(commands.put_snapshot(store, created_us, source, "s", version, content))

    def forget_snapshot(self, store: str, source: str, version: int) -> None:
        self.apply(commands.delete_snapshot(store, source, "s", version))

    def keep_snapshots(self, store: str, kept: int) -> None:
        self.apply(commands.put_store(store, CREATED_US + self.index, None, kept))

    def subscribe(self, store: str, name: str, max_in_flight: int = 50) -> None:
        definition = Definition(Filter(), 0, 1_000, 1, max_in_flight)
        self.apply(asked.subscribe(store, CREATED_US + self.index, name, definition))

    def unsubscribe(self, store: str, name: str) -> None:
        self.apply(asked.unsubscribe(store, name))

    def consume(self, store: str, name: str, count: int = 10) -> None:
        """Fetch, and acknowledge or refuse some of what is in flight."""
        now_us = CREATED_US + self.index * 100_000
        one = self.state.stores[store].subscriptions.by_name[name]
        self.apply(asked.fetch(store, now_us, name, "consumer", count))
        some = [
            (Delivery(one.uid, position, handed.attempt), self._ids.randrange(asked.GIVE_BACK + 1))
            for position, handed in one.in_flight.items()
            if self._ids.random() < 0.7
        ]
        self.apply(asked.settle(store, now_us, name, some))

    def barrier(self) -> None:
        self.apply(commands.barrier())

    def append(self, store: str, stream: str = "a", count: int = 1, size: int = 20) -> None:
        frames = [self.frame(size) for _ in range(count)]
        created_us = CREATED_US + self.index
        self.apply(commands.append(store, created_us, stream, commands.ANY, frames))

    def frame(self, size: int) -> bytes:
        kind = f"type-{self._ids.randrange(5)}"
        data = self._ids.randbytes(size)
        json = "application/json"
        return encode_frame(self._ids.randbytes(16), kind, data, ABSENT, json, json)

    def set_limits(self, store: str, stream: str, *limits: int | None) -> None:
        self.apply(life.set_metadata(store, stream, Limits(*limits)))

    def truncate(self, store: str, stream: str, before: int) -> None:
        self.set_limits(store, stream, None, None, before)

    def delete_stream(self, store: str, stream: str, hard: bool = False) -> None:
        self.apply(life.delete_stream(store, stream, commands.ANY, hard))

    def expire(self, store: str, age_us: int = 0) -> None:
        self.apply(life.expire(store, CREATED_US + self.index - age_us))

    def wander(self, steps: int, choices: random.Random) -> None:
        """Random things, among three stores."""
        for _ in range(steps):
            store = choices.choice(["alpha", "beta", "gamma"])
            if store not in self.state.stores:
                self.create(store)
            elif choices.random() < 0.05:
                self.delete(store)
            elif choices.random() < 0.1:
                self.put(store, choices.choice(commands.DURABILITIES))
            elif choices.random() < 0.2:
                self.checkpoint(store, choices.choice("xyz"), choices.randrange(1000))
            elif choices.random() < 0.2:
                source = choices.choice("pq")
                self.snapshot(store, source, choices.randrange(20), choices.randrange(3000))
            elif choices.random() < 0.1:
                self.forget_snapshot(store, choices.choice("pq"), choices.randrange(20))
            elif choices.random() < 0.05:
                self.keep_snapshots(store, choices.choice([1, 3, KEPT_MAX]))
            elif choices.random() < 0.3:
                self.wander_subscribed(store, choices)
            elif choices.random() < 0.2:
                self.wander_removing(store, f"stream-{choices.randrange(6)}", choices)
            else:
                stream = f"stream-{choices.randrange(6)}"
                self.append(store, stream, choices.randrange(1, 40), choices.randrange(60))

    def wander_removing(self, store: str, stream: str, choices: random.Random) -> None:
        """Random ways to remove events."""
        match choices.randrange(6):
            case 0:
                self.delete_stream(store, stream)
            case 1:
                self.delete_stream(store, stream, hard=True)
            case 2:
                self.truncate(store, stream, choices.randrange(60))
            case 3:
                self.set_limits(store, stream, choices.randrange(1, 30), None, None)
            case 4:
                self.set_limits(store, stream, None, choices.randrange(1, 3), None)
            case 5:
                self.expire(store, -choices.randrange(3_000))

    def wander_subscribed(self, store: str, choices: random.Random) -> None:
        """Random things with one of two subscriptions."""
        name = choices.choice("st")
        if name not in self.state.stores[store].subscriptions.by_name:
            self.subscribe(store, name)
        elif choices.random() < 0.2:
            self.unsubscribe(store, name)
        else:
            self.consume(store, name)


def contents(state: State) -> dict[str, Any]:
    """Everything that has to come back from the disk, in a form that can be compared."""
    return {
        name: (
            store.uid,
            store.created_us,
            store.durability,
            [(*row[:5], seen_frame(store, row[0])) for row in store.rows(0, store.position)],
            [(stream.first, stream.limits) for stream in store.stream_list],
            (store.lives.changed_index, store.lives.digest, sorted(store.lives.all())),
            (list(store.stream_names), sorted(store.lives.departed), store.lives.next_due_us),
            [stream.name for stream in store.stream_list],
            list(store.type_names),
            dict(store.checkpoints),
            dict(store.checkpoint_index),
            (store.snapshots.kept, store.snapshots.digest, store.snapshots.all()),
            {
                name: (one.changed_index, encode(take(one)))
                for name, one in store.subscriptions.by_name.items()
            },
        )
        for name, store in state.stores.items()
    }
