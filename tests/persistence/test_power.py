"""A loss of power after an fsync that failed, on a kernel that calls its pages clean.

Real processes run with a library before the C library (`witness.c`) that writes down what they do
to their files, and refuses fsyncs on demand (of `=NAME` once). `Disk` plays that again: a page is
on the disk once an fsync after its writing has succeeded; one whose fsync failed never is, unless
it is written again. A loss of power leaves what is on the disk, and any pages that are dirty.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from node.persistence.directory import DataDirectory
from node.persistence.loader import load_state

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")

REPOSITORY = Path(__file__).parents[2]
WITNESS = Path(__file__).with_name("witness.c")
KERNEL_PAGE = 4096

PROLOGUE = """
import asyncio, os
from pathlib import Path
from node.errors import PersistenceFailed
from node.persistence import database
from node.persistence.directory import DataDirectory
from node.persistence.faults import FileFault
from node.persistence.loader import load_state
from tests.persistence.histories import History
from tests.persistence.workers import BOUND_MS, flush, working

root, failing = Path(os.environ["WITNESS_ROOT"]), Path(os.environ["WITNESS_FAIL"])

def note(word):
    with open(root / "note", "ab", buffering=0) as file:
        file.write(word.encode())

def carry_out(work):
    async def alive():
        history = History()
        with DataDirectory(root / "data") as directory:
            async with working(history, directory) as worker:
                await work(directory, worker, history)
                os._exit(0)

    asyncio.run(alive())

async def written(directory, worker, history):
    database.WAL_BYTES_MAX = 1 << 30
    history.create("alpha")
    for _ in range(10):
        history.append("alpha", count=100, size=300)
    await flush(worker, history)
    [path] = directory.stores_path.glob("alpha.*.db")
    return path

async def fails(worker, history):
    try:
        await flush(worker, history)
    except PersistenceFailed:
        return
    raise AssertionError("the cycle did not fail")
"""

AN_OUTAGE = """
async def outage(worker, history):
    history.create("alpha")
    for _ in range(40):
        history.append("alpha", count=100, size=300)
    database.WAL_BYTES_MAX = 0  # folded after this cycle, and not by what follows
    await flush(worker, history)
    await worker._in_thread(int)
    database.WAL_BYTES_MAX = 1 << 30
    history.append("alpha", size=300)
    await flush(worker, history)
    note(f"persisted {history.index}")
    for number in range(30):
        history.append("alpha", f"s{number}", count=100, size=300)
    failing.write_text("alpha")
    await fails(worker, history)
    failing.unlink()
"""

AND_GOES_ON = """
async def goes_on(directory, worker, history):
    await outage(worker, history)
    note("repaired")
    await flush(worker, history)
    note(f"persisted {history.index}")

carry_out(goes_on)
"""

AND_IS_KILLED = """
carry_out(lambda directory, worker, history: outage(worker, history))
"""

LOADS = """
with DataDirectory(root / "data") as directory:
    note("repaired")
    load_state(directory)
"""

REFUSED_THE_CUT = """
async def refused(directory, worker, history):
    history.create("alpha")
    history.append("alpha")
    await flush(worker, history)
    note(f"persisted {history.index}")
    history.append("alpha")
    failing.write_text("node.db")
    await fails(worker, history)

carry_out(refused)
"""

TAKES_THE_CUT = """
async def main():
    with DataDirectory(root / "data") as directory:
        try:
            loaded = load_state(directory)
            assert not loaded.lost
            async with working(History(loaded.state), directory) as worker:
                await worker.force(None, loaded.cut_index, BOUND_MS)
                note(f"persisted {loaded.cut_index}")
                os._exit(0)
        except (FileFault, PersistenceFailed):
            note("refused")

