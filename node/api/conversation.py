"""One client's WebSocket: requests are taken in order, answers are sent as they come.

The task of the connection reads: it takes a message apart (`socket_messages`) and starts what each
request asks for. An append costs no task: its outcome is a future, and what it calls back adds an
answer to those of this turn of the event loop, which leave as one message at its end. A read and a
subscription are a task each.

What is under way is counted and bounded: at `socket_requests_max` requests, or while the client
does not take its answers, the task does not read on. A subscription that would be one too many is
refused. Pages and batches of events are sent one after the other, each when there is room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import cbor2
from aiohttp import WSCloseCode

from node.api import problems
from node.api.appends import refused
from node.api.framing import SLICE_EVENTS
from node.api.gathering import Gathering
from node.api.limits import ApiLimits
from node.api.names import checked_name
from node.api.not_plain import NotPlain
from node.api.pacing import Pacer
from node.api.ports import OnDisk
from node.api.settlements import ACTIONS, Settlements, Stale, deliveries_of, settled_body
from node.api.socket_appends import Prepared, PreparedMany, SocketAppends
from node.api.socket_consumers import Consumption
from node.api.socket_feeds import Feed
from node.api.socket_messages import (
    Ack,
    Append,
    AppendMany,
    Cancel,
    Consume,
    Credit,
    Misfit,
    Nack,
    Read,
    Request,
    Subscribe,
    message_of,
    requests,
)
from node.api.sockets import Broken, Socket
from node.api.wire import logger
from node.core.outcomes import Appended, Outcome
from node.core.subscription_commands import ACK
from node.errors import ExesdbError, InvalidRequest, NotReady, Overloaded

_SETTLE_MS = 5_000
_PACE_REQUESTS = 32  # so many are taken between two looks at the clock


class Shared(Protocol):
    """What all conversations of a node have in common."""

    limits: ApiLimits
    gathering: Gathering
    on_disk: OnDisk
    appends: SocketAppends
    settlements: Settlements
    requests_taken: int

    async def page(self, store: str, request: Read) -> tuple[int, bytes]:
        """Status and encoded body of a read. Raises `ExesdbError`."""
        ...

    async def feed(
        self, store: str, request: Subscribe, send: Callable[[bytes], Awaitable[None]]
    ) -> Feed:
        """The feed that a subscription asks for. Raises `ExesdbError`."""
        ...

    def consumption(
        self, store: str, request: Consume, socket: Socket, send: Callable[[bytes], Awaitable[None]]
    ) -> Consumption:
        """What a consumer asks for. Raises the same."""
        ...

    async def follow(self, source: Feed | Consumption) -> None:
        """Run one until it is cancelled, counted among those who follow. Raises the same."""
        ...


class _Followed:
    """A subscription of a conversation; its source is there once it has begun."""

    __slots__ = ("credit", "source", "task")

    def __init__(self, source: Feed | Consumption | None = None) -> None:
        self.source = source
        self.task: asyncio.Task[None] | None = None
        self.credit = 0

    def add_credit(self, events: int) -> None:
        """Hand it on, also to a feed that is still to begin."""
        if self.source is None:
            self.credit += events
        else:
            self.source.add_credit(events)

    def stop(self) -> None:
        """It is about to end, because somebody wants it so."""
        if self.source is not None:
            self.source.stop()


class Conversation:
    """What is said on one WebSocket, about one store."""

    def __init__(self, shared: Shared, store: str, socket: Socket) -> None:
        self._shared = shared
        self._store = store
        self._socket = socket
        self._answers: list[bytes] = []  # encoded
        self._under_way = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._feeds: dict[int, _Followed] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reads = asyncio.Semaphore(shared.limits.socket_reads_max)
        self._sending = asyncio.Lock()
        self._pacer = Pacer()
        self._stopping = False
        self._over = asyncio.Event()

    # --- from the first message to the last ----------------------------------------------------

    async def run(self) -> None:
        """Talk until the client leaves, breaks a rule, or the node stops."""
        socket, limits = self._socket, self._shared.limits
        alive = asyncio.create_task(self._watch())
        try:
            while (message := await socket.read()) is not None:
                await self._take(message)
            socket.close(WSCloseCode.OK)
        except Broken as broken:
            await self._bye(broken.code, str(broken))
        except ConnectionError:
            pass
        except Exception:
            logger.exception("a WebSocket failed")
            await self._bye(WSCloseCode.INTERNAL_ERROR, "an unexpected error")
        finally:
            alive.cancel()
            ending = [*self._tasks, alive]
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(ending, timeout=limits.linger_s)
            self._over.set()

    async def stop(self) -> None:
        """Let what is under way end within `stop_s`, and close."""
        limits = self._shared.limits
        self._stopping = True
        for followed in self._feeds.values():
            followed.stop()
        try:
            async with asyncio.timeout(limits.stop_s / 2):
                if self._under_way:
                    await self._until_fewer_than(1)
                if self._tasks:
                    await asyncio.wait(self._tasks)
        except TimeoutError:
            pass  # what is not answered now has an outcome that this client does not learn
        self._flush()
        try:
            self._socket.close(WSCloseCode.GOING_AWAY, "this node is stopping; go on elsewhere")
            async with asyncio.timeout(limits.linger_s):
                await self._over.wait()
        except (TimeoutError, ConnectionError):
            self._socket.abort()

    async def _bye(self, code: int, words: str) -> None:
        self._flush()
        with suppress(ConnectionError):
            self._socket.close(code, words)
            await self._socket.closed(self._shared.limits.linger_s)

    async def _watch(self) -> None:
        """Cut the connection if the client gives no sign of life."""
        missed, limits, socket = 0, self._shared.limits, self._socket
        while True:
            heard = socket.heard
            await asyncio.sleep(limits.ping_s)
            waits_for_us = bool(self._waiting)
            if socket.heard != heard or waits_for_us:
                missed = 0
            elif missed == 2:
                socket.abort()
                return
            else:
                missed += 1
                socket.ping()

    # --- taking requests -----------------------------------------------------------------------

    async def _take(self, message: bytes) -> None:
        limits, appends = self._shared.limits, self._shared.appends
        try:
            found = await requests(message, limits.nesting_max)
        except NotPlain as error:
            raise Broken(WSCloseCode.INVALID_TEXT, str(error)) from None
        plain = appends.are_plain(found)
        self._shared.requests_taken += len(found)
        for number, request in enumerate(found, 1):
            if self._under_way >= limits.socket_requests_max:
                await self._until_fewer_than(max(1, limits.socket_requests_max // 2))
            if self._socket.is_full:
                await self._socket.room()
            if plain and type(request) is Append and len(request.events) <= SLICE_EVENTS:
                self._append_at_once(request)
            else:
                await self._begin(request, plain)
            if number % _PACE_REQUESTS == 0:
                await self._pacer.breathe()

    async def _begin(self, request: Request | Misfit, plain: bool) -> None:
        request_id = request.id
        try:
            if type(request) is Append or type(request) is AppendMany:
                await self._append(request, plain)
            elif type(request) is Read:
                self._start(request_id, partial(self._read, request))
            elif type(request) is Ack or type(request) is Nack:
                self._settle(request)
            elif type(request) is Subscribe:
                self._subscribe(request)
            elif type(request) is Consume:
                self._consume(request)
            elif type(request) is Credit or type(request) is Cancel:
                self._steer(request)
            elif type(request) is Misfit:
                raise request.error
            else:
                self._say((request_id, 200, None))
        except ExesdbError as error:
            self._refuse(request_id, error)

    # --- appending -----------------------------------------------------------------------------

    def _append_at_once(self, request: Append) -> None:
        """Append few events to one stream: most requests are this, and so it costs no task."""
        try:
            prepared, frames = self._shared.appends.prepared_at_once(self._store, request)
            self._propose(request.id, prepared, frames)
        except ExesdbError as error:
            self._refuse(request.id, error)

    async def _append(self, request: Append | AppendMany, plain: bool) -> None:
        prepared, proposal = await self._shared.appends.prepared(self._store, request, plain)
        self._propose(request.id, prepared, proposal)

    def _propose(
        self, request_id: int, prepared: Prepared | PreparedMany, proposal: Sequence[bytes]
    ) -> None:
        if self._stopping:
            raise NotReady("this node is stopping; go on at another one")
        then = partial(self._resolved, request_id, prepared)
        prepared.propose(self._shared.gathering, self._store, proposal, then)
        self._under_way += 1

    def _resolved(
        self,
        request_id: int,
        prepared: Prepared | PreparedMany,
        outcome: Outcome | BaseException,
        index: int,
    ) -> None:
        """The outcome of an append is known."""
        self._is_done()
        if type(outcome) is Appended:
            answer = prepared.answer(request_id, outcome, index)
            if prepared.durable:
                self._start(request_id, partial(self._on_disk, answer, index, prepared))
            else:
                self._say_encoded(answer)
        elif isinstance(outcome, ExesdbError):
            self._refuse(request_id, outcome)
        elif isinstance(outcome, BaseException):
            logger.error("an append over a WebSocket failed", exc_info=outcome)
            self._refuse(request_id, problems.internal())
        else:
            self._refuse(request_id, refused(outcome, prepared.checks))

    async def _on_disk(self, answer: bytes, index: int, prepared: Prepared | PreparedMany) -> None:
        await self._shared.on_disk(index, prepared.timeout_ms)
        self._say_encoded(answer)

    # --- reading -------------------------------------------------------------------------------

    async def _read(self, request: Read) -> None:
        async with self._reads:
            status, body = await self._shared.page(self._store, request)
            await self._send(b"\x83%b%b%b" % (cbor2.dumps(request.id), cbor2.dumps(status), body))

    def _subscribe(self, request: Subscribe) -> None:
        self._admit(request.id)
        followed = _Followed()
        self._begin_following(request.id, followed, partial(self._follow, request, followed))

    def _consume(self, request: Consume) -> None:
        self._admit(request.id)
        source = self._shared.consumption(self._store, request, self._socket, self._send)
        self._begin_following(request.id, _Followed(source), partial(self._shared.follow, source))

    def _admit(self, request_id: int) -> None:
        limit = self._shared.limits.socket_feeds_max
        if request_id in self._feeds:
            raise InvalidRequest(f"a subscription {request_id} is under way")
        if len(self._feeds) >= limit:
            raise Overloaded(f"{limit} subscriptions on this connection", limit="socket_feeds_max")

    def _begin_following(
        self, request_id: int, followed: _Followed, work: Callable[[], Awaitable[None]]
    ) -> None:
        self._feeds[request_id] = followed
        answered = self._answered(request_id, work)
        followed.task = self._run(answered, partial(self._followed, request_id, followed))

    async def _follow(self, request: Subscribe, followed: _Followed) -> None:
        feed = followed.source = await self._shared.feed(self._store, request, self._send)
        feed.add_credit(followed.credit)
        if self._stopping:
            feed.stop()
        await self._shared.follow(feed)

    def _followed(self, request_id: int, followed: _Followed, task: asyncio.Task[None]) -> None:
        """A subscription has ended."""
        del self._feeds[request_id]
        if task.cancelled():
            source = followed.source
            words = {"position": None} if source is None else source.last_words()
            self._say((request_id, 200, words))

    def _steer(self, request: Credit | Cancel) -> None:
        """Give a subscription credit, or end it. One that has ended meanwhile needs neither."""
        followed = self._feeds.get(request.id)
        if followed is None:
            return
        if type(request) is Credit:
            followed.add_credit(request.events)
        elif followed.task is not None:
            followed.stop()
            followed.task.cancel()

    # --- settling ------------------------------------------------------------------------------

    def _settle(self, request: Ack | Nack) -> None:
        action = ACTIONS[request.action] if isinstance(request, Nack) else ACK
        name = checked_name(request.name, "subscription")
        deliveries = deliveries_of(request.delivery_ids)
        timeout_ms = min(_SETTLE_MS, self._shared.limits.timeout_ms_max)
        stale = self._shared.settlements.settle(self._store, name, deliveries, action, timeout_ms)
        for followed in self._feeds.values():
            if isinstance(followed.source, Consumption):
                followed.source.heard(name)
        self._under_way += 1
        stale.add_done_callback(partial(self._settled, request))

    def _settled(self, request: Ack | Nack, resolved: Stale) -> None:
        """What became of deliveries is known."""
        self._is_done()
        try:
            answer = settled_body(request.delivery_ids, resolved.result())
        except ExesdbError as error:
            self._refuse(request.id, error)
        except Exception:
            logger.exception("settling over a WebSocket failed")
            self._refuse(request.id, problems.internal())
        else:
            self._say((request.id, 200, answer))

    # --- what is under way ---------------------------------------------------------------------

    def _start(self, request_id: int, work: Callable[[], Awaitable[None]]) -> None:
        """Have a task do what a request asks for; it counts as under way until it is done."""
        self._under_way += 1
        self._run(self._answered(request_id, work), lambda _: self._is_done())

    def _run(
        self, work: Coroutine[Any, Any, None], ended: Callable[[asyncio.Task[None]], None]
    ) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(ended)
        return task

    async def _answered(self, request_id: int, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()  # not before: a task that is cancelled at once does nothing
        except ExesdbError as error:
            self._refuse(request_id, error)
        except ConnectionError:
            pass  # nobody is left to tell
        except Exception:
            logger.exception("a request over a WebSocket failed")
            self._refuse(request_id, problems.internal())

    def _is_done(self) -> None:
        self._under_way -= 1
        if self._waiting:
            for count, future in self._waiting:
                if self._under_way < count and not future.done():
                    future.set_result(None)

    async def _until_fewer_than(self, count: int) -> None:
        """Return when fewer requests than these are under way."""
        waits = count, asyncio.get_running_loop().create_future()
        self._waiting.append(waits)
        try:
            await waits[1]
        finally:
            self._waiting.remove(waits)

    # --- answering -----------------------------------------------------------------------------

    def _refuse(self, request_id: int, error: ExesdbError) -> None:
        self._say((request_id, error.status, problems.members(error)))

    def _say(self, answer: Any) -> None:
        self._say_encoded(cbor2.dumps(answer))

    def _say_encoded(self, answer: bytes) -> None:
        """Add an answer to those of this turn of the event loop."""
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._flush)
        self._answers.append(answer)

    def _flush(self) -> None:
        answers, self._answers = self._answers, []
        if answers:
            with suppress(ConnectionError):  # the reading task will notice
                self._socket.send(message_of(answers))

    async def _send(self, answer: bytes) -> None:
        """Send an encoded answer of its own when there is room for it."""
        async with self._sending:
            await self._socket.room()
            self._socket.send(b"\x81" + answer)
