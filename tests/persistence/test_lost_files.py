"""Files that are damaged, replaced or removed while the node runs: what a restart would find.

Nothing is called persisted that a restart would not find, and nothing that was relied on is lost.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from node.errors import PersistenceFailed, PersistenceTimeout
from node.persistence.directory import DataDirectory
from node.persistence.faults import FileFault, StoreDamaged
from node.persistence.schema import FORMAT
from node.persistence.store_file import StoreFile
from node.persistence.wal import wal_path
from node.persistence.worker import Worker
from tests.persistence.failing_disk import FailingDisk, corruption
from tests.persistence.histories import History, contents
from tests.persistence.test_worker import change_store_file
from tests.persistence.workers import (
    BOUND_MS,
    beside,
    flush,
    reloaded,
    restarted,
    until,
    working,
)


@pytest.fixture
def history() -> History:
    made = History()
    for name in ("alpha", "beta", "my_store"):
        made.create(name)
        made.append(name, count=10)
    return made


async def test_the_wal_of_a_file_that_was_set_aside_in_two_steps_is_kept(
    history: History,
    directory: DataDirectory,
    disk: FailingDisk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk takes the renaming of the database, and refuses that of its WAL, once."""
    rename = Path.rename
    refused = []

    def renames(path: Path, target: Path) -> Path:
        if path.name.endswith("-wal") and not refused:
            refused.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return rename(path, target)

    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        alpha = history.state.stores["alpha"]
        path = directory.store_path(alpha.name, alpha.uid)
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("SELECT count(*) FROM events").fetchone()  # the WAL outlives a closing
            history.append("alpha", count=5)
            await flush(worker, history)  # persisted, and in the WAL only
            disk.fail("alpha", error=corruption())
            history.append("alpha")
            with monkeypatch.context() as broken:
                broken.setattr(Path, "rename", renames)
                with pytest.raises(PersistenceFailed):
                    await flush(worker, history)
            assert refused
            disk.repair()
            await flush(worker, history)
        [kept] = (p for p in directory.stores_path.glob("alpha.*.damaged-*Z"))
        with closing(sqlite3.connect(kept)) as connection:
            found = connection.execute("SELECT count(*) FROM events").fetchone()
        assert found == (15,)
        assert [Path(p).name for p in worker.set_aside] == [kept.name], "it is named"


async def test_what_a_damaged_store_file_held_is_not_called_persisted(
    history: History, directory: DataDirectory, disk: FailingDisk, tmp_path: Path
) -> None:
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        history.append("alpha")
        disk.fail("alpha", error=corruption())
        with pytest.raises(PersistenceFailed):
            await flush(worker, history)
        assert restarted(directory, tmp_path / "found").cut_index == worker.persisted_index
        disk.repair()
        await flush(worker, history)
    assert reloaded(directory) == contents(history.state)


async def test_a_force_is_not_answered_with_a_cut_whose_store_file_is_gone(
    history: History, directory: DataDirectory, disk: FailingDisk, tmp_path: Path
) -> None:
    """All that `force` asks for now is of before the damage; the store that was damaged is deleted,
    but still listed in node.db."""
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        cut = worker.persisted_index
        history.append("alpha")
        disk.fail("alpha", error=corruption())
        with pytest.raises(PersistenceFailed):
            await flush(worker, history)
        history.delete("alpha")
        disk.fail("node.db")
        answered = None
        with suppress(PersistenceFailed):
            answered = await worker.force(None, cut, BOUND_MS)
        restarted_at = restarted(directory, tmp_path / "found").cut_index
        disk.repair()
        assert answered is None or restarted_at >= cut, (answered, restarted_at)


async def test_what_a_replaced_store_file_held_is_not_called_persisted(
    history: History, directory: DataDirectory, disk: FailingDisk, tmp_path: Path
) -> None:
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        history.state.stores["alpha"].origin = object()  # a fill brought another history
        history.append("alpha")
        disk.fail("alpha", "COMMIT")
        with pytest.raises(PersistenceFailed):
            await flush(worker, history)
        assert restarted(directory, tmp_path / "found").cut_index == worker.persisted_index
        disk.repair()


