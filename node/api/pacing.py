"""Long computations give the event loop a turn now and then."""

from __future__ import annotations

import asyncio
import time

TURN_S = 0.004  # how long one computes before others get a turn


class Pacer:
    """Gives the event loop a turn whenever a long computation has kept it for `TURN_S`."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = time.perf_counter()

    async def breathe(self) -> None:
        """To be awaited every fraction of a millisecond of computing."""
        if time.perf_counter() - self._since > TURN_S:
            await asyncio.sleep(0)
            self._since = time.perf_counter()
