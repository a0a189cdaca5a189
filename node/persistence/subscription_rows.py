"""Persistent subscriptions in a store's file: one row for each state that a cycle saw.

A row is the whole subscription as of a raft index, written when it changed since the last cycle; so
a cycle costs in proportion to the subscriptions that are in use. Like checkpoints, rows are kept
from the one that the node's cut refers to, so that the file can be rolled back. A row without a
state says that the subscription was removed; it goes when the cut has passed it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from zlib import crc32

from node.core.subscription_state import Taken, encode
from node.persistence.checksums import row_checksum
from node.persistence.faults import StoreDamaged
from node.persistence.schema import SUBSCRIPTIONS_TABLE, typed


class SubscriptionRows:
    """The rows of one open file; a file that an earlier version made gets the table here."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._execute = connection.execute
        self._path = path
        self._execute(SUBSCRIPTIONS_TABLE)
        self._listed: set[str] = set()
        self._removed: dict[str, int] = {}

    def roll_back(self, raft_index: int) -> None:
        """Remove what was written after a raft index, within the caller's transaction. Raises
        StoreDamaged."""
        self._execute("DELETE FROM subscriptions WHERE raft_index > ?", (raft_index,))
        latest = [
            (typed(self._path, name, str), typed(self._path, index, int), removed)
            for name, index, removed in self._execute(
                # As `states` reads them: the index may be damaged, and nothing would be removed.
                "SELECT name, max(raft_index), state IS NULL FROM subscriptions NOT INDEXED "
                "GROUP BY name"
            )
        ]
        self._listed = {name for name, _, removed in latest if not removed}
        self._removed = {name: index for name, index, removed in latest if removed}

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
            self._removed.pop(taken.name, None)
            self._forget_older(taken.name, safe_index)
        for name in self._listed.difference(names):
            self._insert(name, raft_index, None)
            self._removed[name] = raft_index
        for name, removed_at in list(self._removed.items()):
            if removed_at <= safe_index:
                self._execute(
                    "DELETE FROM subscriptions NOT INDEXED WHERE name = ? AND raft_index <= ?",
                    (name, removed_at),
                )
                del self._removed[name]
        self._listed = set(names)

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
        self._execute(
            "REPLACE INTO subscriptions VALUES (?, ?, ?, ?)",
            (name, raft_index, state, _checksum(name, raft_index, state)),
        )

    def _forget_older(self, name: str, safe_index: int) -> None:
        self._execute(
            "DELETE FROM subscriptions WHERE name = ?1 AND raft_index < (SELECT max(raft_index)"
            " FROM subscriptions WHERE name = ?1 AND raft_index <= ?2)",
            (name, safe_index),
        )


def _checksum(name: str, raft_index: int, state: bytes | None) -> int:
    return row_checksum(name, raft_index, -1 if state is None else crc32(state))
