"""What it costs when a node comes back: the bytes sent to it, and the leader's appends meanwhile.

A follower is stopped, misses some events, and is started again, once where the leader's log still
holds what it missed and once where it does not and the node is filled. A restart that missed next
to nothing is measured beside them: on one machine a starting node takes a core from the others, and
that is not what its return costs a leader elsewhere.

The load is steady and small (`_CONNECTIONS` clients that pause between appends), so that it can
come from here and a percentile means waiting, not queueing.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from cluster.bench import nodes
from cluster.bench.filling import fill
from cluster.bench.report import Report, Series
from cluster.bench.wrk import DATA_BYTES
from cluster.supervisor import NodeProcess

SHORT_LOG_ENTRIES = 100
_CUT_S = 0.5  # a node cuts its log every quarter of a second
BYTES_TARGET = 1.5
P99_TARGET = 2.0
_CONNECTIONS = 8
_PAUSE_S = 0.01
_TRIES = 3
_SETTLE_S = 1.0
_MEANWHILE_S_MIN = 3.0
_TIMEOUT = aiohttp.ClientTimeout(total=30)


class Return:
    """The figures of one kind of return, by repetition."""

    def __init__(self) -> None:
        self.ready_s, self.lacked, self.sent = Series(), Series(), Series()
        self.before_ms, self.meanwhile_ms, self.worst_ms = Series(), Series(), Series()
        self.filled = Series()

    @property
    def bytes_ratio(self) -> float:
        """Sent by lacked; the median of the repetitions' own ratios."""
        pairs = zip(self.sent.values, self.lacked.values, strict=True)
        return Series([sent / max(lacked, 1) for sent, lacked in pairs]).median

    @property
    def p99_ratio(self) -> float:
        """Meanwhile by before, in the same way."""
        pairs = zip(self.meanwhile_ms.values, self.before_ms.values, strict=True)
        return Series([meanwhile / before for meanwhile, before in pairs]).median


async def measure_return(
    report: Report, repetitions: int, seconds: int, stored: int, missed: tuple[int, ...]
) -> None:
    """Stop a follower, append, start it; for each number of missed events, in both ways."""
    report.heading(
        "return",
        f"{stored:,} events of {DATA_BYTES} B stored; a follower is stopped (SIGTERM), misses"
        f" events, is started; {_CONNECTIONS} connections append one event a request all the time,"
        f" with pauses of {_PAUSE_S * 1000:.0f} ms; {repetitions} repetitions.",
    )
    for way, options in (
        ("from the log", nodes.Options()),
        ("filled", nodes.Options(more=(f"--log-tail-entries-max={SHORT_LOG_ENTRIES}",))),
    ):
        async with nodes.running(options) as cluster:
            await fill(cluster, stored)
            await cluster.flush()
            kinds = {count: Return() for count in (0, *missed)}
            for _, (count, figures) in itertools.product(range(repetitions), kinds.items()):
                for _ in range(_TRIES):
                    if await _one(cluster, count, figures, seconds):
                        break
                    report.progress("the leader changed; this one does not count")
                seconds_to_ready = figures.ready_s.values[-1]
                report.progress(f"{way}, {count:,} missed: ready in {seconds_to_ready:.1f} s")
        _tell(report, way, kinds)


def _tell(report: Report, way: str, kinds: dict[int, Return]) -> None:
    rows = [
        [
            f"{way}, {count:,}",
            *map(str, (one.ready_s, one.lacked, one.sent, one.filled)),
            *map(str, (one.before_ms, one.meanwhile_ms, one.worst_ms)),
        ]
        for count, one in kinds.items()
    ]
    columns = ("s to ready", "KiB lacked", "KiB sent", "of it filled")
    report.table(("missed", *columns, "p99 ms before", "meanwhile", "worst"), rows)
    for count, one in kinds.items():
        if count:
            asked = f"<= {BYTES_TARGET} x"
            ratio = one.bytes_ratio
            report.verdict(
                f"bytes, {way}, {count:,}", f"{ratio:.2f} x", asked, ratio <= BYTES_TARGET
            )
        ratio, asked = one.p99_ratio, f"<= {P99_TARGET} x"
        report.verdict(f"p99, {way}, {count:,}", f"{ratio:.2f} x", asked, ratio <= P99_TARGET)


