"""What is said to a client: an answer writes itself, head and body, in one piece.

An `Answer` is complete. It is written together with others of the same turn (`outbox`), unless its
body is large. A `Streamed` one writes its head, and then its flow as it comes (`streamed`). The
first lines of all of them are kept ready (`Heads`).
"""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from http import HTTPStatus

from aiohttp.http import HttpVersion11, RawRequestMessage

from node.api.known_heads import KnownHead
from node.api.outbox import Outbox
from node.api.streamed import Flow

Head = RawRequestMessage | KnownHead

_JOINED_BYTES_MAX = 16 * 1024  # larger bodies are written after the head, not copied behind it


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

    __slots__ = ("body", "close", "content_type", "lines", "status")

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

    def write(
        self, transport: asyncio.Transport, outbox: Outbox, heads: Heads, message: Head
    ) -> None:
        """Write everything; `close` says whether the connection ends after it."""
        head = self._head(heads, message)
        body = b"" if message.method == "HEAD" else self.body
        if len(body) <= _JOINED_BYTES_MAX:
            outbox.add(transport, head + body)
        else:
            outbox.flush()
            transport.write(head)
            transport.write(body)

    def _head(self, heads: Heads, message: Head) -> bytes:
        head = heads.head(self.status, self.content_type)
        lines = self.lines
        if self.close:
            lines += b"Connection: close\r\n"
        elif message.version[1] == 0:
            lines += b"Connection: keep-alive\r\n"
        if self.status == HTTPStatus.NO_CONTENT:
            return b"%b%b\r\n" % (head, lines)
        return b"%b%bContent-Length: %d\r\n\r\n" % (head, lines, len(self.body))


class Streamed(Answer):
    """An answer whose body is a flow (see `streamed`); the connection ends with it."""

    __slots__ = ("flow",)

    def __init__(self, content_type: str, flow: Flow, lines: bytes = b"") -> None:
        super().__init__(HTTPStatus.OK, b"", content_type, lines, close=True)
        self.flow = flow

    def begin(self, transport: asyncio.Transport, heads: Heads, message: Head) -> bool:
        """Write the head; whether the body goes in chunks."""
        chunked = message.version >= HttpVersion11 and message.method != "HEAD"
        lines = self.lines + (b"Transfer-Encoding: chunked\r\n" if chunked else b"")
        head = heads.head(self.status, self.content_type)
        transport.write(b"%b%bConnection: close\r\n\r\n" % (head, lines))
        return chunked
