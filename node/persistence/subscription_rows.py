"""Persistent subscriptions in a store's file: one row for each state that a cycle saw.

A row is the whole subscription as of a raft index, written when it changed since the last cycle; so
a cycle costs in proportion to the subscriptions that are in use. Like checkpoints, rows are kept
from the one that the node's cut refers to, so that the file can be rolled back. A row without a
state says that the subscription was removed; it goes when the cut has passed it.

No row is looked for by the index of the table: a flipped bit there would find another one's. What
rows there are is read once, from the table, and known from then on; and the mark says what the
latest of them come to, so that those which a page has lost are missed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from node.core.subscription_state import Taken, encode
from node.persistence.checksums import row_checksum
from node.persistence.faults import StoreDamaged
from node.persistence.schema import SUBSCRIPTIONS_TABLE, typed


class _Row(NamedTuple):
    """A row in the file, but for the state."""

    rowid: int
    raft_index: int
    removes: bool
    checksum: int


class SubscriptionRows:
    """The rows of one open file."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._execute = connection.execute
        self._path = path
        self._execute(SUBSCRIPTIONS_TABLE)
        self._rows: dict[str, list[_Row]] = {}  # of each name, the latest last
        self._outlived: dict[str, None] = {}  # names, in order, of which rows are to be forgotten

    @property
    def total(self) -> int:
        """The sum of the checksums of the latest rows, but for those of removals."""
        latest = (rows[-1] for rows in self._rows.values())
        return sum(row.checksum for row in latest if not row.removes)

    def roll_back(self, raft_index: int) -> None:
        """Remove what was written after a raft index, within the caller's transaction. Raises
        StoreDamaged."""
        self._execute("DELETE FROM subscriptions NOT INDEXED WHERE raft_index > ?", (raft_index,))
        self._rows.clear()
        self._outlived.clear()
        for name, *row in self._execute(
            "SELECT name, rowid, raft_index, state IS NULL, checksum FROM subscriptions"
            " NOT INDEXED ORDER BY raft_index"
        ):
            rowid, index, removes, checksum = (typed(self._path, value, int) for value in row)
            self._note(typed(self._path, name, str), _Row(rowid, index, bool(removes), checksum))

    def write(
        self,
        changed: Sequence[Taken],
        names: Collection[str],
        raft_index: int,
        safe_index: int,
    ) -> None:
        """Add what changed, and what is no longer among `names`, within a transaction that reaches
        `raft_index`. What only a cut before `safe_index` needs is deleted."""
        for taken in changed:
            self._insert(taken.name, taken.changed_index, encode(taken))
        for name in [name for name, rows in self._rows.items() if not rows[-1].removes]:
            if name not in names:
                self._insert(name, raft_index, None)
        for name in list(self._outlived):
            self._forget_older(name, safe_index)

    def states(self) -> Iterator[tuple[str, int, bytes]]:
        """Each subscription's name, the raft index of its last change, and its state."""
        found: dict[str, tuple[int, bytes | None]] = {}
        for name, raft_index, state, checksum in self._execute(
            "SELECT name, raft_index, state, checksum FROM subscriptions ORDER BY raft_index"
        ):
            if _checksum(name, raft_index, state) != checksum:
                raise StoreDamaged(self._path, f"has a damaged subscription {name!r}")
            found[name] = (raft_index, state)
        for name, (raft_index, state) in found.items():
            if state is not None:
                yield name, raft_index, state

    def _insert(self, name: str, raft_index: int, state: bytes | None) -> None:
        checksum = _checksum(name, raft_index, state)
        cursor = self._execute(
            "REPLACE INTO subscriptions VALUES (?, ?, ?, ?)", (name, raft_index, state, checksum)
        )
        assert cursor.lastrowid is not None
        self._note(name, _Row(cursor.lastrowid, raft_index, state is None, checksum))

    def _note(self, name: str, row: _Row) -> None:
        rows = self._rows.setdefault(name, [])
        if rows and rows[-1].raft_index == row.raft_index:
            rows.pop()  # it was replaced
        rows.append(row)
        if len(rows) > 1 or row.removes:
            self._outlived[name] = None

    def _forget_older(self, name: str, safe_index: int) -> None:
        rows = self._rows[name]
        needed = sum(row.raft_index <= safe_index for row in rows) - 1  # the latest of those
        if needed == len(rows) - 1 and rows[-1].removes:
            needed += 1
        for row in rows[: max(0, needed)]:
            self._execute("DELETE FROM subscriptions WHERE rowid = ?", (row.rowid,))
        del rows[: max(0, needed)]
        if len(rows) < 2 and not (rows and rows[-1].removes):
            self._outlived.pop(name, None)
        if not rows:
            del self._rows[name]


def _checksum(name: str, raft_index: int, state: bytes | None) -> int:
    return row_checksum(name, raft_index, -1 if state is None else crc32(state))
