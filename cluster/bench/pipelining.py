"""Load over one WebSocket: a closed loop of appends, or a follower that catches up.

It runs in a process of its own (`python -m cluster.bench.pipelining`), because it shares the
machine with the nodes: its own processor time is part of what it reports. Each answer is followed
by the next append at once; events are 256 bytes of payload with an id of their own, encoded once
and for all but for the id. The last line of its output is one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from typing import Any

import cbor2
import uvloop

from cluster.client_ws import Pipeline, connect

DATA_BYTES = 256
WARM_UP_S = 2.0
_STREAMS = 50


class Loop:
    """A closed loop: as many appends under way as were started, for ever."""

    def __init__(self, pipeline: Pipeline, batch: int) -> None:
        self.events = 0
        self.failed = 0
        self.waits_s: list[float] = []
        self._pipeline = pipeline
        self._batch = batch
        self._run = os.urandom(8)
        self._count = 0
        self._data = cbor2.dumps("x" * (DATA_BYTES - 3))

    def begin(self) -> None:
        """Send one append; its answer sends the next."""
        self._count += 1
        stream = f"order-{self._count % _STREAMS}"
        events = [self._event(place) for place in range(self._batch)]
        began = time.perf_counter()

        def then(status: int, _: Any) -> None:
            if status == 201:
                self.events += self._batch
            else:
                self.failed += 1
            self.waits_s.append(time.perf_counter() - began)
            if status:
                self.begin()

        self._pipeline.ask(then, "append", stream, events)

    def forget(self) -> None:
        """Count from now on."""
        self.events, self.failed, self.waits_s = 0, 0, []

    def _event(self, place: int) -> dict[str, Any]:
        event_id = self._run + (self._count * 10_000 + place).to_bytes(8, "big")
        return {"event_type": "OrderPlaced", "event_id": event_id, "data_cbor": self._data}


async def append(
    url: str, store: str, under_way: int, batch: int, seconds: float
) -> dict[str, Any]:
    """Load a node; what came of it."""
    async with connect(url, store) as pipeline:
        loop = Loop(pipeline, batch)
        for _ in range(under_way):
            loop.begin()
        await asyncio.sleep(WARM_UP_S)
        loop.forget()
        began, used = time.perf_counter(), time.process_time()
        await asyncio.sleep(seconds)
        took, used = time.perf_counter() - began, time.process_time() - used
        waits = sorted(loop.waits_s)
        found = {
            "events": loop.events,
            "failed": loop.failed,
            "events_per_s": loop.events / took,
            "p50_ms": waits[len(waits) // 2] * 1000,
            "p99_ms": waits[int(len(waits) * 0.99)] * 1000,
            "max_ms": waits[-1] * 1000,
            "cores": used / took,
        }
        return found


async def catch_up(url: str, store: str) -> dict[str, Any]:
    """Follow the store from its first event until it is caught up."""
    async with connect(url, store) as pipeline:
        events, began, used = 0, time.perf_counter(), time.process_time()
        async for said in pipeline.subscribe(after=0):
            events += len(said.records)
            if said.kind == "caught_up":
                break
        took, used = time.perf_counter() - began, time.process_time() - used
        return {"events": events, "events_per_s": events / took, "cores": used / took}


def main() -> None:
    parser = argparse.ArgumentParser(description="Load over one WebSocket.")
    parser.add_argument("what", choices=("append", "catch-up"))
    parser.add_argument("url")
    parser.add_argument("store")
    parser.add_argument("--under-way", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8)
    options = parser.parse_args()
    if options.what == "append":
        load = append(
            *(options.url, options.store, options.under_way, options.batch, options.seconds)
        )
    else:
        load = catch_up(options.url, options.store)
    print(json.dumps(uvloop.run(load)))


if __name__ == "__main__":
    main()
