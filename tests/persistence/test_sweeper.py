"""What was removed leaves memory and disk, and nothing else changes by it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from node.core import commands
from node.core.frames import ABSENT, encode_frame
from node.core.husks import husk_of, is_husk
from node.core.store import Store
from node.errors import PersistenceFailed
from node.persistence import blocks, sweeper
from node.persistence.breaker import Breaker
from node.persistence.database import Database
from node.persistence.directory import DataDirectory
from node.persistence.ledger import Ledger
from node.persistence.loader import load_state
from tests.core.observed import sweep
from tests.persistence.failing_disk import Crash, FailingDisk, corruption
from tests.persistence.histories import CREATED_US, History, contents
from tests.persistence.workers import (
    BOUND_MS,
    flush,
    reloaded,
    restarted,
    settings,
    until,
    working,
)


@pytest.fixture(autouse=True)
def _without_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "_PAUSE_S", 0.005)
    monkeypatch.setattr(sweeper, "_AGAIN_S", 0.005)
    monkeypatch.setattr(sweeper, "_POSITIONS", 300)


def removing() -> History:
    """A history with a stream of which much will be removed, between events that stay."""
    history = History()
    history.create("alpha")
    for _ in range(20):
        history.append("alpha", "old", count=100, size=900)
        history.append("alpha", "new", count=10)
    return history


def swept(store: Store) -> int:
    """How many frames have given way to husks."""
    return sum(is_husk(store.frame(at)) for at in range(1, store.position + 1))


def positions_of(store: Store) -> list[tuple[int, str]]:
    """Each position with the name of its stream."""
    return [(row[0], store.stream_list[row[1]].name) for row in store.rows(0, store.position)]


def path_of(directory: DataDirectory, history: History) -> Path:
    return directory.store_path("alpha", history.state.stores["alpha"].uid)


def husks_in(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (found,) = connection.execute("SELECT count(*) FROM readable_events WHERE swept").fetchone()
    return int(found)


async def test_what_was_removed_leaves_memory_and_disk(directory: DataDirectory) -> None:
    history = removing()
    store = history.state.stores["alpha"]
    path = path_of(directory, history)
    async with working(history, directory, final_cycle=True) as worker:
        await flush(worker, history)
        history.truncate("alpha", "old", 1_950)
        history.delete_stream("alpha", "new")
        await flush(worker, history)
        await until(lambda: husks_in(path) == 2_150)
        await until(lambda: path.stat().st_size < 600_000)
    assert store.frame_bytes - store.swept_bytes < 50 * 1_000 + 2_150 * 28
    history.state.check()
    assert husks_in(path) == 2_150
    assert reloaded(directory) == contents(history.state)
    again = load_state(directory).state.stores["alpha"]
    assert swept(again) == 2_150 and again.swept_bytes == store.swept_bytes


async def test_nothing_is_swept_before_the_cut_on_disk_has_passed_the_removal(
    directory: DataDirectory, disk: FailingDisk
) -> None:
    history = removing()
    store = history.state.stores["alpha"]
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        disk.fail("node.db", "COMMIT")
        history.delete_stream("alpha", "old")
        for _ in range(3):
            history.append("alpha", "new")
            with pytest.raises(PersistenceFailed):
                await flush(worker, history)
            rounds = iter(range(5))
            await until(lambda: next(rounds, None) is None)  # noqa: B023 - it is over by then
        assert swept(store) == 0
        disk.repair()
        await flush(worker, history)
        await until(lambda: swept(store) == 2_000)


async def test_nothing_is_swept_behind_the_index_with_which_a_node_is_filled(
    directory: DataDirectory,
) -> None:
    history, held = removing(), [0]
    store, index = history.state.stores["alpha"], history.index
    held[0] = index
    hold = {"held_from": lambda: held[0] or None}
    async with working(history, directory, **hold) as worker:
        history.delete_stream("alpha", "old")
        await flush(worker, history)
        rounds = iter(range(20))
        await until(lambda: next(rounds, None) is None)
        assert swept(store) == 0
        held[0] = 0
        await until(lambda: swept(store) == 2_000)


async def test_without_a_disk_it_is_swept_at_once(directory: DataDirectory) -> None:
    history = removing()
    async with working(history, directory, settings=settings(enabled=False)):
        history.delete_stream("alpha", "old", hard=True)
        await until(lambda: swept(history.state.stores["alpha"]) == 2_000)
    assert not any(directory.store_files())


async def test_a_disk_that_fails_is_tried_again_and_forces_go_on(
    directory: DataDirectory, disk: FailingDisk
) -> None:
    history = removing()
    async with working(history, directory, final_cycle=True, connect=disk.connect) as worker:
        await flush(worker, history)
        disk.fail("alpha", "DELETE FROM blocks WHERE first IN")
        history.truncate("alpha", "old", 1_000)
        await flush(worker, history)
        await until(lambda: disk.refused > 3)
        history.append("alpha", "new")
        await flush(worker, history)
        disk.repair()
        path = path_of(directory, history)
        await until(lambda: husks_in(path) == 1_000)
    assert reloaded(directory) == contents(history.state)


@pytest.mark.parametrize("how", ["damaged", "removed"])
async def test_a_file_that_sweeping_finds_damaged_holds_up_no_other_and_is_written_anew(
    directory: DataDirectory, disk: FailingDisk, how: str
) -> None:
    history = removing()
    history.create("beta")
    history.append("beta", "b", count=50)
    path, other = path_of(directory, history), history.state.stores["beta"]
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        history.truncate("alpha", "old", 1_000)
        history.truncate("beta", "b", 40)
        await flush(worker, history)
        if how == "damaged":
            disk.fail("alpha", "DELETE FROM blocks WHERE first IN", error=corruption())
        else:
            path.unlink()
        await until(lambda: swept(other) == 40)
        disk.repair()
        assert worker.store_status("alpha")["persisted_position"] == 0
        await flush(worker, history)
        assert husks_in(path) == 1_000
        assert reloaded(directory) == contents(history.state)


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM blocks WHERE first = 1",
        "DELETE FROM blocks WHERE first = (SELECT max(first) FROM blocks WHERE first < 500)",
        "UPDATE blocks SET events = 1 WHERE first = 1",
        "UPDATE blocks SET events = 1000 WHERE first = 1",
        "UPDATE blocks SET frames = zeroblob(length(frames)) WHERE first = 1",
        "UPDATE blocks SET seal = x'00' WHERE first = 1",
        "UPDATE blocks SET columns = CAST(x'ff' AS TEXT) WHERE first = 1",
    ],
)
async def test_a_block_that_sweeping_finds_missing_or_changed_is_damage(
    directory: DataDirectory, change: str
) -> None:
    history = removing()
    history.create("beta")
    history.append("beta", "b", count=50)
    path, other = path_of(directory, history), history.state.stores["beta"]
    async with working(history, directory) as worker:
        await flush(worker, history)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(change)
        history.truncate("alpha", "old", 1_000)
        history.truncate("beta", "b", 40)
        await flush(worker, history)
        await until(lambda: swept(other) == 40)
        await until(lambda: worker.store_status("alpha")["persisted_position"] == 0)
        await flush(worker, history)
        assert husks_in(path) == 1_000
        assert reloaded(directory) == contents(history.state)


async def test_what_was_good_on_the_disk_is_not_written_anew_from_memory(
    directory: DataDirectory,
) -> None:
    history = removing()
    store, path = history.state.stores["alpha"], path_of(directory, history)
    async with working(history, directory) as worker:
        await flush(worker, history)
        expected = contents(history.state)
        [kept] = [at for at, name in positions_of(store) if name == "new"][:1]
        right = store.frame(kept)
        store._frames[kept - 1] = right[:-1] + bytes([right[-1] ^ 1])  # a bit of memory flips
        history.truncate("alpha", "old", 200)
        await flush(worker, history)
        await until(lambda: husks_in(path) == 200)
        assert load_state(directory).state.stores["alpha"].frame(kept) == right
        store._frames[kept - 1] = right
        assert reloaded(directory) == contents(history.state) != expected


async def test_a_store_that_a_fill_replaced_is_not_swept_by_what_was_removed_of_the_other(
    directory: DataDirectory, disk: FailingDisk
) -> None:
    history, other = removing(), removing()
    live, theirs = history.state.stores["alpha"], other.state.stores["alpha"]
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        history.truncate("alpha", "old", 1_000)
        disk.fail("alpha", "DELETE FROM blocks WHERE first IN")
        await flush(worker, history)
        await until(lambda: disk.refused > 0)
        assert theirs.uid == live.uid and theirs.origin is not live.origin
        history.state.stores = {"alpha": theirs}
        history.state.applied_index += 1
        worker.changed("alpha")
        disk.repair()
        await flush(worker, history)
        rounds = iter(range(20))
        await until(lambda: next(rounds, None) is None)
        assert husks_in(path_of(directory, history)) == 0
        assert reloaded(directory) == contents(history.state)


async def test_small_blocks_are_swept_many_at_a_time(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "EVENTS_MAX", 1)
    monkeypatch.setattr(sweeper, "_POSITIONS", 1_000)
    history, sweeping = removing(), Database.sweep
    covered: list[int] = []

    def counted(database: Database, store: Store, positions: list[int]) -> int:
        covered.append(sweeping(database, store, positions))
        return covered[-1]

    monkeypatch.setattr(Database, "sweep", counted)
    async with working(history, directory) as worker:
        await flush(worker, history)
        history.truncate("alpha", "old", 1_000)
        await flush(worker, history)
        await until(lambda: husks_in(path_of(directory, history)) == 1_000)
        assert (sum(covered), len(covered)) == (1_000, 8)
        assert reloaded(directory) == contents(history.state)


async def test_a_damaged_file_is_not_swept_on_while_it_waits_to_be_written_anew(
    directory: DataDirectory, disk: FailingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try would doubt it again, also the one that ends when the new file is being written."""
    history = removing()
    tries, sweeping = [], Database.sweep

    def counted(database: Database, store: Store, positions: list[int]) -> str | None:
        tries.append(positions[0])
        return sweeping(database, store, positions)

    monkeypatch.setattr(Database, "sweep", counted)
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        history.truncate("alpha", "old", 1_000)
        disk.fail("alpha", "DELETE FROM blocks WHERE first IN", error=corruption())
        await flush(worker, history)
        await until(lambda: worker.store_status("alpha")["persisted_position"] == 0)
        await asyncio.sleep(0.1)
        assert len(tries) == 1, "of 1,000 rows, 300 at a time"
        disk.repair()
        await flush(worker, history)
        assert husks_in(path_of(directory, history)) == 1_000
        assert reloaded(directory) == contents(history.state)