def _refuses_to_sync(path: Path) -> Callable[[int], None]:
    sync, refused = os.fsync, path.stat()

    def synced(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), refused):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    return synced


@pytest.mark.parametrize("which", ["node.db", "alpha"])
async def test_a_file_that_was_folded_halfway_and_cannot_be_synced_is_written_anew(
    history: History,
    directory: DataDirectory,
    disk: FailingDisk,
    monkeypatch: pytest.MonkeyPatch,
    which: str,
) -> None:
    """Between cycles. See `test_power.py` for why."""
    monkeypatch.setattr("node.persistence.database.WAL_BYTES_MAX", 0)
    alpha = history.state.stores["alpha"]
    path = directory.store_path(alpha.name, alpha.uid) if which == "alpha" else directory.node_path
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        await worker._in_thread(int)  # what follows a cycle is over
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            history.append("alpha")
            with monkeypatch.context() as broken:
                broken.setattr(os, "fsync", _refuses_to_sync(path))
                with suppress(PersistenceFailed):  # if it is told before the force is answered
                    await flush(worker, history)
                await until(lambda: worker.persisted_index == 0)
        await flush(worker, history)
        assert worker.persisted_index == history.index
        assert any(which in name for name in worker.set_aside)
    assert reloaded(directory) == contents(history.state)


@pytest.mark.parametrize("folded", ["halfway", "all of it"])
async def test_a_commit_that_cannot_be_synced_takes_nothing_from_what_was_persisted(
    history: History, directory: DataDirectory, disk: FailingDisk, tmp_path: Path, folded: str
) -> None:
    """It is the WAL that a commit syncs. A reader has kept a fold before it from ending well."""
    alpha = history.state.stores["alpha"]
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        with closing(sqlite3.connect(directory.store_path("alpha", alpha.uid))) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if folded == "halfway":
                history.append("alpha")
                await flush(worker, history)
            await worker._in_thread(worker._database.give_back, alpha)
        persisted = history.index
        disk.fail("alpha", "COMMIT")
        history.append("alpha")
        with pytest.raises(PersistenceFailed):
            await flush(worker, history)
        assert restarted(directory, tmp_path / "found").cut_index == persisted
        assert worker.persisted_index == persisted
        disk.repair()
        await flush(worker, history)
        assert not worker.set_aside
    assert reloaded(directory) == contents(history.state)


async def closed_after_a_failure(
    worker: Worker, history: History, disk: FailingDisk, name: str
) -> None:
    """Have a file be opened anew by the next cycle."""
    disk.fail(name)
    history.append("alpha")
    with pytest.raises(PersistenceFailed):
        await flush(worker, history)
    disk.repair()


