"""What can be asked of the life of streams: deletion, metadata, and that time has passed.

Like all commands (see `commands`), with the same gate. `now_us` is the clock of the leader, in
microseconds since 1970: what is too old is judged by it and nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cbor2

from node.core.fields import NUMBER_MAX, TIME_US_MAX, is_name, is_number, is_time, need
from node.core.stream import Limits
from node.core.versions import is_expected

FORMAT = 1
DELETE_STREAM, SET_METADATA, EXPIRE = range(9, 12)

MAX_COUNT_MAX = NUMBER_MAX
MAX_AGE_MS_MAX = TIME_US_MAX // 1_000
TRUNCATE_BEFORE_MAX = NUMBER_MAX


class DeleteStream(NamedTuple):
    """Remove all events of a stream; `hard`: and let nobody ever append to it again."""

    store: str
    stream: str
    expected: int
    hard: bool


class SetMetadata(NamedTuple):
    """Set what is kept of a stream, all three limits at once."""

    store: str
    stream: str
    limits: Limits


class Expire(NamedTuple):
    """Remove what is too old at this time, of some streams, and some of the snapshots that are
    beyond what is kept."""

    store: str
    now_us: int


LifeCommand = DeleteStream | SetMetadata | Expire


def delete_stream(store: str, stream: str, expected: int, hard: bool) -> bytes:
    """Encode a `DeleteStream`; `expected` is an event number or one of the codes of `versions`."""
    return cbor2.dumps((FORMAT, DELETE_STREAM, store, stream, expected, hard))


def set_metadata(store: str, stream: str, limits: Limits) -> bytes:
    """Encode a `SetMetadata`: `max_count` is 1 to `MAX_COUNT_MAX`, `max_age_ms` 1 to
    `MAX_AGE_MS_MAX`, `truncate_before` 0 to `TRUNCATE_BEFORE_MAX`; None is no limit."""
    return cbor2.dumps((FORMAT, SET_METADATA, store, stream, *limits))


def expire(store: str, now_us: int) -> bytes:
    """Encode an `Expire`."""
    return cbor2.dumps((FORMAT, EXPIRE, store, now_us))


def decode_delete_stream(fields: list[Any]) -> DeleteStream:
    """Check a decoded `DeleteStream`; this and those below raise `MalformedCommand`."""
    _, _, store, stream, expected, hard = fields
    need(is_name(store), "store")
    need(is_name(stream), "stream")
    need(is_expected(expected), "expected")
    need(type(hard) is bool, "hard")
    return DeleteStream(store, stream, expected, hard)


def decode_set_metadata(fields: list[Any]) -> SetMetadata:
    """Check a decoded `SetMetadata`."""
    _, _, store, stream, *limits = fields
    need(is_name(store), "store")
    need(is_name(stream), "stream")
    return SetMetadata(store, stream, limits_of(limits))


def limits_of(fields: list[Any]) -> Limits:
    """Limits out of their fields. Raises `MalformedCommand`."""
    max_count, max_age_ms, truncate_before = fields
    need(max_count is None or _is_within(max_count, 1, MAX_COUNT_MAX), "max_count")
    need(max_age_ms is None or _is_within(max_age_ms, 1, MAX_AGE_MS_MAX), "max_age_ms")
    need(truncate_before is None or is_number(truncate_before), "truncate_before")
    return Limits(max_count, max_age_ms, truncate_before)


def decode_expire(fields: list[Any]) -> Expire:
    """Check a decoded `Expire`."""
    _, _, store, now_us = fields
    need(is_name(store), "store")
    need(is_time(now_us), "now_us")
    return Expire(store, now_us)


def _is_within(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
