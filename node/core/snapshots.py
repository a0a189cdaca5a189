"""Snapshots of aggregates: what somebody folded the events of a stream into, kept to begin there.

A snapshot has a *source* (the id of the aggregate), a *stream* (whose events were folded) and a
*version* (the number of the last event that is in it, so that a reader goes on with the next one).
Nobody checks that such events exist: sources, streams and versions are the writer's word. Versions
may have gaps. Snapshots are no events: they take no position, and no read of events shows them.

All snapshots of one source and stream are a *series*. What a series keeps is bounded, and decided
here, alike on every node: the `kept` greatest versions (a setting of the store, `KEPT_MAX` unless
set), of these no more than fit `SERIES_BYTES_MAX`, and always the greatest one. The smallest
versions go first. One that would go at once is refused instead.

Where fewer are to be kept from now on, one command lets go of `DROPPED_MAX` at most, or of
`DROPPED_BYTES_MAX`; of what is left the leader's clock lets go (`Expire` commands, see `lives`), or
whoever records another one of the series. Which series have more than they may follows from what
there is, so it is known after a start, too.

`place` is where in the replicated history a snapshot was recorded: the Raft index of the entry and
the command's number in it. No two snapshots of a history have the same place, and what was recorded
at a place never changes. The disk and the nodes that are filled know them by it.

The *digest* is a sum of the SHA-256 of every snapshot there is. It is carried along by each change,
so two nodes compare all of theirs at no cost. It finds errors; it is no proof against an adversary.

The content is encoded once, by the node that takes the request:

    [1, source type, data, metadata]      data and metadata: byte strings with one CBOR item each
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import takewhile
from typing import NamedTuple

import cbor2
from sortedcontainers import SortedList

from node.core.outcomes import (
    SnapshotDeleted,
    SnapshotNotFound,
    SnapshotRecorded,
    SnapshotTooOld,
)

KEPT_MAX = 10_000
SERIES_BYTES_MAX = 64 * 1024 * 1024
DROPPED_MAX = 1_000
DROPPED_BYTES_MAX = 4 * 1024 * 1024  # some milliseconds of every node's time, as are so many
PLACE_BITS = 20  # an entry of the log holds fewer than 2**20 commands

_GONE_MAX = 100_000
_FORMAT = 1
_HEAD = b"\x84\x01"  # array of 4, format 1
_DIGESTS = 2**256

Key = tuple[str, str]


class Content(NamedTuple):
    """What was recorded; `data` and `metadata` are still encoded CBOR items."""

    source_type: str
    data: bytes
    metadata: bytes


class Snapshot(NamedTuple):
    """One snapshot. `created_us` is when it was taken, `content` an encoded `Content`."""

    source: str
    stream: str
    version: int
    created_us: int
    place: int
    content: bytes

    @property
    def raft_index(self) -> int:
        """The Raft index of the entry that recorded it."""
        return self.place >> PLACE_BITS


def encode_content(source_type: str, data: bytes, metadata: bytes) -> bytes:
    """Encode what a snapshot holds. `data` and `metadata` are encoded CBOR items."""
    return cbor2.dumps((_FORMAT, source_type, data, metadata))


def decode_content(content: bytes) -> Content:
    """Take a content apart, except for its data and metadata."""
    _, source_type, data, metadata = cbor2.loads(content)
    return Content(source_type, data, metadata)


def is_content(value: object) -> bool:
    """Whether `value` can stand in a store. What is in it no node's state depends on."""
    return type(value) is bytes and value[: len(_HEAD)] == _HEAD


class _Series:
    """The snapshots of one source and stream."""

    __slots__ = ("by_version", "bytes", "versions")

    def __init__(self) -> None:
        self.versions: list[int] = []  # ascending
        self.by_version: dict[int, Snapshot] = {}
        self.bytes = 0


