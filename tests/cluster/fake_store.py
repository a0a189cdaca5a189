"""A node that keeps one store in memory, as far as a backup and a restore ask for it.

It decides as the real one does where that matters here: ids before expected versions, content types
by encoding, positions from 1. `requests` holds what was asked; `break_at` lets it die, once, at so
many requests.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import cbor2
from aiohttp import web

from tests.cluster.fake_http import answering

OCTETS = "application/octet-stream"


class FakeStore:
    def __init__(self, events: list[dict[str, Any]] | None = None) -> None:
        self.events = [] if events is None else events
        self.there = events is not None
        self.durability: str | None = None
        self.checkpoints: dict[str, int] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.page_events = 1_000
        self.break_at = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/cluster":
            return web.json_response({"leader": None, "members": []})
        path = request.path.removeprefix("/v1/stores/s")
        self.requests.append((f"{request.method} {path}", dict(request.query)))
        if len(self.requests) == self.break_at:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        status, body = await self._answer(request, path)
        if "cbor" not in request.headers.get("Accept", ""):
            return web.json_response(body, status=status)
        content = cbor2.dumps(body)
        return web.Response(status=status, body=content, content_type="application/cbor")

    async def _answer(self, request: web.Request, path: str) -> tuple[int, Any]:
        if (request.method, path) == ("PUT", ""):
            body = await self._body(request)
            self.there, self.durability = True, (body or {}).get("durability")
            return 201, {}
        if not self.there:
            return 404, {"code": "store_not_found", "detail": "no store", "status": 404}
        if path == "/append":
            return self._append(await self._body(request), "json" in request.content_type)
        if path.startswith("/checkpoints/"):
            return await self._checkpoint(request, path.removeprefix("/checkpoints/"))
        if path == "/events":
            return 200, self._page(request.query)
        if path == "/checkpoints":
            found = [{"name": n, "position": p} for n, p in sorted(self.checkpoints.items())]
            return 200, {"checkpoints": found, "next": None}
        if path == "/streams":
            return 200, {"streams": self._streams(int(request.query["until"])), "next": None}
        if path == "/subscriptions":
            return 200, {"subscriptions": []}
        if path == "/snapshots":
            return 200, {"snapshots": [], "next": None}
        facts: dict[str, Any] = {
            "store": "s",
            "durability": self.durability,
            "snapshots_kept": None,
        }
        position = len(self.events)
        facts |= {"events": position, "position": position}
        return 200, {**facts, "snapshots": 0}

    def _streams(self, until: int) -> list[dict[str, Any]]:
        """Streams as of a position; nothing was ever removed from them."""
        found: dict[str, dict[str, Any]] = {}
        life = {"life": "alive", "first_event_number": 0, "metadata": {}}
        for event in self.events[:until]:
            stream, version = event["event_stream_id"], event["event_number"]
            found[stream] = {"stream": stream, "version": version, "count": version + 1, **life}
        return sorted(found.values(), key=lambda one: str(one["stream"]))

    async def _body(self, request: web.Request) -> Any:
        content = await request.read()
        if not content:
            return None
        return await request.json() if "json" in request.content_type else cbor2.loads(content)

    def _page(self, query: Any) -> dict[str, Any]:
        after, until = int(query["after"]), int(query.get("until", 1 << 60))
        last = min(after + min(int(query["limit"]), self.page_events), until, len(self.events))
        return {
            "events": self.events[after:last],
            "next": last,
            "head": len(self.events),
            "is_end": last >= len(self.events),
        }

    async def _checkpoint(self, request: web.Request, name: str) -> tuple[int, Any]:
        found = self.checkpoints.get(name)
        if request.method == "PUT":
            position = (await self._body(request))["position"]
            if found is not None and found >= position:
                detail = {"current": found, "detail": "not increasing"}
                return 409, {"code": "checkpoint_not_increasing", **detail}
            self.checkpoints[name] = found = position
        if found is None:
            return 404, {"code": "checkpoint_not_found", "detail": "no checkpoint"}
        return 200, {"name": name, "position": found}

    def _append(self, body: dict[str, Any], as_json: bool) -> tuple[int, Any]:
        known = {event["event_id"]: event for event in self.events}
        again = [known[new["event_id"]] for new in body["events"] if new["event_id"] in known]
        for check in () if again else body["checks"]:
            if self.version(check["stream"]) != check["expected_version"]:
                return 409, {"code": "wrong_expected_version", "detail": "so it is", **check}
        stored = again or [self.add(new, as_json) for new in body["events"]]
        return (200 if again else 201), {
            "positions": [event["position"] for event in stored],
            "streams": {event["event_stream_id"]: event["event_number"] for event in stored},
            "idempotent": bool(again),
            "raft_index": 1,
        }

    def version(self, stream: str) -> int:
        return sum(event["event_stream_id"] == stream for event in self.events) - 1

    def add(self, new: dict[str, Any], as_json: bool) -> dict[str, Any]:
        media = "application/json" if as_json else "application/cbor"
        values, kinds = {}, {}
        for name in ("data", "metadata"):
            encoded = new.get(f"{name}_base64")
            values[name] = new.get(name) if encoded is None else base64.b64decode(encoded)
            kinds[name] = OCTETS if type(values[name]) is bytes else media
        event = {
            "event_stream_id": new["stream"],
            "event_number": self.version(new["stream"]) + 1,
            "position": len(self.events) + 1,
            "event_id": new["event_id"],
            "event_type": new["event_type"],
            "data_content_type": new.get("data_content_type") or kinds["data"],
            "metadata_content_type": kinds["metadata"],
            "created_epoch": 1_000_000 + len(self.events),
            **values,
        }
        self.events.append(event)
        return event


@asynccontextmanager
async def serving_store(store: FakeStore) -> AsyncIterator[str]:
    async with answering(store.answer) as url:
        yield url
