"""A log of random commands of every kind, and what a state that never stopped answers to it.

A `Chronicle` grows by an entry at a time. Its commands are drawn with the state in view, so that
most of them have an effect: they repeat appends, whole and in part and with other bytes, settle
deliveries that are in flight, and delete stores to make them anew. Whoever applies the same entries
must answer the same, whatever else becomes of it meanwhile, and at each index look the same: as
`seen` tells.
"""

from __future__ import annotations

import random
from typing import Any

import cbor2

from node.core import commands, life_commands
from node.core import subscription_commands as asked
from node.core.conditions import ANY_OF, EXISTS, Condition
from node.core.fields import NUMBER_MAX
from node.core.filters import Filter
from node.core.frames import ABSENT, encode_frame
from node.core.snapshots import KEPT_MAX, encode_content
from node.core.state import State
from node.core.store import Store
from node.core.stream import Limits
from node.core.subscription_commands import Definition, Delivery
from tests.core.observed import store_contents

STORES = "ab"
STREAMS = ["s-1", "s-2", "s-3", "t-1", "日本"]
TYPES = ["T", "U", "x" * 30]
SOURCES = "pq"
EXPECTED = [*[commands.ANY] * 8, commands.NO_STREAM, commands.STREAM_EXISTS, 0, 3]
ODD = Condition(("data", "odd"), ANY_OF, ((1, True),))
FILTERS = [
    Filter(),
    Filter(types=("T",)),
    Filter(stream_prefix="s-"),
    Filter(stream="s-2"),
    Filter(where=(ODD,)),
    Filter(("T", "U"), "s-", None, (ODD, Condition(("metadata",), EXISTS))),
    Filter(stream="s-1", where=(ODD,)),
]
# The polynomial of CRC-32: a xor with it leaves the checksum of bytes as it is.
_TWIN = bytes.fromhex("410671db01")
_BEGAN_US = 10**15

Append = list[tuple[str, bytes]]


def seen(state: State) -> dict[str, Any]:
    """All that can be seen of a state, but for what its node has swept."""
    return {name: _store_seen(store) for name, store in state.stores.items()}


def _store_seen(store: Store) -> dict[str, Any]:
    found, held = store_contents(store), store.snapshots
    found["subscriptions"] = sorted(found["subscriptions"])
    found["looked at"] = {
        name: (one.settled_up_to, one.waiting, one.room, one.next_expiry_us())
        for name, one in store.subscriptions.by_name.items()
    }
    found["series"] = [
        (key, [one.version for one in held.between(*key, 0, NUMBER_MAX, False)])
        for key in held.keys(("", ""))
    ]
    found["over"] = {name: store.lives.is_over(name) for name in store.lives.departed}
    found["bytes"] = store.frame_bytes, held.bytes
    return found


