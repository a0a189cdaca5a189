"""Rolling checksums over what a store file holds.

SQLite keeps no checksums over its pages: a flipped bit inside a blob reads back as a different
event, without a word. So every cut row of a store file carries a CRC-32 over all that stands before
it. It is *rolling*: each batch continues the last value, which makes it cheap to extend (about
0.3 us an event, in C) and independent of how the rows were cut into batches.

`snapshots` is no checksum of ours but the digest that the store itself keeps of its snapshots.
`numbers` runs over position, stream, number, time and type of each event; `frames` over their
bytes; `streams` and `types` over the names. The order of an event's values is that of the columns
of the table `events`: whoever changes one changes the other.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple
from zlib import crc32

# position, ordinal of the stream, event number, created in microseconds, ordinal of the type, frame
EVENT_COLUMNS = 6
_FRAMES = slice(EVENT_COLUMNS - 1, None, EVENT_COLUMNS)


class Checksums(NamedTuple):
    """The values at one point of a store's history; older files lack the last one."""

    numbers: int = 0
    frames: int = 0
    streams: int = 0
    types: int = 0
    snapshots: int = 0

    def with_events(self, values: list[Any]) -> Checksums:
        """Continue over events, given as one flat list of `EVENT_COLUMNS` values each.

        Holds the interpreter lock: pass a few hundred events at a time where others need it.
        """
        without_frames = values.copy()
        del without_frames[_FRAMES]
        numbers = array("q", without_frames)
        if sys.byteorder == "big":
            numbers.byteswap()  # so that a file can move between machines
        return self._replace(
            numbers=crc32(numbers, self.numbers),
            frames=crc32(b"".join(values[_FRAMES]), self.frames),
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


def _over_names(names: Iterable[str], start: int) -> int:
    # A name has no control characters, so a zero byte ends it without ambiguity.
    return crc32("".join(f"{name}\0" for name in names).encode(), start)
