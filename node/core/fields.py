"""What the fields of a command may hold, and the refusal of one that holds something else."""

from __future__ import annotations

NAME_BYTES_MAX = 255
TIME_US_MAX = 253_402_300_799_999_999  # the end of the year 9999: readers show times as dates
NUMBER_MAX = 2**62


class MalformedCommand(ValueError):
    """The bytes are no command of this version; the text says which field."""


def need(condition: bool, field: str) -> None:
    """Raise `MalformedCommand` unless the field is as it must be."""
    if not condition:
        raise MalformedCommand(f"{field} is not as it must be")


def is_name(value: object) -> bool:
    """Whether it may name something: 1 to `NAME_BYTES_MAX` bytes as UTF-8."""
    # The limit is in bytes; most names are short, so ask the cheap thing first.
    if type(value) is not str or not value:
        return False
    try:
        return len(value) * 4 <= NAME_BYTES_MAX or len(value.encode()) <= NAME_BYTES_MAX
    except UnicodeEncodeError:
        return False


def is_time(value: object) -> bool:
    """Whether it is a time: microseconds since 1970."""
    return type(value) is int and 0 <= value <= TIME_US_MAX


def is_number(value: object) -> bool:
    """Whether it is a whole number from 0 to `NUMBER_MAX`."""
    return type(value) is int and 0 <= value <= NUMBER_MAX
