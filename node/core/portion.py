"""A portion of a store: events that follow one another, as they travel from one node to another.

A `Portion` has the columns of its events as bytes (least significant byte first) and the names of
the streams and types that they are the first to use. What else a store holds of an event follows
from where it stands: position and event number.

A `Digest` is a SHA-256 over all events of a store up to a position, and nothing else: two stores
that agree up to there have the same one, however their events were cut into portions. So a digest
at the end of a portion vouches for the portion and for everything before it.

Where an event was removed, a portion may hold its husk instead of the frame. Of frames a digest has
the prints, which are those of their husks (see `husks`), so it does not tell who holds what.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import accumulate
from typing import NamedTuple

from node.core.fields import TIME_US_MAX
from node.core.frames import frame_type_bytes, is_frame
from node.core.husks import is_husk, prints_of
from node.core.store import Store

DIGEST_BYTES = 32

_HASHED = 8  # names of streams and types, three columns, and three parts of the prints

_SWAPPED = array("H", (1,)).tobytes() != b"\1\0"


class Portion(NamedTuple):
    """The events that follow position `after`."""

    after: int
    streams: list[str]
    types: list[str]
    stream_of: bytes  # 4 bytes an event, as have type_of and lengths
    created: bytes  # 8 bytes an event
    type_of: bytes
    lengths: bytes  # of the frames, or husks
    frames: bytes

    @property
    def until(self) -> int:
        """The position of the last event."""
        return self.after + len(self.lengths) // 4


class Digest:
    """The digest of a store up to `position`, with as many streams and types as it has there."""

    def __init__(self) -> None:
        self.position = self.streams = self.types = 0
        self._hashes = [sha256() for _ in range(_HASHED)]

    def add(self, portion: Portion) -> None:
        """Go on over the portion that follows."""
        assert portion.after == self.position, "a digest goes over every event once, in order"
        _, streams, types, *columns = portion[:6]
        prints = prints_of(_split(portion.frames, _unpacked("I", portion.lengths)))
        numbers = _packed("I", prints.crcs), _packed("I", prints.lengths)
        parts = (_names(streams), _names(types), *columns, prints.ids, *numbers)
        for part, running in zip(parts, self._hashes, strict=True):
            running.update(part)
        self.position = portion.until
        self.streams += len(streams)
        self.types += len(types)

    def copy(self) -> Digest:
        """One that goes on from here by itself."""
        copied = Digest()
        copied.position, copied.streams, copied.types = self.position, self.streams, self.types
        copied._hashes = [running.copy() for running in self._hashes]
        return copied

    def value(self) -> bytes:
        """The digest, `DIGEST_BYTES` long."""
        return sha256(b"".join(running.digest() for running in self._hashes)).digest()


def take(store: Store, after: Digest, until: int, frame_bytes_max: int) -> Portion:
    """The events of `store` behind `after` up to `until`, or fewer: one at least, and no further
    one beyond `frame_bytes_max`.
    """
    stream_of, created, type_of, frames = store.columns(after.position, until)
    sizes = list(accumulate(map(len, frames)))
    count = max(1, bisect_right(sizes, frame_bytes_max))
    streams = store.stream_list[after.streams : max(stream_of[:count]) + 1]
    return Portion(
        after.position,
        [stream.name for stream in streams],
        store.type_names[after.types : max(type_of[:count]) + 1],
        _packed("I", stream_of[:count]),
        _packed("q", created[:count]),
        _packed("I", type_of[:count]),
        _packed("I", map(len, frames[:count])),
        b"".join(frames[:count]),
    )


def load(store: Store, portion: Portion) -> None:
    """Add a portion to a store that nobody reads yet. Raises `ValueError` where it does not fit.

    After an error the store is of no use any more.
    """
    if portion.after != store.position or portion.until == portion.after:
        raise ValueError(f"store {store.name}: no events follow {store.position}")
    stream_of, created = _unpacked("I", portion.stream_of), _unpacked("q", portion.created)
    type_of, lengths = _unpacked("I", portion.type_of), _unpacked("I", portion.lengths)
    if not len(stream_of) == len(created) == len(type_of) == len(lengths):
        raise ValueError(f"store {store.name}: columns differ in length")
    frames = _split(portion.frames, lengths)
    _check_new(stream_of, len(store.stream_list), len(portion.streams))
    _check_new(type_of, len(store.type_names), len(portion.types))
    before = store.record(store.position).created_us if store.position else 0
    if sorted(created) != list(created) or created[0] < before or created[-1] > TIME_US_MAX:
        raise ValueError(f"store {store.name}: times decrease, or are none")
    store.load_streams(portion.streams)
    store.load_types(portion.types)
    if max(type_of) >= len(store.type_names):
        raise ValueError(f"store {store.name}: an event of an unknown type")
    names = [name.encode() for name in store.type_names]
    for at, frame in zip(type_of, frames, strict=True):
        fits = frame_type_bytes(frame) == names[at] if is_frame(frame) else is_husk(frame)
        if not fits:
            raise ValueError(f"store {store.name}: a frame is none, or of another type")
    store.load_columns((stream_of, created, type_of, frames))


def _check_new(ordinals: Sequence[int], known: int, fresh: int) -> None:
    """Ordinals count in order of first use, so new ones are known before the events are."""
    used = [ordinal for ordinal in dict.fromkeys(ordinals) if ordinal >= known]
    if used != list(range(known, known + fresh)):
        raise ValueError("new streams or types are not those that the events use first")


def _split(joined: bytes, lengths: Sequence[int]) -> list[bytes]:
    ends = list(accumulate(lengths))
    if ends[-1] != len(joined):
        raise ValueError("the frames are longer or shorter than they should be")
    return [joined[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _names(names: Iterable[str]) -> bytes:
    return "".join(f"{len(name)}:{name}" for name in names).encode()


def _packed(kind: str, values: Iterable[int]) -> bytes:
    packed = array(kind, values)
    if _SWAPPED:
        packed.byteswap()
    return packed.tobytes()


def _unpacked(kind: str, packed: bytes) -> Sequence[int]:
    values = array(kind)
    values.frombytes(packed)
    if _SWAPPED:
        values.byteswap()
    return values
