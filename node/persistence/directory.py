"""The data directory: who may use it, and where in it everything stands.

    DIR/lock                     held with flock by the process that runs on DIR
    DIR/state.1, DIR/state.2     the state file, in two copies (`state_file`), each with its spare
    DIR/tail/LIFE-NUMBER.tail    raft log entries behind the cut (`tail_files`)
    DIR/node.db                  the cut, and the list of stores at the cut (`node_file`)
    DIR/stores/NAME.UID.db       one store (`store_file`)
    …damaged-TIME, …unused-TIME, …replaced-TIME
                                 set aside: never read again, never deleted
    DIR/quarantined-TIME/        all that this node had when its lineage was given up; likewise

Two rules. One process at a time: `lock` is taken before anything is read, and the kernel gives it
back however the process ends. And a new name is durable only once its directory has been fsynced,
so whoever creates, renames or removes a file here calls `sync` before relying on it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from node.persistence.faults import DirectoryInUse, FilesUnreadable

# SQLite keeps these beside a database; they belong to it and move with it.
SQLITE_COMPANIONS = ("-wal", "-shm", "-journal")

# How the name of a file ends that was set aside, without its companions.
_ASIDE = re.compile(r"(\.|^)[a-z]+-\d{8}T\d{6}Z(-\d+)?$")
_QUARANTINED = "quarantined"


class DataDirectory:
    """One node's directory, created if it is not there, locked until `close`.

    Raises DirectoryInUse if another process (or another object of this one) holds it, and
    FilesUnreadable if it cannot be created or opened. `now_s` stamps the names of set-aside files.
    """

    def __init__(self, path: Path | str, now_s: Callable[[], float] = time.time) -> None:
        self.path = Path(path).absolute()
        self._now_s = now_s
        self._locks: list[int] = []
        new = [one for one in (self.path, *self.path.parents) if not one.exists()]
        try:
            self.stores_path.mkdir(parents=True, exist_ok=True)
            for one in new:
                sync_directory(one.parent)
            self._take_lock(self.path)
        except OSError as error:
            raise FilesUnreadable(
                self.path, f"cannot be used as data directory: {error}"
            ) from error
        sync_directory(self.path)
        self._aside = self._find_aside()
        self._moving: dict[Path, Path] = {}  # what is being set aside, and where

    @property
    def aside(self) -> list[str]:
        """What was set aside by this process, or by an earlier one and was still there when this
        one started: somebody should look at it, and remove it.
        """
        return sorted(str(path.relative_to(self.path)) for path in self._aside)

    @property
    def stores_path(self) -> Path:
        """Where the store files stand."""
        return self.path / "stores"

    @property
    def node_path(self) -> Path:
        """The node's own database."""
        return self.path / "node.db"

    @property
    def tail_path(self) -> Path:
        """Where the raft log's tail stands."""
        return self.path / "tail"

    @property
    def state_paths(self) -> tuple[Path, Path]:
        """Both copies of the state file."""
        return self.path / "state.1", self.path / "state.2"

    def store_path(self, name: str, uid: int) -> Path:
        """The file of the store `name` in its incarnation `uid`.

        A store's name has no separator and no upper case (API.md), so it is a safe file name on
        every file system; the uid keeps a store that was deleted and created again apart.
        """
        return self.stores_path / f"{name}.{uid}.db"

    def store_files(self) -> Iterator[Path]:
        """The store files that are there, whether or not they belong to the cut, and those of which
        only a companion is: the process died before it was moved or removed, too.
        """
        found = {_without_companion(path) for path in self.stores_path.iterdir()}
        return (path for path in sorted(found) if path.suffix == ".db")

    def set_aside(self, path: Path, why: str) -> Path:
        """Rename a database and its companions to `<name>.<why>-<time>`; return the new path.

        Nothing is ever overwritten: a taken name gets a counter. Durable when this returns. Raises
        OSError; then the next call goes on with the same name, so that no companion is parted from
        its database.
        """
        if path not in self._moving:
            self._moving[path] = self._free_name(
                path.with_name(f"{path.name}.{why}-{self._stamp()}")
            )
            self._aside.append(self._moving[path])
        target = self._moving[path]
        for source, name in zip(_with_companions(path), _with_companions(target), strict=True):
            if source.exists():
                source.rename(name)
        sync_directory(path.parent)
        del self._moving[path]
        return target

    def has(self, path: Path) -> bool:
        """Whether anything is left of a database: itself, or a companion."""
        return any(one.exists() for one in _with_companions(path))

    def quarantine(self) -> str:
        """Move everything but the lock and the state file into a new `quarantined-TIME`.

        Returns its name; empty if there was nothing to move. Durable when this returns. A crash in
        the middle leaves some files moved and others not; the next call moves those elsewhere.
        """
        found = [path for path in self.path.iterdir() if _is_data(path)]
        if not found:
            return ""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._now_s()))
        target = self._free_name(self.path / f"{_QUARANTINED}-{stamp}")
        target.mkdir()
        for path in found:
            path.rename(target / path.name)
        self.stores_path.mkdir(exist_ok=True)
        sync_directory(target)
        sync_directory(self.path)
        self._aside = self._find_aside()
        return target.name

    def keep_copy(self, path: Path, why: str) -> Path:
        """Copy a file to `<name>.<why>-<time>`, for whoever wants to look at it; the new path."""
        target = self._free_name(path.with_name(f"{path.name}.{why}-{self._stamp()}"))
        shutil.copyfile(path, target)
        self._aside.append(target)
        return target

    def remove(self, path: Path) -> None:
        """Delete a database and its companions. Durable when this returns; absence is no error."""
        for one in _with_companions(path):
            one.unlink(missing_ok=True)
        sync_directory(path.parent)

    def annex(self, parent: Path, node_id: str) -> Path:
        """A directory of this node's own below `parent`, locked as long as this one is.

        Created if it is not there, for this user alone. Its name follows from where the data
        directory stands, so that the next start finds it. Raises DirectoryInUse, FilesUnreadable.
        """
        known_by = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]
        path = parent.absolute() / f"exesdb-{node_id}-{known_by}"
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise OSError("it is another user's, or no directory")
            self._take_lock(path)
        except OSError as error:
            raise FilesUnreadable(path, f"cannot be used: {error}") from error
        return path

    def close(self) -> None:
        """Give the locks back. Nothing of the directory may be used afterwards."""
        while self._locks:
            os.close(self._locks.pop())

    def __enter__(self) -> DataDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _stamp(self) -> str:
        return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._now_s()))

    def _free_name(self, path: Path) -> Path:
        """`path`, or `path` with the first counter that nothing has."""
        candidate, count = path, 1
        while self.has(candidate):
            count += 1
            candidate = path.with_name(f"{path.name}-{count}")
        return candidate

    def _find_aside(self) -> list[Path]:
        places = (self.path, self.stores_path, self.tail_path)
        paths = (path for place in places for path in place.glob("*"))
        return [path for path in paths if _ASIDE.search(path.name)]

    def _take_lock(self, path: Path) -> None:
        """Lock, and leave our process id in the file for whoever finds it locked."""
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise DirectoryInUse(
                path, f"in use by another process (id {holder}); give each node its own"
            ) from error
        self._locks.append(lock)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an `OSError` name the file or directory, which only what is given a path does itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def replace_durably(path: Path, content: bytes) -> None:
    """Put `content` at `path`: afterwards the whole of it is there, and before, the old one.

    The order matters. The bytes must be on disk before the name points at them, and the name must
    be on disk before anyone acts on it. Raises OSError, which names the file; `path` then holds the
    old or the new bytes.
    """
    draft = path.with_name(path.name + ".new")
    with naming(draft), open(draft, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync_directory(path.parent)


def _is_data(path: Path) -> bool:
    """Whether it belongs to the node's history; an empty directory holds none."""
    if path.name == "lock" or path.name.startswith(("state.", _QUARANTINED)):
        return False
    return not path.is_dir() or any(path.iterdir())


def _with_companions(path: Path) -> list[Path]:
    """A database, and the names of what SQLite may keep beside it."""
    return [path.with_name(path.name + companion) for companion in ("", *SQLITE_COMPANIONS)]


def _without_companion(path: Path) -> Path:
    """The database that a file belongs to."""
    name = path.name
    for companion in SQLITE_COMPANIONS:
        name = name.removesuffix(companion)
    return path.with_name(name)