@pytest.mark.parametrize("which", ["alpha", "node.db"])
async def test_what_is_found_damaged_once_something_was_swept_is_called_persisted_no_more(
    directory: DataDirectory, disk: FailingDisk, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """No cycle comes behind it, which could tell."""
    monkeypatch.setattr("node.persistence.database.WAL_BYTES_MAX", -1)  # all WALs are folded
    history, sweeping = removing(), Database.sweep

    def finds_damage(database: Database, store: Store, positions: list[int]) -> int:
        disk.fail(which, "PRAGMA wal_checkpoint", error=corruption())
        monkeypatch.setattr(Database, "sweep", sweeping)
        return sweeping(database, store, positions)

    monkeypatch.setattr(Database, "sweep", finds_damage)
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        history.truncate("alpha", "old", 1_000)
        await flush(worker, history)
        await until(lambda: worker.persisted_index == 0)
        disk.repair()
        await flush(worker, history)
        assert worker.persisted_index == history.index
        assert [which in name for name in worker.set_aside] == [True]
    assert reloaded(directory) == contents(history.state)


async def test_a_cycle_that_waits_for_a_sweep_does_not_override_what_that_finds(
    directory: DataDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plan was taken when nothing was known of the damage."""
    history, sweeping = removing(), Database.sweep
    history.create("beta")
    begun, gate = threading.Event(), threading.Event()

    def waits(database: Database, store: Store, positions: list[int]) -> int:
        begun.set()
        gate.wait(BOUND_MS / 1000)
        return sweeping(database, store, positions)

    monkeypatch.setattr(Database, "sweep", waits)
    async with working(history, directory) as worker:
        await flush(worker, history)
        with closing(sqlite3.connect(path_of(directory, history), isolation_level=None)) as other:
            other.execute("UPDATE blocks SET frames = zeroblob(length(frames)) WHERE first = 1")
        history.truncate("alpha", "old", 1_000)
        await flush(worker, history)
        await until(begun.is_set)
        history.append("beta")
        forced = asyncio.ensure_future(flush(worker, history))
        await until(lambda: worker._running is not None)
        gate.set()
        with pytest.raises(PersistenceFailed):
            await forced
        persisted = worker.persisted_index
        assert restarted(directory, tmp_path / "found").cut_index >= persisted
        await flush(worker, history)
        assert worker.persisted_index == history.index
    assert reloaded(directory) == contents(history.state)


def cycle(history: History, database: Database, ledger: Ledger) -> None:
    plan = ledger.take(forced=False)
    result = database.run(plan)
    assert not result.errors and result.cut_moved
    ledger.settle(plan, result)


async def test_a_file_is_doubted_once_until_it_is_written_anew(
    directory: DataDirectory, disk: FailingDisk
) -> None:
    """The last try may come when the new file is about to be written, and would doubt that."""
    history, doubts = removing(), []
    store = history.state.stores["alpha"]
    database = Database(directory, disk.connect, doubt=lambda uid, why: doubts.append(uid))
    ledger = Ledger(history.state, lambda: Breaker(5, 1), lambda: 0.0)
    ledger.open(*database.open())
    for times in (1, 2):
        cycle(history, database, ledger)
        disk.fail("alpha", "PRAGMA freelist_count", error=corruption())
        assert not database.give_back(store)
        assert not database.give_back(store)
        disk.repair()
        assert doubts == [store.uid] * times
        ledger.doubted(store.uid, "is damaged")
    cycle(history, database, ledger)
    database.close()
    assert reloaded(directory) == contents(history.state)


@pytest.mark.parametrize("which", ["alpha", "node.db"])
async def test_what_is_found_damaged_between_cycles_is_told_in_one_step(
    directory: DataDirectory, disk: FailingDisk, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """A plan that was taken between two would be of before the second, and count for nothing."""
    monkeypatch.setattr("node.persistence.database.WAL_BYTES_MAX", -1)  # all WALs are folded
    history, told = removing(), list[object]()
    database = Database(
        *(directory, disk.connect),
        doubt=lambda uid, why: told.append(uid),
        cut_lost=lambda: told.append("the cut is lost"),
    )
    ledger = Ledger(history.state, lambda: Breaker(5, 1), lambda: 0.0)
    ledger.open(*database.open())
    cycle(history, database, ledger)
    disk.fail(which, "PRAGMA wal_checkpoint", error=corruption())
    database.tidy()
    database.close()
    assert told == [history.state.stores["alpha"].uid if which == "alpha" else None]


STEPS = ["BEGIN", "DELETE FROM blocks", "INSERT INTO blocks", "COMMIT"]


@pytest.mark.parametrize("statement", STEPS)
@pytest.mark.parametrize("after", [False, True])
async def test_a_process_that_dies_while_it_sweeps_comes_back_with_all_and_sweeps_the_rest(
    directory: DataDirectory, disk: FailingDisk, tmp_path: Path, statement: str, after: bool
) -> None:
    history = removing()
    store = history.state.stores["alpha"]
    database = Database(directory, disk.connect)
    ledger = Ledger(history.state, lambda: Breaker(5, 1), lambda: 0.0)
    ledger.open(*database.open())
    cycle(history, database, ledger)
    history.truncate("alpha", "old", 1_500)
    history.state.on_change = ledger.changed
    ledger.changed("alpha")
    cycle(history, database, ledger)
    [removal] = ledger.sweepable(None)
    assert removal.until == {0: 1_500}
    positions = list(store.sweep(store.stream_list[0], 1_500, 700, 1 << 30))
    assert database.sweep(store, positions[:300]) == 300
    disk.fail("alpha", statement, after=after, error=Crash())
    with pytest.raises(Crash):
        database.sweep(store, positions[300:])
    shutil.copytree(directory.path, tmp_path / "found")
    disk.repair()
    database.close()
    with DataDirectory(tmp_path / "found") as found:
        assert reloaded(found) == contents(history.state)
        again = History(load_state(found).state)
        async with working(again, found):
            await until(lambda: husks_in(path_of(found, again)) == 1_500)
        assert reloaded(found) == contents(history.state)


async def test_a_removal_that_is_rolled_back_has_removed_nothing(
    directory: DataDirectory, disk: FailingDisk, tmp_path: Path
) -> None:
    history = removing()
    history.truncate("alpha", "new", 50)
    database = Database(directory, disk.connect)
    ledger = Ledger(history.state, lambda: Breaker(5, 1), lambda: 0.0)
    ledger.open(*database.open())
    cycle(history, database, ledger)
    before = contents(history.state)
    history.truncate("alpha", "new", 70)
    history.delete_stream("alpha", "old")
    history.append("alpha", "old")
    ledger.changed("alpha")
    disk.fail("node.db", "REPLACE INTO cut", error=Crash())
    with pytest.raises(Crash):
        database.run(ledger.take(forced=False))
    shutil.copytree(directory.path, tmp_path / "found")
    disk.repair()
    database.close()
    with DataDirectory(tmp_path / "found") as found:
        assert reloaded(found) == before
        frames = load_state(found).state.stores["alpha"].rows(0, 2_200)
        assert not any(is_husk(row[5]) for row in frames)


async def test_a_file_that_was_lost_is_written_anew_with_its_husks(
    directory: DataDirectory,
) -> None:
    history = removing()
    path = path_of(directory, history)
    async with working(history, directory, final_cycle=True) as worker:
        history.truncate("alpha", "old", 1_700)
        await flush(worker, history)
        await until(lambda: swept(history.state.stores["alpha"]) == 1_700)
        for name in path.parent.iterdir():
            name.unlink()
        history.append("alpha", "new")
        with pytest.raises(PersistenceFailed, match="was removed while the node ran"):
            await flush(worker, history)
        await flush(worker, history)
    assert husks_in(path) == 1_700
    assert reloaded(directory) == contents(history.state)


def flip(connection: sqlite3.Connection, place: int) -> None:
    """Flip a bit in one byte of a husk."""
    (frames,) = connection.execute("SELECT frames FROM blocks WHERE first = 1").fetchone()
    at = 6 * len(husk_of(bytes(100))) + place
    changed = b"".join((frames[:at], bytes([frames[at] ^ 1]), frames[at + 1 :]))
    connection.execute("UPDATE blocks SET frames = ? WHERE first = 1", (changed,))


DAMAGES: dict[str, int | str] = {
    "the id in a husk": 5,
    "the sum in a husk": 21,
    "the length in a husk": 25,
    "a husk missing": "UPDATE blocks SET frames = substr(frames, 29) WHERE first = 1",
    "a life changed": "UPDATE lives SET first = first - 1",
    "a life lost": "DELETE FROM lives",
    "a limit lost": "UPDATE lives SET truncate_before = NULL",
}


@pytest.mark.parametrize("what", DAMAGES)
async def test_damage_to_what_is_left_of_a_removed_event_is_found(
    directory: DataDirectory, what: str
) -> None:
    history = removing()
    store = history.state.stores["alpha"]
    async with working(history, directory, final_cycle=True) as worker:
        history.truncate("alpha", "old", 1_700)
        await flush(worker, history)
        await until(lambda: swept(store) == 1_700)
    damage = DAMAGES[what]
    with closing(sqlite3.connect(path_of(directory, history))) as connection:
        if isinstance(damage, int):
            flip(connection, damage)
        else:
            assert connection.execute(damage).rowcount == 1
        connection.commit()
    assert load_state(directory).lost


async def test_a_block_keeps_its_events_where_a_husk_is_longer_than_its_frame(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History()
    history.create("alpha")
    for number, stream in enumerate(("gone", "gone", "stays")):
        tiny = encode_frame(bytes([number]) * 16, "T", ABSENT, ABSENT, *["application/json"] * 2)
        history.apply(commands.append("alpha", CREATED_US, stream, commands.ANY, [tiny]))
    store = history.state.stores["alpha"]
    assert len(store.frame(1)) < len(husk_of(store.frame(1)))
    monkeypatch.setattr(blocks, "FRAMES_BYTES_MAX", store.frame_bytes)
    async with working(history, directory, final_cycle=True) as worker:
        await flush(worker, history)
        history.delete_stream("alpha", "gone")
        await flush(worker, history)
        await until(lambda: husks_in(path_of(directory, history)) == 2)
    assert reloaded(directory) == contents(history.state)


async def test_prints_do_not_tell_whether_a_store_was_swept(directory: DataDirectory) -> None:
    history = removing()
    store = history.state.stores["alpha"]
    history.delete_stream("alpha", "old")
    before = store.frame_bytes
    sweep(store)
    assert swept(store) == 2_000 and store.frame_bytes == before
    async with working(history, directory) as worker:
        await flush(worker, history)
    loaded = load_state(directory).state
    loaded.check()
    assert contents(loaded) == contents(history.state)
