"""Plants defects in a copy of the project, one at a time, and runs the tests that must find them.

Each of several workers has a copy of its own below a temporary directory; the project itself is
never touched. First the tests of all chosen defects have to pass as the source is: otherwise their
failing would prove nothing. Then a worker plants a defect, runs its tests until the first fails,
and puts the source back. Only a test that *failed* counts as found. Tests that could not be
collected or did not end in time do not: such a defect is too crude, or its tests are.

Instead of its tests each defect can be given to the simulation, some seeds of it. That shows what
the simulation is worth; it need not find all of them.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.mutants.defect import Defect

PROJECT = Path(__file__).resolve().parents[2]

_COPIED = ("node", "tests")  # Python writes its compiled files beside them
_FAILED = re.compile(r"^FAILED tests/([^\s\[]+)|^(seed \d+, \d+ nodes)", re.MULTILINE)
_OUTPUT_CHARACTERS_MAX = 4000


class Verdict(NamedTuple):
    """What became of one defect; `found_by` is a test, or None if the defect survived."""

    defect: Defect
    found_by: str | None
    why: str
    seconds: float


class Tree:
    """A copy of the project in which one defect at a time may stand."""

    def __init__(self, path: Path, seeds: int) -> None:
        self.path = path
        self._seeds = seeds
        self._changes = 0
        path.mkdir(parents=True)
        for entry in PROJECT.iterdir():
            if entry.name in _COPIED:
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(entry, path / entry.name, ignore=ignore)
            elif not entry.name.startswith("."):
                (path / entry.name).symlink_to(entry)

    async def judge(self, defect: Defect, timeout_s: float) -> Verdict:
        """Plant the defect, run its tests, and take it out again."""
        file = self.path / "node" / defect.file
        sound = file.read_text()
        began = time.monotonic()
        self._write(file, defect.planted(self.path / "node"))
        try:
            code, output = await self.run(defect.tests, timeout_s)
        finally:
            self._write(file, sound)
        failed = _FAILED.search(output)
        found_by = failed[1] or failed[2] if failed and code == 1 else None
        return Verdict(defect, found_by, _why(code), time.monotonic() - began)

    async def run(self, tests: Sequence[str], timeout_s: float) -> tuple[int | None, str]:
        """Run tests until the first fails: the exit code (None: out of time) and the output."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(self._simulation(timeout_s) if self._seeds else _pytest(tests)),
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": str(self.path), "PYTHONHASHSEED": "0"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(timeout_s):
                output, _ = await process.communicate()
            return process.returncode, output.decode(errors="replace")
        except TimeoutError:
            return None, f"not over within {timeout_s:g} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def _simulation(self, timeout_s: float) -> list[str]:
        minutes = str(timeout_s * 0.5 / 60)
        return [
            "-m",
            "tests.simulation",
            "--seeds",
            str(self._seeds),
            "--minutes",
            minutes,
            "--jobs=1",
        ]

    def _write(self, file: Path, source: str) -> None:
        """Write a source, and give it a time of its own: compiled files are told apart by that."""
        file.write_text(source)
        self._changes += 1
        stamp = file.stat().st_mtime + self._changes
        os.utime(file, (stamp, stamp))


class Broken(Exception):
    """The tests of the chosen defects do not pass as the source is; the text is their output."""


async def hunt(
    defects: Sequence[Defect],
    below: Path,
    jobs: int,
    timeout_s: float,
    told: Callable[[Verdict], None],
    seeds: int = 0,
) -> list[Verdict]:
    """Judge all defects with `jobs` workers; `told` hears each verdict. Raises `Broken`, `Stale`.

    A defect whose tests are not over within `timeout_s` has survived. With `seeds` each gets so
    many seeds of the simulation, or as many as there is time for, instead of its tests.
    """
    for defect in defects:
        defect.planted(PROJECT / "node")
        defect.check_tests(PROJECT / "tests")
    trees = [Tree(below / str(number), seeds) for number in range(min(jobs, len(defects)))]
    tests = sorted({test for defect in defects for test in defect.tests})
    code, output = await trees[0].run(tests, timeout_s * (1 if seeds else len(defects)))
    if code != 0:
        raise Broken(output[-_OUTPUT_CHARACTERS_MAX:])
    waiting = list(reversed(defects))
    verdicts: list[Verdict] = []

    async def work(tree: Tree) -> None:
        while waiting:
            verdict = await tree.judge(waiting.pop(), timeout_s)
            verdicts.append(verdict)
            told(verdict)

    async with asyncio.TaskGroup() as group:
        for tree in trees:
            group.create_task(work(tree))
    order = {defect.name: place for place, defect in enumerate(defects)}
    return sorted(verdicts, key=lambda verdict: order[verdict.defect.name])


def _pytest(tests: Sequence[str]) -> list[str]:
    options = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider"]
    return ["-m", "pytest", *options, *(f"tests/{test}" for test in tests)]


def _why(code: int | None) -> str:
    """What an exit code of pytest says about tests that did not find a defect."""
    if code is None:
        return "the tests did not end in time"
    return {0: "no test failed", 1: "a test could not run"}.get(code, f"pytest ended with {code}")
