"""`exesdb backup` and `exesdb restore`: a store into a file, and back."""

from __future__ import annotations

import argparse
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from cluster.backup import BackupFailed, carrying, lives, restoring, taking
from cluster.backup.beside import Checkpoint, Life, Parked, Snapshot, Subscription, Tally
from cluster.backup.door import Door
from cluster.backup.file import Advance, Finished
from cluster.backup.threads import told_in_thread
from cluster.cli import options as shared
from cluster.cli.ending import Failure, run
from cluster.cli.showing import say, say_json

TIMEOUT_MS = 60_000

_BACKUP_EXAMPLES = """\
  exesdb backup orders.backup --store orders
  exesdb backup orders.backup --check           read a finished backup, and compare its digest
  sqlite3 orders.backup 'select position, stream, type, data from readable_events limit 3'
  sqlite3 orders.backup 'select subscription, why, position, data from parked_events'

The store stays in use meanwhile: the file holds its events as of the moment at which their reading
began, and beside them its settings, checkpoints, snapshots, and subscriptions with what is parked,
from just before; and what streams keep, and which are deleted, from just after. Interrupted, it is
orders.backup.partial; the same command goes on with it.
"""

_RESTORE_EXAMPLES = """\
  exesdb restore orders.backup
  exesdb restore orders.backup --store orders-copy
  exesdb restore orders.backup --url http://10.0.0.1:8101      another cluster

Events keep their ids, numbers, positions, data and content types. Their times are those of the
restore: the API lets nobody choose them; the file keeps the old ones. A subscription goes on behind
everything that it had settled, so some events come once more; what it had parked stays in the file.
Removed events stay removed: while a restore runs other events stand in for them, and go in the end.
Nobody else may write to the store meanwhile. Interrupted, the same command goes on where it ended.
"""


def backup(argv: list[str], prog: str = "exesdb backup") -> int:
    """The exit code of `exesdb backup`."""
    words = "Take a backup of a store, in one SQLite file."
    made = shared.store_parser(prog, words, _BACKUP_EXAMPLES, TIMEOUT_MS)
    add = made.add_argument
    add("file", type=Path, help="must not be there yet, but for --check")
    add("--check", action="store_true", help="only check the finished backup in FILE")
    options = made.parse_args(argv)
    return run(prog, _told(_check(options) if options.check else _backup(options)), options.json)


async def _told(work: Any) -> None:
    """What a backup says went wrong, as a command says it."""
    try:
        await work
    except (BackupFailed, sqlite3.Error, OSError) as error:
        raise Failure(str(error), word="backup_failed") from error


async def _backup(options: argparse.Namespace) -> None:
    start = time.monotonic()
    door = Door(options.nodes, options.store, options.timeout_ms / 1000)
    async with door:
        watch = partial(bar, options, "reading", unit="snapshots")
        with await taking.begin(door, options.file, watch) as written:
            head, before = written.head, written.position
            with bar(options, "reading", head.until, before) as advance:
                await taking.take(door, written, advance)
            with bar(options, "checking", head.until) as advance:
                tally = await told_in_thread(written.finish, advance)
            digest = written.link.hex()
    seconds = time.monotonic() - start
    show(
        options,
        f"backup of store {head.store}",
        events=written.count,
        removed=head.until - written.count,
        resumed_at=before,
        **beside(tally),
        bytes=options.file.stat().st_size,
        seconds=round(seconds, 2),
        digest=digest,
        digest_beside=tally.digest,
        file=str(options.file),
    )


async def _check(options: argparse.Namespace) -> None:
    with Finished.open(options.file) as found:
        with bar(options, "checking", found.head.until) as advance:
            tally = await told_in_thread(found.check, advance)
        show(
            options,
            f"backup of store {found.head.store}: whole",
            events=found.count,
            removed=found.head.until - found.count,
            **beside(tally),
            digest=found.link.hex(),
            digest_beside=found.digest_beside,
            file=str(options.file),
        )


