"""Waiting until a majority has something on disk: an append that asked for `durability=persisted`.

All voters, this one included, are asked to flush up to a Raft index at once, and the wait is over
when a majority has said that its cut covers it: what it restarts from, over all its stores. Waits
share rounds. While one runs, later ones gather, and the next round goes as far as the furthest of
them; so many durable appends cost the disks one flush together. Where the disks take longer than a
round, the next one asks for the same again: one that asked for more each time would never end.

A wait that runs out of time says nothing about the append itself, which is replicated: the answer
is `OutcomeUnknown`, and a repetition with the same event ids waits again. So it is at once for a
wait beyond `WAITS_MAX`: a refusal would say that nothing was stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from node.errors import ExesdbError, OutcomeUnknown

WAITS_MAX = 10_000
_ROUND_MS = 5_000
_PAUSE_S = 0.1  # between two rounds of which the first did not find a majority

FlushUpTo = Callable[[int, int], Awaitable[Any]]


class Durability:
    """Majority flushes; `voters` gives one flush(index, timeout_ms) for each of them."""

    def __init__(self, voters: Callable[[], Sequence[FlushUpTo]]) -> None:
        self._voters = voters
        self._waits: dict[asyncio.Future[None], int] = {}
        self._rounds: asyncio.Task[None] | None = None

    async def reach(self, index: int, timeout_ms: int) -> None:
        """Return when a majority restarts from `index` or later.

        Raises `OutcomeUnknown` when the time is over, or too many wait.
        """
        if len(self._waits) >= WAITS_MAX:
            raise OutcomeUnknown(
                f"the events are replicated, but {WAITS_MAX} appends wait for the disks already",
                raft_index=index,
            )
        wait: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waits[wait] = index
        if self._rounds is None:
            self._rounds = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await wait
        except TimeoutError as error:
            raise OutcomeUnknown(
                "the events are replicated, but not known to be on the disks of a majority",
                raft_index=index,
            ) from error
        finally:
            self._waits.pop(wait, None)

    async def stop(self) -> None:
        """End the rounds; who waits runs out of time."""
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.gather(self._rounds, return_exceptions=True)

    async def _run(self) -> None:
        target = 0
        try:
            while self._waits:
                # What arrives in this turn of the loop still shares the round.
                await asyncio.sleep(0)
                if all(wanted > target for wanted in self._waits.values()):
                    target = max(self._waits.values(), default=0)
                if await self._majority_has(target):
                    self._release(target)
                else:
                    await asyncio.sleep(_PAUSE_S)
        finally:
            self._rounds = None

    async def _majority_has(self, index: int) -> bool:
        flushes = [asyncio.ensure_future(flush(index, _ROUND_MS)) for flush in self._voters()]
        done = 0
        try:
            for flush in asyncio.as_completed(flushes):
                try:
                    await flush
                except ExesdbError:
                    continue
                done += 1
                if 2 * done > len(flushes):
                    return True
        finally:
            for flush in flushes:
                flush.cancel()
        return False

    def _release(self, index: int) -> None:
        for wait, wanted in list(self._waits.items()):
            if wanted <= index:
                del self._waits[wait]
                if not wait.done():
                    wait.set_result(None)
