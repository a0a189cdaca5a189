"""Appends beside etcd's puts: the same machine, the same minutes, three nodes each, by turns.

Each repetition starts a fresh cluster of ours, loads its leader, stops it, and does the same with a
fresh etcd. Running them by turns lets both meet the same good and bad minutes of the machine, and
running them one at a time lets neither take the other's processor.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from cluster.bench import etcd, nodes, wrk
from cluster.bench.report import Report, Series, ratio
from cluster.bench.wrk import Load, Outcome


class Point(NamedTuple):
    """One load that is measured."""

    title: str
    load: Load
    peer: bool
    """Whether etcd is given it too. What etcd has no word for is measured on ours alone."""


def points(seconds: int) -> list[Point]:
    return [
        Point("1 connection", Load(1, 1, seconds), peer=True),
        Point("64 connections", Load(64, 1, seconds), peer=True),
        Point("16 connections, 100 a request", Load(16, 100, seconds), peer=True),
        Point(
            "the same, CBOR",
            Load(16, 100, seconds, "application/cbor"),
            peer=False,
        ),
    ]


class Figures:
    """What one system came to at one point, over the repetitions."""

    def __init__(self) -> None:
        self.events_per_s = Series()
        self.p50_ms = Series()
        self.p99_ms = Series()
        self.failed = 0

    def add(self, outcome: Outcome) -> None:
        self.events_per_s.add(outcome.events_per_s)
        self.p50_ms.add(outcome.p50_ms)
        self.p99_ms.add(outcome.p99_ms)
        self.failed += outcome.failed

    def row(self, *names: str) -> list[str]:
        figures = (self.events_per_s, self.p50_ms, self.p99_ms, self.failed)
        return [*names, *map(str, figures)]


OURS, THEIRS = "ex-esdb", "etcd"
_Table = dict[tuple[str, str], Figures]


async def measure(report: Report, repetitions: int, seconds: int, etcd_bench: Path | None) -> None:
    report.heading(
        "append",
        f"{repetitions} repetitions of {seconds} s a point, {wrk.DATA_BYTES}-byte events, to the"
        f" leader, three nodes and the load on this machine; {etcd.WARM_UP_S} s of the same load"
        " before each are not counted.\n"
        "ex-esdb: HTTP with wrk, JSON unless said otherwise; acknowledged from the memory of a"
        f" majority, default settings, persistence every {nodes.DEFAULT_INTERVAL_MS} ms.\n"
        "etcd: gRPC with a Go client, 64 workers on 8 connections; acknowledged once a majority has"
        " synced it to disk, default settings; 100 events are one transaction.",
    )
    generator: Path | None = None
    try:
        generator = etcd.find_generator(etcd_bench)
    except etcd.EtcdMissing as missing:
        report.skipped("etcd", str(missing))
    table: _Table = defaultdict(Figures)
    for repetition in range(1, repetitions + 1):
        report.progress(f"repetition {repetition} of {repetitions}")
        await _load_ours(table, seconds)
        if generator is not None:
            await _load_etcd(table, seconds, generator)
    _show(report, table, seconds)


async def _load_ours(table: _Table, seconds: int) -> None:
    async with nodes.running() as cluster:
        leader = await cluster.leader()
        await nodes.warm_up(leader)
        for point in points(seconds):
            # etcd's load generator counts nothing in its first seconds, and so do we.
            await nodes.load(leader, point.load._replace(seconds=etcd.WARM_UP_S))
            table[OURS, point.title].add(await nodes.load(leader, point.load))


async def _load_etcd(table: _Table, seconds: int, generator: Path) -> None:
    with etcd.running() as leader:
        for number, point in enumerate(points(seconds)):
            if point.peer:
                prefix = f"point{number}"
                table[THEIRS, point.title].add(
                    await asyncio.to_thread(etcd.load, generator, leader, point.load, prefix)
                )


def _show(report: Report, table: _Table, seconds: int) -> None:
    titles = [point.title for point in points(seconds)]
    rows = [
        table[system, title].row(title, system)
        for title in titles
        for system in (OURS, THEIRS)
        if (system, title) in table
    ]
    columns = ("load", "system", "events/s", "p50 ms", "p99 ms", "failed requests")
    report.table(columns, rows)
    one, many, batches, batches_cbor = titles
    best = max(
        table[OURS, batches].events_per_s.median, table[OURS, batches_cbor].events_per_s.median
    )
    report.verdict("batches of 100", f"{best:,.0f} events/s", ">= 100,000", best >= 100_000)
    if (THEIRS, one) in table:
        _compare(report, table, one, many)


def _compare(report: Report, table: _Table, one: str, many: str) -> None:
    ours, theirs = table[OURS, many], table[THEIRS, many]
    faster = ratio(ours.events_per_s, theirs.events_per_s)
    report.verdict(f"events/s, {many}", f"{faster:.2f} x etcd", ">= 2 x", faster >= 2)
    for name in ("p50_ms", "p99_ms"):
        share = ratio(getattr(ours, name), getattr(theirs, name))
        report.verdict(f"{name}, {many}", f"{share:.2f} x etcd", "< 1 x", share < 1)
    alone = ratio(table[OURS, one].p50_ms, table[THEIRS, one].p50_ms)
    report.verdict(f"p50_ms, {one}", f"{alone:.2f} x etcd", "<= 1 x", alone <= 1)
