"""One stream: where in the store each of its events stands, and which of them are kept.

The event with number n stands at position ``positions[n]``. Eight bytes an event, and the stream's
version is kept by its length: looking at a stream is cheap whatever it holds.

Events are removed from the beginning only, so what is kept is said by one number, `first`. What
makes it grow is said in `lives`.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

ALIVE, SOFT_DELETED, HARD_DELETED = range(3)


class Limits(NamedTuple):
    """A stream's metadata: how many of its events are kept, how long, and from which number on."""

    max_count: int | None = None
    max_age_ms: int | None = None
    truncate_before: int | None = None


NO_LIMITS = Limits()


class Stream:
    """A stream that had at least one event. `ordinal` counts streams in order of their creation.

    Events with a number below `first` are removed. Of those below `swept` this node holds no frames
    any more: its own affair, and never ahead of `first`.
    """

    __slots__ = ("first", "limits", "name", "ordinal", "positions", "swept")

    def __init__(self, name: str, ordinal: int) -> None:
        self.name = name
        self.ordinal = ordinal
        self.positions = array("Q")
        self.first = 0
        self.swept = 0
        self.limits = NO_LIMITS

    @property
    def version(self) -> int:
        """The number of the last event."""
        return len(self.positions) - 1

    @property
    def count(self) -> int:
        """How many events are kept."""
        return len(self.positions) - self.first
