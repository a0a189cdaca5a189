"""The leader's clock for events that are kept for a time only (`max_age_ms`, see `core.lives`).

What is too old is decided in the log, by the time that an `Expire` carries. The leader sends one
once an event is due, and the next one at once while there is more to remove. If it is not applied,
or the leader dies, the next leader sees the same events due: nothing need be remembered. The same
commands let go of snapshots, bit by bit, where a store is to keep fewer of them.

So events go within `_PAUSE_S` of their time, by the leader's clock. A leader whose clock is ahead
removes them as much too soon: clocks must agree to a fraction of the ages that are asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from node.core import life_commands
from node.core.outcomes import Expired, Outcome
from node.core.state import State
from node.errors import ExesdbError

_PAUSE_S = 1.0
_TIMEOUT_MS = 10_000


class Log(Protocol):
    """The replicated log, as far as this needs it."""

    @property
    def leads(self) -> bool:
        """Whether this node leads."""

    def propose(self, command: bytes, timeout_ms: int) -> Awaitable[tuple[Outcome, int]]:
        """Replicate a command. Raises `ExesdbError`."""


class Retention:
    """Sends what is due of one state; `now_us` is the node's clock, microseconds since 1970."""

    def __init__(self, log: Log, state: State, now_us: Callable[[], int]) -> None:
        self._log = log
        self._state = state
        self._now_us = now_us

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(_PAUSE_S)
            for name in sorted(self._state.stores) if self._log.leads else ():
                while await self._expire(name):
                    pass

    async def _expire(self, name: str) -> bool:
        """Remove what is due of a store; whether there is more."""
        store, now_us = self._state.stores.get(name), self._now_us()
        if store is None or not store.has_overdue(now_us):
            return False
        try:
            command = life_commands.expire(name, now_us)
            outcome, _ = await self._log.propose(command, _TIMEOUT_MS)
        except ExesdbError:
            return False
        return isinstance(outcome, Expired) and outcome.has_more
