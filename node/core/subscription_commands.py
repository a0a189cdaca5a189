"""What can be asked of the persistent subscriptions of a store.

Like all commands (see `commands`), with the same gate. `now_us` is the clock of the node that took
the request, in microseconds since 1970: the only time that a subscription knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cbor2

from node.core import conditions
from node.core.fields import NUMBER_MAX, is_name, is_number, is_time, need
from node.core.filters import Filter

FORMAT = 1
SUBSCRIBE, UNSUBSCRIBE, FETCH, SETTLE, REPLAY = range(16, 21)

# Bounds of a definition.
TYPES_MAX = 64
ACK_TIMEOUT_MS_MIN, ACK_TIMEOUT_MS_MAX = 100, 24 * 3600 * 1000
RETRIES_MAX = 1_000
IN_FLIGHT_MAX = 10_000

# How many events one command may hand out, settle, or name for a replay.
FETCHED_MAX = 1_000
SETTLED_MAX = 1_000

START_AT_END = -1

# What becomes of a delivery. One that is given back was not tried: that is no failure.
ACK, RETRY, PARK, SKIP, GIVE_BACK = range(5)

_UID_MAX = 2**63  # the place of a subscription's creation in the replicated history


class Definition(NamedTuple):
    """What a subscription delivers, and how.

    Events behind position `start_after` (or `START_AT_END`: behind the last one at its creation)
    that `wanted` matches. A delivery is over after `ack_timeout_ms`; an event is delivered again up
    to `max_retries` times, then parked; at most `max_in_flight` deliveries are not settled.
    """

    wanted: Filter
    start_after: int
    ack_timeout_ms: int
    max_retries: int
    max_in_flight: int


class Delivery(NamedTuple):
    """Names one delivery: of which life of a subscription, which event, for which time."""

    uid: int
    position: int
    attempt: int


class Subscribe(NamedTuple):
    """Make a subscription, or change the bounds of one."""

    store: str
    now_us: int
    name: str
    definition: Definition


class Unsubscribe(NamedTuple):
    """Remove a subscription with all that it remembers."""

    store: str
    name: str


class Fetch(NamedTuple):
    """Hand events out to a consumer, at most so many."""

    store: str
    now_us: int
    name: str
    consumer: str
    max_events: int


class Settle(NamedTuple):
    """Say what became of deliveries: `ACK`, `RETRY`, `PARK`, `SKIP`, `GIVE_BACK`."""

    store: str
    now_us: int
    name: str
    settlements: list[tuple[Delivery, int]]


class Replay(NamedTuple):
    """Deliver parked events again: those at these positions, or all if none is named."""

    store: str
    now_us: int
    name: str
    positions: list[int]


SubscriptionCommand = Subscribe | Unsubscribe | Fetch | Settle | Replay


def subscribe(store: str, now_us: int, name: str, definition: Definition) -> bytes:
    """Encode a `Subscribe`."""
    return cbor2.dumps((FORMAT, SUBSCRIBE, store, now_us, name, described(definition)))


def unsubscribe(store: str, name: str) -> bytes:
    """Encode an `Unsubscribe`."""
    return cbor2.dumps((FORMAT, UNSUBSCRIBE, store, name))


def fetch(store: str, now_us: int, name: str, consumer: str, max_events: int) -> bytes:
    """Encode a `Fetch`; `max_events` is 1 to `FETCHED_MAX`."""
    return cbor2.dumps((FORMAT, FETCH, store, now_us, name, consumer, max_events))


def settle(
    store: str, now_us: int, name: str, settlements: Sequence[tuple[Delivery, int]]
) -> bytes:
    """Encode a `Settle` of at most `SETTLED_MAX` deliveries."""
    flat = [(*delivery, action) for delivery, action in settlements]
    return cbor2.dumps((FORMAT, SETTLE, store, now_us, name, flat))


def replay(store: str, now_us: int, name: str, positions: Sequence[int]) -> bytes:
    """Encode a `Replay` of at most `SETTLED_MAX` positions, or of all with none."""
    return cbor2.dumps((FORMAT, REPLAY, store, now_us, name, positions))


def decode_subscribe(fields: list[Any]) -> Subscribe:
    """Check a decoded `Subscribe`; this and those below raise `MalformedCommand`."""
    _, _, store, now_us, name, definition = fields
    _need_head(store, now_us, name)
    return Subscribe(store, now_us, name, definition_of(definition))


def described(definition: Definition) -> list[Any]:
    """A definition as plain values; the conditions of its filter, if any, at the end."""
    wanted, *bounds = definition
    plain = [wanted.types, wanted.stream_prefix, wanted.stream, *bounds]
    return [*plain, conditions.described(wanted.where)] if wanted.where else plain


def definition_of(given: Any) -> Definition:
    """What `described` gave, decoded. Raises `MalformedCommand`."""
    need(type(given) is list and len(given) in (7, 8), "definition")
    types, prefix, stream, start_after, ack_timeout_ms, max_retries, max_in_flight = given[:7]
    need(type(types) is list and len(types) <= TYPES_MAX and all(map(is_name, types)), "types")
    need(prefix == "" or is_name(prefix), "stream_prefix")
    need(stream is None or is_name(stream), "stream")
    need(_within(start_after, START_AT_END, NUMBER_MAX), "start_after")
    need(_within(ack_timeout_ms, ACK_TIMEOUT_MS_MIN, ACK_TIMEOUT_MS_MAX), "ack_timeout_ms")
    need(_within(max_retries, 0, RETRIES_MAX), "max_retries")
    need(_within(max_in_flight, 1, IN_FLIGHT_MAX), "max_in_flight")
    where = conditions.decoded(given[7]) if len(given) == 8 else ()
    wanted = Filter(tuple(types), prefix, stream, where)
    return Definition(wanted, start_after, ack_timeout_ms, max_retries, max_in_flight)


def decode_unsubscribe(fields: list[Any]) -> Unsubscribe:
    """Check a decoded `Unsubscribe`."""
    _, _, store, name = fields
    _need_head(store, 0, name)
    return Unsubscribe(store, name)


def decode_fetch(fields: list[Any]) -> Fetch:
    """Check a decoded `Fetch`."""
    _, _, store, now_us, name, consumer, max_events = fields
    _need_head(store, now_us, name)
    need(is_name(consumer), "consumer")
    need(_within(max_events, 1, FETCHED_MAX), "max_events")
    return Fetch(store, now_us, name, consumer, max_events)


def decode_settle(fields: list[Any]) -> Settle:
    """Check a decoded `Settle`."""
    _, _, store, now_us, name, flat = fields
    _need_head(store, now_us, name)
    need(type(flat) is list and len(flat) <= SETTLED_MAX and all(map(_is_settlement, flat)), "flat")
    settlements = [(Delivery(*delivery), action) for *delivery, action in flat]
    return Settle(store, now_us, name, settlements)


def decode_replay(fields: list[Any]) -> Replay:
    """Check a decoded `Replay`."""
    _, _, store, now_us, name, positions = fields
    _need_head(store, now_us, name)
    need(type(positions) is list and len(positions) <= SETTLED_MAX, "positions")
    need(all(map(is_number, positions)), "positions")
    return Replay(store, now_us, name, positions)


def _need_head(store: object, now_us: object, name: object) -> None:
    need(is_name(store), "store")
    need(is_time(now_us), "now_us")
    need(is_name(name), "name")


def _within(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_settlement(value: object) -> bool:
    return (
        type(value) is list
        and len(value) == 4
        and _within(value[0], 0, _UID_MAX)
        and all(map(is_number, value[1:3]))
        and _within(value[3], ACK, GIVE_BACK)
    )
