"""Planted defects: is every rule of safety held by a test? Behind `scripts/mutate`.

Each defect of the catalogue breaks one rule in the source, on purpose. The tests named with it
have to fail; one that stays unnoticed shows that the tests are too weak.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tests.mutants.catalogue import DEFECTS
from tests.mutants.defect import Defect, Stale
from tests.mutants.runner import Broken, Verdict, hunt

JOBS = 2
TIMEOUT_S = 120.0
_EPILOG = """\
examples:
  scripts/mutate
  scripts/mutate --list
  scripts/mutate --only ack-of-another-term --only vote-counted-twice
  scripts/mutate --only vote-counted-twice --seeds 100

exit codes: 0 all are found, 1 one survived, 2 wrong options, or the tests fail without any defect
"""


def parse(argv: list[str]) -> argparse.Namespace:
    """The options; leaves with exit 2 on wrong ones."""
    parser = argparse.ArgumentParser(
        prog="scripts/mutate",
        description="Plant defects in a copy of the source, one at a time; tests must find each.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="show the defects and plant none")
    parser.add_argument(
        "--only", metavar="NAME", action="append", default=[], help="this defect; may be repeated"
    )
    parser.add_argument(
        "--jobs", metavar="N", type=int, default=JOBS, help=f"so many at once (default {JOBS})"
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=float,
        default=TIMEOUT_S,
        help=f"seconds for the tests of one defect (default {TIMEOUT_S:g})",
    )
    parser.add_argument(
        "--seeds",
        metavar="M",
        type=int,
        default=0,
        help="instead of its tests, give each defect M seeds of the simulation, within --timeout",
    )
    options = parser.parse_args(argv)
    if not 1 <= options.jobs <= 64 or options.timeout <= 0 or options.seeds < 0:
        parser.error("--jobs is 1 to 64, --timeout more than 0, --seeds not less")
    unknown = sorted(set(options.only) - {defect.name for defect in DEFECTS})
    if unknown:
        parser.error(f"no defect is called {', '.join(unknown)}; see --list")
    return options


def listing(defects: list[Defect]) -> Table:
    """The catalogue as a table."""
    table = Table("defect", "rule", "file", title=f"{len(defects)} defects")
    for defect in defects:
        table.add_row(defect.name, Text(defect.rule), f"node/{defect.file}")
    return table


def report(verdicts: list[Verdict], seconds: float) -> Table:
    """What became of each defect, as a table."""
    found = sum(verdict.found_by is not None for verdict in verdicts)
    title = f"{found} of {len(verdicts)} defects found in {seconds:.0f} s"
    table = Table("defect", "rule", Column("found by", overflow="fold"), "s", title=title)
    for verdict in verdicts:
        by = Text(verdict.found_by or f"SURVIVED: {verdict.why}")
        by.stylize("green" if verdict.found_by else "bold red")
        defect = verdict.defect
        table.add_row(defect.name, Text(defect.rule), by, f"{verdict.seconds:.1f}")
    return table


def main(argv: list[str]) -> int:
    """The exit code."""
    options = parse(argv)
    chosen = [one for one in DEFECTS if not options.only or one.name in options.only]
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    console = Console(width=width)
    if options.list:
        console.print(listing(chosen))
        return 0

    def told(verdict: Verdict) -> None:
        print(verdict.defect.name, verdict.found_by or "SURVIVED", file=sys.stderr, flush=True)

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as below:
        try:
            verdicts = asyncio.run(
                hunt(chosen, Path(below), options.jobs, options.timeout, told, options.seeds)
            )
        except Broken as broken:
            print(f"{broken}\nThe tests fail without any defect.", file=sys.stderr)
            return 2
        except Stale as stale:
            print(stale, file=sys.stderr)
            return 2
    console.print(report(verdicts, time.monotonic() - began))
    return 0 if all(verdict.found_by for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
