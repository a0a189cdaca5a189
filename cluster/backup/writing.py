"""Writing the file of a backup: page by page, to be gone on with whenever it was interrupted.

It is written under another name, read back, and then gets its own in one step (`file`). Events that
were removed after they had been read are left out when the lives of streams are known.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.backup import BackupFailed
from cluster.backup.beside import TABLES, Beside, Settings, Tally, Thing
from cluster.backup.columns import column_of
from cluster.backup.digest import FIRST_LINK, StoredEvent, next_link
from cluster.backup.file import (
    APPLICATION_ID,
    EVENT_TABLES,
    FORMAT,
    MISREAD,
    NO_END,
    PAGE_BYTES,
    Advance,
    Finished,
    Head,
    Meta,
    connect,
    partial_of,
    read_meta,
)
from cluster.backup.history import events_of

# SQLite keeps to the order of a CROSS JOIN: one pass over the events, without sorting.
_REMOVED = """
SELECT e.position
FROM events AS e CROSS JOIN streams AS s ON s.stream_id = e.stream_id
     CROSS JOIN lives AS l ON l.stream = s.name
WHERE e.number < l.first ORDER BY e.position
"""


class Written:
    """A backup that is being written. Use it as a context; it closes the file, whatever happens.

    `position` is how far it is, `count` how many events it holds and `link` stands for them. It may
    be used from any thread, by one at a time. Raises BackupFailed and sqlite3.Error.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, head: Head) -> None:
        self.path = path
        self.head = head
        self.tally = Tally()
        self.position = 0
        self.count = 0
        self.link = FIRST_LINK
        self._last_id = ""  # of the event at `position`, if there is one
        self._connection = connection
        connection.execute("PRAGMA synchronous = FULL")  # outside of a transaction
        self._streams: dict[str, list[int]] = {}  # id, the number that comes next
        self._types: dict[str, int] = {}
        self._kinds: dict[tuple[str, str], int] = {}

    def __enter__(self) -> Written:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    @classmethod
    def begin(cls, path: Path, store: str, settings: Settings) -> Written:
        """A new file. It has its final name when it is finished."""
        try:
            connection = connect(partial_of(path))
        except sqlite3.OperationalError as error:
            raise BackupFailed(f"{partial_of(path)} cannot be made: {error}") from error
        try:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            written = cls(path, connection, Head(store, settings, NO_END))
            connection.execute("BEGIN IMMEDIATE")
            for statement in (*EVENT_TABLES.split(";\n"), *TABLES.split(";\n")):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            written._set(store=store, **settings._asdict())
            written._set(until=NO_END, position=0, events=0, link=FIRST_LINK.hex(), complete=0)
            connection.execute("COMMIT")
            written.tally.add(settings)
        except BaseException:
            connection.close()
            raise
        return written

    @classmethod
    def resume(cls, path: Path) -> Written:
        """Go on with the file that an interrupted backup left.

        One that had not come to the events (`head.until` is NO_END) is only good to be removed.
        """
        connection = connect(partial_of(path))
        try:
            meta = read_meta(connection, partial_of(path))
            written = cls(path, connection, meta.head)
            written.position, written.count = meta.position, meta.events
            written.link = bytes.fromhex(meta.link)
            written._load(meta)
        except BaseException as error:
            connection.close()
            if isinstance(error, MISREAD):
                raise BackupFailed(_damaged(path)) from error
            raise
        return written

    def put(self, things: Sequence[Thing]) -> None:
        """Add some of what stands beside the events."""
        self._connection.execute("BEGIN IMMEDIATE")
        Beside(self._connection).put(things)
        self._connection.execute("COMMIT")
        for thing in things:
            self.tally.add(thing)

    def end_at(self, until: int) -> None:
        """What is read before the events is there; they are wanted up to this position."""
        self._connection.execute("BEGIN IMMEDIATE")
        beside = Beside(self._connection)
        for surplus in beside.leave_out_surplus(self.head.settings.snapshots_kept):
            self.tally.remove(surplus)
        self._set(until=until, beside=self.tally.digest, parked=self.tally.parked_digest)
        self._connection.execute("COMMIT")
        self.head = self.head._replace(until=until)

    def _load(self, meta: Meta) -> None:
        if self.head.until != NO_END:
            self._load_beside(meta)
        ask = self._connection.execute
        for number, name in ask("SELECT * FROM streams"):
            self._streams[name] = [number, 0]
        query = "SELECT name, max(number) FROM events JOIN streams USING (stream_id)"
        for name, last in ask(f"{query} GROUP BY stream_id"):
            self._streams[name][1] = last + 1
        self._types = {name: number for number, name in ask("SELECT * FROM types")}
        self._kinds = {(data, metadata): n for n, data, metadata in ask("SELECT * FROM kinds")}
        last = "SELECT event_id FROM events WHERE position = ?"
        (self._last_id,) = ask(last, (self.position,)).fetchone() or ("",)

    def _load_beside(self, meta: Meta) -> None:
        """What stands beside the events, but the lives of streams: these are read again."""
        beside = Beside(self._connection)
        if not meta.complete:
            beside.clear_lives()
        for thing in chain((self.head.settings,), beside.things()):
            self.tally.add(thing)
        if (self.tally.digest, self.tally.parked_digest) != (meta.beside, meta.parked):
            raise BackupFailed(_damaged(self.path))
        for life in beside.lives():
            self.tally.remove(life)
        self._connection.execute("BEGIN IMMEDIATE")
        beside.clear_lives()
        self._set(beside=self.tally.digest, complete=0)
        self._connection.execute("COMMIT")

    def add(self, events: Sequence[StoredEvent], until: int) -> int:
        """Add a page of what is kept up to a position; how many positions were new.

        A page begins at the position up to which there are events already, to show that it goes on
        with the same history: a store may have been removed and made anew, with other events. Only
        if the event there has been removed it shows nothing.
        """
        if self.position and events and events[0].position == self.position:
            first, *events = events
            if first.event_id != self._last_id:
                raise BackupFailed(
                    f"the store has another history than the one that {partial_of(self.path)} has"
                    " begun with: remove that file, and begin anew"
                )
        before = self.position
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            rows = [self._row(event) for event in events]
            marks = ", ".join("?" * 9)
            self._connection.executemany(f"INSERT INTO events VALUES ({marks})", rows)
            if self.position < until:
                self.position, self._last_id = until, ""
            self._set(position=until, events=self.count, link=self.link.hex())
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.close()  # what is kept in memory is ahead of the file now
            raise
        return until - before

    def _row(self, event: StoredEvent) -> tuple[Any, ...]:
        stream = self._stream(event.stream)
        if event.position <= self.position or event.number < stream[1]:
            raise BackupFailed(
                f"there is event {event.number} of stream {event.stream!r} at position"
                f" {event.position}, behind number {stream[1] - 1} and position {self.position}"
            )
        stream[1] = event.number + 1
        self.position, self._last_id = event.position, event.event_id
        self.count += 1
        self.link = next_link(self.link, event)
        return (
            event.position,
            stream[0],
            event.number,
            event.event_id,
            self._type(event.event_type),
            self._kind((event.data_content_type, event.metadata_content_type)),
            event.created_us,
            column_of(event.data),
            column_of(event.metadata),
        )

    def _stream(self, name: str) -> list[int]:
        if name not in self._streams:
            self._streams[name] = [len(self._streams) + 1, 0]
            self._insert("streams", len(self._streams), name)
        return self._streams[name]

    def _type(self, name: str) -> int:
        if name not in self._types:
            self._types[name] = len(self._types) + 1
            self._insert("types", len(self._types), name)
        return self._types[name]

    def _kind(self, pair: tuple[str, str]) -> int:
        if pair not in self._kinds:
            self._kinds[pair] = len(self._kinds) + 1
            self._insert("kinds", len(self._kinds), *pair)
        return self._kinds[pair]

    def _insert(self, table: str, *values: Any) -> None:
        self._connection.execute(
            f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values
        )

    def _set(self, **values: Any) -> None:
        self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def leave_out_removed(self) -> None:
        """Leave out the events that were removed by the time at which their stream's life was read.

        What was written is compared before any of it goes.
        """
        removed = self._connection.execute(_REMOVED)
        following = removed.fetchone()
        if following is None:
            return
        written, kept, count = FIRST_LINK, FIRST_LINK, 0
        with suppress(*MISREAD):  # and so another link
            for event in events_of(self._connection):
                written = next_link(written, event)
                if following == (event.position,):
                    following = removed.fetchone()
                else:
                    kept, count = next_link(kept, event), count + 1
        if written != self.link:
            raise BackupFailed(f"{partial_of(self.path)} does not give back what was written to it")
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(f"DELETE FROM events WHERE position IN ({_REMOVED})")
        self._set(events=count, link=kept.hex())
        self._connection.execute("COMMIT")
        self.link, self.count = kept, count

    def finish(self, advance: Advance) -> Tally:
        """Read everything back, compare it, and give the file its name.

        What it holds beside the events.
        """
        self._set(beside=self.tally.digest, parked=self.tally.parked_digest, complete=1)
        self._connection.close()
        partial = partial_of(self.path)
        with Finished.open(partial) as found:
            tally = found.check(advance)
            if found.link != self.link:
                raise BackupFailed(f"{partial} does not give back what was written to it")
        os.replace(partial, self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return tally


def _damaged(path: Path) -> str:
    return f"{partial_of(path)} is damaged: remove it, and begin anew"
