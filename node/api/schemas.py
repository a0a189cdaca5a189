"""The shapes of all bodies, as JSON schemas for the OpenAPI document.

The structs in `bodies` decide what is accepted, the handlers what is answered; these say it to
clients. `tests/api/test_openapi.py` holds real answers of every route against them.
"""

from __future__ import annotations

from typing import Any

from node.api.lives import LIVES
from node.api.routes import object_schema
from node.api.subscription_schemas import SUBSCRIPTION_SCHEMAS
from node.api.wanted import FILTER_SCHEMAS
from node.core.life_commands import MAX_AGE_MS_MAX, MAX_COUNT_MAX, TRUNCATE_BEFORE_MAX
from node.core.snapshots import KEPT_MAX

PREAMBLE = """\
An append-only event store, replicated by Raft. Any node takes any request.

Bodies are JSON or CBOR, chosen by `Content-Type` for the request and by `Accept` for the answer
(default JSON). The schemas describe the JSON form; CBOR has the same members, with byte strings
where JSON has `data_base64` and `metadata_base64`.

Event data: null, booleans, integers of up to 14,000 bits (never rounded), 64-bit floats, text,
bytes, arrays, and maps with text or integer keys. CBOR tags other than big integers are refused.
NaN and infinities are accepted in CBOR and appear as null in JSON; bytes inside a value appear as
base64 text.

Names in paths are percent-encoded UTF-8; in queries `+` is a space. Unknown query parameters and
body fields are refused. Problems follow RFC 9457: `stored` tells whether events may have been
written.
"""


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _map(values: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values}


def _all(properties: dict[str, Any]) -> dict[str, Any]:
    return object_schema(properties, properties)


_TEXT: dict[str, Any] = {"type": "string"}
_NAME: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 255}
_ID: dict[str, Any] = {
    **_NAME,
    "pattern": "^[^$\\u0000-\\u001f\\u007f-\\u009f][^\\u0000-\\u001f\\u007f-\\u009f]*$",
}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_VERSION: dict[str, Any] = {"type": "integer", "minimum": -1}
_NUMBER: dict[str, Any] = {"type": "number"}
_FLAG: dict[str, Any] = {"type": "boolean"}
_UUID: dict[str, Any] = {"type": "string", "format": "uuid"}
_BASE64: dict[str, Any] = {"type": "string", "contentEncoding": "base64"}
_OBJECT: dict[str, Any] = {"type": "object"}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_NEW_EVENT: dict[str, Any] = {
    "event_type": _NAME,
    "event_id": _or_null(_UUID),
    "data": {"description": "Any value."},
    "metadata": {"description": "Any value."},
    "data_base64": _or_null(_BASE64),
    "metadata_base64": _or_null(_BASE64),
    "data_content_type": _or_null(_NAME),
}

_MEMBER = _all(
    {
        "id": _TEXT,
        "http_address": _TEXT,
        "raft_address": _TEXT,
        "role": {"enum": ["leader", "follower", "candidate", "recovering", "unreachable"]},
        "commit_index": _or_null(_COUNT),
        "applied_index": _or_null(_COUNT),
        "persisted_index": _or_null(_COUNT),
        "last_contact_ms": _or_null(_NUMBER),
        "voter": {**_FLAG, "description": "Whether it is counted; a node being added is not."},
    }
)

_LINEAGE: dict[str, Any] = {
    "lineage": {**_TEXT, "description": "Changes when the cluster is rebuilt by an operator."},
    "ancestry": {**_list(_TEXT), "description": "The lineages given up on the way, latest last."},
    "founded": {**_FLAG, "description": "Whether a leader of the lineage was seen here."},
    "quarantined": _or_null(_TEXT),
}

_STORE: dict[str, Any] = {
    "store": _TEXT,
    "streams": _COUNT,
    "events": _COUNT,
    "position": _COUNT,
}

_FIRST: dict[str, Any] = {**_COUNT, "description": "The number of the first event that is kept."}

