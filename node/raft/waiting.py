"""Waiting until this node has applied far enough, with a bound.

Read-your-writes on any node: a client brings the Raft index, or the position in a store, that it
has seen, and the read waits until this node's state has reached it.

After each applied entry it is seen who waits no more. Ten thousand reads that wait for what is far
ahead must not make each entry dear: of those that wait for a number, only the least is looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node.errors import Overloaded, ReadBarrierTimeout

WAITING_MAX = 10_000

_Wait = asyncio.Future[None]


class _Line:
    """Who waits until one number has grown; `least` is at most what the first of them wants."""

    def __init__(self, number: Callable[[], int]) -> None:
        self.number = number
        self.least = 0
        self.wanted: dict[_Wait, int] = {}

    def add(self, wait: _Wait, wanted: int) -> None:
        self.least = min(self.least, wanted) if self.wanted else wanted
        self.wanted[wait] = wanted

    def advanced(self) -> None:
        number = self.number()
        if number < self.least:
            return
        for wait, wanted in list(self.wanted.items()):
            if wanted <= number:
                del self.wanted[wait]
                if not wait.done():
                    wait.set_result(None)
        self.least = min(self.wanted.values(), default=0)


class Waiting:
    """Futures that are resolved when their condition holds; looked at after each applied entry."""

    def __init__(self) -> None:
        self._waiting: dict[_Wait, Callable[[], bool]] = {}
        self._lines: dict[str, _Line] = {}
        self._count = 0

    async def until(self, holds: Callable[[], bool], timeout_ms: int, what: str) -> None:
        """Return when `holds()`; raises `ReadBarrierTimeout`, or `Overloaded` at `WAITING_MAX`."""
        if holds():
            return
        wait = self._new()
        self._waiting[wait] = holds
        try:
            await self._end(wait, timeout_ms, what)
        finally:
            self._waiting.pop(wait, None)

    async def reach(
        self, key: str, number: Callable[[], int], wanted: int, timeout_ms: int, what: str
    ) -> None:
        """Return when `number()`, the same for all waits with this key, is `wanted` or more.

        Raises what `until` raises.
        """
        if number() >= wanted:
            return
        wait = self._new()
        line = self._lines.setdefault(key, _Line(number))
        line.add(wait, wanted)
        try:
            await self._end(wait, timeout_ms, what)
        finally:
            line.wanted.pop(wait, None)
            if not line.wanted and self._lines.get(key) is line:
                del self._lines[key]

    def advanced(self) -> None:
        """Something was applied, or the leader changed: look again."""
        for line in self._lines.values():
            line.advanced()
        if not self._waiting:
            return
        for wait, holds in list(self._waiting.items()):
            if not wait.done() and holds():
                wait.set_result(None)

    def _new(self) -> _Wait:
        if self._count >= WAITING_MAX:
            raise Overloaded("too many reads wait for this node", limit="waiting_max")
        return asyncio.get_running_loop().create_future()

    async def _end(self, wait: _Wait, timeout_ms: int, what: str) -> None:
        self._count += 1
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await wait
        except TimeoutError as error:
            raise ReadBarrierTimeout(f"this node did not reach {what} in time") from error
        finally:
            self._count -= 1
