"""The persistence worker: it writes behind the answers, and never delays one.

One task on the event loop decides when a cycle runs; one thread of its own does what touches
SQLite. A cycle starts when the interval is over, when a store was requested, or when somebody
forces one. At its start the task takes the cut in a single step (`ledger.take`), the thread makes
it durable (`database.run`), the task books the result and answers who waits, and only then does the
thread fold large WALs, so that nobody waits for that.

Failures are logged (at most one line a store in `ERROR_EVERY_S`), counted and shown; the store
stays pending and is tried again at the next interval, or after the breaker's pause. They never end
the loop, and never keep the other stores from being written.

Forces share cycles: all that arrive while a cycle runs wait for the next one together, or for the
running one if it was forced too and its cut covers them. A force tries even where a breaker is
open.

With `enabled=False` everything stays in memory: there is no thread and no file, and a force is
refused. Memory, and disk, are given back by a task beside the loop (see `sweeper`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

from node.core.state import State
from node.errors import (
    PersistenceDisabled,
    PersistenceFailed,
    PersistenceTimeout,
    ReadBarrierTimeout,
)
from node.persistence.breaker import Breaker
from node.persistence.database import CyclePlan, CycleResult, Database
from node.persistence.directory import DataDirectory
from node.persistence.ledger import Account, Ledger
from node.persistence.report import ForceReport
from node.persistence.schema import Connect, connect
from node.persistence.sweeper import Sweeper

log = logging.getLogger(__name__)

# A failing disk fails at every interval; its log lines come this far apart, per store.
ERROR_EVERY_S = 30.0
# How long `stop` waits for a disk that does not answer before it gives the thread up.
STOP_TIMEOUT_MS = 60_000

WaitApplied = Callable[[int, int], Awaitable[None]]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker works; `name` stands in its log lines.

    Past `unpersisted_bytes_max` of frames in memory only, `overloaded` is true and appends are to
    be refused. After `breaker_failures` failures in a row a store is left alone for
    `breaker_pause_ms`.
    """

    name: str
    enabled: bool = True
    interval_ms: int = 5_000
    unpersisted_bytes_max: int = 1024 * 1024 * 1024
    breaker_failures: int = 5
    breaker_pause_ms: int = 30_000


