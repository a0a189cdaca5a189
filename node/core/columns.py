"""The events of one store, in columns: one item an event, index = position - 1.

    frame         the bytes as they entered, or a husk    8 bytes a reference + the frame itself
    stream        ordinal of the event's stream           4 bytes
    number        event number in that stream             8 bytes
    created_us    when it was taken, never decreasing     8 bytes
    type          ordinal of the event type               4 bytes

plus 8 bytes in the stream's own list of positions and the share of `RecentIds`: about 100 bytes an
event beside the frame's own, whatever the number of streams. Columns only grow at their end, and
what stands in them never changes; the persistence thread and long reads rely on that when they
look at a range that is complete.

There is one exception. Once an event was removed (see `lives`), a husk may take its frame's place,
at a time of each node's own (see `husks`, and `sweep`): about 110 bytes of the event stay. So
whoever wants to read an event asks `kept` first, in the same step.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

from sortedcontainers import SortedList

from node.core.frames import frame_id, frame_type_bytes
from node.core.husks import bytes_of, husk_of, is_husk
from node.core.recent import RecentIds, first_remembered
from node.core.stream import Stream
from node.core.versions import NO_STREAM

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


class Events:
    """The events and the streams of the store `name`.

    `frame_bytes` is the sum of the lengths of all frames that ever came, `swept_bytes` how much of
    it this node has given back. `streams` are those that exist, by name; `stream_list` are all that
    ever did. `origin` is one and the same object for copies that grew out of one another: whoever
    has written the contents of one of them down can go on with the next.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.origin = object()
        self.frame_bytes = 0
        self.swept_bytes = 0
        self.streams: dict[str, Stream] = {}
        self.stream_list: list[Stream] = []
        self.stream_names: SortedList[str] = SortedList()
        self.type_names: list[str] = []
        self._type_ordinals: dict[bytes, int] = {}
        self._frames: list[bytes] = []
        self._stream_of = array("I")
        self._number_of = array("Q")
        self._created = array("q")
        self._type_of = array("I")
        self._recent = RecentIds()
        self._hollow: dict[int, int] = {}  # ordinal of a stream -> number behind its last husk

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
        """The event at a position from 1 to `position`; see `frame`."""
        at = position - 1
        return Record(
            self.stream_list[self._stream_of[at]].name,
            self._number_of[at],
            position,
            self._created[at],
            self._frames[at],
        )

    def frame(self, position: int) -> bytes:
        """The frame at a position; perhaps a husk, if the event is not `kept`."""
        return self._frames[position - 1]

    def kept(self, position: int) -> bool:
        """Whether the event at a position is not removed."""
        at = position - 1
        return self._number_of[at] >= self.stream_list[self._stream_of[at]].first

    def first_after(self, stream: Stream, latest_us: int) -> int:
        """The number of the first event, kept or yet to come, taken later than `latest_us`."""
        created, positions = self._created, stream.positions
        return bisect_right(positions, latest_us, stream.first, key=lambda at: created[at - 1])

    def find_type(self, event_type: str) -> int | None:
        """The ordinal of an event type, or None if no event of the store has it."""
        return self._type_ordinals.get(event_type.encode())

    def stream_name(self, ordinal: int) -> str:
        """The name of a stream by its ordinal."""
        return self.stream_list[ordinal].name

    def rows(self, after: int, until: int) -> Iterator[Row]:
        """Events `after` < position <= `until` as rows, removed ones among them."""
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

    def numbers(self, after: int, until: int) -> Sequence[int]:
        """The event numbers of the same range."""
        return self._number_of[after:until]

    # --- writing -----------------------------------------------------------------------------

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
        """Add streams in order of creation, without their events; `load_events` fills them."""
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

    def load_events(self, first: int, numbers: Sequence[int], columns: Columns) -> None:
        """Add the events from position `first` on, which follow the last one. Raises `ValueError`
        where they do not fit.
        """
        after = self.position
        if first != after + 1:
            raise ValueError(f"store {self.name}: position {first} does not follow {after}")
        self.load_columns(columns)
        if self._number_of[after:] != array("Q", numbers):
            raise ValueError(f"store {self.name}: wrong event number after position {after}")

    def load_columns(self, columns: Columns) -> None:
        """Add the events that follow the last one; their numbers follow from the streams. Raises
        `ValueError`.
        """
        ordinals, created, types, frames = columns
        if max(ordinals) >= len(self.stream_list) or max(types) >= len(self.type_names):
            raise ValueError(f"store {self.name}: an event of an unknown stream or type")
        streams = self.stream_list
        numbers = self._number_of
        for position, ordinal in enumerate(ordinals, self.position + 1):
            known = streams[ordinal].positions
            numbers.append(len(known))
            known.append(position)
        after = self.position
        self._frames.extend(frames)
        self._stream_of.extend(ordinals)
        self._created.extend(created)
        self._type_of.extend(types)
        self._count_loaded(after)

    def _count_loaded(self, after: int) -> None:
        """Count the bytes behind a position, and note the husks among them."""
        loaded = self._frames[after:]
        count, held = bytes_of(loaded), sum(map(len, loaded))
        self.frame_bytes += count
        if count == held:
            return
        self.swept_bytes += count - held
        for at, frame in enumerate(loaded, after):
            if is_husk(frame):
                self._hollow[self._stream_of[at]] = self._number_of[at] + 1

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

    def copying(self, other: Events) -> Iterator[None]:
        """Make this empty store a copy of the events of `other` as of now, in steps.

        The other one may grow meanwhile. Frames are shared; the rest is about 40 bytes an event.
        How its streams live is not copied.
        """
        size, streams = other.position, len(other.stream_list)
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
            after = self.position
            self._frames.extend(other._frames[part])
            self._stream_of.extend(other._stream_of[part])
            self._number_of.extend(other._number_of[part])
            self._created.extend(other._created[part])
            self._type_of.extend(other._type_of[part])
            self._count_loaded(after)
            yield
        self.origin = other.origin

    # --- giving memory back ------------------------------------------------------------------

    def sweep(
        self, stream: Stream, until: int, events_max: int, bytes_max: int
    ) -> dict[int, bytes]:
        """Put husks in the place of frames of removed events with numbers below `until`.

        Goes on where the stream was `swept` to, over at most `events_max` events, and beyond
        `bytes_max` over no further one. The frames that are no longer needed, by their positions.
        """
        replaced: dict[int, bytes] = {}
        freed, began = 0, stream.swept
        while stream.swept < min(until, stream.first, began + events_max) and freed < bytes_max:
            at = stream.positions[stream.swept] - 1
            stream.swept += 1
            frame = self._frames[at]
            if not is_husk(frame):
                husk = self._frames[at] = husk_of(frame)
                freed += len(frame) - len(husk)
                replaced[at + 1] = frame
        self.swept_bytes += freed
        return replaced
