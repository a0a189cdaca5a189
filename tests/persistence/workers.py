"""Workers for tests, and the bounded waits around them."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from node.persistence.directory import DataDirectory
from node.persistence.loader import LoadedState, load_state
from node.persistence.worker import Worker, WorkerSettings
from tests.persistence.histories import History, contents

NEVER_MS = 3_600_000
BOUND_MS = 10_000


def settings(**changes: Any) -> WorkerSettings:
    """A worker that runs a cycle only when asked, unless told otherwise."""
    return WorkerSettings(**{"name": "my_store", "interval_ms": NEVER_MS, **changes})


@asynccontextmanager
async def working(
    history: History, directory: DataDirectory, final_cycle: bool = False, **options: Any
) -> AsyncIterator[Worker]:
    """A worker on a history, started, and stopped at the end."""
    chosen = options.pop("settings", settings())
    worker = Worker(history.state, directory, chosen, **options)
    history.state.on_change = worker.changed
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop(final_cycle=final_cycle)


async def flush(worker: Worker, history: History) -> None:
    await worker.force(None, history.index, BOUND_MS)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the worker does by itself."""
    async with asyncio.timeout(BOUND_MS / 1000):
        while not condition():  # noqa: ASYNC110 - what is waited for are plain values
            await asyncio.sleep(0.002)


def store_status(worker: Worker, name: str) -> dict[str, Any]:
    return worker.store_status(name)


def reloaded(directory: DataDirectory) -> dict[str, Any]:
    """What a restart would find; it must be sound."""
    state = load_state(directory).state
    state.check()
    return contents(state)


def restarted(directory: DataDirectory, elsewhere: Path) -> LoadedState:
    """What a restart would find if the process ended now, sound; the files stay as they are."""
    shutil.copytree(directory.path, elsewhere)
    with DataDirectory(elsewhere) as found:
        loaded = load_state(found)
    loaded.state.check()
    return loaded


@asynccontextmanager
async def beside(program: str, argument: str) -> AsyncIterator[None]:
    """Another process, which runs a program of Python's that says when it is ready, and is killed.

    The program is to write a line, and then to read from its input, which never comes.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", program, argument),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        await process.communicate()
