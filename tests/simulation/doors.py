"""The doors through which a node sees the world, opened onto the simulated one.

The product runs unchanged, so what it asks of the system by name is answered here while a
simulation runs: wall clocks, fsync, SQLite's connections, the end of the process. Each answer goes
by the node that asks (`loop.CURRENT`). Some bounds are made small, because what they keep (cutting
the log, filling, folding) would otherwise not happen in a few seconds.
"""

from __future__ import annotations

import gc
import importlib
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from node import service
from node.persistence import tail
from node.persistence.directory import DataDirectory
from tests.raft import virtual_time
from tests.simulation import threads
from tests.simulation.disk import WatchedConnection
from tests.simulation.loop import CURRENT, SimulatedLoop

# Bounds that are no options, and what they are here.
SMALL_BOUNDS: Mapping[str, Any] = {
    "node.raft.journal._CUT_ITEMS_MIN": 5,
    "node.persistence.database.WAL_BYTES_MAX": 256 * 1024,
    "node.raft.fill_receiver._CHUNK_BYTES": 2000,
    "node.persistence.tail.SEGMENT_BYTES": 16 * 1024,
    "node.persistence.blocks.EVENTS_MAX": 6,
    "node.persistence.blocks.FRAMES_BYTES_MAX": 1000,
    "node.persistence.store_file._BLOCKS_A_SWEEP": 3,
    "node.core.subscription.EVALUATED_MAX": 40,
    "node.core.subscription.PARKED_MAX": 12,
}

WALL_S = 1_700_000_000  # the wall clocks' time when virtual time is 0


@contextmanager
def opened(loop: SimulatedLoop) -> Iterator[None]:
    """Answer for the system until the end of the block."""

    def wall_s() -> float:
        return WALL_S + loop.time() + getattr(CURRENT.get(), "skew_s", 0.0)

    answers: list[tuple[Any, str, Any]] = [
        (time, "time", wall_s),
        (time, "time_ns", lambda: int(wall_s() * 1e9)),
        (time, "monotonic", loop.time),
        (os, "fsync", _fsync(os.fsync)),
        (os, "fdatasync", _fsync(os.fdatasync)),
        (os, "pwrite", _pwrite(os.pwrite)),
        (os, "_exit", _exit),
        (tail, "threading", threads),
        (sqlite3, "connect", _connect(sqlite3.connect)),
        (uuid, "uuid4", lambda: uuid.UUID(int=int(wall_s() * 1000))),
        (DataDirectory.__init__, "__defaults__", (wall_s,)),
        (gc, "collect", lambda *_: 0),
        (gc, "freeze", lambda: None),
        (gc, "set_threshold", lambda *_: None),
        *(_bound(name, value) for name, value in SMALL_BOUNDS.items()),
        *((module, "kernel_boot_id", _boot_id) for module in _with_boot_id()),
    ]
    with virtual_time.clock(loop.time):
        patches = [mock.patch.object(*answer) for answer in answers]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in reversed(patches):
                patch.stop()


@contextmanager
def raft_bounds(bounds: Mapping[str, Any]) -> Iterator[None]:
    """Give every replica these bounds, which no option sets."""
    real = service.raft_settings
    with mock.patch.object(
        service, "raft_settings", lambda config: replace(real(config), **bounds)
    ):
        yield


def _bound(name: str, value: Any) -> tuple[Any, str, Any]:
    module, _, constant = name.rpartition(".")
    return importlib.import_module(module), constant, value


def _with_boot_id() -> list[Any]:
    return [
        importlib.import_module(name)
        for name in ("node.identity", "node.persistence.state_file")
        if hasattr(importlib.import_module(name), "kernel_boot_id")
    ]


def _boot_id() -> str:
    return str(getattr(CURRENT.get(), "boot_id", ""))


def _fsync(system: Callable[[int], None]) -> Callable[[int], None]:
    def fsync(descriptor: int) -> None:
        life: Any = CURRENT.get()
        if life is None:
            system(descriptor)
        elif life.alive:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            life.disk.fsync(descriptor, path)

    return fsync


def _pwrite(system: Callable[..., int]) -> Callable[..., int]:
    def pwrite(descriptor: int, content: Any, offset: int) -> int:
        life: Any = CURRENT.get()
        if life is not None:
            life.disk.writes()
        return system(descriptor, content, offset)

    return pwrite


def _exit(code: int) -> None:
    life: Any = CURRENT.get()
    if life is not None:
        life.exited(code)


def _connect(system: Callable[..., Any]) -> Callable[..., Any]:
    def connect(path: Path, **options: Any) -> Any:
        life: Any = CURRENT.get()
        if life is None:
            return system(path, **options)
        # The thread is simulated, and a life that is over is closed from outside.
        options |= {"factory": WatchedConnection, "check_same_thread": False}
        connection = system(path, **options)
        connection.disk, connection.life, connection.path = life.disk, life, Path(path)
        life.disk.opened(connection)
        return connection

    return connect
