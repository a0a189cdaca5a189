"""How long appends stop when the leader is killed, and whether load alone makes elections.

Each round: 64 connections append through the two survivors-to-be as fast as they are answered (by
wrk, which takes less of the machine than a client in Python), the leader is killed with -9, and a
client at each survivor sends one append after the other. Measured is the time from the kill to the
first acknowledgement of an append that was sent after it. Then the killed node comes back, and the
next round begins when it is ready.

Steady load: the same load on all nodes, without faults; the terms that pass meanwhile are false
elections.

What gives the time: a follower waits 400 to 900 ms (`election_min_ms`, `election_max_ms`) after the
last word of the leader, pre-votes and votes take a round trip each and an fsync of the vote, and
the new leader's first entry another. If two stand at once the vote may be split, and it begins
again after another 400 to 900 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from rich.console import Console
from rich.table import Table

from cluster import topology
from cluster.bench import wrk
from cluster.bench.ports import free_ports
from cluster.supervisor import Supervisor

NODES = 3
STORE = "my_store"
CONNECTIONS = 64
WARM_S = 1.5
LOAD_S = 5
STEADY_RUN_S = 30
GIVE_UP_S = 20.0
MEDIAN_TARGET_S, WORST_TARGET_S = 1.0, 2.5

_REQUEST = aiohttp.ClientTimeout(total=10)
_PAUSE_S = 0.005


class Outcome(NamedTuple):
    """What was measured. Times in seconds; `elections` are those without a fault."""

    gaps_s: list[float]
    terms: list[int]
    steady_s: float
    events: int
    elections: int


def met(outcome: Outcome) -> bool:
    """Whether all targets were met."""
    gaps = outcome.gaps_s or [0.0]
    return (
        statistics.median(gaps) <= MEDIAN_TARGET_S
        and max(gaps) <= WORST_TARGET_S
        and outcome.elections == 0
    )


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The figures, in terms of JSON."""
    return {**outcome._asdict(), "met": met(outcome)}


def show(outcome: Outcome, console: Console) -> None:
    """A table for people."""
    table = Table("what", "came out", "asked for")
    if outcome.gaps_s:
        gaps = sorted(outcome.gaps_s)
        table.add_row("leaders killed", str(len(gaps)), "")
        table.add_row("next acknowledged append, median", f"{statistics.median(gaps):.2f} s",
                      f"{MEDIAN_TARGET_S:g} s")  # fmt: skip
        table.add_row("nine in ten within", f"{gaps[int(len(gaps) * 0.9)]:.2f} s", "")
        table.add_row("worst", f"{gaps[-1]:.2f} s", f"{WORST_TARGET_S:g} s")
        table.add_row("terms that each took", " ".join(map(str, sorted(outcome.terms))), "")
    if outcome.steady_s:
        rate = outcome.events / outcome.steady_s
        table.add_row(
            f"elections in {outcome.steady_s / 60:.1f} min of {rate:,.0f} appends/s",
            str(outcome.elections),
            "0",
        )
    console.print(table)


async def measure(
    kills: int, steady_minutes: float, directory: Path, say: Callable[[str], None]
) -> Outcome:
    """Kill so many leaders; then load for so many minutes. Raises NodeFailed, WrkMissing."""
    wrk.require_wrk()
    ports = free_ports(2 * NODES)
    layout = topology.local(
        NODES, directory / "nodes", http_port=ports[0], raft_port=ports[NODES],
        options=("--log-format=json",),
    )  # fmt: skip
    gaps: list[float] = []
    terms: list[int] = []
    supervisor = Supervisor(layout, log_dir=directory / "logs")
    async with supervisor, aiohttp.ClientSession(timeout=_REQUEST) as http:
        for number in range(1, kills + 1):
            gap_s, passed = await _kill_leader(supervisor, http)
            gaps.append(gap_s)
            terms.append(passed)
            say(f"leader {number} of {kills}: {gap_s:.2f} s")
        steady_s, events, elections = await _steady(supervisor, http, steady_minutes * 60, say)
    return Outcome(gaps, terms, steady_s, events, elections)


async def _kill_leader(supervisor: Supervisor, http: aiohttp.ClientSession) -> tuple[float, int]:
    leader, term = await _leader(supervisor, http)
    survivors = [node.node.url for name, node in supervisor.nodes.items() if name != leader]
    load = wrk.Load(CONNECTIONS // len(survivors), 1, LOAD_S)
    loads = [asyncio.create_task(asyncio.to_thread(wrk.run, url, STORE, load)) for url in survivors]
    await asyncio.sleep(WARM_S)
    await supervisor[leader].kill()
    killed_at = time.monotonic()
    probes = [asyncio.create_task(_until_acknowledged(http, url)) for url in survivors]
    await asyncio.wait(probes, timeout=GIVE_UP_S, return_when=asyncio.FIRST_COMPLETED)
    gap_s = time.monotonic() - killed_at
    for probe in probes:
        probe.cancel()
    await asyncio.gather(*probes, return_exceptions=True)
    _, after = await _leader(supervisor, http)
    await asyncio.gather(*loads)
    await supervisor.start()
    return gap_s, after - term


async def _until_acknowledged(http: aiohttp.ClientSession, url: str) -> None:
    """Append, one request after the other, until one is acknowledged."""
    while True:
        event = {"event_id": str(uuid.uuid4()), "event_type": "Probe"}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with http.post(
                f"{url}/v1/stores/{STORE}/streams/probe/events", json={"events": [event]}
            ) as answer:
                if answer.status == 201:
                    return
        await asyncio.sleep(_PAUSE_S)


async def _leader(supervisor: Supervisor, http: aiohttp.ClientSession) -> tuple[str, int]:
    """Who leads, and in which term, once a node knows; the highest term counts."""
    async with asyncio.timeout(GIVE_UP_S):
        while True:
            seen = [await _view(http, node.node.url) for node in supervisor.nodes.values()]
            known = [(term, leader) for leader, term in filter(None, seen) if leader]
            if known:
                term, leader = max(known)
                return leader, term
            await asyncio.sleep(_PAUSE_S)


async def _view(http: aiohttp.ClientSession, url: str) -> tuple[str | None, int] | None:
    try:
        async with http.get(f"{url}/v1/cluster") as answer:
            body = await answer.json()
            return body["leader"], body["term"]
    except (aiohttp.ClientError, TimeoutError):
        return None


async def _steady(
    supervisor: Supervisor, http: aiohttp.ClientSession, seconds: float, say: Callable[[str], None]
) -> tuple[float, int, int]:
    """Load without faults: seconds, events appended, terms that passed."""
    if seconds <= 0:
        return 0.0, 0, 0
    _, before = await _leader(supervisor, http)
    began = time.monotonic()
    events = 0
    urls = supervisor.topology.urls
    while (left_s := seconds - (time.monotonic() - began)) > 0:
        load = wrk.Load(CONNECTIONS // len(urls), 1, max(1, round(min(STEADY_RUN_S, left_s))))
        runs = await asyncio.gather(*(asyncio.to_thread(wrk.run, url, STORE, load) for url in urls))
        events += sum(run.events for run in runs)
        _, term = await _leader(supervisor, http)
        say(f"{time.monotonic() - began:6.0f} s of load: {events:,} events, {term - before} terms")
    return time.monotonic() - began, events, term - before
