"""Filters and scans: reading a store in position order, and what was evaluated on the way.

A scan goes through positions in one direction and keeps those that match. It stops at the first of:
enough matches, enough bytes, the edge of the range, or `positions_per_scan_max` positions. It
always tells the last position that it *evaluated*, which is where the next page begins: a filtered
reader never sees a position twice and never skips one, even where nothing matched.

What matches is said in `core.filters`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from node.api.limits import ApiLimits
from node.api.records import Pacer
from node.core.filters import Filter, Matcher
from node.core.store import Record, Row, Store

_SLICE_POSITIONS = 512


@dataclass(slots=True)
class Scan:
    """A read of the store in position order, as far as it got.

    It begins beside `next`, the last position evaluated before, and goes to `until` (included) or
    to the edge of the store. `rows` are the matches, in reading order, as the store gave them:
    plain tuples, which the garbage collector need not look at. `frame_bytes` is their size.
    """

    wanted: Filter
    backward: bool
    limit: int
    next: int
    until: int | None
    rows: list[Row]
    frame_bytes: int = 0

    @property
    def full(self) -> bool:
        """Whether the page has as many events as the reader asked for."""
        return len(self.rows) >= self.limit

    def is_end(self, head: int) -> bool:
        """Whether nothing is left to evaluate in a store whose last position is `head`."""
        if self.backward:
            return self.next <= max(1, self.until or 1)
        return self.next >= min(head, head if self.until is None else self.until)

    async def run(self, store: Store, limits: ApiLimits, pacer: Pacer, evaluate_max: int) -> None:
        """Go on, for at most `evaluate_max` positions (of one stream: events)."""
        matcher = None if self.wanted.takes_all else Matcher(store, self.wanted)
        if self.wanted.stream is not None:
            self._run_stream(store, limits, matcher, evaluate_max)
            return
        left = evaluate_max
        while left > 0 and not self.is_end(store.position):
            for row in self._slice(store, min(left, _SLICE_POSITIONS)):
                self.next = row[0]
                left -= 1
                if matcher is None or matcher.matches(row):
                    self.rows.append(row)
                    self.frame_bytes += len(row[5])
                    if self.full or self.frame_bytes >= limits.page_bytes_max:
                        return
            await pacer.breathe()

    def _run_stream(
        self, store: Store, limits: ApiLimits, matcher: Matcher | None, evaluate_max: int
    ) -> None:
        """Go on forward in one stream, whose positions are known: nothing between them matters."""
        stream = store.streams.get(self.wanted.stream or "")
        positions = () if stream is None else stream.positions
        edge = store.position if self.until is None else min(store.position, self.until)
        first = bisect_right(positions, self.next)
        for position in positions[first : min(first + evaluate_max, bisect_right(positions, edge))]:
            self.next = position
            row = next(store.rows(position - 1, position))
            if matcher is None or matcher.matches(row):
                self.rows.append(row)
                self.frame_bytes += len(row[5])
                if self.full or self.frame_bytes >= limits.page_bytes_max:
                    return
        if first + evaluate_max >= len(positions):
            self.next = max(self.next, edge)

    def records(self, store: Store) -> Iterator[Record]:
        """The matches as records, made one at a time."""
        streams = store.stream_list
        for position, ordinal, number, created_us, _, frame in self.rows:
            yield Record(streams[ordinal].name, number, position, created_us, frame)

    def _slice(self, store: Store, count: int) -> Iterator[Row]:
        if self.backward:
            first = max(self.next - 1 - count, (self.until or 1) - 1, 0)
            return reversed(list(store.rows(first, self.next - 1)))
        last = min(self.next + count, store.position)
        return store.rows(self.next, last if self.until is None else min(last, self.until))
