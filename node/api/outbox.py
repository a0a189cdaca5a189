"""Answers of one turn of the event loop, written one behind the other.

uvloop hands what is written to the system at once. A client that sleeps until its answer comes is
woken by that, on another processor, and while the next answer is being made it has done its work
and sleeps again: with 64 connections under load, each answer woke the same client, and a quarter of
the node's processor time went into that. What is written in one go wakes it once (figures:
ARCHITECTURE, Decisions).

Whoever writes to a connection in another way calls `flush` first, or what it writes would overtake
an answer. Whatever is scheduled after `add` runs after the answer was written.

Bound: `_BYTES_MAX`, then what waits is written at once.
"""

from __future__ import annotations

import asyncio

_BYTES_MAX = 64 * 1024


class Outbox:
    """What the connections of a server have to write in this turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []
        self._bytes = 0

    def add(self, transport: asyncio.Transport, answer: bytes) -> None:
        """Write an answer soon: behind what is ready in this turn."""
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append((transport, answer))
        self._bytes += len(answer)
        if self._bytes > _BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        for transport, answer in waiting:
            if not transport.is_closing():  # its client may have left meanwhile
                transport.write(answer)