async def _one(cluster: nodes.Cluster, count: int, figures: Return, seconds: int) -> bool:
    """One return; False if the leader changed on the way, for then its figures mean nothing."""
    leader = await cluster.leader()
    follower = await cluster.follower()
    (other,) = (one for one in cluster.supervisor.nodes.values() if one not in (leader, follower))
    had = await _frame_bytes(cluster, leader)
    await follower.stop()
    await fill(cluster, count, [leader.node.url])
    await _persist(cluster, leader)
    async with _steady(leader) as latencies:
        await asyncio.sleep(_SETTLE_S)
        began = len(latencies)
        await asyncio.sleep(seconds)
        before = latencies[began:]
        await _persist(cluster, leader)
        await asyncio.sleep(_CUT_S)
        sent = await _sent(cluster, leader, follower, other)
        lacked = await _frame_bytes(cluster, leader) - had
        start, began = time.monotonic(), len(latencies)
        await follower.start()
        await follower.wait_ready()
        ready_s = time.monotonic() - start
        await asyncio.sleep(max(0.0, _MEANWHILE_S_MIN - (time.monotonic() - start)))
        meanwhile = latencies[began:]
        now_sent = await _sent(cluster, leader, follower, other)
    if await cluster.leader() is not leader:
        return False
    figures.ready_s.add(ready_s)
    figures.lacked.add(lacked / 1024)
    figures.sent.add((now_sent[0] - sent[0]) / 1024)
    figures.filled.add((now_sent[1] - sent[1]) / 1024)
    figures.before_ms.add(_p99(before))
    figures.meanwhile_ms.add(_p99(meanwhile))
    figures.worst_ms.add(max(meanwhile))
    return True


async def _persist(cluster: nodes.Cluster, leader: NodeProcess) -> None:
    """What is on disk may leave the log; the flush of the missing node fails, and may."""
    await cluster.ask("POST", "/v1/persistence/force?scope=node", [leader.node.url])


async def _frame_bytes(cluster: nodes.Cluster, node: NodeProcess) -> float:
    return (await cluster.metrics(node))[f'exesdb_store_frame_bytes{{store="{nodes.STORE}"}}']


async def _sent(
    cluster: nodes.Cluster, leader: NodeProcess, follower: NodeProcess, other: NodeProcess
) -> tuple[float, float]:
    """Bytes that the leader sent to the follower beyond what everybody gets, and what of all that
    it sent was fills. The other follower may be filled, too, where the log is as short as here.
    """
    metrics = await cluster.metrics(leader)
    others_fills = (await cluster.metrics(other))["exesdb_raft_fill_bytes_received"]

    def to(node: NodeProcess) -> float:
        return metrics.get(f'exesdb_raft_bytes_sent_to{{peer="{node.node.node_id}"}}', 0.0)

    filled = metrics["exesdb_raft_fill_bytes_sent"] - others_fills
    return to(follower) - (to(other) - others_fills), filled


@asynccontextmanager
async def _steady(leader: NodeProcess) -> AsyncIterator[list[float]]:
    """Append all the time; the latencies so far, in milliseconds."""
    latencies: list[float] = []
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        clients = [
            asyncio.create_task(_client(session, leader, latencies)) for _ in range(_CONNECTIONS)
        ]
        try:
            yield latencies
        finally:
            for client in clients:
                client.cancel()
            for outcome in await asyncio.gather(*clients, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome


async def _client(session: aiohttp.ClientSession, leader: NodeProcess, to: list[float]) -> None:
    stream = f"steady-{uuid.uuid4().hex[:12]}"
    url = f"{leader.node.url}/v1/stores/{nodes.STORE}/streams/{stream}/events"
    while True:
        event = {
            "event_id": str(uuid.uuid4()),
            "event_type": "OrderPlaced",
            "data": os.urandom(DATA_BYTES // 2).hex(),
        }
        start = time.perf_counter()
        async with session.post(url, json={"events": [event]}) as response:
            await response.read()
            if response.status != 201:
                raise RuntimeError(f"an append was answered {response.status}")
        to.append((time.perf_counter() - start) * 1000)
        await asyncio.sleep(_PAUSE_S)


def _p99(latencies: list[float]) -> float:
    return sorted(latencies)[int(len(latencies) * 0.99)]
