"""Rolling checksums over what a store file holds.

SQLite keeps no checksums over its pages: a flipped bit inside a blob reads back as a different
event, without a word. So every cut row of a store file carries a CRC-32 over all that stands before
it. It is *rolling*: each block of events continues the last value, which makes it cheap to extend.

`events` runs over the seals of the blocks (see `blocks`); `streams` and `types` over the names.
`snapshots` and `lives` are no checksums of ours but the digests that the store itself keeps.
`checkpoints` and `subscriptions` are the sums of the checksums of their latest rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from zlib import crc32

_SEAL_BYTES = 4


class Checksums(NamedTuple):
    """The values at one point of a store's history."""

    events: int = 0
    streams: int = 0
    types: int = 0
    snapshots: int = 0
    lives: int = 0
    checkpoints: int = 0
    subscriptions: int = 0

    def with_block(self, seal: int) -> Checksums:
        """Continue over the next block."""
        return self._replace(events=crc32(seal.to_bytes(_SEAL_BYTES, "little"), self.events))

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
