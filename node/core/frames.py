"""The frame: one event, encoded once, never changed.

The node that takes a request encodes each event into a frame; the Raft log, the store in memory,
the disk and a CBOR reader all get these very bytes. A frame is a CBOR array:

    [1, event id, event type, data content type, metadata content type, data, metadata]
     │  bytes(16) text 1..255  code or text        code or text            bytes  bytes
     └─ format version

``data`` and ``metadata`` are byte strings that hold one encoded CBOR item each, so that a reader
gets them spliced into its answer without anybody decoding them. An absent value is the item `null`.

What is not in a frame follows from where it stands: stream, event number and position. Neither is
the time of creation, which a store corrects so that it never decreases.

The id and the type stand at fixed offsets: `apply` reads them on every node for every event, and a
slice costs a tenth of decoding. Whoever changes the layout changes `FORMAT` and the offsets below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import repeat
from operator import itemgetter
from typing import NamedTuple

import cbor2

FORMAT = 1
ID_BYTES = 16
ABSENT = b"\xf6"  # the encoded CBOR item `null`

_HEAD = b"\x87\x01\x50"  # array of 7, format 1, byte string of 16
_TYPE_HEAD = 19
_SHORT_TEXT = 0x60  # text of 0..23 bytes: the length is in the head
_LONG_TEXT = 0x78  # text of 24..255 bytes: the length is in the next byte
_BYTES_MIN = 25  # id, a type of one byte, two codes, two empty byte strings

_CONTENT_TYPES = ("application/json", "application/cbor", "application/octet-stream")
_CODES = {name: code for code, name in enumerate(_CONTENT_TYPES)}
_KNOWN_LENGTHS = 4096  # of byte strings whose heads are looked up


def _computed_head(length: int) -> bytes:
    """What stands before a byte string of `length` bytes in CBOR."""
    if length < 24:
        return bytes((0x40 + length,))
    if length < 0x100:
        return bytes((0x58, length))
    if length < 0x10000:
        return b"\x59" + length.to_bytes(2, "big")
    return b"\x5a" + length.to_bytes(4, "big")


_BYTES_HEADS = list(map(_computed_head, range(_KNOWN_LENGTHS)))


class Frame(NamedTuple):
    """A decoded frame; `data` and `metadata` are still encoded CBOR items."""

    event_id: bytes
    event_type: str
    data_content_type: str
    metadata_content_type: str
    data: bytes
    metadata: bytes


def encode_frame(
    event_id: bytes,
    event_type: str,
    data: bytes,
    metadata: bytes,
    data_content_type: str,
    metadata_content_type: str,
) -> bytes:
    """Encode one event. `data` and `metadata` are encoded CBOR items, `ABSENT` for none.

    Put together by hand: what stands between the id and the data is the same for most events, and
    encoding it anew each time was the dearest step of an append.
    """
    return b"".join(
        (
            _HEAD,
            event_id,
            _middle(event_type, data_content_type, metadata_content_type),
            _bytes_head(len(data)),
            data,
            _bytes_head(len(metadata)),
            metadata,
        )
    )


def encode_frames(
    ids: Sequence[bytes],
    types: Sequence[str],
    data: Sequence[bytes],
    metadata: Sequence[bytes],
    data_content_type: str,
    metadata_content_type: str,
) -> list[bytes]:
    """Encode events that have their content types in common, each as `encode_frame` would.

    Every step is one call into C for all of them.
    """
    middles = {name: _middle(name, data_content_type, metadata_content_type) for name in set(types)}
    pieces = zip(
        repeat(_HEAD, len(ids)),
        ids,
        map(middles.__getitem__, types),
        _bytes_heads(data),
        data,
        _bytes_heads(metadata),
        metadata,
        strict=True,
    )
    return list(map(b"".join, pieces))


@lru_cache(maxsize=1024)
def _middle(event_type: str, data_content_type: str, metadata_content_type: str) -> bytes:
    """The encoded type and content types."""
    kinds = (_CODES.get(kind, kind) for kind in (data_content_type, metadata_content_type))
    return b"".join(map(cbor2.dumps, (event_type, *kinds)))


def _bytes_head(length: int) -> bytes:
    return _BYTES_HEADS[length] if length < _KNOWN_LENGTHS else _computed_head(length)


def _bytes_heads(strings: Sequence[bytes]) -> Iterator[bytes]:
    """What stands before each of these byte strings."""
    lengths = list(map(len, strings))
    short = max(lengths, default=0) < _KNOWN_LENGTHS
    return map(_BYTES_HEADS.__getitem__ if short else _bytes_head, lengths)


def decode_frame(frame: bytes) -> Frame:
    """Take a frame apart, except for its data and metadata."""
    _, event_id, event_type, data_type, metadata_type, data, metadata = cbor2.loads(frame)
    return Frame(
        event_id,
        event_type,
        _content_type(data_type),
        _content_type(metadata_type),
        data,
        metadata,
    )


# The event id of a frame, 16 bytes. Every append asks for it several times, so it is one call in C.
frame_id: Callable[[bytes], bytes] = itemgetter(slice(3, 3 + ID_BYTES))


def frame_type_bytes(frame: bytes) -> bytes:
    """The event type as UTF-8, without decoding the frame."""
    length = frame[_TYPE_HEAD]
    if length < _LONG_TEXT:
        return frame[20 : 20 + length - _SHORT_TEXT]
    return frame[21 : 21 + frame[20]]


def frame_type(frame: bytes) -> str:
    """The event type."""
    return frame_type_bytes(frame).decode()


def is_frame(value: object) -> bool:
    """Whether `value` can stand in a store: its id and type can be read without an error.

    This is what `apply` relies on to be total. It does not look into data and metadata: these were
    encoded by the node that took the request, and no node's state depends on them.
    """
    # Written out, without calls: it runs for every event on every node.
    if type(value) is not bytes or len(value) < _BYTES_MIN or value[:3] != _HEAD:
        return False
    length = value[_TYPE_HEAD] - _SHORT_TEXT
    if 0 < length < 24:
        name = value[20 : 20 + length]
    elif length == 24 and value[20] >= 24:
        length = value[20]
        name = value[21 : 21 + length]
    else:
        return False
    return len(name) == length and (name.isascii() or _is_utf8(name))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _content_type(stored: int | str) -> str:
    return _CONTENT_TYPES[stored] if isinstance(stored, int) else stored
