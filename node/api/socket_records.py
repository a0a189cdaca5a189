"""Recorded events as they travel over a WebSocket.

A record is spliced together from a head of fixed width, the stream's name and the frame as it is
stored: about 1 us an event. One that a persistent subscription delivers has two more fields.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from struct import Struct

import cbor2

from node.core.store import Record, Row, Store

# An array of which the first three are numbers of eight bytes; a name and a frame follow.
_HEAD = Struct(">BBQBQBQ").pack
_ARRAY_OF_5, _ARRAY_OF_7, _NUMBER = 0x85, 0x87, 0x1B

_encoded = lru_cache(maxsize=4_096)(cbor2.dumps)

Delivered = tuple[Record, str, int]
"""An event that was handed out, the id of this delivery, and which delivery of it this is."""


def answer_of_records(feed: bytes, rows: Iterable[Row], store: Store) -> bytes:
    """The answer `[id, "events", [record, ...]]`; `feed` is the encoded id."""
    streams = store.stream_list
    parts: list[bytes] = []
    for position, ordinal, number, created_us, _, frame in rows:
        head = _HEAD(_ARRAY_OF_5, _NUMBER, position, _NUMBER, number, _NUMBER, created_us)
        parts += (head, _encoded(streams[ordinal].name), frame)
    count = (len(parts) // 3).to_bytes(4, "big")
    return b"\x83%b\x66events\x9a%b%b" % (feed, count, b"".join(parts))


def answer_of_deliveries(consumption: bytes, deliveries: Iterable[Delivered]) -> bytes:
    """The answer `[id, "deliveries", [[..., delivery id, attempt], ...]]`."""
    parts: list[bytes] = []
    for (stream, number, position, created_us, frame), delivery_id, attempt in deliveries:
        head = _HEAD(_ARRAY_OF_7, _NUMBER, position, _NUMBER, number, _NUMBER, created_us)
        parts += (head, _encoded(stream), frame, cbor2.dumps(delivery_id), cbor2.dumps(attempt))
    count = (len(parts) // 5).to_bytes(4, "big")
    return b"\x83%b\x6adeliveries\x9a%b%b" % (consumption, count, b"".join(parts))