_LIMITS: dict[str, Any] = {
    "max_count": _or_null(
        {
            **{"type": "integer", "minimum": 1, "maximum": MAX_COUNT_MAX},
            "description": "The last so many events are kept.",
        }
    ),
    "max_age_ms": _or_null(
        {
            **{"type": "integer", "minimum": 1, "maximum": MAX_AGE_MS_MAX},
            "description": "Events are kept for so long, in milliseconds.",
        }
    ),
    "truncate_before": _or_null(
        {
            **{"type": "integer", "minimum": 0, "maximum": TRUNCATE_BEFORE_MAX},
            "description": "Events are kept from this number on; at most the next one.",
        }
    ),
}

_DURABILITIES = ("replicated", "persisted")

_KEPT: dict[str, Any] = {
    "type": "integer",
    "minimum": 1,
    "maximum": KEPT_MAX,
    "description": "How many snapshots of a source and stream are kept, those of the greatest "
    "versions; null: as many as may be.",
}

_SNAPSHOT: dict[str, Any] = {
    "source_uuid": {**_NAME, "description": "The id of the aggregate; it need not be a UUID."},
    "stream_uuid": {**_NAME, "description": "The stream whose events were folded."},
    "source_version": {**_COUNT, "description": "The number of the last event that is in it."},
    "source_type": {**_NAME, "description": "The kind of aggregate."},
    "created_at": {"type": "string", "format": "date-time"},
    "created_epoch": {**_COUNT, "description": "The same in microseconds since 1970."},
}

_VALUES: dict[str, Any] = {
    "data": {"description": "Any value."},
    "metadata": {"description": "Any value."},
    "data_base64": _BASE64,
    "metadata_base64": _BASE64,
}

_STREAM: dict[str, Any] = {"stream": _TEXT, "version": _VERSION, "count": _COUNT}

_LISTED_STREAM = object_schema(
    {
        **_STREAM,
        "first_event_number": {**_FIRST, "description": "With `deleted=true`."},
        "metadata": {**object_schema(_LIMITS), "description": "With `deleted=true`."},
        "life": {"enum": [*LIVES], "description": "With `deleted=true`."},
    },
    _STREAM,
)

