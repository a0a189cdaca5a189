"""What a cycle costs, and whom. Generous bounds: these run beside everything else on two cores."""

from __future__ import annotations

import asyncio
import statistics
import time

import pytest

from node.persistence.directory import DataDirectory
from tests.persistence.histories import History
from tests.persistence.workers import BOUND_MS, settings, store_status, working

CYCLES = 15
NEW_EVENTS = 1000


async def _median_cycle_ms(directory: DataDirectory, history: History, stored: int) -> float:
    """The median time of cycles with `NEW_EVENTS` new events, behind `stored` others."""
    async with working(history, directory) as worker:
        while history.state.stores["alpha"].position < stored:
            history.append("alpha", f"s{history.index % 500}", count=1000)
        await worker.force(None, history.index, 10 * BOUND_MS)
        durations = []
        for _ in range(CYCLES):
            for at in range(10):
                history.append("alpha", f"s{at * 37}", count=NEW_EVENTS // 10)
            await worker.force(None, history.index, BOUND_MS)
            durations.append(store_status(worker, "alpha")["last_duration_ms"])
    return statistics.median(durations)


async def test_a_cycle_costs_what_is_new_not_what_is_stored(directory: DataDirectory) -> None:
    history = History()
    history.create("alpha")
    few = await _median_cycle_ms(directory, history, 5_000)
    many = await _median_cycle_ms(directory, history, 150_000)
    print(f"median cycle: {few:.1f} ms behind 5,000 events, {many:.1f} ms behind 150,000")
    assert many < 2.5 * few + 5


async def test_cycles_hardly_ever_stall_the_event_loop(directory: DataDirectory) -> None:
    """10,000 events a second come in while a cycle runs every 100 ms."""
    seconds, ticks_a_second, events_a_tick = 1.5, 500, 20
    history = History()
    history.create("alpha")
    late_ms = []
    async with working(history, directory, settings=settings(interval_ms=100)) as worker:
        started = time.perf_counter()
        for tick in range(int(seconds * ticks_a_second)):
            due = started + tick / ticks_a_second
            before = time.perf_counter()
            await asyncio.sleep(max(0.0, due - before))
            late_ms.append((time.perf_counter() - max(due, before)) * 1000)
            history.append("alpha", f"s{tick % 100}", count=events_a_tick, size=200)
        assert store_status(worker, "alpha")["totals"]["cycles"] >= 3
    p50, p99 = statistics.median(late_ms), statistics.quantiles(late_ms, n=100)[98]
    print(f"the event loop was late by {p50:.2f} ms at p50, {p99:.2f} ms at p99")
    assert p99 < 20


@pytest.mark.slow
async def test_a_hundred_thousand_events_are_written_without_long_stalls(
    directory: DataDirectory,
) -> None:
    history = History()
    history.create("alpha")
    for at in range(100):
        history.append("alpha", f"s{at}", count=1000, size=200)
    late_ms = []
    async with working(history, directory) as worker:
        cycle = asyncio.ensure_future(worker.force(None, history.index, 10 * BOUND_MS))
        while not cycle.done():
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            late_ms.append((time.perf_counter() - before - 0.001) * 1000)
        print(f"{(await cycle).duration_ms:.0f} ms for 100,000 events")
    p99 = statistics.quantiles(late_ms, n=100)[98]
    print(f"the event loop was late by {p99:.2f} ms at p99, {max(late_ms):.2f} ms at most")
    assert p99 < 20
