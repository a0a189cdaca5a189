"""Who has streams that lose events: appended to, limited, deleted, begun anew, ended for ever.

Each remover does one thing after the other, at any node, so that what it was told last is certain.
What had no certain end is repeated elsewhere, and then written down as floating (see `history`).
It has a few streams at a time. One of which nobody can tell any more what becomes of it is left
alone, as is one that ended for ever; both are still asked about now and then, and judged in the
end with the others (`removals`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

import aiohttp

from cluster.chaos.clients import (
    ATTEMPTS,
    CONFLICT,
    OVER,
    PAUSE_AFTER_REFUSAL_S,
    PERHAPS,
    REFUSAL,
    REQUEST,
    TIMEOUT_MS,
    Appender,
    Ends,
    wait,
)
from cluster.chaos.history import ACKNOWLEDGED, EVENT_TYPE, MORTAL_PREFIX, REFUSED, UNKNOWN

REMOVERS = 3
AGE_MAX_MS = 1_500

_STREAMS = 3  # of each, at a time
_LEFT_MAX = 20  # streams that are still asked about
_BATCHES = (1, 1, 3, 8)
_COUNT_MAX = 12
_PAGE = 1_000
_LAST_MAX = 300  # a longer stream is left, so that a page shows a whole one
_EVERY_S = 0.25

_DONE = (200, 204)
_MISSING = 404
_NOT_DONE = (_MISSING, CONFLICT, OVER, REFUSAL)


class Remover:
    """Has streams of its own, and removes what is in them."""

    def __init__(self, ends: Ends, chance: random.Random, number: int) -> None:
        self._ends = ends
        self._chance = chance
        self._prefix = f"{MORTAL_PREFIX}{number}"
        self._appender = Appender(ends, chance, EVENT_TYPE)
        self._made = 0
        self._left: list[str] = []
        self._ended: set[str] = set()
        self._streams = [self._new() for _ in range(_STREAMS)]

    async def run(self) -> None:
        """One request after the other until told to stop."""
        while not self._ends.stop.is_set():
            stream = self._chance.choice(self._streams)
            drawn = self._chance.random()
            if drawn < 0.5:
                await self._append(stream)
            elif drawn < 0.65:
                await self._read(stream)
            elif drawn < 0.8:
                await self._limit(stream)
            elif drawn < 0.92:
                await self._delete(stream)
            elif drawn < 0.95:
                await self._end(stream)
            elif self._left:
                await self._try_a_left_one(self._chance.choice(self._left))
            await wait(self._ends.stop, self._chance.expovariate(1 / _EVERY_S))

    # --- what it does ------------------------------------------------------------------------

    async def _append(self, stream: str) -> None:
        last = self._appender.versions.get(stream)
        expected: Any = "any"
        if last is not None and self._chance.random() < 0.3:
            expected = "no_stream" if last < 0 else last
        await self._appender.append(stream, expected, self._chance.choice(_BATCHES))
        if self._appender.versions.get(stream, -1) > _LAST_MAX:
            self._leave(stream)

    async def _limit(self, stream: str) -> None:
        chance, last = self._chance, self._appender.versions.get(stream, -1)
        limits: dict[str, int] = {}
        if chance.random() < 0.4:
            limits["truncate_before"] = max(0, last + chance.randint(-8, 4))
        if chance.random() < 0.4:
            limits["max_count"] = chance.randint(1, _COUNT_MAX)
        if chance.random() < 0.15:
            limits["max_age_ms"] = chance.randint(1, AGE_MAX_MS)
        record = self._record(stream, "limit", None, limits)
        await self._send(record, "PUT", "/metadata", limits)
        if record["floats"]:
            self._leave(stream)

    async def _delete(self, stream: str) -> None:
        """With the version that it has, with an older one, or whatever it has.

        What could be carried out twice is the last thing that is done with a stream.
        """
        drawn, last = self._chance.random(), self._appender.versions.get(stream, -1)
        if last < 1:
            return
        expected: Any = last if drawn < 0.75 else last - 1 if drawn < 0.85 else "any"
        record = self._record(stream, "delete", expected, {})
        await self._send(record, "DELETE", f"?expected_version={expected}")
        if record["outcome"] == ACKNOWLEDGED:
            self._appender.versions[stream] = -1
        if expected == "any" or record["floats"]:
            self._leave(stream)

    async def _end(self, stream: str) -> None:
        last = self._appender.versions.get(stream, -1)
        expected: Any = last if last >= 0 and self._chance.random() < 0.5 else "any"
        record = self._record(stream, "end", expected, {})
        await self._send(record, "DELETE", f"?expected_version={expected}&hard=true")
        if record["outcome"] == ACKNOWLEDGED:
            self._ended.add(stream)
        if record["outcome"] != REFUSED:
            self._leave(stream)

    async def _try_a_left_one(self, stream: str) -> None:
        if stream in self._ended and self._chance.random() < 0.5:
            await self._appender.append(stream, "any", 1)
        else:
            await self._read(stream)

    async def _read(self, stream: str) -> None:
        query = f"limit={_PAGE}&consistency=linearizable&timeout_ms={TIMEOUT_MS}"
        url = f"{self._url(stream)}/events?{query}"
        try:
            async with self._ends.http.get(url, timeout=REQUEST) as answer:
                if answer.status not in (200, OVER):
                    return
                page = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return
        if answer.status == OVER:
            page = {"version": -1, "events": [], "is_end": True}
        if page["is_end"]:
            events = [[event["event_number"], event["event_id"]] for event in page["events"]]
            self._ends.history.record(
                {"op": "stream_read", "stream": stream, "status": answer.status,
                 "version": page["version"], "events": events}
            )  # fmt: skip

    # --- how ---------------------------------------------------------------------------------

    async def _send(
        self, record: dict[str, Any], method: str, rest: str, body: object = None
    ) -> None:
        """Send a removal until it has a certain end, to any node, and write it down."""
        rest += f"{'&' if '?' in rest else '?'}timeout_ms={TIMEOUT_MS}"
        for _ in range(self._chance.choice(ATTEMPTS)):
            if await self._attempt(record, method, rest, body):
                break
            await wait(self._ends.stop, PAUSE_AFTER_REFUSAL_S)
        if record["floats"] and record["outcome"] == REFUSED:
            record["outcome"] = UNKNOWN
        self._ends.history.record(record)

    async def _attempt(self, record: dict[str, Any], method: str, rest: str, body: object) -> bool:
        """Send it once; True if trying again makes no sense."""
        record["status"] = None
        try:
            async with self._ends.http.request(
                method, self._url(record["stream"]) + rest, json=body, timeout=REQUEST
            ) as answer:
                said = await answer.json(content_type=None) if answer.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError, ValueError):
            record["floats"] = True  # also without a connection: aiohttp sends twice by itself
            return False
        record["status"] = answer.status
        if answer.status in _DONE:
            record |= {"outcome": ACKNOWLEDGED, "first": said.get("first_event_number")}
            return True
        if answer.status not in (*_NOT_DONE, PERHAPS):
            record["strange"] = str(answer.status)
        record["floats"] |= answer.status not in _NOT_DONE
        return answer.status in _NOT_DONE and answer.status != REFUSAL

    @staticmethod
    def _record(stream: str, what: str, expected: Any, limits: Mapping[str, int]) -> dict[str, Any]:
        return {"op": "removal", "stream": stream, "what": what, "expected": expected,
                "limits": limits, "sent": time.monotonic(), "outcome": REFUSED, "floats": False,
                "status": None, "first": None, "strange": None}  # fmt: skip

    def _url(self, stream: str) -> str:
        node = self._chance.choice(list(self._ends.urls.values()))
        return f"{node}{self._ends.path}/streams/{stream}"

    def _new(self) -> str:
        self._made += 1
        return f"{self._prefix}-{self._made}"

    def _leave(self, stream: str) -> None:
        """Go on with a new stream in its place."""
        if stream in self._streams:
            self._streams[self._streams.index(stream)] = self._new()
            self._left = [*self._left, stream][-_LEFT_MAX:]
