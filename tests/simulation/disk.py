"""The disks of a simulated cluster: real files, of which a power loss takes what was not synced.

Every life of a node has a directory of its own. When a life ends, the directory of the next one is
made from it as the end demands:

* the process ended (`kill`): the files as they are, with every write that was made;
* the power went (`lose_power`): what was fsynced, exactly; of what was written after the last fsync
  of a file any part, torn at any byte, zeroed or scrambled; and of the names that were made,
  moved or removed since the last fsync of their directory any, each by itself.

For that a disk is told of each `os.fsync`, and of each statement that SQLite carries out (SQLite
syncs by itself where the product's settings, WAL and synchronous=FULL, make it: at a COMMIT the
WAL, in a checkpoint and at the end the database). `faults` decides what fails, how slow the disk
is, and at which of these moments the process dies or the power goes.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.simulation.loop import Died, Life

# What lives with the processes that have the files open: SQLite's index of a WAL, and the lock.
_NOT_ON_DISK = ("-shm", "lock")


class Faults:
    """What goes wrong on one disk; nothing, until somebody says so."""

    def __init__(self) -> None:
        self.mend()

    def mend(self) -> None:
        """Make all good."""
        self.slowness = 1.0
        self.failing = 0.0  # the share of operations that fail
        self.full = False
        self.dies_at: int | None = None  # so many sync points from now
        self.dies_by = "kill"


class Disk:
    """One node's disk. `died(how)` is called, and must raise, where `faults` ends the process."""

    def __init__(self, root: Path, chance: random.Random, died: Callable[[str], None]) -> None:
        self.faults = Faults()
        self._root = root
        self._chance = chance
        self._died = died
        self._number = 0
        self._connections: list[sqlite3.Connection] = []
        self._names: dict[Path, dict[str, int]] = {}
        self._synced: dict[int, bytes | int] = {}  # inode -> its content, or so many bytes of it
        self._kept: dict[int, Path] = {}
        self._left: list[sqlite3.Connection] = []
        self.path.parent.mkdir(parents=True)

    @property
    def path(self) -> Path:
        """The data directory of the life that is, or comes next."""
        return self._root / str(self._number) / "data"

    # --- what is told ------------------------------------------------------------------------

    def fsync(self, descriptor: int, path: Path) -> None:
        """Before the system's own fsync. Raises OSError where the disk fails."""
        status = os.fstat(descriptor)
        if self._fails(needs_room=self._has_grown(status)):
            raise _os_error(self.faults.full)
        self._sync_point()
        if stat.S_ISDIR(status.st_mode):
            if path.is_relative_to(self.path):
                self._sync_names(path)
        else:
            self._synced[status.st_ino] = path.read_bytes() if path.exists() else b""

    def writes(self) -> None:
        """Before something is written. Raises OSError where the disk fails."""
        if self._fails():
            raise _os_error(self.faults.full)

    def execute(self, connection: WatchedConnection, sql: str, run: Callable[[], Any]) -> Any:
        """Carry out a statement, or fail, or die before, in or after it."""
        if sql.startswith(("BEGIN", "INSERT", "COMMIT", "REPLACE")) and self._fails():
            raise _sqlite_error(self.faults.full)
        if not sql.startswith(("COMMIT", "PRAGMA wal_checkpoint", "PRAGMA journal_mode")):
            return run()
        dies = self._counts_down()
        if dies and self._chance.random() < 0.3:
            self._died(self.faults.dies_by)
        result = run()
        if sql.startswith("PRAGMA journal_mode"):
            result.fetchall()  # only then has it written
        if dies:
            if sql.startswith("PRAGMA wal_checkpoint"):
                self.sqlite_synced(connection.path)  # SQLite syncs the file, then cuts the WAL
            self._died(self.faults.dies_by)
        self.sqlite_synced(connection.path)
        return result

    def opened(self, connection: WatchedConnection) -> None:
        """A connection to a file of this disk."""
        self._connections.append(connection)

    def closed(self, connection: WatchedConnection) -> None:
        """SQLite has folded the WAL into the file, and synced it."""
        if connection in self._connections:
            self._connections.remove(connection)
            self.sqlite_synced(connection.path)

    def sqlite_synced(self, path: Path) -> None:
        """A transaction or a checkpoint is over: both files are on disk as they are."""
        file, wal = _status(os.fspath(path)), _status(f"{path}-wal")
        if file is None:
            return
        if wal is not None:
            if wal.st_ino not in self._synced:
                self._sync_names(path.parent)
            self._synced[wal.st_ino] = wal.st_size
        known = self._synced.get(file.st_ino)
        if not isinstance(known, bytes) or wal is None or wal.st_size == 0:
            self._synced[file.st_ino] = path.read_bytes()

    def _sync_names(self, directory: Path) -> None:
        names: dict[str, int] = {}
        for entry in os.scandir(directory):
            if entry.is_file():
                names[entry.name] = inode = entry.inode()
                if inode not in self._kept:
                    kept = self._kept[inode] = self._root / str(self._number) / str(inode)
                    os.link(entry.path, kept)
        self._names[directory] = names

    # --- the ends of a life ------------------------------------------------------------------

    def kill(self) -> None:
        """The process is gone. The next life finds the files as they are."""
        synced = self._synced
        before = self._leave()
        self._synced = {}
        for directory, target in _pairs(before, self.path):
            for entry in os.scandir(directory):
                if entry.is_file() and not entry.name.endswith(_NOT_ON_DISK):
                    copy = target / entry.name
                    shutil.copyfile(entry.path, copy)
                    if entry.inode() in synced:  # the power may still go later
                        self._synced[copy.stat().st_ino] = synced[entry.inode()]
        self._keep_names()

    def lose_power(self) -> None:
        """The machine is gone. The next life finds what was synced, and of the rest anything."""
        names, synced, kept = self._names, self._synced, self._kept
        before = self._leave()
        self._synced = {}
        for directory, target in _pairs(before, self.path):
            now = {
                name: (directory / name).stat().st_ino
                for name in os.listdir(directory)
                if (directory / name).is_file()
            }
            on_disk = names.get(directory, {})
            for name in sorted(now.keys() | on_disk.keys()):
                if name.endswith(_NOT_ON_DISK):
                    continue
                inode = self._one_of(now.get(name), on_disk.get(name))
                if inode is None:
                    continue
                source = directory / name if now.get(name) == inode else kept[inode]
                content = self._survives(source.read_bytes(), synced.get(inode, 0))
                (target / name).write_bytes(content)
                self._synced[(target / name).stat().st_ino] = content
        self._keep_names()

    def wipe(self) -> None:
        """The next life finds an empty disk."""
        self._leave()
        shutil.rmtree(self.path)
        self._names, self._synced, self._kept = {}, {}, {}

    def rot(self, name: Callable[[str], bool]) -> Path | None:
        """Flip a bit in one of the files that `name` picks, while nobody runs; which one."""
        files = [path for path in sorted(self.path.rglob("*")) if path.is_file()]
        chosen = [path for path in files if name(path.name) and path.stat().st_size]
        if not chosen:
            return None
        path = self._chance.choice(chosen)
        content = bytearray(path.read_bytes())
        content[self._chance.randrange(len(content))] ^= 1 << self._chance.randrange(8)
        path.write_bytes(content)
        return path

    def _leave(self) -> Path:
        before = self.path
        self._number += 1
        self.path.mkdir(parents=True)
        self._left += self._connections
        self._connections = []
        return before

    def let_go(self) -> None:
        """Close what the lives that are over have left open. Not from within one of their jobs."""
        left, self._left = self._left, []
        for connection in left:
            sqlite3.Connection.close(connection)

    def _keep_names(self) -> None:
        self._names, self._kept = {}, {}
        for directory in _directories(self.path):
            self._sync_names(directory)

    def _one_of(self, now: int | None, on_disk: int | None) -> int | None:
        return now if now == on_disk or self._chance.random() < 0.5 else on_disk

    def _survives(self, now: bytes, synced: bytes | int) -> bytes:
        """What is left of a file that holds `now`, of which `synced` is certain."""
        base = now[:synced] if isinstance(synced, int) else synced
        if now == base:
            return base
        if not now.startswith(base):
            return self._chance.choice([base, now])
        return base + self._torn(now[len(base) :])

    def _torn(self, written: bytes) -> bytes:
        chance = self._chance
        kind = chance.randrange(5)
        length = chance.randint(0, len(written))
        if kind == 0:
            return b""
        if kind == 1:
            return written
        if kind == 2:
            return written[:length]
        if kind == 3:  # the length came to the disk, some of the blocks did not
            return written[:length] + bytes(len(written) - length)
        scrambled = bytearray(written)
        scrambled[chance.randrange(len(written))] ^= 1 << chance.randrange(8)
        return bytes(scrambled)

    # --- faults ------------------------------------------------------------------------------

    def _fails(self, needs_room: bool = True) -> bool:
        faults = self.faults
        by_chance = faults.failing > 0 and self._chance.random() < faults.failing
        return by_chance or (faults.full and needs_room)

    def _has_grown(self, status: os.stat_result) -> bool:
        """Whether what is synced takes more room than it had. Names have theirs."""
        known = self._synced.get(status.st_ino, 0)
        room = known if isinstance(known, int) else len(known)
        return stat.S_ISREG(status.st_mode) and status.st_size > room

    def _sync_point(self) -> None:
        if self._counts_down():
            self._died(self.faults.dies_by)

    def _counts_down(self) -> bool:
        faults = self.faults
        if faults.dies_at is None:
            return False
        faults.dies_at -= 1
        if faults.dies_at > 0:
            return False
        faults.dies_at = None
        return True


class WatchedConnection(sqlite3.Connection):
    """A connection that tells its disk what it does."""

    disk: Disk
    path: Path
    life: Life

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        if not self.life.alive:
            raise Died
        return self.disk.execute(
            self, sql, lambda: sqlite3.Connection.execute(self, sql, parameters)
        )

    def close(self) -> None:
        super().close()
        self.disk.closed(self)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _directories(root: Path) -> list[Path]:
    return [root, *(path for path in sorted(root.rglob("*")) if path.is_dir())]


def _pairs(before: Path, after: Path) -> Iterator[tuple[Path, Path]]:
    """Each directory of a life, and the same of the next, which is made. (Names of directories
    are taken to be on disk at once.)
    """
    if before.exists():
        for directory in _directories(before):
            target = after / directory.relative_to(before)
            target.mkdir(exist_ok=True)
            yield directory, target


def _os_error(full: bool) -> OSError:
    return OSError(errno.ENOSPC if full else errno.EIO, "simulated")


def _sqlite_error(full: bool) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("simulated: disk full" if full else "simulated: I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL if full else sqlite3.SQLITE_IOERR_FSYNC
    return error
