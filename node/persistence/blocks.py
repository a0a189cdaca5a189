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
and the right block if its seal is. Husks are put into the block as it is in the file, once its CRC
was found right, and not into another one made from memory: what was good on the disk stays good.

All of it is made in the persistence thread, beside the event loop, under the interpreter lock, and
zlib gives that away for more than 5 KiB, to take it back up to 5 ms later; so a block is summed up
in pieces.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import msgspec

from node.core.columns import Columns
from node.core.husks import crc_of, husk_of, is_husk
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
    SELECT b.first AS block, b.first + e.key AS position, e.value AS stream_id,
           json_extract(b.columns, '$[1][' || e.key || ']') AS number,
           b.created_us + json_extract(b.columns, '$[2][' || e.key || ']') AS created_us,
           json_extract(b.columns, '$[3][' || e.key || ']') AS type_id,
           substr(b.frames, json_extract(b.columns, '$[4][' || e.key || ']') + 1,
                  json_extract(b.columns, '$[4][' || (e.key + 1) || ']')
                  - json_extract(b.columns, '$[4][' || e.key || ']')) AS frame
    FROM blocks AS b, json_each(b.columns, '$[0]') AS e
"""

_Lists = tuple[list[int], list[int], list[int], list[int], list[int]]
_Columns = tuple[list[int], list[int], list[int], list[bytes]]
_CRC_MAX = 2**32 - 1

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
    """What blocks say: position of the first event, numbers of the events in their streams, and
    their columns.
    """

    first: int
    numbers: list[int]
    columns: Columns


def blocks_of(store: Store, after: int, until: int) -> Iterator[Block]:
    """The events `after` < position <= `until` of a store in blocks, as they are written first."""
    while after < until:
        end = _end(store, after, min(after + EVENTS_MAX, until))
        yield _block(store, after, end)
        after = end


def with_husks(block: Block, positions: Sequence[int]) -> Block:
    """The block with husks in the places of the frames at these positions, which are its own. It
    keeps its events, even where a husk is longer than its frame. Raises `ValueError` if it is not
    as it was written.
    """
    lists = _lists_of(block)
    frames = _frames_of(block, lists)
    for position in positions:
        frame = frames[position - block.first]
        if not is_husk(frame):
            frames[position - block.first] = husk_of(frame)
    return _made(block.first, block.created_us, lists[:4], frames)._replace(seal=block.seal)


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
    )
    return _made(after + 1, created_us, lists, frames)


def _made(
    first: int, created_us: int, lists: Sequence[list[int]], frames: Sequence[bytes]
) -> Block:
    """A block of these columns, but for the ends of frames, and of these frames."""
    ends = list(accumulate(map(len, frames), initial=0))
    columns, together = _encode((*lists, ends)).decode(), b"".join(frames)
    seal = _checksum(first, len(frames), created_us, columns, together)
    return Block(first, len(frames), created_us, columns, together, seal, seal)


def contents_of(blocks: Iterable[Block], events_max: int) -> Iterator[tuple[Contents, list[int]]]:
    """Take blocks apart, and put together what follows one another: each time the contents of
    blocks until they have `events_max` events, and their seals. Raises `ValueError` if one is not
    as it was written.
    """
    blocks = iter(blocks)
    while (block := next(blocks, None)) is not None:
        numbers: list[int] = []
        columns: _Columns = ([], [], [], [])
        seals: list[int] = []
        first = block.first
        while block is not None:
            _add(block, numbers, columns)
            seals.append(block.seal)
            if len(numbers) >= events_max:
                break
            block = next(blocks, None)
            if block is not None and block.first != first + len(numbers):
                raise ValueError(f"position {block.first} does not follow those before it")
        yield Contents(first, numbers, columns), seals


def _add(block: Block, numbers: list[int], columns: _Columns) -> None:
    """Add what a block says to what those before it say."""
    lists = _lists_of(block)
    streams, created, types, frames = columns
    streams += lists[0]
    numbers += lists[1]
    created += map(block.created_us.__add__, lists[2])
    types += lists[3]
    frames += _frames_of(block, lists)


def _lists_of(block: Block) -> _Lists:
    """The columns of a block. Raises `ValueError` if it is not as it was written."""
    whole = (
        type(block.frames) is bytes
        and type(block.seal) is int
        and 0 <= block.seal <= _CRC_MAX
        and _checksum(*block[:5]) == block.checksum
    )
    if not whole:
        raise ValueError(f"the events from position {block.first} on are not as they were written")
    lists: _Lists = _decode(block.columns)
    return lists


def _frames_of(block: Block, lists: _Lists) -> list[bytes]:
    ends = lists[4]
    return list(map(block.frames.__getitem__, map(slice, ends, ends[1:])))


def _checksum(first: int, events: int, created_us: int, columns: str, frames: bytes) -> int:
    return crc_of(frames, crc_of(f"{first} {events} {created_us} {columns}".encode()))
