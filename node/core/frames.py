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

from typing import NamedTuple

import cbor2

FORMAT = 1
ID_BYTES = 16
TYPE_BYTES_MAX = 255
ABSENT = b"\xf6"  # the encoded CBOR item `null`

_HEAD = b"\x87\x01\x50"  # array of 7, format 1, byte string of 16
_ID = slice(3, 19)
_TYPE_HEAD = 19
_SHORT_TEXT = 0x60  # text of 0..23 bytes: the length is in the head
_LONG_TEXT = 0x78  # text of 24..255 bytes: the length is in the next byte

_CONTENT_TYPES = ("application/json", "application/cbor", "application/octet-stream")
_CODES = {name: code for code, name in enumerate(_CONTENT_TYPES)}


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
    """Encode one event. `data` and `metadata` are encoded CBOR items, `ABSENT` for none."""
    return cbor2.dumps(
        (
            FORMAT,
            event_id,
            event_type,
            _CODES.get(data_content_type, data_content_type),
            _CODES.get(metadata_content_type, metadata_content_type),
            data,
            metadata,
        )
    )


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


def frame_id(frame: bytes) -> bytes:
    """The event id, 16 bytes."""
    return frame[_ID]


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
    if not isinstance(value, bytes) or len(value) < 24 or not value.startswith(_HEAD):
        return False
    head = value[_TYPE_HEAD]
    if not (_SHORT_TEXT < head < _LONG_TEXT or (head == _LONG_TEXT and value[20] > 23)):
        return False
    try:
        name = frame_type_bytes(value)
        name.decode()
    except UnicodeDecodeError:
        return False
    return len(name) == (head - _SHORT_TEXT if head < _LONG_TEXT else value[20])


def _content_type(stored: int | str) -> str:
    return _CONTENT_TYPES[stored] if isinstance(stored, int) else stored
