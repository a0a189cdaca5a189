"""Courses: how far somebody who follows a store has come, and what is to be said next.

A course keeps a position. A look evaluates what the store has behind it, and gives what is to be
said about that: the events that match, in the form in which they are sent, and behind them at most
one place, `caught_up` or `checkpoint`. What was said is sent in pieces of about `_PIECE_BYTES`,
each of which names the last thing in it: a client that got so far goes on from there.

An event that several courses send in one form is encoded once (`Encoded`); who is at the end of a
store shares a course with all who want the same (`crowds`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from node.api.filters import Scan, record_of
from node.api.limits import ApiLimits
from node.api.pacing import Pacer
from node.api.records import json_event
from node.core.filters import Filter
from node.core.store import Row, Store

SSE, NDJSON = "text/event-stream", "application/x-ndjson"

_BATCH_EVENTS = 256
_LOOK_POSITIONS = 20_000
_CHECKPOINT_POSITIONS = 1_000
_CHECKPOINT_S = 5.0
_PIECE_BYTES = 64 * 1024

_ENCODED_BYTES_MAX = 16 * 1024 * 1024
_CLOSE_POSITIONS = 20_000


def _as_sse(position: int, kind: str, data: bytes) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (position, kind.encode(), data)


def _as_line(position: int, kind: str, data: bytes) -> bytes:
    return b'{"id":%d,"event":"%b","data":%b}\n' % (position, kind.encode(), data)


class Form(NamedTuple):
    """One of the two forms in which things are said: `written` gives a thing with its position,
    its kind and its data in JSON; `heartbeat` is a sign of life."""

    written: Callable[[int, str, bytes], bytes]
    heartbeat: bytes


FORMS: Mapping[str, Form] = {
    SSE: Form(_as_sse, b": hb\n\n"),
    NDJSON: Form(_as_line, b"\n"),
}


class Encoded:
    """Events in one form, as they were sent last, so that each is put into it once for all who
    follow closely.

    At `_ENCODED_BYTES_MAX` the oldest are dropped, and encoded again for whoever still needs them.
    What is far behind the store's end is not kept: it would drive out what all others send.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self._events: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._bytes = 0

    def events(self, store: Store, rows: list[Row]) -> list[bytes]:
        """Events as they are sent; of those that are known nothing is looked at."""
        uid, known, close = store.uid, self._events.get, store.position - _CLOSE_POSITIONS
        return [
            known((uid, row[0])) or self._encoded(store, row, is_close=row[0] >= close)
            for row in rows
        ]

    def _encoded(self, store: Store, row: Row, is_close: bool) -> bytes:
        event = self.form.written(row[0], "event", json_event(record_of(store, row)))
        if is_close:
            self._events[store.uid, row[0]] = event
            self._bytes += len(event)
            while self._bytes > _ENCODED_BYTES_MAX:
                _, oldest = self._events.popitem(last=False)
                self._bytes -= len(oldest)
        return event


class Piece(NamedTuple):
    """What is sent at once: so many events, perhaps a place; `last` is the last `id` in it."""

    written: bytes
    events: int
    last: int


class Said(NamedTuple):
    """What a look that got to `reached` gave: events and their positions, in order, and a place."""

    positions: list[int]
    events: list[bytes]
    place: bytes
    reached: int

    def pieces(self, after: int) -> list[Piece]:
        """What somebody is sent who knows all up to `after`."""
        pieces: list[Piece] = []
        start, size = bisect_right(self.positions, after), 0
        for index in range(start, len(self.events)):
            size += len(self.events[index])
            if size >= _PIECE_BYTES:
                pieces.append(self._piece(start, index + 1))
                start, size = index + 1, 0
        if self.place and after <= self.reached:
            written = b"".join((*self.events[start:], self.place))
            pieces.append(Piece(written, len(self.events) - start, self.reached))
        elif start < len(self.events):
            pieces.append(self._piece(start, len(self.events)))
        return pieces

    def _piece(self, start: int, stop: int) -> Piece:
        return Piece(b"".join(self.events[start:stop]), stop - start, self.positions[stop - 1])


class Course:
    """How far somebody has come who wants these events in this form; moments are the event loop's.

    `position` is the last one evaluated. `is_behind` says that `caught_up` is to be said when the
    end is reached.
    """

    def __init__(
        self,
        encoded: Encoded,
        limits: ApiLimits,
        wanted: Filter,
        after: int,
        moment: float,
    ) -> None:
        self.wanted = wanted
        self.form = encoded.form
        self.position = after
        self.is_behind = True
        self._encoded = encoded
        self._limits = limits
        self._told, self._told_at = after, moment  # the last `id` that was said, and when
        self._pacer = Pacer()

    def beside(self, position: int, is_behind: bool) -> Course:
        """A course for the same wishes that has come so far, and has told all of it."""
        other = Course(self._encoded, self._limits, self.wanted, position, self._told_at)
        other.is_behind = is_behind
        return other

    def owe(self, other: Course) -> None:
        """Tell so early that it is not too late for whoever came on the other course."""
        self._told = min(self._told, other._told)
        self._told_at = min(self._told_at, other._told_at)

    @property
    def is_untold(self) -> bool:
        """Whether more was evaluated than was told: a checkpoint may be due."""
        return self.position > self._told

    async def look(self, store: Store, moment: float) -> Said:
        """What has to be said about the positions behind the last one evaluated."""
        scan = Scan(self.wanted, False, _BATCH_EVENTS, self.position, None, [])
        await scan.run(store, self._limits, self._pacer, _LOOK_POSITIONS)
        self.position = max(self.position, scan.next)
        positions = [row[0] for row in scan.rows]
        events = self._encoded.events(store, scan.rows)
        await self._pacer.breathe()
        if positions:
            self._tell(positions[-1], moment)
        at_end, place = scan.next >= store.position, b""
        if self.is_behind and at_end:
            place = self._place("caught_up", moment)
        elif self._owes_checkpoint(moment):
            place = self._place("checkpoint", moment)
        self.is_behind = not at_end and (self.is_behind or scan.full)
        return Said(positions, events, place, self.position)

    def _owes_checkpoint(self, moment: float) -> bool:
        untold = self.position - self._told
        return untold >= _CHECKPOINT_POSITIONS or (
            untold > 0 and moment - self._told_at >= _CHECKPOINT_S
        )

    def _place(self, kind: str, moment: float) -> bytes:
        self._tell(self.position, moment)
        return self.form.written(self.position, kind, b'{"position":%d}' % self.position)

    def _tell(self, position: int, moment: float) -> None:
        self._told, self._told_at = position, moment
