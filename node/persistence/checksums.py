"""Rolling checksums over what a store file holds.

SQLite keeps no checksums over its pages: a flipped bit inside a blob reads back as a different
event, without a word. So every cut row of a store file carries a CRC-32 over all that stands before
it. It is *rolling*: each batch continues the last value, which makes it cheap to extend (about
0.3 us an event, in C) and independent of how the rows were cut into batches.

`numbers` runs over position, stream, number, time and type of each event; `frames` over their
bytes; `streams` and `types` over the names. The order of the fields of a row is that of the table
`events`: whoever changes one changes the other.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import NamedTuple
from zlib import crc32

# position, ordinal of the stream, event number, created in microseconds, ordinal of the type, frame
EventRow = tuple[int, int, int, int, int, bytes]

_NUMBERS = itemgetter(slice(0, 5))
_FRAME = itemgetter(5)


class Checksums(NamedTuple):
    """The four values at one point of a store's history."""

    numbers: int = 0
    frames: int = 0
    streams: int = 0
    types: int = 0

    def with_events(self, rows: Sequence[EventRow]) -> Checksums:
        """Continue over these events. Holds the interpreter lock: pass a few hundred at a time."""
        numbers = array("q", chain.from_iterable(map(_NUMBERS, rows)))
        if sys.byteorder == "big":
            numbers.byteswap()  # so that a file can move between machines
        return self._replace(
            numbers=crc32(numbers, self.numbers),
            frames=crc32(b"".join(map(_FRAME, rows)), self.frames),
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
