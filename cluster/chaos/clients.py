"""Who appends and reads while the nodes are tormented, and writes down what they were told.

Writers send their appends to any node, repeat what had no certain end with the same ids elsewhere,
and at last write down one of three outcomes (see `history`). Sizes and expected versions are mixed;
some writers ask for `durability=persisted`. Together they keep to a pace, so that a run of half an
hour stays small enough for a machine that also has to start nodes every few seconds.

Readers write down whole answers: of each node what it has applied, of any node linearizable reads,
and sessions that carry their position from node to node.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import aiohttp

from cluster.chaos import history
from cluster.chaos.history import (
    ACKNOWLEDGED,
    MORTAL_PREFIX,
    REFUSED,
    UNKNOWN,
    History,
    content_of,
)

STREAMS = 20
BATCHES = (1, 1, 1, 5, 50)
ATTEMPTS = (1, 2, 4)
TIMEOUT_MS = 3_000
PAGE_EVENTS_MAX = 500
READ_EVERY_S = 0.4
BACK_EVENTS = 50
"""How far before the last known head a reader begins, so that what it knows is read again."""

REQUEST = aiohttp.ClientTimeout(total=8.0, connect=2.0)
PAUSE_AFTER_REFUSAL_S = 0.05
PERHAPS, CONFLICT, OVER, REFUSAL = 504, 409, 410, 503
_STORED = (200, 201)
_NOT_STORED = (CONFLICT, REFUSAL)


class Ends(NamedTuple):
    """Where requests go, and how."""

    http: aiohttp.ClientSession
    urls: Mapping[str, str]
    store: str
    history: History
    stop: asyncio.Event

    @property
    def path(self) -> str:
        """The store's path."""
        return f"/v1/stores/{self.store}"


class Appender:
    """Appends to streams, one append at a time, each with its own outcome.

    `versions` is what it was told last of each stream: the number of its last event, or -1.
    """

    def __init__(
        self, ends: Ends, chance: random.Random, event_type: str, persisted: bool = False
    ) -> None:
        self.versions: dict[str, int] = {}
        self._ends = ends
        self._chance = chance
        self._query = f"?timeout_ms={TIMEOUT_MS}" + "&durability=persisted" * persisted
        self._event_type = event_type

    async def append(self, stream: str, expected: Any, count: int) -> bool:
        """Append so many events, in several tries perhaps; whether that was acknowledged."""
        chance = self._chance
        ids = [str(uuid.UUID(int=chance.getrandbits(128), version=4)) for _ in range(count)]
        body = {
            "expected_version": expected,
            "events": [
                {"event_id": event, "event_type": self._event_type, "data": content_of(event)}
                for event in ids
            ],
        }
        record = {"op": "append", "ids": ids, "stream": stream, "expected": expected,
                  "sent": time.monotonic(), "outcome": REFUSED, "first": 0, "positions": [],
                  "over": False, "strange": None}  # fmt: skip
        for _ in range(chance.choice(ATTEMPTS)):
            if await self._attempt(record, body):
                break
            await wait(self._ends.stop, PAUSE_AFTER_REFUSAL_S)
        record["done"] = time.monotonic()
        self._ends.history.record(record)
        acknowledged: bool = record["outcome"] == ACKNOWLEDGED
        return acknowledged

    async def _attempt(self, record: dict[str, Any], body: object) -> bool:
        """Send it once to any node; True if trying again makes no sense."""
        node = self._chance.choice(list(self._ends.urls))
        path = f"{self._ends.path}/streams/{record['stream']}/events{self._query}"
        try:
            async with self._ends.http.post(
                self._ends.urls[node] + path, json=body, timeout=REQUEST
            ) as answer:
                return self._judge(record, answer.status, await answer.json(content_type=None))
        except aiohttp.ClientConnectorError:
            return False
        except (aiohttp.ClientError, TimeoutError, ValueError):
            record["outcome"] = UNKNOWN
            return False

    def _judge(self, record: dict[str, Any], status: int, answer: dict[str, Any]) -> bool:
        if status in _STORED:
            record |= {"outcome": ACKNOWLEDGED, "first": answer["first_version"],
                       "positions": answer["positions"]}  # fmt: skip
            self.versions[record["stream"]] = answer["last_version"]
            return True
        if status == PERHAPS:
            record["outcome"] = UNKNOWN
        elif status in _NOT_STORED:
            if status == CONFLICT:
                self.versions[record["stream"]] = answer["current"]
            return status == CONFLICT
        elif status == OVER and record["stream"].startswith(MORTAL_PREFIX):
            record["over"] = True
            return True
        else:
            record |= {"outcome": UNKNOWN, "strange": f"{status} {answer.get('code')}"}
        return False


class Writer:
    """One client that appends at its pace."""

    def __init__(
        self,
        ends: Ends,
        chance: random.Random,
        events_per_s: float,
        persisted: bool,
        event_type: str,
        acknowledged: Callable[[int], None],
    ) -> None:
        self._ends = ends
        self._chance = chance
        self._events_per_s = events_per_s
        self._appender = Appender(ends, chance, event_type, persisted)
        self._acknowledged = acknowledged

    async def run(self) -> None:
        """Append until told to stop."""
        while not self._ends.stop.is_set():
            count = self._chance.choice(BATCHES)
            began = time.monotonic()
            await self._append(count)
            left_s = count / self._events_per_s - (time.monotonic() - began)
            await wait(self._ends.stop, left_s)

    async def _append(self, count: int) -> None:
        stream = f"stream-{self._chance.randrange(STREAMS)}"
        expected: Any = "any"
        if stream in self._appender.versions and self._chance.random() < 0.3:
            expected = self._appender.versions[stream]
        if await self._appender.append(stream, expected, count):
            self._acknowledged(count)


class Reader:
    """One client that reads the store near its end, again and again."""

    def __init__(self, ends: Ends, chance: random.Random, level: str, node: str | None) -> None:
        """`node` is where it reads; None: anywhere."""
        self._ends = ends
        self._chance = chance
        self._level = level
        self._node = node
        self._name = f"{level}-{node or 'any'}-{chance.randrange(1 << 20):x}"
        self._head = 0

    async def run(self) -> None:
        """Read until told to stop."""
        while not self._ends.stop.is_set():
            await self._read(self._node or self._chance.choice(list(self._ends.urls)))
            await wait(self._ends.stop, READ_EVERY_S * self._chance.uniform(0.5, 1.5))

    async def _read(self, node: str) -> None:
        token = self._head if self._level == history.SESSION else 0
        after = max(0, self._head - BACK_EVENTS)
        query = f"?after={after}&limit={PAGE_EVENTS_MAX}&timeout_ms={TIMEOUT_MS}"
        if self._level == history.LINEARIZABLE:
            query += "&consistency=linearizable"
        elif token:
            query += f"&min_position={token}"
        sent = time.monotonic()
        try:
            async with self._ends.http.get(
                f"{self._ends.urls[node]}{self._ends.path}/events{query}", timeout=REQUEST
            ) as answer:
                if answer.status != 200:
                    return
                page = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return
        events = [[event["position"], event["event_id"]] for event in page["events"]]
        self._head = max(self._head, page["head"])
        self._ends.history.record(
            {"op": "read", "reader": self._name, "level": self._level, "node": node,
             "sent": sent, "done": time.monotonic(), "after": after, "head": page["head"],
             "token": token, "events": events}
        )  # fmt: skip


async def wait(stop: asyncio.Event, seconds: float) -> None:
    """Wait so long, but not past `stop`."""
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)
