"""The lives of streams in a store's file: a row for each that a cycle saw changed.

Like those of checkpoints, rows are kept from the one that the node's cut refers to, so that the
file can be rolled back. Each has a checksum, and the mark carries the digest of all: that finds a
row that is missing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from node.core.lives import Life
from node.core.stream import Limits
from node.persistence.checksums import row_checksum
from node.persistence.faults import StoreDamaged

LIVES_TABLE = """
CREATE TABLE lives (
    stream_id       INTEGER NOT NULL,
    raft_index      INTEGER NOT NULL,
    state           INTEGER NOT NULL,
    first           INTEGER NOT NULL,
    max_count       INTEGER,
    max_age_ms      INTEGER,
    truncate_before INTEGER,
    checksum        INTEGER NOT NULL,
    PRIMARY KEY (stream_id, raft_index)
) WITHOUT ROWID"""

_ROWS_A_STATEMENT = 128


def write(connection: sqlite3.Connection, changed: Sequence[Life], safe_index: int) -> None:
    """Add what changed, and delete what only a cut before `safe_index` needs."""
    for at in range(0, len(changed), _ROWS_A_STATEMENT):
        part = changed[at : at + _ROWS_A_STATEMENT]
        rows = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?)"] * len(part))
        values = [value for life in part for value in _row(life)]
        connection.execute(f"REPLACE INTO lives VALUES {rows}", values)
        among = ", ".join("?" * len(part))
        connection.execute(
            f"DELETE FROM lives WHERE stream_id IN ({among}) AND raft_index < (SELECT"
            " max(raft_index) FROM lives AS newer WHERE newer.stream_id = lives.stream_id"
            " AND newer.raft_index <= ?)",
            (*(life.ordinal for life in part), safe_index),
        )


def roll_back(connection: sqlite3.Connection, raft_index: int) -> None:
    """Make them what they were at a mark."""
    connection.execute("DELETE FROM lives WHERE raft_index > ?", (raft_index,))


def lives(connection: sqlite3.Connection, path: Path) -> Iterator[Life]:
    """The latest life of each stream, in order of change. Raises StoreDamaged."""
    found: dict[int, Life] = {}
    for ordinal, raft_index, state, first, *limits, checksum in connection.execute(
        "SELECT stream_id, raft_index, state, first, max_count, max_age_ms, truncate_before,"
        " checksum FROM lives ORDER BY raft_index, stream_id"
    ):
        life = Life(ordinal, raft_index, state, first, Limits(*limits))
        if _row(life)[-1] != checksum:
            raise StoreDamaged(path, f"has a damaged life of stream {ordinal!r}")
        found.pop(ordinal, None)
        found[ordinal] = life
    yield from found.values()


def _row(life: Life) -> tuple[Any, ...]:
    numbers = life[:4]
    return (*numbers, *life.limits, row_checksum(*numbers, str(tuple(life.limits))))
