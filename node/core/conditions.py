"""Conditions: what a filter asks of the data and the metadata of an event.

A condition names a place and says what must stand there:

    any_of    one of these values: null, a truth value, a number, text, bytes
    prefix    text that begins so; bytes that begin so
    exists    anything
    absent    nothing

A place is `data` or `metadata`, and keys that lead into it: the key of a map, where a key that is
an integer goes by its digits, or the index of an array, from 0. The place itself, without keys, is
the payload; one that an event does not have is stored as null, so it `exists` where it is not null.
Further down a null exists.

**Equal** are two values of one kind. Numbers are one kind and compared as what they are: 1 is 1.0,
2^53 + 1 is no float, NaN is nothing, not even NaN. A truth value is no number, bytes are no text,
text is compared by its code points. Arrays and maps are equal to nothing: ask for what is in them.

Subscriptions judge events while a command is applied, on every node. So nothing here raises for
what an event holds: in what cannot be decoded, has tags (see `items`), or nests deeper than
`_NESTING_MAX`, there is nothing. An event costs a few microseconds, and at most some 0.15 s where
it is 1 MiB of nothing but empty arrays; who judges many counts `decoded_bytes`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cbor2

from node.core import items
from node.core.fields import NAME_BYTES_MAX, need

ROOTS = ("data", "metadata")
ANY_OF, PREFIX, EXISTS, ABSENT = range(4)

# Bounds of a filter's conditions.
CONDITIONS_MAX = 16
KEYS_MAX = 16  # of a path, without its root
KEY_BYTES_MAX = NAME_BYTES_MAX
VALUES_MAX = 64
VALUE_BYTES_MAX = 1_024  # of a value as an encoded CBOR item
CONDITIONS_BYTES_MAX = 16 * 1024  # all conditions together, as they stand in a command

_NESTING_MAX = 256
_NULL, _TRUTH, _NUMBER, _TEXT, _BYTES = range(5)
_KINDS = {
    type(None): _NULL,
    bool: _TRUTH,
    int: _NUMBER,
    float: _NUMBER,
    str: _TEXT,
    bytes: _BYTES,
}
_INTEGER = re.compile(r"0|-?[1-9][0-9]*", re.ASCII).fullmatch

Value = tuple[int, Any]  # its kind, and itself: what is equal here is equal in Python, too


class _Nothing:
    """What stands where nothing stands."""


_NOTHING = _Nothing()


class Condition(NamedTuple):
    """One condition. `path` is a root and keys; `values` are one or more for `ANY_OF`, one text or
    bytes for `PREFIX`, and none for the others."""

    path: tuple[str, ...]
    test: int
    values: tuple[Value, ...] = ()


def value_of(plain: Any) -> Value | None:
    """A value that something can be equal to; None if it is none. Whole floats become integers, so
    that one value has one form."""
    kind = _KINDS.get(type(plain))
    if kind is None or plain != plain:
        return None
    return (kind, int(plain)) if type(plain) is float and plain.is_integer() else (kind, plain)


def described(conditions: Sequence[Condition]) -> list[Any]:
    """Conditions as plain values, for a command."""
    return [
        (condition.path, condition.test, [plain for _, plain in condition.values])
        for condition in conditions
    ]


def decoded(given: Any) -> tuple[Condition, ...]:
    """What `described` gave, decoded. Raises `MalformedCommand`."""
    need(type(given) is list and 1 <= len(given) <= CONDITIONS_MAX, "where")
    conditions = tuple(map(_condition, given))
    # As they are kept: a whole float may be longer as an integer.
    need(len(cbor2.dumps(described(conditions))) <= CONDITIONS_BYTES_MAX, "where")
    return conditions


def _condition(given: Any) -> Condition:
    need(type(given) is list and len(given) == 3, "where")
    path, test, plain_values = given
    need(type(path) is list and 1 <= len(path) <= 1 + KEYS_MAX, "path")
    need(all(type(key) is str and len(key.encode()) <= KEY_BYTES_MAX for key in path), "path")
    need(path[0] in ROOTS, "path")
    need(type(test) is int and ANY_OF <= test <= ABSENT, "test")
    need(type(plain_values) is list, "values")
    values = tuple(found for found in map(value_of, plain_values) if found is not None)
    need(len(values) == len(plain_values), "values")
    need(all(len(cbor2.dumps(plain)) <= VALUE_BYTES_MAX for plain in plain_values), "values")
    if test == ANY_OF:
        need(1 <= len(values) <= VALUES_MAX, "values")
    elif test == PREFIX:
        need(len(values) == 1 and values[0][0] in (_TEXT, _BYTES), "values")
    else:
        need(not values, "values")
    return Condition(tuple(path), test, values)


class Inspector:
    """Looks into events for one scan; `decoded_bytes` is how much it has looked into."""

    __slots__ = ("_of_data", "_of_metadata", "decoded_bytes")

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self._of_data, self._of_metadata = (
            [_Look(condition) for condition in conditions if condition.path[0] == root]
            for root in ROOTS
        )
        self.decoded_bytes = 0

    def holds(self, frame: bytes) -> bool:
        """Whether all conditions hold of an event."""
        self.decoded_bytes += len(frame)
        fields = _loaded(frame)
        if type(fields) is not list or len(fields) != 7:
            fields = (None,) * 7
        return _all_hold(self._of_data, fields[5]) and _all_hold(self._of_metadata, fields[6])


def _all_hold(looks: Sequence[_Look], item: Any) -> bool:
    if not looks:
        return True
    value = _loaded(item)
    return all(look.holds(value) for look in looks)


def _loaded(item: Any) -> Any:
    """The value of an encoded item; `_NOTHING` where it is none."""
    try:
        return items.loads(item, _NESTING_MAX)
    except MemoryError:
        raise  # says nothing about the item, and the other nodes may have had enough
    except Exception:  # the library lets some of Python's own through
        return _NOTHING


class _Look:
    """A condition, made ready."""

    __slots__ = ("_keys", "_stands")

    def __init__(self, condition: Condition) -> None:
        self._keys = [(key, _whole(key)) for key in condition.path[1:]]
        self._stands = _test(condition)

    def holds(self, value: Any) -> bool:
        """Whether it holds of a payload."""
        for key, number in self._keys:
            value = _inside(value, key, number)
        return self._stands(value)


def _inside(value: Any, key: str, number: int | None) -> Any:
    """What a key leads to."""
    if type(value) is dict:
        found = value.get(key, _NOTHING)
        if found is _NOTHING and number is not None:
            return value.get(number, _NOTHING)
        return found
    if type(value) is list and number is not None and 0 <= number < len(value):
        return value[number]
    return _NOTHING


def _whole(key: str) -> int | None:
    return None if _INTEGER(key) is None else int(key)


def _test(condition: Condition) -> Callable[[Any], bool]:
    """Whether what stands at the place is as it must be."""
    if condition.test == ANY_OF:
        values = frozenset(condition.values)
        return lambda found: type(found) in _KINDS and (_KINDS[type(found)], found) in values
    if condition.test == PREFIX:
        ((kind, prefix),) = condition.values
        return lambda found: _KINDS.get(type(found)) == kind and found.startswith(prefix)
    must_exist, is_payload = condition.test == EXISTS, len(condition.path) == 1

    def exists_or_not(found: Any) -> bool:
        there = found is not _NOTHING and not (is_payload and found is None)
        return there == must_exist

    return exists_or_not
