"""A client of the event store: knows several nodes, survives the loss of any, never stores twice.

    async with Client("127.0.0.1:8101", "127.0.0.1:8102", "127.0.0.1:8103") as client:
        await client.append("order-7", [Event("OrderPlaced", {"total": 12})], NO_STREAM)
        async for event in client.read_stream("order-7"):
            print(event.number, event.type, event.data)
        async for event in client.subscribe(after=0):      # goes on for ever, at whichever node
            ...

**Appending.** Every event has its id before it is sent for the first time. So a request whose
answer never came is simply sent again, to another node: the store recognises the ids. Retries end
after `timeout_s`, with a growing pause between them that no two clients share. What is then left
open is told by the error (`client_errors`): `Unavailable` was certainly not stored, and
`OutcomeUnknown` perhaps.

**Reading your own writes.** Reads ask each node for at least the Raft index of this client's last
append, so that a client never misses what it wrote itself, whichever node it asks.

**Following.** A subscription keeps the position of the last thing it was told and goes on behind it
at another node when a connection ends: every event once, in order, for as long as the process that
reads it lives. Keep `position` together with what you made of the events to go on after a restart.

**Snapshots** of aggregates are recorded and read as `client_snapshots` shows.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from cluster.client_errors import ClientError, OutcomeUnknown, Unavailable, of_problem
from cluster.client_routing import Routing
from cluster.client_snapshots import SnapshotCalls
from cluster.client_values import plain_values, quoted, value_of

ANY, NO_STREAM, STREAM_EXISTS = "any", "no_stream", "stream_exists"

_CONNECT_S = 2.0
_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.02, 1.0
_SILENCE_S = 30.0  # a follower hears something at least every 15 s
_PAGE_EVENTS = 1_000
_LINE_BYTES_MAX = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """An event to be appended. `data` and `metadata` are JSON values, or bytes."""

    type: str
    data: Any = None
    metadata: Any = None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def plain(self) -> dict[str, Any]:
        """As the API wants it."""
        values = plain_values(data=self.data, metadata=self.metadata)
        return {"event_id": self.id, "event_type": self.type, **values}


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event as it is stored. `number` counts in its stream from 0, `position` in the store
    from 1; `created_us` is in microseconds since 1970."""

    stream: str
    number: int
    position: int
    id: str
    type: str
    data: Any
    metadata: Any
    created_us: int

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Recorded:
        """From the API's form."""
        return cls(
            plain["event_stream_id"],
            plain["event_number"],
            plain["position"],
            plain["event_id"],
            plain["event_type"],
            value_of(plain, "data"),
            value_of(plain, "metadata"),
            plain["created_epoch"],
        )


