"""Recorded events, written as JSON or CBOR.

A CBOR answer gets the stored bytes of data and metadata spliced in; they were checked when they
entered and are never decoded again. A JSON answer decodes them; `values` says how each value looks
in JSON. An event costs about 4 us in CBOR and 7 us in JSON, so a page is written in slices of a few
milliseconds, with a turn of the event loop between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import cbor2
import msgspec

from node.api.media import CBOR, Media
from node.api.pacing import Pacer
from node.core.frames import Frame, decode_frame
from node.core.ids import format_id
from node.core.store import Record

UNSET = msgspec.UNSET


class RecordedEvent(msgspec.Struct, gc=False):
    """The contract's record in JSON. Of each pair, the value or its base64 form is left out."""

    event_stream_id: str
    event_number: int
    position: int
    event_id: str
    event_type: str
    data_content_type: str
    metadata_content_type: str
    created: str
    created_epoch: int
    data: Any = UNSET
    metadata: Any = UNSET
    data_base64: Any = UNSET
    metadata_base64: Any = UNSET


_encode_json = msgspec.json.Encoder().encode

_MAP_OF_11 = b"\xab"
_DATA_KEY = cbor2.dumps("data")
_METADATA_KEY = cbor2.dumps("metadata")


async def written_page(
    records: Iterable[Record],
    fields: dict[str, Any],
    media: Media,
    pacer: Pacer,
    beside: Iterable[dict[str, Any]] = (),
) -> bytes:
    """A page: the other fields of the answer, and the events under `events`, in order.

    `beside` are further fields of each event, few enough that their map has a head of one byte.
    """
    encode: Callable[[Record], bytes] = _cbor_event if media is CBOR else json_event
    events: list[bytes] = []
    for record, more in zip_longest(records, beside):
        event = encode(record)
        events.append(_with_more(event, more, media) if more else event)
        await pacer.breathe()
    return _cbor_page(events, fields) if media is CBOR else _json_page(events, fields)


def _with_more(event: bytes, more: dict[str, Any], media: Media) -> bytes:
    if media is CBOR:
        return bytes((event[0] + len(more),)) + cbor2.dumps(more)[1:] + event[1:]
    return b"%b,%b" % (_encode_json(more)[:-1], event[1:])


def _json_page(events: list[bytes], fields: dict[str, Any]) -> bytes:
    rest = _encode_json(fields)
    return b'{"events":[%b],%b' % (b",".join(events), rest[1:])


def _cbor_page(events: list[bytes], fields: dict[str, Any]) -> bytes:
    # A map with one more entry than `fields`, which are few: its head is one byte.
    rest = cbor2.dumps(fields)
    head = bytes((rest[0] + 1,)) + cbor2.dumps("events") + _array_head(len(events))
    return head + b"".join(events) + rest[1:]


def _array_head(length: int) -> bytes:
    return b"\x9a" + length.to_bytes(4, "big")


def json_event(record: Record) -> bytes:
    """One record in JSON, without line breaks."""
    frame = decode_frame(record.frame)
    event = RecordedEvent(
        record.stream,
        record.number,
        record.position,
        format_id(frame.event_id),
        frame.event_type,
        frame.data_content_type,
        frame.metadata_content_type,
        created_text(record.created_us),
        record.created_us,
    )
    data = cbor2.loads(frame.data)
    if type(data) is bytes:
        event.data_base64 = data  # msgspec writes bytes as base64
    else:
        event.data = data
    metadata = cbor2.loads(frame.metadata)
    if type(metadata) is bytes:
        event.metadata_base64 = metadata
    else:
        event.metadata = metadata
    return _encode_json(event)


def _cbor_event(record: Record) -> bytes:
    frame = decode_frame(record.frame)
    named = cbor2.dumps(_fields(record, frame))
    # `named` is a map of nine entries; two more follow it, with their values as they were stored.
    return b"".join((_MAP_OF_11, named[1:], _DATA_KEY, frame.data, _METADATA_KEY, frame.metadata))


def _fields(record: Record, frame: Frame) -> dict[str, Any]:
    return {
        "event_stream_id": record.stream,
        "event_number": record.number,
        "position": record.position,
        "event_id": format_id(frame.event_id),
        "event_type": frame.event_type,
        "data_content_type": frame.data_content_type,
        "metadata_content_type": frame.metadata_content_type,
        "created": created_text(record.created_us),
        "created_epoch": record.created_us,
    }


def created_text(created_us: int) -> str:
    """RFC 3339 with microseconds, in UTC."""
    seconds, microseconds = divmod(created_us, 1_000_000)
    return f"{_second_text(seconds)}.{microseconds:06d}Z"


@lru_cache(maxsize=1024)
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
