"""The tables, and how a connection to one of our files is opened.

Two kinds of file, told apart by `PRAGMA application_id`, with the format in `PRAGMA user_version`.
They are meant to be read with the sqlite3 shell; `readable_events` is the place to begin.

A store file has no index beside its primary keys, all of which grow at their end. An index over
(stream, number) or over names would make an insert cost more the more is stored; memory has those
indexes, the disk needs none.

Every connection is in WAL mode with `synchronous=FULL`: when COMMIT returns, the transaction is on
the disk. SQLite's own automatic checkpoint is off, because it would run inside a COMMIT that
someone waits for; `database` runs checkpoints between cycles.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from node.persistence.faults import FilesUnreadable, OtherFormat, StoreDamaged
from node.persistence.wal import is_emptied

FORMAT = 5
STORE_FILE = 0x45584553  # "EXES"
NODE_FILE = 0x4558454E  # "EXEN"

# A connection that only finds the file locked (an operator's shell) waits this long, then fails.
BUSY_TIMEOUT_MS = 2_000
# After a checkpoint SQLite cuts the WAL down to this when it starts it anew.
WAL_KEPT_BYTES_MAX = 4 * 1024 * 1024

Connect = Callable[[Path], sqlite3.Connection]
_T = TypeVar("_T", int, str)

STORE_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE streams (stream_id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE types (type_id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE checkpoints (
    name       TEXT NOT NULL,
    raft_index INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    checksum   INTEGER NOT NULL,
    PRIMARY KEY (name, raft_index)
) WITHOUT ROWID;
CREATE TABLE cuts (
    raft_index INTEGER PRIMARY KEY,
    term       INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    streams    INTEGER NOT NULL,
    types      INTEGER NOT NULL,
    contents   TEXT NOT NULL,
    checksum   INTEGER NOT NULL
);
CREATE VIEW readable_events AS
    SELECT e.block, e.position, s.name AS stream, e.number, t.name AS type,
           strftime('%Y-%m-%dT%H:%M:%S', e.created_us / 1000000, 'unixepoch')
               || printf('.%06dZ', e.created_us % 1000000) AS created,
           lower(hex(substr(e.frame, 4, 16))) AS event_id, length(e.frame) AS bytes, e.frame,
           substr(e.frame, 1, 1) = x'83' AS swept
    FROM events AS e JOIN streams AS s USING (stream_id) JOIN types AS t USING (type_id)
"""

NODE_TABLES = """
CREATE TABLE cut (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    raft_index INTEGER NOT NULL,
    term       INTEGER NOT NULL,
    checksum   INTEGER NOT NULL
);
CREATE TABLE stores (
    name       TEXT PRIMARY KEY,
    uid        INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    cut_index  INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    checksum   INTEGER NOT NULL
) WITHOUT ROWID
"""

# In the node's database; made where it is missing, because the first version did not have it.
DURABILITIES_TABLE = """
CREATE TABLE IF NOT EXISTS durabilities (
    name       TEXT PRIMARY KEY,
    durability TEXT NOT NULL
) WITHOUT ROWID
"""

# The same, of how many snapshots a series keeps.
SNAPSHOTS_KEPT_TABLE = """
CREATE TABLE IF NOT EXISTS snapshots_kept (
    name TEXT PRIMARY KEY,
    kept INTEGER NOT NULL
) WITHOUT ROWID
"""

# In a store's file, for the same reason.
SUBSCRIPTIONS_TABLE = """
CREATE TABLE IF NOT EXISTS subscriptions (
    name       TEXT NOT NULL,
    raft_index INTEGER NOT NULL,
    state      BLOB,
    checksum   INTEGER NOT NULL,
    PRIMARY KEY (name, raft_index)
)
"""

# What SQLite says when the system, not the file, is the trouble.
_SYSTEM_TROUBLE = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,  # another process holds a lock that is held for a moment only
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_NOLFS,
    sqlite3.SQLITE_AUTH,
}
_CORRUPTION = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_PRIMARY_CODE = 0xFF  # the rest of a code is the detail


# Events are appended and read in ranges. With pages of 16 KiB instead of 4, writing and folding an
# event of 300 bytes costs 1.8 us of processor time instead of 2.8 (measured side by side).
PAGE_BYTES = 16 * 1024


def connect(path: Path) -> sqlite3.Connection:
    """Open or create a database file with our settings. Raises sqlite3.Error, OSError, and
    StoreDamaged where it is empty and has a WAL: SQLite would delete that.
    """
    if is_emptied(path):
        raise StoreDamaged(path, "is empty, and its WAL is not")
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None)
    return configured(connection)


def configured(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Apply our settings; closes the connection if they cannot be applied."""
    try:
        if not connection.execute("PRAGMA page_count").fetchone()[0]:
            # Both count for a new file only, and must come before the first write.
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES_MAX}")
    except BaseException:
        connection.close()
        raise
    return connection


def ensure_tables(connection: sqlite3.Connection, path: Path, kind: int, tables: str) -> bool:
    """Create the tables in an empty file, or see that it is of our kind; True if it was empty.

    Raises StoreDamaged if it is something else, OtherFormat if another version wrote it.
    """
    if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        connection.execute("BEGIN IMMEDIATE")
        for statement in tables.split(";\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {kind}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")
        return True
    if connection.execute("PRAGMA application_id").fetchone()[0] != kind:
        raise StoreDamaged(path, "is a database, but not the kind that belongs here")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != FORMAT:
        # What another version meant by its sums would look like damage, and be set aside.
        raise OtherFormat(path, f"has format {version}; this version knows {FORMAT}")
    return False


def typed(path: Path, value: object, kind: type[_T]) -> _T:
    """A value that was read from the database at `path`. Raises StoreDamaged if it is of another
    kind: whatever a column was declared as, SQLite reads from it what the bytes of the row say.
    """
    if not isinstance(value, kind):
        found, wanted = type(value).__name__, kind.__name__
        raise StoreDamaged(path, f"is damaged: it has a value of type {found} in place of {wanted}")
    return value


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Reading or writing a file of ours: a statement that does not fit its tables tells of damage
    to it, since it fits those that were made. Raises StoreDamaged.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
            raise StoreDamaged(path, f"is damaged: {error}") from error
        raise


@contextmanager
def of_this_version(path: Path, was_written_here: bool) -> Iterator[None]:
    """A file that this process has relied on is no other version's, whatever its header says."""
    try:
        yield
    except OtherFormat as error:
        if was_written_here:
            raise StoreDamaged(path, error.reason) from error
        raise


def is_corruption(error: Exception) -> bool:
    """Whether an exception of a running node proves that the file itself is damaged.

    Stricter than `fault_of`: here the file is in use, and doubt speaks for trying again.
    """
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return code & _PRIMARY_CODE in _CORRUPTION
    # Without a code it is Python's: a text in the file, or one that SQLite quotes, is no UTF-8.
    return isinstance(error, (StoreDamaged, sqlite3.OperationalError, UnicodeDecodeError))


def fault_of(path: Path, error: Exception) -> FilesUnreadable | StoreDamaged:
    """What an exception while reading a database means: the system's trouble, or damage.

    The difference decides whether the files stay where they are: a missing permission must never
    make a node throw its data aside.
    """
    code = getattr(error, "sqlite_errorcode", None)
    system = isinstance(error, OSError) or (
        code is not None
        and code & _PRIMARY_CODE in _SYSTEM_TROUBLE
        and code != sqlite3.SQLITE_IOERR_SHORT_READ
    )
    if system:
        return FilesUnreadable(path, f"cannot be read: {error}")
    return StoreDamaged(path, f"is damaged: {error}")
