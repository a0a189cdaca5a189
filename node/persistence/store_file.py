"""One store's database: append what is new, roll back to a mark, read everything.

A *mark* is a row of the table `cuts`: up to which position, stream, type and checkpoint move the
store stood at some raft index, with the checksums of all before it. A transaction appends what is
new and the mark that it reaches. Marks are kept from the one that the node's cut refers to, so
that the file can always be rolled back to it: another store may fail in the same cycle, or the
process die before the cut moves.

A failed transaction leaves nothing to trust. After a failed fsync the kernel marks the pages as
clean although they never reached the disk, and a later fsync says yes. So the owner drops the
connection, opens the file again, and `roll_back` removes whatever that transaction may have left,
before the same rows are written anew.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import NamedTuple

from node.core.lives import Life
from node.core.snapshots import Snapshot
from node.core.store import Store
from node.core.subscription_state import Taken
from node.persistence import life_rows, snapshot_rows
from node.persistence.blocks import BLOCKS_TABLE, Block, blocks_of, with_husks
from node.persistence.checksums import Checksums, parse_checksums, row_checksum
from node.persistence.faults import StoreDamaged
from node.persistence.life_rows import LIVES_TABLE
from node.persistence.schema import (
    BUSY_TIMEOUT_MS,
    STORE_FILE,
    STORE_TABLES,
    Connect,
    ensure_tables,
    fitting,
    typed,
)
from node.persistence.snapshot_rows import SNAPSHOTS_TABLES, SnapshotsCut
from node.persistence.statements import insert
from node.persistence.subscription_rows import SubscriptionRows

# What one transaction of a sweep writes anew: so many blocks, and no further one beyond the bytes.
_BLOCKS_A_SWEEP = 128
_BYTES_A_SWEEP = 1024 * 1024
# Blocks that are taken from the file at a time.
_BLOCKS_A_FETCH = 64
# So many free pages stay in a file, 1 MiB: the next events fill them.
FREE_PAGES_MAX = 64


class Mark(NamedTuple):
    """Where a store stood at a raft index, and the checksums of all that it held there."""

    raft_index: int = 0
    term: int = 0
    position: int = 0
    streams: int = 0
    types: int = 0
    contents: Checksums = Checksums()


class CheckpointMove(NamedTuple):
    """A checkpoint's place since a raft index."""

    name: str
    raft_index: int
    position: int


@dataclass(frozen=True, slots=True)
class StoreCut:
    """What of one store belongs to a cycle: everything up to these counts.

    Taken on the event loop in one step; `store` is then read from the persistence thread, which is
    safe below these counts because a store's columns only grow. `frame_bytes` is the store's total.
    `subscriptions` and `lives` are those that changed, `subscription_names` all that there are.
    `anew` says that what is in the file may not be the beginning of it.
    """

    store: Store
    position: int
    streams: int
    types: int
    frame_bytes: int
    durability: str
    moves: tuple[CheckpointMove, ...]
    snapshots: SnapshotsCut
    subscriptions: tuple[Taken, ...]
    subscription_names: frozenset[str]
    lives: Sequence[Life]
    lives_digest: int
    anew: bool = False