async def writes_all_of_it_in_the_end(worker: Worker, history: History) -> None:
    told = []
    for _ in range(4):
        history.append("beta")
        history.snapshot("alpha", "order", history.index)
        try:
            await flush(worker, history)
        except PersistenceFailed as error:
            told.append(error.detail)
    assert worker.persisted_index == history.index, told[-1]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE sqlite_schema SET sql = replace(sql, 'position', 'positioo') WHERE name = 'cuts'",
        f"PRAGMA user_version = {FORMAT ^ 1}",
        "UPDATE sqlite_schema SET sql = replace(sql, 'source', 'sourcd') WHERE name = 'snapshots'",
        "DROP TABLE cuts",
        "UPDATE cuts SET contents = 'x'",
    ],
    ids=[
        "a bit of a column's name",
        "a bit of the version",
        "a bit of a name that only writing meets",
        "a table is gone",
        "control",
    ],
)
async def test_a_store_file_with_a_damaged_schema_is_written_anew(
    history: History, directory: DataDirectory, disk: FailingDisk, damage: str
) -> None:
    """A start would call all of these damage, or be refused."""
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        await closed_after_a_failure(worker, history, disk, "alpha")
        change_store_file(directory, history.state.stores["alpha"], damage)
        await writes_all_of_it_in_the_end(worker, history)
    assert reloaded(directory) == contents(history.state)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE sqlite_schema SET sql = replace(sql, 'term', 'tern') WHERE name = 'cut'",
        f"PRAGMA user_version = {FORMAT ^ 1}",
        "UPDATE sqlite_schema SET sql = replace(sql, 'name', 'namd') WHERE name = 'durabilities'",
        "UPDATE cut SET checksum = 1",
    ],
    ids=[
        "a bit of a column's name",
        "a bit of the version",
        "a bit of a name that only writing meets",
        "control",
    ],
)
async def test_a_node_database_with_a_damaged_schema_is_written_anew(
    history: History, directory: DataDirectory, disk: FailingDisk, damage: str
) -> None:
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        await closed_after_a_failure(worker, history, disk, "node.db")
        with closing(sqlite3.connect(directory.node_path, isolation_level=None)) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute(damage)
        await writes_all_of_it_in_the_end(worker, history)
    assert reloaded(directory) == contents(history.state)


HOLDS = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1])
other.execute("SELECT count(*) FROM sqlite_schema").fetchone()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("cycles", [0, 1, 3])
@pytest.mark.parametrize("held", [True, False], ids=["held open", "control"])
@pytest.mark.parametrize("which", ["node.db", "alpha"])
async def test_what_is_written_in_the_place_of_a_removed_file_is_found_by_a_restart(
    directory: DataDirectory, tmp_path: Path, which: str, cycles: int, held: bool
) -> None:
    history = History()
    history.create("alpha")
    history.append("alpha", count=10)
    async with working(history, directory) as worker:
        await flush(worker, history)
        alpha = history.state.stores["alpha"]
        path = directory.node_path
        if which == "alpha":
            path = directory.store_path(alpha.name, alpha.uid)
        elsewhere = tmp_path / "elsewhere.db"
        if not held:
            shutil.copy(path, elsewhere)
        async with beside(HOLDS, str(path if held else elsewhere)):
            for _ in range(cycles):
                history.append("alpha")
                await flush(worker, history)
            path.unlink()
            for _ in range(3):
                history.append("alpha")
                with suppress(PersistenceFailed):
                    await flush(worker, history)
            persisted = worker.persisted_index
            # What is there if both processes are killed, or the power is lost.
            found = restarted(directory, tmp_path / "found")
        assert persisted == history.index
        assert found.cut_index >= persisted
        assert contents(found.state) == contents(history.state)


@pytest.mark.parametrize("damage", ["none", "flipped", "moved away"])
async def test_a_node_database_that_comes_back_with_an_older_cut_is_written_anew(
    history: History, directory: DataDirectory, tmp_path: Path, damage: str
) -> None:
    """SQLite takes what is before the damage in its WAL, and says nothing."""
    disk = FailingDisk()
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        await worker._in_thread(lambda: worker._database._node.checkpoint_wal())  # type: ignore[union-attr]
        async with beside(HOLDS, str(directory.node_path)):
            history.append("beta", count=5)
            await flush(worker, history)  # in the WAL of node.db only
            disk.fail("node.db")
            history.append("alpha")
            with pytest.raises(PersistenceFailed):
                await flush(worker, history)
            disk.repair()
        # The reader was killed, so nobody has folded the WAL.
        wal = wal_path(directory.node_path)
        if damage == "moved away":
            wal.rename(tmp_path / "moved")
        if damage == "flipped":
            content = bytearray(wal.read_bytes())
            content[-100] ^= 1
            wal.write_bytes(content)
        history.append("alpha")
        for _ in range(2):
            with suppress(PersistenceFailed):
                await flush(worker, history)
        called = worker.persisted_index
        found = restarted(directory, tmp_path / "found")
        told = [name for name in worker.set_aside if name.startswith("node.db.damaged-")]
        assert bool(told) == (damage != "none")
    assert called == found.cut_index == history.index
    assert not found.lost
    assert contents(found.state) == contents(history.state)


