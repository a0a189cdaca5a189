"""How results look on stdout: a line each, for a person or as JSON.

An event as JSON has the names of the API (`event_stream_id`, `event_number`, ...), and bytes stand
under `data_base64` and `metadata_base64` as they do there. For a person it is

    position  created (UTC)  number@stream  type  data
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import msgspec

from cluster.client import Recorded

_DATA_SHOWN_MAX = 400


def say(line: str) -> None:
    """A line of results."""
    sys.stdout.write(line + "\n")


def say_json(plain: Any) -> None:
    """A line of results, as JSON."""
    say(msgspec.json.encode(plain).decode())


def say_event(event: Recorded, as_json: bool) -> None:
    """An event on its line."""
    say(json_line(event) if as_json else text_line(event))


def json_line(event: Recorded) -> str:
    """An event with the API's names."""
    plain: dict[str, Any] = {
        "event_stream_id": event.stream,
        "event_number": event.number,
        "position": event.position,
        "event_id": event.id,
        "event_type": event.type,
    }
    for name, value in (("data", event.data), ("metadata", event.metadata)):
        plain[f"{name}_base64" if isinstance(value, bytes) else name] = value
    return msgspec.json.encode(plain | {"created_epoch": event.created_us}).decode()


def text_line(event: Recorded) -> str:
    """An event for a person; long data are cut, and say how long they are."""
    created = datetime.fromtimestamp(event.created_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    where = f"{event.number}@{event.stream}"
    return f"{event.position:>8}  {created[:-3]}  {where:<24}  {event.type:<20}  {_data(event)}"


def _data(event: Recorded) -> str:
    if isinstance(event.data, bytes):
        return f"{len(event.data):,} bytes"
    return shortened(event.data)


def shortened(value: Any) -> str:
    """A value as JSON; cut where it is long, and then with its length."""
    text = msgspec.json.encode(value).decode()
    if len(text) <= _DATA_SHOWN_MAX:
        return text
    return f"{text[:_DATA_SHOWN_MAX]}... ({len(text):,} characters)"
