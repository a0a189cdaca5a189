"""The seam to aiohttp's WebSockets: taking a connection over, messages in, messages out.

Frames, masks and fragments are aiohttp's work: its reader takes frames apart (in C) and queues
whole messages, its writer writes frames. What is not used is `web.WebSocketResponse`, which belongs
to the request objects that `wire` does without. As in `wire`, this goes below aiohttp's public
doors, and `tests/api/test_sockets.py` fails when an upgrade moves what it relies on:

* `RequestHandler.set_parser` gives what arrives to an object with `feed_data` and `feed_eof`;
* `WebSocketDataQueue` pauses the connection's reading when messages of more than twice its limit
  wait in it, keeps them in `_buffer`, and raises from `read` what the reader found wrong: a
  `WebSocketError` with the code to close with (1009 for a message above the limit);
* `WebSocketWriter._write_websocket_frame` writes one frame at once;
* `_drain_helper()` waits while `writing_paused`, on a future that all who wait share.

**Flow control.** Who does not read on from a socket stops its client: the queue fills, the
connection is not read any more, and TCP does the rest. `room` waits until the client has taken most
of what waits for it. Parts of messages that are not complete count among `arriving_bytes` of all;
of whom there is no room for, nothing more is kept.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import struct
from collections.abc import Callable
from itertools import islice

from aiohttp import WSCloseCode, WSMsgType
from aiohttp._websocket.reader import WebSocketDataQueue
from aiohttp.http import WS_KEY, RawRequestMessage, WebSocketError, WebSocketReader, WebSocketWriter
from aiohttp.streams import EofStream

from node.api.limits import ApiLimits
from node.api.wire import Connection, Request
from node.errors import InvalidRequest, UpgradeRequired

_VERSION = "13"
_QUEUE_BYTES = 128 * 1024
_REASON_BYTES_MAX = 123  # what a frame of control may hold, less the code
_HEAD_BYTES_MAX = 14  # of a frame
_MESSAGES = (WSMsgType.BINARY, WSMsgType.TEXT)  # all others are frames of control

Counted = Callable[[int], bool]


class Broken(Exception):
    """The client breaks a rule; the connection is to be closed with `code` and these words."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


def accepted(request: Request) -> bytes:
    """The header lines that accept a request for a WebSocket.

    Raises `UpgradeRequired`, `InvalidRequest`.
    """
    message = request.message
    upgrade = isinstance(message, RawRequestMessage) and message.upgrade
    if message.method != "GET" or not upgrade or _asked(request, "Upgrade").lower() != "websocket":
        raise UpgradeRequired("this route is a WebSocket: ask for it with an upgrade")
    if _asked(request, "Sec-WebSocket-Version") != _VERSION:
        raise UpgradeRequired(f"WebSocket version {_VERSION} is spoken here")
    key = _asked(request, "Sec-WebSocket-Key")
    try:
        fits = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        fits = False
    if not fits:
        raise InvalidRequest("Sec-WebSocket-Key: must be 16 bytes in base64")
    accept = base64.b64encode(hashlib.sha1(key.encode() + WS_KEY).digest())
    return b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n" % accept


def _asked(request: Request, name: str) -> str:
    return request.message.headers.get(name, "").strip()


