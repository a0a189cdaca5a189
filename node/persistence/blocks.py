"""How events stand in a store file: a row for a block of them.

A row for each event costs SQLite, Python and the checksums some 3 us an event, on every node; in
blocks it is 1.0 to 1.5. A block is a run of events as one cycle wrote them, so its end may be a
mark, and no mark stands within one:

    first       position of its first event
    events      how many it has
    created_us  time of its first event
    columns     JSON, an array for each: stream ids, event numbers, times after `created_us`, type
                ids, ends of the frames in `frames`
    frames      the frames, one after the other
    seal        CRC-32 of all before it, as it was first written
    checksum    the same of it as it is now

The columns are JSON so that SQLite itself can take them apart: the view `events` has a row for each
event. Both CRCs differ once husks have taken the places of frames (see `core.husks`). The mark's
checksum runs over the seals, which stay; so a block is as it was written if its own CRC is right,
and the right block if its seal is.

All of it is made in the persistence thread, beside the event loop, under the interpreter lock, and
zlib gives that away for more than 5 KiB, to take it back up to 5 ms later; so a block is summed up
in pieces.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import msgspec

from node.core.columns import Columns
from node.core.husks import crc_of
from node.core.store import Store

EVENTS_MAX = 128
FRAMES_BYTES_MAX = 32 * 1024  # or one event

BLOCKS_TABLE = """
CREATE TABLE blocks (
    first      INTEGER PRIMARY KEY,
    events     INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    columns    TEXT NOT NULL,
    frames     BLOB NOT NULL,
    seal       INTEGER NOT NULL,
    checksum   INTEGER NOT NULL
);
CREATE VIEW events AS
    SELECT b.first + e.key AS position, e.value AS stream_id,
           json_extract(b.columns, '$[1][' || e.key || ']') AS number,
           b.created_us + json_extract(b.columns, '$[2][' || e.key || ']') AS created_us,
           json_extract(b.columns, '$[3][' || e.key || ']') AS type_id,
           substr(b.frames, json_extract(b.columns, '$[4][' || e.key || ']') + 1,
                  json_extract(b.columns, '$[4][' || (e.key + 1) || ']')
                  - json_extract(b.columns, '$[4][' || e.key || ']')) AS frame
    FROM blocks AS b, json_each(b.columns, '$[0]') AS e
"""

_Lists = tuple[list[int], list[int], list[int], list[int], list[int]]
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Lists).decode


class Block(NamedTuple):
    """A row of the table `blocks`."""

    first: int
    events: int
    created_us: int
    columns: str
    frames: bytes
    seal: int
    checksum: int


class Contents(NamedTuple):
    """What a block says: the numbers of its events in their streams, and their columns."""

    numbers: list[int]
    columns: Columns


def blocks_of(store: Store, after: int, until: int) -> Iterator[Block]:
    """The events `after` < position <= `until` of a store in blocks, as they are written first."""
    while after < until:
        end = _end(store, after, min(after + EVENTS_MAX, until))
        yield _block(store, after, end)
        after = end


def block_anew(store: Store, first: int, events: int, seal: int) -> Block:
    """A block that is written already, as its events stand in the store by now: husks may have
    taken the places of frames. It keeps its events, even where a husk is longer than its frame.
    """
    return _block(store, first - 1, first - 1 + events)._replace(seal=seal)


def _end(store: Store, after: int, until: int) -> int:
    """Where a block that begins behind `after` ends, `until` at the latest."""
    frames = store.columns(after, until)[3]
    return after + max(1, bisect_right(list(accumulate(map(len, frames))), FRAMES_BYTES_MAX))


def _block(store: Store, after: int, until: int) -> Block:
    streams, times, types, frames = store.columns(after, until)
    created_us = times[0]
    lists = (
        list(streams),
        list(store.numbers(after, until)),
        list(map(created_us.__rsub__, times)),
        list(types),
        list(accumulate(map(len, frames), initial=0)),
    )
    columns, together = _encode(lists).decode(), b"".join(frames)
    seal = _checksum(after + 1, len(frames), created_us, columns, together)
    return Block(after + 1, len(frames), created_us, columns, together, seal, seal)


def contents_of(block: Block) -> Contents:
    """Take a block apart. Raises `ValueError` if it is not as it was written."""
    if _checksum(*block[:5]) != block.checksum:
        raise ValueError(f"the events from position {block.first} on are not as they were written")
    streams, numbers, times, types, bounds = _decode(block.columns)
    created = list(map(block.created_us.__add__, times))
    frames = list(map(block.frames.__getitem__, map(slice, bounds, bounds[1:])))
    return Contents(numbers, (streams, created, types, frames))


def _checksum(first: int, events: int, created_us: int, columns: str, frames: bytes) -> int:
    return crc_of(frames, crc_of(f"{first} {events} {created_us} {columns}".encode()))
