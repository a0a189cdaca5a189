"""One stream: where in the store each of its events stands.

The event with number n stands at position ``positions[n]``. Eight bytes an event, and the stream's
version is kept by its length: looking at a stream is cheap whatever it holds.
"""

from __future__ import annotations

from array import array


class Stream:
    """A stream that has at least one event. `ordinal` counts streams in order of their creation."""

    __slots__ = ("name", "ordinal", "positions")

    def __init__(self, name: str, ordinal: int) -> None:
        self.name = name
        self.ordinal = ordinal
        self.positions = array("Q")

    @property
    def version(self) -> int:
        """The number of the last event."""
        return len(self.positions) - 1

    @property
    def count(self) -> int:
        """How many events it holds."""
        return len(self.positions)
