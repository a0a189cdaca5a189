"""A history in the file: its events, and what a restore puts where others were removed.

A restore has to give each event the position and the number that it had. So at each position whose
event was removed it appends a *filler*, and removes these in the end. A stream of which the events
from number k on are kept needs k fillers before its first event that is kept; one of which nothing
is kept needs as many as it had events, anywhere.

Which stream's filler stands where is nobody's business, only that all find a place in time. They do
if the streams take the free positions in order of their first kept events, each all that it needs
in a row: before such an event the store had its removed events of this stream and of all earlier
ones, at free positions. Two cursors that go along with the events tell the fillers: no list of them
is ever held.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple
from uuid import UUID, uuid5

from cluster.backup import BackupFailed
from cluster.backup.columns import value_of
from cluster.backup.digest import StoredEvent

READ_EVENTS = 1_000

_NAMESPACE = UUID("6a1c7e52-9d0b-4c0e-8f43-5b7f2d7a90c1")
_EVENTS = """
SELECT e.position, s.name, e.number, e.event_id, t.name, k.data_content_type,
       k.metadata_content_type, e.data, e.metadata, e.created_us
FROM events AS e JOIN streams AS s USING (stream_id) JOIN types AS t USING (type_id)
     JOIN kinds AS k USING (kind_id)
WHERE e.position > ? ORDER BY e.position LIMIT ?
"""
# SQLite keeps to the order of a CROSS JOIN: one pass over the events, without sorting.
_BEGINNINGS = """
SELECT l.stream, l.first
FROM events AS e CROSS JOIN streams AS s ON s.stream_id = e.stream_id
     CROSS JOIN lives AS l ON l.stream = s.name
WHERE l.first > 0 AND e.number = l.first ORDER BY e.position
"""
_EMPTY = "SELECT stream, first FROM lives WHERE first > version ORDER BY stream"


class Filler(NamedTuple):
    """What stands at a position whose event was removed, until it is removed itself."""

    position: int
    stream: str
    number: int

    @property
    def event_id(self) -> str:
        """The same whenever the restore is repeated."""
        return str(uuid5(_NAMESPACE, str(self.position)))

    def is_like(self, event: StoredEvent) -> bool:
        """Whether the event is this filler, as a store tells it."""
        return event[:4] == (*self, self.event_id)


def events_of(connection: sqlite3.Connection, after: int = 0) -> Iterator[StoredEvent]:
    """The events behind a position, in order; some thousand are read at once."""
    while rows := connection.execute(_EVENTS, (after, READ_EVENTS)).fetchall():
        for row in rows:
            yield StoredEvent._make((*row[:7], value_of(row[7]), value_of(row[8]), row[9]))
        after = rows[-1][0]


def history_of(
    connection: sqlite3.Connection, until: int, after: int = 0
) -> Iterator[StoredEvent | Filler]:
    """Something at each position behind `after` and up to `until`, in order.

    Raises BackupFailed where the streams do not say what was at one of them.
    """
    (kept,) = connection.execute(
        "SELECT count(*) FROM events WHERE position <= ?", (after,)
    ).fetchone()
    fillers = islice(_fillers(connection), after - kept, None)
    position = after
    for event in events_of(connection, after):
        yield from _filled(fillers, position, event.position)
        yield event
        position = event.position
    yield from _filled(fillers, position, until + 1)


def _filled(
    fillers: Iterator[tuple[str, int]], after: int, before: int
) -> Iterator[StoredEvent | Filler]:
    for position in range(after + 1, before):
        found = next(fillers, None)
        if found is None:
            raise BackupFailed(f"the file is damaged: nothing tells what was at {position}")
        yield Filler(position, *found)


def _fillers(connection: sqlite3.Connection) -> Iterator[tuple[str, int]]:
    """Streams and numbers of all fillers, in the order in which they are needed."""
    for query in (_BEGINNINGS, _EMPTY):
        for stream, first in connection.execute(query):
            for number in range(first):
                yield stream, number