class Socket:
    """One client's WebSocket. `counted` is told of every change, in bytes, of what has arrived of
    messages that are not complete; it says whether there is room for it."""

    def __init__(self, connection: Connection, limits: ApiLimits, counted: Counted) -> None:
        transport = connection.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        self.heard = 0  # how often something arrived
        self._connection = connection
        self._transport = transport
        self._counted = counted
        self._incomplete = 0
        self._closing = False
        self._dropping = False
        self._lost = asyncio.Event()
        self._queue = WebSocketDataQueue(connection, _QUEUE_BYTES, loop=asyncio.get_running_loop())
        self._reader = WebSocketReader(self._queue, limits.body_bytes_max, False, False)
        self._writer = WebSocketWriter(connection, transport)
        transport.set_write_buffer_limits(high=limits.stream_buffer_bytes_max)
        connection.set_parser(self)  # type: ignore[arg-type]  # it is fed like aiohttp's reader

    # --- what arrives -----------------------------------------------------------------------

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Called with what arrives; whether that was the end, and what follows it."""
        if self._dropping:
            return False, b""
        self.heard += 1
        waiting = len(self._queue._buffer)
        fed = self._reader.feed_data(data)
        grown = self._left(len(data), waiting) - self._incomplete
        if grown and not self._count(grown) and grown > 0:
            self._dropping = True  # it may be long until somebody reads the error
            words = "too many large messages at once; try again later"
            self._queue.set_exception(WebSocketError(WSCloseCode.TRY_AGAIN_LATER, words))
        return fed

    def _left(self, arrived: int, waiting: int) -> int:
        """How much is there of a message that is not complete, after so many bytes more.

        What is in the queue beyond the `waiting` first is complete. A frame of control may stand
        between the parts of a message, and leaves those where they are.
        """
        queue = self._queue._buffer
        if len(queue) == waiting:
            return self._incomplete + arrived
        is_one_frame = len(queue) == waiting + 1 and arrived <= queue[-1][1] + _HEAD_BYTES_MAX
        if is_one_frame and not self._incomplete:
            return 0  # most of what arrives, so this costs no more than it must
        complete = [
            size + _HEAD_BYTES_MAX
            for frame, size in islice(queue, waiting, None)
            if frame.type in _MESSAGES
        ]
        if complete:  # and of the next message there is no more than what arrived last
            return max(0, min(arrived, self._incomplete + arrived - sum(complete)))
        return self._incomplete if is_one_frame else self._incomplete + arrived

    def feed_eof(self) -> None:
        """Called when the connection is lost."""
        self._count(-self._incomplete)
        self._reader.feed_eof()
        self._lost.set()

    def _count(self, change: int) -> bool:
        self._incomplete += change
        return self._counted(change)

    async def read(self) -> bytes | None:
        """The next message; None once the client has closed. Pings are answered on the way.

        Raises `Broken`, and `ConnectionError` where the client is gone without a word.
        """
        while True:
            try:
                message = await self._queue.read()
            except EofStream:
                raise ConnectionResetError("the client is gone") from None
            except WebSocketError as error:
                raise Broken(error.code, str(error)) from None
            if message.type is WSMsgType.BINARY:
                return bytes(message.data)
            if message.type is WSMsgType.CLOSE:
                return None
            if message.type is WSMsgType.TEXT:
                raise Broken(WSCloseCode.UNSUPPORTED_DATA, "messages are CBOR, in binary frames")
            if message.type is WSMsgType.PING:
                self._write(message.data, WSMsgType.PONG)
                await self.room()  # a client that only sends is no longer read

    # --- what is sent -----------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether more waits for the client than should."""
        return self._connection.writing_paused

    async def room(self) -> None:
        """Return when the client has taken most of what waits for it. Raises `ConnectionError`."""
        while self._connection.writing_paused:
            # The future behind it is shared: who is cancelled must not take it from the others.
            await asyncio.shield(self._connection._drain_helper())

    def send(self, message: bytes) -> None:
        """Send a message. Raises `ConnectionError` where the client is gone."""
        if not self._closing:
            self._write(message, WSMsgType.BINARY)

    def ping(self) -> None:
        """Ask the client for a sign of life."""
        self._write(b"", WSMsgType.PING)

    def _write(self, payload: bytes, kind: WSMsgType) -> None:
        self._writer._write_websocket_frame(payload, kind, 0)

    # --- the end ----------------------------------------------------------------------------

    def close(self, code: int, words: str = "") -> None:
        """Say the last word, once; nothing is sent after it."""
        if self._closing:
            return
        self._closing = True
        reason = words.encode()[:_REASON_BYTES_MAX].decode(errors="ignore").encode()
        if not self._transport.is_closing():
            self._write(struct.pack("!H", code) + reason, WSMsgType.CLOSE)

    async def closed(self, limit_s: float) -> None:
        """Return when the client has closed too, or after `limit_s`; what it says is dropped.

        Closing with unread bytes would reset the connection, and may take the last word with it.
        """
        self._dropping = True
        self._connection.resume_reading()
        try:
            async with asyncio.timeout(limit_s):
                await self._lost.wait()
        except TimeoutError:
            self._transport.abort()

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()
