"""The README's tour, run as it is written: its commands, its terminals, what they say.

A block of the README that begins with "```console terminal=N" belongs to the tour. Behind `$` is a
command, with the lines that continue it; `^C` is an interrupt of what runs in that terminal; all
else is what the terminal shows, in this order. Numbers, times, roles and widths may differ, and
`…` stands for anything. A command that has said what is written and goes on is left running.

The tour uses the ports that the README names, so it is left out where they are taken.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.e2e

PROJECT = Path(__file__).resolve().parents[2]
PORTS = (*range(8101, 8104), *range(7101, 7104))
STEP_S = 60.0
GOES_ON_S = 2.0


class Step(NamedTuple):
    """Something that happens in a terminal. Without a command it only shows more, or is `^C`."""

    terminal: int
    command: str
    shown: list[str]


def tour() -> Iterator[Step]:
    blocks = re.findall(
        r"^```console terminal=(\d)\n(.*?)^```$",
        (PROJECT / "README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    for terminal, text in blocks:
        for part in re.split(r"\n(?=\$ )", text):
            command, shown = "", part.splitlines()
            if part.startswith("$ "):
                lines = re.match(r"\$ ((?:.*\\\n)*.*)\n", part + "\n")
                assert lines is not None
                command = lines[1]
                shown = part[lines.end() :].splitlines()
            elif shown[0] == "^C":
                command, shown = "^C", shown[1:]
            yield Step(int(terminal), command, [line for line in shown if line.strip()])


_PARTS = re.compile(
    r"(?P<anything>…)|(?P<blank> +)|(?P<rule>[━─]+)|(?P<role>leader|follower)(?= *│)"
    r"|(?P<contact>[\d,]+ ms|-)(?= *│)|(?P<number>\d[\d,.]*\d|\d)|(?P<other>.)"
)
_MEANT = {
    "anything": ".*",
    "blank": r"\s+",
    "rule": "[━─]+",
    "role": "(leader|follower)",
    "contact": r"(-|[\d,]+ ms)",
    "number": r"\d[\d,.]*",
}


def pattern(line: str, home: Path) -> str:
    """What a line of the README stands for."""
    parts = _PARTS.finditer(line.rstrip().replace("/home/me/exesdb", str(home)))
    return "".join(_MEANT.get(part.lastgroup or "", re.escape(part[0])) for part in parts)


class Terminal:
    """Runs one command at a time in a session of its own, and keeps what it says."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self._home = home
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._said = ""
        self._seen = 0
        self._more = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def act(self, step: Step) -> None:
        """Do it, and wait until all that is written was shown."""
        if step.command == "^C":
            self.interrupt()
        elif step.command:
            await self._start(step.command)
        assert self._process is not None, "nothing runs in this terminal"
        for line in step.shown:
            await self._shown(line)
        goes_on = step.shown and step.command != "^C"
        try:
            async with asyncio.timeout(GOES_ON_S if goes_on else STEP_S):
                await self._process.wait()
        except TimeoutError:
            assert goes_on, f"{step.command} does not end; it said {self._said}"

    async def _start(self, command: str) -> None:
        if self._process is not None:  # on a busy machine even its end may take a while
            with suppress(TimeoutError):
                async with asyncio.timeout(STEP_S):
                    await self._process.wait()
        assert not self.running, f"{command}: what was started before has not ended"
        self._process = await asyncio.create_subprocess_exec(
            *("bash", "-c", command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self._home,
            env=self._environment,
            start_new_session=True,
        )
        self._said, self._seen = "", 0
        self._reading = asyncio.create_task(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while part := await process.stdout.read(65_536):
            self._said += part.decode(errors="replace")
            self._more.set()
        self._more.set()

    async def _shown(self, line: str) -> None:
        wanted = re.compile(pattern(line, self._home))
        try:
            async with asyncio.timeout(STEP_S):
                while (found := wanted.search(self._said, self._seen)) is None:
                    assert self._reading is not None and not self._reading.done(), "it has ended"
                    self._more.clear()
                    await self._more.wait()
        except (TimeoutError, AssertionError) as error:
            pytest.fail(f"the README shows\n{line}\nand it was\n{self._said}\n({error})")
        self._seen = found.end()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """As Ctrl-C does: to the whole group."""
        if self._process is not None and self.running:
            os.killpg(self._process.pid, number)

    async def close(self) -> None:
        self.interrupt(signal.SIGTERM)
        if self._process is not None:
            async with asyncio.timeout(STEP_S):
                await self._process.wait()


@pytest.fixture
async def terminals(tmp_path: Path) -> AsyncIterator[dict[int, Terminal]]:
    """Three of them, in a fresh copy of the project, with its environment ready to be used."""
    if shutil.which("curl") is None:
        pytest.skip("the tour needs curl")
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                pytest.skip(f"the README's port {port} is taken")
    home = tmp_path / "exesdb"
    for name in ("scripts", "cluster", "node"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / name, home / name, ignore=ignored)
    environment = {"EX_ESDB_VENV": str(_environment(tmp_path, home)), "COLUMNS": "100"}
    made = {number: Terminal(home, os.environ | environment) for number in (1, 2, 3)}
    try:
        yield made
    finally:
        for terminal in (made[3], made[2], made[1]):
            await terminal.close()


def _environment(tmp_path: Path, home: Path) -> Path:
    """The packages of this very Python, as if `scripts/environment` had installed them."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    shutil.copy(home / "scripts" / "requirements.txt", venv / "installed-run.txt")
    return venv


async def test_the_tour_can_be_copied_and_goes_as_it_is_written(
    terminals: dict[int, Terminal],
) -> None:
    steps = list(tour())
    commands = " ".join(step.command for step in steps)
    assert all(word in commands for word in ("curl", "append", "tail -f", "kill -9", "flush", "^C"))
    for step in steps:
        await terminals[step.terminal].act(step)


def test_who_looks_into_a_store_that_is_not_there_makes_no_file(tmp_path: Path) -> None:
    if shutil.which("sqlite3") is None:
        pytest.skip("the README looks with sqlite3")
    (command,) = re.findall(
        r"^\$ (sqlite3 .*data/n1/stores.*)$", (PROJECT / "README.md").read_text(), re.MULTILINE
    )
    (tmp_path / "data/n1/stores").mkdir(parents=True)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
