"""The worker by what it does to the files, and by what it says."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from node.core.store import Store
from node.errors import (
    PersistenceDisabled,
    PersistenceFailed,
    PersistenceTimeout,
    ReadBarrierTimeout,
)
from node.persistence.breaker import Breaker
from node.persistence.database import Database
from node.persistence.directory import SQLITE_COMPANIONS, DataDirectory
from node.persistence.faults import FilesUnreadable
from node.persistence.ledger import Ledger
from node.persistence.loader import load_state
from node.persistence.worker import Worker
from tests.persistence.failing_disk import FailingDisk, corruption
from tests.persistence.histories import History, contents
from tests.persistence.workers import (
    BOUND_MS,
    beside,
    flush,
    reloaded,
    restarted,
    settings,
    store_status,
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


async def test_the_log_lines_are_those_that_users_look_for(
    history: History, directory: DataDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="node.persistence"):
        async with working(history, directory) as worker:
            await flush(worker, history)
    said = {(record.levelname, record.getMessage()) for record in caplog.records}
    assert ("INFO", "PersistenceWorker[my_store] is UP") in said
    assert ("DEBUG", "PersistenceWorker[my_store] persisting 3 stores") in said
    assert ("DEBUG", "Successfully persisted store my_store") in said


async def test_the_interval_alone_persists_what_is_new(
    history: History, directory: DataDirectory
) -> None:
    async with working(history, directory, settings=settings(interval_ms=10)) as worker:
        history.append("alpha", count=3)
        await until(lambda: worker.persisted_index == history.index)
        history.barrier()
        await until(lambda: worker.persisted_index == history.index)
        assert worker.backlog_bytes == 0
    assert reloaded(directory) == contents(history.state)


async def test_a_new_interval_counts_at_once(history: History, directory: DataDirectory) -> None:
    async with working(history, directory) as worker:
        assert worker.persisted_index == 0
        worker.set_interval(5)
        await until(lambda: worker.persisted_index == history.index)
        assert worker.status()["interval_ms"] == 5
        with pytest.raises(ValueError, match="0 ms"):
            worker.set_interval(0)


async def test_requests_for_one_store_are_one_cycle(
    history: History, directory: DataDirectory
) -> None:
    async with working(history, directory) as worker:
        await flush(worker, history)
        history.append("alpha", count=3)
        for _ in range(50):
            worker.request("alpha")
        await until(lambda: worker.persisted_index == history.index)
        totals = store_status(worker, "alpha")["totals"]
        assert (totals["cycles"], totals["requests"], totals["events"]) == (2, 50, 13)


async def test_a_store_without_news_is_not_written_again(
    history: History, directory: DataDirectory
) -> None:
    async with working(history, directory) as worker:
        await flush(worker, history)
        history.append("beta")
        worker.request("alpha")
        await until(lambda: worker.persisted_index == history.index)
        assert store_status(worker, "alpha")["totals"]["cycles"] == 1
        assert store_status(worker, "alpha")["persisted_index"] == history.index


async def test_a_store_without_news_that_was_asked_for_has_nothing_old(
    history: History, directory: DataDirectory
) -> None:
    now = 100.0
    async with working(history, directory, clock=lambda: now) as worker:
        await flush(worker, history)
        worker.request("alpha")
        await until(lambda: "alpha" not in worker._ledger._pending)
        now += 3600
        assert store_status(worker, "alpha")["oldest_unpersisted_ms"] == 0


async def test_status_tells_what_is_pending_and_what_is_not(
    history: History, directory: DataDirectory
) -> None:
    now = 100.0
    worker = Worker(history.state, directory, settings(), clock=lambda: now)
    history.state.on_change = worker.changed
    await worker.start()
    await flush(worker, history)
    index = history.index
    history.append("alpha", count=4)
    now += 2.5
    history.append("alpha", count=4)
    status, alpha = worker.status(), store_status(worker, "alpha")
    frames = history.state.stores["alpha"].rows(10, 18)
    pending_bytes = sum(len(row[5]) for row in frames)
    assert alpha["pending_events"] == 8
    assert alpha["pending_bytes"] == pending_bytes == status["backlog_bytes"]
    assert alpha["oldest_unpersisted_ms"] == 2500
    assert (alpha["persisted_index"], alpha["persisted_position"]) == (index, 10)
    assert alpha["applied_index"] == history.index
    assert store_status(worker, "beta")["oldest_unpersisted_ms"] == 0
    assert (status["enabled"], status["breaker"]) == (True, "closed")
    assert await worker.stop()
    assert worker.persisted_index == history.index


# --- force -----------------------------------------------------------------------------------


async def test_a_force_reports_what_reached_the_disk(
    history: History, directory: DataDirectory
) -> None:
    async with working(history, directory) as worker:
        report = await worker.force(["alpha"], history.index, BOUND_MS)
        assert report.persisted_index == report.node_index == history.index
        assert report.persisted_position == 10
        assert report.bytes == history.state.stores["alpha"].frame_bytes
        again = await worker.force(None, history.index, BOUND_MS)
        assert (again.persisted_position, again.bytes) == (30, 0)


async def test_forces_that_come_together_share_cycles(
    history: History, directory: DataDirectory
) -> None:
    async with working(history, directory) as worker:
        forces = []
        for _ in range(40):
            history.append("alpha")
            forces.append(asyncio.ensure_future(worker.force(None, history.index, BOUND_MS)))
            await asyncio.sleep(0)
        reports = await asyncio.gather(*forces)
        assert [report.persisted_index >= 7 + at for at, report in enumerate(reports)] == [
            True
        ] * 40
        assert store_status(worker, "alpha")["totals"]["cycles"] <= 10


async def test_a_force_waits_until_its_index_is_applied(
    history: History, directory: DataDirectory
) -> None:
    applied = asyncio.Event()

    async def wait_applied(_: int, __: int) -> None:
        await applied.wait()

    async with working(history, directory, wait_applied=wait_applied) as worker:
        force = asyncio.ensure_future(worker.force(None, history.index + 1, BOUND_MS))
        await asyncio.sleep(0)
        history.append("alpha")
        applied.set()
        assert (await force).persisted_index == history.index


async def test_a_force_for_an_index_that_never_comes_times_out(
    history: History, directory: DataDirectory
) -> None:
    async def refuse(_: int, __: int) -> None:
        raise ReadBarrierTimeout("not applied")

    async def for_ever(_: int, __: int) -> None:
        await asyncio.Event().wait()

    for wait_applied in (None, refuse, for_ever):
        async with working(history, directory, wait_applied=wait_applied) as worker:
            with pytest.raises(PersistenceTimeout, match="within 20 ms"):
                await worker.force(None, history.index + 1, 20)


async def test_a_force_behind_a_failing_file_fails_and_names_it(
    history: History, directory: DataDirectory, disk: FailingDisk
) -> None:
    async with working(history, directory, connect=disk.connect) as worker:
        disk.fail("beta")
        with pytest.raises(PersistenceFailed, match="disk I/O error") as caught:
            await worker.force(None, history.index, BOUND_MS)
        assert caught.value.fields == {"stores": ["beta"]}
        disk.repair()
        disk.fail("node.db")
        with pytest.raises(PersistenceFailed, match=r"node\.db"):
            await worker.force(["alpha"], history.index, BOUND_MS)
        disk.repair()
        assert (await worker.force(None, history.index, BOUND_MS)).node_index == history.index


async def test_a_force_fails_although_the_store_that_failed_is_deleted_meanwhile(
    history: History, directory: DataDirectory, disk: FailingDisk
) -> None:
    """The cut is where it was, so a restart would find nothing of what the force was for."""
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        cut = history.index
        disk.fail("beta")
        history.append("alpha")
        history.append("beta")
        force = asyncio.ensure_future(worker.force(None, history.index, BOUND_MS))
        while worker._running is None:  # noqa: ASYNC110 - the cycle has its plan then
            await asyncio.sleep(0)
        history.delete("beta")
        with pytest.raises(PersistenceFailed, match="the cut"):
            await force
        assert worker.persisted_index == cut
        await flush(worker, history)
        assert worker.persisted_index == history.index


# --- failures --------------------------------------------------------------------------------


async def test_one_failing_store_does_not_stop_the_others(
    history: History, directory: DataDirectory, disk: FailingDisk
) -> None:
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        cut = history.index
        disk.fail("beta", "COMMIT")
        history.append("alpha")
        history.append("beta")
        report = await worker.force(["alpha"], history.index, BOUND_MS)
        assert (report.persisted_index, report.node_index) == (history.index, cut)
        assert store_status(worker, "alpha")["persisted_position"] == 11
        beta = store_status(worker, "beta")
        assert (beta["persisted_index"], beta["persisted_position"]) == (cut, 10)
        assert (beta["pending_events"], beta["totals"]["failures"]) == (1, 1)
        assert "disk I/O error" in beta["last_error"]
        assert worker.persisted_index == cut
        disk.repair()
        await flush(worker, history)
        assert store_status(worker, "beta")["last_error"] is None
    assert reloaded(directory) == contents(history.state)


async def test_after_a_failed_fsync_the_file_is_opened_again_and_written_anew(
    history: History, directory: DataDirectory, disk: FailingDisk
) -> None:
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        name = directory.store_path("beta", history.state.stores["beta"].uid).name
        disk.fail("beta", "COMMIT", after=True)  # the file has it, the disk perhaps not
        history.append("beta", "b", count=200)
        with pytest.raises(PersistenceFailed):
            await flush(worker, history)
        disk.repair()
        await flush(worker, history)
        assert disk.opened.count(name) == 2
        assert store_status(worker, "beta")["totals"]["events"] == 210
    assert reloaded(directory) == contents(history.state)


async def test_failures_are_logged_once_in_a_while_with_store_and_path(
    history: History,
    directory: DataDirectory,
    disk: FailingDisk,
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk.fail("beta")
    options = settings(interval_ms=1, breaker_failures=1000)
    async with working(history, directory, settings=options, connect=disk.connect) as worker:
        await until(lambda: store_status(worker, "beta")["totals"]["failures"] > 5)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "cannot persist store beta" in errors[0]
    assert str(directory.stores_path / "beta.") in errors[0]


async def test_the_breaker_opens_pauses_and_closes_again(
    history: History, directory: DataDirectory, disk: FailingDisk
) -> None:
    now = 0.0
    options = settings(interval_ms=1, breaker_failures=3, breaker_pause_ms=10_000)
    worker = Worker(history.state, directory, options, clock=lambda: now, connect=disk.connect)
    history.state.on_change = worker.changed
    disk.fail("beta")
    await worker.start()
    await until(lambda: worker.status()["breaker"] == "open")
    refused = disk.refused
    history.append("alpha")
    await until(lambda: store_status(worker, "alpha")["persisted_position"] == 11)
    assert disk.refused == refused == 3
    assert worker.persisted_index == 0  # a store that is left out holds the cut back
    now = 10.0
    await until(lambda: store_status(worker, "beta")["totals"]["failures"] == 4)  # half open
    assert worker.status()["breaker"] == "open"
    disk.repair()
    now = 15.0
    await flush(worker, history)  # a force does not wait for the pause
    assert worker.status()["breaker"] == "closed"
    assert await worker.stop()


async def test_a_store_file_that_vanishes_or_is_damaged_is_written_anew_from_memory(
    history: History, directory: DataDirectory
) -> None:
    history.checkpoint("beta", "reader", 1)
    async with working(history, directory) as worker:
        await flush(worker, history)
        directory.remove(directory.store_path("beta", history.state.stores["beta"].uid))
        history.append("beta")
        with pytest.raises(PersistenceFailed, match="was removed while the node ran"):
            await flush(worker, history)
        assert store_status(worker, "beta")["persisted_position"] == 0
        await flush(worker, history)
    assert reloaded(directory) == contents(history.state)


async def test_a_file_that_turns_out_damaged_while_the_node_runs_is_replaced(
    history: History, directory: DataDirectory, disk: FailingDisk
) -> None:
    history.checkpoint("beta", "reader", 1)
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        disk.fail("beta", "INSERT INTO blocks", error=corruption())
        history.append("beta")
        for _ in range(3):
            with pytest.raises(PersistenceFailed, match="malformed"):
                await flush(worker, history)
        disk.repair()
        await flush(worker, history)
        kept = [path.name for path in directory.stores_path.iterdir() if "damaged" in path.name]
        assert len([name for name in kept if not name.endswith(("-wal", "-shm"))]) == 1
    assert reloaded(directory) == contents(history.state)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE checkpoints SET checksum = 'x'",
        "UPDATE subscriptions SET name = x'726561646572'",
        "UPDATE subscriptions SET name = CAST(x'ff' AS TEXT)",
        "UPDATE sqlite_schema SET sql = 'CREATE ' || CAST(x'ff' AS TEXT) WHERE name = 'snapshots'",
    ],
)
async def test_a_damaged_row_keeps_no_other_store_from_being_written(
    history: History, directory: DataDirectory, disk: FailingDisk, damage: str
) -> None:
    """A value has another type than was declared, or is no UTF-8: SQLite does not mind."""
    history.checkpoint("alpha", "reader", 3)
    history.subscribe("alpha", "reader")
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        disk.fail("alpha")
        history.checkpoint("alpha", "reader", 5)
        with pytest.raises(PersistenceFailed):
            await flush(worker, history)
        disk.repair()
        change_store_file(directory, history.state.stores["alpha"], damage)
        history.append("beta")
        await worker.force(["beta"], history.index, BOUND_MS)
        await flush(worker, history)
        assert len(list(directory.stores_path.glob("alpha.*.damaged-*Z"))) == 1
    assert reloaded(directory) == contents(history.state)


def change_store_file(directory: DataDirectory, store: Store, statement: str) -> None:
    """What damage does, by another connection."""
    path = directory.store_path(store.name, store.uid)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(statement)


@pytest.mark.parametrize("file", ["alpha", "node.db"])
async def test_a_defect_of_ours_in_one_file_keeps_no_other_from_being_written(
    history: History,
    directory: DataDirectory,
    disk: FailingDisk,
    caplog: pytest.LogCaptureFixture,
    file: str,
) -> None:
    async with working(history, directory, connect=disk.connect) as worker:
        disk.fail(file, "COMMIT", error=RuntimeError("a defect"))
        with pytest.raises(PersistenceFailed, match=rf"{file}.*a defect"):
            await flush(worker, history)
        assert any(record.exc_info for record in caplog.records)
        assert store_status(worker, "beta")["persisted_position"] == 10
        disk.repair()
        await flush(worker, history)
    assert reloaded(directory) == contents(history.state)


@pytest.mark.parametrize("why", ["damaged", "replaced"])
async def test_a_file_that_cannot_be_set_aside_is_neither_deleted_nor_emptied(
    history: History,
    directory: DataDirectory,
    disk: FailingDisk,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        alpha = history.state.stores["alpha"]
        path = directory.store_path(alpha.name, alpha.uid)
        inode = path.stat().st_ino
        if why == "damaged":
            disk.fail("alpha", error=corruption())
        else:
            alpha.origin = object()
        history.append("alpha")
        with monkeypatch.context() as broken:
            broken.setattr(Path, "rename", _refuses)
            for _ in range(3):
                with pytest.raises(PersistenceFailed):
                    await flush(worker, history)
                assert path.stat().st_ino == inode
                alpha.origin = object()  # a fill brings another one meanwhile
        disk.repair()
        await flush(worker, history)
        [kept] = directory.stores_path.glob(f"alpha.*.{why}-*Z")
        assert kept.stat().st_ino == inode
        with closing(sqlite3.connect(kept)) as connection:
            assert connection.execute("SELECT count(*) FROM events").fetchone() == (10,)
    assert reloaded(directory) == contents(history.state)


async def test_a_node_database_that_cannot_be_set_aside_is_neither_deleted_nor_changed(
    history: History, directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with working(history, directory) as worker:
        await flush(worker, history)
        lose_entry(directory, "alpha")
        inode = directory.node_path.stat().st_ino
        history.append("alpha")
        with monkeypatch.context() as broken:
            broken.setattr(Path, "rename", _refuses)
            for _ in range(3):
                with pytest.raises(PersistenceFailed):
                    await flush(worker, history)
                assert directory.node_path.stat().st_ino == inode
        await flush(worker, history)
        [kept] = directory.path.glob("node.db.damaged-*Z")
        assert kept.stat().st_ino == inode
    assert reloaded(directory) == contents(history.state)


async def test_a_damaged_file_of_a_deleted_store_is_set_aside_before_it_could_be_removed(
    history: History, directory: DataDirectory, disk: FailingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        disk.fail("alpha", error=corruption())
        history.append("alpha")
        with monkeypatch.context() as broken:
            broken.setattr(Path, "rename", _refuses)
            with pytest.raises(PersistenceFailed):
                await flush(worker, history)
        history.delete("alpha")
        await flush(worker, history)
        assert len(list(directory.stores_path.glob("alpha.*.damaged-*Z"))) == 1
    assert reloaded(directory) == contents(history.state)


async def test_even_a_defect_of_our_own_does_not_end_the_loop(
    history: History,
    directory: DataDirectory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with working(history, directory) as worker:
        for door in ("ledger.Ledger.settle", "database.Database.run", "database.Database.tidy"):
            with monkeypatch.context() as broken:
                broken.setattr(f"node.persistence.{door}", _defect)
                history.append("alpha")
                history.snapshot("alpha", "order", history.index)
                worker.request("alpha")
                await until(lambda: "a defect" in caplog.text)
            caplog.clear()
            await flush(worker, history)
            assert worker.persisted_index == history.index
    assert reloaded(directory) == contents(history.state)


def _defect(*_: object) -> None:
    raise RuntimeError("a defect")


# --- bounds, modes, life ---------------------------------------------------------------------


async def test_past_the_bound_of_the_backlog_the_node_is_overloaded_until_it_is_written(
    history: History, directory: DataDirectory, disk: FailingDisk
) -> None:
    options = settings(unpersisted_bytes_max=10_000)
    async with working(history, directory, settings=options, connect=disk.connect) as worker:
        assert not worker.overloaded
        disk.fail("")
        history.append("alpha", count=2, size=6000)
        await until(lambda: worker.overloaded)
        disk.repair()
        await flush(worker, history)
        assert not worker.overloaded


async def test_without_persistence_everything_stays_in_memory(
    history: History, directory: DataDirectory
) -> None:
    worker = Worker(history.state, directory, settings(enabled=False, unpersisted_bytes_max=1))
    history.state.on_change = worker.changed
    await worker.start()
    history.append("alpha")
    with pytest.raises(PersistenceDisabled):
        await worker.force(None, history.index, BOUND_MS)
    with pytest.raises(PersistenceDisabled):
        worker.request("alpha")
    status = worker.status()
    assert (status["enabled"], status["persisted_index"], status["backlog_bytes"]) == (False, 0, 0)
    assert store_status(worker, "alpha")["pending_events"] == 0
    assert not worker.overloaded
    assert not await worker.stop()
    assert not directory.node_path.exists()


async def test_a_stop_without_final_cycle_leaves_the_rest_for_replay(
    history: History, directory: DataDirectory
) -> None:
    async with working(history, directory) as worker:
        await flush(worker, history)
        before = contents(history.state)
        history.append("alpha")
        assert not await worker.stop(final_cycle=False)
    assert reloaded(directory) == before


async def test_a_stop_says_whether_everything_is_on_disk(
    history: History, directory: DataDirectory, disk: FailingDisk
) -> None:
    worker = Worker(history.state, directory, settings(), connect=disk.connect)
    await worker.start()
    disk.fail("beta")
    assert not await worker.stop()
    disk.repair()
    worker = Worker(history.state, directory, settings(), connect=disk.connect)
    await worker.start()
    assert await worker.stop()
    with pytest.raises(PersistenceFailed, match="does not run"):
        await worker.force(None, history.index, BOUND_MS)


async def test_a_restart_finds_what_memory_has_beyond_the_disk(
    history: History, directory: DataDirectory
) -> None:
    async with working(history, directory, final_cycle=True):
        pass
    resumed = History(load_state(directory).state)
    resumed.append("alpha", "replayed before the worker starts", count=5)
    resumed.checkpoint("beta", "reader", 5)
    resumed.delete("my_store")
    async with working(resumed, directory, final_cycle=True):
        pass
    assert reloaded(directory) == contents(resumed.state)


async def test_a_state_that_was_not_loaded_is_refused(
    history: History, directory: DataDirectory
) -> None:
    async with working(history, directory, final_cycle=True):
        pass
    worker = Worker(History().state, directory, settings())
    with pytest.raises(ValueError, match="load the state before"):
        await worker.start()


async def test_a_deleted_store_loses_its_file_only_with_the_cut_that_passes_it(
    history: History, directory: DataDirectory, disk: FailingDisk
) -> None:
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        path = directory.store_path("beta", history.state.stores["beta"].uid)
        history.delete("beta")
        history.create("beta")
        history.append("beta", count=2)
        disk.fail("node.db")
        with pytest.raises(PersistenceFailed):
            await flush(worker, history)
        assert path.exists()
        disk.repair()
        await flush(worker, history)
        assert not path.exists()
        history.delete("beta")
        await flush(worker, history)
        assert {path.name.split(".")[0] for path in directory.store_files()} == {
            "alpha",
            "my_store",
        }
    assert reloaded(directory) == contents(history.state)


async def test_nothing_is_kept_in_memory_of_stores_that_were_deleted(
    history: History, directory: DataDirectory
) -> None:
    async with working(history, directory) as worker:
        for _ in range(3):
            history.create("gamma")
            history.append("gamma")
            await flush(worker, history)
            history.delete("gamma")
            await flush(worker, history)
        left = {store.uid for store in history.state.stores.values()}
        assert worker._database._sure == worker._database._marks.keys() == left


async def test_a_store_created_and_deleted_between_two_cycles_leaves_nothing(
    history: History, directory: DataDirectory
) -> None:
    async with working(history, directory) as worker:
        history.create("brief")
        history.append("brief")
        history.delete("brief")
        await flush(worker, history)
        assert worker.persisted_index == history.index
    assert reloaded(directory) == contents(history.state)


async def test_a_state_that_jumps_forward_is_persisted_like_any_other(
    history: History, directory: DataDirectory
) -> None:
    """As when a node that was far behind is filled by the leader in one step."""
    ahead = History(load_state(directory).state)
    for name in ("alpha", "beta", "my_store"):
        ahead.create(name)
        ahead.append(name, count=10)
    ahead.append("alpha", "new", count=40)
    ahead.delete("beta")
    ahead.checkpoint("my_store", "reader", 3)
    async with working(history, directory) as worker:
        await flush(worker, history)
        names = history.state.stores.keys() | ahead.state.stores.keys()
        history.state.stores = dict(ahead.state.stores)
        history.state.applied_index = ahead.index
        for name in names:
            worker.changed(name)
        await flush(worker, history)
        assert worker.persisted_index == ahead.index
    assert reloaded(directory) == contents(ahead.state)


async def test_more_stores_than_open_files_are_persisted(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.persistence.database.OPEN_FILES_MAX", 2)
    history = History()
    async with working(history, directory) as worker:
        for name in "abcde":
            history.create(name)
        for _ in range(2):
            for name in "abcde":
                history.append(name)
            await flush(worker, history)
    assert reloaded(directory) == contents(history.state)


async def test_a_reader_that_holds_the_wal_never_holds_up_a_cycle(
    history: History, directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.persistence.database.WAL_BYTES_MAX", 0)
    async with working(history, directory) as worker:
        await flush(worker, history)
        path = directory.store_path("alpha", history.state.stores["alpha"].uid)
        wal = path.with_name(path.name + "-wal")
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM events").fetchone() == (10,)
            for _ in range(3):
                history.append("alpha", count=100)
                report = await worker.force(None, history.index, BOUND_MS)
                assert report.duration_ms < 1000
            assert wal.stat().st_size > 0
        history.append("alpha")
        await flush(worker, history)
        await until(lambda: wal.stat().st_size == 0)
    assert reloaded(directory) == contents(history.state)


async def test_a_copy_of_a_store_goes_on_in_the_file_of_the_original(
    history: History, directory: DataDirectory
) -> None:
    async with working(history, directory) as worker:
        await flush(worker, history)
        replace(history, copied(history.state.stores["alpha"]))
        history.append("alpha", count=3)
        await flush(worker, history)
        assert store_status(worker, "alpha")["totals"]["events"] == 13
    assert reloaded(directory) == contents(history.state)
    assert not list(directory.stores_path.glob("*replaced*"))


async def test_a_store_that_came_from_elsewhere_gets_a_new_file(
    history: History, directory: DataDirectory
) -> None:
    """What stands in the file may be no beginning of it: rows are not put behind that."""
    other = History()
    other.create("alpha")
    other.append("alpha", count=12, size=30)
    async with working(history, directory) as worker:
        await flush(worker, history)
        known = history.state.stores["alpha"]
        elsewhere = copied(other.state.stores["alpha"], uid=known.uid)
        elsewhere.origin = object()
        replace(history, elsewhere)
        await flush(worker, history)
        history.append("alpha", count=3)
        await flush(worker, history)
    assert reloaded(directory) == contents(history.state)
    assert len(list(directory.stores_path.glob("alpha.*.replaced-*Z"))) == 1


def copied(store: Store, uid: int | None = None) -> Store:
    copy = Store(store.name, uid or store.uid, store.created_us)
    for _ in copy.copying(store):
        pass
    copy.loaded()
    return copy


def replace(history: History, store: Store) -> None:
    """What a fill does at its end."""
    history.state.stores = {**history.state.stores, store.name: store}
    history.state.applied_index += 1
    history.state.on_change(store.name)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_node_database_that_vanishes_is_written_anew_with_all_stores(
    history: History, directory: DataDirectory, fails: bool
) -> None:
    disk = FailingDisk()
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        for companion in ("", *SQLITE_COMPANIONS):
            directory.node_path.with_name(f"node.db{companion}").unlink(missing_ok=True)
        history.append("alpha")
        if fails:
            disk.fail("node.db", "REPLACE INTO cut")
            with pytest.raises(PersistenceFailed):
                await flush(worker, history)
            assert worker.persisted_index == 0
            disk.repair()
        await flush(worker, history)
    assert reloaded(directory) == contents(history.state)


async def test_a_store_that_the_list_has_lost_is_not_left_out_of_the_next_one(
    history: History, directory: DataDirectory
) -> None:
    """A node that began without it would take itself for complete. What was listed is known."""
    async with working(history, directory) as worker:
        await flush(worker, history)
        lose_entry(directory, "alpha")
        history.append("beta")
        with pytest.raises(PersistenceFailed, match="lacks the entry of a store"):
            await flush(worker, history)
        await flush(worker, history)
        assert worker.persisted_index == history.index
    assert len(list(directory.path.glob("node.db.damaged-*Z"))) == 1
    assert reloaded(directory) == contents(history.state)


def lose_entry(directory: DataDirectory, store: str) -> None:
    """What damage does to node.db, by another connection."""
    with closing(sqlite3.connect(directory.node_path)) as other, other:
        other.execute("DELETE FROM stores WHERE name = ?", (store,))


async def test_what_a_damaged_node_database_held_is_not_called_persisted(
    history: History, directory: DataDirectory, disk: FailingDisk, tmp_path: Path
) -> None:
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        cut = worker.persisted_index
        lose_entry(directory, "alpha")
        history.append("alpha")
        with pytest.raises(PersistenceFailed, match="lacks the entry of a store"):
            await flush(worker, history)
        disk.fail("node.db")
        with pytest.raises(PersistenceFailed, match=r"node\.db"):
            await worker.force(None, cut, BOUND_MS)
        found = restarted(directory, tmp_path / "found")
        assert found.cut_index == worker.persisted_index == 0
        disk.repair()
        assert (await worker.force(None, cut, BOUND_MS)).node_index == history.index
    assert reloaded(directory) == contents(history.state)


async def test_a_disk_that_spoils_each_new_node_database_is_not_filled_with_them(
    history: History, directory: DataDirectory, disk: FailingDisk
) -> None:
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        history.append("alpha")
        disk.fail("node.db", "COMMIT", error=corruption())
        for _ in range(4):
            with pytest.raises(PersistenceFailed, match="malformed"):
                await flush(worker, history)
        assert len(list(directory.path.glob("node.db.damaged-*Z*"))) == 1
        assert len(worker.set_aside) == 1
        disk.repair()
        await flush(worker, history)
    assert reloaded(directory) == contents(history.state)


@pytest.mark.parametrize("place", ["data", "stores"])
@pytest.mark.parametrize("statement", ["BEGIN", "REPLACE INTO cut", "PRAGMA wal_checkpoint", ""])
async def test_the_name_of_a_new_file_is_synced_before_the_cut_moves_whatever_failed_before(
    history: History,
    directory: DataDirectory,
    disk: FailingDisk,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    statement: str,
) -> None:
    synced: list[str] = []
    async with working(history, directory, connect=disk.connect) as worker:
        with monkeypatch.context() as broken:
            if statement:
                disk.fail("", statement)
            else:
                broken.setattr("node.persistence.places.sync_directory", _refuses)
            for _ in range(2):
                with pytest.raises(PersistenceFailed):
                    await flush(worker, history)
                assert worker.persisted_index == 0
        disk.repair()
        monkeypatch.setattr(
            "node.persistence.places.sync_directory", lambda path: synced.append(path.name)
        )
        await flush(worker, history)
        assert place in synced


FOLD = "PRAGMA wal_checkpoint(TRUNCATE)"


@pytest.mark.parametrize("file", ["alpha", "node.db"])
async def test_nothing_is_said_to_be_on_disk_behind_a_hole_in_a_wal(
    history: History, directory: DataDirectory, file: str
) -> None:
    """After a failed fsync its pages are called clean, and may never come to the disk; a WAL that
    goes on behind them ends there after a loss of power. So it has to begin anew first."""
    disk = FailingDisk()
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        history.append("alpha")
        disk.fail(file, "COMMIT", after=True)
        with pytest.raises(PersistenceFailed):
            await flush(worker, history)
        disk.repair()
        disk.fail(file, FOLD)
        with pytest.raises(PersistenceFailed):
            await flush(worker, history)
        disk.repair()
        await flush(worker, history)
        wal = [path for path in directory.path.rglob("*-wal") if file in path.name]
        assert not any(path.stat().st_size > 64 * 1024 for path in wal)
    assert reloaded(directory) == contents(history.state)


async def test_a_wal_that_cannot_be_written_again_fails_like_the_disk(
    history: History,
    directory: DataDirectory,
    disk: FailingDisk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = Database(directory, disk.connect)
    ledger = Ledger(history.state, lambda: Breaker(5, 1), lambda: 0.0)
    ledger.open(*database.open())
    store = history.state.stores["alpha"]
    ledger.settle(plan := ledger.take(forced=True), database.run(plan))
    history.append("alpha")
    ledger.changed("alpha")
    disk.fail("", "PRAGMA freelist_count")
    assert not database.give_back(store)
    disk.repair()
    with monkeypatch.context() as broken:
        broken.setattr("node.persistence.database.write_wal_again", _refuses)
        assert not database.give_back(store)
        with pytest.raises(FilesUnreadable, match="Input/output error"):
            database.sweep(store, [1])
        ledger.settle(plan := ledger.take(forced=True), result := database.run(plan))
        assert "Input/output error" in result.errors["alpha"]
        with pytest.raises(FilesUnreadable, match="Input/output error"):
            Database(directory).open()
    ledger.settle(plan := ledger.take(forced=True), database.run(plan))
    database.close()
    assert reloaded(directory) == contents(history.state)


def _refuses(path: Path, *_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))


@pytest.mark.parametrize("file", ["alpha", "node.db"])
async def test_a_reader_holds_up_a_cycle_only_after_a_failure(
    history: History, directory: DataDirectory, file: str
) -> None:
    disk = FailingDisk()
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        alpha = directory.store_path("alpha", history.state.stores["alpha"].uid)
        with closing(sqlite3.connect(alpha if file == "alpha" else directory.node_path)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            history.append("alpha")
            await flush(worker, history)
            disk.fail(file, "COMMIT")
            history.append("alpha")
            with pytest.raises(PersistenceFailed):
                await flush(worker, history)
            disk.repair()
            with pytest.raises(PersistenceFailed, match="another process uses"):
                await flush(worker, history)
        await flush(worker, history)
    assert reloaded(directory) == contents(history.state)


# Takes SQLite's lock of who folds a WAL, in the index of the WAL, and holds it.
FOLDS_FOR_EVER = """
import fcntl, os, sys
index = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(index, fcntl.LOCK_EX, 1, 121)
print("ready", flush=True)
sys.stdin.read()
"""


async def test_a_wal_that_another_process_folds_just_now_is_not_taken_for_folded(
    history: History, directory: DataDirectory, disk: FailingDisk
) -> None:
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        alpha = history.state.stores["alpha"]
        path = directory.store_path(alpha.name, alpha.uid)
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("SELECT count(*) FROM events").fetchone()  # the WAL outlives a closing
            history.append("alpha")
            disk.fail("alpha", "COMMIT", after=True)
            with pytest.raises(PersistenceFailed):
                await flush(worker, history)
            disk.repair()
            async with beside(FOLDS_FOR_EVER, f"{path}-shm"):
                with pytest.raises(PersistenceFailed, match="another process uses"):
                    await flush(worker, history)
        await flush(worker, history)
    assert reloaded(directory) == contents(history.state)


async def test_a_file_that_was_doubted_during_a_cycle_is_not_booked_as_whole(
    history: History, directory: DataDirectory
) -> None:
    """The cycle goes behind what is there, and does not look at what a sweep has found."""
    database = Database(directory)
    ledger = Ledger(history.state, lambda: Breaker(5, 1), lambda: 0.0)
    ledger.open(*database.open())
    store = history.state.stores["alpha"]
    ledger.settle(plan := ledger.take(forced=True), database.run(plan))
    assert ledger.covered("alpha") == history.index
    history.append("alpha")
    ledger.changed("alpha")
    plan = ledger.take(forced=True)
    ledger.doubted(store.uid, "is damaged")
    ledger.settle(plan, database.run(plan))
    assert ledger.covered("alpha") == 0
    plan = ledger.take(forced=True)
    assert [cut.anew for cut in plan.stores] == [True]
    ledger.settle(plan, database.run(plan))
    assert ledger.covered("alpha") == history.index
    database.close()
    assert reloaded(directory) == contents(history.state)


async def test_a_store_that_came_from_elsewhere_is_on_disk_only_when_it_is_written(
    history: History, directory: DataDirectory
) -> None:
    disk = FailingDisk()
    database = Database(directory, disk.connect)
    ledger = Ledger(history.state, lambda: Breaker(5, 1), lambda: 0.0)
    ledger.open(*database.open())
    ledger.settle(plan := ledger.take(forced=True), database.run(plan))
    history.state.stores["alpha"].origin = object()
    ledger.changed("alpha")
    disk.fail("alpha", "BEGIN")
    ledger.settle(plan := ledger.take(forced=True), database.run(plan))
    assert ledger.covered("alpha") == 0
    disk.repair()
    database.close()
