"""Snapshots of aggregates in a store file: a row each, with the raft indexes between which it is.

A snapshot is known by its place in the replicated history (see `core.snapshots`), which holds the
raft index at which it was recorded; `gone_index` is the mark at which it was there no more. Both
together make it possible to roll a file back to an earlier mark, and no row is looked for by
anything but its place. What went is removed once the node's cut has passed it.

Usually a cycle is told what came and what went since the last one. Where that is not known (another
node brought the snapshots, or too many went) it is told all that there are, and the difference to
the file is found by their places: nothing is written twice.

There is no checksum of a row. The mark carries the digest of all snapshots, and the loader makes it
again from what it reads: that finds a row that differs as well as one that is missing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from node.core.snapshots import PLACE_BITS, Snapshot, Snapshots

SNAPSHOTS_TABLES = """
CREATE TABLE IF NOT EXISTS snapshots (
    place      INTEGER PRIMARY KEY,
    source     TEXT NOT NULL,
    stream     TEXT NOT NULL,
    version    INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    content    BLOB NOT NULL,
    gone_index INTEGER
);
CREATE INDEX IF NOT EXISTS snapshots_gone ON snapshots (gone_index) WHERE gone_index IS NOT NULL
"""
COLUMNS = "place, source, stream, version, created_us, content"

_PLACES_A_STATEMENT = 128

Row = tuple[int, str, str, int, int, bytes]


class SnapshotsCut(NamedTuple):
    """What of a store's snapshots belongs to a cycle; see the top of the file.

    `recorded` are those that came since the last one and `gone` the places of those that went; or
    `recorded` are all of them, and `gone` is None.
    """

    kept: int
    digest: int
    recorded_bytes: int
    recorded: Sequence[Snapshot]
    gone: Sequence[int] | None


def cut_of(snapshots: Snapshots, after_index: int) -> SnapshotsCut:
    """What there is to write, for a file that is complete up to `after_index`."""
    gone = snapshots.gone_after(after_index)
    recorded = snapshots.all() if gone is None else snapshots.recorded_after(after_index)
    return SnapshotsCut(snapshots.kept, snapshots.digest, snapshots.recorded_bytes, recorded, gone)


def difference(connection: sqlite3.Connection, cut: SnapshotsCut) -> tuple[list[Row], list[int]]:
    """The rows that the file lacks, and the places of those that it has to mark as gone."""
    if cut.gone is not None:
        return list(map(_row, cut.recorded)), list(cut.gone)
    found = connection.execute("SELECT place FROM snapshots WHERE gone_index IS NULL")
    held = {place for (place,) in found}
    lacking = [_row(one) for one in cut.recorded if one.place not in held]
    return lacking, sorted(held.difference(one.place for one in cut.recorded))


def mark_gone(
    connection: sqlite3.Connection, places: Sequence[int], raft_index: int, safe_index: int
) -> None:
    """Mark what went, and remove what no cut from `safe_index` on has."""
    for at in range(0, len(places), _PLACES_A_STATEMENT):
        part = places[at : at + _PLACES_A_STATEMENT]
        among = ", ".join("?" * len(part))
        connection.execute(
            f"UPDATE snapshots SET gone_index = ? WHERE place IN ({among}) AND gone_index IS NULL",
            (raft_index, *part),
        )
    connection.execute("DELETE FROM snapshots WHERE gone_index <= ?", (safe_index,))


def roll_back(connection: sqlite3.Connection, raft_index: int) -> None:
    """Make them what they were at a mark."""
    first_later = (raft_index + 1) << PLACE_BITS
    connection.execute("DELETE FROM snapshots WHERE place >= ?", (first_later,))
    connection.execute("UPDATE snapshots SET gone_index = NULL WHERE gone_index > ?", (raft_index,))


def snapshots(connection: sqlite3.Connection) -> Iterator[Snapshot]:
    """All that are not gone, in order of place."""
    for place, source, stream, version, created_us, content in connection.execute(
        f"SELECT {COLUMNS} FROM snapshots WHERE gone_index IS NULL ORDER BY place"
    ):
        yield Snapshot(source, stream, version, created_us, place, content)


def _row(one: Snapshot) -> Row:
    return (one.place, one.source, one.stream, one.version, one.created_us, one.content)