class Chronicle:
    """The entry at index n is `entries[n - 1]`; `seen[n]` is what there is behind it."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.state = State()
        self.entries: list[list[bytes]] = []
        self.terms = [0]
        self.outcomes: list[list[str]] = []
        self.seen = [seen(self.state)]
        self._now_us = _BEGAN_US
        self._ids = 0
        self._appends: dict[str, list[Append]] = {store: [] for store in STORES}

    @property
    def index(self) -> int:
        return len(self.entries)

    def go_on(self) -> None:
        """Another entry. Its commands are drawn in view of what was there before all of them."""
        self._now_us += self.chance.choice([0, 1, 40_000, 150_000])
        if self.chance.random() < 0.02:
            self._now_us -= 7_200_000_000
        entry = [self._command() for _ in range(self.chance.choice([1, 1, 2, 5]))]
        self.terms.append(self.terms[-1] + (self.chance.random() < 0.1))
        self.entries.append(entry)
        outcomes = self.state.apply(self.index, self.terms[-1], entry)
        self.outcomes.append([repr(one) for one in outcomes])
        self.seen.append(seen(self.state))

    def _command(self) -> bytes:
        store = self.chance.choice(STORES)
        if store not in self.state.stores:
            return commands.create_store(store, self._now_us)
        kinds = [self._append, self._snapshot, self._life, self._consumed, self._rare]
        return self.chance.choices(kinds, [8, 2, 4, 6, 1])[0](store)

    # --- events ------------------------------------------------------------------------------

    def _append(self, store: str) -> bytes:
        chance = self.chance
        events = self._events(store)
        match chance.randrange(4):
            case 0 | 1:
                stream, frames = events[0][0], [frame for _, frame in events]
                return commands.append(store, self._now_us, stream, chance.choice(EXPECTED), frames)
            case 2:
                streams = [stream for stream, _ in events]
                expected = chance.choices(EXPECTED, k=len(events))
                frames = [frame for _, frame in events]
                ones = [1] * len(events)
                return commands.append_each(store, self._now_us, streams, expected, ones, frames)
            case _:
                check = chance.choice(STREAMS), chance.choice(EXPECTED)
                moved = ("c", chance.randrange(200)) if chance.random() < 0.5 else None
                checks = [check] if chance.random() < 0.3 else []
                return commands.append_many(store, self._now_us, events, checks, moved)

    def _events(self, store: str) -> Append:
        """New events, or some that were stored already, or were so nearly."""
        chance, known = self.chance, self._appends[store]
        if known and chance.random() < 0.25:
            return self._again(list(chance.choice(known[-12:])))
        one = chance.choice(STREAMS)
        mixed = chance.random() < 0.5
        events = [
            (chance.choice(STREAMS) if mixed else one, self._frame())
            for _ in range(chance.randrange(1, 5))
        ]
        known.append(events)
        return events

    def _again(self, events: Append) -> Append:
        stream, frame = events[-1]
        match self.chance.randrange(6):
            case 0:
                # Other data, of which id, length and CRC-32 are the same.
                pad = bytes(a ^ b for a, b in zip(frame[-7:-2], _TWIN, strict=True))
                events[-1] = stream, frame[:-7] + pad + frame[-2:]
            case 1:
                events[-1] = stream, frame[:-3] + bytes([frame[-3] ^ 1]) + frame[-2:]
            case 2:
                events.append((stream, self._frame()))
            case 3:
                events.reverse()
        return events

    def _frame(self) -> bytes:
        self._ids += 1
        pad = self.chance.randbytes(self.chance.choice([5, 5, 20, 90]))
        data = cbor2.dumps({"odd": self._ids % 2 == 1, "pad": pad})
        kind = self.chance.choice(TYPES)
        json = "application/json"
        return encode_frame(self._ids.to_bytes(16, "big"), kind, data, ABSENT, json, json)

    # --- everything else ---------------------------------------------------------------------

    def _snapshot(self, store: str) -> bytes:
        chance = self.chance
        held = self.state.stores[store].snapshots.all()
        if held and chance.random() < 0.3:
            return commands.delete_snapshot(store, *chance.choice(held)[:3])
        content = encode_content("T", chance.randbytes(chance.choice([3, 30, 80])), ABSENT)
        of = chance.choice(SOURCES), "s", chance.randrange(12)
        return commands.put_snapshot(store, self._now_us, *of, content)

    def _life(self, store: str) -> bytes:
        chance, there = self.chance, list(self.state.stores[store].stream_names)
        stream = (
            chance.choice(there or STREAMS) if chance.random() < 0.9 else chance.choice(STREAMS)
        )
        match chance.randrange(7):
            case 0 | 1:
                expected = chance.choice(EXPECTED)
                return life_commands.delete_stream(store, stream, expected, chance.random() < 0.1)
            case 2 | 3:
                return life_commands.expire(store, self._now_us)
            case _:
                limits = [
                    value if chance.random() < 0.5 else None
                    for value in (chance.randrange(1, 9), chance.choice([1, 90, 400]))
                ]
                before = chance.choice([None, None, chance.randrange(30)])
                return life_commands.set_metadata(store, stream, Limits(*limits, before))

    def _consumed(self, store: str) -> bytes:
        """What happens to a subscription."""
        chance, name = self.chance, self.chance.choice("xyz")
        one = self.state.stores[store].subscriptions.by_name.get(name)
        if one is None or chance.random() < 0.03:
            return asked.subscribe(store, self._now_us, name, self._definition())
        match chance.randrange(9):
            case 0 if chance.random() < 0.4:
                return asked.unsubscribe(store, name)
            case 0:
                definition = one.definition._replace(max_in_flight=chance.randrange(1, 5))
                return asked.subscribe(store, self._now_us, name, definition)
            case 1:
                some = [*one.parked][:1] if chance.random() < 0.5 else []
                return asked.replay(store, self._now_us, name, some)
            case 2 | 3 | 4 | 5:
                return asked.fetch(store, self._now_us, name, chance.choice("cd"), 3)
            case _:
                settled = [
                    (Delivery(one.uid, at, handed.attempt), chance.randrange(asked.GIVE_BACK + 1))
                    for at, handed in one.in_flight.items()
                    if chance.random() < 0.7
                ]
                return asked.settle(store, self._now_us, name, settled)

    def _definition(self) -> Definition:
        chance = self.chance
        start = chance.choice([0, 0, 5, asked.START_AT_END, NUMBER_MAX])
        retries, in_flight = chance.randrange(3), chance.randrange(1, 5)
        return Definition(chance.choice(FILTERS), start, 100, retries, in_flight)

    def _rare(self, store: str) -> bytes:
        chance = self.chance
        match chance.randrange(8):
            case 0:
                self._appends[store] = self._appends[store][-3:]
                return commands.delete_store(store)
            case 1:
                durability = chance.choice([None, *commands.DURABILITIES])
                kept = chance.choice([None, 1, 2, KEPT_MAX])
                return commands.put_store(store, self._now_us, durability, kept)
            case 2 | 3 | 4 | 5:
                far = chance.choice([chance.randrange(300), NUMBER_MAX])
                return commands.put_checkpoint(store, chance.choice("cde"), far)
            case 6:
                return commands.barrier() + chance.randbytes(3)
            case _:
                return chance.randbytes(9)
