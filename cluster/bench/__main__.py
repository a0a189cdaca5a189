"""The command line of `scripts/bench`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cluster.access import Unreachable
from cluster.bench import (
    appending,
    flushing,
    following,
    machine,
    memory,
    removing,
    returning,
    websockets,
    wrk,
)
from cluster.bench.report import JsonReport, Report
from cluster.cli.options import Parser, positive
from cluster.client_errors import OutcomeUnknown
from cluster.demo_transfer import TransferFailed
from cluster.supervisor import NodeFailed, PortBusy

MEASUREMENTS = (
    *("append", "websocket", "following", "flush-delay", "flush-cost", "memory"),
    *("comeback", "return", "removal"),
)

PROG = "scripts/bench"

WIDTH = 120
"""Of tables that go to a file: they must not depend on where they were made."""

EPILOG = """\
examples:
  {prog} append --quick
  {prog} all > figures.txt

append        one event a request at 1 and 64 connections, and batches of 100, beside etcd
websocket     the same over one WebSocket, and a follower that catches up, beside NATS JetStream
following     a follower that catches up over server-sent events; 100 of them behind 1,000 appends/s
flush-delay   p99 of appends with a flush every 100 ms against persistence disabled
flush-cost    flushing 1,000 new events with 10,000 and with 1,000,000 stored
memory        resident bytes an event at 1,000,000 events
comeback      1,000,000 events from disk to ready
return        a follower returns after missing 1,000 and 200,000 events, 1,000,000 stored
removal       memory and disk after truncate_before of 200,000 events of 256 B and of 1 KiB
all           all of them, in this order

Each starts its own nodes on free ports with data in a temporary directory, and touches no other
cluster. Figures depend on the machine: keep it quiet, and compare only within one run.
"""


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    options = _parse(arguments, prog)
    console = Console()
    if options.json:
        report: Report = JsonReport()
    else:
        report = Report(console if console.is_terminal else Console(width=WIDTH))
    report.console.print(machine.describe(), highlight=False)
    chosen = MEASUREMENTS if options.what == "all" else (options.what,)
    try:
        for what in chosen:
            neighbours = machine.Neighbours()
            asyncio.run(_measure(what, report, options))
            report.neighbours(neighbours.cores())
    except wrk.WrkMissing as missing:
        report.skipped(what, str(missing))
        return 2
    except (NodeFailed, OutcomeUnknown, PortBusy, TransferFailed, Unreachable) as error:
        report.failed(what, str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parse(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Measure the event store on this machine, beside etcd and NATS where they are.",
        epilog=EPILOG.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=(*MEASUREMENTS, "all"), help="what to measure, see below")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of the events, few and short repetitions: to see that it runs, not to quote",
    )
    parser.add_argument(
        "--repetitions", type=positive, metavar="N", help="repetitions (default 5; quick: 2)"
    )
    parser.add_argument(
        "--seconds", type=positive, metavar="S", help="seconds a point (default 8; quick: 2)"
    )
    parser.add_argument(
        "--etcd-bench",
        type=Path,
        metavar="PATH",
        help="etcd's load generator (default: built from ../shared/peers, if it is there)",
    )
    parser.add_argument(
        "--nats-bench",
        type=Path,
        metavar="PATH",
        help="NATS' load generator (default: built from ../shared/peers, if it is there)",
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON, an object a line")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    options.repetitions = options.repetitions or (2 if options.quick else 5)
    options.seconds = options.seconds or (2 if options.quick else 8)
    return options


async def _measure(what: str, report: Report, options: argparse.Namespace) -> None:
    many = 100_000 if options.quick else 1_000_000
    repetitions, seconds = options.repetitions, options.seconds
    match what:
        case "append":
            await appending.measure(report, repetitions, seconds, options.etcd_bench)
        case "websocket":
            await websockets.measure(report, repetitions, seconds, many, options.nats_bench)
        case "following":
            await following.measure(report, min(repetitions, 3), seconds, many)
        case "flush-delay":
            await flushing.measure_delay(report, repetitions, seconds)
        case "flush-cost":
            await flushing.measure_cost(report, repetitions, few=10_000, many=many)
        case "memory":
            await memory.measure_memory(report, many)
        case "comeback":
            await memory.measure_comeback(report, min(repetitions, 3), many)
        case "return":
            missed = (1_000, many // 5)
            await returning.measure_return(report, min(repetitions, 3), seconds, many, missed)
        case "removal":
            await removing.measure_removal(report, many // 5, (256, 1024))


if __name__ == "__main__":
    sys.exit(main())
