"""Waiting until this node has applied far enough, with a bound.

Read-your-writes on any node: a client brings the Raft index, or the position in a store, that it
has seen, and the read waits until this node's state has reached it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node.errors import Overloaded, ReadBarrierTimeout

WAITING_MAX = 10_000


class Waiting:
    """Futures that are resolved when their condition holds; looked at after each applied entry."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}

    async def until(self, holds: Callable[[], bool], timeout_ms: int, what: str) -> None:
        """Return when `holds()`; raises `ReadBarrierTimeout`, or `Overloaded` at `WAITING_MAX`."""
        if holds():
            return
        if len(self._waiting) >= WAITING_MAX:
            raise Overloaded("too many reads wait for this node", limit="waiting_max")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = holds
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await future
        except TimeoutError as error:
            raise ReadBarrierTimeout(f"this node did not reach {what} in time") from error
        finally:
            self._waiting.pop(future, None)

    def advanced(self) -> None:
        """Something was applied, or the leader changed: look again."""
        if not self._waiting:
            return
        for future, holds in list(self._waiting.items()):
            if not future.done() and holds():
                future.set_result(None)
