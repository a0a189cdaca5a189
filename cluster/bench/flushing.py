"""What the disk costs: nothing to an append, and to a flush only what is new."""

from __future__ import annotations

from cluster.bench import nodes, wrk
from cluster.bench.filling import fill
from cluster.bench.report import Report, Series, ratio
from cluster.bench.wrk import Load

FLUSH_EVERY_MS = 100
DELAY_TARGET = 1.5

NEW_EVENTS = 1_000
FLUSHES_IN_REPETITION = 5
COST_TARGET = 1.5
_NEVER_MS = 3_600_000


async def measure_delay(report: Report, repetitions: int, seconds: int) -> None:
    """Compare the p99 of appends with a flush every 100 ms and with persistence disabled."""
    report.heading(
        "flush-delay",
        f"{repetitions} repetitions by turns, {seconds} s each, a fresh cluster each; wrk, 64"
        " connections to the leader, one event a request, JSON.",
    )
    flushing, memory_only = "a flush every 100 ms", "persistence disabled"
    p50: dict[str, Series] = {flushing: Series(), memory_only: Series()}
    p99: dict[str, Series] = {flushing: Series(), memory_only: Series()}
    rate: dict[str, Series] = {flushing: Series(), memory_only: Series()}
    for repetition in range(repetitions):
        report.progress(f"repetition {repetition + 1} of {repetitions}")
        for setting, options in (
            (flushing, nodes.Options(interval_ms=FLUSH_EVERY_MS)),
            (memory_only, nodes.Options(persistence=False)),
        ):
            async with nodes.running(options) as cluster:
                leader = await cluster.leader()
                await nodes.warm_up(leader)
                outcome = await nodes.load(leader, Load(64, 1, seconds))
            p50[setting].add(outcome.p50_ms)
            p99[setting].add(outcome.p99_ms)
            rate[setting].add(outcome.events_per_s)
    rows = [[name, str(rate[name]), str(p50[name]), str(p99[name])] for name in p99]
    report.table(("setting", "events/s", "p50 ms", "p99 ms"), rows)
    slower = ratio(p99[flushing], p99[memory_only])
    report.verdict("p99", f"{slower:.2f} x", f"<= {DELAY_TARGET} x", slower <= DELAY_TARGET)


async def measure_cost(report: Report, repetitions: int, few: int, many: int) -> None:
    """Compare flushing 1,000 new events on top of few and of many stored ones."""
    flushes = repetitions * FLUSHES_IN_REPETITION
    report.heading(
        "flush-cost",
        f"{flushes} flushes of {NEW_EVENTS:,} new events of {wrk.DATA_BYTES} B with {few:,} stored,"
        f" then with {many:,}; one cluster, no flush but these; the time is the leader's own.",
    )
    async with nodes.running(nodes.Options(interval_ms=_NEVER_MS)) as cluster:
        await fill(cluster, few)
        on_few = await _flushes(cluster, flushes)
        report.progress(f"filling up to {many:,} events")
        await fill(cluster, many - await cluster.events())
        on_many = await _flushes(cluster, flushes)
    rows = [[f"{few:,}", str(on_few)], [f"{many:,}", str(on_many)]]
    report.table(("events stored", f"ms to flush {NEW_EVENTS:,} new ones"), rows)
    grown = ratio(on_many, on_few)
    report.verdict("ratio", f"{grown:.2f}", f"<= {COST_TARGET}", grown <= COST_TARGET)


async def _flushes(cluster: nodes.Cluster, count: int) -> Series:
    """Flush what is there, then time `count` flushes of new events; milliseconds."""
    await cluster.flush()
    leader = await cluster.leader()
    durations = Series()
    for _ in range(count):
        await fill(cluster, NEW_EVENTS)
        durations.add(await cluster.flush_one(leader))
    return durations