async def test_a_cut_that_failed_and_is_there_all_the_same_is_no_damage(
    history: History, directory: DataDirectory
) -> None:
    """Then another one fails, which is not there: what is found is neither of the last two."""
    disk = FailingDisk()
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        for after in (True, False, True, False):
            disk.fail("node.db", "COMMIT", after=after)
            history.append("alpha")
            with pytest.raises(PersistenceFailed):
                await flush(worker, history)
            disk.repair()
        await flush(worker, history)
        assert worker.set_aside == []
    assert reloaded(directory) == contents(history.state)


@pytest.mark.parametrize("why", ["replaced", "damaged"])
async def test_a_cut_is_not_called_persisted_while_a_store_of_it_is_written_anew(
    history: History,
    directory: DataDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    """That may take as long as the store is large, or the disk slow."""
    disk = FailingDisk()
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        cut = worker.persisted_index
        if why == "replaced":
            history.state.stores["alpha"].origin = object()  # a fill brought another history
        else:
            disk.fail("alpha", error=corruption())
        history.append("alpha")
        history.append("beta")
        reached, goes_on = threading.Event(), threading.Event()
        append = StoreFile.append

        def slow(self: StoreFile, *arguments: Any) -> None:
            if self.path.name.startswith("beta" if why == "damaged" else "alpha"):
                reached.set()
                assert goes_on.wait(10)
            append(self, *arguments)

        monkeypatch.setattr(StoreFile, "append", slow)
        worker.hurry()
        try:
            assert await asyncio.to_thread(reached.wait, 10)
            await asyncio.sleep(0)
            assert restarted(directory, tmp_path / "found").cut_index == 0
            assert worker.persisted_index == 0
            with pytest.raises(PersistenceTimeout):
                await worker.force(None, cut, 200)
        finally:
            goes_on.set()
            disk.repair()


@pytest.mark.parametrize("by", ["a sweep", "half a fold"])
async def test_a_plan_from_before_a_file_was_put_out_of_the_way_is_not_taken_for_all_of_a_store(
    directory: DataDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """It waits for the thread behind the call that finds the file of no use."""
    history = History()
    history.create("alpha")
    history.append("alpha", count=3)
    history.subscribe("alpha", "sub")  # which the marks do not count
    async with working(history, directory) as worker:
        await flush(worker, history)
        await worker._in_thread(int)
        store, goes_on = history.state.stores["alpha"], threading.Event()
        path = directory.store_path("alpha", store.uid)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            if by == "a sweep":
                other.execute("DELETE FROM blocks")
            else:
                other.execute("BEGIN")
                other.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                history.append("alpha", count=5)
                await flush(worker, history)
                await worker._in_thread(int)
                monkeypatch.setattr("node.persistence.folding.sync_half_a_fold", _cannot_be_synced)

            def between() -> None:
                assert goes_on.wait(10)
                if by == "a sweep":
                    worker._database.sweep(store, [1])
                else:
                    worker._database.give_back(store)

            found_out = asyncio.ensure_future(worker._in_thread(between))
            await asyncio.sleep(0)
            history.append("alpha")
            worker.hurry()
            await until(lambda: "alpha" in worker._ledger._taken)
            goes_on.set()
            with suppress(FileFault):
                await found_out
            await until(lambda: not worker._ledger._taken)
            # Killed now, before the next cycle.
            found = restarted(directory, tmp_path / "found")
    if found.cut_index == history.index:
        assert contents(found.state) == contents(history.state)


def _cannot_be_synced(path: Path) -> None:
    raise StoreDamaged(path, "may lack a part of what was folded")
