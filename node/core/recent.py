"""Which event ids are remembered, and for how long.

A client that did not learn the fate of an append repeats it with the same event ids and gets the
original answer. For that a store remembers the ids of its last events: never fewer than
`REMEMBERED_MIN`, never more than twice as many. To remember all would cost more memory than the
events themselves.

Ids live in two generations. When the younger one holds `REMEMBERED_MIN` ids it becomes the older
one and the oldest are forgotten. Generations change at multiples of `REMEMBERED_MIN` positions, so
that what is remembered depends on the position alone, and a node that was loaded from disk
remembers exactly what one that never stopped does.
"""

from __future__ import annotations

from collections.abc import Sequence

from node.core.frames import frame_id

REMEMBERED_MIN = 100_000


def first_remembered(count: int) -> int:
    """How many of `count` events are forgotten: the ids of those behind them are remembered."""
    return max(0, count // REMEMBERED_MIN - 1) * REMEMBERED_MIN


class RecentIds:
    """Event id -> position, for the last `REMEMBERED_MIN` to 2 x `REMEMBERED_MIN` events."""

    __slots__ = ("_older", "_younger")

    def __init__(self) -> None:
        self._older: dict[bytes, int] = {}
        self._younger: dict[bytes, int] = {}

    @classmethod
    def of(cls, frames: Sequence[bytes]) -> RecentIds:
        """What is remembered of a store that holds these frames, at positions 1, 2, 3, …"""
        recent = cls()
        for position in range(first_remembered(len(frames)) + 1, len(frames) + 1):
            recent.add(frame_id(frames[position - 1]), position)
        return recent

    def knows_any(self, event_ids: Sequence[bytes]) -> bool:
        """Whether an event with one of these ids is remembered."""
        # In C: what costs here is memory that no cache holds, and nothing should be added to it.
        new = self._younger.keys().isdisjoint(event_ids) and self._older.keys().isdisjoint(
            event_ids
        )
        return not new

    def add(self, event_id: bytes, position: int) -> None:
        """Remember an event. Positions must come in order, each once."""
        self._younger[event_id] = position
        if position % REMEMBERED_MIN == 0:
            self._older, self._younger = self._younger, {}

    def extend(self, event_ids: Sequence[bytes], positions: range) -> None:
        """Remember the events at these positions, which follow what was remembered last."""
        if (positions[0] - 1) // REMEMBERED_MIN == positions[-1] // REMEMBERED_MIN:
            self._younger.update(zip(event_ids, positions, strict=True))
            return
        for event_id, position in zip(event_ids, positions, strict=True):
            self.add(event_id, position)

    def position(self, event_id: bytes) -> int | None:
        """Where the event with this id stands, or None if it is not remembered."""
        found = self._younger.get(event_id)
        return self._older.get(event_id) if found is None else found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RecentIds):
            return NotImplemented
        return self._older == other._older and self._younger == other._younger

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self._older) + len(self._younger)
