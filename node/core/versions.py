"""Expected versions: what a writer may say about where a stream stands, and how it is judged."""

from __future__ import annotations

from node.core.fields import NUMBER_MAX

# Expected versions that are not an event number. The first is also the version of no stream.
NO_STREAM = -1
ANY = -2
STREAM_EXISTS = -4
_CODES = (NO_STREAM, ANY, STREAM_EXISTS)


def is_expected(value: object) -> bool:
    """Whether it is an expected version: an event number or one of the codes."""
    return type(value) is int and (0 <= value <= NUMBER_MAX or value in _CODES)


def as_expected(expected: int, current: int) -> bool:
    """Whether a stream at version `current` is where the writer expects it."""
    if expected == ANY:
        return True
    if expected == STREAM_EXISTS:
        return current != NO_STREAM
    return expected == current