SCHEMAS: dict[str, dict[str, Any]] = {
    "ExpectedVersion": {
        "description": "Where the stream must be. Omitted: anywhere.",
        "oneOf": [_VERSION, {"enum": ["any", "no_stream", "stream_exists"]}],
    },
    "NewEvent": object_schema(_NEW_EVENT, ["event_type"]),
    "NewEventIn": object_schema({"stream": _ID, **_NEW_EVENT}, ["stream", "event_type"]),
    "AppendBody": object_schema(
        {
            "expected_version": _ref("ExpectedVersion"),
            "events": {**_list(_ref("NewEvent")), "minItems": 1},
        },
        ["events"],
    ),
    "AppendManyBody": object_schema(
        {
            "events": _list(_ref("NewEventIn")),
            "checks": _list(
                object_schema(
                    {"stream": _ID, "expected_version": _ref("ExpectedVersion")}, ["stream"]
                )
            ),
            "checkpoint": _or_null(_all({"name": _ID, "position": _COUNT})),
        },
        ["events"],
    ),
    "Appended": object_schema(
        {
            "first_version": _COUNT,
            "last_version": _COUNT,
            "count": _COUNT,
            "positions": _list(_COUNT),
            "streams": _map(_COUNT),
            "raft_index": _COUNT,
            "idempotent": _FLAG,
        },
        ["count", "positions", "streams", "raft_index", "idempotent"],
    ),
    "RecordedEvent": object_schema(
        {
            "event_stream_id": _NAME,
            "event_number": _COUNT,
            "position": {"type": "integer", "minimum": 1},
            "event_id": _UUID,
            "event_type": _NAME,
            "data": {"description": "Any value."},
            "metadata": {"description": "Any value."},
            "data_base64": _BASE64,
            "metadata_base64": _BASE64,
            "data_content_type": _TEXT,
            "metadata_content_type": _TEXT,
            "created": {"type": "string", "format": "date-time"},
            "created_epoch": _COUNT,
        },
        [
            *("event_stream_id", "event_number", "position", "event_id", "event_type"),
            *("data_content_type", "metadata_content_type", "created", "created_epoch"),
        ],
    ),
    "StreamPage": _all(
        {
            "stream": _TEXT,
            "version": _VERSION,
            "events": _list(_ref("RecordedEvent")),
            "next": {
                "type": "integer",
                "minimum": -1,
                "description": "The event number to go on with.",
            },
            "is_end": _FLAG,
        }
    ),
    "StorePage": _all(
        {
            "events": _list(_ref("RecordedEvent")),
            "head": {**_COUNT, "description": "The last position of the store."},
            "next": {**_COUNT, "description": "The last position evaluated: the next `after`."},
            "is_end": _FLAG,
        }
    ),
    "StreamList": _all({"streams": _list(_LISTED_STREAM), "next": _or_null(_TEXT)}),
    "StreamInfo": _all(
        {**_STREAM, "first_event_number": _FIRST, "metadata": object_schema(_LIMITS)}
    ),
    "StreamMetadataBody": object_schema(_LIMITS),
    "StreamMetadata": _all(
        {"stream": _TEXT, "first_event_number": _FIRST, "metadata": object_schema(_LIMITS)}
    ),
    "StoreSummary": _all(_STORE),
    "StoreInfo": _all(
        {
            **_STORE,
            "durability": {"enum": [*_DURABILITIES, None]},
            "snapshots": {**_COUNT, "description": "How many snapshots there are."},
            "snapshots_kept": _or_null(_KEPT),
            "persistence": _OBJECT,
        }
    ),
    "StoreList": _all({"stores": _list(_all(_STORE))}),
    "StoreBody": object_schema(
        {"durability": {"enum": [*_DURABILITIES, None]}, "snapshots_kept": _or_null(_KEPT)}
    ),
    "Checkpoint": _all({"name": _TEXT, "position": _COUNT}),
    "CheckpointList": _all(
        {"checkpoints": _list(_all({"name": _TEXT, "position": _COUNT})), "next": _or_null(_TEXT)}
    ),
    "CheckpointBody": _all({"position": _COUNT}),
    "SnapshotBody": object_schema(
        {
            "source_type": _NAME,
            **_VALUES,
            "data_base64": _or_null(_BASE64),
            "metadata_base64": _or_null(_BASE64),
        },
        ["source_type"],
    ),
    "SnapshotRecorded": _all({**_SNAPSHOT, "raft_index": _COUNT, "replaced": _FLAG}),
    "RecordedSnapshot": object_schema({**_SNAPSHOT, **_VALUES}, _SNAPSHOT),
    "Fold": _all(
        {
            "stream": _TEXT,
            "version": {**_VERSION, "description": "The last event that is in the state."},
            "state": {
                **_OBJECT,
                "description": "What the events came to. Its keys are text, in CBOR, too: an "
                'integer goes by its digits. A value `{"$sum": n}` in an event\'s data is added to '
                'what stands under its key, `{"$overwrite": v}` and `{"$replace": v}` put `v` '
                "there, anything else is put there as it is. Where integers add up to more than "
                "14,000 bits, the fold is refused; what is before that event can be folded.",
            },
            "snapshot_version": {
                **_or_null(_COUNT),
                "description": "The version of the snapshot that it began with.",
            },
            "folded": {**_COUNT, "description": "How many events were folded."},
            "skipped": {**_COUNT, "description": "How many were not, because they are no maps."},
            "is_end": {**_FLAG, "description": "False: there is more than one answer may fold."},
        }
    ),
    "SnapshotSeries": _all(
        {
            "snapshots": _list(_ref("RecordedSnapshot")),
            "next": {**_or_null(_COUNT), "description": "The version to go on with."},
        }
    ),
    "SnapshotList": _all(
        {
            "snapshots": _list(_ref("RecordedSnapshot")),
            "next": {**_or_null(_TEXT), "description": "The next `after`."},
        }
    ),
    "Queued": _all({"store": _TEXT, "queued": {"const": True}}),
    "FlushedNode": _all(
        {
            "persisted_index": _COUNT,
            "persisted_position": _or_null(_COUNT),
            "bytes": _COUNT,
            "duration_ms": _NUMBER,
        }
    ),
    "Flush": _all({"nodes": _map(_ref("FlushedNode"))}),
    "PartialFlush": _all(
        {
            "code": {"const": "partial_success"},
            "nodes": _map(_ref("FlushedNode")),
            "failed": _map(_all({"code": _TEXT, "detail": _TEXT})),
        }
    ),
    "PersistenceStatus": {
        "type": "object",
        "properties": {
            "enabled": _FLAG,
            "interval_ms": _COUNT,
            "breaker": {"enum": ["closed", "open", "half_open"]},
            "set_aside": _list(_TEXT),
            "stores": _map(_OBJECT),
        },
        "required": ["enabled", "interval_ms"],
    },
    "IntervalBody": _all({"interval_ms": {"type": "integer", "minimum": 1}}),
    "Cluster": _all(
        {
            "node_id": _TEXT,
            "leader": _or_null(_TEXT),
            "term": _COUNT,
            "members": _list(_MEMBER),
            "waits_for": {**_list(_TEXT), "description": "Why this node is not ready, in words."},
            **_LINEAGE,
            "refused": {**_map(_TEXT), "description": "Peers that have no session, and why."},
        }
    ),
    "RecoveryReport": _all(
        {
            "node_id": _TEXT,
            "cluster": _TEXT,
            **_LINEAGE,
            "recovering": _FLAG,
            "persistent": {**_FLAG, "description": "Whether it has a disk."},
            "leader": _or_null(_TEXT),
            "term": _COUNT,
            "last_term": {**_COUNT, "description": "The term of the last entry of its log."},
            "last_index": {**_COUNT, "description": "The index of that entry."},
            "membership_version": _COUNT,
            "counted": {**_list(_TEXT), "description": "Those whose votes count by its log."},
            "voters": {**_map(_TEXT), "description": "Raft addresses by node id."},
            "learners": {**_map(_TEXT), "description": "The same of who is being added."},
            "reaches": {**_list(_TEXT), "description": "Members with a connection to this one."},
            "positions": {**_map(_COUNT), "description": "The last position of each store."},
        }
    ),
    "RecoveryBody": _all(
        {
            "lineage": {"type": "string", "minLength": 1, "maxLength": 32},
            "parent": {**_TEXT, "description": "The lineage that is given up."},
            "membership_version": _COUNT,
            "voters": {**_map(_TEXT), "minProperties": 1},
            "missing": _list(_TEXT),
        }
    ),
    "Recovery": _all({"lineage": _TEXT, "restarting": _FLAG}),
    "LeaderBody": object_schema({"to": _or_null(_NAME)}),
    "MemberBody": _all(
        {
            "id": {**_TEXT, "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$"},
            "raft_address": {**_TEXT, "description": "host:port"},
        }
    ),
    "Membership": _all(
        {
            "version": {**_COUNT, "description": "Grows by one with each step."},
            "voters": {**_list(_TEXT), "description": "Those who are counted."},
            "learner": {**_or_null(_TEXT), "description": "A node that is being added."},
        }
    ),
    "Leader": _all({"leader": _TEXT}),
    "Info": _all({"node_id": _TEXT, "version": _TEXT, "limits": _map(_COUNT), "config": _OBJECT}),
    "Health": _all({"status": {"enum": ["live", "ready"]}}),
    **SUBSCRIPTION_SCHEMAS,
    **FILTER_SCHEMAS,
    "Problem": {
        "type": "object",
        "description": "RFC 9457. The named fields of an error stand beside these members.",
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": _TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": _TEXT,
            "code": _TEXT,
            "stored": {"enum": ["no", "perhaps"]},
            "limit": {"description": "The limit that was broken, or the name of the full queue."},
            "actual": _COUNT,
        },
        "required": ["type", "title", "status", "detail", "code", "stored"],
    },
}

_STREAM_NAME = {
    "description": "1 to 255 bytes of UTF-8, no control characters, not beginning with `$`.",
    "schema": _ID,
}

PATH_PARTS: dict[str, dict[str, Any]] = {
    "store": {
        "description": "The store.",
        "schema": {"type": "string", "pattern": "^[a-z0-9_][a-z0-9_.-]{0,63}$"},
    },
    "stream": _STREAM_NAME,
    "name": _STREAM_NAME,
    "source": _STREAM_NAME,
    "version": {
        "description": "The version of a snapshot: the number of the last event that is in it.",
        "schema": {**_COUNT, "maximum": 2**62},
    },
    "id": {"description": "The id of a member.", "schema": _ID},
}
