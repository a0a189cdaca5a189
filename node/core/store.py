"""One store: its events in position order, its streams, its checkpoints, its snapshots.

Events stand in columns, one item an event, index = position - 1:

    frame         the bytes as they entered               8 bytes a reference + the frame itself
    stream        ordinal of the event's stream           4 bytes
    number        event number in that stream             8 bytes
    created_us    when it was taken, never decreasing     8 bytes
    type          ordinal of the event type               4 bytes

plus 8 bytes in the stream's own list of positions and the share of `RecentIds`: about 100 bytes an
event beside the frame's own, whatever the number of streams. Columns only grow at their end, and
what stands in them never changes; the persistence thread and long reads rely on that when they
look at a range that is complete.

The store is a tree, as in Khepri: `streams`, `checkpoints` and `snapshots` are its branches, an
expected version is the condition on a stream's list of children. Counts are kept, not counted.

Every method that changes something first checks everything. None raises for what a command says.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, repeat
from typing import NamedTuple

from sortedcontainers import SortedList

from node.core.commands import ANY, BY_NODE, NO_STREAM
from node.core.frames import frame_id, frame_type_bytes
from node.core.outcomes import (
    Appended,
    CheckpointMoved,
    CheckpointNotIncreasing,
    EventIdReused,
    WrongExpectedVersion,
)
from node.core.recent import RecentIds, first_remembered
from node.core.snapshots import Snapshots
from node.core.stream import Stream
from node.core.subscriptions import Subscriptions
from node.core.versions import as_expected

Row = tuple[int, int, int, int, int, bytes]
Columns = tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[bytes]]

# How much a copy, or remembering ids, does between two steps: about a millisecond.
_STREAMS_A_STEP = 1_000
_EVENTS_A_STEP = 10_000


class Record(NamedTuple):
    """One event and where it stands."""

    stream: str
    number: int
    position: int
    created_us: int
    frame: bytes


class Store:
    """The events, streams and checkpoints of one store.

    `uid` tells this store from earlier ones of the same name: it is the place in the replicated
    history at which it was created. `durability` is what its appends wait for (see `commands`).
    `frame_bytes` is the sum of the lengths of all its frames.
    `origin` is one and the same object for copies that grew out of one another: whoever has written
    the contents of one of them down can go on with the next.
    """

    def __init__(self, name: str, uid: int, created_us: int) -> None:
        self.name = name
        self.uid = uid
        self.created_us = created_us
        self.durability = BY_NODE
        self.origin = object()
        self.frame_bytes = 0
        self.streams: dict[str, Stream] = {}
        self.stream_list: list[Stream] = []
        self.stream_names: SortedList[str] = SortedList()
        self.type_names: list[str] = []
        self.checkpoints: dict[str, int] = {}
        self.checkpoint_index: dict[str, int] = {}
        self.snapshots = Snapshots()
        self.subscriptions = Subscriptions()
        self._type_ordinals: dict[bytes, int] = {}
        self._frames: list[bytes] = []
        self._stream_of = array("I")
        self._number_of = array("Q")
        self._created = array("q")
        self._type_of = array("I")
        self._recent = RecentIds()

    # --- looking -----------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The position of the last event; 0 in an empty store."""
        return len(self._frames)

    def version(self, stream: str) -> int:
        """The number of the stream's last event; -1 if there is no such stream."""
        found = self.streams.get(stream)
        return NO_STREAM if found is None else len(found.positions) - 1

    def record(self, position: int) -> Record:
        """The event at a position from 1 to `position`."""
        at = position - 1
        return Record(
            self.stream_list[self._stream_of[at]].name,
            self._number_of[at],
            position,
            self._created[at],
            self._frames[at],
        )

    def frame(self, position: int) -> bytes:
        """The frame at a position."""
        return self._frames[position - 1]

    def find_type(self, event_type: str) -> int | None:
        """The ordinal of an event type, or None if no event of the store has it."""
        return self._type_ordinals.get(event_type.encode())

    def stream_name(self, ordinal: int) -> str:
        """The name of a stream by its ordinal."""
        return self.stream_list[ordinal].name

    def rows(self, after: int, until: int) -> Iterator[Row]:
        """Events `after` < position <= `until` as rows for the disk.

        The columns are sliced here and zipped in C as the rows are taken, so that another thread
        may consume them without running Python code for each. Ask for a few thousand at a time.
        """
        return zip(
            range(after + 1, until + 1),
            self._stream_of[after:until],
            self._number_of[after:until],
            self._created[after:until],
            self._type_of[after:until],
            self._frames[after:until],
            strict=False,
        )

    def columns(self, after: int, until: int) -> Columns:
        """The same range as columns: stream ordinals, times, type ordinals, frames."""
        part = slice(after, until)
        return self._stream_of[part], self._created[part], self._type_of[part], self._frames[part]

    # --- appending ---------------------------------------------------------------------------

    def append(
        self, stream: str, expected: int, frames: Sequence[bytes], created_us: int
    ) -> Appended | WrongExpectedVersion | EventIdReused:
        """Append to one stream if it is where the writer expects it, or find an earlier try."""
        ids = list(map(frame_id, frames))
        if self._recent.knows_any(ids) or _repeats(ids):
            return self._earlier_try([(stream, frame) for frame in frames])
        found = self.streams.get(stream)
        current = NO_STREAM if found is None else len(found.positions) - 1
        if expected != ANY and not as_expected(expected, current):
            return WrongExpectedVersion(stream, expected, current)
        if found is None:
            found = self._new_stream(stream)
        after = len(self._frames)
        if len(frames) == 1:
            self._write(found, frames[0], ids[0], created_us)
        else:
            self._write_run(found, frames, ids, created_us)
        last = current + len(frames)
        positions = range(after + 1, len(self._frames) + 1)
        return Appended(current + 1, last, positions, {stream: last}, False)

    def append_many(
        self,
        events: Sequence[tuple[str, bytes]],
        checks: Sequence[tuple[str, int]],
        checkpoint: tuple[str, int] | None,
        created_us: int,
        index: int,
    ) -> Appended | WrongExpectedVersion | EventIdReused | CheckpointNotIncreasing:
        """Append to several streams and move a checkpoint, all of it or nothing."""
        ids = [frame_id(frame) for _, frame in events]
        if self._recent.knows_any(ids) or _repeats(ids):
            return self._earlier_try(events)
        refusal = self._refused_check(checks) or self._refused_checkpoint(checkpoint)
        if refusal is not None:
            return refusal
        first_position = len(self._frames) + 1
        for (stream, frame), event_id in zip(events, ids, strict=True):
            found = self.streams.get(stream) or self._new_stream(stream)
            self._write(found, frame, event_id, created_us)
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
        return self.frame(position) == frame and self.record(position).stream == stream

    def _appended(
        self, events: Sequence[tuple[str, bytes]], positions: Sequence[int], idempotent: bool
    ) -> Appended:
        """The answer of an append whose events stand at `positions`."""
        numbers = [self._number_of[position - 1] for position in positions]
        streams = {stream: number for (stream, _), number in zip(events, numbers, strict=True)}
        first = numbers[0] if numbers else -1
        last = streams[events[0][0]] if events else -1
        return Appended(first, last, positions, streams, idempotent)

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

    def _new_stream(self, name: str) -> Stream:
        stream = self.streams[name] = Stream(name, len(self.stream_list))
        self.stream_list.append(stream)
        self.stream_names.add(name)
        return stream

    def _write(self, stream: Stream, frame: bytes, event_id: bytes, created_us: int) -> None:
        """Add an event to the end of a stream, and of the store."""
        created = self._created
        if created and created[-1] > created_us:
            created_us = created[-1]
        self._frames.append(frame)
        position = len(self._frames)
        self._stream_of.append(stream.ordinal)
        self._number_of.append(len(stream.positions))
        created.append(created_us)
        kind = self._type_ordinals.get(frame_type_bytes(frame))
        self._type_of.append(self._type(frame) if kind is None else kind)
        stream.positions.append(position)
        self._recent.add(event_id, position)
        self.frame_bytes += len(frame)

    def _write_run(
        self, stream: Stream, frames: Sequence[bytes], ids: Sequence[bytes], created_us: int
    ) -> None:
        """The same as one `_write` after another, with less work an event."""
        created, count = self._created, len(frames)
        if created and created[-1] > created_us:
            created_us = created[-1]
        number, after = len(stream.positions), len(self._frames)
        positions = range(after + 1, after + 1 + count)
        self._frames.extend(frames)
        self._stream_of.extend(repeat(stream.ordinal, count))
        self._number_of.extend(range(number, number + count))
        created.extend(repeat(created_us, count))
        self._type_of.extend(map(self._type, frames))
        stream.positions.extend(positions)
        self._recent.extend(ids, positions)
        self.frame_bytes += sum(map(len, frames))

    def _type(self, frame: bytes) -> int:
        name = frame_type_bytes(frame)
        ordinal = self._type_ordinals.get(name)
        if ordinal is None:
            ordinal = self._type_ordinals[name] = len(self.type_names)
            self.type_names.append(name.decode())
        return ordinal

    # --- coming back from the disk or from another node --------------------------------------

    def load_streams(self, names: Iterable[str]) -> None:
        """Add streams in order of creation, without their events; `load_rows` fills them."""
        fresh = [Stream(name, at) for at, name in enumerate(names, len(self.stream_list))]
        self.stream_list.extend(fresh)
        self.streams.update((stream.name, stream) for stream in fresh)
        self.stream_names.update(stream.name for stream in fresh)
        if len(self.streams) != len(self.stream_list):
            raise ValueError(f"store {self.name}: a stream name stands twice")

    def load_types(self, names: Iterable[str]) -> None:
        """Add event types in order of first use."""
        for name in names:
            self._type_ordinals[name.encode()] = len(self.type_names)
            self.type_names.append(name)

    def load_rows(self, rows: Sequence[Row]) -> None:
        """Add the events that follow the last one. Raises `ValueError` where they do not fit."""
        if not rows:
            return
        positions, ordinals, numbers, created, types, frames = zip(*rows, strict=True)
        after = self.position
        if positions != tuple(range(after + 1, after + 1 + len(rows))):
            raise ValueError(f"store {self.name}: positions do not follow {after}")
        self.load_columns((ordinals, created, types, frames))
        if self._number_of[after:] != array("Q", numbers):
            raise ValueError(f"store {self.name}: wrong event number after position {after}")

    def load_columns(self, columns: Columns) -> None:
        """The same, of columns; event numbers follow from the streams. Raises `ValueError`."""
        ordinals, created, types, frames = columns
        if max(ordinals) >= len(self.stream_list) or max(types) >= len(self.type_names):
            raise ValueError(f"store {self.name}: an event of an unknown stream or type")
        streams = self.stream_list
        numbers = self._number_of
        for position, ordinal in enumerate(ordinals, self.position + 1):
            known = streams[ordinal].positions
            numbers.append(len(known))
            known.append(position)
        self._frames.extend(frames)
        self._stream_of.extend(ordinals)
        self._created.extend(created)
        self._type_of.extend(types)
        self.frame_bytes += sum(map(len, frames))

    def load_checkpoints(self, checkpoints: Mapping[str, tuple[int, int]]) -> None:
        """Set all checkpoints: name -> (position, Raft index of its last move)."""
        self.checkpoints = {name: position for name, (position, _) in checkpoints.items()}
        self.checkpoint_index = {name: index for name, (_, index) in checkpoints.items()}

    def loaded(self) -> None:
        """To be called after the last `load_*`: what follows from the rows is made again."""
        for _ in self.remembering():
            pass

    def remembering(self) -> Iterator[None]:
        """`loaded` in steps, for who has something else to do between two of them."""
        self._recent = RecentIds()
        size = self.position
        for after in range(first_remembered(size), size, _EVENTS_A_STEP):
            until = min(after + _EVENTS_A_STEP, size)
            ids = list(map(frame_id, self._frames[after:until]))
            self._recent.extend(ids, range(after + 1, until + 1))
            yield

    def copying(self, other: Store) -> Iterator[None]:
        """Make this empty store a copy of the events of `other` as of now, in steps.

        The other one may grow meanwhile. Frames are shared; the rest is about 40 bytes an event.
        """
        size, streams, frame_bytes = other.position, len(other.stream_list), other.frame_bytes
        self.load_types(other.type_names)
        for at in range(0, streams, _STREAMS_A_STEP):
            originals = other.stream_list[at : min(at + _STREAMS_A_STEP, streams)]
            self.load_streams(stream.name for stream in originals)
            for copy, original in zip(self.stream_list[at:], originals, strict=True):
                positions = original.positions
                copy.positions = positions[: bisect_right(positions, size)]
            yield
        for at in range(0, size, _EVENTS_A_STEP):
            part = slice(at, min(at + _EVENTS_A_STEP, size))
            self._frames.extend(other._frames[part])
            self._stream_of.extend(other._stream_of[part])
            self._number_of.extend(other._number_of[part])
            self._created.extend(other._created[part])
            self._type_of.extend(other._type_of[part])
            yield
        self.frame_bytes, self.origin = frame_bytes, other.origin

    # --- invariants --------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `AssertionError` unless everything that must hold of a store holds.

        Positions are 1..m and event numbers 0..n without gaps, every event is in exactly one
        stream, times never decrease, counts agree. The cost grows with the store.
        """
        size = len(self._frames)
        columns = (self._stream_of, self._number_of, self._created, self._type_of)
        assert all(len(column) == size for column in columns), "columns differ in length"
        assert self.frame_bytes == sum(map(len, self._frames)), "frame bytes are miscounted"
        assert len(self.stream_names) == len(self.streams) == len(self.stream_list)
        assert sum(len(stream.positions) for stream in self.stream_list) == size
        for ordinal, stream in enumerate(self.stream_list):
            self._check_stream(ordinal, stream)
        assert all(a <= b for a, b in pairwise(self._created))
        assert self.checkpoints.keys() == self.checkpoint_index.keys()
        self.snapshots.check()
        assert list(self.stream_names) == sorted(self.streams)
        assert self._recent == RecentIds.of(self._frames), "other ids are remembered than must be"
        for at, frame in enumerate(self._frames):
            kind = self.type_names[self._type_of[at]]
            assert frame_type_bytes(frame) == kind.encode(), f"wrong type at {at + 1}"

    def _check_stream(self, ordinal: int, stream: Stream) -> None:
        assert stream.ordinal == ordinal and self.streams[stream.name] is stream
        assert stream.positions, f"stream {stream.name} exists without an event"
        for number, position in enumerate(stream.positions):
            assert self._stream_of[position - 1] == ordinal
            assert self._number_of[position - 1] == number


def _repeats(ids: Sequence[bytes]) -> bool:
    return len(ids) > 1 and len(set(ids)) < len(ids)
