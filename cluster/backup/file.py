"""The file of a backup: SQLite, made to be read with the shell that everybody has.

    sqlite3 orders.backup 'select position, stream, type, data from readable_events limit 3'
    sqlite3 orders.backup 'select source, stream, version, data from snapshots limit 3'
    sqlite3 orders.backup 'select subscription, why, position, data from parked_events'
    sqlite3 orders.backup 'select stream, life, version, first, metadata from lives'

What stands beside the events comes first (`beside`), then the position up to which events are
wanted, then these, then the lives of streams (`lives`). A page of events, and how far the file is
with it, are one transaction. So a file that was left in the middle, by a crash too, is a shorter
history, and can be gone on with. Of a stream that lost events the file holds those behind them, all
at the positions that they had. It is named `*.partial` until it is complete, has been read back and
compared; then it gets its name in one step.

Memory: a page, and what is known of each stream (its name, id and length).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, NamedTuple

import cbor2
import msgspec

from cluster.backup import BackupFailed
from cluster.backup.beside import ALIVE, Beside, Settings, Tally
from cluster.backup.digest import FIRST_LINK, StoredEvent, next_link
from cluster.backup.history import READ_EVENTS, Filler, events_of, history_of

APPLICATION_ID = 0x45584542  # "EXEB"
FORMAT = 3
PARTIAL = ".partial"
NO_END = -1
"""Where a backup ends that has not come to the events yet."""

PAGE_BYTES = 16 * 1024
EVENT_TABLES = """
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
MISREAD = (
    *(msgspec.MsgspecError, cbor2.CBORError, RecursionError),
    *(TypeError, ValueError, LookupError, ArithmeticError),
)
"""What comes of values that are not as they were written, wherever they are used first."""
_DAMAGED = (sqlite3.Error, *MISREAD)

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Sum = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]

Advance = Callable[[int], None]
"""Told how many positions have been dealt with, for a progress bar."""


class Head(NamedTuple):
    """What a backup is of: the store's name and settings, and its last position."""

    store: str
    settings: Settings
    until: int


class Meta(msgspec.Struct, frozen=True):
    """The table `meta`: what a backup is of, how far it is, and what it must give back.

    What stands beside the events has no digest before it is all there.
    """

    store: str
    durability: str | None
    snapshots_kept: int | None
    until: Annotated[int, msgspec.Meta(ge=NO_END)]
    position: _Count
    events: _Count
    link: _Sum
    complete: Literal[0, 1]
    beside: _Sum = ""
    parked: _Sum = ""

    @property
    def head(self) -> Head:
        return Head(self.store, Settings(self.durability, self.snapshots_kept), self.until)


class Finished:
    """A complete backup, to be read. Use it as a context, from any thread, by one at a time.

    It has `count` events; `link` stands for them, `digest_beside` for what comes back beside them.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.beside = Beside(connection)
        self._connection = connection
        meta = read_meta(connection, path)
        if not meta.complete:
            raise BackupFailed(f"{path} is not complete: its backup was interrupted")
        self.head = meta.head
        self.link, self.count = bytes.fromhex(meta.link), meta.events
        self.digest_beside = meta.beside
        self._parked_digest = meta.parked

    @classmethod
    def open(cls, path: Path) -> Finished:
        """Raises BackupFailed if it is not there, or something else."""
        if not path.is_file():
            raise BackupFailed(f"there is no file {path}")
        connection = connect(path, "?mode=ro")
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
        return events_of(self._connection, after)

    def history(self, after: int = 0) -> Iterator[StoredEvent | Filler]:
        """The same, and something wherever an event was removed. Raises BackupFailed."""
        return history_of(self._connection, self.head.until, after)

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
        link, position, count = FIRST_LINK, 0, 0
        lengths: dict[str, int] = {}
        try:
            for event in self.history():
                position += 1
                number = lengths.get(event.stream, 0)
                if (event.position, event.number) != (position, number):
                    raise BackupFailed(f"{self.path} is damaged: not gapless at {position}")
                lengths[event.stream] = number + 1
                if isinstance(event, StoredEvent):
                    link, count = next_link(link, event), count + 1
                if not position % READ_EVENTS:
                    advance(READ_EVENTS)
            self._check_lengths(lengths)
        except _DAMAGED as error:
            raise BackupFailed(f"{self.path} is damaged behind {position}: {error}") from error
        if (position, count, link) != (self.head.until, self.count, self.link):
            raise BackupFailed(
                f"{self.path} is damaged: {count:,} events up to {position:,} with digest"
                f" {link.hex()}, where {self.count:,} up to {self.head.until:,} with"
                f" {self.link.hex()} should be"
            )
        advance(position % READ_EVENTS)

    def _check_lengths(self, lengths: dict[str, int]) -> None:
        """Whether streams are as long as their lives say, and deleted ones empty."""
        for life in self.beside.lives():
            over = life.life != ALIVE
            if lengths.get(life.stream) != life.version + 1 or (
                over and life.first <= life.version
            ):
                raise BackupFailed(f"{self.path} is damaged: stream {life.stream!r} is another")


def partial_of(path: Path) -> Path:
    """Where a backup is until it is finished."""
    return path.with_name(path.name + PARTIAL)


def connect(path: Path, mode: str = "") -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}{mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )


def read_meta(connection: sqlite3.Connection, path: Path) -> Meta:
    """What the file says of itself. Raises BackupFailed if that is nothing, or cannot be."""
    try:
        (kind,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if kind != APPLICATION_ID:
            raise BackupFailed(f"{path} is not a backup of a store")
        if version != FORMAT:
            raise BackupFailed(f"{path} has format {version}; this version knows {FORMAT}")
        return msgspec.convert(dict(connection.execute("SELECT key, value FROM meta")), Meta)
    except MISREAD as error:  # SQLite's own words too may hold what is no text
        raise BackupFailed(f"{path} is damaged: {error}") from error
    except sqlite3.Error as error:
        raise BackupFailed(f"{path} cannot be read: {error}") from error
