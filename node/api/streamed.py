"""Answers without an end: what is sent as it comes, on a connection that serves nothing else.

A `Streamed` answer has a head like any other, and then a flow: a coroutine that writes parts into
an `Outflow` until it has said all it has to. The connection is closed behind it.

What a client has not taken yet waits in the socket's buffer and, behind it, in the transport's,
which holds `stream_buffer_bytes_max` and one part more. A write beyond that waits until the client
has taken most of it, at most `slow_client_s`; then it raises `TooSlow`, and all that can still be
said is one last part (`last`). If even that is not taken within `write_s`, the connection is cut.

Who writes the same to many outflows frames it once (`chunk`) and puts it into each (`put`), which
waits for nothing and says whether there is room for more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from node.api.limits import ApiLimits


class TooSlow(Exception):
    """The client takes less than is sent."""


class Drain(Protocol):
    """The connection's own wait for an emptier buffer. Raises `ConnectionError` if it is lost."""

    async def __call__(self) -> None: ...


def chunk(part: bytes) -> bytes:
    """A part as it goes over a connection whose body is `chunked`."""
    return b"%x\r\n%b\r\n" % (len(part), part)


class Outflow:
    """Where a flow writes to."""

    def __init__(
        self,
        transport: asyncio.Transport,
        drain: Drain,
        chunked: bool,
        limits: ApiLimits,
    ) -> None:
        self._transport = transport
        self._drain = drain
        self.chunked = chunked
        self._limits = limits
        transport.set_write_buffer_limits(high=limits.stream_buffer_bytes_max)

    async def write(self, part: bytes) -> None:
        """Send a part. Raises `TooSlow`, and `ConnectionError` where the client is gone."""
        self._send(part)
        await self.room()

    async def room(self) -> None:
        """Wait for room. Raises as `write` does."""
        try:
            async with asyncio.timeout(self._limits.slow_client_s):
                await self._drain()
        except TimeoutError:
            raise TooSlow from None

    def put(self, framed: bytes) -> bool:
        """Send a part that is framed already, to a client that has room for one; whether it has
        room for more. Where the client is gone, it has none."""
        transport = self._transport
        if transport.is_closing():
            return False
        transport.write(framed)
        return transport.get_write_buffer_size() <= self._limits.stream_buffer_bytes_max

    def last(self, part: bytes) -> None:
        """Send a part without waiting for anything: nothing follows it."""
        self._send(part)

    def end(self) -> None:
        """The flow is over: let the client see that it ended where it should."""
        transport = self._transport
        if transport.is_closing():
            return
        if self.chunked:
            transport.write(b"0\r\n\r\n")
        if transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(self._limits.write_s, transport.abort)

    def _send(self, part: bytes) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self._transport.write(chunk(part) if self.chunked else part)


Flow = Callable[[Outflow], Awaitable[None]]
