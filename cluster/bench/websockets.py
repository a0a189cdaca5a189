"""Appends and catching up over WebSockets, beside NATS JetStream: same machine, same minutes.

Each repetition starts a fresh cluster of ours, loads its leader over one WebSocket, lets a follower
catch up at another node, stops it, and does the same with a fresh NATS. What all processes of a
system, the load's included, spent on an event stands beside the events a second: they are bound by
the processors. Starting the load is in it, so it means little where few events were handled.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cluster.bench import loads, nats, nodes
from cluster.bench.machine import processor_s
from cluster.bench.pipelining import DATA_BYTES, WARM_UP_S
from cluster.bench.report import Report, Series, ratio

OURS, THEIRS = "ex-esdb", "nats"
TIMES_NATS = 2.0
BATCHED_PER_S = 150_000
CAUGHT_UP_PER_S = 250_000


class Point(NamedTuple):
    """One load: appends under way, and events in each."""

    title: str
    under_way: int
    batch: int


SINGLE = Point("1 event, 64 under way", 64, 1)
MANY = Point("1 event, 1,024 under way", 1_024, 1)
BATCHED = Point("100 events, 16 under way", 16, 100)
CATCH_UP = "catching up"


class Figures:
    """What one system came to at one point, over the repetitions."""

    def __init__(self) -> None:
        self.events_per_s = Series()
        self.p50_ms = Series()
        self.p99_ms = Series()
        self.cost_us = Series()
        self.load_share = Series()

    def add(self, found: dict[str, Any], system_s: float, load_s: float, events: float) -> None:
        """`events` were handled for the processor seconds; `found` is what the load saw."""
        self.events_per_s.add(found["events_per_s"])
        if "p50_ms" in found:
            self.p50_ms.add(found["p50_ms"])
            self.p99_ms.add(found["p99_ms"])
        self.cost_us.add((system_s + load_s) / events * 1e6)
        self.load_share.add(load_s / (system_s + load_s) * 100)

    def row(self, *names: str) -> list[str]:
        """The figures as a table shows them."""
        figures = (self.events_per_s, self.p50_ms, self.p99_ms, self.cost_us, self.load_share)
        return [*names, *(str(one) if one.values else "-" for one in figures)]


_Table = dict[tuple[str, str], Figures]


async def measure(
    report: Report, repetitions: int, seconds: int, many: int, nats_bench: Path | None
) -> None:
    """Measure all points `repetitions` times; a follower catches up with `many` events."""
    report.heading(
        "websocket",
        f"{repetitions} repetitions of {seconds} s a point, {DATA_BYTES}-byte events, three nodes"
        f" and the load on this machine; {WARM_UP_S:g} s of the same load before are not counted.\n"
        "ex-esdb: one WebSocket to the leader, a Python client; acknowledged from the memory of a"
        " majority, default settings. Catching up: one follower at another node, from the first of"
        f" {many:,} events.\n"
        "nats: JetStream, three replicas in memory, requests for an ack by a Go client on at most"
        " 8 connections.",
    )
    generator: Path | None = None
    try:
        generator = nats.find_generator(nats_bench)
    except nats.NatsMissing as missing:
        report.skipped("nats", str(missing))
    table: _Table = defaultdict(Figures)
    for repetition in range(1, repetitions + 1):
        report.progress(f"repetition {repetition} of {repetitions}")
        await _measure_ours(table, seconds, many)
        if generator is not None:
            with nats.running() as cluster:
                for point in (SINGLE, MANY):
                    await _measure_nats(table, cluster, generator, point, seconds)
    _show(report, table)


async def _measure_ours(table: _Table, seconds: int, many: int) -> None:
    async with nodes.running() as cluster:
        pids = [node.pid for node in cluster.supervisor.nodes.values() if node.pid]
        leader = (await cluster.leader()).node.url
        for point in (SINGLE, MANY, BATCHED):
            options = ("--under-way", point.under_way, "--batch", point.batch)
            appended = partial(_load, pids, "append", leader, *options, "--seconds", seconds)
            found, system_s, load_s = await appended()
            events = found["events_per_s"] * (seconds + WARM_UP_S)
            table[OURS, point.title].add(found, system_s, load_s, events)
        while await cluster.events() < many:
            await appended()
        follower = (await cluster.follower()).node.url
        found, system_s, load_s = await _load(pids, "catch-up", follower)
        table[OURS, CATCH_UP].add(found, system_s, load_s, found["events"])


async def _load(pids: Sequence[int], what: str, url: str, *options: object) -> loads.Done:
    return await loads.run(pids, "pipelining", what, url, nodes.STORE, *options)


async def _measure_nats(
    table: _Table, cluster: nats.Running, generator: Path, point: Point, seconds: int
) -> None:
    system_s, load_s = sum(map(processor_s, cluster.pids)), loads.children_s()
    found = await asyncio.to_thread(nats.load, generator, cluster.leader, point.under_way, seconds)
    system_s, load_s = sum(map(processor_s, cluster.pids)) - system_s, loads.children_s() - load_s
    events = found["events_per_s"] * (seconds + nats.WARM_UP_S)
    table[THEIRS, point.title].add(found, system_s, load_s, events)


def _show(report: Report, table: _Table) -> None:
    titles = (SINGLE.title, MANY.title, BATCHED.title, CATCH_UP)
    rows = [
        table[system, title].row(title, system)
        for title in titles
        for system in (OURS, THEIRS)
        if (system, title) in table
    ]
    columns = ("load", "system", "events/s", "p50 ms", "p99 ms", "processor us an event", "load %")
    report.table(columns, rows)
    for title in (SINGLE.title, MANY.title):
        if (THEIRS, title) in table:
            ours, theirs = table[OURS, title], table[THEIRS, title]
            faster = ratio(ours.events_per_s, theirs.events_per_s)
            met = faster >= TIMES_NATS
            report.verdict(f"events/s, {title}", f"{faster:.2f} x nats", ">= 2 x", met)
    for title, wanted in ((BATCHED.title, BATCHED_PER_S), (CATCH_UP, CAUGHT_UP_PER_S)):
        rate = table[OURS, title].events_per_s.median
        shown = f"{rate:,.0f} events/s, {rate / wanted:.2f} x"
        report.verdict(title, shown, f">= {wanted:,}", rate >= wanted)
