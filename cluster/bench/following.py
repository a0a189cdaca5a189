"""Followers: how fast one catches up over server-sent events, how late a hundred hear of appends.

All follow one node that does not lead, which is the harder place: what it serves has come to it
from the leader. Each is a connection of one load process (`followers`). Beside the hundred there is
one that never reads, from the first event on: what the node holds for it must be bounded, and it
must be cut off. Memory is the serving node's growth beyond that of the other follower, which stores
the same events and serves nobody.
"""

from __future__ import annotations

import asyncio

from cluster.bench import loads, nodes
from cluster.bench.filling import fill
from cluster.bench.followers import WARM_UP_S
from cluster.bench.machine import resident_bytes
from cluster.bench.report import Report, Series
from cluster.bench.wrk import DATA_BYTES, event_template
from cluster.supervisor import NodeProcess

CAUGHT_UP_PER_S = 60_000
FOLLOWERS, RATE = 100, 1_000
P99_MS = 50.0
HELD_MIB = 64.0
_CUT_OFF_S = 15
"""A follower that takes nothing is cut off after 10 s."""
_SAMPLE_S = 0.25


async def measure(report: Report, repetitions: int, seconds: int, many: int) -> None:
    """Catch up with `many` events, and then hear of steady appends, `repetitions` times each."""
    seconds = max(seconds, _CUT_OFF_S)
    report.heading(
        "following",
        f"{many:,} events with {DATA_BYTES} B of data stored, three nodes with default settings and"
        f" the load on this machine; {repetitions} repetitions. Server-sent events, as JSON, from a"
        " node that follows; the load reads them and finds each, but does not decode its data.\n"
        f"Fan-out: {FOLLOWERS} followers and one that never reads, {RATE:,} appends/s of one event"
        f" over a WebSocket to the leader, for {seconds} s; {WARM_UP_S:g} s before are not counted."
        " From the answer to the event at a follower, over all events and followers.",
    )
    async with nodes.running() as cluster:
        await fill(cluster, many, data=event_template()["data"])
        await cluster.flush()
        leader, serving = await cluster.leader(), await cluster.follower()
        caught_up, costs, shares = Series(), Series(), Series()
        for repetition in range(1, repetitions + 1):
            report.progress(f"catching up, {repetition} of {repetitions}")
            found, system_s, load_s = await loads.run(
                [_pid(serving)], "followers", "catch-up", serving.node.url, nodes.STORE
            )
            caught_up.add(found["events_per_s"])
            costs.add(system_s / found["events"] * 1e6)
            shares.add(load_s / (system_s + load_s) * 100)
        report.table(
            ("load", "events/s", "processor us an event at the node", "load %"),
            [["one follower catches up", *map(str, (caught_up, costs, shares))]],
        )
        fan = _Fan()
        for repetition in range(1, repetitions + 1):
            report.progress(f"fan-out, {repetition} of {repetitions}")
            await fan.add(cluster, leader, serving, seconds)
    rate = caught_up.median
    times = rate / CAUGHT_UP_PER_S
    report.verdict(
        "catching up, SSE as JSON",
        f"{rate:,.0f} events/s, {times:.2f} x",
        f">= {CAUGHT_UP_PER_S:,}",
        times >= 1,
    )
    fan.tell(report)


class _Fan:
    """The figures of the fan-out, by repetition."""

    def __init__(self) -> None:
        self._appended, self._p50_ms, self._p99_ms, self._max_ms = (Series() for _ in range(4))
        self._cost_us, self._held_mib, self._cut_off = (Series() for _ in range(3))

    async def add(
        self, cluster: nodes.Cluster, leader: NodeProcess, serving: NodeProcess, seconds: int
    ) -> None:
        """Measure once."""
        (other,) = (
            node for node in cluster.supervisor.nodes.values() if node not in (leader, serving)
        )
        grown, other_grown = _Growth(_pid(serving)), _Growth(_pid(other))
        watching = asyncio.create_task(grown.watch())
        cut_off = await _slow_consumers(cluster, serving)
        try:
            found, system_s, _ = await loads.run(
                *([_pid(serving)], "followers", "fan-out", serving.node.url, nodes.STORE),
                *("--leader", leader.node.url, "--followers", FOLLOWERS, "--rate", RATE),
                *("--seconds", seconds),
            )
        finally:
            watching.cancel()
            await asyncio.wait((watching,))
        self._appended.add(found["events_per_s"])
        self._p50_ms.add(found["p50_ms"])
        self._p99_ms.add(found["p99_ms"])
        self._max_ms.add(found["max_ms"])
        self._cost_us.add(system_s / found["delivered"] * 1e6)
        self._held_mib.add((grown.most - other_grown.now()) / 2**20)
        self._cut_off.add(await _slow_consumers(cluster, serving) - cut_off)

    def tell(self, report: Report) -> None:
        """The table, and beside what was asked for."""
        columns = ("appends/s", "p50 ms", "p99 ms", "worst ms", "us a delivery at the node")
        figures = (self._appended, self._p50_ms, self._p99_ms, self._max_ms, self._cost_us)
        report.table(
            ("followers", *columns, "MiB beyond the other node", "cut off"),
            [[str(FOLLOWERS), *map(str, (*figures, self._held_mib, self._cut_off))]],
        )
        p99, held = self._p99_ms.median, max(self._held_mib.values)
        report.verdict(
            f"fan-out to {FOLLOWERS}, p99",
            f"{p99:.1f} ms, {p99 / P99_MS:.2f} x",
            f"<= {P99_MS:g} ms",
            p99 <= P99_MS,
        )
        report.verdict(
            "memory with one that does not read",
            f"{held:.1f} MiB at most, cut off {min(self._cut_off.values):g} of 1",
            f"<= {HELD_MIB:g} MiB, cut off",
            held <= HELD_MIB and min(self._cut_off.values) == 1,
        )


class _Growth:
    """How much more memory a process holds than when this was made, in bytes."""

    def __init__(self, pid: int) -> None:
        self.most = 0
        self._pid = pid
        self._first = resident_bytes(pid)

    def now(self) -> int:
        return resident_bytes(self._pid) - self._first

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            self.most = max(self.most, self.now())
            await asyncio.sleep(_SAMPLE_S)


def _pid(node: NodeProcess) -> int:
    if node.pid is None:
        raise RuntimeError(f"{node.node.node_id} has ended")
    return node.pid


async def _slow_consumers(cluster: nodes.Cluster, node: NodeProcess) -> float:
    """How many followers the node has cut off so far."""
    return (await cluster.metrics(node))["exesdb_slow_consumers_total"]
