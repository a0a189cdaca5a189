"""How soon memory and disk come back once events were removed."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from cluster.access import request
from cluster.bench import nodes
from cluster.bench.filling import fill
from cluster.bench.machine import resident_bytes, stored_bytes
from cluster.bench.report import Report
from cluster.supervisor import NodeProcess

WANTED_S = 60.0
_POLL_S = 0.5
_SETTLED_POLLS = 8
_PAGE = 1_000
_HUSK_BYTES = 28
_DISK_AN_EVENT_BYTES = 150  # of a removed one: a husk in a page that is not quite full


class _Held(NamedTuple):
    """What a node holds: resident bytes, frames as it counts them, bytes of its store files."""

    resident: int
    frames: float
    disk: int


async def measure_removal(report: Report, events: int, sizes: tuple[int, ...]) -> None:
    """Remove all of so many events by `truncate_before`, and watch a follower."""
    report.heading(
        "removal",
        f"truncate_before of {events:,} events in 4,000 streams, flushed before; a follower's"
        " VmRSS (with its Raft log), frames and store files, and when the last two came back.",
    )
    rows = []
    slowest = 0.0
    for size in sizes:
        async with nodes.running() as cluster:
            await fill(cluster, events, data=bytes(size))
            await cluster.flush()
            follower = await cluster.follower()
            before = await _held(cluster, follower)
            began = time.monotonic()
            await _truncate(cluster)
            seconds = await _until_back(cluster, follower, events, began)
            after = await _held(cluster, follower)
        slowest = max(slowest, seconds)
        mib = [f"{a / 2**20:,.0f} -> {b / 2**20:,.0f}" for a, b in zip(before, after, strict=True)]
        rows.append([f"{size}", *mib, f"{seconds:.0f}"])
    columns = ("B of data", "resident MiB", "frames MiB", "disk MiB", "s until it is back")
    report.table(columns, rows)
    report.verdict(
        "memory and disk are back", f"{slowest:.0f} s", f"<= {WANTED_S:.0f} s", slowest <= WANTED_S
    )


async def _truncate(cluster: nodes.Cluster) -> None:
    base = f"/v1/stores/{nodes.STORE}/streams"
    after = ""
    listed = []
    while page := (await cluster.ask("GET", f"{base}?limit={_PAGE}&after={after}"))["streams"]:
        listed += page
        after = page[-1]["stream"]
    for stream in listed:
        limits = {"truncate_before": stream["version"] + 1}
        path = f"{base}/{stream['stream']}/metadata"
        reply = await request("PUT", cluster.urls, path, json=limits)
        if reply.status != 200:
            raise RuntimeError(f"PUT {path}: {reply.status} {reply.body}")


async def _until_back(
    cluster: nodes.Cluster, node: NodeProcess, events: int, began: float
) -> float:
    """The seconds until frames and files are small, or three times what is wanted."""
    while time.monotonic() - began < 3 * WANTED_S:
        held = await _held(cluster, node)
        if held.frames <= _HUSK_BYTES * events and held.disk <= _DISK_AN_EVENT_BYTES * events:
            seconds = time.monotonic() - began
            await asyncio.sleep(_POLL_S * _SETTLED_POLLS)
            return seconds
        await asyncio.sleep(_POLL_S)
    return time.monotonic() - began


async def _held(cluster: nodes.Cluster, node: NodeProcess) -> _Held:
    assert node.pid is not None, f"{node.node.node_id} does not run"
    metrics = await cluster.metrics(node)
    frames = metrics[f'exesdb_store_frame_bytes{{store="{nodes.STORE}"}}']
    return _Held(resident_bytes(node.pid), frames, stored_bytes(node.node.data_dir / "stores"))
