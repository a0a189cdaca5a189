"""An event loop in a thread of its own: where the client of a program works that has no loop.

Threads of the program hand coroutines over; several may be under way at a time. Whoever stops
waiting for one, such as by Ctrl-C, has ended it by then: nothing goes on unseen.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """See the module. It is started once, and stopped by a thread that is not its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="exesdb client", daemon=True
        )

    def start(self) -> None:
        """From now on there is somebody who works."""
        self._thread.start()

    def stop(self) -> None:
        """End what is under way, and the loop: who still waits gets a `CancelledError`."""
        self.wait(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def time(self) -> float:
        """The loop's clock, in seconds."""
        return self._loop.time()

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have work done, behind what this thread handed over before."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work returns or raises."""
        over = threading.Event()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            tasks.append(self._loop.create_task(work))
            tasks[0].add_done_callback(lambda _: over.set())

        self._loop.call_soon_threadsafe(begin)
        try:
            over.wait()
        except BaseException:
            self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            over.wait()
            raise
        return tasks[0].result()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
