"""Folding: what the events of a stream come to, key by key, as ExESDB's aggregator has it.

An event whose data is a map changes the state under each of its keys:

    {"$sum": 5}          adds to the number that stands there, or to 0 where none does
    {"$overwrite": v}    puts `v` there
    {"$replace": v}      the same
    anything else        is put there as it is

A tag is a map with that one member; `$sum` of anything but a number is no tag. Maps inside a value
are values. Nothing here fails, whatever is in the events, but a sum of integers that no value may
be (`items.INTEGER_BITS_MAX`): it could neither be answered nor be recorded.

The keys of the state are text: an integer goes by its digits, as in JSON, so 1 and "1" are one key.
One map has few integers for keys (see `items`), but the state has those of thousands of events, and
many of them can be chosen so that a map of Python takes seconds for them. And what has text for
keys may be recorded as a snapshot, however many there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from node.core.items import INTEGER_BITS_MAX

_PUT = ("$overwrite", "$replace")


class SumTooLong(ValueError):
    """Integers add up to more bits than a value may have; the text says under which key."""


def begun(snapshot: Mapping[Any, Any]) -> dict[Any, Any]:
    """The state that a snapshot holds, to fold on from."""
    return {_as_text(key): value for key, value in snapshot.items()}


def fold(state: dict[Any, Any], data: Mapping[Any, Any]) -> None:
    """Let the data of one event change the state. Raises `SumTooLong`: the state is half of it."""
    for key, value in data.items():
        tag, inner = _tag(value)
        key = _as_text(key)
        if tag == "$sum":
            before = state.get(key, 0)
            state[key] = _sum(before if is_number(before) else 0, inner, key)
        else:
            state[key] = inner


def _as_text(key: Any) -> Any:
    is_written = type(key) is int and key.bit_length() <= INTEGER_BITS_MAX
    return str(key) if is_written else key


def is_number(value: object) -> bool:
    """Whether something can be added up; truth values cannot."""
    return type(value) in (int, float)


def _tag(value: Any) -> tuple[str, Any]:
    """The rule that a value names, and what it is applied to."""
    if type(value) is dict and len(value) == 1:
        ((name, inner),) = value.items()
        if name in _PUT or (name == "$sum" and is_number(inner)):
            return name, inner
    return "", value


def _sum(one: Any, other: Any, key: Any) -> int | float:
    try:
        added: int | float = one + other
    except OverflowError:  # an integer beyond all floats, and a float
        return math.inf if max(one, other, key=abs) > 0 else -math.inf
    if type(added) is int and added.bit_length() > INTEGER_BITS_MAX:
        raise SumTooLong(f"the sum under {str(key)[:80]!r} has more than {INTEGER_BITS_MAX} bits")
    return added
