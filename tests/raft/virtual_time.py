"""Time for simulations: an event loop on which waiting takes none, and a clock turned by hand."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from node.raft import library

EPOCH_S = 1000.0  # virtual time starts here: some code takes 0 to mean "never"


class Stuck(Exception):
    """Nothing is scheduled any more: the scenario waits for something that cannot happen."""


class _Skipper(selectors.SelectSelector):
    """Instead of waiting for a timer, moves the clock to it."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck("nothing is scheduled")
        self._loop.moment += max(0.0, timeout)
        return super().select(0) if self._loop.woken_from_outside else []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer."""

    woken_from_outside = True  # by threads; a loop that has none need not ask the system

    def __init__(self) -> None:
        self.moment = EPOCH_S
        super().__init__(_Skipper(self))

    def time(self) -> float:
        """The virtual time, in seconds."""
        return self.moment


@contextmanager
def clock(read: Callable[[], float]) -> Iterator[None]:
    """Let the library read this clock, and its own again afterwards."""
    before = library.upstream.monotonicTime
    library.use_clock(read)
    try:
        yield
    finally:
        library.use_clock(before)


def simulate(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario to its end, on virtual time."""
    loop = VirtualLoop()
    with clock(loop.time):
        try:
            loop.run_until_complete(scenario())
        finally:
            _cancel_the_rest(loop)
            loop.close()


def _cancel_the_rest(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


class Clock:
    """A clock that a test turns by hand."""

    def __init__(self) -> None:
        self.moment = EPOCH_S

    def __call__(self) -> float:
        return self.moment

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.moment += seconds