asyncio.run(main())
"""


class Step(NamedTuple):
    """A record of the witness."""

    operation: str
    path: str
    number: int
    data: bytes

    @property
    def note(self) -> str:
        """What a program says of itself."""
        return self.data.decode() if Path(self.path).name == "note" and self.data else ""

    @property
    def persisted(self) -> int:
        """The raft index that a program calls persisted; 0 if it says nothing of it."""
        return int(self.note.split()[1]) if self.note.startswith("persisted") else 0


class File:
    """A file in the kernel's cache and on the disk."""

    def __init__(self) -> None:
        self.cache = bytearray()
        self.disk = bytearray()
        self.dirty: dict[int, None] = {}  # pages, as they were first written

    def carry_out(self, step: Step) -> None:
        if step.operation == "W":
            self._write(step.number, step.data)
        elif step.operation == "T":
            self._truncate(step.number)
        elif step.operation == "S":
            self.disk, self.dirty = self.after_power_loss(len(self.dirty)), {}
            del self.disk[len(self.cache) :]
        elif step.operation == "F":
            self.dirty = {}

    def after_power_loss(self, written: int) -> bytearray:
        """What is left, if the disk took the first `written` dirty pages."""
        left = bytearray(self.disk)
        for page in list(self.dirty)[:written]:
            _put(left, page * KERNEL_PAGE, self.cache[page * KERNEL_PAGE :][:KERNEL_PAGE])
        return left

    def _write(self, at: int, data: bytes) -> None:
        _put(self.cache, at, data)
        last = (at + len(data) - 1) // KERNEL_PAGE
        self.dirty |= dict.fromkeys(range(at // KERNEL_PAGE, last + 1))

    def _truncate(self, size: int) -> None:
        del self.cache[size:]
        _put(self.cache, size, b"")
        self.dirty = {page: None for page in self.dirty if page * KERNEL_PAGE < size}


def _put(content: bytearray, at: int, data: bytes | bytearray) -> None:
    content.extend(bytes(max(0, at + len(data) - len(content))))
    content[at : at + len(data)] = data


class Disk:
    """What programs did to the files below `root`, as far as it is played."""

    def __init__(self, root: Path, log: Path) -> None:
        self.files: dict[str, File] = {}
        self._root = root
        self._log = log

    def play(self) -> Iterator[Step]:
        """Each step, before it is carried out."""
        for step in self._steps():
            yield step
            if step.path.endswith(("-shm", " (deleted)", "/lock", "/note")):
                continue
            if step.operation == "U":
                self.files.pop(step.path, None)
            elif step.operation == "W":
                self.files.setdefault(step.path, File()).carry_out(step)
            elif step.path in self.files:  # else a directory
                self.files[step.path].carry_out(step)

    def cut_after_power_loss(
        self, image: Path, partial: File | None = None, written: int = 0
    ) -> int:
        """The cut that a start finds; of `partial` the disk took some more pages."""
        shutil.rmtree(image, ignore_errors=True)
        for path, file in self.files.items():
            target = image / Path(path).relative_to(self._root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.after_power_loss(written if file is partial else 0))
        with DataDirectory(image / "data") as directory:
            return load_state(directory).cut_index

    def _steps(self) -> Iterator[Step]:
        with open(self._log, "rb") as log:
            while operation := log.read(1):
                path = log.read(*struct.unpack("<q", log.read(8))).decode()
                number, size = struct.unpack("<qq", log.read(16))
                yield Step(operation.decode(), path, number, log.read(size))


def carried_out(place: Path, *programs: str) -> Disk:
    """Run programs one after the other on one data directory."""
    root, library = place / "root", place / "witness.so"
    root.mkdir()
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, WITNESS, "-ldl"], check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "WITNESS_LOG": str(place / "log"),
        "WITNESS_ROOT": str(root),
        "WITNESS_FAIL": str(place / "failing"),
        "PYTHONPATH": str(REPOSITORY),
    }
    for program in programs:
        subprocess.run([sys.executable, "-c", PROLOGUE + program], env=environment, check=True)
    return Disk(root, place / "log")


