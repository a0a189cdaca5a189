"""Subscriptions over a WebSocket: what `following` does for one client a connection, many on one.

A feed keeps a position, looks at what this node has applied behind it, sends what matches as long
as it has credit and the client takes it, and waits for the store's next change. A batch waits until
there is room for it, so a client that does not read costs a batch a feed and a socket's buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import cbor2

from node.api.filters import Scan
from node.api.following import Following
from node.api.pacing import Pacer
from node.api.socket_records import answer_of_records
from node.core.filters import Filter
from node.core.store import Store
from node.errors import ExesdbError, NotReady

_BATCH_EVENTS = 1_000
_BATCH_BYTES = 256 * 1024
_LOOK_POSITIONS = 20_000
_CHECKPOINT_POSITIONS = 1_000
_CHECKPOINT_S = 5.0
_REST_S = 0.0001

Send = Callable[[bytes], Awaitable[None]]


class Feed:
    """One subscription. `send` gives the client one answer when it has room for it."""

    def __init__(
        self,
        feed_id: int,
        shared: Following,
        store: Store,
        wanted: Filter,
        after: int,
        credit: int | None,
        send: Send,
    ) -> None:
        self.position = after  # evaluated up to here; the client knows so, but for a checkpoint
        self._id = cbor2.dumps(feed_id)
        self._shared = shared
        self._store = store
        self._wanted = wanted
        self._credit = credit
        self._send = send
        self._limits = replace(
            shared.limits, page_bytes_max=min(_BATCH_BYTES, shared.limits.page_bytes_max)
        )
        self._told, self._told_at = after, 0.0
        self._is_behind = True
        self._may_send = asyncio.Event()
        self._pacer = Pacer()
        if credit != 0:
            self._may_send.set()

    def add_credit(self, events: int) -> None:
        """Let it send so many events more; without a bound there is nothing to add to."""
        if self._credit is not None and events:
            self._credit += events
            self._may_send.set()

    def stop(self) -> None:
        """It is about to end: wake it, if it waits for credit, to say so."""
        self._may_send.set()

    def last_words(self) -> dict[str, Any]:
        """What a client is told that has cancelled it."""
        return {"position": self.position}

    async def run(self) -> None:
        """Send until it is cancelled. Raises `NotReady`, `StoreMissing`, `ConnectionError`."""
        try:
            await self._follow()
        except ExesdbError as error:
            error.fields["position"] = self.position
            raise

    async def _follow(self) -> None:
        arrivals, loop = self._shared.arrivals, asyncio.get_running_loop()
        self._told_at = loop.time()
        while True:
            await self._may_send.wait()
            if arrivals.stopped:
                raise NotReady("this node is stopping; go on at another one")
            change = arrivals.next(self._store.name)
            try:
                if not await self._look(loop.time()) and self.position >= self._store.position:
                    await self._idle(change)
            finally:
                arrivals.forget(self._store.name, change)
            if not self._is_behind:
                await asyncio.sleep(_REST_S * self._shared.followers)

    async def _idle(self, change: asyncio.Future[None]) -> None:
        """Wait for the store's next change, or until a checkpoint may be due."""
        due = _CHECKPOINT_S if self.position > self._told else None
        await asyncio.wait([change], timeout=due)

    async def _look(self, moment: float) -> bool:
        """Say what has to be said about the positions behind the last; whether there was any."""
        store = self._store = self._shared.as_it_is(self._store)
        limit = _BATCH_EVENTS if self._credit is None else min(_BATCH_EVENTS, self._credit)
        scan = Scan(self._wanted, False, limit, self.position, None, [])
        await scan.run(store, self._limits, self._pacer, _LOOK_POSITIONS)
        reached = max(self.position, scan.next)
        at_end = scan.next >= store.position
        if scan.rows:
            await self._send(answer_of_records(self._id, scan.rows, store))
            self._shared.events_sent += len(scan.rows)
            self._spend(len(scan.rows))
            self._told, self._told_at = scan.rows[-1][0], moment
        self.position = reached
        said = bool(scan.rows)
        if self._is_behind and at_end:
            said = await self._place("caught_up", moment)
        elif self._owes_checkpoint(moment):
            said = await self._place("checkpoint", moment)
        self._is_behind = not at_end and (self._is_behind or scan.full)
        return said

    def _spend(self, events: int) -> None:
        if self._credit is not None:
            self._credit -= events
            if self._credit == 0:
                self._may_send.clear()

    def _owes_checkpoint(self, moment: float) -> bool:
        untold = self.position - self._told
        return untold >= _CHECKPOINT_POSITIONS or (
            untold > 0 and moment - self._told_at >= _CHECKPOINT_S
        )

    async def _place(self, kind: str, moment: float) -> bool:
        await self._send(b"\x83%b%b" % (self._id, cbor2.dumps(kind) + cbor2.dumps(self.position)))
        self._told, self._told_at = self.position, moment
        return True
