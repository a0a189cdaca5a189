"""What is wrong with a value that events may not hold, and what its client is told.

    NotPlain                     400
    ├── TooDeep                  413, `nesting_max`
    ├── UnusualKeys
    └── TooManyIntegerKeys       413, `integer_keys_max`

They are raised where a value is decoded, walked over or judged (`values`, `walking`), which does
not know what it is a part of: a body, a request, the data of an event. Who called does.
"""

from __future__ import annotations

from node.api.limits import INTEGER_KEYS_MAX
from node.errors import InvalidRequest, PayloadTooLarge, RequestError


class NotPlain(ValueError):
    """The value holds something that events may not hold; the text says what."""


class TooDeep(NotPlain):
    """Arrays and maps stand inside one another more often than they may."""


class UnusualKeys(NotPlain):
    """Keys of a map are neither text nor integers; or integers, where only text was asked for."""


class TooManyIntegerKeys(NotPlain):
    """A map has more integers for keys than `INTEGER_KEYS_MAX`."""


def refusal(error: NotPlain, what: str, nesting_max: int) -> RequestError:
    """What is told of a body or request (`what`) with such a value, unless it is known better."""
    if isinstance(error, TooDeep):
        return too_deep(what, nesting_max)
    if isinstance(error, TooManyIntegerKeys):
        return _too_many_integer_keys(what)
    return InvalidRequest(str(error))


def too_deep(what: str, nesting_max: int) -> PayloadTooLarge:
    """How deep it is nested in the end was not looked at."""
    return PayloadTooLarge(
        f"{what}: nested {nesting_max + 1} deep or more, at most {nesting_max} are allowed",
        limit=nesting_max,
        actual=nesting_max + 1,
    )


def _too_many_integer_keys(what: str) -> PayloadTooLarge:
    """Nor were all keys counted."""
    return PayloadTooLarge(
        f"{what}: a map has {INTEGER_KEYS_MAX + 1} or more integers for keys, at most "
        f"{INTEGER_KEYS_MAX} are allowed; text may be any number",
        limit=INTEGER_KEYS_MAX,
        actual=INTEGER_KEYS_MAX + 1,
    )
