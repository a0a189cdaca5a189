"""Rolling checksums over what a store file holds.

SQLite keeps no checksums over its pages: a flipped bit inside a blob reads back as a different
event, without a word. So every cut row of a store file carries a CRC-32 over all that stands before
it. It is *rolling*: each batch continues the last value, which makes it cheap to extend (about
0.5 us an event, in C) and independent of how the rows were cut into batches.

`numbers` runs over position, stream, number, time and type of each event; `ids`, `crcs` and
`lengths` over the prints of the frames, which are those of the husks that may take their places
(see `core.husks`); `streams` and `types` over the names. `snapshots` and `lives` are no checksums
of ours but the digests that the store itself keeps. `checkpoints` is the sum of the checksums of
their latest rows. The order of an event's values is that of the columns of the table `events`:
whoever changes one changes the other.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple
from zlib import crc32

from node.core.husks import prints_of

# position, ordinal of the stream, event number, created in microseconds, ordinal of the type, frame
EVENT_COLUMNS = 6
FRAMES = slice(EVENT_COLUMNS - 1, None, EVENT_COLUMNS)


class Checksums(NamedTuple):
    """The values at one point of a store's history."""

    numbers: int = 0
    ids: int = 0
    crcs: int = 0
    lengths: int = 0
    streams: int = 0
    types: int = 0
    snapshots: int = 0
    lives: int = 0
    checkpoints: int = 0

    def with_events(self, values: list[Any]) -> Checksums:
        """Continue over events, given as one flat list of `EVENT_COLUMNS` values each.

        Holds the interpreter lock: pass a few hundred events at a time where others need it.
        """
        without_frames = values.copy()
        del without_frames[FRAMES]
        prints = prints_of(values[FRAMES])
        return self._replace(
            numbers=_over("q", without_frames, self.numbers),
            ids=crc32(prints.ids, self.ids),
            crcs=_over("I", prints.crcs, self.crcs),
            lengths=_over("I", prints.lengths, self.lengths),
        )

    def with_names(self, streams: Iterable[str], types: Iterable[str]) -> Checksums:
        """Continue over the names of new streams and types."""
        return self._replace(
            streams=_over_names(streams, self.streams), types=_over_names(types, self.types)
        )

    def __str__(self) -> str:
        return "-".join(f"{value:08x}" for value in self)


def parse_checksums(text: str) -> Checksums:
    """The inverse of `str`. Raises ValueError."""
    return Checksums(*(int(part, 16) for part in text.split("-")))


def row_checksum(*values: int | str) -> int:
    """The checksum that a small row carries of its own other columns."""
    return crc32(repr(values).encode())


def _over(kind: str, values: list[Any], start: int) -> int:
    packed = array(kind, values)
    if sys.byteorder == "big":
        packed.byteswap()  # so that a file can move between machines
    return crc32(packed, start)


def _over_names(names: Iterable[str], start: int) -> int:
    # A name has no control characters, so a zero byte ends it without ambiguity.
    return crc32("".join(f"{name}\0" for name in names).encode(), start)
