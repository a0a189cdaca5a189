"""One store: its events in position order, its streams, its checkpoints, its snapshots.

The store is a tree, as in Khepri: `streams`, `checkpoints` and `snapshots` are its branches, an
expected version is the condition on a stream's list of children. Counts are kept, not counted. How
the events stand in memory is said in `columns`, how streams come to an end in `lives`.

Every method that changes something first checks everything. None raises for what a command says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from node.core.columns import Events
from node.core.columns import Record as Record
from node.core.columns import Row as Row
from node.core.commands import BY_NODE
from node.core.frames import frame_id, frame_type_bytes
from node.core.husks import bytes_of, is_husk, prints_of
from node.core.lives import Life, Lives
from node.core.outcomes import (
    Appended,
    CheckpointMoved,
    CheckpointNotIncreasing,
    EventIdReused,
    StreamDeleted,
    WrongExpectedVersion,
)
from node.core.recent import RecentIds
from node.core.snapshots import Snapshots
from node.core.stream import NO_LIMITS, Stream
from node.core.subscriptions import Subscriptions
from node.core.versions import ANY, NO_STREAM, as_expected

Refusal = WrongExpectedVersion | EventIdReused | StreamDeleted


class Store(Events):
    """The events, streams, checkpoints, snapshots and subscriptions of one store.

    `uid` tells this store from earlier ones of the same name: it is the place in the replicated
    history at which it was created. `durability` is what its appends wait for (see `commands`).
    """

    def __init__(self, name: str, uid: int, created_us: int) -> None:
        super().__init__(name)
        self.uid = uid
        self.created_us = created_us
        self.durability = BY_NODE
        self.checkpoints: dict[str, int] = {}
        self.checkpoint_index: dict[str, int] = {}
        self.lives = Lives()
        self.snapshots = Snapshots()
        self.subscriptions = Subscriptions()

    @property
    def kept_events(self) -> int:
        """How many events are not removed."""
        return self.position - self.lives.removed

    def has_overdue(self, now_us: int) -> bool:
        """Whether an `Expire` at this time has something to let go of."""
        return self.lives.is_due(now_us) or self.snapshots.has_surplus

    # --- appending ---------------------------------------------------------------------------

    def append(
        self, stream: str, expected: int, frames: Sequence[bytes], created_us: int, index: int
    ) -> Appended | Refusal:
        """Append to one stream if it is where the writer expects it, or find an earlier try.

        `index` is the Raft index of the command.
        """
        ids = list(map(frame_id, frames))
        if self._recent.knows_any(ids) or _repeats(ids):
            return self._earlier_try([(stream, frame) for frame in frames])
        found = self.streams.get(stream)
        current = NO_STREAM if found is None else len(found.positions) - 1
        if found is None and self.lives.is_over(stream):
            return StreamDeleted(stream)
        if expected != ANY and not as_expected(expected, current):
            return WrongExpectedVersion(stream, expected, current)
        if found is None:
            found = self._begin(stream, index)
        first, after = len(found.positions), len(self._frames)
        if len(frames) == 1:
            self._write(found, frames[0], ids[0], created_us)
        else:
            self._write_run(found, frames, ids, created_us)
        if found.limits is not NO_LIMITS:
            self.lives.appended(found, self)
        last = first + len(frames) - 1
        positions = range(after + 1, len(self._frames) + 1)
        return Appended(first, last, positions, {stream: last}, False)

    def append_many(
        self,
        events: Sequence[tuple[str, bytes]],
        checks: Sequence[tuple[str, int]],
        checkpoint: tuple[str, int] | None,
        created_us: int,
        index: int,
    ) -> Appended | Refusal | CheckpointNotIncreasing:
        """Append to several streams and move a checkpoint, all of it or nothing.

        Where all events are stored already the checkpoint still moves, if that is forward: who has
        written them in other batches, or before it failed, has got that far and must get on.
        """
        ids = [frame_id(frame) for _, frame in events]
        if self._recent.knows_any(ids) or _repeats(ids):
            earlier = self._earlier_try(events)
            if type(earlier) is Appended and checkpoint is not None:
                self.put_checkpoint(*checkpoint, index)
            return earlier
        refusal = (
            self._refused_stream([*events, *checks])
            or self._refused_check(checks)
            or self._refused_checkpoint(checkpoint)
        )
        if refusal is not None:
            return refusal
        first_position = len(self._frames) + 1
        for (stream, frame), event_id in zip(events, ids, strict=True):
            found = self.streams.get(stream) or self._begin(stream, index)
            self._write(found, frame, event_id, created_us)
            if found.limits is not NO_LIMITS:
                self.lives.appended(found, self)
        if checkpoint is not None:
            self._move(checkpoint, index)
        return self._appended(events, range(first_position, len(self._frames) + 1), False)

    def put_checkpoint(
        self, name: str, position: int, index: int
    ) -> CheckpointMoved | CheckpointNotIncreasing:
        """Move a checkpoint forward; `index` is the Raft index of the command."""
        refusal = self._refused_checkpoint((name, position))
        if refusal is not None:
            return refusal
        self._move((name, position), index)
        return CheckpointMoved(name, position)

    def _earlier_try(self, events: Sequence[tuple[str, bytes]]) -> Appended | EventIdReused:
        """The answer to a request with an id that is remembered, or that stands in it twice."""
        ids = [frame_id(frame) for _, frame in events]
        if _repeats(ids):
            twice = next(one for one, times in Counter(ids).items() if times > 1)
            return EventIdReused(twice, "the same id stands twice in the request")
        found = list(map(self._recent.position, ids))
        for position, event_id, (stream, frame) in zip(found, ids, events, strict=True):
            if position is not None and not self._holds(position, stream, frame):
                return EventIdReused(event_id, "stored with other content or elsewhere")
        positions = [position for position in found if position is not None]
        if len(positions) < len(events):
            return EventIdReused(frame_id(self.frame(positions[0])), "only some events are stored")
        if any(later < sooner for sooner, later in pairwise(positions)):
            return EventIdReused(ids[0], "stored in another order")
        return self._appended(events, positions, True)

    def _holds(self, position: int, stream: str, frame: bytes) -> bool:
        """Of a removed event only the print is compared: that is the same before it is swept."""
        stored = self.frame(position)
        same = stored == frame if self.kept(position) else prints_of([stored]) == prints_of([frame])
        return same and self.record(position).stream == stream

    def _appended(
        self, events: Sequence[tuple[str, bytes]], positions: Sequence[int], idempotent: bool
    ) -> Appended:
        """The answer of an append whose events stand at `positions`."""
        numbers = [self._number_of[position - 1] for position in positions]
        streams = {stream: number for (stream, _), number in zip(events, numbers, strict=True)}
        first = numbers[0] if numbers else -1
        last = streams[events[0][0]] if events else -1
        return Appended(first, last, positions, streams, idempotent)

    def _refused_stream(self, named: Sequence[tuple[str, object]]) -> StreamDeleted | None:
        """A stream that was deleted for ever, named by an event or a check."""
        if self.lives.departed:
            for stream, _ in named:
                if self.lives.is_over(stream):
                    return StreamDeleted(stream)
        return None

    def _refused_check(self, checks: Sequence[tuple[str, int]]) -> WrongExpectedVersion | None:
        for stream, expected in checks:
            current = self.version(stream)
            if not as_expected(expected, current):
                return WrongExpectedVersion(stream, expected, current)
        return None

    def _refused_checkpoint(
        self, checkpoint: tuple[str, int] | None
    ) -> CheckpointNotIncreasing | None:
        if checkpoint is None:
            return None
        name, position = checkpoint
        current = self.checkpoints.get(name)
        if current is None or position > current:
            return None
        return CheckpointNotIncreasing(name, position, current)

    def _move(self, checkpoint: tuple[str, int], index: int) -> None:
        name, position = checkpoint
        self.checkpoints[name] = position
        self.checkpoint_index[name] = index

    def _begin(self, stream: str, index: int) -> Stream:
        """A stream for its first event, or for the first one since it was deleted."""
        departed = self.lives.departed.get(stream)
        if departed is None:
            return self._new_stream(stream)
        self.lives.revive(departed, self, index)
        return departed

    # --- coming back from the disk or from another node --------------------------------------

    def load_checkpoints(self, checkpoints: Mapping[str, tuple[int, int]]) -> None:
        """Set all checkpoints: name -> (position, Raft index of its last move)."""
        self.checkpoints = {name: position for name, (position, _) in checkpoints.items()}
        self.checkpoint_index = {name: index for name, (_, index) in checkpoints.items()}

    def load_lives(self, lives: Iterable[Life]) -> None:
        """Say how the streams live, once all events are there; in order of change.

        Raises `ValueError` for what cannot be, and where an event that is kept has no frame.
        """
        self.lives.load(lives, self)
        for ordinal, first in self._hollow.items():
            if self.stream_list[ordinal].first < first:
                raise ValueError(f"store {self.name}: a frame is missing")

    # --- invariants --------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `AssertionError` unless everything that must hold of a store holds.

        Positions are 1..m and event numbers 0..n without gaps, every event is in exactly one
        stream, times never decrease, counts agree. The cost grows with the store.
        """
        size = len(self._frames)
        columns = (self._stream_of, self._number_of, self._created, self._type_of)
        assert all(len(column) == size for column in columns), "columns differ in length"
        assert self.frame_bytes == bytes_of(self._frames), "frame bytes are miscounted"
        assert len(self.stream_names) == len(self.streams)
        assert len(self.streams) + len(self.lives.departed) == len(self.stream_list)
        assert sum(len(stream.positions) for stream in self.stream_list) == size
        for ordinal, stream in enumerate(self.stream_list):
            self._check_stream(ordinal, stream)
        assert all(a <= b for a, b in pairwise(self._created))
        assert self.checkpoints.keys() == self.checkpoint_index.keys()
        self.lives.check(self)
        self.snapshots.check()
        assert list(self.stream_names) == sorted(self.streams)
        assert self._recent == RecentIds.of(self._frames), "other ids are remembered than must be"
        for at, frame in enumerate(self._frames):
            kind = self.type_names[self._type_of[at]]
            if is_husk(frame):
                assert not self.kept(at + 1), f"no frame at {at + 1}"
            else:
                assert frame_type_bytes(frame) == kind.encode(), f"wrong type at {at + 1}"

    def _check_stream(self, ordinal: int, stream: Stream) -> None:
        named = self.streams.get(stream.name) or self.lives.departed.get(stream.name)
        assert stream.ordinal == ordinal and named is stream
        assert stream.positions, f"stream {stream.name} exists without an event"
        for number, position in enumerate(stream.positions):
            assert self._stream_of[position - 1] == ordinal
            assert self._number_of[position - 1] == number


def _repeats(ids: Sequence[bytes]) -> bool:
    return len(ids) > 1 and len(set(ids)) < len(ids)
