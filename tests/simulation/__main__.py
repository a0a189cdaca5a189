"""scripts/simulate: seeds, one after the other, on several processors, within a time.

Prints one line for each run that broke a rule, with the command that repeats it, and a summary.
Ends with 1 if a rule was broken, else with 0.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from traceback import format_exception
from types import FrameType

from tests.simulation.simulation import Report, run

MINUTES = 1.0
FIRST_SEED = 1
SIZES = (3, 5)
CPU_S = 60.0  # a seed takes about one; more than this is a run that does not end
_AGAIN_S = 10.0


def main() -> int:
    """Read the options, run, tell."""
    options = _options()
    summary = Summary()
    for report in _reports(options):
        summary.add(report)
    summary.tell()
    return 1 if summary.broken else 0


class Summary:
    """What all runs came to together."""

    def __init__(self) -> None:
        self.broken = 0
        self._runs: Counter[int] = Counter()
        self._appends: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._began = time.monotonic()

    def add(self, report: Report) -> None:
        """Count a run, and tell of it at once if it broke a rule."""
        self._runs[report.size] += 1
        self._appends["acknowledged"] += report.acknowledged
        self._appends["refused"] += report.refused
        self._appends["of unknown fate"] += report.unknown
        self._counts += report.counts
        if report.violations:
            self.broken += 1
            print(f"seed {report.seed}, {report.size} nodes, profile {report.profile}:")
            for violation in report.violations:
                print(f"    {violation}")
            print(f"    again: scripts/simulate --seed {report.seed} --nodes {report.size}")
            sys.stdout.flush()

    def tell(self) -> None:
        """The last lines."""
        took_s = time.monotonic() - self._began
        runs = sum(self._runs.values())
        sizes = ", ".join(f"{count} of {size} nodes" for size, count in sorted(self._runs.items()))
        print(f"{runs} seeds ({sizes}) in {took_s:.1f} s, {runs / took_s * 3600:.0f} an hour")
        print("appends: " + ", ".join(f"{n} {what}" for what, n in self._appends.items()))
        print("events: " + ", ".join(f"{n} {what}" for what, n in sorted(self._counts.items())))
        print(f"{self.broken} seeds broke a rule")


class Endless(KeyboardInterrupt):
    """A run has used too much of the processor. Of the kind that no event loop holds back."""


def bounded(seed: int, size: int, cpu_s: float = CPU_S) -> Report:
    """One run. One that uses more of the processor than `cpu_s` has broken a rule by that, and so
    has one that ends with an exception.
    """

    over = False

    def ended(_: int, frame: FrameType | None) -> None:
        nonlocal over
        over = True
        raise Endless

    before = signal.signal(signal.SIGPROF, ended)
    signal.setitimer(signal.ITIMER_PROF, cpu_s, _AGAIN_S)
    try:
        report = run(seed, size)
    except BaseException as error:
        report = Report(seed, size)
        # What ends in the midst of anything may break in another way while it is taken down.
        if not over:
            if not isinstance(error, Exception):
                raise
            report.violations.append("".join(format_exception(error)))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)
    if over:  # also where the exception was lost, as in a destructor
        report.violations.append(f"not over after {cpu_s:g} s of a processor")
    return report


def _reports(options: argparse.Namespace) -> Iterator[Report]:
    """Run the seeds; no new one is begun when the time is over."""
    end = time.monotonic() + options.minutes * 60
    seeds = _seeds(options)
    running: set[Future[Report]] = set()
    with ProcessPoolExecutor(options.jobs) as pool:
        while True:
            while len(running) < 2 * options.jobs and time.monotonic() < end:
                following = next(seeds, None)
                if following is None:
                    break
                running.add(pool.submit(bounded, *following))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for one in done:
                yield one.result()


def _seeds(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """Seed and size of each run: 3 and 5 nodes in turn, unless told otherwise."""
    first = FIRST_SEED if options.seed is None else options.seed
    count = options.seeds
    if count is None:
        count = 1 if options.seed is not None else sys.maxsize
    for seed in range(first, first + count):
        yield seed, options.nodes or SIZES[seed % len(SIZES)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description="Run clusters in one process, on virtual time, under faults. Each seed is one "
        "cluster, its faults and its clients, and always the same run.",
        epilog="Ends with 1 if a rule was broken; the seeds that did are printed.",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="the first seed; alone: just this")
    parser.add_argument("--seeds", type=int, metavar="M", help="so many seeds at most")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, metavar="T",
        help=f"begin no seed after this time (default: {MINUTES:g})",
    )  # fmt: skip
    parser.add_argument(
        "--nodes", type=int, choices=SIZES, help="so many nodes (default: 3 and 5 in turn)"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="J",
        help="so many at a time (default: one a processor)",
    )  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