@dataclass(frozen=True, slots=True)
class Appended:
    """Where events were stored. `idempotent` says that an earlier try had stored them."""

    positions: list[int]
    streams: dict[str, int]
    raft_index: int
    idempotent: bool


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events a reader or a follower wants; all of them by default."""

    types: tuple[str, ...] = ()
    stream_prefix: str = ""

    def query(self) -> list[tuple[str, str]]:
        """As parameters of the API."""
        query = [("type", one) for one in self.types]
        return [*query, ("stream_prefix", self.stream_prefix)] if self.stream_prefix else query


class Client(SnapshotCalls):
    """A client of one store of a cluster; see the module.

    `nodes` are addresses, `timeout_s` bounds every call with all its retries. Use it as an
    asynchronous context, on one event loop. Every method raises `ClientError`.
    """

    def __init__(
        self,
        *nodes: str,
        store: str = "my_store",
        timeout_s: float = 15.0,
        chance: random.Random | None = None,
    ) -> None:
        self.store = store
        self.seen_index = 0
        self._routing = Routing(nodes or ("127.0.0.1:8101",))
        self._timeout_s = timeout_s
        self._chance = chance or random.Random()
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        bounds = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        self._http = aiohttp.ClientSession(
            timeout=bounds, connector=aiohttp.TCPConnector(limit=0), read_bufsize=2**18
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()
        self._http = None

    # --- appending ---------------------------------------------------------------------------

    async def append(
        self,
        stream: str,
        events: Sequence[Event],
        expected_version: int | str = ANY,
        durability: str = "replicated",
    ) -> Appended:
        """Append events to a stream if it is where the writer expects it; all of them or none."""
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
        durability: str = "replicated",
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

    async def _append(self, path: str, body: Mapping[str, Any], durability: str) -> Appended:
        query = [("durability", durability)] if durability != "replicated" else []
        answer = await self._ask("POST", path, query, body)
        self.seen_index = max(self.seen_index, answer["raft_index"])
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

    async def read(self, after: int = 0, wanted: Filter | None = None) -> AsyncIterator[Recorded]:
        """The events of the store behind a position, up to its present end, in order."""
        query = [("limit", str(_PAGE_EVENTS)), *(wanted or Filter()).query()]
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

    async def _read(self, path: str, query: list[tuple[str, str]]) -> Any:
        return await self._ask("GET", path, [*query, ("min_index", str(self.seen_index))])

    # --- following ---------------------------------------------------------------------------

    def subscribe(
        self, after: int = 0, wanted: Filter | None = None, stream: str | None = None
    ) -> Subscription:
        """Every event behind `after`, and then every one that comes; see `Subscription`."""
        query = (wanted or Filter()).query()
        return Subscription(self, after, [*query, ("stream", stream)] if stream else query)

    # --- asking ------------------------------------------------------------------------------

    async def _ask(
        self, method: str, path: str, query: list[tuple[str, str]], body: Any = None
    ) -> Any:
        """The answer, from whichever node gives it; retried while that is safe and there is time.

        Everything that is asked may be repeated: appends are known by their event ids, and a
        snapshot that is recorded again replaces itself.
        """
        attempts = Attempts(self._timeout_s, self._chance)
        while True:
            url = await self._node(for_change=method != "GET")
            try:
                return await self._once(method, url, path, query, body, attempts.left_s())
            except (Unavailable, OutcomeUnknown) as error:
                self._routing.failed(url)
                await attempts.failed(error)
            except ClientError as error:
                error.stored = error.stored or attempts.perhaps_stored
                raise

    async def _once(
        self,
        method: str,
        url: str,
        path: str,
        query: list[tuple[str, str]],
        body: Any,
        left_s: float,
    ) -> Any:
        encoded = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"} if encoded else None
        query = [*query, ("timeout_ms", str(max(1, int(left_s * 1000))))]
        try:
            async with (
                asyncio.timeout(left_s + 0.5),  # the node's own answer to a time-out comes first
                self._session.request(
                    method, self._url(url, path), params=query, data=encoded, headers=headers
                ) as answer,
            ):
                content = await answer.read()
                # What was only done is told by how far the node has applied.
                done = {"raft_index": int(answer.headers.get("X-Applied-Index", 0))}
                found = msgspec.json.decode(content) if content else done
        except aiohttp.ClientConnectorError as error:
            raise Unavailable(f"{url}: {error}") from error
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            kind = Unavailable if method == "GET" else OutcomeUnknown
            raise kind(f"{url}: {error or type(error).__name__}") from error
        if answer.status >= 400:
            raise of_problem(answer.status, found)
        return found

    async def _node(self, for_change: bool) -> str:
        if for_change and self._routing.stale:
            url = self._routing.pick(for_append=False)
            try:
                async with (
                    asyncio.timeout(_CONNECT_S),
                    self._session.get(f"{url}/v1/cluster") as answer,
                ):
                    self._routing.learned(await answer.json())
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError):
                self._routing.failed(url)
        return self._routing.pick(for_change)

    def _url(self, node: str, path: str) -> str:
        return f"{node}/v1/stores/{self.store}{path}"

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise RuntimeError("use the client in an `async with` block")
        return self._http


class Attempts:
    """How long one call goes on trying, and what is known after each try."""

    def __init__(self, timeout_s: float, chance: random.Random) -> None:
        self.perhaps_stored = False
        self._until = asyncio.get_running_loop().time() + timeout_s
        self._chance = chance
        self._pause_s = _PAUSE_FIRST_S

    def left_s(self) -> float:
        """The time that is left, in seconds; at least a little, so that one try is made."""
        return max(0.05, self._until - asyncio.get_running_loop().time())

    async def failed(self, error: ClientError) -> None:
        """Pause before the next try. Raises the error that tells how it stands if time is over."""
        self.perhaps_stored = self.perhaps_stored or error.stored
        pause_s = self._pause_s * (0.5 + self._chance.random())
        if asyncio.get_running_loop().time() + pause_s >= self._until:
            if self.perhaps_stored:
                raise OutcomeUnknown(error.detail, "outcome_unknown", error.fields) from error
            raise error
        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
        await asyncio.sleep(pause_s)


class Subscription:
    """Events as they come: an asynchronous iterator that goes on at another node by itself.

    `position` is that of the last thing it was told, also where a filter let nothing through: what
    to pass as `after` to go on behind it later. `caught_up` is true while the end of the store, as
    the node knew it, is reached. It ends only where there is nothing more to follow (`NotFound`).
    """

    def __init__(self, client: Client, after: int, query: list[tuple[str, str]]) -> None:
        self.position = after
        self.caught_up = False
        self.connections = 0
        self._client = client
        self._query = query

    async def __aiter__(self) -> AsyncIterator[Recorded]:
        attempts = Attempts(float("inf"), self._client._chance)
        while True:
            url = self._client._routing.pick(for_append=False)
            try:
                async for event in self._from(url):
                    attempts = Attempts(float("inf"), self._client._chance)
                    yield event
                raise Unavailable(f"{url} ended the stream")
            except Unavailable as error:
                self.caught_up = False
                self._client._routing.failed(url)
                await attempts.failed(error)

    async def _from(self, url: str) -> AsyncIterator[Recorded]:
        """What one node sends, from where this subscription has got to."""
        client = self._client
        query = [*self._query, ("after", str(self.position))]
        bounds = aiohttp.ClientTimeout(sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
        try:
            async with client._session.get(
                client._url(url, "/subscribe"),
                params=query,
                headers={"Accept": "application/x-ndjson"},
                timeout=bounds,
            ) as answer:
                if answer.status != 200:
                    raise of_problem(answer.status, await answer.json(content_type=None))
                self.connections += 1
                async for line in _lines(answer.content):
                    said = msgspec.json.decode(line)
                    event = self._told(said)
                    if event is not None:
                        yield event
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            raise Unavailable(f"{url}: {error or type(error).__name__}") from error

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
