"""The shapes of bodies about persistent subscriptions, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from node.api.routes import object_schema
from node.core.subscription import Counts

_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_IDS: dict[str, Any] = {"type": "array", "items": _TEXT}
_DEFINITION: dict[str, Any] = {
    "filter": {"$ref": "#/components/schemas/Filter"},
    "start_after": {"oneOf": [_COUNT, {"const": "end"}]},
    "ack_timeout_ms": {"type": "integer", "minimum": 100, "maximum": 86_400_000},
    "max_retries": {"type": "integer", "minimum": 0, "maximum": 1_000},
    "max_in_flight": {"type": "integer", "minimum": 1, "maximum": 10_000},
}
_STATUS: dict[str, Any] = {
    "name": _TEXT,
    **_DEFINITION,
    **dict.fromkeys(("position", "settled_position", "lag", "streams_behind"), _COUNT),
    **dict.fromkeys(("in_flight", "overdue"), _COUNT),
    **dict.fromkeys(("waiting", "parked", "last_fetch_epoch", "last_progress_epoch"), _COUNT),
    "totals": object_schema(dict.fromkeys(Counts._fields, _COUNT), Counts._fields),
    "consumers": {"type": "object", "additionalProperties": _COUNT},
    "stalled": {"enum": ["parked_full", "not_acknowledged", "no_consumer", None]},
}


def _all(properties: dict[str, Any]) -> dict[str, Any]:
    return object_schema(properties, properties)


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _recorded(more: dict[str, Any]) -> dict[str, Any]:
    """A recorded event with further fields."""
    return {"type": "object", "properties": more, "required": list(more)}


SUBSCRIPTION_SCHEMAS: dict[str, dict[str, Any]] = {
    "SubscriptionBody": object_schema(_DEFINITION),
    "Subscription": _all(_STATUS),
    "SubscriptionList": _all({"subscriptions": _list(_all(_STATUS))}),
    "SubscriptionMade": _all({"name": _TEXT}),
    "FetchBody": object_schema(
        {
            "consumer": _TEXT,
            "max": {"type": "integer", "minimum": 1, "maximum": 2**62},
            "wait_ms": {"type": "integer", "minimum": 0, "maximum": 2**62},
        },
        ["consumer"],
    ),
    "Deliveries": _all(
        {
            "events": _list(_recorded({"delivery_id": _TEXT, "attempt": _COUNT})),
            "lag": _COUNT,
            "stalled": _STATUS["stalled"],
        }
    ),
    "AckBody": _all({"delivery_ids": _IDS}),
    "NackBody": object_schema(
        {"delivery_ids": _IDS, "action": {"enum": ["retry", "park", "skip", "give_back"]}},
        ["delivery_ids"],
    ),
    "Settled": _all({"settled": _COUNT, "stale": _IDS}),
    "ParkedPage": _all(
        {
            "events": _list(
                _recorded(
                    {
                        "attempts": _COUNT,
                        "why": {"enum": ["by_consumer", "after_retries"]},
                        "parked_epoch": _COUNT,
                        "consumer": _TEXT,
                    }
                )
            ),
            "next": {"anyOf": [_COUNT, {"type": "null"}]},
        }
    ),
    "ReplayBody": object_schema({"positions": {"anyOf": [_list(_COUNT), {"type": "null"}]}}),
    "Replayed": _all({"replayed": _COUNT}),
}
