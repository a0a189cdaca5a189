"""The WebSocket route, and what all conversations over it share.

    GET /v1/stores/{store}/ws

The request is an upgrade (`sockets.accepted`); after it the connection belongs to a `Conversation`
until it ends. `socket_messages` has what is said. Reads are answered by the same code as over HTTP,
with the options of the request as its query parameters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from aiohttp.http import HttpVersion11

from node.api.answers import Answer
from node.api.appends import Appends
from node.api.bodies import BodyReader
from node.api.conversation import Conversation
from node.api.desks import Desks
from node.api.following import Following, start
from node.api.gathering import Gathering
from node.api.known_heads import KnownHead, WholeBody
from node.api.levels import UNKNOWN_STORE_MS, Levels
from node.api.limits import ApiLimits
from node.api.media import CBOR
from node.api.names import checked_name
from node.api.ports import Clock, OnDisk
from node.api.reads import Reads
from node.api.routes import Reply, Route
from node.api.socket_appends import SocketAppends
from node.api.socket_consumers import Consumption
from node.api.socket_feeds import Feed
from node.api.socket_messages import Consume, Read, Subscribe
from node.api.sockets import Socket, accepted
from node.api.wanted import wanted
from node.api.wire import Connection, Request, TakenOver
from node.errors import (
    InvalidRequest,
    NoLeader,
    NotReady,
    Overloaded,
    ReadBarrierTimeout,
    StoreMissing,
    UpgradeRequired,
)

_HEAD = KnownHead("GET", "", HttpVersion11, {}, False)


class Talks:
    """The route, its conversations, and what they ask of the rest of the API."""

    def __init__(
        self,
        gathering: Gathering,
        on_disk: OnDisk,
        clock: Clock,
        levels: Levels,
        bodies: BodyReader,
        limits: ApiLimits,
        appends: Appends,
        reads: Reads,
        following: Following,
        desks: Desks,
    ) -> None:
        self.limits = limits
        self.gathering = gathering
        self.on_disk = on_disk
        self.appends = SocketAppends(appends, clock, limits)
        self.requests_taken = 0
        self.conversations: set[Conversation] = set()
        self._levels = levels
        self._bodies = bodies
        self._reads = reads
        self._following = following
        self._desks = desks
        self.settlements = desks.settlements
        self._of_stream, self._of_store = _named(
            reads.routes(), "streams/{stream}/events", "events"
        )
        (self._subscribe,) = _named(following.routes(), "subscribe")

    def routes(self) -> list[Route]:
        """What this family offers."""
        return [
            Route(
                "GET",
                "/v1/stores/{store}/ws",
                self.open,
                "Appends, reads and subscriptions over a WebSocket, in CBOR.",
                (Reply(101, "The connection speaks WebSocket from here on.", types=()),),
                problems=(
                    *(UpgradeRequired, StoreMissing, Overloaded, NotReady),
                    *(NoLeader, ReadBarrierTimeout),
                ),
            )
        ]

    async def open(self, request: Request, name: str) -> Answer:
        """`GET /v1/stores/{store}/ws`."""
        lines = accepted(request)
        await self._levels.known(name, UNKNOWN_STORE_MS)
        if self._following.arrivals.stopped:
            raise NotReady("this node is stopping")
        limit = self.limits.sockets_max
        if len(self.conversations) >= limit:
            raise Overloaded(f"{limit} WebSockets are open already", limit="sockets_max")

        async def talk(connection: Connection) -> None:
            socket = Socket(connection, self.limits, self._bodies.arrived)
            conversation = Conversation(self, name, socket)
            self.conversations.add(conversation)
            try:
                await conversation.run()
            finally:
                self.conversations.discard(conversation)

        return TakenOver(lines, talk)

    async def stop(self) -> None:
        """Close all conversations, within `stop_s`."""
        stopping = [asyncio.create_task(each.stop()) for each in self.conversations]
        if stopping:
            await asyncio.wait(stopping, timeout=self.limits.stop_s)

    # --- for conversations ---------------------------------------------------------------------

    async def page(self, store: str, request: Read) -> tuple[int, bytes]:
        """A page of a stream or of the store, as over HTTP: status and encoded body."""
        if "wait_ms" in request.options:
            raise InvalidRequest("wait_ms: not offered here; subscribe", parameter="wait_ms")
        if request.stream is None:
            answer = await self._reads.store(_request(self._of_store, request.options), store)
        else:
            stream = checked_name(request.stream, "stream")
            asked = _request(self._of_stream, request.options)
            answer = await self._reads.stream(asked, store, stream)
        return answer.status, answer.body

    async def feed(
        self, name: str, request: Subscribe, send: Callable[[bytes], Awaitable[None]]
    ) -> Feed:
        """The feed that a subscription asks for."""
        asked = _request(self._subscribe, request.options)
        store = await self._levels.store(asked, name)
        self._following.admit()
        after = start(asked, store)
        return Feed(
            *(request.id, self._following, store, wanted(asked.parameters)),
            *(after, request.credit, send),
        )

    def consumption(
        self, name: str, request: Consume, socket: Socket, send: Callable[[bytes], Awaitable[None]]
    ) -> Consumption:
        """What a consumer asks for. Raises `InvalidRequest`, `Overloaded`, `NotReady`."""
        checked_name(request.name, "subscription")
        checked_name(request.consumer, "consumer")
        self._following.admit()
        return Consumption(request, self._desks, name, socket, send)

    async def follow(self, source: Feed | Consumption) -> None:
        """Run a feed or a consumption, counted among those who follow."""
        self._following.followers += 1
        try:
            await source.run()
        finally:
            self._following.followers -= 1


def _named(routes: Iterable[Route], *ends: str) -> list[Route]:
    found = {route.path.removeprefix("/v1/stores/{store}/"): route for route in routes}
    return [found[end] for end in ends]


def _request(route: Route, options: Mapping[str, Any]) -> Request:
    """A request of a route, as if it had come over HTTP with the options as its query."""
    pairs = [
        (name, _text(name, value))
        for name, given in options.items()
        for value in (given if type(given) is list else [given])
    ]
    request = Request(_HEAD, WholeBody(b""), None)
    request.wants = CBOR
    request.parameters = route.values(urlencode(pairs))
    return request


def _text(name: str, value: Any) -> str:
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is str or (type(value) is int and value.bit_length() < 64):
        return str(value)
    raise InvalidRequest(f"{name}: must be text, an integer, true or false", parameter=name)
