"""The event loop of a simulated cluster: virtual time, threads without threads, and stalls.

All nodes live on one loop. Which life of which node a callback belongs to stands in a context
variable (`CURRENT`), which asyncio hands on from each callback to those that it schedules. By it

* what a node gives to a thread (`run_in_executor`) becomes a job of that node's disk: it runs at
  one moment of the virtual time and is done at a later one, both chosen by the node's disk;
* a node that is stalled, as by SIGSTOP, gets none of its callbacks until it goes on. They gather in
  order, timers and messages alike.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from itertools import count
from typing import Any, Protocol

from tests.raft.virtual_time import Stuck, VirtualLoop


class Life(Protocol):
    """What the loop has to know of a life of a node."""

    alive: bool
    stalled: bool
    tasks: dict[asyncio.Task[Any], None]

    def job_times_s(self, thread: object) -> tuple[float, float]:
        """In how long a new job of a thread of the node runs, and how long after it is done."""


CURRENT: ContextVar[Life | None] = ContextVar("life", default=None)


class _Ready(deque[asyncio.Handle]):
    """Callbacks that are due; those of stalled nodes are put aside instead."""

    def __init__(self) -> None:
        super().__init__()
        self.aside: dict[int, list[asyncio.Handle]] = {}

    def append(self, handle: asyncio.Handle) -> None:
        if self.aside:
            life = handle._context.get(CURRENT)  # type: ignore[attr-defined]
            if life is not None and life.stalled:
                self.aside[id(life)].append(handle)
                return
        super().append(handle)


class _Handle(asyncio.Handle):
    """A callback. No loop of ours is ever asked to debug."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., Any],
        arguments: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = arguments
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class _Timer(_Handle, asyncio.TimerHandle):
    """A callback with a time."""

    __slots__ = ()


class SimulatedLoop(VirtualLoop):
    """See above.

    A run is some hundred thousand callbacks that do little. So what asyncio does for each of them
    is done here again, without what only sockets, threads and debugging need.
    """

    woken_from_outside = False

    def __init__(self) -> None:
        super().__init__()
        self._ready = _Ready()
        # Of two timers of one moment the one that was set first is due first.
        self._scheduled: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers = count()
        self.failures: list[str] = []
        self.set_exception_handler(self._failed)
        self.set_task_factory(_make_task)

    def call_soon(
        self, callback: Callable[..., Any], *arguments: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As any loop."""
        handle = _Handle(callback, arguments, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., Any],
        *arguments: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As any loop."""
        return self.call_at(self.moment + delay, callback, *arguments, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., Any],
        *arguments: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As any loop, but the order of equal times does not hang on the shape of a heap."""
        timer = _Timer(callback, arguments, self, context)
        timer._when = when
        timer._scheduled = True
        heapq.heappush(self._scheduled, (when, next(self._timers), timer))
        return timer

    def _timer_handle_cancelled(self, _: asyncio.TimerHandle) -> None:
        """Nothing: it is passed over when it is due."""

    def _run_once(self) -> None:
        scheduled, ready = self._scheduled, self._ready
        while scheduled and scheduled[0][2]._cancelled:
            heapq.heappop(scheduled)
        if not ready and not self._stopping:
            if not scheduled:
                raise Stuck("nothing is scheduled")
            self.moment += max(0.0, scheduled[0][0] - self.moment)
        end = self.moment + self._clock_resolution
        while scheduled and scheduled[0][0] < end:
            ready.append(heapq.heappop(scheduled)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def stall(self, life: Life) -> None:
        """Let nothing of this life run until `resume`."""
        if not life.stalled:
            life.stalled = True
            self._ready.aside[id(life)] = []

    def resume(self, life: Life) -> None:
        """Let it go on, with all that has come up meanwhile."""
        if life.stalled:
            life.stalled = False
            self._ready.extend(self._ready.aside.pop(id(life)))

    def run_in_executor(
        self, executor: Any, function: Callable[..., Any], *arguments: Any
    ) -> asyncio.Future[Any]:
        """Run a job of the current node's thread, inline, at the moments its disk chooses."""
        done = self.create_future()
        life = CURRENT.get()
        if life is not None and not life.alive:
            done.cancel()  # what is still taken down of it must come to an end
            return done
        starts_s, takes_s = life.job_times_s(executor) if life else (0.0, 0.0)
        self.call_later(starts_s, _run_job, life, done, takes_s, function, arguments)
        return done

    def _failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        life = getattr(context.get("future"), "life", None)
        if not isinstance(error, Died) and (life is None or life.alive):
            self.failures.append(f"{context.get('message')}: {error!r}")


class Died(BaseException):
    """The process of a node ends here: nothing of the node's may handle it."""


def _run_job(
    life: Life | None,
    done: asyncio.Future[Any],
    takes_s: float,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    if life is not None and not life.alive:
        return
    try:
        result = function(*arguments)
    except Died:
        return
    except BaseException as error:
        finish, value = _fail, error
    else:
        finish, value = _succeed, result
    asyncio.get_running_loop().call_later(takes_s, finish, done, value)


def _succeed(done: asyncio.Future[Any], result: Any) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[Any], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)


class _Task(asyncio.Task[Any]):
    """A task that knows whose it is."""

    life: Life | None = None


def _make_task(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """Tasks are kept with the life they belong to, so that its end is their end."""
    task = _Task(work, loop=loop, **options)
    context = options.get("context")
    life = context.get(CURRENT) if context is not None else CURRENT.get()
    if life is not None:
        task.life = life
        life.tasks[task] = None
        task.add_done_callback(life.tasks.pop)
    return task
