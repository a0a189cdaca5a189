"""Scans: reading a store in position order, and what was evaluated on the way.

A scan goes through positions in one direction and keeps those that match. It stops at the first of:
enough matches, enough bytes, the edge of the range, `positions_per_scan_max` positions, or, where
the filter looks into events, `decoded_bytes_per_scan_max` of them. It always tells the last
position that it *evaluated*, which is where the next page begins: a filtered reader never sees a
position twice and never skips one, even where nothing matched.

What a filter may ask for is said in `wanted`, what matches in `core.filters`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from node.api.limits import ApiLimits
from node.api.pacing import Pacer
from node.core.filters import Filter, Matcher
from node.core.store import Record, Row, Store

_SLICE_POSITIONS = 512
_PAUSE_BYTES = 64 * 1024  # how much is decoded between two turns of the event loop, at least


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
        edge = self._edge(head)
        return self.next <= edge if self.backward else self.next >= edge

    async def run(self, store: Store, limits: ApiLimits, pacer: Pacer, evaluate_max: int) -> None:
        """Go on, for at most `evaluate_max` positions (of one stream: events), up to the present
        end of the store: a matcher knows the types that there are now."""
        head, matcher = store.position, Matcher(store, self.wanted)
        left, decoded_max = evaluate_max, limits.decoded_bytes_per_scan_max
        looks_inside, pause_at = bool(self.wanted.where), min(_PAUSE_BYTES, decoded_max)
        while left > 0 and not self.is_end(head):
            before, takes_all = left, self.wanted.takes_all and not store.lives.removed
            for row in self._slice(store, head, min(left, _SLICE_POSITIONS)):
                self.next = row[0]
                left -= 1
                if takes_all or matcher.matches(row):
                    self.rows.append(row)
                    self.frame_bytes += len(row[5])
                    if self.full or self.frame_bytes >= limits.page_bytes_max:
                        return
                if looks_inside and matcher.decoded_bytes >= pause_at:
                    if matcher.decoded_bytes >= decoded_max:
                        return
                    pause_at = min(matcher.decoded_bytes + _PAUSE_BYTES, decoded_max)
                    await pacer.breathe()
            if left == before:  # the stream has no more
                self.next = self._edge(head)
            await pacer.breathe()

    def records(self, store: Store) -> Iterator[Record]:
        """The matches as records, made one at a time."""
        return (record_of(store, row) for row in self.rows)

    def _edge(self, head: int) -> int:
        """The last position to evaluate."""
        if self.backward:
            return max(1, self.until or 1)
        return head if self.until is None else min(head, self.until)

    def _slice(self, store: Store, head: int, count: int) -> Iterable[Row]:
        """The next rows to look at, not more than `count`."""
        edge = self._edge(head)
        if self.wanted.stream is not None:
            return self._slice_of_stream(store, self.wanted.stream, edge, count)
        if self.backward:
            return reversed(list(store.rows(max(self.next - 1 - count, edge - 1), self.next - 1)))
        return store.rows(self.next, min(self.next + count, edge))

    def _slice_of_stream(self, store: Store, name: str, edge: int, count: int) -> Iterator[Row]:
        """The same in one stream, whose positions are known: nothing between them matters."""
        stream = store.streams.get(name)
        if stream is None:
            return iter(())
        positions = stream.positions
        if self.backward:
            last = bisect_left(positions, self.next)
            first = max(bisect_left(positions, edge), last - count, stream.first)
            chosen = reversed(positions[first:last])
        else:
            first = max(bisect_right(positions, self.next), stream.first)
            chosen = iter(positions[first : min(first + count, bisect_right(positions, edge))])
        return (next(store.rows(position - 1, position)) for position in chosen)


def record_of(store: Store, row: Row) -> Record:
    """A row of the store as a record."""
    position, ordinal, number, created_us, _, frame = row
    return Record(store.stream_name(ordinal), number, position, created_us, frame)
