"""The life of streams: how their events are removed, and how they end.

Events are removed from the beginning of a stream, by moving its `first` (see `stream`). Nothing
moves it back: what was removed stays removed, whatever becomes of the limits.

    deletion            removes all. The stream reads as absent (version -1), and whoever appends
                        begins it anew, behind the last number that it ever had, without limits
    hard deletion       removes all, and nobody appends to the stream any more
    `max_count`         the last so many are kept; judged when events are appended or it is set
    `truncate_before`   those from this number on are kept; judged when it is set, and at most the
                        next number: events that are yet to come are not removed
    `max_age_ms`        those younger than so much are kept; judged by `Expire` commands, which the
                        leader sends when `next_due_us` has passed

So time is data here as everywhere. An `Expire` goes over `EXPIRED_STREAMS_MAX` streams at most,
those with the oldest events first. It also lets go of snapshots that are beyond what their store
keeps (see `snapshots`).

A removed event still has its position: positions stay gapless as they were given out, and readers
pass it by. Its id is remembered as long as any other, so that a repeated append has its original
answer. What this node does about the frames is said in `columns`; `take_removed` tells of which.

A stream about which there is something to say has a `Life`: for the disk and for other nodes. The
digest of all of a store's is carried along by each change, as that of snapshots is. Deleted streams
stay known, in order of their names: some 550 bytes each, 9 of them for the order.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from sortedcontainers import SortedDict, SortedList

from node.core.life_commands import DeleteStream, LifeCommand, SetMetadata
from node.core.outcomes import (
    Expired,
    MetadataSet,
    Outcome,
    StreamDeleted,
    StreamNotFound,
    StreamRemoved,
    WrongExpectedVersion,
)
from node.core.stream import ALIVE, HARD_DELETED, NO_LIMITS, SOFT_DELETED, Limits, Stream
from node.core.versions import as_expected

if TYPE_CHECKING:  # a store holds the lives of its streams
    from node.core.store import Store

EXPIRED_STREAMS_MAX = 256

_DIGESTS = 2**256


class Life(NamedTuple):
    """How a stream lived when that last changed, at a Raft index.

    `first` is what was kept from then on; `max_count` may have removed more since.
    """

    ordinal: int
    changed_index: int
    state: int
    first: int
    limits: Limits


class Lives:
    """The lives of the streams of one store.

    `removed` is how many events are removed, `departed` are the deleted streams in order of names,
    `digest` is the sum over all lives, and `changed_index` the Raft index of the last change.
    """

    def __init__(self) -> None:
        self.removed = 0
        self.departed: SortedDict[str, Stream] = SortedDict()
        self.digest = 0
        self.changed_index = 0
        self._by_ordinal: dict[int, Life] = {}  # in order of their last change
        self._due: SortedList[tuple[int, int]] = SortedList()  # when, ordinal of the stream
        self._due_of: dict[int, int] = {}
        self._touched: dict[int, None] = {}

    # --- looking -----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._by_ordinal)

    def is_over(self, stream: str) -> bool:
        """Whether the stream was deleted for ever."""
        found = self.departed.get(stream)
        return found is not None and self._by_ordinal[found.ordinal].state == HARD_DELETED

    @property
    def next_due_us(self) -> int | None:
        """When the next event is too old; None where no stream has a `max_age_ms`, or events."""
        return self._due[0][0] if self._due else None

    def is_due(self, now_us: int) -> bool:
        """Whether an event is too old by now."""
        due_us = self.next_due_us
        return due_us is not None and due_us <= now_us

    def all(self) -> list[Life]:
        """All of them, in order of their last change."""
        return list(self._by_ordinal.values())

    def changed_after(self, index: int) -> list[Life]:
        """Those that changed after a Raft index, in that order."""
        newest_first = reversed(self._by_ordinal.values())
        return list(takewhile(lambda one: one.changed_index > index, newest_first))[::-1]

    # --- changing ----------------------------------------------------------------------------

    def apply(self, command: LifeCommand, store: Store, index: int) -> Outcome:
        """The outcome of a command in the entry at `index`."""
        if isinstance(command, DeleteStream):
            return self._delete(command, store, index)
        if isinstance(command, SetMetadata):
            return self._set_metadata(command, store, index)
        return self._expire(command.now_us, store, index)

    def revive(self, stream: Stream, store: Store, index: int) -> None:
        """Somebody appends to a deleted stream: it exists again."""
        self._arrive(stream, store)
        self._note(Life(stream.ordinal, index, ALIVE, stream.first, NO_LIMITS))

    def appended(self, stream: Stream, store: Store) -> None:
        """A stream with limits has new events."""
        self._remove(stream, _first_of(stream, stream.limits))
        self._schedule(stream, store)

    def _delete(self, command: DeleteStream, store: Store, index: int) -> Outcome:
        name, hard = command.stream, command.hard
        if self.is_over(name):
            return StreamDeleted(name)
        current = store.version(name)
        if not as_expected(command.expected, current):
            return WrongExpectedVersion(name, command.expected, current)
        found = store.streams.get(name)
        if found is not None:
            self._depart(found, store)
        elif hard and name in self.departed:
            found = self.departed[name]
        else:
            return StreamNotFound(store.name, name)
        self._remove(found, len(found.positions))
        self._schedule(found, store)
        state = HARD_DELETED if hard else SOFT_DELETED
        self._note(Life(found.ordinal, index, state, found.first, NO_LIMITS))
        return StreamRemoved(name, found.version, hard)

    def _set_metadata(self, command: SetMetadata, store: Store, index: int) -> Outcome:
        name = command.stream
        found = store.streams.get(name)
        if found is None:
            return StreamDeleted(name) if self.is_over(name) else StreamNotFound(store.name, name)
        limits = command.limits
        if limits.truncate_before is not None:
            before = min(limits.truncate_before, len(found.positions))
            limits = limits._replace(truncate_before=before)
        found.limits = NO_LIMITS if limits == NO_LIMITS else limits
        self._remove(found, _first_of(found, limits))
        self._schedule(found, store)
        self._note(Life(found.ordinal, index, ALIVE, found.first, found.limits))
        return MetadataSet(name, found.first, limits.truncate_before)

    def _expire(self, now_us: int, store: Store, index: int) -> Expired:
        streams, removed = 0, self.removed
        while self.is_due(now_us) and streams < EXPIRED_STREAMS_MAX:
            stream = store.stream_list[self._due[0][1]]
            latest = now_us - (stream.limits.max_age_ms or 0) * 1_000
            self._remove(stream, store.first_after(stream, latest))
            self._schedule(stream, store)
            self._note(Life(stream.ordinal, index, ALIVE, stream.first, stream.limits))
            streams += 1
        snapshots = store.snapshots.drop_surplus(index)
        has_more = store.has_overdue(now_us)
        return Expired(streams, self.removed - removed, has_more, snapshots)

    def _remove(self, stream: Stream, first: int) -> None:
        """Remove what is before number `first`."""
        if first > stream.first:
            self.removed += first - stream.first
            stream.first = first
            self._touched[stream.ordinal] = None

    def _schedule(self, stream: Stream, store: Store) -> None:
        """Note when the oldest event of a stream will be too old."""
        due, known = self._due_us(stream, store), self._due_of.get(stream.ordinal)
        if due == known:
            return
        if known is not None:
            self._due.remove((known, stream.ordinal))
            del self._due_of[stream.ordinal]
        if due is not None:
            self._due.add((due, stream.ordinal))
            self._due_of[stream.ordinal] = due

    @staticmethod
    def _due_us(stream: Stream, store: Store) -> int | None:
        age_ms = stream.limits.max_age_ms
        if age_ms is None or not stream.count:
            return None
        return store.record(stream.positions[stream.first]).created_us + age_ms * 1_000

    def _depart(self, stream: Stream, store: Store) -> None:
        del store.streams[stream.name]
        store.stream_names.remove(stream.name)
        self.departed[stream.name] = stream
        stream.limits = NO_LIMITS

    def _arrive(self, stream: Stream, store: Store) -> None:
        del self.departed[stream.name]
        store.streams[stream.name] = stream
        store.stream_names.add(stream.name)

    def _note(self, life: Life) -> None:
        known = self._by_ordinal.pop(life.ordinal, None)
        if known is not None:
            self.digest -= _digest(known)
        self._by_ordinal[life.ordinal] = life
        self.digest = (self.digest + _digest(life)) % _DIGESTS
        self.changed_index = life.changed_index

    # --- for giving memory back --------------------------------------------------------------

    @property
    def has_removed(self) -> bool:
        """Whether events were removed since they were last taken."""
        return bool(self._touched)

    def take_removed(self, store: Store) -> dict[int, int]:
        """Of which streams events were removed since this was last asked, and up to which number.

        Ordinal of the stream -> its `first`.
        """
        touched, self._touched = self._touched, {}
        return {ordinal: store.stream_list[ordinal].first for ordinal in touched}

    # --- coming back from the disk or from another node --------------------------------------

    def load(self, lives: Iterable[Life], store: Store) -> None:
        """Add lives in order of change; the streams have their events by now, and none of these.

        Raises `ValueError` for what cannot be the life of one of them.
        """
        for life in lives:
            if not 0 <= life.ordinal < len(store.stream_list) or life.ordinal in self._by_ordinal:
                raise ValueError(f"store {store.name}: the life of no stream, or a second one")
            if life.changed_index < self.changed_index:
                raise ValueError(f"store {store.name}: lives are out of order")
            stream = store.stream_list[life.ordinal]
            _check(life, stream)
            if life.state != ALIVE:
                self._depart(stream, store)
            stream.limits = NO_LIMITS if life.limits == NO_LIMITS else life.limits
            self._remove(stream, max(life.first, _first_of(stream, stream.limits)))
            self._schedule(stream, store)
            self._note(life)

    # --- invariants --------------------------------------------------------------------------

    def check(self, store: Store) -> None:
        """Raise `AssertionError` unless everything that must hold of the lives holds."""
        removed = 0
        dues, departed = [], []
        for stream in store.stream_list:
            life = self._by_ordinal.get(stream.ordinal)
            due = self._due_us(stream, store)
            if due is not None:
                dues.append((due, stream.ordinal))
            removed += stream.first
            assert stream.swept <= stream.first <= len(stream.positions)
            if life is None:
                assert stream.first == 0 and stream.limits is NO_LIMITS
                continue
            assert life.first <= stream.first and life.limits == stream.limits
            assert (life.state == ALIVE) == (stream.name in store.streams)
            assert (life.state != ALIVE) == (self.departed.get(stream.name) is stream)
            assert life.state == ALIVE or stream.first == len(stream.positions)
            departed += [] if life.state == ALIVE else [stream.name]
            assert stream.first >= _first_of(stream, stream.limits)
        assert self.removed == removed, "removed events are miscounted"
        assert list(self.departed) == sorted(departed), "deleted streams are not in order"
        assert list(self._due) == sorted(dues) and len(self._due_of) == len(dues)
        indexes = [life.changed_index for life in self._by_ordinal.values()]
        assert indexes == sorted(indexes) and (not indexes or indexes[-1] == self.changed_index)
        assert self.digest == sum(map(_digest, self._by_ordinal.values())) % _DIGESTS


def _first_of(stream: Stream, limits: Limits) -> int:
    """The first number that is kept by what needs no clock."""
    first = max(stream.first, limits.truncate_before or 0)
    if limits.max_count is None:
        return first
    return max(first, len(stream.positions) - limits.max_count)


def _check(life: Life, stream: Stream) -> None:
    size = len(stream.positions)
    over = life.state in (SOFT_DELETED, HARD_DELETED)
    if not (over or life.state == ALIVE) or not 0 <= life.first <= size:
        raise ValueError(f"stream {stream.name}: a life that cannot be")
    if over and (life.first != size or life.limits != NO_LIMITS):
        raise ValueError(f"stream {stream.name}: deleted, and not empty")
    if (life.limits.truncate_before or 0) > life.first:
        raise ValueError(f"stream {stream.name}: truncated, and not removed")


def _digest(life: Life) -> int:
    flat = (*life[:4], *life.limits)
    return int.from_bytes(sha256(repr(flat).encode()).digest(), "big")
