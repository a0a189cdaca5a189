"""An event loop in a thread of its own: where the client of a program works that has no loop.

Threads of the program hand coroutines over; several may be under way at a time. Whoever stops
waiting for one, such as by Ctrl-C, has ended it by then: nothing goes on unseen.

The loop is there from `start` to `stop`. Before and behind that there is nobody who would work, so
that whoever hands something over is told, and does not wait for ever.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_END_S = 3.0  # more than a pause between two tries, or looking for a connection


class NotRunning(RuntimeError):
    """There is no loop, or none any more."""


class LoopThread:
    """See the module. It is started and stopped by threads that are not its own, in turns."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._awaited: set[asyncio.Task[Any]] = set()  # what threads wait for
        # Once `stop` has had it, nothing is handed over. It is one that a thread can take twice,
        # because a collection of garbage in between may end an iterator, which comes here.
        self._handing_over = threading.RLock()

    def start(self) -> None:
        """From now on there is somebody who works."""
        if self._loop is not None:
            raise RuntimeError("the client is in a `with` block already")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="exesdb client", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End what is under way, and the loop. What threads wait for may first end by itself."""
        with self._handing_over:
            loop, self._loop = self._loop, None
        assert loop is not None and self._thread is not None
        try:
            asyncio.run_coroutine_threadsafe(self._end(), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    @staticmethod
    def time() -> float:
        """The loop's clock, in seconds."""
        return time.monotonic()

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have work done, behind what this thread handed over before."""
        with self._handing_over:
            return asyncio.run_coroutine_threadsafe(work, self._loop_for(work))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work returns or raises; `NotRunning` if the loop was stopped before."""
        over = threading.Event()
        tasks: list[asyncio.Task[T]] = []

        def done(task: asyncio.Task[T]) -> None:
            self._awaited.discard(task)
            over.set()

        def begin() -> None:
            tasks.append(asyncio.get_running_loop().create_task(work))
            self._awaited.add(tasks[0])
            tasks[0].add_done_callback(done)

        with self._handing_over:
            loop = self._loop_for(work)
            loop.call_soon_threadsafe(begin)
        try:
            over.wait()
        except BaseException:
            loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            over.wait()
            raise
        if tasks[0].cancelled():
            raise NotRunning("the client was left meanwhile")
        return tasks[0].result()

    def leave(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have work done that nobody waits for; where nobody works any more, it is not needed."""
        with suppress(NotRunning):
            self.begin(work)

    def _loop_for(self, work: Coroutine[Any, Any, Any]) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            work.close()
            raise NotRunning("use the client in a `with` block")
        return self._loop

    async def _end(self) -> None:
        if self._awaited:
            await asyncio.wait(self._awaited, timeout=_END_S)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()
