"""The file of a backup: SQLite, made to be read with the shell that everybody has.

    sqlite3 orders.backup 'select position, stream, type, data from readable_events limit 3'
    sqlite3 orders.backup 'select source, stream, version, data from snapshots limit 3'
    sqlite3 orders.backup 'select subscription, why, position, data from parked_events'

What stands beside the events comes first (`beside`), then the position up to which events are
wanted, then these. A page of events, and how far the file is with it, are one transaction. So a
file that was left in the middle, by a crash too, is a shorter history, and can be gone on with. It
is named `*.partial` until it is complete, has been read back and compared; then it gets its name in
one step.

Memory: a page, and what is known of each stream (its name, id and length).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import cbor2
import msgspec

from cluster.backup import BackupFailed
from cluster.backup.beside import TABLES, Beside, Settings, Tally, Thing
from cluster.backup.columns import column_of, value_of
from cluster.backup.digest import FIRST_LINK, StoredEvent, next_link

APPLICATION_ID = 0x45584542  # "EXEB"
FORMAT = 2
PARTIAL = ".partial"
NO_END = -1
"""Where a backup ends that has not come to the events yet."""

_PAGE_BYTES = 16 * 1024
_READ_EVENTS = 1_000
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE streams (stream_id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE types (type_id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE kinds (
    kind_id               INTEGER PRIMARY KEY,
    data_content_type     TEXT NOT NULL,
    metadata_content_type TEXT NOT NULL
);
CREATE TABLE events (
    position   INTEGER PRIMARY KEY,
    stream_id  INTEGER NOT NULL,
    number     INTEGER NOT NULL,
    event_id   TEXT NOT NULL,
    type_id    INTEGER NOT NULL,
    kind_id    INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    data,
    metadata
);
CREATE VIEW readable_events AS
    SELECT e.position, s.name AS stream, e.number, t.name AS type, e.event_id,
           strftime('%Y-%m-%dT%H:%M:%S', e.created_us / 1000000, 'unixepoch')
               || printf('.%06dZ', e.created_us % 1000000) AS created,
           e.data, e.metadata, k.data_content_type, k.metadata_content_type
    FROM events AS e JOIN streams AS s USING (stream_id) JOIN types AS t USING (type_id)
         JOIN kinds AS k USING (kind_id)
"""
_SELECT = """
SELECT e.position, s.name, e.number, e.event_id, t.name, k.data_content_type,
       k.metadata_content_type, e.data, e.metadata, e.created_us
FROM events AS e JOIN streams AS s USING (stream_id) JOIN types AS t USING (type_id)
     JOIN kinds AS k USING (kind_id)
WHERE e.position > ? ORDER BY e.position LIMIT ?
"""

_DAMAGED = (sqlite3.Error, msgspec.DecodeError, cbor2.CBORDecodeError, TypeError)

Advance = Callable[[int], None]
"""Told how many events have been dealt with, for a progress bar."""


class Head(NamedTuple):
    """What a backup is of: the store's name and settings, and its last position."""

    store: str
    settings: Settings
    until: int


