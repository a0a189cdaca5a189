"""One pipelined connection to one node: the WebSocket of a store, for who has much to say.

    async with connect("127.0.0.1:8101", "my_store") as pipeline:
        first = pipeline.append("order-7", [Event("OrderPlaced", {"total": 12})], NO_STREAM)
        second = pipeline.append("order-8", [Event("OrderPlaced", {"total": 30})])
        print((await first).positions, (await second).positions)
        async for said in pipeline.subscribe(after=0):
            print(said.kind, said.position, [recorded(one).type for one in said.records])

`append` sends without waiting and gives a future: thousands may be under way, and those of one turn
of the event loop share messages, as do their answers. What `node/api/socket_messages.py` documents
is all there is to it; `ask` and `tell` send any other request.

It is one connection to one node, and knows no other: when it is lost, everything under way ends in
`OutcomeUnknown` (appends) or `Unavailable`, and a subscription in `Unavailable`. It counts as lost,
too, where the node sends what cannot be read, or says nothing for a minute in which it was pinged
twice, as one that is frozen or behind a broken network. Going on elsewhere is its owner's business.
Repeat what is open over a WebSocket of another node, with the same events. Not through
`client.Client`: it sends JSON where this sends CBOR, which makes another event of it, and what was
stored already is then refused (`EventIdReused`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple
from uuid import UUID

import aiohttp
import cbor2
from aiohttp import WSMsgType

from cluster.client import Event, Recorded
from cluster.client_errors import ClientError, OutcomeUnknown, Unavailable, of_problem
from cluster.client_values import quoted

UNDER_WAY_MAX = 4_096
"""Requests without an answer; `append` refuses a further one, `room` waits until there is room."""

_MESSAGE_BYTES_MAX = 64 * 1024 * 1024
_TOGETHER_BYTES_MAX = 1024 * 1024  # a node ends who sends a message above its `body_bytes_max`
_CONNECT_S = 5.0
_CLOSE_S = 5.0
_PING_S = 15.0  # of silence, until the node is pinged, and again; then the connection is lost
_PINGS = 2
_EVENTS_WAITING_MAX = 10_000
_LAST = frozenset((WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR))

Then = Callable[[Any, Any], None]
"""Called with an answer's status and body; with 0 and an error where it never came. Before that, a
`consume` is called with "deliveries" and these, any number of times."""


class Stored(NamedTuple):
    """Where the events of an append are. `idempotent` says that an earlier try had stored them."""

    first_version: int
    last_version: int
    positions: list[int]
    raft_index: int
    idempotent: bool


class Said(NamedTuple):
    """What a subscription was told: "events" with `records`, "caught_up" or "checkpoint".

    Everything up to `position` has been seen or did not match. `recorded` opens a record.
    """

    kind: str
    position: int
    records: Sequence[Sequence[Any]]


def recorded(record: Sequence[Any]) -> Recorded:
    """A record of a subscription, opened: its data and metadata are decoded here."""
    position, number, created_us, stream, event = record
    _, event_id, event_type, _, _, data, metadata = event
    return Recorded(
        *(stream, number, position, str(UUID(bytes=event_id)), event_type),
        *(cbor2.loads(data), cbor2.loads(metadata), created_us),
    )


def encoded(event: Event) -> dict[str, Any]:
    """An event as it travels: its values are encoded here, and not touched by the node."""
    plain: dict[str, Any] = {"event_type": event.type, "event_id": UUID(event.id).bytes}
    if event.data is not None:
        plain["data_cbor"] = cbor2.dumps(event.data)
    if event.metadata is not None:
        plain["metadata_cbor"] = cbor2.dumps(event.metadata)
    return plain


@asynccontextmanager
async def connect(address: str, store: str) -> AsyncIterator[Pipeline]:
    """Open a pipeline to the node at `address` (host:port or URL). Raises `ClientError`."""
    base = address if "://" in address else f"http://{address}"
    async with aiohttp.ClientSession() as session:
        try:
            async with asyncio.timeout(_CONNECT_S):
                socket = await session.ws_connect(
                    f"{base}/v1/stores/{quoted(store)}/ws",
                    max_msg_size=_MESSAGE_BYTES_MAX,
                    autoping=False,  # it would keep the signs of life to itself
                )
        except (aiohttp.ClientError, TimeoutError) as error:
            status = getattr(error, "status", 503)
            raise of_problem(status, {"detail": f"no WebSocket at {base}: {error}"}) from None
        pipeline = Pipeline(socket)
        try:
            yield pipeline
        finally:
            await pipeline.close()


class Pipeline:
    """Requests and their answers over one connection; made by `connect`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count()
        self._asked: dict[int, Then] = {}
        self._subscriptions: dict[int, Subscription] = {}
        self._unsent: list[Sequence[Any]] = []
        self._more = asyncio.Event()
        self._answered = asyncio.Event()
        self._heard = False  # anything at all, since `_watch` looked last
        self._listens = True
        self._lost: str | None = None
        work = self._write(), self._read(), self._watch()
        self._tasks = [asyncio.create_task(one) for one in work]

    @property
    def under_way(self) -> int:
        """How many requests have no answer yet."""
        return len(self._asked)

    # --- asking -----------------------------------------------------------------------------

    def append(
        self,
        stream: str,
        events: Sequence[Event],
        expected_version: int | str | None = None,
        durability: str | None = None,
        timeout_ms: int | None = None,
    ) -> asyncio.Future[Stored]:
        """Append to a stream; the future ends in what was stored, or in a `ClientError`."""
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()

        def then(status: int, body: Any) -> None:
            if future.done():
                return
            if status in (200, 201):
                first, last, positions, index = body
                future.set_result(Stored(first, last, positions, index, status == 200))
            elif status:
                future.set_exception(of_problem(status, body))
            else:
                future.set_exception(OutcomeUnknown(body))

        plain = [encoded(event) for event in events]
        self.ask(then, "append", stream, plain, expected_version, durability, timeout_ms)
        return future

    async def read(self, stream: str | None = None, **options: Any) -> Mapping[str, Any]:
        """A page of a stream or, without one, of the store. Raises `ClientError`."""
        page: Mapping[str, Any] = await self._answer("read", stream, options)
        return page

    async def ping(self) -> None:
        """Return when the node has answered. Raises `ClientError`."""
        await self._answer("ping")

    def subscribe(self, credit: int | None = None, **options: Any) -> Subscription:
        """Follow the store; `options` are those of the HTTP route, such as `after` and `type`.

        With `credit`, the node sends no more than so many events until more is given.
        """
        subscription = Subscription(self, next(self._ids), credit)
        if self._lost is not None:
            subscription.end(0, self._lost)
        else:
            self._subscriptions[subscription.id] = subscription
            self.tell("subscribe", subscription.id, options, credit)
        return subscription

    async def room(self) -> None:
        """Return when fewer than UNDER_WAY_MAX requests are under way. Raises `Unavailable`."""
        while len(self._asked) >= UNDER_WAY_MAX:
            self._answered.clear()
            await self._answered.wait()
        self._check()

    def ask(self, then: Then, kind: str, *fields: Any) -> int:
        """Send a request; `then` is called with its answer. Raises `Unavailable`, unsent.

        Its id, by which `tell` gives credit to a `consume`, or cancels it.
        """
        self._check()
        if len(self._asked) >= UNDER_WAY_MAX:
            raise Unavailable(f"{UNDER_WAY_MAX} requests are under way")
        request_id = next(self._ids)
        self._asked[request_id] = then
        self.tell(kind, request_id, *fields)
        return request_id

    def tell(self, kind: str, request_id: int, *fields: Any) -> None:
        """Send a request whose answer, if any, belongs to something that is under way."""
        self._unsent.append((kind, request_id, *fields))
        self._more.set()

    async def _answer(self, kind: str, *fields: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def then(status: int, body: Any) -> None:
            if not future.done():
                if status == 200:
                    future.set_result(body)
                else:
                    problem = body if status else {"detail": body}
                    future.set_exception(of_problem(status or 503, problem))

        self.ask(then, kind, *fields)
        return await future

    def _check(self) -> None:
        if self._lost is not None:
            raise Unavailable(self._lost)

    # --- the connection -----------------------------------------------------------------------

    async def close(self) -> None:
        """Close the connection; what is under way ends as if it had been lost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):  # who is frozen does not take it
                await self._socket.close()
        self._end("the connection was closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _write(self) -> None:
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                requests, self._unsent = self._unsent, []
                for message in self._messages(requests):
                    await self._socket.send_bytes(message)
        except ConnectionError as error:
            self._end(f"the connection was lost: {error}")

    def _messages(self, requests: Iterable[Sequence[Any]]) -> Iterator[bytes]:
        """Messages that hold them in order, but those that cannot be written, which end unsent."""
        written: list[bytes] = []
        size = 0
        for request in requests:
            try:
                one = cbor2.dumps(request)
            except Exception as error:  # whatever a program gave us
                words = f"cannot be written as CBOR: {error}"
                self._take(request[1], 400, {"code": "invalid_request", "detail": words})
                continue
            if written and size + len(one) > _TOGETHER_BYTES_MAX:
                yield _array(written)
                written, size = [], 0
            written.append(one)
            size += len(one)
        if written:
            yield _array(written)

    async def _read(self) -> None:
        try:
            while (message := await self._socket.receive()).type not in _LAST:
                self._heard = True
                if message.type is WSMsgType.PING:
                    await self._socket.pong(message.data)
                elif message.type is WSMsgType.BINARY:
                    await self._hear(message.data)
            self._end(f"the node closed the connection (code {self._socket.close_code})")
        except ConnectionError as error:
            self._end(f"the connection was lost: {error}")
        except Exception as error:  # whatever stands where a node should may have said
            self._end(f"the node sent what cannot be read: {error!r}")

    async def _hear(self, message: bytes) -> None:
        for request_id, *answer in cbor2.loads(message):
            self._take(request_id, *answer)
        self._answered.set()
        self._listens = False
        for subscription in list(self._subscriptions.values()):
            await subscription.room()
        self._listens = self._heard = True

    async def _watch(self) -> None:
        """End everything where the node gives no sign of life while it is listened to."""
        missed = 0
        while missed <= _PINGS:
            self._heard = False
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(_PING_S):
                    if missed:
                        await self._socket.ping()  # which waits where the node takes nothing
                    await asyncio.sleep(_PING_S)
            missed = 0 if self._heard or not self._listens else missed + 1
        self._end("the node says nothing any more")

    def _take(self, request_id: int, status: Any, body: Any) -> None:
        is_last = type(status) is int
        then = self._asked.pop(request_id, None) if is_last else self._asked.get(request_id)
        if then is not None:
            try:
                then(status, body)
            except Exception:
                self._asked[request_id] = then  # it has no answer, and ends with all else
                raise
        elif (subscription := self._subscriptions.get(request_id)) is not None:
            if is_last:
                del self._subscriptions[request_id]
                subscription.end(status, body)
            else:
                subscription.add(status, body)

    def _end(self, words: str) -> None:
        if self._lost is not None:
            return
        self._lost = words
        asked, self._asked = self._asked, {}
        for then in asked.values():
            then(0, words)
        subscriptions, self._subscriptions = self._subscriptions, {}
        for subscription in subscriptions.values():
            subscription.end(0, words)
        self._answered.set()


class Subscription:
    """What a subscription is told, as an asynchronous iterator of `Said`.

    It ends after `cancel`; for any other reason it raises `ClientError`. Whoever does not read on
    stops the whole connection at `_EVENTS_WAITING_MAX` events that wait to be taken.
    """

    def __init__(self, pipeline: Pipeline, subscription_id: int, credit: int | None) -> None:
        self.id = subscription_id
        self._pipeline = pipeline
        self._said: deque[Said] = deque()
        self._waiting = 0
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._ended = False
        self._error: ClientError | None = None

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Said:
        while not self._said:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        said = self._said.popleft()
        self._waiting -= len(said.records)
        self._taken.set()
        return said

    def add_credit(self, events: int) -> None:
        """Let the node send so many events more."""
        self._pipeline.tell("credit", self.id, events)

    def cancel(self) -> None:
        """End it; what the node has sent before is still given."""
        self._pipeline.tell("cancel", self.id)

    def add(self, kind: str, body: Any) -> None:
        """Called with what the node says."""
        if kind == "events":
            self._said.append(Said(kind, body[-1][0], body))
            self._waiting += len(body)
        else:
            self._said.append(Said(kind, body, ()))
        self._changed.set()

    def end(self, status: int, body: Any) -> None:
        """Called when nothing more comes."""
        self._ended = True
        if status != 200:
            self._error = of_problem(status, body) if status else Unavailable(body)
        self._changed.set()
        self._taken.set()

    async def room(self) -> None:
        """Return when not too much waits to be taken."""
        while self._waiting >= _EVENTS_WAITING_MAX and not self._ended:
            self._taken.clear()
            await self._taken.wait()


def _array(items: Sequence[bytes]) -> bytes:
    """One CBOR array of what is encoded already."""
    return b"\x9a" + len(items).to_bytes(4, "big") + b"".join(items)