class StoreFile:
    """An open store file. Belongs to the thread that opened it.

    Opening creates the file if need be, and rolls it back to the mark at `mark_index` (0: to
    nothing). Raises sqlite3.Error, OSError, StoreDamaged, OtherFormat.
    """

    def __init__(self, path: Path, mark_index: int, connect: Connect) -> None:
        self.path = path
        self._connection = connect(path)
        try:
            with fitting(path):
                tables = ";\n".join((STORE_TABLES, BLOCKS_TABLE, LIVES_TABLE))
                ensure_tables(self._connection, path, STORE_FILE, tables)
                for statement in SNAPSHOTS_TABLES.split(";\n"):
                    self._connection.execute(statement)
                self.subscriptions = SubscriptionRows(self._connection, path)
                self.mark = self._roll_back(mark_index)
        except BaseException:
            self.close()
            raise

    # --- writing -----------------------------------------------------------------------------

    def append(self, cut: StoreCut, raft_index: int, term: int, safe_index: int) -> None:
        """Write all that `cut` has beyond the mark, in one transaction, and move the mark.

        `safe_index` is the node's cut that is certainly on disk: what only an older one needs is
        deleted. On any exception the file must be closed and opened again. Raises sqlite3.Error,
        StoreDamaged.
        """
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        contents = self._insert_names(cut)
        contents = self._insert_events(cut, contents)
        contents = self._insert_moves(cut.moves, contents, safe_index)
        self.subscriptions.write(cut.subscriptions, cut.subscription_names, raft_index, safe_index)
        contents = contents._replace(subscriptions=self.subscriptions.total)
        contents = self._insert_snapshots(cut.snapshots, contents, raft_index, safe_index)
        life_rows.write(self._connection, cut.lives, safe_index)
        contents = contents._replace(lives=cut.lives_digest)
        mark = Mark(raft_index, term, cut.position, cut.streams, cut.types, contents)
        self._insert_mark(mark, safe_index)
        if self.mark.raft_index == 0:
            self._insert_meta(cut.store)
        execute("COMMIT")
        self.mark = mark

    def _insert_meta(self, store: Store) -> None:
        facts = {"store": store.name, "uid": store.uid, "created_us": store.created_us}
        self._connection.executemany("REPLACE INTO meta VALUES (?, ?)", facts.items())

    def _insert_names(self, cut: StoreCut) -> Checksums:
        before = self.mark
        streams = [s.name for s in cut.store.stream_list[before.streams : cut.streams]]
        types = cut.store.type_names[before.types : cut.types]
        self._insert_named("streams", streams, before.streams)
        self._insert_named("types", types, before.types)
        return before.contents.with_names(streams, types)

    def _insert_named(self, table: str, names: list[str], first: int) -> None:
        insert(self._connection, table, enumerate(names, first))

    def _insert_events(self, cut: StoreCut, contents: Checksums) -> Checksums:
        for block in blocks_of(cut.store, self.mark.position, cut.position):
            self._insert_block(block)
            contents = contents.with_block(block.seal)
        return contents

    def _insert_block(self, block: Block) -> None:
        self._connection.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)", block)

    def _insert_moves(
        self, moves: Sequence[CheckpointMove], contents: Checksums, safe_index: int
    ) -> Checksums:
        total = contents.checkpoints
        for move in moves:
            checksum = row_checksum(*move)
            total += checksum - self._latest_checksum(move.name)
            self._connection.execute(
                "REPLACE INTO checkpoints VALUES (?, ?, ?, ?)", (*move, checksum)
            )
            self._connection.execute(
                "DELETE FROM checkpoints WHERE name = ?1 AND raft_index < (SELECT max(raft_index)"
                " FROM checkpoints WHERE name = ?1 AND raft_index <= ?2)",
                (move.name, safe_index),
            )
        return contents._replace(checkpoints=total)

    def _latest_checksum(self, checkpoint: str) -> int:
        row = self._connection.execute(
            "SELECT checksum FROM checkpoints WHERE name = ? ORDER BY raft_index DESC LIMIT 1",
            (checkpoint,),
        ).fetchone()
        return typed(self.path, row[0], int) if row is not None else 0

    def _insert_snapshots(
        self, cut: SnapshotsCut, contents: Checksums, raft_index: int, safe_index: int
    ) -> Checksums:
        rows, gone = snapshot_rows.difference(self._connection, cut)
        # What a cycle wrote that was never booked comes again.
        insert(self._connection, f"snapshots ({snapshot_rows.COLUMNS})", rows, "REPLACE")
        snapshot_rows.mark_gone(self._connection, gone, raft_index, safe_index)
        return contents._replace(snapshots=cut.digest)

    def _insert_mark(self, mark: Mark, safe_index: int) -> None:
        values = (*mark[:5], str(mark.contents))
        self._connection.execute(
            "REPLACE INTO cuts VALUES (?, ?, ?, ?, ?, ?, ?)", (*values, row_checksum(*values))
        )
        self._connection.execute(
            "DELETE FROM cuts WHERE raft_index <"
            " (SELECT max(raft_index) FROM cuts WHERE raft_index <= ?)",
            (safe_index,),
        )

    # --- giving space back -------------------------------------------------------------------

    def sweep(self, positions: Sequence[int]) -> int:
        """Write husks in the places of the frames at these positions, which rise, in one
        transaction. How many of them that covers: see `_BLOCKS_A_SWEEP`. The mark stays as it is.

        What is not in the file yet is passed over. A row that only gets shorter leaves its page as
        it was, so the old ones are deleted, which frees pages, and the new ones put together. On
        any exception the file must be closed and opened again. Raises StoreDamaged, sqlite3.Error.
        """
        written_until = bisect_right(positions, self.mark.position)
        swept: list[Block] = []
        done = size = 0
        while done < written_until and len(swept) < _BLOCKS_A_SWEEP and size < _BYTES_A_SWEEP:
            block = self._block_at(positions[done])
            before, done = done, bisect_left(positions, block.first + block.events, done)
            swept.append(self._with_husks(block, positions[before:done]))
            size += len(block.frames)
        among = ", ".join("?" * len(swept))
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(
            f"DELETE FROM blocks WHERE first IN ({among})", [block.first for block in swept]
        )
        insert(self._connection, "blocks", swept)
        self._connection.execute("COMMIT")
        return done if done < written_until else len(positions)

    def _block_at(self, position: int) -> Block:
        """The block that has a position."""
        row = self._connection.execute(
            "SELECT * FROM blocks WHERE first <= ? ORDER BY first DESC LIMIT 1", (position,)
        ).fetchone()
        if row is None or type(row[1]) is not int or position >= row[0] + row[1]:
            raise StoreDamaged(self.path, f"lacks the event at position {position}")
        return Block(*row)

    def _with_husks(self, block: Block, positions: Sequence[int]) -> Block:
        try:
            return with_husks(block, positions)
        except ValueError as error:
            raise StoreDamaged(self.path, f"is damaged: {error}") from error

    def give_back(self, pages_max: int) -> bool:
        """Let the file get shorter by some of its free pages; whether more are left than it may
        keep. They go with the next fold of the WAL.
        """
        free = self._connection.execute("PRAGMA freelist_count").fetchone()[0]
        if free <= FREE_PAGES_MAX:
            return False
        # One call for all of its steps: see the top of the file about the interpreter lock.
        self._connection.executescript(f"PRAGMA incremental_vacuum({pages_max})")
        return True

    # --- rolling back ------------------------------------------------------------------------

    def _roll_back(self, raft_index: int) -> Mark:
        """Remove what was written after the mark at `raft_index`, and return that mark."""
        mark = self._mark_at(raft_index) if raft_index else Mark()
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        execute("DELETE FROM blocks WHERE first > ?", (mark.position,))
        execute("DELETE FROM streams WHERE stream_id >= ?", (mark.streams,))
        execute("DELETE FROM types WHERE type_id >= ?", (mark.types,))
        execute("DELETE FROM checkpoints WHERE raft_index > ?", (raft_index,))
        life_rows.roll_back(self._connection, raft_index)
        self.subscriptions.roll_back(raft_index)
        if self.subscriptions.total != mark.contents.subscriptions:
            raise StoreDamaged(self.path, "lacks rows of subscriptions")
        execute("DELETE FROM cuts WHERE raft_index > ?", (raft_index,))
        snapshot_rows.roll_back(self._connection, raft_index)
        execute("COMMIT")
        return mark

    def _mark_at(self, raft_index: int) -> Mark:
        row = self._connection.execute(
            "SELECT raft_index, term, position, streams, types, contents, checksum FROM cuts"
            " WHERE raft_index = ?",
            (raft_index,),
        ).fetchone()
        if row is None:
            raise StoreDamaged(self.path, f"lacks the mark of raft index {raft_index}")
        if row_checksum(*row[:6]) != row[6]:
            raise StoreDamaged(self.path, f"has a damaged mark at raft index {raft_index}")
        return Mark(row[0], row[1], row[2], row[3], row[4], parse_checksums(row[5]))

    # --- reading -----------------------------------------------------------------------------

    def owner(self) -> tuple[object, object]:
        """Name and uid of the store that the file was made for."""
        facts = dict(self._connection.execute("SELECT key, value FROM meta").fetchall())
        return facts.get("store"), facts.get("uid")

    def stream_names(self) -> list[str]:
        """The names of all streams, in order of creation."""
        return self._names("SELECT stream_id, name FROM streams ORDER BY stream_id")

    def type_names(self) -> list[str]:
        """The names of all event types, in order of first use."""
        return self._names("SELECT type_id, name FROM types ORDER BY type_id")

    def blocks(self) -> Iterator[Block]:
        """All events in position order."""
        cursor = self._connection.execute("SELECT * FROM blocks ORDER BY first")
        while rows := cursor.fetchmany(_BLOCKS_A_FETCH):
            yield from starmap(Block, rows)

    def checkpoints(self) -> dict[str, tuple[int, int]]:
        """Each checkpoint's name -> (position, raft index of its last move).

        The mark says whether they are as they were written.
        """
        rows = self._connection.execute(
            "SELECT name, raft_index, position FROM checkpoints ORDER BY raft_index"
        )
        return {name: (position, raft_index) for name, raft_index, position in rows}

    def snapshots(self) -> Iterator[Snapshot]:
        """All snapshots in order of place."""
        return snapshot_rows.snapshots(self._connection)

    def lives(self) -> Iterator[Life]:
        """The lives of streams, in order of change."""
        return life_rows.lives(self._connection, self.path)

    def checkpoint_wal(self) -> int:
        """Fold the WAL into the file without waiting for anyone; the bytes that remain."""
        return checkpoint_wal(self._connection)

    def close(self) -> None:
        """Close; SQLite then folds the WAL into the file if nobody else has it open."""
        self._connection.close()

    def _names(self, query: str) -> list[str]:
        rows = self._connection.execute(query).fetchall()
        if [at for at, _ in rows] != list(range(len(rows))):
            raise StoreDamaged(self.path, "has gaps among its names")
        if any(type(name) is not str for _, name in rows):
            raise StoreDamaged(self.path, "has names that are no text")
        return [name for _, name in rows]


def checksum_of(checkpoints: Mapping[str, tuple[int, int]]) -> int:
    """What a mark says of checkpoints: name -> (position, raft index of its last move)."""
    return sum(row_checksum(name, index, at) for name, (at, index) in checkpoints.items())


def checkpoint_wal(connection: sqlite3.Connection) -> int:
    """Fold as much of the WAL into the database as readers allow, and empty it if all of it went.

    TRUNCATE waits for readers as long as the busy timeout, and without one goes on as PASSIVE,
    which never waits: so an operator's long query postpones it, and holds up no cycle. Returns the
    bytes that remain; of those that SQLite could not even look at, because another process is
    folding them, the bytes of one page. Raises sqlite3.Error.

    This process is the only writer of its files, and one thread in it. That also keeps clear of
    SQLite's WAL-reset defect (before 3.51.3), which takes two connections that write or checkpoint.
    """
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        busy, frames, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
    return max(frames, 1) * int(page_bytes) if busy else 0