class Worker:
    """Persists one state into one directory.

    `wait_applied(index, timeout_ms)` returns once the state has applied an index, and raises
    ReadBarrierTimeout; without it a force for an index that is not applied yet times out at once.
    `clock` is monotonic, in seconds; `held_from` is the `Sweeper`'s.
    """

    def __init__(
        self,
        state: State,
        directory: DataDirectory,
        settings: WorkerSettings,
        clock: Callable[[], float] = time.monotonic,
        wait_applied: WaitApplied | None = None,
        connect: Connect = connect,
        held_from: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._state = state
        self._directory = directory
        self._settings = settings
        self._name = settings.name
        self._clock = clock
        self._wait_applied = wait_applied
        self._interval_ms = settings.interval_ms
        self._ledger = Ledger(state, self._new_breaker, clock)
        told = [partial(self._book, one) for one in (self._ledger.doubted, self._ledger.cut_lost)]
        self._database = Database(directory, connect, clock, *told)
        swept = self._database if settings.enabled else None
        self._sweeper = Sweeper(
            state, self._ledger, swept, self._in_thread, held_from, self._log_error
        )
        self._sweeping: asyncio.Task[None] | None = None
        self._errors_logged: dict[str, float] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._asked = False
        self._stopping = False
        self._cycle_started_at = 0.0
        self._running: tuple[int, asyncio.Future[None]] | None = None
        self._next: asyncio.Future[None] | None = None
        # The state calls this for each change; bound here, it costs one call and one look-up.
        self.changed = self._ledger.changed if settings.enabled else _ignore

    # --- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the node's database and begin. What the state has beyond it is pending at once.

        Raises FileFault if the files cannot be used, and ValueError if the state is behind them.
        """
        if not self._settings.enabled:
            log.info("PersistenceWorker[%s] is disabled: data is in memory only", self._name)
            self._sweeping = asyncio.create_task(self._sweeper.run(), name="sweeper")
            return
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="persistence")
        try:
            cut, entries = await self._in_thread(self._database.open)
            self._ledger.open(cut, entries)
        except BaseException:
            await self._close_files()
            raise
        self._stopping = False
        self._cycle_started_at = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._run(), name="persistence")
        self._sweeping = asyncio.create_task(self._sweeper.run(), name="sweeper")
        log.info("PersistenceWorker[%s] is UP", self._name)

    async def stop(self, final_cycle: bool = True, timeout_ms: int = STOP_TIMEOUT_MS) -> bool:
        """End after a last cycle, and leave plain .db files; True if everything is on disk.

        Without `final_cycle` only a running cycle is finished. A disk that does not answer within
        `timeout_ms` is given up: False, and the thread ends with the process.
        """
        if self._sweeping is not None:
            self._sweeping.cancel()
        task, self._task = self._task, None
        if task is None:
            return False
        self._stopping = True
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await asyncio.shield(task)
                if final_cycle:
                    await self._cycle(forced=True)
                self._release(self._take_next())
                await self._close_files()
        except TimeoutError:
            log.error("PersistenceWorker[%s] gives up a disk that does not answer", self._name)
            return False
        log.info("PersistenceWorker[%s] is DOWN", self._name)
        return not self._ledger.behind

    async def _close_files(self) -> None:
        await self._in_thread(self._database.close)
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None

    # --- asking ------------------------------------------------------------------------------

    def request(self, store: str) -> None:
        """Queue a store for a cycle and start one soon. Raises PersistenceDisabled."""
        self._require_enabled()
        self._ledger.requested(store)
        self.hurry()

    def hurry(self) -> None:
        """Start a cycle soon, with whatever is pending."""
        self._asked = True
        self._wake.set()

    async def force(
        self, stores: Collection[str] | None, index: int, timeout_ms: int
    ) -> ForceReport:
        """Make everything up to raft index `index` durable, of these stores or (None) of all.

        Raises PersistenceDisabled; PersistenceTimeout if it takes longer than `timeout_ms` (the
        cycle goes on); PersistenceFailed, field `stores`, if a file of the asked stores or the
        node's database could not be written.
        """
        self._require_enabled()
        started, bytes_before = self._clock(), self._bytes_written(stores)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._applied(index, timeout_ms)
                if self._ledger.cut.raft_index < index or self._behind(stores, index):
                    await asyncio.shield(self._cycle_covering(index))
        except (TimeoutError, ReadBarrierTimeout) as error:
            raise PersistenceTimeout(
                f"raft index {index} was not on disk within {timeout_ms} ms"
            ) from error
        self._require_persisted(stores, index)
        accounts = self._accounts(stores)
        return ForceReport(
            persisted_index=min(
                (self._ledger.covered(account.name) for account in accounts),
                default=self._ledger.covered_index,
            ),
            persisted_position=sum(account.position for account in accounts),
            bytes=self._bytes_written(stores) - bytes_before,
            duration_ms=round((self._clock() - started) * 1000, 3),
            node_index=self._ledger.cut.raft_index,
        )

    def set_interval(self, interval_ms: int) -> None:
        """Change the time between cycles, from the last one on. Raises ValueError below 1."""
        if interval_ms < 1:
            raise ValueError(f"an interval of {interval_ms} ms is none")
        self._interval_ms = interval_ms
        self._wake.set()

    # --- looking -----------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Whether anything is ever written."""
        return self._settings.enabled

    @property
    def persisted_index(self) -> int:
        """The node's cut: the raft index that a restart gets back to. It is 0 while node.db, or a
        store's file that it lists, is to be written anew.
        """
        return self._ledger.cut.raft_index

    @property
    def backlog_bytes(self) -> int:
        """Bytes of frames that are in memory only; 0 where nothing is ever persisted."""
        return self._ledger.backlog_bytes() if self._settings.enabled else 0

    @property
    def overloaded(self) -> bool:
        """Whether the backlog is past its bound, so that appends should be refused."""
        return self.backlog_bytes > self._settings.unpersisted_bytes_max

    @property
    def set_aside(self) -> list[str]:
        """Files of the data directory that were damaged, or of no use: see `DataDirectory`."""
        return self._directory.aside

    def status(self) -> dict[str, object]:
        """The body of GET /v1/persistence."""
        return {
            "enabled": self._settings.enabled,
            "interval_ms": self._interval_ms,
            "breaker": self._ledger.breaker(),
            "persisted_index": self.persisted_index,
            "applied_index": self._state.applied_index,
            "backlog_bytes": self.backlog_bytes,
            "unpersisted_bytes_max": self._settings.unpersisted_bytes_max,
            "last_error": self._ledger.node_error,
            "set_aside": self.set_aside,
            "stores": {name: self.store_status(name) for name in sorted(self._state.stores)},
        }

    def store_status(self, name: str) -> dict[str, object]:
        """What `status` says of one store. Raises KeyError for one that does not exist."""
        store, account = self._state.stores[name], self._ledger.account(name)
        if account is None or account.uid != store.uid:
            account = Account(name, store.uid, store.origin, self._new_breaker())
        enabled = self._settings.enabled
        return {
            "persisted_index": self._ledger.covered(name),
            "persisted_position": account.position,
            "applied_index": self._state.applied_index,
            "pending_events": store.position - account.position if enabled else 0,
            "pending_bytes": self._ledger.unpersisted_bytes(name) if enabled else 0,
            "oldest_unpersisted_ms": self._ledger.oldest_ms(name),
            "last_duration_ms": round(account.last_duration_ms, 3),
            "last_error": account.last_error,
            "totals": asdict(account.totals),
        }

    # --- the loop ----------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._until_due()
            if self._stopping:
                return
            try:
                await self._cycle(forced=False)
            except Exception:
                # A defect of ours. What the cycle took is pending again with the next one.
                log.exception("PersistenceWorker[%s] failed", self._name)

    async def _until_due(self) -> None:
        """Wait for the interval to end, or for somebody to ask."""
        loop = asyncio.get_running_loop()
        while not self._asked and not self._stopping:
            left = self._cycle_started_at + self._interval_ms / 1000 - loop.time()
            if left <= 0:
                break
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()
        self._asked = False
        self._cycle_started_at = loop.time()

    async def _cycle(self, forced: bool) -> None:
        """One cycle. What files and disks do to it is in its result, not an exception."""
        waiting = self._take_next()
        forced = forced or waiting is not None
        plan = self._ledger.take(forced)
        done = waiting or asyncio.get_running_loop().create_future()
        # A force may not join a cycle that passes over stores whose breaker is open.
        self._running = (plan.cut.raft_index, done) if forced else None
        try:
            if plan.stores or plan.gone or plan.cut != self._ledger.cut:
                self._settle(plan, await self._write(plan))
        finally:
            self._running = None
            self._release(done)
        await self._in_thread(self._database.tidy)

    async def _write(self, plan: CyclePlan) -> CycleResult:
        if plan.stores:
            log.debug("PersistenceWorker[%s] persisting %d stores", self._name, len(plan.stores))
        try:
            return await self._in_thread(self._database.run, plan)
        except Exception as error:
            # A defect of ours. It must not end the loop, and must not pass for success.
            log.exception("PersistenceWorker[%s] failed", self._name)
            names = [cut.store.name for cut in plan.stores]
            return CycleResult(
                errors=dict.fromkeys(names, repr(error)),
                durations_ms=dict.fromkeys(names, 0.0),
                node_error=repr(error),
            )

    def _settle(self, plan: CyclePlan, result: CycleResult) -> None:
        self._ledger.settle(plan, result)
        for name in result.written:
            log.debug("Successfully persisted store %s", name)
        for name, error in result.errors.items():
            self._log_error(f"store {name}", error)
        if result.node_error is not None:
            self._log_error("the node's cut", result.node_error)

    def _book(self, what: Callable[..., None], *known: object) -> None:
        """In the persistence thread: the loop does it before it learns what came of the call that
        found it, and of any call behind that.
        """
        assert self._loop is not None, "the thread begins with it"
        self._loop.call_soon_threadsafe(what, *known)

    def _log_error(self, what: str, error: str) -> None:
        now = self._clock()
        if now - self._errors_logged.get(what, -ERROR_EVERY_S) < ERROR_EVERY_S:
            return
        self._errors_logged[what] = now
        log.error(
            "PersistenceWorker[%s] cannot persist %s, will try again: %s", self._name, what, error
        )

    # --- waiting -----------------------------------------------------------------------------

    def _cycle_covering(self, index: int) -> asyncio.Future[None]:
        """What ends with a cycle whose cut is at or past `index`, which the state has applied."""
        if self._running is not None and self._running[0] >= index:
            return self._running[1]
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        self.hurry()
        return self._next

    def _take_next(self) -> asyncio.Future[None] | None:
        taken, self._next = self._next, None
        return taken

    @staticmethod
    def _release(waiting: asyncio.Future[None] | None) -> None:
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def _applied(self, index: int, timeout_ms: int) -> None:
        if self._state.applied_index >= index:
            return
        if self._wait_applied is None:
            raise TimeoutError
        await self._wait_applied(index, timeout_ms)

    def _require_enabled(self) -> None:
        if not self._settings.enabled:
            raise PersistenceDisabled("this node keeps its data in memory only")
        if self._task is None:
            raise PersistenceFailed("the persistence worker does not run")

    def _require_persisted(self, stores: Collection[str] | None, index: int) -> None:
        """Raise PersistenceFailed unless the cycle that was waited for reached `index`."""
        behind = self._behind(stores, index)
        reason: str | None = None
        if behind:
            errors = [account.last_error for account in self._accounts(behind)]
            reason = next((error for error in errors if error), "the worker was stopped")
        elif self._ledger.covered_index < index:
            reason = "the worker was stopped"
        elif self._ledger.cut.raft_index < index:
            # A store whose file failed may be gone by now: then none of those asked for is behind.
            unmoved = "the cut has not moved" if stores is None else None
            reason = self._ledger.node_error or unmoved
        if reason is not None:
            raise PersistenceFailed(f"not everything is on disk: {reason}", stores=behind)

    def _behind(self, stores: Collection[str] | None, index: int) -> list[str]:
        """Which of these have files that are not complete up to `index`."""
        names = [account.name for account in self._accounts(stores)]
        return [name for name in names if self._ledger.covered(name) < index]

    # --- small things ------------------------------------------------------------------------

    def _new_breaker(self) -> Breaker:
        return Breaker(self._settings.breaker_failures, self._settings.breaker_pause_ms / 1000)

    def _accounts(self, stores: Collection[str] | None) -> list[Account]:
        names = self._state.stores if stores is None else stores
        return [found for name in names if (found := self._ledger.account(name)) is not None]

    def _bytes_written(self, stores: Collection[str] | None) -> int:
        return sum(account.totals.bytes for account in self._accounts(stores))

    async def _in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)


def _ignore(_: str) -> None:
    """Nothing is ever persisted, so nothing is pending."""
