"""Arrivals: how a read that waits learns that a store has moved.

The service calls `arrived` on the event loop for each store that an applied entry changed. With
nobody waiting that is one look into an empty dictionary. A waiting read is woken once, looks at the
store itself, and waits again if there was nothing for it; so however fast a store moves, a waiting
read costs at most one look per turn of the event loop.

At most `waiting_max` reads wait at a time; a further one is refused with 503 `overloaded`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from node.errors import NotReady, Overloaded


class Arrivals:
    """Who waits for which store. For use on the event loop only."""

    def __init__(self, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._stopped = False
        self.reads = 0  # reads that wait, or are between two waits

    def arrived(self, store: str) -> None:
        """The store changed: wake everybody who waits for it."""
        if store in self._waiting:
            for future in self._waiting.pop(store):
                if not future.done():
                    future.set_result(None)

    def stop(self) -> None:
        """Wake everybody; from now on nobody waits."""
        self._stopped = True
        for store in list(self._waiting):
            self.arrived(store)

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def enter(self) -> None:
        """A read is about to wait, perhaps several times. Raises `Overloaded`, `NotReady`."""
        if self._stopped:
            raise NotReady("this node is stopping")
        if self.reads >= self._waiting_max:
            raise Overloaded(
                f"{self._waiting_max} reads are waiting already", limit="waiting_reads_max"
            )
        self.reads += 1

    def leave(self) -> None:
        """The counterpart of `enter`."""
        self.reads -= 1

    def next(self, store: str) -> asyncio.Future[None]:
        """Done at the store's next change, or when the node stops.

        Take it before looking at the store, so that no change falls between looking and waiting.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._stopped:
            future.set_result(None)
        else:
            self._waiting.setdefault(store, set()).add(future)
        return future

    def forget(self, store: str, future: asyncio.Future[None]) -> None:
        """The counterpart of `next` for who no longer waits."""
        future.cancel()
        waiting = self._waiting.get(store)
        if waiting is not None:
            waiting.discard(future)
            if not waiting:
                del self._waiting[store]


def canceller(waiting: asyncio.Future[Any]) -> Callable[[], None]:
    """What a request is told to do when its client leaves while it waits."""

    def cancel() -> None:
        waiting.cancel()

    return cancel
