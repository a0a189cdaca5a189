"""What a person sees on a terminal, and what a program gets from a pipe."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import io
import json
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console
from rich.table import Table

from cluster import status
from cluster.access import Reply
from cluster.bench.report import Report
from cluster.cli import backing
from cluster.client import Client, Event
from cluster.tables import whole
from tests.api.fakes import serving
from tests.cluster.fake_store import FakeStore, serving_store
from tests.cluster.test_backup import filled

PROJECT = Path(__file__).resolve().parents[2]
COLUMNS = 80
EVENTS = 1_200
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Ended(NamedTuple):
    code: int
    out: str
    screen: str


async def on_a_terminal(*words: str, out_too: bool = True) -> Ended:
    """Run a command with stderr, and stdout unless it is piped, on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cluster", *words),
        stdout=theirs if out_too else asyncio.subprocess.PIPE,
        stderr=theirs,
        cwd=PROJECT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": ""},
    )
    os.close(theirs)
    screen = asyncio.create_task(asyncio.to_thread(_read_all, ours))
    try:
        async with asyncio.timeout(60):
            said, _ = await process.communicate()
            return Ended(process.returncode or 0, (said or b"").decode(), await screen)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _read_all(terminal: int) -> str:
    """Everything on a terminal until its last user is gone."""
    content = b""
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        try:
            while part := screen.read(65_536):
                content += part
        except OSError:  # how Linux says that the other side is closed
            pass
    return content.decode()


async def test_a_long_work_shows_a_bar_on_a_terminal_and_its_result_below(tmp_path: Path) -> None:
    async with serving_store(filled(EVENTS)) as url:
        found = await on_a_terminal(*("backup", str(tmp_path / "b"), "--store", "s", "--url", url))
    shown = _ESCAPES.sub("", found.screen)
    assert found.code == 0 and "\x1b[" in found.screen
    for what in ("reading", "checking"):
        assert re.search(rf"{what} +━+ 1200/1200 +events", shown), shown
    assert f"events           {EVENTS:,}" in shown.rsplit("backup of store s", 1)[1]


async def test_a_restore_leaves_a_full_bar_of_each_thing_that_it_did(tmp_path: Path) -> None:
    async with serving() as node, Client(f"127.0.0.1:{node.port}", store="main") as client:
        await client.append_many([(f"s-{n % 40}", Event("Happened", n)) for n in range(EVENTS)])
        for n in range(20):
            await client.set_stream_metadata(f"s-{n}", max_count=5)
        file, url = str(tmp_path / "b"), ("--url", f"http://127.0.0.1:{node.port}")
        assert (await on_a_terminal("backup", file, "--store", "main", *url)).code == 0
        found = await on_a_terminal("restore", file, "--store", "copy", *url)
        again = await on_a_terminal("restore", file, "--store", "copy", *url)
    assert (found.code, again.code) == (0, 0)
    assert bars(found.screen) == [
        *("checking 1200/1200", "appending 1200/1200", "removing 20/20"),
        *("comparing 1200/1200", "limiting 20/20", "comparing 20/20"),
    ]
    assert bars(again.screen) == [
        *("checking 1200/1200", "looking 1200/1200", "removing 20/20"),
        *("limiting 20/20", "comparing 20/20"),
    ]


def bars(screen: str) -> list[str]:
    """What each bar that is left on a screen is of, and what it has come to."""
    lines, at = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", screen):
        if part == "\n":
            at += 1
            lines += [""] * (at == len(lines))
        elif part == "\x1b[1A":
            at -= 1
        elif part == "\x1b[2K":
            lines[at] = ""
        elif not _ESCAPES.match(part):
            lines[at] += part.strip("\r")
    return [re.sub(r" +━+ +(\S+).*", r" \1", line) for line in lines if "━" in line]


@pytest.mark.parametrize("width", [48, 60, 80])
def test_the_figures_of_a_bar_are_whole_however_narrow_the_screen_is(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(backing, "Console", lambda stderr: console)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with backing.bar(argparse.Namespace(json=False), "reading", 12_345_678) as advance:
        advance(2)
        advance(12_345_676)
    shown = _ESCAPES.sub("", screen.getvalue()).splitlines()[-1]
    assert shown.endswith(" 12345678/12345678 events 0:00:00") and len(shown) <= width


async def test_json_is_alone_on_stdout_and_nothing_is_drawn(tmp_path: Path) -> None:
    async with serving_store(filled(EVENTS)) as url:
        words = ("backup", str(tmp_path / "b"), "--store", "s", "--url", url)
        found = await on_a_terminal(*words, "--json", out_too=False)
        (line,) = found.out.splitlines()
        assert json.loads(line)["events"] == EVENTS
        assert found.screen == ""


async def test_pipes_get_plain_lines_and_no_bar(tmp_path: Path) -> None:
    async with serving_store(FakeStore([])) as url:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cluster", "backup", str(tmp_path / "b")),
            *("--store", "s", "--url", url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=PROJECT,
        )
        out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.startswith(b"backup of store s\n  events           0\n") and b"\x1b" not in out


FIGURE = "18,892 [17,044..20,451]"


@pytest.mark.parametrize("width", [48, 80, 120, 200])
def test_figures_are_whole_however_narrow_the_screen_is(width: int) -> None:
    screen = io.StringIO()
    columns = ("load", "system", "events/s", "p50 ms", "p99 ms", "processor us an event", "load %")
    row = ["1 event, 64 under way", "ex-esdb", *[FIGURE] * 5]
    Report(Console(file=screen, width=width)).table(columns, [row, row])
    shown = screen.getvalue()
    assert shown.count(FIGURE) == 10
    assert max(map(len, shown.splitlines())) <= width
    assert ("│" in shown) == (width == 200)


@pytest.mark.parametrize("width", range(60, 100))
def test_a_table_has_its_right_border_however_narrow_the_screen_is(width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=width)
    members = [
        {"id": name, "http_address": f"127.0.0.1:810{name[1]}", "role": role, "commit_index": 145,
         "applied_index": 145, "persisted_index": 132, "last_contact_ms": contact}
        for name, role, contact in (("n1", "leader", None), ("n2", "unreachable", 3_175.0))
    ]  # fmt: skip
    reply = Reply("", 200, {"leader": "n1", "term": 1, "node_id": "n1", "members": members})
    console.print(whole(status.table(reply), console))
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    assert all(line[-1] in "┓┃┩│┘" for line in lines if line and line[0] in "┏┃┡│└")


def test_prose_in_a_table_is_broken_between_words_and_figures_are_not() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=60)
    table = Table("node", "persisted index", "result")
    table.add_row("n1", "12,345,678", "[red]the disk is full, and has been for a good while[/]")
    console.print(whole(table, console, prose=("result",)))
    assert "│ 12,345,678 │" in screen.getvalue().replace("      ", " ").replace("  ", " ")
    assert "\x1b" not in screen.getvalue()
