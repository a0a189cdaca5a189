from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from node.persistence import loader
from node.persistence.database import Database
from node.persistence.directory import DataDirectory
from node.persistence.faults import FilesUnreadable, OnlyCopyDamaged, OtherFormat
from node.persistence.loader import load_state
from node.persistence.schema import FORMAT
from node.persistence.wal import wal_path
from tests.persistence.histories import History, contents
from tests.persistence.workers import flush, reloaded, working


async def persisted(directory: DataDirectory, stores: int = 2) -> History:
    """A small history, stopped cleanly."""
    history = History()
    for name in ("alpha", "beta")[:stores]:
        history.create(name)
        history.append(name, "one", count=300)
        history.append(name, "two", count=5)
        history.checkpoint(name, "reader", 4)
        history.subscribe(name, "consumers")
        history.consume(name, "consumers")
    async with working(history, directory, final_cycle=True):
        pass
    return history


def path_of(directory: DataDirectory, history: History, name: str) -> Path:
    return directory.store_path(name, history.state.stores[name].uid)


def content_of(path: str) -> bytes:
    return Path(path).read_bytes()


def flip(path: Path, find: bytes) -> None:
    """Flip one bit in the middle of the first occurrence of `find`."""
    content = bytearray(path.read_bytes())
    content[content.index(find) + len(find) // 2] ^= 4
    path.write_bytes(content)


def test_an_empty_directory_is_an_empty_state(directory: DataDirectory) -> None:
    loaded = load_state(directory)
    assert (loaded.state.stores, loaded.cut_index, loaded.set_aside) == ({}, 0, [])


async def test_what_was_persisted_comes_back_exactly(directory: DataDirectory) -> None:
    history = await persisted(directory)
    loaded = load_state(directory)
    loaded.state.check()
    assert contents(loaded.state) == contents(history.state)
    assert (loaded.cut_index, loaded.cut_term) == (history.index, history.term)
    assert loaded.state.applied_index == history.index
    assert not loaded.lost


@pytest.mark.parametrize("_", range(2))
async def test_random_histories_come_back_at_every_cut_and_go_on_from_there(
    directory: DataDirectory, _: int
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choices = random.Random(seed)
    history = History()
    for _ in range(3):
        async with working(history, directory, final_cycle=choices.random() < 0.5) as worker:
            for _ in range(3):
                history.wander(choices.randrange(30), choices)
                await flush(worker, history)
                history.term += choices.randrange(2)
            expected = contents(history.state)
        assert reloaded(directory) == expected
        history = History(load_state(directory).state, history.term)


async def test_events_of_every_size_come_back(directory: DataDirectory) -> None:
    history = History()
    history.create("alpha")
    for size in (0, 1, 4096, 70_000, 1024 * 1024):
        history.append("alpha", "a", count=9, size=size)
    history.append("alpha", "a", count=260, size=5000)
    async with working(history, directory, final_cycle=True):
        pass
    assert reloaded(directory) == contents(history.state)


async def test_a_clean_stop_leaves_plain_database_files(directory: DataDirectory) -> None:
    history = await persisted(directory)
    names = sorted(path.name for path in directory.stores_path.iterdir())
    assert names == sorted(path_of(directory, history, name).name for name in ("alpha", "beta"))
    assert sorted(path.name for path in directory.path.iterdir()) == ["lock", "node.db", "stores"]


async def test_an_operator_can_read_the_file_with_any_sqlite(directory: DataDirectory) -> None:
    history = await persisted(directory)
    with closing(sqlite3.connect(path_of(directory, history, "alpha"))) as connection:
        row = connection.execute(
            "SELECT position, stream, number, created, length(event_id), frame"
            " FROM readable_events WHERE position = 301"
        ).fetchone()
        facts = dict(connection.execute("SELECT key, value FROM meta"))
    frame = history.state.stores["alpha"].frame(301)
    assert row == (301, "two", 0, "2023-11-14T22:13:20.000002Z", 32, frame)
    assert facts["store"] == "alpha"


@pytest.mark.parametrize(
    "what", ["frame", "stream name", "header", "truncated", "empty", "missing"]
)
async def test_one_damaged_store_sets_everything_aside_and_deletes_nothing(
    directory: DataDirectory, what: str
) -> None:
    history = await persisted(directory)
    damaged = path_of(directory, history, "beta")
    if what == "frame":
        flip(damaged, history.state.stores["beta"].frame(150)[4:])
    elif what == "stream name":
        flip(damaged, b"one")
    elif what == "header":
        damaged.write_bytes(b"\0" * 100 + damaged.read_bytes()[100:])
    elif what == "missing":
        damaged.unlink()
    else:
        size = 0 if what == "empty" else damaged.stat().st_size - 5000
        damaged.write_bytes(damaged.read_bytes()[:size])
    healthy = path_of(directory, history, "alpha").read_bytes()

    loaded = load_state(directory)

    assert (loaded.state.stores, loaded.cut_index, loaded.lost) == ({}, 0, True)
    kinds = sorted(Path(path).name.split(".db.")[1].split("-")[0] for path in loaded.set_aside)
    assert kinds == ["damaged"] * (what != "missing") + ["unused", "unused"]
    kept = next(path for path in loaded.set_aside if "alpha" in path)
    assert content_of(kept) == healthy
    assert not load_state(directory).lost


async def test_any_flipped_bit_of_a_store_is_found_or_harmless(directory: DataDirectory) -> None:
    history = await persisted(directory, stores=1)
    expected = contents(history.state)
    path = path_of(directory, history, "alpha")
    saved = {file: file.read_bytes() for file in (path, directory.node_path)}
    seed = random.randrange(10**6)
    print("seed", seed)
    choices = random.Random(seed)
    for _ in range(100):
        target = choices.choice(list(saved))
        content = bytearray(saved[target])
        content[choices.randrange(len(content))] ^= 1 << choices.randrange(8)
        target.write_bytes(content)
        try:
            loaded = load_state(directory)
            assert loaded.lost or contents(loaded.state) == expected
        except OtherFormat:
            pass
        for file in (*directory.stores_path.iterdir(), *directory.path.glob("node.db*")):
            file.unlink()
        for file, whole in saved.items():
            file.write_bytes(whole)


async def test_files_of_two_stores_that_were_exchanged_are_damage(directory: DataDirectory) -> None:
    """Both hold as much, and their marks have the same index."""
    history = await persisted(directory)
    alpha, beta = (path_of(directory, history, name) for name in ("alpha", "beta"))
    aside = alpha.with_suffix(".aside")
    alpha.rename(aside)
    beta.rename(alpha)
    aside.rename(beta)
    assert load_state(directory).lost


async def test_blocks_of_one_event_come_back_as_well(directory: DataDirectory) -> None:
    history = History()
    history.create("alpha")
    async with working(history, directory) as worker:
        for number in range(70):
            history.append("alpha", f"s{number % 3}", count=1 + number // 60)
            await flush(worker, history)
    with closing(sqlite3.connect(path_of(directory, history, "alpha"))) as connection:
        assert connection.execute("SELECT count(*) FROM blocks").fetchone() == (70,)
        last = "SELECT position FROM readable_events WHERE block = (SELECT max(first) FROM blocks)"
        assert connection.execute(last).fetchall() == [(79,), (80,)]
    assert reloaded(directory) == contents(history.state)


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("node.db", "UPDATE cut SET raft_index = raft_index + 1"),
        ("node.db", "UPDATE cut SET term = term + 1"),
        ("node.db", "UPDATE stores SET created_us = created_us + 1"),
        ("node.db", "UPDATE stores SET cut_index = cut_index + 1"),
        ("alpha", "UPDATE cuts SET term = term + 1"),
        ("alpha", "UPDATE cuts SET position = position - 1"),
        ("alpha", "UPDATE checkpoints SET position = position + 1"),
        ("alpha", "UPDATE subscriptions SET raft_index = raft_index - 1"),
        ("alpha", "UPDATE subscriptions SET state = zeroblob(length(state))"),
        ("alpha", "UPDATE blocks SET created_us = created_us + 1 WHERE first = 1"),
        ("alpha", "UPDATE blocks SET events = events - 1 WHERE first = 1"),
        (
            "alpha",
            "UPDATE blocks SET columns = json_replace(columns, '$[3][6]', 1) WHERE first = 1",
        ),
        ("alpha", "UPDATE blocks SET seal = seal + 1 WHERE first = 1"),
        ("alpha", "UPDATE blocks SET checksum = checksum + 1 WHERE first = 1"),
        ("alpha", "DELETE FROM blocks WHERE first = (SELECT max(first) FROM blocks)"),
        ("alpha", "DELETE FROM blocks WHERE first = 1"),
        ("alpha", "UPDATE types SET name = upper(name) WHERE type_id = 0"),
        ("alpha", "UPDATE types SET name = CAST(name AS BLOB)"),
        ("alpha", "UPDATE streams SET name = CAST(name AS BLOB)"),
        ("alpha", "UPDATE blocks SET seal = x'00' WHERE first = 1"),
        ("alpha", "UPDATE blocks SET seal = seal + 0.5 WHERE first = 1"),
        ("alpha", "UPDATE blocks SET frames = CAST(frames AS TEXT) WHERE first = 1"),
        ("alpha", "UPDATE meta SET value = value + 1 WHERE key = 'uid'"),
    ],
)
async def test_a_number_that_changed_where_sqlite_sees_nothing_wrong_is_damage(
    directory: DataDirectory, where: str, change: str
) -> None:
    history = await persisted(directory)
    path = directory.node_path if where == "node.db" else path_of(directory, history, where)
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(change).rowcount > 0
    loaded = load_state(directory)
    assert (loaded.state.stores, loaded.cut_index, loaded.lost) == ({}, 0, True)
    assert any("damaged" in path for path in loaded.set_aside)


async def test_a_damaged_node_database_sets_everything_aside(directory: DataDirectory) -> None:
    await persisted(directory)
    directory.node_path.write_bytes(b"this is not a database" * 300)
    loaded = load_state(directory)
    assert loaded.lost
    assert "node.db.damaged" in loaded.set_aside[0]
    assert len(loaded.set_aside) == 3


async def test_a_durability_comes_back_and_cannot_be_lost_without_a_word(
    directory: DataDirectory,
) -> None:
    history = await persisted(directory)
    history.put("alpha", "persisted")
    async with working(history, directory, final_cycle=True):
        pass
    assert load_state(directory).state.stores["alpha"].durability == "persisted"
    with closing(sqlite3.connect(directory.node_path)) as connection, connection:
        connection.execute("DELETE FROM durabilities")
    assert load_state(directory).lost


async def test_a_directory_of_the_first_version_is_loaded_and_gains_durabilities(
    directory: DataDirectory,
) -> None:
    history = await persisted(directory)
    with closing(sqlite3.connect(directory.node_path)) as connection, connection:
        connection.execute("DROP TABLE durabilities")
    history = History(load_state(directory).state, history.term)
    history.put("beta", "replicated")
    async with working(history, directory, final_cycle=True):
        pass
    assert reloaded(directory) == contents(history.state)


async def test_a_missing_node_database_is_not_taken_for_an_empty_history(
    directory: DataDirectory,
) -> None:
    await persisted(directory)
    directory.node_path.unlink()
    loaded = load_state(directory)
    assert (loaded.state.stores, loaded.lost) == ({}, True)
    assert len(loaded.set_aside) == 2


async def test_a_store_file_older_than_the_cut_is_noticed(directory: DataDirectory) -> None:
    history = await persisted(directory, stores=1)
    path = path_of(directory, history, "alpha")
    older = path.read_bytes()
    history.append("alpha", count=3)
    async with working(history, directory, final_cycle=True):
        pass
    path.write_bytes(older)
    assert load_state(directory).lost


async def test_a_file_that_never_became_part_of_the_cut_is_set_aside(
    directory: DataDirectory,
) -> None:
    history = await persisted(directory)
    stray = directory.store_path("gamma", 5)
    stray.write_bytes(path_of(directory, history, "alpha").read_bytes())
    loaded = load_state(directory)
    assert contents(loaded.state) == contents(history.state)
    assert not loaded.lost
    assert [Path(path).name.startswith("gamma.5.db.unused-") for path in loaded.set_aside] == [True]


@pytest.mark.parametrize("which", ["node", "store"])
@pytest.mark.parametrize("format", [FORMAT - 1, FORMAT + 1])
async def test_another_format_stops_the_start_and_moves_nothing(
    directory: DataDirectory, which: str, format: int
) -> None:
    history = await persisted(directory)
    path = directory.node_path if which == "node" else path_of(directory, history, "beta")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {format}")
    before = sorted(directory.path.rglob("*"))
    with pytest.raises(OtherFormat, match=f"format {format}; this version knows {FORMAT}"):
        load_state(directory)
    assert sorted(directory.path.rglob("*")) == before


async def test_a_file_that_cannot_be_opened_stops_the_start_and_moves_nothing(
    directory: DataDirectory,
) -> None:
    history = await persisted(directory)
    path = path_of(directory, history, "beta")
    path.rename(path.with_suffix(".elsewhere"))
    path.mkdir()  # what root can neither read nor write as a file
    with pytest.raises(FilesUnreadable, match=r"beta\..*\.db"):
        load_state(directory)
    assert directory.node_path.exists()
    assert path_of(directory, history, "alpha").exists()


async def test_a_wal_that_the_disk_does_not_take_stops_the_start_and_moves_nothing(
    directory: DataDirectory,
) -> None:
    history = await persisted(directory)
    path = path_of(directory, history, "beta")
    wal_path(path).mkdir()
    with pytest.raises(FilesUnreadable, match=r"beta\..*\.db-wal"):
        load_state(directory)
    assert directory.node_path.exists()
    assert path.exists()


async def killed(directory: DataDirectory, elsewhere: Path) -> History:
    """A small history, and `elsewhere` what a process that was killed leaves of it: WALs too."""
    history = History()
    for name in ("alpha", "beta"):
        history.create(name)
        history.append(name, count=50)
    async with working(history, directory) as worker:
        await flush(worker, history)
        shutil.copytree(directory.path, elsewhere)
    return history


def content_below(path: Path) -> dict[Path, bytes]:
    found = [one for one in path.rglob("*") if one.is_file() and not one.name.endswith("-shm")]
    return {one: one.read_bytes() for one in found}


@pytest.mark.parametrize("only_copy", [True, False])
async def test_a_database_whose_half_fold_cannot_be_synced_is_of_no_use(
    directory: DataDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_copy: bool
) -> None:
    """The process before may have folded halfway, where another one has it open. The kernel says
    once that it cannot write that, and calls it clean. See `test_power.py`."""
    await killed(directory, tmp_path / "found")

    def refuses(descriptor: int, sync: Callable[[int], None] = os.fsync) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("node.db"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    with (
        DataDirectory(tmp_path / "found") as found,
        closing(sqlite3.connect(found.node_path)) as other,
    ):
        other.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        before = content_below(found.path)
        monkeypatch.setattr(os, "fsync", refuses)
        if only_copy:
            with pytest.raises(OnlyCopyDamaged, match=r"node\.db: may lack a part"):
                load_state(found, only_copy=True)
            assert content_below(found.path) == before
        else:
            loaded = load_state(found)
            assert (loaded.state.stores, loaded.lost) == ({}, True)
            assert len(loaded.set_aside) == 3


@pytest.mark.parametrize("only_copy", [True, False])
@pytest.mark.parametrize("which", ["node.db", "stores/alpha.1048576.db", "stores/stray.5.db"])
async def test_the_wal_beside_an_emptied_database_is_kept(
    directory: DataDirectory, tmp_path: Path, which: str, only_copy: bool
) -> None:
    """SQLite deletes it, and it may hold all that was persisted."""
    await killed(directory, tmp_path / "found")
    with DataDirectory(tmp_path / "found") as found:
        shutil.copy(f"{found.node_path}-wal", found.stores_path / "stray.5.db-wal")
        emptied = found.path / which
        emptied.write_bytes(b"")
        held = wal_path(emptied).read_bytes()
        assert held
        if only_copy and "stray" not in which:
            with pytest.raises(OnlyCopyDamaged, match="is empty, and its WAL is not"):
                load_state(found, only_copy=True)
            assert wal_path(emptied).read_bytes() == held
        else:
            loaded = load_state(found, only_copy=only_copy)
            [aside] = [Path(path) for path in loaded.set_aside if path.startswith(f"{emptied}.")]
            assert aside.read_bytes() == b""
            assert wal_path(aside).read_bytes() == held
            assert loaded.lost == ("stray" not in which)


@pytest.mark.parametrize("which", ["node.db", "stores/alpha.1048576.db", "stores/stray.5.db"])
async def test_a_wal_that_was_parted_from_its_database_is_kept(
    directory: DataDirectory, tmp_path: Path, which: str
) -> None:
    """The process died when it had renamed one of the two."""
    await killed(directory, tmp_path / "found")
    with DataDirectory(tmp_path / "found") as found:
        parted = found.path / which
        if "stray" in which:
            shutil.copy(f"{found.node_path}-wal", wal_path(parted))
        else:
            parted.rename(f"{parted}.damaged-20260101T000000Z")
        held = wal_path(parted).read_bytes()
        loaded = load_state(found)
        [aside] = [Path(path) for path in loaded.set_aside if path.startswith(f"{parted}.")]
        assert wal_path(aside).read_bytes() == held
        assert loaded.lost == ("stray" not in which)


async def test_a_node_database_of_which_only_the_wal_is_left_is_not_taken_for_an_empty_history(
    directory: DataDirectory,
) -> None:
    wal_path(directory.node_path).write_bytes(b"what was persisted")
    loaded = load_state(directory)
    assert loaded.lost
    [aside] = loaded.set_aside
    assert wal_path(Path(aside)).read_bytes() == b"what was persisted"


async def test_a_database_of_another_program_is_damage(directory: DataDirectory) -> None:
    history = await persisted(directory, stores=1)
    path = path_of(directory, history, "alpha")
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    assert load_state(directory).lost


async def test_a_long_load_reports_its_progress(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    history = await persisted(directory, stores=1)
    monkeypatch.setattr(loader, "PROGRESS_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO):
        load_state(directory)
    assert "Loading store alpha: 305 of 305 events" in caplog.text
    assert f"up to raft index {history.index} in" in caplog.text


async def test_the_database_itself_can_be_opened_where_the_loader_went(
    directory: DataDirectory,
) -> None:
    history = await persisted(directory)
    database = Database(directory)
    cut, entries = database.open()
    database.close()
    assert cut.raft_index == history.index
    assert {entry.name: entry.position for entry in entries} == {"alpha": 305, "beta": 305}