def restore(argv: list[str], prog: str = "exesdb restore") -> int:
    """The exit code of `exesdb restore`."""
    words = "Bring a backup back, into an empty store."
    made = shared.parser(prog, words, _RESTORE_EXAMPLES, TIMEOUT_MS)
    add = made.add_argument
    add("file", type=Path, help="a finished backup")
    add("--store", metavar="STORE", help="default: the name of the store that it is of")
    options = made.parse_args(argv)
    return run(prog, _told(_restore(options)), options.json)


async def _restore(options: argparse.Namespace) -> None:
    start = time.monotonic()
    with Finished.open(options.file) as found:
        until = found.head.until
        with bar(options, "checking", until) as advance:
            tally = await told_in_thread(found.check, advance)
        snapshots, streams = tally.counts[Snapshot], tally.counts[Life]
        store = options.store or found.head.store
        async with Door(options.nodes, store, options.timeout_ms / 1000) as door:
            with bar(options, "looking", until) as advance:
                begun = await restoring.begin(door, found, advance)
            with bar(options, "appending", until, begun.position) as advance:
                await restoring.restore(door, found, begun.position, advance)
            with bar(options, "removing", streams, unit="streams") as advance:
                await lives.remove(door, found, advance)
            with bar(options, "comparing", until, begun.position) as advance:
                answered = await restoring.digest(door, begun, until, advance)
            if answered != found.link:
                raise BackupFailed(
                    f"store {store} answers other events than {options.file} holds:"
                    f" digest {answered.hex()}, not {found.link.hex()}"
                )
            with bar(options, "recording", snapshots, unit="snapshots") as advance:
                await carrying.restore(door, found, advance)
            with bar(options, "limiting", streams, unit="streams") as advance:
                await lives.limit(door, found, advance)
            await carrying.subscribe(door, found)
            with bar(options, "comparing", snapshots + streams, unit="things") as advance:
                answered_beside = await carrying.digest(door, until, advance)
        if answered_beside != found.digest_beside:
            raise BackupFailed(
                f"store {store} has other settings, checkpoints, snapshots, subscriptions or lives"
                f" of streams than {options.file}: digest {answered_beside}, not"
                f" {found.digest_beside}"
            )
        show(
            options,
            f"store {store} is as {options.file} has it",
            events=found.count,
            removed=until - found.count,
            resumed_at=begun.position,
            **beside(tally),
            seconds=round(time.monotonic() - start, 2),
            digest_of_file=found.link.hex(),
            digest_of_store=answered.hex(),
            beside_in_file=found.digest_beside,
            beside_in_store=answered_beside,
        )


def beside(tally: Tally) -> dict[str, int]:
    """What there is beside the events; parked events are in the file only."""
    counts = tally.counts
    return {
        "checkpoints": counts[Checkpoint],
        "snapshots": counts[Snapshot],
        "subscriptions": counts[Subscription],
        "parked_in_file": counts[Parked],
        "lives_of_streams": counts[Life],
    }


@contextmanager
def bar(
    options: argparse.Namespace, what: str, total: int, done: int = 0, unit: str = "events"
) -> Iterator[Advance]:
    """A progress bar on stderr where that is a terminal and there is something to do.

    Work that is done may have been less than `total`; where it was nothing, no bar is left behind.
    """
    columns = (
        TextColumn(f"{what:<10}"),
        BarColumn(),  # on a narrow screen the bar is short, and all else is whole
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn(unit),
        TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)),
    )
    shown = total > 0 and sys.stderr.isatty() and not options.json
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task(what, total=total, completed=done)
        yield lambda count: progress.advance(task, count)
        reached = progress.tasks[0].completed
        progress.update(task, total=reached)
        progress.live.transient = reached == done


def show(options: argparse.Namespace, title: str, **facts: Any) -> None:
    """What came of it."""
    if options.json:
        say_json({"result": title, **facts})
        return
    say(title)
    for name, value in facts.items():
        if value or name == "events":
            say(f"  {name.replace('_', ' '):<16} {f'{value:,}' if type(value) is int else value}")
