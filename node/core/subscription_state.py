"""A subscription as bytes: for the disk, and for another node.

`take` copies what may change, in one step and without looking at the single entries, so that it
costs little on the event loop; `encode` may then run in another thread. `decode` believes nothing:
what comes out of it holds all that must hold of a subscription of that store.

The bytes are a CBOR array in the order of `Taken`. Names of consumers stand once each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import cbor2

from node.core import items
from node.core.fields import is_name, is_number, is_time, need
from node.core.subscription import (
    AFTER_RETRIES,
    BY_CONSUMER,
    PARKED_MAX,
    Counts,
    Handed,
    Line,
    Parked,
    Subscription,
    Waiting,
)
from node.core.subscription_commands import Definition, definition_of, described

if TYPE_CHECKING:
    from node.core.store import Store


_NESTING_MAX = 16  # conditions are the deepest


class Taken(NamedTuple):
    """A subscription as of one moment."""

    name: str
    changed_index: int
    uid: int
    definition: Definition
    cursor: int
    times: tuple[int, int, int]  # clock, last fetch, last progress
    counts: Counts
    in_flight: Sequence[tuple[int, Handed]]
    waiting: Sequence[Sequence[Waiting]]
    behind: Sequence[tuple[int, int]]  # ordinal of a stream, position
    ready: Sequence[int]
    parked: Sequence[tuple[int, Parked]]


def take(one: Subscription) -> Taken:
    """The subscription as it is now."""
    lines = one.lines.items()
    return Taken(
        one.name,
        one.changed_index,
        one.uid,
        one.definition,
        one.cursor,
        (one.clock_us, one.fetched_us, one.progressed_us),
        one.counts,
        list(one.in_flight.items()),
        [line.waiting.copy() for _, line in lines if line.waiting],
        [(ordinal, line.behind) for ordinal, line in lines if line.behind is not None],
        list(one.ready),
        list(one.parked.items()),
    )


def encode(taken: Taken) -> bytes:
    """A snapshot as bytes, without name and `changed_index`; the same on every node."""
    consumers: dict[str, int] = {}

    def number(consumer: str) -> int:
        return consumers.setdefault(consumer, len(consumers))

    in_flight = [
        (position, one.attempt, one.failures, one.handed_us, number(one.consumer))
        for position, one in taken.in_flight
    ]
    parked = [
        (position, one.attempt, one.why, one.parked_us, number(one.consumer))
        for position, one in taken.parked
    ]
    return cbor2.dumps(
        (
            taken.uid,
            described(taken.definition),
            taken.cursor,
            taken.times,
            taken.counts,
            list(consumers),
            in_flight,
            sorted(one for line in taken.waiting for one in line),
            sorted(taken.behind),
            taken.ready,
            parked,
        )
    )


def decode(name: str, changed_index: int, encoded: bytes, store: Store) -> Subscription:
    """A subscription of `store`, whose events must be there. Raises `ValueError`."""
    try:
        one = _decoded(name, items.loads(encoded, _NESTING_MAX), store)
        one.changed_index = changed_index
        one.check(store)
    except (ValueError, TypeError, KeyError, IndexError, AssertionError, cbor2.CBORError) as error:
        raise ValueError(f"subscription {name!r} of store {store.name} is none: {error}") from error
    return one


def _decoded(name: str, fields: Any, store: Store) -> Subscription:
    uid, definition, cursor, times, counts, consumers, in_flight, waiting, *lines, parked = fields
    behind, ready = lines
    need(is_name(name), "name")
    need(is_number(uid) and is_number(cursor), "cursor")
    need(len(times) == 3 and all(map(is_time, times)), "times")
    need(all(map(is_number, counts)), "counts")
    need(all(map(is_name, consumers)), "consumers")
    for rows in (in_flight, waiting, behind, parked):
        need(all(map(is_number, (value for row in rows for value in row))), "rows")
    one = Subscription(name, uid, definition_of(definition), cursor)
    one.clock_us, one.fetched_us, one.progressed_us = times
    one.counts = Counts(*counts)
    _load_lines(one, store, consumers, in_flight, waiting, behind)
    one.ready = OrderedDict.fromkeys(ready)
    for position, attempt, why, parked_us, consumer in parked:
        need(why in (BY_CONSUMER, AFTER_RETRIES) and position not in one.parked, "parked")
        one.parked[position] = Parked(attempt, why, parked_us, consumers[consumer])
    need(len(one.parked) <= PARKED_MAX, "parked")
    return one


def _load_lines(
    one: Subscription, store: Store, consumers: list[str], *rows: Sequence[Sequence[int]]
) -> None:
    in_flight, waiting, behind = rows
    for position, attempt, failures, handed_us, consumer in in_flight:
        ordinal = _stream_of(store, position)
        need(ordinal not in one.lines, "in_flight")
        one.lines[ordinal] = line = Line()
        line.in_flight = position
        handed = Handed(ordinal, attempt, failures, handed_us, consumers[consumer])
        one.in_flight[position] = handed
    for row in waiting:
        again = Waiting(*row)
        line = one.lines.setdefault(_stream_of(store, again.position), Line())
        line.waiting.append(again)
    for ordinal, position in behind:
        need(ordinal < len(store.stream_list), "behind")
        one.lines.setdefault(ordinal, Line()).behind = position


def _stream_of(store: Store, position: int) -> int:
    need(1 <= position <= store.position, "position")
    return next(store.rows(position - 1, position))[1]
