"""Putting an exact number of events into a store, as a start for a measurement; never measured.

In Python, because wrk counts seconds and not events. The data of each event is DATA_BYTES raw
bytes, so a frame's size is known to the byte and no encoding makes it smaller, unless other data
are asked for.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Any

import aiohttp
import cbor2

from cluster.bench.nodes import STORE, Cluster
from cluster.bench.wrk import DATA_BYTES, cbor_events_head
from cluster.demo_transfer import EVENTS_IN_BATCH, REQUEST_TIMEOUT_S, Batch, append_all

STREAMS = 1_000
_LANES = 4


async def fill(
    cluster: Cluster, events: int, urls: list[str] | None = None, data: Any = None
) -> None:
    """Append `events` new events through these nodes, or all. Raises TransferFailed."""
    share, rest = divmod(events, _LANES)
    lanes = [_batches(share + (lane < rest), data) for lane in range(_LANES)]
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await append_all(session, urls or cluster.urls, STORE, lanes, on_appended=lambda _: None)


def _batches(events: int, data: Any) -> Iterator[Batch]:
    """Yield `events` events for streams that no other call names."""
    fill_id = uuid.uuid4().hex[:12]
    versions: dict[str, int] = {}
    for first in range(0, events, EVENTS_IN_BATCH):
        touched: dict[str, int] = {}
        items = []
        for number in range(first, min(first + EVENTS_IN_BATCH, events)):
            stream = f"fill-{fill_id}-{number % STREAMS}"
            touched[stream] = versions[stream] = versions.get(stream, -1) + 1
            items.append(_new_event(stream, data))
        yield Batch(cbor_events_head(len(items)) + b"".join(items), len(items), touched)


def _new_event(stream: str, data: Any) -> bytes:
    event = {
        "stream": stream,
        "event_id": str(uuid.uuid4()),
        "event_type": "OrderPlaced",
        "data": os.urandom(DATA_BYTES) if data is None else data,
    }
    return cbor2.dumps(event)
