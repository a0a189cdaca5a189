"""Recorded snapshots, written as JSON or CBOR, like events in `records`.

What the members of a record hold, in the words of ExESDB: `source_uuid` is the id of the aggregate
(any name, despite the word), `stream_uuid` the stream whose events were folded, `source_version`
the number of the last event that is in it, `source_type` the kind of aggregate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cbor2
import msgspec

from node.api.media import CBOR, Media
from node.api.pacing import Pacer
from node.api.records import created_text
from node.core.snapshots import Content, Snapshot, decode_content

UNSET = msgspec.UNSET


class RecordedSnapshot(msgspec.Struct, gc=False):
    """A record in JSON. Of each pair, the value or its base64 form is left out."""

    source_uuid: str
    stream_uuid: str
    source_version: int
    source_type: str
    created_at: str
    created_epoch: int
    data: Any = UNSET
    metadata: Any = UNSET
    data_base64: Any = UNSET
    metadata_base64: Any = UNSET


_encode_json = msgspec.json.Encoder().encode

_DATA_KEY = cbor2.dumps("data")
_METADATA_KEY = cbor2.dumps("metadata")
_SNAPSHOTS_KEY = cbor2.dumps("snapshots")


def summary(snapshot: Snapshot) -> dict[str, Any]:
    """A record without its data and metadata."""
    return _named(snapshot, decode_content(snapshot.content))


def written(snapshot: Snapshot, media: Media) -> bytes:
    """One record."""
    return _cbor(snapshot) if media is CBOR else _json(snapshot)


async def written_page(
    snapshots: Iterable[Snapshot], following: int | str | None, media: Media, pacer: Pacer
) -> bytes:
    """A page: the records under `snapshots`, in order, and where to go on under `next`."""
    records: list[bytes] = []
    for snapshot in snapshots:
        records.append(written(snapshot, media))
        await pacer.breathe()
    if media is not CBOR:
        fields = _encode_json({"next": following})
        return b'{"snapshots":[%b],%b' % (b",".join(records), fields[1:])
    # A map with one more entry than `fields`: its head is one byte.
    fields = cbor2.dumps({"next": following})
    head = bytes((fields[0] + 1,)) + _SNAPSHOTS_KEY + b"\x9a" + len(records).to_bytes(4, "big")
    return head + b"".join(records) + fields[1:]


def _named(snapshot: Snapshot, content: Content) -> dict[str, Any]:
    return {
        "source_uuid": snapshot.source,
        "stream_uuid": snapshot.stream,
        "source_version": snapshot.version,
        "source_type": content.source_type,
        "created_at": created_text(snapshot.created_us),
        "created_epoch": snapshot.created_us,
    }


def _cbor(snapshot: Snapshot) -> bytes:
    content = decode_content(snapshot.content)
    named = cbor2.dumps(_named(snapshot, content))
    head = bytes((named[0] + 2,))  # two more entries follow, with their values as they were stored
    parts = (head, named[1:], _DATA_KEY, content.data, _METADATA_KEY, content.metadata)
    return b"".join(parts)


def _json(snapshot: Snapshot) -> bytes:
    content = decode_content(snapshot.content)
    record = RecordedSnapshot(**_named(snapshot, content))
    data, metadata = cbor2.loads(content.data), cbor2.loads(content.metadata)
    if type(data) is bytes:
        record.data_base64 = data  # msgspec writes bytes as base64
    else:
        record.data = data
    if type(metadata) is bytes:
        record.metadata_base64 = metadata
    else:
        record.metadata = metadata
    return _encode_json(record)
