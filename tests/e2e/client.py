"""What these tests ask of a node over HTTP, as any client would."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, NamedTuple

import aiohttp

STORE = "my_store"
"""The store that exists from the start."""

REQUEST_S = 30.0
FLUSH_S = 60.0


class Answer(NamedTuple):
    status: int
    body: dict[str, Any]


class Client:
    """A client of one node. Each request is bounded; nothing is retried unless it says so."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self._session = session
        self.address = address

    async def request(
        self, method: str, path: str, body: object = None, within_s: float = REQUEST_S
    ) -> Answer:
        bound = aiohttp.ClientTimeout(total=within_s)
        async with self._session.request(
            method, self.address + path, json=body, timeout=bound
        ) as response:
            return Answer(response.status, await response.json(content_type=None))

    async def append(self, stream: str, *labels: str, event_ids: list[str] | None = None) -> Answer:
        """Append one event a label; its data is the label."""
        ids = event_ids or [str(uuid.uuid4()) for _ in labels]
        events = [
            {"event_id": event_id, "event_type": "Labelled", "data": label}
            for event_id, label in zip(ids, labels, strict=True)
        ]
        return await self.request(
            "POST", f"/v1/stores/{STORE}/streams/{stream}/events", {"events": events}
        )

    async def append_until_taken(self, stream: str, label: str, within_s: float = 10) -> Answer:
        """Append one event, with the same id again while there is no definite answer."""
        event_id = str(uuid.uuid4())
        async with asyncio.timeout(within_s):
            while True:
                try:
                    answer = await self.append(stream, label, event_ids=[event_id])
                except aiohttp.ClientError:
                    answer = None
                if answer is not None and answer.status in (200, 201):
                    return answer
                await asyncio.sleep(0.05)

    async def events(self, min_position: int = 0) -> list[dict[str, Any]]:
        """Read the whole store, once this node has applied `min_position`."""
        events: list[dict[str, Any]] = []
        after = 0
        while True:
            query = f"after={after}&limit=1000&min_position={min_position}&timeout_ms=20000"
            answer = await self.request("GET", f"/v1/stores/{STORE}/events?{query}")
            assert answer.status == 200, answer
            events += answer.body["events"]
            if not answer.body["events"]:
                return events
            after = answer.body["next"]

    async def flush(self) -> None:
        """Put everything on every node's disk.

        The disk may be busy with other tests; and a node that has just come back may be ready by
        its session with the leader, and have none with this node for another second.
        """
        path = f"/v1/persistence/force?scope=cluster&timeout_ms={FLUSH_S * 1000:.0f}"
        bound_s = FLUSH_S + REQUEST_S
        async with asyncio.timeout(bound_s):
            while (answer := await self.request("POST", path, None, bound_s)).status == 207:
                assert all(
                    failed["code"] == "not_ready" for failed in answer.body["failed"].values()
                )
                await asyncio.sleep(0.1)
        assert answer.status == 200, answer

    async def leader(self) -> str | None:
        """The leader's node id, as this node knows it."""
        leader: str | None = (await self.request("GET", "/v1/cluster")).body["leader"]
        return leader