class Written:
    """A backup that is being written. Use it as a context; it closes the file, whatever happens.

    It may be used from any thread, by one at a time. Raises BackupFailed and sqlite3.Error.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, head: Head) -> None:
        self.path = path
        self.head = head
        self.tally = Tally()
        self.position = 0
        self.link = FIRST_LINK
        self._last_id = ""
        self._connection = connection
        connection.execute("PRAGMA synchronous = FULL")  # outside of a transaction
        self._streams: dict[str, list[int]] = {}  # id, length
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
        connection = _connect(partial_of(path))
        try:
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            written = cls(path, connection, Head(store, settings, NO_END))
            connection.execute("BEGIN IMMEDIATE")
            for statement in (*_TABLES.split(";\n"), *TABLES.split(";\n")):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            written._set(store=store, **settings._asdict())
            written._set(until=NO_END, events=0, link=FIRST_LINK.hex(), complete=0)
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
        connection = _connect(partial_of(path))
        try:
            meta, head = _read_meta(connection, partial_of(path))
            written = cls(path, connection, head)
            written.position, written.link = meta["events"], bytes.fromhex(meta["link"])
            written._load()
        except BaseException:
            connection.close()
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
        """Everything beside the events is there; they are wanted up to this position."""
        self._connection.execute("BEGIN IMMEDIATE")
        if self.head.settings.snapshots_kept is not None:
            beside = Beside(self._connection)
            for surplus in beside.leave_out_surplus(self.head.settings.snapshots_kept):
                self.tally.remove(surplus)
        self._set(until=until, beside=self.tally.digest, parked=self.tally.parked_digest)
        self._connection.execute("COMMIT")
        self.head = self.head._replace(until=until)

    def _load(self) -> None:
        ask = self._connection.execute
        query = "SELECT name, s.stream_id, count(*) FROM streams AS s JOIN events USING (stream_id)"
        for name, number, length in ask(f"{query} GROUP BY s.stream_id"):
            self._streams[name] = [number, length]
        self._types = {name: number for number, name in ask("SELECT * FROM types")}
        self._kinds = {(data, metadata): n for n, data, metadata in ask("SELECT * FROM kinds")}
        last = "SELECT event_id FROM events WHERE position = ?"
        (self._last_id,) = ask(last, (self.position,)).fetchone() or ("",)

    def add(self, events: Sequence[StoredEvent]) -> int:
        """Add a page; how many events were new.

        A page begins with the last event that is here already, to show that it goes on with the
        same history: a store may have been removed and made anew, with other events.
        """
        if self.position:
            first, *events = events
            if (first.position, first.event_id) != (self.position, self._last_id):
                raise BackupFailed(
                    f"the store has another history than the one that {partial_of(self.path)} has"
                    " begun with: remove that file, and begin anew"
                )
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            rows = [self._row(event) for event in events]
            marks = ", ".join("?" * 9)
            self._connection.executemany(f"INSERT INTO events VALUES ({marks})", rows)
            self._set(events=self.position, link=self.link.hex())
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.close()  # what is kept in memory is ahead of the file now
            raise
        return len(events)

    def _row(self, event: StoredEvent) -> tuple[Any, ...]:
        stream = self._stream(event.stream)
        if (event.position, event.number) != (self.position + 1, stream[1]):
            raise BackupFailed(
                f"there is event {event.number} of stream {event.stream!r} at position"
                f" {event.position}, where event {stream[1]} at {self.position + 1} should be:"
                " a history with gaps, from which events were removed, cannot be brought back as it"
                " was"
            )
        stream[1] += 1
        self.position, self._last_id = event.position, event.event_id
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

    def finish(self, advance: Advance) -> Tally:
        """Read everything back, compare it, and give the file its name.

        What it holds beside the events.
        """
        self._set(complete=1, streams=len(self._streams))
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


class Finished:
    """A complete backup, to be read. Use it as a context, from any thread, by one at a time.

    `link` stands for the events, `digest_beside` for what comes back beside them.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.beside = Beside(connection)
        self._connection = connection
        meta, self.head = _read_meta(connection, path)
        if not meta["complete"]:
            raise BackupFailed(f"{path} is not complete: its backup was interrupted")
        self.link = bytes.fromhex(meta["link"])
        self.digest_beside: str = meta["beside"]
        self._parked_digest: str = meta["parked"]

    @classmethod
    def open(cls, path: Path) -> Finished:
        """Raises BackupFailed if it is not there, or something else."""
        if not path.is_file():
            raise BackupFailed(f"there is no file {path}")
        connection = _connect(path, "?mode=ro")
        try:
            return cls(path, connection)
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> Finished:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    def events(self, after: int = 0) -> Iterator[StoredEvent]:
        """The events behind a position, in order."""
        for row in self._rows(after):
            yield StoredEvent._make((*row[:7], value_of(row[7]), value_of(row[8]), row[9]))

    def _rows(self, after: int) -> Iterator[tuple[Any, ...]]:
        while rows := self._connection.execute(_SELECT, (after, _READ_EVENTS)).fetchall():
            yield from rows
            after = rows[-1][0]

    def check(self, advance: Advance) -> Tally:
        """What is there beside the events. Raises BackupFailed unless all is what was written."""
        self._check_events(advance)
        tally = Tally()
        tally.add(self.head.settings)
        try:
            for thing in self.beside.things():
                tally.add(thing)
        except _DAMAGED as error:
            raise BackupFailed(f"{self.path} is damaged beside its events: {error}") from error
        if (tally.digest, tally.parked_digest) != (self.digest_beside, self._parked_digest):
            raise BackupFailed(
                f"{self.path} is damaged: its snapshots, subscriptions or checkpoints have digest"
                f" {tally.digest}, where {self.digest_beside} should be"
            )
        return tally

    def _check_events(self, advance: Advance) -> None:
        link, position = FIRST_LINK, 0
        lengths: dict[str, int] = {}
        try:
            for event in self.events():
                position += 1
                number = lengths.get(event.stream, 0)
                if (event.position, event.number) != (position, number):
                    raise BackupFailed(f"{self.path} is damaged: not gapless at {position}")
                lengths[event.stream] = number + 1
                link = next_link(link, event)
                if not position % _READ_EVENTS:
                    advance(_READ_EVENTS)
        except _DAMAGED as error:
            raise BackupFailed(f"{self.path} is damaged behind {position}: {error}") from error
        if position != self.head.until or link != self.link:
            raise BackupFailed(
                f"{self.path} is damaged: {position:,} events with digest {link.hex()}, where"
                f" {self.head.until:,} with {self.link.hex()} should be"
            )
        advance(position % _READ_EVENTS)


def partial_of(path: Path) -> Path:
    """Where a backup is until it is finished."""
    return path.with_name(path.name + PARTIAL)


def _connect(path: Path, mode: str = "") -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}{mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )


def _read_meta(connection: sqlite3.Connection, path: Path) -> tuple[dict[str, Any], Head]:
    try:
        (kind,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if kind != APPLICATION_ID:
            raise BackupFailed(f"{path} is not a backup of a store")
        if version != FORMAT:
            raise BackupFailed(f"{path} has format {version}; this version knows {FORMAT}")
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        settings = Settings(meta["durability"], meta["snapshots_kept"])
        return meta, Head(meta["store"], settings, meta["until"])
    except (sqlite3.Error, KeyError) as error:
        raise BackupFailed(f"{path} cannot be read: {error}") from error
