"""What an event costs in memory, and how long a million of them take to come back from disk."""

from __future__ import annotations

import time

from cluster.bench import nodes, wrk
from cluster.bench.filling import fill
from cluster.bench.machine import resident_bytes
from cluster.bench.report import Report, Series
from cluster.supervisor import NodeProcess

FRAME_FACTOR = 1.5
EVENT_EXTRA_BYTES = 100


async def measure_memory(report: Report, events: int) -> None:
    """Compare a follower's resident bytes before and after the events; the Raft log apart."""
    report.heading(
        "memory",
        f"resident bytes (VmRSS) of a follower before and after {events:,} events of"
        f" {wrk.DATA_BYTES} B, flushed; filled by a Python client in batches, which is not timed.",
    )
    async with nodes.running() as cluster:
        follower = await cluster.follower()
        before = _resident_bytes(follower)
        await fill(cluster, events)
        await cluster.flush()
        grown = (_resident_bytes(follower) - before) / events
        metrics = await cluster.metrics(follower)
    frame = metrics[f'exesdb_store_frame_bytes{{store="{nodes.STORE}"}}'] / events
    log = next(v for name, v in metrics.items() if name.endswith("raft_log_bytes")) / events
    budget = FRAME_FACTOR * frame + EVENT_EXTRA_BYTES
    rows = [
        ["resident, all", f"{grown:.0f}"],
        ["the Raft log, as the node counts it", f"{log:.0f}"],
        ["resident, the Raft log not counted", f"{grown - log:.0f}"],
        ["frame", f"{frame:.0f}"],
    ]
    report.table(("bytes an event", "B"), rows)
    without_log = grown - log
    report.verdict(
        "resident an event, the Raft log not counted",
        f"{without_log:.0f} B",
        f"<= {FRAME_FACTOR} x frame + {EVENT_EXTRA_BYTES} B = {budget:.0f} B",
        without_log <= budget,
    )


async def measure_comeback(report: Report, repetitions: int, events: int) -> None:
    """Time a whole cluster's way from its files to ready, after a clean stop and after kill -9."""
    report.heading(
        "comeback",
        f"{events:,} events of {wrk.DATA_BYTES} B on disk; all three nodes start at once, on the"
        f" same cores; {repetitions} repetitions of each kind of stop.",
    )
    empty, stopped, killed = Series(), Series(), Series()
    async with nodes.running() as cluster:
        for _ in range(repetitions):
            await cluster.supervisor.stop()
            empty.add(await _time_to_ready(cluster))
        await fill(cluster, events)
        await cluster.flush()
        on_disk = cluster.disk_bytes()
        for _ in range(repetitions):
            await cluster.supervisor.stop()
            stopped.add(await _time_to_ready(cluster))
            await cluster.supervisor.kill()
            killed.add(await _time_to_ready(cluster))
            if (came_back := await cluster.events()) != events:
                raise RuntimeError(f"{came_back:,} events came back of {events:,}")
    rows = [
        ["0, SIGTERM", str(empty)],
        [f"{events:,}, SIGTERM", str(stopped)],
        [f"{events:,}, kill -9", str(killed)],
    ]
    report.table(("events, stopped by", "s until all three are ready"), rows)
    loading = stopped.median - empty.median
    report.progress(
        f"{events / loading:,.0f} events/s a node, the start without events not counted;"
        f" {on_disk / 2**20:,.0f} MiB on disk over three nodes"
    )


async def _time_to_ready(cluster: nodes.Cluster) -> float:
    start = time.monotonic()
    await cluster.supervisor.start()
    return time.monotonic() - start


def _resident_bytes(node: NodeProcess) -> int:
    assert node.pid is not None, f"{node.node.node_id} does not run"
    return resident_bytes(node.pid)
