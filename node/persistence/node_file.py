"""The node's database: the cut, and which store files belong to it.

The cut is the one number that says up to where this node's disk holds the replicated history. It
moves only after every store file holds its part, in a transaction of its own: that COMMIT is the
moment at which a cycle has happened. Each store's row names the mark (`cut_index`) at which its
file has to stand at the cut, so that a store file that is older than the cut is noticed. And the
checksum of the cut goes over those of the stores' rows: a row that is missing is noticed, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from node.core.commands import BY_NODE
from node.core.snapshots import KEPT_MAX
from node.persistence.checksums import row_checksum
from node.persistence.faults import StoreDamaged
from node.persistence.schema import (
    DURABILITIES_TABLE,
    NODE_FILE,
    NODE_TABLES,
    SNAPSHOTS_KEPT_TABLE,
    Connect,
    ensure_tables,
    fitting,
)
from node.persistence.store_file import StoreCut, checkpoint_wal

_NONE_LISTED = (0, 0)


class Cut(NamedTuple):
    """A place in the replicated history."""

    raft_index: int = 0
    term: int = 0


class StoreEntry(NamedTuple):
    """One store as of the cut; `bytes` is the sum of its frames.

    `durability` and `snapshots_kept` are in tables of their own, where they are set: older files
    have none of it. The checksum of the store's row covers them, so that they cannot be lost
    without a word.
    """

    name: str
    uid: int
    created_us: int
    cut_index: int
    position: int
    bytes: int
    durability: str = BY_NODE
    snapshots_kept: int = KEPT_MAX


def entry_of(cut: StoreCut, at: Cut) -> StoreEntry:
    """What is listed of a store that was written up to a cut."""
    store = cut.store
    return StoreEntry(
        name=store.name,
        uid=store.uid,
        created_us=store.created_us,
        cut_index=at.raft_index,
        position=cut.position,
        bytes=cut.frame_bytes,
        durability=cut.durability,
        snapshots_kept=cut.snapshots.kept,
    )


class NodeFile:
    """The open node.db. Belongs to the thread that opened it.

    Raises sqlite3.Error, OSError, StoreDamaged, OtherFormat.
    """

    def __init__(self, path: Path, connect: Connect) -> None:
        self.path = path
        self._connection = connect(path)
        try:
            with fitting(path):
                self.created = ensure_tables(self._connection, path, NODE_FILE, NODE_TABLES)
                self._connection.execute(DURABILITIES_TABLE)
                self._connection.execute(SNAPSHOTS_KEPT_TABLE)
        except BaseException:
            self.close()
            raise

    def cut(self) -> Cut:
        """The cut; (0, 0) before the first cycle."""
        with fitting(self.path):
            row = self._connection.execute("SELECT raft_index, term, checksum FROM cut").fetchone()
            listed = self._listed()
        if row is None and listed == _NONE_LISTED:
            return Cut()
        if row is None:
            raise StoreDamaged(self.path, "lists stores, and has no cut")
        if row[2] != row_checksum(*row[:2], *listed):
            raise StoreDamaged(self.path, "has a damaged cut, or lacks the entry of a store")
        return Cut(*row[:2])

    def stores(self) -> list[StoreEntry]:
        """The stores as of the cut."""
        entries: list[StoreEntry] = []
        durabilities = dict(self._connection.execute("SELECT name, durability FROM durabilities"))
        kept = dict(self._connection.execute("SELECT name, kept FROM snapshots_kept"))
        for row in self._connection.execute(
            "SELECT name, uid, created_us, cut_index, position, bytes, checksum FROM stores"
        ):
            entry = StoreEntry(*row[:6])._replace(
                durability=durabilities.get(row[0], BY_NODE),
                snapshots_kept=kept.get(row[0], KEPT_MAX),
            )
            if _checksum(entry) != row[6]:
                raise StoreDamaged(self.path, f"has a damaged entry for store {row[0]!r}")
            entries.append(entry)
        return entries

    def move(
        self,
        cut: Cut,
        listed: Iterable[StoreEntry],
        changed: Iterable[StoreEntry] | None,
        gone: Iterable[str],
    ) -> None:
        """Move the cut, in one transaction. On any exception close the file and open it again.

        Where it is not known what has changed (None), all that is `listed` takes the place of what
        is there; so it does in what has no cut yet: a file in the place of one that was removed.
        Raises what opening does: a row that is missing already must not be left out for good.
        """
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        if self.cut() == Cut() or changed is None:
            changed = listed
            for table in ("stores", "durabilities", "snapshots_kept"):
                execute(f"DELETE FROM {table} WHERE true")  # writes no page of an empty one
        for name in gone:
            execute("DELETE FROM stores WHERE name = ?", (name,))
            execute("DELETE FROM durabilities WHERE name = ?", (name,))
            execute("DELETE FROM snapshots_kept WHERE name = ?", (name,))
        for entry in changed:
            values = (*entry[:6], _checksum(entry))
            execute("REPLACE INTO stores VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            execute("DELETE FROM durabilities WHERE name = ?", (entry.name,))
            if entry.durability != BY_NODE:
                execute("INSERT INTO durabilities VALUES (?, ?)", (entry.name, entry.durability))
            execute("DELETE FROM snapshots_kept WHERE name = ?", (entry.name,))
            if entry.snapshots_kept != KEPT_MAX:
                kept = entry.name, entry.snapshots_kept
                execute("INSERT INTO snapshots_kept VALUES (?, ?)", kept)
        checksum = row_checksum(*cut, *self._listed())
        execute("REPLACE INTO cut VALUES (1, ?, ?, ?)", (*cut, checksum))
        execute("COMMIT")

    def _listed(self) -> tuple[int, int]:
        """How many stores there are, and the sum of their checksums."""
        query = "SELECT count(*), coalesce(sum(checksum), 0) FROM stores"
        count, total = self._connection.execute(query).fetchone()
        return count, total

    def checkpoint_wal(self) -> int:
        """See `store_file.checkpoint_wal`."""
        return checkpoint_wal(self._connection)

    def close(self) -> None:
        """Close; SQLite then folds the WAL into the file if nobody else has it open."""
        self._connection.close()


def _checksum(entry: StoreEntry) -> int:
    if entry.snapshots_kept != KEPT_MAX:
        return row_checksum(*entry)
    return row_checksum(*(entry[:6] if entry.durability == BY_NODE else entry[:7]))
