"""What each node holds in the end: through HTTP while it runs, and in its files once it stopped.

Rows are kept in a file a node, because three nodes' worth of them need not be in memory at once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp

from cluster.chaos.checker import Stored
from cluster.chaos.keepers import Kept
from cluster.chaos.removals import Life

PAGE_EVENTS = 5_000

_REQUEST = aiohttp.ClientTimeout(total=60)
_ROWS = """
SELECT position, event_id, stream, number FROM readable_events ORDER BY position
"""


class NodeUnread(Exception):
    """A node or its files could not be read in the end. The message says which and why."""


async def save_events(http: aiohttp.ClientSession, url: str, store: str, path: Path) -> int:
    """Write what a node gives, linearizably, to a file; how many events. Raises NodeUnread."""
    count = after = 0
    with path.open("w", encoding="utf-8") as file:
        while True:
            query = f"after={after}&limit={PAGE_EVENTS}&consistency=linearizable&timeout_ms=30000"
            async with http.get(
                f"{url}/v1/stores/{store}/events?{query}", timeout=_REQUEST
            ) as answer:
                if answer.status != 200:
                    raise NodeUnread(f"{url} answered {answer.status}: {await answer.text()}")
                page = await answer.json(content_type=None)
            for event in page["events"]:
                row = Stored(
                    event["position"],
                    event["event_id"],
                    event["event_stream_id"],
                    event["event_number"],
                    event["created_epoch"],
                    event.get("data"),
                )
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
            count += len(page["events"])
            after = page["next"]
            if page["is_end"]:
                return count


async def snapshots(http: aiohttp.ClientSession, url: str, store: str) -> Kept:
    """The snapshots that a node gives, linearizably. Raises NodeUnread."""
    kept: dict[tuple[str, int], str] = {}
    query: dict[str, Any] = {"consistency": "linearizable", "timeout_ms": 30_000}
    path = f"{url}/v1/stores/{store}/snapshots"
    while True:
        async with http.get(f"{path}?{urlencode(query)}", timeout=_REQUEST) as answer:
            if answer.status != 200:
                raise NodeUnread(f"{url} answered {answer.status}: {await answer.text()}")
            page = await answer.json(content_type=None)
        for one in page["snapshots"]:
            kept[one["source_uuid"], one["source_version"]] = one["data"]["id"]
        if page["next"] is None:
            return kept
        query["after"] = page["next"]


async def lives(
    http: aiohttp.ClientSession, url: str, store: str, streams: Iterable[str]
) -> dict[str, Life]:
    """What a node says of these streams, linearizably. Raises NodeUnread."""
    said: dict[str, Life] = {}
    for stream in streams:
        path = f"{url}/v1/stores/{store}/streams/{stream}"
        query = "consistency=linearizable&timeout_ms=30000"
        async with http.get(f"{path}?{query}", timeout=_REQUEST) as answer:
            if answer.status not in (200, 404, 410):
                raise NodeUnread(f"{url} answered {answer.status}: {await answer.text()}")
            told = await answer.json(content_type=None)
        said[stream] = Life(answer.status)
        if answer.status == 200:
            said[stream] = Life(
                200, told["version"], told["count"], told["first_event_number"], told["metadata"]
            )
    return said


def saved_events(path: Path) -> Iterator[Stored]:
    """The rows that `save_events` wrote."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Stored(*json.loads(line))


def events_in_files(data_dir: Path, store: str) -> Iterator[Stored]:
    """The rows in the store file of a node that is down, removed events too. Raises NodeUnread.

    The newest of several files is read: a store that was rolled back or refilled keeps its name.
    """
    files = sorted(data_dir.glob(f"stores/{store}.*.db"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise NodeUnread(f"{data_dir} has no file of the store {store}")
    uri = f"file:{quote(str(files[-1]))}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            for position, event_id, stream, number in connection.execute(_ROWS):
                yield Stored(position, _dashed(event_id), stream, number)
    except sqlite3.Error as error:
        raise NodeUnread(f"{files[-1]}: {error}") from error


def _dashed(digits: str) -> str:
    """A UUID as the API writes it."""
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
