"""Snapshots of aggregates on the disk: they come back, go away, and are written once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from node.core import snapshots
from node.core.snapshots import Snapshots
from node.persistence.directory import DataDirectory
from node.persistence.loader import load_state
from tests.persistence.histories import History, contents
from tests.persistence.workers import flush, reloaded, working


def file_of(directory: DataDirectory, history: History) -> Path:
    return directory.store_path("alpha", history.state.stores["alpha"].uid)


def rows(directory: DataDirectory, history: History) -> list[tuple[int, int | None]]:
    """Version and `gone_index` of every snapshot in the file."""
    with closing(sqlite3.connect(file_of(directory, history))) as connection:
        return connection.execute(
            "SELECT version, gone_index FROM snapshots ORDER BY place"
        ).fetchall()


def begun(*versions: int) -> History:
    history = History()
    history.create("alpha")
    for version in versions:
        history.snapshot("alpha", "o", version)
    return history


async def test_snapshots_and_how_many_are_kept_come_back(directory: DataDirectory) -> None:
    history = begun(5, 1, 2**62)
    history.snapshot("alpha", "large", 1, size=1024 * 1024)
    history.snapshot("alpha", "empty", 1, size=0)
    for version in range(300):
        history.snapshot("alpha", "many", version, size=5_000)
    history.keep_snapshots("alpha", 299)
    async with working(history, directory, final_cycle=True):
        pass
    assert reloaded(directory) == contents(history.state)
    assert load_state(directory).state.stores["alpha"].snapshots.kept == 299
    history.keep_snapshots("alpha", snapshots.KEPT_MAX)
    async with working(history, directory, final_cycle=True):
        pass
    assert reloaded(directory) == contents(history.state)


async def test_a_node_that_was_loaded_goes_on_letting_go_of_what_is_beyond_the_kept(
    directory: DataDirectory, monkeypatch
) -> None:
    monkeypatch.setattr(snapshots, "DROPPED_MAX", 2)
    history = begun(*range(8))
    history.keep_snapshots("alpha", 1)
    async with working(history, directory, final_cycle=True):
        pass
    loaded = History(load_state(directory).state)
    for left in (4, 2, 1, 1):
        for one in (history, loaded):
            one.expire("alpha")
            one.state.check()
            assert len(one.state.stores["alpha"].snapshots) == left
        assert contents(loaded.state) == contents(history.state)


async def test_what_went_leaves_the_file_once_the_cut_has_passed(directory: DataDirectory) -> None:
    history = begun(1, 2, 3)
    async with working(history, directory) as worker:
        await flush(worker, history)
        history.snapshot("alpha", "o", 2)
        history.forget_snapshot("alpha", "o", 3)
        history.snapshot("alpha", "o", 4)
        history.forget_snapshot("alpha", "o", 4)
        await flush(worker, history)
        at = history.index
        assert rows(directory, history) == [(1, None), (2, at), (3, at), (2, None)]
        history.append("alpha")
        await flush(worker, history)
        assert rows(directory, history) == [(1, None), (2, None)]
    assert reloaded(directory) == contents(history.state)


async def test_a_cycle_writes_only_what_is_new(directory: DataDirectory) -> None:
    history = begun(*range(50))
    async with working(history, directory) as worker:
        await flush(worker, history)
        with closing(sqlite3.connect(file_of(directory, history))) as connection:
            # Whoever writes one of the old rows again meets this.
            connection.execute(
                "CREATE TRIGGER once BEFORE INSERT ON snapshots WHEN NEW.version < 50"
                " BEGIN SELECT raise(ABORT, 'written twice'); END"
            )
        history.snapshot("alpha", "o", 50)
        await flush(worker, history)
        brought = Snapshots()
        brought.load(history.state.stores["alpha"].snapshots.all()[10:])
        brought.replaces(history.index + 1)
        history.state.stores["alpha"].snapshots = brought
        history.snapshot("alpha", "o", 51)
        await flush(worker, history)
        history.append("alpha")
        await flush(worker, history)
    assert [version for version, _ in rows(directory, history)] == list(range(10, 52))
    assert reloaded(directory) == contents(history.state)


async def test_more_may_go_than_is_remembered(directory: DataDirectory, monkeypatch) -> None:
    monkeypatch.setattr(snapshots, "_GONE_MAX", 3)
    history = begun(*range(10))
    async with working(history, directory) as worker:
        await flush(worker, history)
        for version in range(8):
            history.forget_snapshot("alpha", "o", version)
        await flush(worker, history)
    assert reloaded(directory) == contents(history.state)


async def test_snapshots_that_were_not_written_count_as_backlog(directory: DataDirectory) -> None:
    history = begun()
    async with working(history, directory) as worker:
        await flush(worker, history)
        assert worker.store_status("alpha")["pending_bytes"] == 0
        history.snapshot("alpha", "o", 1, size=5_000)
        assert 5_000 <= worker.store_status("alpha")["pending_bytes"] < 5_100
        await flush(worker, history)
        assert worker.store_status("alpha")["pending_bytes"] == 0
    again = History(load_state(directory).state)
    async with working(again, directory) as worker:
        assert worker.store_status("alpha")["pending_bytes"] == 0


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE snapshots SET content = x'8401' WHERE version = 2",
        "UPDATE snapshots SET source = 'p' WHERE version = 2",
        "UPDATE snapshots SET version = 3 WHERE version = 2",
        "UPDATE snapshots SET created_us = 0 WHERE version = 2",
        "DELETE FROM snapshots WHERE version = 2",
        "UPDATE snapshots SET gone_index = 1 WHERE version = 2",
    ],
)
async def test_a_damaged_or_missing_snapshot_is_noticed(
    directory: DataDirectory, damage: str
) -> None:
    history = begun(1, 2)
    async with working(history, directory, final_cycle=True):
        pass
    with closing(sqlite3.connect(file_of(directory, history))) as connection:
        connection.execute(damage)
        connection.commit()
    loaded = load_state(directory)
    assert loaded.lost and not loaded.state.stores


async def test_a_damaged_number_of_snapshots_to_keep_is_noticed(directory: DataDirectory) -> None:
    history = begun(1)
    history.keep_snapshots("alpha", 7)
    async with working(history, directory, final_cycle=True):
        pass
    with closing(sqlite3.connect(directory.node_path)) as connection:
        connection.execute("DELETE FROM snapshots_kept")
        connection.commit()
    assert load_state(directory).lost


async def test_a_file_from_before_there_were_snapshots_is_read(directory: DataDirectory) -> None:
    history = begun()
    history.append("alpha")
    async with working(history, directory, final_cycle=True):
        pass
    with closing(sqlite3.connect(file_of(directory, history))) as connection:
        connection.execute("DROP TABLE snapshots")
        connection.commit()
    assert reloaded(directory) == contents(history.state)
    history = History(load_state(directory).state)
    history.snapshot("alpha", "o", 1)
    async with working(history, directory, final_cycle=True):
        pass
    assert reloaded(directory) == contents(history.state)
