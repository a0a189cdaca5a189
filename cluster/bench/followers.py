"""Followers over server-sent events: one that catches up, or a hundred behind steady appends.

It runs in a process of its own (`python -m cluster.bench.followers`), because it shares the machine
with the nodes. A follower reads what `GET …/subscribe` sends as it comes from the socket, finds
every event in it and checks that none is missing; it does not decode their data, so that what is
measured is the node. The last line of its output is one line of JSON.

The appends of `fan-out` are an open loop: at their moment, whether the earlier ones were answered
or not. What counts is the time from an answer to the moment at which a follower has the event; one
that comes before the answer counts as 0. A hundred followers behind 1,000 appends/s take a quarter
of a core here, a third of a millisecond for ten chunks; so where all are sent something at once,
the last one is found to have it some 3 ms later than the first, and that is part of the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import cbor2
import uvloop

from cluster.bench.wrk import event_template
from cluster.client_ws import Pipeline, connect

WARM_UP_S = 2.0
_TICK_S = 0.002
_STREAMS = 50
_SETTLE_S = 15.0
_CATCH_UP_LIMIT_S = 240.0
_STOPPED_BUFFER_BYTES = 64 * 1024

_SAID = re.compile(rb"id: (\d+)\nevent: (\w+)\n")


class Chunk(NamedTuple):
    """Events that came at once: how many, the position of the last, and when."""

    events: int
    last: int
    moment: float


class Follower(asyncio.Protocol):
    """One connection that follows; `on_chunk` is told of events. Data hold no raw line break."""

    def __init__(self, after: int, on_chunk: Callable[[Chunk], None]) -> None:
        self.last = after
        self.caught_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_chunk = on_chunk
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        moment = time.perf_counter()
        data = self._rest + data
        whole = data.rfind(b"\n\n") + 2
        self._rest = data[whole:] if whole > 1 else data
        found = _SAID.findall(data, 0, whole) if whole > 1 else []
        events = [int(position) for position, kind in found if kind == b"event"]
        if events:
            if (events[0], events[-1]) != (self.last + 1, self.last + len(events)) and self.last:
                self._fail(f"{events[0]}..{events[-1]} came behind {self.last}")
            self.last = events[-1]
            self._on_chunk(Chunk(len(events), self.last, moment))
        for position, kind in found:
            if kind == b"caught_up" and not self.caught_up.done():
                self.last = int(position)
                self.caught_up.set_result(None)
            elif kind == b"error":
                self._fail("the node ended it")

    def connection_lost(self, error: Exception | None) -> None:
        self._fail("the connection was lost")

    def _fail(self, words: str) -> None:
        if not self.caught_up.done():
            self.caught_up.set_exception(RuntimeError(words))
        self.last = -1  # what it was told is not whole: see `Fan.judged`


async def follow(
    url: str, store: str, after: str, on_chunk: Callable[[Chunk], None]
) -> tuple[asyncio.Transport, Follower]:
    """Open one. `after` is a position or `end`."""
    place = urlsplit(url)
    start = 0 if after == "end" else int(after)
    transport, follower = await asyncio.get_running_loop().create_connection(
        lambda: Follower(start, on_chunk), place.hostname or "", place.port or 80
    )
    transport.write(_request(place.netloc, store, after))
    return transport, follower


def _request(host: str, store: str, after: str) -> bytes:
    path = f"/v1/stores/{store}/subscribe?after={after}"
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


async def catch_up(url: str, store: str) -> dict[str, Any]:
    """Follow the store from its first event until it is caught up."""
    counts: list[int] = []
    began, used = time.perf_counter(), time.process_time()
    transport, follower = await follow(url, store, "0", lambda chunk: counts.append(chunk.events))
    async with asyncio.timeout(_CATCH_UP_LIMIT_S):
        await follower.caught_up
    took, used = time.perf_counter() - began, time.process_time() - used
    transport.close()
    events = sum(counts)
    if events != follower.last:
        raise RuntimeError(f"{events} events came, up to position {follower.last}")
    return {"events": events, "events_per_s": events / took, "cores": used / took}


class Fan:
    """What was acknowledged when, and what came when."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.acknowledged: dict[int, float] = {}
        self.failed = 0
        self.chunks: list[Chunk] = []
        self._pipeline = pipeline
        self._count = 0
        self._data = cbor2.dumps(event_template()["data"])

    def append(self) -> None:
        """Send one event."""
        self._count += 1
        event = {"event_type": "OrderPlaced", "data_cbor": self._data}
        self._pipeline.ask(self._then, "append", f"order-{self._count % _STREAMS}", [event])

    def _then(self, status: int, body: Any) -> None:
        if status == 201:
            (position,) = body[2]
            self.acknowledged[position] = time.perf_counter()
        else:
            self.failed += 1

    def judged(self, followers: int, seconds: float) -> dict[str, Any]:
        """The figures. Raises RuntimeError unless every follower got every event."""
        delivered = sum(chunk.events for chunk in self.chunks)
        if self.failed or delivered != followers * len(self.acknowledged):
            raise RuntimeError(f"{self.failed} appends failed, {delivered} events were delivered")
        waits = sorted(
            max(0.0, moment - self.acknowledged[position])
            for events, last, moment in self.chunks
            for position in range(last - events + 1, last + 1)
        )
        return {
            "events": len(self.acknowledged),
            "events_per_s": len(self.acknowledged) / seconds,
            "delivered": delivered,
            "p50_ms": waits[len(waits) // 2] * 1000,
            "p99_ms": waits[int(len(waits) * 0.99)] * 1000,
            "max_ms": waits[-1] * 1000,
        }


async def fan_out(
    url: str, store: str, leader: str, followers: int, rate: int, seconds: float
) -> dict[str, Any]:
    """Follow at `url` with so many, and one more that stops reading; append at `leader`."""
    async with connect(leader, store) as pipeline:
        fan = Fan(pipeline)
        stopped = _stopped(url, store)
        opened = [await follow(url, store, "end", fan.chunks.append) for _ in range(followers)]
        await asyncio.gather(*(follower.caught_up for _, follower in opened))
        await _steady(fan, rate, WARM_UP_S)
        await _settled(fan, opened)
        fan.chunks.clear()
        fan.acknowledged.clear()
        began, used = time.perf_counter(), time.process_time()
        await _steady(fan, rate, seconds)
        took, used = time.perf_counter() - began, time.process_time() - used
        await _settled(fan, opened)
        stopped.close()
        return fan.judged(followers, took) | {"cores": used / took}


async def _steady(fan: Fan, rate: int, seconds: float) -> None:
    began, sent = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        for _ in range(int(passed * rate) - sent):
            fan.append()
            sent += 1
        await asyncio.sleep(_TICK_S)


async def _settled(fan: Fan, opened: list[tuple[asyncio.Transport, Follower]]) -> None:
    """Return when all that was acknowledged has come everywhere, or after a bound."""
    until = time.perf_counter() + _SETTLE_S
    while time.perf_counter() < until:
        await asyncio.sleep(0.05)
        last = max(fan.acknowledged, default=0)
        if all(follower.last == last for _, follower in opened):
            return


def _stopped(url: str, store: str) -> socket.socket:
    """A follower from the first event on that never reads, with little room of its own."""
    place = urlsplit(url)
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _STOPPED_BUFFER_BYTES)
    opened.connect((place.hostname, place.port))
    opened.sendall(_request(place.netloc, store, "0"))
    return opened


def main() -> None:
    parser = argparse.ArgumentParser(description="Followers over server-sent events.")
    parser.add_argument("what", choices=("catch-up", "fan-out"))
    parser.add_argument("url")
    parser.add_argument("store")
    parser.add_argument("--leader")
    parser.add_argument("--followers", type=int, default=100)
    parser.add_argument("--rate", type=int, default=1_000, help="appends a second")
    parser.add_argument("--seconds", type=float, default=12)
    options = parser.parse_args()
    url, store = options.url, options.store
    if options.what == "catch-up":
        load = catch_up(url, store)
    else:
        leader = options.leader or url
        load = fan_out(url, store, leader, options.followers, options.rate, options.seconds)
    print(json.dumps(uvloop.run(load)))


if __name__ == "__main__":
    main()
