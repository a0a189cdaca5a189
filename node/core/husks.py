"""Husks: what stands in the place of a frame once its event was removed.

An event that was removed leaves nothing to read, but three things must stay the same on all nodes,
whether they still hold its frame or not: a repeated append of it is recognised, two nodes find that
their histories agree, and a file that is read proves to be what was written. What these need of a
frame is its *print*: event id, CRC-32 and length. So a frame is replaced by a husk, which has the
print and nothing else; whoever compares stores compares prints. A husk is a CBOR array:

    [1, event id, CRC-32 and length of the frame]
     │  bytes(16) bytes(8), least significant byte first
     └─ format version

The id stands where it stands in a frame, so `frames.frame_id` reads both. No frame is an array of
three. When a husk takes a frame's place is each node's own affair.

zlib gives the interpreter lock away for more than `_LOCKED_BYTES`, and beside a busy event loop
each taking back costs up to 5 ms. So a long frame is summed up in pieces.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from node.core.frames import frame_id

_HEAD = b"\x83\x01\x50"  # array of 3, format 1, byte string of 16
_MIDDLE = b"\x48"  # byte string of 8
_PRINT_AT = len(_HEAD) + 16 + len(_MIDDLE)
_HUSK_BYTES = _PRINT_AT + 8
_LOCKED_BYTES = 5 * 1024

_pack = struct.Struct("<II").pack
_unpack = struct.Struct("<II").unpack_from


class Prints(NamedTuple):
    """The prints of events: ids, one after the other, CRC-32s and lengths of their frames."""

    ids: bytes
    crcs: list[int]
    lengths: list[int]


def husk_of(frame: bytes) -> bytes:
    """The husk that takes the place of a frame."""
    return b"".join((_HEAD, frame_id(frame), _MIDDLE, _pack(crc_of(frame), len(frame))))


def is_husk(value: object) -> bool:
    """Whether a value is a husk; what stands in a store is a frame otherwise."""
    return (
        type(value) is bytes
        and len(value) == _HUSK_BYTES
        and value.startswith(_HEAD)
        and value[_PRINT_AT - 1 : _PRINT_AT] == _MIDDLE
    )


def length_of(stored: bytes) -> int:
    """The length of a frame, of which a husk may be left."""
    if is_husk(stored):
        length: int = _unpack(stored, _PRINT_AT)[1]
        return length
    return len(stored)


def prints_of(stored: Sequence[bytes]) -> Prints:
    """The prints of frames and husks; the same for a frame and its husk."""
    ids = b"".join(map(frame_id, stored))
    lengths = list(map(len, stored))
    long = max(lengths, default=0) > _LOCKED_BYTES
    crcs = list(map(crc_of if long else crc32, stored))
    if _HUSK_BYTES in lengths:
        for at, one in enumerate(stored):
            if is_husk(one):
                crcs[at], lengths[at] = _unpack(one, _PRINT_AT)
    return Prints(ids, crcs, lengths)


def bytes_of(stored: Sequence[bytes]) -> int:
    """How many bytes the frames have, or had."""
    lengths = list(map(len, stored))
    if _HUSK_BYTES not in lengths:
        return sum(lengths)
    return sum(map(length_of, stored))


def crc_of(content: bytes, value: int = 0) -> int:
    """The CRC-32 of `content`, going on from `value`, without giving the interpreter lock away."""
    if len(content) <= _LOCKED_BYTES:
        return crc32(content, value)
    view = memoryview(content)
    for at in range(0, len(content), _LOCKED_BYTES):
        value = crc32(view[at : at + _LOCKED_BYTES], value)
    return value