@pytest.mark.parametrize(
    "programs",
    [(AN_OUTAGE + AND_GOES_ON,), (AN_OUTAGE + AND_IS_KILLED, LOADS)],
    ids=["in the same process", "in the next process"],
)
def test_what_was_persisted_outlives_a_loss_of_power_after_an_outage(
    tmp_path: Path, programs: tuple[str, ...]
) -> None:
    disk = carried_out(tmp_path, *programs)
    persisted, is_repaired, lost = 0, False, []
    for step in disk.play():
        persisted = step.persisted or persisted
        is_repaired |= step.note == "repaired"
        if not is_repaired or step.operation != "S" or "alpha" not in step.path:
            continue
        for path, file in disk.files.items():
            for written in {0, 1, len(file.dirty) // 2, len(file.dirty)}:
                cut = disk.cut_after_power_loss(tmp_path / "image", file, written)
                if cut < persisted:
                    lost.append((Path(step.path).name, Path(path).name, written, cut))
    assert persisted > 0
    assert is_repaired
    assert not lost, f"of {persisted}"


def keeps_what_was_persisted(disk: Disk, image: Path) -> None:
    persisted = 0
    for step in disk.play():
        persisted = step.persisted or persisted
    assert persisted > 0
    assert disk.cut_after_power_loss(image) >= persisted


def test_a_cut_whose_fsync_failed_is_not_called_persisted_by_the_next_process(
    tmp_path: Path,
) -> None:
    """The disk refuses every fsync of node.db, before the process is killed and after that."""
    disk = carried_out(tmp_path, REFUSED_THE_CUT, TAKES_THE_CUT)
    keeps_what_was_persisted(disk, tmp_path / "image")


THE_NEXT_FOLD_IS_REFUSED = """
    failing.write_text("=" + path.name)  # the fold's fsync of the database is refused, once
    for _ in range(3):
        history.append("alpha", count=1, size=300)
        try:
            await flush(worker, history)
            note(f"persisted {history.index}")
        except PersistenceFailed:
            pass
        await worker._in_thread(int)
    assert not failing.exists()
    assert worker.persisted_index == history.index

carry_out(is_read)
"""

A_READER = """
import sqlite3

async def is_read(directory, worker, history):
    path = await written(directory, worker, history)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    history.append("alpha", count=100, size=300)
    database.WAL_BYTES_MAX = 0  # folded as far as the reader allows
    await flush(worker, history)
    await worker._in_thread(int)
    note(f"persisted {{history.index}}")
    reader.execute("COMMIT")
    if not {stays}:
        reader.close()
"""


@pytest.mark.parametrize("stays", [True, False], ids=["idle", "gone"])
def test_what_a_fold_wrote_before_a_reader_stopped_it_is_not_relied_on_after_a_failure(
    tmp_path: Path, stays: bool
) -> None:
    disk = carried_out(tmp_path, A_READER.format(stays=stays) + THE_NEXT_FOLD_IS_REFUSED)
    keeps_what_was_persisted(disk, tmp_path / "image")


A_READER_THAT_STAYS = """
import sqlite3, sys, time
from pathlib import Path

path, root = sys.argv[1], Path(sys.argv[2])
reader = sqlite3.connect(path, isolation_level=None)
reader.execute("BEGIN")
reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
(root / "reads").touch()
for end in ("read enough", "end"):
    while not (root / end).exists():
        time.sleep(0.01)
    if end == "read enough":
        reader.execute("COMMIT")
        (root / "has read").touch()
"""

BESIDE_A_READER = f"""
import subprocess, sys, time

def begins_to_be_read(path):
    reader = subprocess.Popen([sys.executable, "-c", {A_READER_THAT_STAYS!r}, path, root])
    comes("reads")
    return reader

def has_been_read():
    (root / "read enough").touch()
    comes("has read")

def comes(name):
    while not (root / name).exists():
        time.sleep(0.01)
"""

IS_READ_AND_KILLED = """
async def is_read(directory, worker, history):
    path = await written(directory, worker, history)
    begins_to_be_read(path)
    history.append("alpha", count=100, size=300)
    await flush(worker, history)
    note(f"persisted {history.index}")
    [file] = worker._database._files.values()
    assert await worker._in_thread(file.checkpoint_wal)  # as far as the reader allows; killed then

carry_out(is_read)
"""

GOES_ON_BESIDE_THE_READER = """
async def main():
    database.WAL_BYTES_MAX = 1 << 30
    with DataDirectory(root / "data") as directory:
        loaded = load_state(directory)
        assert not loaded.lost
        has_been_read()
        [path] = directory.stores_path.glob("alpha.*.db")
        failing.write_text("=" + path.name)  # the fold's fsync of the database is refused, once
        history = History(loaded.state)
        async with working(history, directory) as worker:
            history.append("alpha")
            await fails(worker, history)
            await flush(worker, history)
            note(f"persisted {history.index}")
            os._exit(0)

asyncio.run(main())
"""


def carried_out_beside_a_reader(place: Path, *programs: str) -> Disk:
    """The same with programs one of which has its files read; the reader ends with them."""
    try:
        return carried_out(place, *(BESIDE_A_READER + program for program in programs))
    finally:
        for end in ("read enough", "end"):
            (place / "root" / end).touch()


def test_what_the_process_before_folded_halfway_is_on_the_disk(tmp_path: Path) -> None:
    disk = carried_out_beside_a_reader(tmp_path, IS_READ_AND_KILLED, GOES_ON_BESIDE_THE_READER)
    keeps_what_was_persisted(disk, tmp_path / "image")


IS_NOT_SYNCED = """
import sqlite3
from node.persistence import wal

def no_more_files(*arguments, opens=open):
    del wal.open  # once
    raise OSError(24, "Too many open files")

async def is_read(directory, worker, history):
    path = await written(directory, worker, history)
    await worker._in_thread(int)  # what follows that cycle is over
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    history.append("alpha", count=100, size=300)
    database.WAL_BYTES_MAX = 0  # folded as far as the reader allows
    wal.open = no_more_files
    await flush(worker, history)
    await worker._in_thread(int)
    assert not hasattr(wal, "open")
    note(f"persisted {history.index}")
    reader.execute("COMMIT")
"""


def test_half_a_fold_that_could_not_even_be_opened_to_be_synced_is_not_relied_on(
    tmp_path: Path,
) -> None:
    disk = carried_out(tmp_path, IS_NOT_SYNCED + THE_NEXT_FOLD_IS_REFUSED)
    keeps_what_was_persisted(disk, tmp_path / "image")


IS_REFUSED_AND_KILLED = """
async def is_read(directory, worker, history):
    path = await written(directory, worker, history)
    begins_to_be_read(path)
    history.append("alpha", count=100, size=300)
    database.WAL_BYTES_MAX = 0  # folded behind this cycle, as far as the reader allows
    failing.write_text("=" + path.name)  # half the fold cannot be synced, and that is noticed
    await flush(worker, history)
    note(f"persisted {history.index}")
    await worker._in_thread(int)
    assert not failing.exists() and worker.persisted_index == 0
    # Killed now, before the next cycle.

carry_out(is_read)
"""

GOES_ON_WITH_WHAT_IS_THERE = """
async def main():
    database.WAL_BYTES_MAX = 1 << 30
    with DataDirectory(root / "data") as directory:
        loaded = load_state(directory)
        has_been_read()
        history = History(loaded.state)
        async with working(history, directory) as worker:
            history.create("another")
            if "alpha" in history.state.stores:
                history.append("alpha")
            await flush(worker, history)
            note(f"persisted {history.index}")
            os._exit(0)

asyncio.run(main())
"""


def test_half_a_fold_that_could_not_be_synced_is_not_relied_on_by_the_next_process(
    tmp_path: Path,
) -> None:
    programs = IS_REFUSED_AND_KILLED, GOES_ON_WITH_WHAT_IS_THERE
    disk = carried_out_beside_a_reader(tmp_path, *programs)
    keeps_what_was_persisted(disk, tmp_path / "image")


HIDES_A_CUT = """
async def is_read(directory, worker, history):
    await written(directory, worker, history)
    history.append("alpha")
    await flush(worker, history)
    await worker._in_thread(int)
    reader = begins_to_be_read(directory.node_path)
    (root / "reader").write_text(str(reader.pid))
    history.append("alpha")
    history.create("beta")  # the next process does not find it at its cut
    failing.write_text("=node.db-wal")  # the fsync of the cut's COMMIT is refused, once
    await fails(worker, history)
    if %r:
        return  # killed there
    history.append("alpha")
    await fails(worker, history)  # the WAL must be folded, and the reader uses it
    reader.kill()
    reader.wait()
    history.append("alpha")
    await flush(worker, history)
    note(f"persisted {history.index}")
    assert worker.set_aside == []

carry_out(is_read)
"""

FINDS_THE_CUT_LATER = """
import signal, time

async def main():
    with DataDirectory(root / "data") as directory:
        loaded = load_state(directory)
        assert not loaded.lost
        history = History(loaded.state)
        async with working(history, directory) as worker:
            history.append("alpha")
            await fails(worker, history)  # the WAL must be folded, and the reader uses it
            os.kill(int((root / "reader").read_text()), signal.SIGKILL)
            for _ in range(100):  # it takes a moment to be gone
                history.append("alpha")
                try:
                    await flush(worker, history)
                    break
                except PersistenceFailed:
                    time.sleep(0.05)
            note(f"persisted {history.index}")
            assert not [name for name in worker.set_aside if name.startswith("node.db")]
            os._exit(0)

asyncio.run(main())
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_cut_that_the_index_of_a_reader_has_hidden_is_no_damage(
    tmp_path: Path, killed: bool
) -> None:
    """It is there once the reader is killed: newer than what was certain, and of no try since."""
    programs = [HIDES_A_CUT % killed, *([FINDS_THE_CUT_LATER] if killed else [])]
    disk = carried_out_beside_a_reader(tmp_path, *programs)
    keeps_what_was_persisted(disk, tmp_path / "image")
    with DataDirectory(tmp_path / "root" / "data") as directory:
        loaded = load_state(directory)
    assert not loaded.lost
    assert loaded.state.stores.keys() == ({"alpha"} if killed else {"alpha", "beta"})