class Snapshots:
    """The snapshots of one store.

    `bytes` is the sum of the contents, `digest` the sum over all snapshots, `changed_index` the
    Raft index of the last change, and `recorded_bytes` how much was ever put in here.

    What went is remembered for the disk until `forget_gone`, but no more than `_GONE_MAX` of it:
    memory without a disk must not grow by it.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.digest = 0
        self.changed_index = 0
        self.recorded_bytes = 0
        self._kept = KEPT_MAX
        self._series: dict[Key, _Series] = {}
        self._keys: SortedList[Key] = SortedList()
        self._surplus: SortedList[Key] = SortedList()  # of series with more than `kept`
        self._by_place: dict[int, Snapshot] = {}  # in order of place
        self._gone: dict[int, int] = {}  # place -> Raft index at which it went, in that order
        self._gone_known_after = 0

    # --- looking -----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._by_place)

    @property
    def kept(self) -> int:
        """How many a series keeps."""
        return self._kept

    @kept.setter
    def kept(self, kept: int) -> None:
        if kept != self._kept:
            self._kept = kept
            more = (key for key in self._keys if len(self._series[key].versions) > kept)
            self._surplus = SortedList(more)

    @property
    def has_surplus(self) -> bool:
        """Whether a series has more than it keeps."""
        return bool(self._surplus)

    def all(self) -> list[Snapshot]:
        """All of them in order of place."""
        return list(self._by_place.values())

    def get(self, source: str, stream: str, version: int) -> Snapshot | None:
        """The snapshot at exactly this version."""
        series = self._series.get((source, stream))
        return None if series is None else series.by_version.get(version)

    def between(
        self, source: str, stream: str, minimum: int, maximum: int, backward: bool
    ) -> Iterator[Snapshot]:
        """Those of one series with versions in this range, both ends included.

        To be taken before anything changes.
        """
        series = self._series.get((source, stream))
        if series is None:
            return iter(())
        versions = series.versions
        found = range(bisect_left(versions, minimum), bisect_left(versions, maximum + 1))
        order = reversed(found) if backward else iter(found)
        return (series.by_version[versions[at]] for at in order)

    def latest(self, source: str, stream: str) -> Snapshot | None:
        """The one with the greatest version."""
        series = self._series.get((source, stream))
        return None if series is None else series.by_version[series.versions[-1]]

    def keys(self, minimum: Key) -> Iterator[Key]:
        """The (source, stream) that have snapshots, in order, from `minimum` on."""
        return self._keys.irange(minimum=minimum)

    # --- changing ----------------------------------------------------------------------------

    def put(self, snapshot: Snapshot) -> SnapshotRecorded | SnapshotTooOld:
        """Record a snapshot, in place of one of the same version. Its place is the last one."""
        source, stream, version = snapshot[:3]
        falling = self._falling(self._series.get((source, stream)), snapshot)
        if falling is None:
            return SnapshotTooOld(source, stream, version, self.kept)
        replaced = self.get(source, stream, version)
        for one in falling if replaced is None else (*falling, replaced):
            self._drop(one, snapshot.raft_index)
        self._add(snapshot)
        return SnapshotRecorded(replaced is not None)

    def delete(
        self, source: str, stream: str, version: int, index: int
    ) -> SnapshotDeleted | SnapshotNotFound:
        """Remove a snapshot; `index` is the Raft index of the command."""
        found = self.get(source, stream, version)
        if found is None:
            return SnapshotNotFound(source, stream, version)
        self._drop(found, index)
        return SnapshotDeleted(source, stream, version)

    def keep(self, kept: int, index: int) -> None:
        """Keep so many of each series from now on, and begin to let go of what is beyond."""
        self.kept = kept
        self.drop_surplus(index)

    def drop_surplus(self, index: int) -> int:
        """Let go of what series have beyond what they keep, within bounds; how many went."""
        dropped = size = 0
        while self._surplus and dropped < DROPPED_MAX and size < DROPPED_BYTES_MAX:
            series = self._series[self._surplus[0]]
            smallest = series.by_version[series.versions[0]]
            self._drop(smallest, index)
            dropped += 1
            size += len(smallest.content)
        return dropped

    def _falling(self, series: _Series | None, new: Snapshot) -> list[Snapshot] | None:
        """What has to go for a new one; None if that is the new one itself."""
        if series is None:
            return []
        replaced = series.by_version.get(new.version)
        count = len(series.versions) + (replaced is None)
        size = series.bytes + len(new.content) - len(replaced.content if replaced else b"")
        falling: list[Snapshot] = []
        for version in series.versions:
            if count <= self._kept and size <= SERIES_BYTES_MAX:
                break
            if version >= new.version:
                return falling if version == series.versions[-1] == new.version else None
            falling.append(series.by_version[version])
            count, size = count - 1, size - len(falling[-1].content)
        return falling

    def _add(self, snapshot: Snapshot) -> None:
        key = snapshot[:2]
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series()
            self._keys.add(key)
        insort(series.versions, snapshot.version)
        if len(series.versions) == self._kept + 1:
            self._surplus.add(key)
        series.by_version[snapshot.version] = snapshot
        series.bytes += len(snapshot.content)
        self._by_place[snapshot.place] = snapshot
        self.bytes += len(snapshot.content)
        self.recorded_bytes += len(snapshot.content)
        self.digest = (self.digest + _digest(snapshot)) % _DIGESTS
        self.changed_index = snapshot.raft_index

    def _drop(self, snapshot: Snapshot, index: int) -> None:
        key = snapshot[:2]
        series = self._series[key]
        if len(series.versions) == self._kept + 1:
            self._surplus.remove(key)
        del series.versions[bisect_left(series.versions, snapshot.version)]
        del series.by_version[snapshot.version]
        series.bytes -= len(snapshot.content)
        if not series.versions:
            del self._series[key]
            self._keys.remove(key)
        del self._by_place[snapshot.place]
        self.bytes -= len(snapshot.content)
        self.digest = (self.digest - _digest(snapshot)) % _DIGESTS
        self.changed_index = index
        self._gone[snapshot.place] = index
        if len(self._gone) > _GONE_MAX:
            # All of it: to find the first one of a dictionary costs as much as went before it.
            self._gone.clear()
            self._gone_known_after = index

    # --- for the disk ------------------------------------------------------------------------

    def recorded_after(self, index: int) -> list[Snapshot]:
        """Those that were recorded after a Raft index, in order of place."""
        newest_first = reversed(self._by_place.values())
        return list(takewhile(lambda one: one.raft_index > index, newest_first))[::-1]

    def gone_after(self, index: int) -> list[int] | None:
        """The places of those that went after a Raft index; None if that is not known any more."""
        if index < self._gone_known_after:
            return None
        return [place for place, gone in self._gone.items() if gone > index]

    def forget_gone(self, index: int) -> None:
        """The disk knows what went up to this Raft index."""
        for place in list(takewhile(lambda one: self._gone[one] <= index, self._gone)):
            del self._gone[place]
        self._gone_known_after = max(self._gone_known_after, index)

    # --- coming back from the disk or from another node --------------------------------------

    def load(self, snapshots: Iterable[Snapshot]) -> None:
        """Add snapshots in order of place. Raises `ValueError` for what cannot be one of them."""
        last = next(reversed(self._by_place), -1)
        for snapshot in snapshots:
            if snapshot.place <= last or self.get(*snapshot[:3]) is not None:
                raise ValueError("snapshots out of order, or two of one version")
            last = snapshot.place
            self._add(snapshot)

    def replaces(self, index: int) -> None:
        """These were brought by another node, as of a Raft index: what went before is not known."""
        self.changed_index = self._gone_known_after = index

    # --- invariants --------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `AssertionError` unless everything that must hold of snapshots holds."""
        assert 1 <= self.kept <= KEPT_MAX
        assert list(self._keys) == sorted(self._series)
        assert list(self._by_place) == sorted(self._by_place), "not in order of place"
        held = 0
        for key, series in self._series.items():
            ones = [series.by_version[version] for version in series.versions]
            assert ones and len(ones) == len(series.by_version)
            assert (len(ones) > self.kept) == (key in self._surplus)
            assert series.versions == sorted(set(series.versions))
            assert series.bytes == sum(len(one.content) for one in ones)
            assert series.bytes <= SERIES_BYTES_MAX or len(ones) == 1
            for version, one in zip(series.versions, ones, strict=True):
                assert one[:3] == (*key, version) and self._by_place[one.place] is one
            held += len(ones)
        assert held == len(self._by_place), "snapshots are miscounted"
        assert len(self._surplus) <= len(self._series)
        assert self.bytes == sum(len(one.content) for one in self._by_place.values())
        assert self.digest == sum(map(_digest, self._by_place.values())) % _DIGESTS
        assert not self._gone.keys() & self._by_place.keys()
        assert len(self._gone) <= _GONE_MAX


def _digest(snapshot: Snapshot) -> int:
    source, stream, *numbers = snapshot[:5]
    # Lengths stand before the texts, so that no two snapshots give the same bytes.
    hashed = sha256(f"{len(source)}:{source}{len(stream)}:{stream}{numbers}".encode())
    hashed.update(snapshot.content)
    return int.from_bytes(hashed.digest(), "big")
