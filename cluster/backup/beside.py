"""What stands beside the events of a store, in the file: settings, checkpoints, snapshots,
subscriptions and what is parked in them, and the lives of streams.

Its digest is the sum, modulo 2^256, of the SHA-256 of each thing: so it depends on no order, and
what is left out again can be taken out of it. What a restore brings back and what it cannot (parked
events) have a digest each. Times count in neither: a restore cannot choose them.

A subscription stands here as it is to be made again: with the position behind which it misses
nothing as its start.

A series of snapshots has no more here than a node keeps of it, of which the store's setting says
only a part (`leave_out_surplus`): a restore is refused what it would let go of.

A stream has a life here if there is more to say of it than its events do: it is deleted, or lost
events, or has metadata. `version` is the number of the last event that it ever had. Where its first
event is does not count in the digest: with `max_age_ms` that moves by itself. But the file is whole
only if it is where the events begin (`file`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import cbor2

from cluster.backup.columns import column_of, value_of

TABLES = """
CREATE TABLE checkpoints (name TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE snapshots (
    source      TEXT NOT NULL,
    stream      TEXT NOT NULL,
    version     INTEGER NOT NULL,
    source_type TEXT NOT NULL,
    data,
    metadata,
    created_us  INTEGER NOT NULL,
    PRIMARY KEY (source, stream, version)
);
CREATE TABLE lives (
    stream   TEXT PRIMARY KEY,
    life     TEXT NOT NULL,
    version  INTEGER NOT NULL,
    first    INTEGER NOT NULL,
    metadata NOT NULL
) WITHOUT ROWID;
CREATE TABLE subscriptions (name TEXT PRIMARY KEY, definition NOT NULL) WITHOUT ROWID;
CREATE TABLE parked (
    subscription TEXT NOT NULL,
    position     INTEGER NOT NULL,
    attempts     INTEGER NOT NULL,
    why          TEXT NOT NULL,
    consumer     TEXT NOT NULL,
    parked_us    INTEGER NOT NULL,
    PRIMARY KEY (subscription, position)
) WITHOUT ROWID;
CREATE VIEW parked_events AS
    SELECT p.subscription, p.attempts, p.why, p.consumer, e.*
    FROM parked AS p JOIN readable_events AS e USING (position)
"""

ALIVE, DELETED_FOR_EVER = "alive", "deleted_for_ever"

KEPT_MAX = 10_000
SERIES_BYTES_MAX = 64 * 1024 * 1024
"""What a node keeps of a series at most, as `GET /v1/info` of each tells."""

_CONTENT_FORMAT = 1
_SUMS = 2**256
_READ_SNAPSHOTS = 16
_SURPLUS = """
SELECT source, stream, version FROM (
    SELECT source, stream, version, row_number() OVER newest AS place,
           sum(content_bytes(source_type, data, metadata)) OVER newest AS bytes
    FROM snapshots WINDOW newest AS (PARTITION BY source, stream ORDER BY version DESC))
WHERE place > ? OR (place > 1 AND bytes > ?)
"""


class Settings(NamedTuple):
    """Of a store; None is what the nodes do by default."""

    durability: str | None
    snapshots_kept: int | None


class Checkpoint(NamedTuple):
    """Where somebody has got to."""

    name: str
    position: int


class Snapshot(NamedTuple):
    """Of an aggregate, as the API tells it."""

    source: str
    stream: str
    version: int
    source_type: str
    data: Any
    metadata: Any
    created_us: int


class Subscription(NamedTuple):
    """`definition` is what makes it again."""

    name: str
    definition: Mapping[str, Any]


class Parked(NamedTuple):
    """An event that a subscription has given up."""

    subscription: str
    position: int
    attempts: int
    why: str
    consumer: str
    parked_us: int


class Life(NamedTuple):
    """Of a stream: "alive", "deleted" or "deleted_for_ever"; `first` is kept, or comes next."""

    stream: str
    life: str
    version: int
    first: int
    metadata: Mapping[str, int]

    @property
    def says_something(self) -> bool:
        """Whether it is any other than that of a stream which just has its events."""
        return self.life != ALIVE or bool(self.first or self.metadata)


Thing = Settings | Checkpoint | Snapshot | Subscription | Parked | Life


def digest_of(thing: Thing) -> int:
    """Its part of a digest."""
    fields: tuple[Any, ...] = thing
    if isinstance(thing, Snapshot | Parked):
        fields = thing[:-1]
    elif isinstance(thing, Life):
        fields = (thing.stream, thing.life, thing.version, thing.metadata)
    encoded = cbor2.dumps((type(thing).__name__, *fields), canonical=True)
    return int.from_bytes(sha256(encoded).digest())


_KINDS = (Checkpoint, Snapshot, Subscription, Parked, Settings, Life)


class Tally:
    """How many things there are, and the sums of their digests: of what comes back, of parked."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(_KINDS, 0)
        self._sums = {True: 0, False: 0}

    def add(self, thing: Thing) -> None:
        self._count(thing, 1)

    def remove(self, thing: Thing) -> None:
        self._count(thing, -1)

    def _count(self, thing: Thing, times: int) -> None:
        self.counts[type(thing)] += times
        comes_back = type(thing) is not Parked
        self._sums[comes_back] = (self._sums[comes_back] + times * digest_of(thing)) % _SUMS

    @property
    def digest(self) -> str:
        """Of everything that a restore brings back."""
        return f"{self._sums[True]:064x}"

    @property
    def parked_digest(self) -> str:
        return f"{self._sums[False]:064x}"


class Beside:
    """The tables. Raises sqlite3.Error, and what a damaged value raises when it is decoded."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    # --- writing: whoever calls owns the transaction -------------------------------------------

    def put(self, things: Iterable[Thing]) -> None:
        """Write some; settings are written by `file`."""
        for thing in things:
            if isinstance(thing, Checkpoint):
                self._insert("checkpoints", thing)
            elif isinstance(thing, Snapshot):
                values = column_of(thing.data), column_of(thing.metadata)
                self._insert("snapshots", (*thing[:4], *values, thing.created_us))
            elif isinstance(thing, Subscription):
                self._insert("subscriptions", (thing.name, column_of(thing.definition)))
            elif isinstance(thing, Parked):
                self._insert("parked", thing)
            elif isinstance(thing, Life):
                self._insert("lives", (*thing[:4], column_of(thing.metadata)))

    def _insert(self, table: str, row: tuple[Any, ...]) -> None:
        marks = ", ".join("?" * len(row))
        self._connection.execute(f"INSERT INTO {table} VALUES ({marks})", row)

    def clear_lives(self) -> None:
        """Forget them; they are to be read again."""
        self._connection.execute("DELETE FROM lives")

    def leave_out_surplus(self, kept: int | None) -> Iterator[Snapshot]:
        """Leave out those of the smallest versions where a series has more than a store keeps.

        A series that grew while it was read may: its store had let go of them by then. `kept` is
        its setting.
        """
        bounds = kept or KEPT_MAX, SERIES_BYTES_MAX
        self._connection.create_function("content_bytes", 3, _content_bytes, deterministic=True)
        for key in self._connection.execute(_SURPLUS, bounds).fetchall():
            yield from self._snapshots("(source, stream, version) = (?, ?, ?)", key)
            self._connection.execute(
                "DELETE FROM snapshots WHERE (source, stream, version) = (?, ?, ?)", key
            )

    # --- reading -------------------------------------------------------------------------------

    def checkpoints(self) -> Iterator[Checkpoint]:
        rows = self._connection.execute("SELECT * FROM checkpoints ORDER BY name")
        return map(Checkpoint._make, rows)

    def subscriptions(self) -> list[Subscription]:
        rows = self._connection.execute("SELECT * FROM subscriptions ORDER BY name")
        return [Subscription(name, value_of(definition)) for name, definition in rows]

    def parked(self) -> Iterator[Parked]:
        rows = self._connection.execute("SELECT * FROM parked ORDER BY subscription, position")
        return map(Parked._make, rows)

    def lives(self) -> Iterator[Life]:
        """All, by name."""
        for row in self._connection.execute("SELECT * FROM lives ORDER BY stream"):
            yield Life._make((*row[:4], value_of(row[4])))

    def snapshots(self) -> Iterator[Snapshot]:
        """All, by source, stream and version; a few at a time."""
        key: tuple[Any, ...] = ("", "", -1)
        while found := list(self._snapshots("(source, stream, version) > (?, ?, ?)", key)):
            yield from found
            key = found[-1][:3]

    def _snapshots(self, where: str, key: tuple[Any, ...]) -> Iterator[Snapshot]:
        query = f"SELECT * FROM snapshots WHERE {where} ORDER BY source, stream, version LIMIT ?"
        for row in self._connection.execute(query, (*key, _READ_SNAPSHOTS)).fetchall():
            yield Snapshot._make((*row[:4], value_of(row[4]), value_of(row[5]), row[6]))

    def things(self) -> Iterator[Thing]:
        """Everything but the settings."""
        yield from self.checkpoints()
        yield from self.snapshots()
        yield from self.subscriptions()
        yield from self.parked()
        yield from self.lives()


def _content_bytes(source_type: str, data: Any, metadata: Any) -> int:
    """What a snapshot counts in its series: how many bytes a node stores of it."""
    values = (cbor2.dumps(value_of(column)) for column in (data, metadata))
    return len(cbor2.dumps((_CONTENT_FORMAT, source_type, *values)))
