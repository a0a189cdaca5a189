"""A year of flights through a cluster: what stands behind `scripts/demo`.

    1  fetch the table (once), and make its events and their digest
    2  start three nodes on ports and in a directory of their own
    3  append everything through all three at once
    4  flush the cluster
    5  read everything back from one node and compare it with the source
    6  kill all three with -9, start them again, wait until they are ready
    7  read everything back from another node and compare again

It exits with 0 only if both comparisons found the same events, byte for byte. It never talks to a
cluster that it did not start: busy ports and a directory with files of an earlier run stop it
before it has done anything.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster import topology
from cluster.bench.machine import stored_bytes
from cluster.cli.options import Parser, positive
from cluster.demo_flights import (
    FLIGHTS_IN_TABLE,
    SourceUnavailable,
    fetch_archive,
    read_events,
)
from cluster.demo_transfer import (
    LANES_PER_NODE,
    REQUEST_TIMEOUT_S,
    Batch,
    HistoryDigest,
    TransferFailed,
    append_all,
    ask,
    prepare,
    read_back,
)
from cluster.supervisor import NodeFailed, PortBusy, Supervisor
from cluster.topology import Topology

NODES = 3
STORE = "flights"
DATA_DIR = Path("data/demo")
HTTP_PORT, RAFT_PORT = 8201, 7201
"""Not the ports of `scripts/cluster`, so that the demo runs beside it."""

READY_LIMIT_S = 300.0

T = TypeVar("T")


class DemoFailed(Exception):
    """Something came out other than it must, or the demo may not run here."""


_FAILURES = (DemoFailed, NodeFailed, PortBusy, SourceUnavailable, TransferFailed)


@dataclass
class Course:
    """What is measured on the way, for the summary. Seconds unless the name says otherwise."""

    flights: int
    source: HistoryDigest
    prepare_s: float
    append_s: float = 0.0
    flush_s: float = 0.0
    read_s: float = 0.0
    comeback_s: float = 0.0
    reread_s: float = 0.0
    disk_bytes: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    console = Console()
    try:
        course = asyncio.run(_run(options, console))
    except _FAILURES as error:
        console.print(f"[bold red]failed:[/] {error}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    _summarize(course, console)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="scripts/demo",
        description="Append the flights of 2013 from New York through three nodes, read them back,"
        " kill all nodes with -9, start them, and read them back again.",
    )
    parser.add_argument(
        "--rows",
        type=positive,
        default=FLIGHTS_IN_TABLE,
        metavar="N",
        help="take the first N flights only (default: all 336,776)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=DATA_DIR,
        metavar="DIR",
        help=f"the table, and the nodes' files while they run (default: {DATA_DIR})",
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the nodes' files and logs in DIR/nodes"
    )
    parser.add_argument("--http-port", type=positive, default=HTTP_PORT, help="of the first node")
    parser.add_argument("--raft-port", type=positive, default=RAFT_PORT, help="of the first node")
    return parser.parse_args(sys.argv[1:] if arguments is None else arguments)


async def _run(options: argparse.Namespace, console: Console) -> Course:
    directory = _unused(options.data_dir / "nodes")
    nodes = topology.local(NODES, directory, options.http_port, options.raft_port)
    lanes, course = _prepare(options, console)
    try:
        await _through_the_cluster(nodes, directory / "logs", lanes, course, console)
    finally:
        if not options.keep:
            shutil.rmtree(directory, ignore_errors=True)
    return course


def _unused(directory: Path) -> Path:
    if directory.exists():
        raise DemoFailed(
            f"{directory} is there already, from a run with --keep or one that was interrupted:"
            " look at it, remove it, and run the demo again"
        )
    return directory


def _prepare(options: argparse.Namespace, console: Console) -> tuple[list[list[Batch]], Course]:
    console.print(
        "fetching and reading the flights table, which takes about ten seconds",
        highlight=False,
        soft_wrap=True,
    )
    archive = fetch_archive(options.data_dir)
    start = time.monotonic()
    events = read_events(archive, options.rows)
    lanes, source = prepare(events, lanes=LANES_PER_NODE * NODES)
    course = Course(
        flights=min(options.rows, FLIGHTS_IN_TABLE),
        source=source,
        prepare_s=time.monotonic() - start,
    )
    return lanes, course


async def _through_the_cluster(
    nodes: Topology,
    logs: Path,
    lanes: list[list[Batch]],
    course: Course,
    console: Console,
) -> None:
    console.print(f"starting three nodes: {', '.join(nodes.urls)}", highlight=False, soft_wrap=True)
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    async with Supervisor(nodes, logs) as cluster, aiohttp.ClientSession(timeout=timeout) as http:
        await ask(http, "PUT", f"{nodes.urls[0]}/v1/stores/{STORE}")
        course.append_s = await _append(http, nodes, lanes, course, console)
        console.print("flushing the cluster", highlight=False, soft_wrap=True)
        flush = ask(http, "POST", f"{nodes.urls[0]}/v1/persistence/force?scope=cluster")
        course.flush_s, _ = await _timed(flush)
        course.disk_bytes = sum(stored_bytes(node.data_dir) for node in nodes.nodes)
        course.read_s = await _compare(http, nodes.urls[1], course.source, console)
        console.print(
            "killing all three nodes with -9, and starting them", highlight=False, soft_wrap=True
        )
        await cluster.kill()
        course.comeback_s, _ = await _timed(cluster.start(READY_LIMIT_S))
        course.reread_s = await _compare(http, nodes.urls[2], course.source, console)


async def _append(
    http: aiohttp.ClientSession,
    nodes: Topology,
    lanes: list[list[Batch]],
    course: Course,
    console: Console,
) -> float:
    columns = (
        TextColumn("appending through all nodes"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("events,"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("append", total=course.source.events)
        seconds, _ = await _timed(
            append_all(http, nodes.urls, STORE, lanes, lambda n: progress.advance(task, n))
        )
    return seconds


async def _compare(
    http: aiohttp.ClientSession, url: str, source: HistoryDigest, console: Console
) -> float:
    """Read everything from one node; the seconds it took. Raises DemoFailed at any difference."""
    console.print(f"reading everything back from {url}", highlight=False, soft_wrap=True)
    seconds, found = await _timed(read_back(http, url, STORE, source.events))
    if found.hexdigest() != source.hexdigest():
        raise DemoFailed(
            f"{url} has {found.events:,} events in {found.streams:,} streams, digest"
            f" {found.hexdigest()}; the source has {source.events:,} in {source.streams:,},"
            f" digest {source.hexdigest()}"
        )
    console.print(f"  the same as the source: {found.hexdigest()}", highlight=False, soft_wrap=True)
    return seconds


async def _timed(work: Awaitable[T]) -> tuple[float, T]:
    start = time.monotonic()
    result = await work
    return time.monotonic() - start, result


def _summarize(course: Course, console: Console) -> None:
    events = course.source.events
    rows = {
        "flights": f"{course.flights:,}",
        "events": f"{events:,}",
        "streams": f"{course.source.streams:,}",
        "reading and encoding the table": f"{course.prepare_s:.1f} s",
        "appending through all nodes": f"{course.append_s:.1f} s",
        "events/s appended": f"{events / course.append_s:,.0f}",
        "flushing the cluster": f"{course.flush_s:.2f} s",
        "on disk, three nodes": f"{course.disk_bytes / 2**20:,.1f} MiB",
        "reading everything back": f"{course.read_s:.1f} s",
        "events/s read and compared": f"{events / course.read_s:,.0f}",
        "coming back after kill -9": f"{course.comeback_s:.1f} s",
        "reading everything back again": f"{course.reread_s:.1f} s",
    }
    table = Table(title="A year of flights", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
