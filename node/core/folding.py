"""Folding: what the events of a stream come to, key by key, as ExESDB's aggregator has it.

An event whose data is a map changes the state under each of its keys:

    {"$sum": 5}          adds to the number that stands there, or to 0 where none does
    {"$overwrite": v}    puts `v` there
    {"$replace": v}      the same
    anything else        is put there as it is

A tag is a map with that one member; `$sum` of anything but a number is no tag. Maps inside a value
are values. A key that is an integer and the text of its digits are one key, as in JSON: the state
has the one that came first. Nothing here fails, whatever is in the events.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from node.core.items import INTEGER_BITS_MAX

_PUT = ("$overwrite", "$replace")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,4214}", re.ASCII).fullmatch


def fold(state: dict[Any, Any], data: Mapping[Any, Any]) -> None:
    """Let the data of one event change the state."""
    for key, value in data.items():
        tag, inner = _tag(value)
        key = key if key in state else _as_known(state, key)
        if tag == "$sum":
            before = state.get(key, 0)
            state[key] = _sum(before if is_number(before) else 0, inner)
        else:
            state[key] = inner


def _as_known(state: Mapping[Any, Any], key: Any) -> Any:
    """The key of the state that is the same in JSON, if there is one."""
    other: Any = None
    if type(key) is int and key.bit_length() <= INTEGER_BITS_MAX:
        other = str(key)
    elif type(key) is str and _INTEGER(key):
        other = int(key)
    return key if other is None or other not in state else other


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


def _sum(one: Any, other: Any) -> int | float:
    try:
        added: int | float = one + other
        return added
    except OverflowError:  # an integer beyond all floats, and a float
        return math.inf if max(one, other, key=abs) > 0 else -math.inf
