"""A client of the event store: knows several nodes, survives the loss of any, never stores twice.

    async with Client("127.0.0.1:8101", "127.0.0.1:8102", "127.0.0.1:8103") as client:
        await client.append("order-7", [Event("OrderPlaced", {"total": 12})], NO_STREAM)
        async for event in client.read_stream("order-7"):
            print(event.number, event.type, event.data)
        async for event in client.subscribe(after=0):      # goes on for ever, at whichever node
            ...

**Appending.** Every event has its id before it is sent for the first time. So a request whose
answer never came is simply sent again, to another node: the store recognises the ids. A node that
says nothing is given up after half of the time that is left, and passed over for a while by later
calls. Retries end after `timeout_s`, with a growing pause between them that no two clients share.
What is then left open is told by the error (`client_errors`): `Unavailable` was certainly not
stored, and `OutcomeUnknown` perhaps.

**Reading your own writes.** Reads ask each node for at least the Raft index of this client's last
append, so that a client never misses what it wrote itself, whichever node it asks.

**Following.** A subscription keeps the position of the last thing it was told and goes on behind it
at another node when a connection ends: every event once, in order, for as long as the process that
reads it lives. Keep `position` together with what you made of the events to go on after a restart,
and `lineage` with it: after `scripts/recover` positions are given to other events, and who goes on
behind one of before gets `LineageChanged`, in a running process as after a restart.

**Snapshots** of aggregates are recorded and read as `client_snapshots` shows. **Persistent
subscriptions**, which share events among several consumers, are made with `client_subscriptions`
and worked on with `client_consumer`. **Streams** are deleted and truncated with `client_streams`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import aiohttp
import msgspec

from cluster.access import content_of, reason_of
from cluster.client_answers import problem_of
from cluster.client_asking import CONNECT_S, Attempts
from cluster.client_errors import ClientError, LineageChanged, Unavailable, of_problem
from cluster.client_events import Appended, Event, Filter, Recorded
from cluster.client_snapshots import SnapshotCalls
from cluster.client_streams import StreamCalls
from cluster.client_subscriptions import SubscriptionCalls
from cluster.client_values import quoted

__all__ = ["ANY", "NO_STREAM", "STREAM_EXISTS", "Appended", "Client", "Event", "Filter", "Recorded"]

ANY, NO_STREAM, STREAM_EXISTS = "any", "no_stream", "stream_exists"

log = logging.getLogger(__name__)

_SILENCE_S = 30.0  # a follower hears something at least every 15 s
_WARNING_S = 10.0  # between two of the same subscription
_PAGE_EVENTS = 1_000
_LINE_BYTES_MAX = 32 * 1024 * 1024


class Client(StreamCalls, SnapshotCalls, SubscriptionCalls):
    """A client of one store of a cluster; see the module.

    `nodes` are addresses, such as "127.0.0.1:8101" or "https://proxy/exesdb"; one that is none is a
    `ValueError` at once. `timeout_s` bounds every call with all its retries. Use it as an
    asynchronous context, on one event loop. Every method raises `ClientError`.
    """

    # --- appending ---------------------------------------------------------------------------

    async def append(
        self,
        stream: str,
        events: Sequence[Event],
        expected_version: int | str = ANY,
        durability: str | None = None,
    ) -> Appended:
        """Append events to a stream if it is where the writer expects it; all of them or none.

        What it waits for is `durability`, or what the store says, or its node.
        """
        body = {
            "expected_version": expected_version,
            "events": [event.plain() for event in events],
        }
        return await self._append(f"/streams/{quoted(stream)}/events", body, durability)

    async def append_many(
        self,
        events: Iterable[tuple[str, Event]],
        checks: Mapping[str, int | str] | None = None,
        checkpoint: tuple[str, int] | None = None,
        durability: str | None = None,
    ) -> Appended:
        """Append (stream, event) pairs to several streams and move a checkpoint, in one step."""
        body: dict[str, Any] = {
            "events": [{"stream": stream, **event.plain()} for stream, event in events],
            "checks": [
                {"stream": stream, "expected_version": version}
                for stream, version in (checks or {}).items()
            ],
        }
        if checkpoint is not None:
            body["checkpoint"] = {"name": checkpoint[0], "position": checkpoint[1]}
        return await self._append("/append", body, durability)

    async def _append(self, path: str, body: Mapping[str, Any], durability: str | None) -> Appended:
        query = [] if durability is None else [("durability", durability)]
        answer = await self._ask("POST", path, query, body)
        return Appended(
            answer["positions"], answer["streams"], answer["raft_index"], answer["idempotent"]
        )

    # --- reading -----------------------------------------------------------------------------

    async def read_stream(
        self, stream: str, start: int = 0, backward: bool = False
    ) -> AsyncIterator[Recorded]:
        """The events of a stream from number `start` on; backward, from its end to its first."""
        path = f"/streams/{quoted(stream)}/events"
        query = [("limit", str(_PAGE_EVENTS))]
        following = "end" if backward else str(start)
        if backward:
            query.append(("direction", "backward"))
        while True:
            page = await self._read(path, [*query, ("from", following)])
            for event in page["events"]:
                yield Recorded.of(event)
            if page["is_end"]:
                return
            following = str(page["next"])

    async def read(
        self, after: int = 0, wanted: Filter | None = None, stream: str | None = None
    ) -> AsyncIterator[Recorded]:
        """The events of the store behind a position, up to its present end, in order."""
        query = [("limit", str(_PAGE_EVENTS)), *(wanted or Filter()).query()]
        if stream is not None:
            query.append(("stream", stream))
        while True:
            page = await self._read("/events", [*query, ("after", str(after))])
            for event in page["events"]:
                yield Recorded.of(event)
            if page["is_end"]:
                return
            after = page["next"]

    async def version(self, stream: str) -> int:
        """The number of the stream's last event; -1 if it has none."""
        page = await self._read(f"/streams/{quoted(stream)}/events", [("limit", "1")])
        return int(page["version"])

    async def checkpoint(self, name: str) -> int | None:
        """Where a checkpoint stands; None if there is none of this name."""
        try:
            found = await self._read(f"/checkpoints/{quoted(name)}", [])
        except ClientError as error:
            if error.code == "checkpoint_not_found":
                return None
            raise
        return int(found["position"])

    # --- following ---------------------------------------------------------------------------

    def subscribe(
        self,
        after: int = 0,
        wanted: Filter | None = None,
        stream: str | None = None,
        lineage: str | None = None,
    ) -> Subscription:
        """Every event behind `after`, and then every one that comes; see `Subscription`.

        `lineage` is that of `after`, if it was kept: that of the cluster must be the same.
        """
        query = (wanted or Filter()).query()
        query = [*query, ("stream", stream)] if stream else query
        return Subscription(self, after, query, lineage)


