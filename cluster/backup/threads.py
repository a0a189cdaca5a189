"""Work in a thread, whose end is waited for whatever happens.

Where a task is cancelled, as by Ctrl-C, `asyncio.to_thread` comes back at once, and its thread goes
on. Whoever then leaves the block of a file closes it under the hands of that thread, and SQLite
takes the whole process down. So here a cancellation waits for the thread, and then goes its way.

Work that may take minutes tells how far it is. It ends where it does so next once nobody wants it
any more, so that the wait is short.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class _NotWanted(Exception):
    """Ends the work in its thread; nobody else sees it."""


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the work returns or raises. It is over when this comes back, also by a cancellation."""
    return await _awaited(lambda: work(*args, **kwargs), threading.Event())


async def told_in_thread(
    work: Callable[[Callable[[int], None]], T], advance: Callable[[int], None]
) -> T:
    """The same for work that tells how far it is, and can be ended there."""
    not_wanted = threading.Event()

    def told(count: int) -> None:
        if not_wanted.is_set():
            raise _NotWanted
        advance(count)

    return await _awaited(lambda: work(told), not_wanted)


async def _awaited(work: Callable[[], T], not_wanted: threading.Event) -> T:
    # A future and no task: who cancels all tasks of a loop, as a second Ctrl-C does, misses it.
    working = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        not_wanted.set()
        while not working.done():
            with suppress(asyncio.CancelledError):  # there is nothing else to end
                await asyncio.wait((working,))
        raise
