"""The seam to aiohttp's server: the only module that goes below its public doors.

A request in aiohttp costs about 65 us with `web.Application`, of which HTTP parsing is a fifth. The
rest goes into objects that this API has no use for: URL objects, resolvers, header multidicts and
response objects built up only to be serialised at once. So we keep aiohttp's connection handling
(parser, keep-alive, pipelining, flow control, shutdown) and put three small objects in place of its
own, which halves the cost:

`Request`     made by `Server(request_factory=...)`; holds what the parser delivered, nothing more
`Answer`      has the two methods that a connection calls on a response, and writes itself at once
`Connection`  a `RequestHandler` whose protocol errors are problems like all others

What they rely on, beyond the public API of aiohttp 3.14 (`tests/api/test_wire.py` fails when an
upgrade moves any of it):

* `Server` takes `request_factory`, called with (message, payload, protocol, writer, task);
* a connection calls `_finish()` and `_cancel(error)` on a request and sets its `_task`;
* it calls `prepare(request)`, then `write_eof()` on a response, and reads its `keep_alive`;
* `resume_reading` has work to do only while `_reading_paused` is set;
* `RequestHandler.handle_error(request, status, exc, message)` answers what could not be parsed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from node.api.limits import ApiLimits
from node.api.media import JSON, Media
from node.api.parameters import Values

logger = logging.getLogger("node.api")

_JOINED_BYTES_MAX = 64 * 1024  # larger bodies are written after the head, not copied behind it


class Request:
    """One request: what the parser delivered, and what routing made of it.

    `wants` is the media of the answer, `parameters` the values of the route's query parameters.
    `on_gone` is called once if the client leaves before the answer; a waiting read sets it.
    """

    __slots__ = (
        "_task",
        "message",
        "on_gone",
        "parameters",
        "payload",
        "protocol",
        "wants",
        "writer",
    )

    def __init__(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: Connection,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> None:
        self.message = message
        self.payload = payload
        self.protocol = protocol
        self.writer = writer
        self.wants: Media = JSON
        self.parameters: Values = {}
        self.on_gone: Callable[[], None] | None = None
        self._task = task

    def say_continue(self) -> None:
        """Tell a client that waits for it (`Expect: 100-continue`) to send the body."""
        expect = self.message.headers.get("Expect")
        transport = self.protocol.transport
        if expect is not None and expect.lower() == "100-continue" and transport is not None:
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _finish(self) -> None:
        """aiohttp closes uploaded files here; we have none."""

    def _cancel(self, error: BaseException) -> None:
        """The connection is lost: whoever reads the body, or waits to answer, ends."""
        self.payload.set_exception(error)
        if self.on_gone is not None:
            self.on_gone()


class Heads:
    """The first lines of answers, kept ready: they differ by status and content type only.

    They hold the date, so they are made again when the second changes. `closing` makes every
    further answer the last of its connection.
    """

    def __init__(self, node_id: str) -> None:
        self.closing = False
        self._node_id = node_id
        self._second = 0
        self._ready: dict[tuple[int, str], bytes] = {}

    def head(self, status: int, content_type: str) -> bytes:
        """Status line and the headers that all answers have, without the empty line."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._ready.clear()
        head = self._ready.get((status, content_type))
        if head is None:
            head = self._ready[status, content_type] = self._made(status, content_type)
        return head

    def _made(self, status: int, content_type: str) -> bytes:
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            f"Date: {formatdate(self._second, usegmt=True)}",
            f"X-Served-By: {self._node_id}",
        ]
        if content_type:
            lines.append(f"Content-Type: {content_type}")
        return "".join(line + "\r\n" for line in lines).encode()


class Answer:
    """A complete answer. `lines` are further headers, each ended by CRLF.

    `close` ends the connection after it, for requests whose body was not read to its end.
    """

    __slots__ = ("_request", "body", "close", "content_type", "keep_alive", "lines", "status")

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        content_type: str = "",
        lines: bytes = b"",
        close: bool = False,
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.lines = lines
        self.close = close
        self.keep_alive = False
        self._request: Request | None = None

    async def prepare(self, request: Request) -> None:
        """Called by the connection first: decides whether it stays open."""
        self._request = request
        self.keep_alive = not (
            request.message.should_close or self.close or request.protocol.heads.closing
        )

    async def write_eof(self) -> None:
        """Called by the connection second: writes everything.

        Raises `ConnectionResetError` when the client is gone or takes longer than `write_s`.
        """
        request = self._request
        assert request is not None, "prepare() comes first"
        connection = request.protocol
        transport = connection.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        head = self._head(connection.heads, request.message)
        body = b"" if request.message.method == "HEAD" else self.body
        if len(body) <= _JOINED_BYTES_MAX:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        if connection.writing_paused:
            await connection.drain_within(request.writer)

    def _head(self, heads: Heads, message: RawRequestMessage) -> bytes:
        head = heads.head(self.status, self.content_type)
        if not self.keep_alive:
            connection = b"Connection: close\r\n"
        elif message.version[1] == 0:
            connection = b"Connection: keep-alive\r\n"
        else:
            connection = b""
        if self.status == HTTPStatus.NO_CONTENT:
            return b"%b%b%b\r\n" % (head, self.lines, connection)
        return b"%b%b%bContent-Length: %d\r\n\r\n" % (
            head,
            self.lines,
            connection,
            len(self.body),
        )


class Connection(RequestHandler):
    """One client's connection.

    Past `connections_max` a new one is told so and closed. What cannot be parsed is answered with
    the problem that `refusal` makes of the parser's words.
    """

    __slots__ = ("_limits", "_refusal", "_server", "heads")

    def __init__(
        self,
        server: web.Server,
        limits: ApiLimits,
        heads: Heads,
        refusal: Callable[[str], Answer],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=limits.idle_s,
            lingering_time=limits.linger_s,
            max_line_size=limits.head_line_bytes_max,
            max_field_size=limits.head_line_bytes_max,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]  # what aiohttp itself passes for "none"
            logger=logger,
        )
        self.heads = heads
        self._limits = limits
        self._refusal = refusal
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._server.connections) > self._limits.connections_max and self.transport:
            self.transport.write(
                self.heads.head(503, "") + b"Retry-After: 1\r\nConnection: close\r\n\r\n"
            )
            self.force_close()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Called after each part of a body that was read; there is rarely something to resume.

        aiohttp would parse nothing once more and ask the transport, which costs 5 us a request.
        """
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def handle_error(  # type: ignore[override]  # an Answer stands in for a StreamResponse
        self,
        request: Any,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> Answer:
        """Answer what the parser refused; it closes the connection, whose state is unknown."""
        words = (message or "not HTTP/1.1").partition("\n")[0].strip(" :")
        return self._refusal(words)

    async def drain_within(self, writer: AbstractStreamWriter) -> None:
        """Wait until the client has taken enough of an answer; give up after `write_s`."""
        try:
            async with asyncio.timeout(self._limits.write_s):
                await writer.drain()
        except TimeoutError:
            if self.transport is not None:
                self.transport.abort()
            raise ConnectionResetError("the client does not read its answer") from None
