"""The command line of `scripts/chaos`."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from rich.console import Console

from cluster.chaos import consumers_killed, failover, report, trial
from cluster.cli.options import Parser, amount, count, whole
from cluster.supervisor import NodeFailed, PortBusy

T = TypeVar("T")

WIDTH = 120
"""Of tables that go to a file: they must not depend on where they were made."""

_DESCRIPTION = (
    "Start real nodes, kill them, cut them off, damage their files and fill their disks, while"
    " clients append and read; then judge whether an acknowledged event was lost or a node lied."
)
_EPILOG = """\
examples:
  scripts/chaos                                    one minute, three nodes
  scripts/chaos --minutes 30 && scripts/chaos --minutes 15 --nodes 5
  scripts/chaos --seed 7 --json > result.json      progress goes to stderr
  scripts/chaos --leader-kills 50                  how long appends stop when the leader is killed
  scripts/chaos --leader-kills 0 --steady-minutes 10     elections under full load, without faults
  scripts/chaos --consumers --minutes 5            four consumers of one subscription, killed too

The seed fixes which faults are drawn; processes run in real time, so no two runs are the same.
Nodes run on free ports with data in a temporary directory; no other cluster is touched.

Exit codes: 0 nothing was broken; 1 something was, and what is needed to find out why is kept;
64 wrong options.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit code."""
    options = _parse(arguments)
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        if options.leader_kills is not None:
            return _failover(options, _console(), stderr)
        if options.consumers:
            return _consumers_killed(options, _console(), stderr)
        return _chaos(options, _console(), stderr)
    except (NodeFailed, PortBusy) as error:
        stderr.print(f"[red]scripts/chaos failed:[/] {error}")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        stderr.print("stopped before the end; nothing was judged")
        return 130


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="scripts/chaos",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=amount, default=1.0, metavar="T", help="how long faults go on, default 1")
    add("--seed", type=whole, metavar="N", help="of the faults; default: a new one, which is told")
    add("--nodes", type=int, choices=(3, 5), default=3, help="default 3")
    add("--events-per-second", type=amount, default=200.0, metavar="R",
        help="pace of all writers together, default 200")  # fmt: skip
    add("--kills-forget", action="store_true",
        help="without a tail file: a killed node counts as having lost its memory, so never more"
        " than a minority is killed at a time")  # fmt: skip
    add("--no-disks", action="store_true", help="leave out full disks, which need mounting")
    add("--json", action="store_true", help="the report as JSON")
    add("--keep", action="store_true", help="keep history, logs and files in any case")
    add("--data-dir", type=Path, metavar="DIR", help="where; default a new temporary directory")
    add("--leader-kills", type=count, metavar="N",
        help="instead of all this, kill the leader N times under load and measure")  # fmt: skip
    add("--steady-minutes", type=amount, default=1.0, metavar="T",
        help="and then full load without faults, to count elections; default 1")  # fmt: skip
    add("--consumers", action="store_true",
        help="instead of all this, kill the consumers of a persistent subscription and three nodes,"
        " and judge what was delivered")  # fmt: skip
    add("node_options", nargs="*", metavar="-- OPTION", help="further options of every node")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if not (options.minutes and options.events_per_second):
        parser.error("--minutes and --events-per-second must be more than 0")
    if options.data_dir is not None and _holds_something(options.data_dir):
        parser.error(f"--data-dir: {options.data_dir} is no empty directory")
    return options


def _chaos(options: argparse.Namespace, stdout: Console, stderr: Console) -> int:
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    plan = trial.Plan(
        options.minutes,
        seed,
        options.nodes,
        options.events_per_second,
        options.kills_forget,
        tuple(options.node_options),
        not options.no_disks,
    )
    directory = _directory(options)
    stderr.print(f"seed {seed}, {options.nodes} nodes, {options.minutes:g} min, in {directory}")
    result = uvloop.run(_until_stopped(trial.run(plan, directory, stderr.print)))
    if options.json:
        print(json.dumps(report.as_json(result), indent=2))
    else:
        report.show(result, stdout)
    slow = result.longest_pause_s > report.PAUSE_TARGET_S
    if result.violations or slow or options.keep:
        stderr.print(f"what is needed to find out why is in {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if result.violations else 0


def _failover(options: argparse.Namespace, stdout: Console, stderr: Console) -> int:
    directory = _directory(options)
    measuring = failover.measure(
        options.leader_kills, options.steady_minutes, directory, stderr.print
    )
    outcome = uvloop.run(_until_stopped(measuring))
    shutil.rmtree(directory, ignore_errors=True)
    if options.json:
        print(json.dumps(failover.as_json(outcome), indent=2))
    else:
        failover.show(outcome, stdout)
    return 0 if failover.met(outcome) else 1


def _consumers_killed(options: argparse.Namespace, stdout: Console, stderr: Console) -> int:
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    directory = _directory(options)
    stderr.print(f"seed {seed}, {options.minutes:g} min, in {directory}")
    plan = consumers_killed.Plan(60 * options.minutes, seed)
    result = uvloop.run(_until_stopped(consumers_killed.run(plan, directory, stderr.print)))
    if options.json:
        print(json.dumps(consumers_killed.as_json(result), indent=2))
    else:
        consumers_killed.show(result, stdout)
    if result.judgement.violations or options.keep:
        stderr.print(f"what is needed to find out why is in {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if result.judgement.violations else 0


async def _until_stopped(work: Coroutine[Any, Any, T]) -> T:
    """Carry out the work; Ctrl-C and SIGTERM end it in order, so that no node or mount is left."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


def _directory(options: argparse.Namespace) -> Path:
    """An empty directory, the one that was named or a new one."""
    if options.data_dir is None:
        return Path(tempfile.mkdtemp(prefix="chaos-"))
    directory: Path = options.data_dir.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _holds_something(directory: Path) -> bool:
    return directory.exists() and not (directory.is_dir() and not any(directory.iterdir()))


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


if __name__ == "__main__":
    sys.exit(main())
