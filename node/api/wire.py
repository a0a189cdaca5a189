"""The seam to aiohttp's server: with `sockets`, all that goes below its public doors.

A request in aiohttp costs about 40 us of computing with `web.Application`, a third of it for HTTP
itself. The rest goes into objects that this API has no use for: URLs, resolvers, a task and a
writer a request, header multidicts of responses that are serialised at once. So we keep aiohttp's
connection (parser, keep-alive, pipelining, flow control, shutdown) and put three small objects in
place of its own, which takes away more than half of the cost:

`Request`     what the parser delivered, nothing more; often not even parsed (`known_heads`)
`Answer`      writes itself, in one piece, or as it comes (see `answers`)
`Connection`  a `RequestHandler` with its own loop over the requests of a connection

What `Connection` relies on, beyond the public API of aiohttp 3.14 (`tests/api/test_wire.py` fails
when an upgrade moves any of it). It was written beside `RequestHandler.start`, and whoever upgrades
reads the two side by side:

* the parser appends (message, payload) to `_messages` and completes `_waiter`; what it could not
  read comes as a message that is not a `RawRequestMessage`, with the parser's words in `message`;
* `_parser.message_consumed()` and `_resume_reading_if_drained()` let the parser go on;
* `_current_request._cancel(error)` is called when the connection is lost in between, and `_manager`
  is None from then on;
* `shutdown` waits for `_handler_waiter` while `_request_in_progress`, then for `_task_handler`;
* `eof_received` lets the connection close, by saying nothing;
* `_process_keepalive` closes an idle connection at `_next_keepalive_close_time`;
* `resume_reading` has work to do only while `_reading_paused` is set;
* `_drain_helper()` waits while `writing_paused`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.http import HttpVersion10, RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler, RequestPayloadError
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from node.api.answers import Answer, Head, Heads, Streamed
from node.api.known_heads import KnownHead, KnownHeads, WholeBody
from node.api.limits import ApiLimits
from node.api.media import JSON, Media
from node.api.outbox import Outbox
from node.api.parameters import Values
from node.api.streamed import Outflow

logger = logging.getLogger("node.api")

# Who says no more may still take an answer: in this time one comes, unless something is amiss.
_MOMENT_S = 0.25

Body = StreamReader | WholeBody


class Request:
    """One request: what the parser delivered, and what routing made of it.

    `wants` is the media of the answer, `parameters` the values of the route's query parameters.
    `on_gone` is called once if the client leaves before the answer; a waiting read sets it.
    """

    __slots__ = ("_connection", "message", "on_gone", "parameters", "payload", "wants")

    def __init__(self, message: Head, payload: Body, connection: Connection | None) -> None:
        self.message = message
        self.payload = payload
        self.wants: Media = JSON
        self.parameters: Values = {}
        self.on_gone: Callable[[], object] | None = None
        self._connection = connection

    def say_continue(self) -> None:
        """Tell a client that waits for it (`Expect: 100-continue`) to send the body."""
        expect = self.message.headers.get("Expect")
        connection = self._connection
        if connection is None or expect is None or expect.lower() != "100-continue":
            return
        if connection.transport is not None:
            connection.outbox.flush()
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    @property
    def is_gone(self) -> bool:
        """Whether the client has left, or may have, since it says no more. It may have done so
        before `on_gone` could be set.
        """
        connection = self._connection
        return connection is not None and (connection.transport is None or connection.ended)

    @contextmanager
    def while_there(self) -> Iterator[None]:
        """What is waited for within is waited for no longer than the client is there.

        One that has ended its side has a moment more. Where it does so later, or has left, the
        request is cancelled: it must have nothing to undo.
        """
        task = asyncio.current_task()
        assert task is not None
        timer = task.get_loop().call_later(_MOMENT_S, self._end_with_client, task)
        try:
            yield
        finally:
            timer.cancel()
            self.on_gone = None

    def _end_with_client(self, task: asyncio.Task[Any]) -> None:
        if self.is_gone:
            task.cancel()
        else:
            self.on_gone = task.cancel

    def _cancel(self, error: BaseException) -> None:
        """The connection is lost: whoever reads the body, or waits to answer, ends."""
        self.payload.set_exception(error)
        if self.on_gone is not None:
            self.on_gone()


# Stands in for the head of a request that could not be parsed.
_UNPARSED = RawRequestMessage(
    "UNKNOWN",
    "/",
    HttpVersion10,
    CIMultiDictProxy(CIMultiDict()),
    (),
    True,
    None,
    False,
    False,
    URL("/"),
)


class TakenOver(Answer):
    """Gives the connection to another protocol: `talk` has it until it returns; then it ends."""

    __slots__ = ("talk",)

    def __init__(self, lines: bytes, talk: Callable[[Connection], Awaitable[None]]) -> None:
        super().__init__(HTTPStatus.SWITCHING_PROTOCOLS, lines=lines, close=True)
        self.talk = talk


Respond = Callable[[Request], Awaitable[Answer]]


class Connection(RequestHandler):
    """One client's connection: its requests are answered one after the other.

    Past `connections_max` a new connection is given what `crowded` makes, and closed. What cannot
    be parsed is answered with what `refusal` makes of the parser's words.
    """

    __slots__ = (
        "_body_missing",
        "_crowded",
        "_endless",
        "_eof_timer",
        "_heads",
        "_known",
        "_limits",
        "_refusal",
        "_respond",
        "_server",
        "ended",
        "outbox",
    )

    def __init__(
        self,
        server: web.Server,
        limits: ApiLimits,
        heads: Heads,
        outbox: Outbox,
        known: KnownHeads,
        respond: Respond,
        refusal: Callable[[str], Answer],
        crowded: Callable[[], Answer],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=limits.idle_s,
            max_line_size=limits.head_line_bytes_max,
            max_field_size=limits.head_line_bytes_max,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]  # what aiohttp itself passes for "none"
            logger=logger,
        )
        self._limits = limits
        self._heads = heads
        self.outbox = outbox
        self._known = known
        # Bytes of the newest request's body that have not come; None once that is not known.
        self._body_missing: int | None = 0
        self.ended = False  # the client has said all it will
        self._eof_timer: asyncio.TimerHandle | None = None
        self._endless = False  # an answer without an end is under way
        self._respond = respond
        self._refusal = refusal
        self._crowded = crowded
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._is_one_too_many() and self.transport:
            self._crowded().write(self.transport, self.outbox, self._heads, _UNPARSED)
            self.outbox.flush()
            self.force_close()

    def _is_one_too_many(self) -> bool:
        """Whether `connections_max` are open already.

        aiohttp also counts those that are lost, while what was asked for on them goes on.
        """
        known, limit = self._server.connections, self._limits.connections_max
        return len(known) > limit and sum(one._manager is not None for one in known) > limit

    def data_received(self, data: bytes) -> None:
        """Take a request whose head is known as it is; give everything else to the parser."""
        missing = self._body_missing
        if missing == 0 and self._took_known(data):
            return
        before = len(self._messages)
        super().data_received(data)
        if missing and len(data) <= missing:
            self._body_missing = missing - len(data)
        elif missing == 0 and len(self._messages) == before + 1:
            message, _ = self._messages[-1]
            self._body_missing = self._known.learn(data, message)
        else:
            self._body_missing = None

    def _took_known(self, data: bytes) -> bool:
        """Hand a request with a known head to `start`, which must have nothing else to do."""
        waiter = self._waiter
        if waiter is None or waiter.done() or self._messages or self._force_close or self._close:
            return False
        taken = self._known.take(data)
        if taken is None:
            return False
        self._request_count += 1
        self._messages.append(taken)  # type: ignore[arg-type]  # only our `start` reads them
        waiter.set_result(None)
        return True

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp always closes
        """Whether to stay, and answer a client that sends no more and may still read.

        One that has left looks the same; nothing is kept waiting for it, or half a request, and no
        request keeps its connection for longer than `eof_s`.
        """
        self.outbox.flush()  # or closing overtakes an answer
        self.ended = True
        request: Request | None = self._current_request  # type: ignore[assignment]  # it is ours
        if self._endless or (request is not None and request.on_gone is not None):
            return False
        if self._messages:
            stays = self._messages[-1][1].is_eof()
        else:
            stays = request is not None and request.payload.is_eof()
        if stays:
            self._expect_progress()
        return stays

    def _expect_progress(self) -> None:
        """Close the connection where the same request is under way after `eof_s`. It goes on."""
        request = self._current_request

        def look() -> None:
            if request is None or self._current_request is not request:
                self._expect_progress()
            elif self.transport is not None:
                self.transport.close()

        self._eof_timer = self._loop.call_later(self._limits.eof_s, look)

    def connection_lost(self, error: BaseException | None) -> None:
        if self._eof_timer is not None:
            self._eof_timer.cancel()
        super().connection_lost(error)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Called after each part of a body that was read; there is rarely something to resume.

        aiohttp would parse nothing once more and ask the transport, which costs 5 us a request.
        """
        if self._reading_paused:
            super().resume_reading(resume_parser)

    async def start(self) -> None:
        """Answer requests until the connection ends. aiohttp runs this as the connection's task."""
        try:
            while not self._force_close:
                if not self._messages:
                    if self.ended:
                        break
                    self._waiter = self._loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                if not await self._answer_next():
                    break
                if self._messages:  # sent together: other connections get a turn in between
                    await asyncio.sleep(0)
        except ConnectionError:
            pass  # the client is gone, and nobody is left to tell
        except BaseException:
            self.force_close()
            raise
        if not self._force_close:
            self._task_handler = None
            self.outbox.flush()
            if self.transport is not None:
                self.transport.close()

    async def _answer_next(self) -> bool:
        """Answer the first of the waiting requests; whether there may be another."""
        head, payload = self._messages.popleft()
        self._let_parser_go_on()
        refused: Answer | None = None
        if not isinstance(head, (KnownHead, RawRequestMessage)):
            refused = self._refusal(head.message.partition("\n")[0].strip(" :"))
            head = _UNPARSED
        request = Request(head, payload, self)
        self._request_in_progress = True
        self._current_request = request  # type: ignore[assignment]  # it only calls `_cancel`
        try:
            if refused is None:
                answer = await self._respond(request)
            else:
                answer = refused
            if isinstance(answer, Streamed):
                await self._stream(request, answer)
                return False
            if isinstance(answer, TakenOver):
                await self._hand_over(answer)
                return False
            self._current_request = None
            self._write(request, answer)
            if self._paused:
                await self._drain_within()
        finally:
            self._current_request = None
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)
        if not payload.is_eof():
            await self._skip_rest(payload)
        self._keepalive = not answer.close
        if answer.close or self._close or self._force_close:
            return False
        self._expect_next()
        return True

    def _let_parser_go_on(self) -> None:
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()

    def _write(self, request: Request, answer: Answer) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        declined_upgrade = self._upgraded and not self._messages  # what follows is not HTTP
        if request.message.should_close or self._heads.closing or declined_upgrade:
            answer.close = True
        answer.write(transport, self.outbox, self._heads, request.message)

    async def _stream(self, request: Request, answer: Streamed) -> None:
        self._endless = True
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self.outbox.flush()
        chunked = answer.begin(transport, self._heads, request.message)
        if request.message.method != "HEAD":
            outflow = Outflow(transport, self._drain_helper, chunked, self._limits)
            await answer.flow(outflow)
            outflow.end()

    async def _hand_over(self, answer: TakenOver) -> None:
        self._endless = True
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        head = self._heads.head(answer.status, "")
        self.outbox.flush()
        transport.write(b"%b%b\r\n" % (head, answer.lines))
        await answer.talk(self)

    async def _drain_within(self) -> None:
        """Wait until the client has taken enough of an answer; give up after `write_s`."""
        try:
            async with asyncio.timeout(self._limits.write_s):
                await self._drain_helper()
        except TimeoutError:
            if self.transport is not None:
                self.transport.abort()
            raise ConnectionResetError("the client does not read its answer") from None

    async def _skip_rest(self, payload: StreamReader) -> None:
        """Read and drop what is left of a body, so that the client gets to reading its answer.

        Closing with unread bytes would reset the connection and may take the answer with it. After
        `linger_s` that is done all the same.
        """
        try:
            async with asyncio.timeout(self._limits.linger_s):
                while not payload.is_eof() and self.transport is not None:
                    await payload.readany()
        except (TimeoutError, RequestPayloadError):
            self._close = True

    def _expect_next(self) -> None:
        """Set the time by which the head of the next request must have come."""
        close_time = self._loop.time() + self._limits.idle_s
        self._next_keepalive_close_time = close_time
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(close_time, self._process_keepalive)