class Subscription:
    """Events as they come: an asynchronous iterator that goes on at another node by itself.

    `position` is that of the last thing it was told, also where a filter let nothing through: what
    to pass as `after` to go on behind it later. `caught_up` is true while the end of the store, as
    the node knew it, is reached. `lineage` is that of `position`, None until it is connected.
    `last_error` is why it is not connected, None while it is; where it cannot connect, it also
    logs a warning every 10 s, for a program that only waits shows nothing.

    It raises an error only where there is nothing more to follow: `NotFound`, or `LineageChanged`,
    after which `position` means nothing any more. Leaving the context of the client ends it as a
    loop ends: who leaves knows that more may come.
    """

    def __init__(
        self, client: Client, after: int, query: list[tuple[str, str]], lineage: str | None
    ) -> None:
        self.position = after
        self.lineage = lineage
        self.caught_up = False
        self.connections = 0
        self.last_error: ClientError | None = None
        self._warned_at = float("-inf")
        self._client = client
        self._query = query

    async def __aiter__(self) -> AsyncIterator[Recorded]:
        self._client._check_open()
        attempts = Attempts(float("inf"), self._client._chance)
        while self._client.is_open:
            url = self._client._routing.pick(for_append=False)
            connections = self.connections
            try:
                async for event in self._from(url):
                    attempts = Attempts(float("inf"), self._client._chance)
                    yield event
                raise Unavailable(f"{url} ended the stream")
            except Unavailable as error:
                self.caught_up = False
                self._client._routing.failed(url)
                self._note(error, was_connected=self.connections > connections)
                await attempts.failed(error)

    def _note(self, error: ClientError, was_connected: bool) -> None:
        self.last_error = error
        moment = asyncio.get_running_loop().time()
        if not was_connected and self._client.is_open and moment - self._warned_at >= _WARNING_S:
            self._warned_at = moment
            log.warning("cannot follow store %s: %s", self._client.store, error)

    async def _from(self, url: str) -> AsyncIterator[Recorded]:
        """What one node sends, from where this subscription has got to."""
        client = self._client
        query = [*self._query, ("after", str(self.position))]
        bounds = aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=_SILENCE_S)
        try:
            async with client._session.get(
                client._url(url, "/subscribe"),
                params=query,
                headers={"Accept": "application/x-ndjson"},
                timeout=bounds,
            ) as answer:
                client._answers.add(answer)
                if answer.status != 200:
                    raise of_problem(answer.status, problem_of(answer, await content_of(answer)))
                await self._same_lineage(url)
                self.connections += 1
                self.last_error = None
                async for line in _lines(answer.content):
                    event = self._heard(url, line)
                    if event is not None:
                        yield event
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{url}: {reason_of(error)}") from error

    async def _same_lineage(self, url: str) -> None:
        """Raises `LineageChanged` if the node follows another one than this subscription does.

        It is asked when the subscription is connected: a node that restarts in another lineage
        after that ends the connection, and one that did before tells the new one.
        """
        now = await self._client._learn(url, CONNECT_S)
        if now is not None and self.lineage not in (None, now):
            words = f"position {self.position} is of lineage {self.lineage}, {url} follows {now}"
            raise LineageChanged(words, fields={"before": self.lineage, "now": now})
        self.lineage = now or self.lineage

    def _heard(self, url: str, line: bytes) -> Recorded | None:
        try:
            return self._told(msgspec.json.decode(line, type=dict[str, Any]))
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise Unavailable(f"{url}: this is nothing that a node says: {error}") from error

    def _told(self, said: Mapping[str, Any]) -> Recorded | None:
        kind, data = said["event"], said["data"]
        if kind == "error":
            raise of_problem(data["status"], data)
        self.position = said["id"]
        if kind == "event":
            return Recorded.of(data)
        self.caught_up = self.caught_up or kind == "caught_up"
        return None


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a stream, as long as they may be; empty ones are signs of life."""
    rest = b""
    async for part in content.iter_any():
        *lines, rest = (rest + part).split(b"\n")
        if len(rest) > _LINE_BYTES_MAX:
            raise aiohttp.ClientPayloadError("a line that does not end")
        for line in lines:
            if line:
                yield line
