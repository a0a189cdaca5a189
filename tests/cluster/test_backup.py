"""Backups: what is in the file, and that nothing wrong ever gets its name."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cluster.__main__ import main
from cluster.backup import BackupFailed, taking
from cluster.backup.digest import FIRST_LINK, StoredEvent, next_link
from cluster.backup.door import Door
from cluster.backup.file import Advance, Finished, partial_of
from tests.cluster.fake_store import FakeStore, serving_store

VALUES = [
    None,
    {"total": 12, "lines": [1, 1.0, -0.0, True, None, "ü\u2028"]},
    b"\x00\xff",
    "text",
    2**70,
    math.inf,
    {"nested": b"\x01"},
    {1: "a whole number is the key"},
    [],
    "",
]
CBOR_ONLY = (5, 6, 7)
META = ("link", "until", "beside", "complete", "parked", "snapshots_kept", "events", "position")


def filled(count: int) -> FakeStore:
    store = FakeStore([])
    for number in range(count):
        new = {
            "stream": f"s-{number % 7}",
            "event_id": str(uuid.UUID(int=number)),
            "event_type": f"T{number % 3}",
            "data": VALUES[number % len(VALUES)],
            "metadata": {"n": number} if number % 4 else None,
        }
        if number % 5 == 0:
            new["data_content_type"] = "text/csv"
        store.add(new, number % 2 == 0 and number % len(VALUES) not in CBOR_ONLY)
    return store


async def take(path: Path, *urls: str) -> None:
    async with Door(urls, "s", timeout_s=5) as door:
        with await taking.begin(door, path, unwatched) as written:
            await taking.take(door, written, lambda _: None)
            written.finish(lambda _: None)


@contextlib.contextmanager
def unwatched(_: int) -> Iterator[Advance]:
    yield lambda _: None


def events_of(path: Path) -> list[StoredEvent]:
    with Finished.open(path) as found:
        found.check(lambda _: None)
        return list(found.events())


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all through."""
    return repr(left) == repr(right)


async def test_a_file_holds_everything_that_the_store_tells(tmp_path: Path) -> None:
    path, store = tmp_path / "b", filled(60)
    store.checkpoints, store.page_events = {"billing": 12, "other": 13}, 7
    async with serving_store(store) as url:
        await take(path, url)
    assert same(events_of(path), [StoredEvent.of(event) for event in store.events])
    with Finished.open(path) as found:
        assert found.head == ("s", (None, None), 60)
        assert list(found.beside.checkpoints()) == [("billing", 12), ("other", 13)]
    assert not partial_of(path).exists()
    asked = [what for what, _ in store.requests]
    last_facts = len(asked) - 1 - asked[::-1].index("GET ")
    assert asked.index("GET /events") == last_facts + 1, "the store's end is read last"
    assert store.requests[last_facts][1].pop("consistency") == "linearizable"


async def test_what_comes_while_it_is_taken_is_not_in_it(tmp_path: Path) -> None:
    path, store = tmp_path / "b", filled(30)
    store.page_events = 10
    async with serving_store(store) as url, Door([url], "s", 5) as door:
        with await taking.begin(door, path, unwatched) as written:
            store.events += filled(50).events[30:]
            await taking.take(door, written, lambda _: None)
            written.finish(lambda _: None)
    assert len(events_of(path)) == 30


async def test_an_empty_store_is_a_backup_too(tmp_path: Path) -> None:
    async with serving_store(FakeStore([])) as url:
        await take(tmp_path / "b", url)
    assert events_of(tmp_path / "b") == []


async def test_an_interrupted_backup_goes_on_up_to_the_same_position(tmp_path: Path) -> None:
    path, store = tmp_path / "b", filled(40)
    store.page_events = 10
    advanced: list[int] = []
    async with serving_store(store) as url, Door([url], "s", 5) as door:

        def stop(count: int) -> None:
            advanced.append(count)
            if sum(advanced) >= 15:
                raise InterruptedError

        with (
            pytest.raises(InterruptedError),
            await taking.begin(door, path, unwatched) as written,
        ):
            await taking.take(door, written, stop)
        assert partial_of(path).exists() and not path.exists()
        store.events += filled(45).events[40:]
        asked = len(store.requests)
        await take(path, url)
    again = [query["after"] for what, query in store.requests[asked:] if what == "GET /events"]
    assert int(again[0]) == sum(advanced) - 1  # begins with the last event that it has
    assert same(events_of(path), [StoredEvent.of(event) for event in store.events[:40]])


async def test_a_store_that_was_made_anew_is_not_joined_to_its_old_history(tmp_path: Path) -> None:
    path, store = tmp_path / "b", filled(40)
    store.page_events = 10
    async with serving_store(store) as url, Door([url], "s", 5) as door:
        with await taking.begin(door, path, unwatched) as written:

            def change(_: int) -> None:
                for event in store.events:
                    event["event_id"] = str(uuid.uuid4())

            with pytest.raises(BackupFailed, match="another history"):
                await taking.take(door, written, change)
    assert not path.exists()


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("position", 99, "behind number 2 and position 99"),
        ("position", 3, "behind number"),
        ("event_number", 99, "behind number 99"),
        ("event_number", 0, "behind number"),
    ],
)
async def test_a_history_that_cannot_be_is_refused(
    tmp_path: Path, field: str, value: int, what: str
) -> None:
    store = filled(30)
    store.events[20][field] = value
    async with serving_store(store) as url:
        with pytest.raises(BackupFailed, match=what):
            await take(tmp_path / "b", url)
    assert not (tmp_path / "b").exists()


async def test_a_node_that_dies_in_the_middle_is_passed_over(tmp_path: Path) -> None:
    one, two = filled(60), filled(60)
    one.page_events = two.page_events = 10
    one.break_at = 3
    async with serving_store(one) as first, serving_store(two) as second:
        await take(tmp_path / "b", first, second)
    assert len(events_of(tmp_path / "b")) == 60
    assert len(one.requests) >= 3 and two.requests


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM events WHERE position = 7",
        "DELETE FROM events WHERE position = 30",
        "UPDATE events SET data = '{\"total\": 13}' WHERE position = 2",
        "UPDATE events SET event_id = 'x' WHERE position = 5",
        "UPDATE events SET kind_id = 3 - kind_id WHERE position = 2",
        "UPDATE types SET name = 'other' WHERE type_id = 1",
        "UPDATE events SET data = x'5a' WHERE position = 3",
        "UPDATE events SET data = x'c11b7fffffffffffffff' WHERE position = 3",
        "UPDATE events SET number = 'x' WHERE position = 3",
        "UPDATE events SET position = -5 WHERE position = 3",
        "UPDATE streams SET name = x'ff' WHERE stream_id = 1",
        *(f"DELETE FROM meta WHERE key = '{key}'" for key in META),
        *(
            f"UPDATE meta SET value = {value} WHERE key = '{key}'"
            for key in META
            for value in ("'zz'", "NULL", "x'00ff'", "CAST(x'ff' AS TEXT)", "-5", "1e300")
            if (key, value) != ("snapshots_kept", "NULL")
        ),
    ],
)
async def test_a_file_that_was_changed_is_found_out(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "b"
    async with serving_store(filled(30)) as url:
        await take(path, url)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(damage)
        connection.commit()
    with pytest.raises(BackupFailed, match=r"is damaged|cannot be read"):
        events_of(path)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE meta SET value = 'zz' WHERE key = 'link'",
        "UPDATE meta SET value = NULL WHERE key = 'position'",
        "DELETE FROM meta WHERE key = 'events'",
        "UPDATE events SET number = 'x' WHERE position = 3",
        "UPDATE streams SET name = 'other' WHERE stream_id = 1",
        "INSERT INTO checkpoints VALUES (x'ff', 1)",
    ],
)
async def test_an_interrupted_backup_that_was_changed_is_found_out(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "b"
    async with serving_store(filled(30)) as url, Door([url], "s", 5) as door:
        with await taking.begin(door, path, unwatched) as written:
            await taking.take(door, written, lambda _: None)
        with contextlib.closing(sqlite3.connect(partial_of(path))) as connection:
            connection.execute(damage)
            connection.commit()
        with pytest.raises(BackupFailed, match=r"is damaged|than was written"):
            await take(path, url)


async def test_other_files_are_not_backups(tmp_path: Path) -> None:
    path = tmp_path / "b"
    with pytest.raises(BackupFailed, match="there is no file"):
        Finished.open(path)
    path.write_bytes(b"x" * 5_000)
    with pytest.raises(BackupFailed, match="cannot be read"):
        Finished.open(path)
    with contextlib.closing(sqlite3.connect(tmp_path / "c")) as connection:
        connection.execute("CREATE TABLE meta (key, value)")
        connection.commit()
    with pytest.raises(BackupFailed, match="not a backup"):
        Finished.open(tmp_path / "c")


async def test_a_file_is_readable_in_the_shell(tmp_path: Path) -> None:
    path = tmp_path / "b"
    async with serving_store(filled(3)) as url:
        await take(path, url)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        row = connection.execute("SELECT * FROM readable_events WHERE position = 2").fetchone()
    data = json.dumps(VALUES[1], separators=(",", ":"), ensure_ascii=False)
    identity = str(uuid.UUID(int=1))
    assert row[:7] == (2, "s-1", 0, "T1", identity, "1970-01-01T00:00:01.000001Z", data)


def test_a_digest_tells_values_of_different_kinds_apart() -> None:
    event = StoredEvent(1, "s", 0, "i", "T", "a", "b", 1, None, 5)
    links = {
        next_link(FIRST_LINK, event._replace(data=value)) for value in (1, 1.0, "1", b"1", [1])
    }
    links.add(next_link(bytes([1]) + FIRST_LINK[1:], event))
    assert len(links) == 6
    assert next_link(FIRST_LINK, event) == next_link(FIRST_LINK, event._replace(created_us=6))


class Ended(NamedTuple):
    code: int
    out: str
    err: str


async def test_the_command_shows_the_digest_and_refuses_a_file_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def exesdb(*words: str) -> Ended:
        code = await asyncio.to_thread(main, list(words))
        return Ended(code, *capsys.readouterr())

    path = str(tmp_path / "b")
    async with serving_store(filled(20)) as url:
        taken = await exesdb("backup", path, "--store", "s", "--url", url, "--json")
        again = await exesdb("backup", path, "--store", "s", "--url", url, "--json")
        nowhere = await exesdb("backup", f"{path}/x", "--store", "s", "--url", url, "--json")
    checked = await exesdb("backup", path, "--check", "--json")
    said = json.loads(taken.out)
    assert (taken.code, said["events"]) == (0, 20)
    assert json.loads(checked.out)["digest"] == said["digest"]
    assert again.code == 1 and "is there already" in json.loads(again.err)["detail"]
    assert nowhere.code == 1
    assert f"{path}/x.partial cannot be made" in json.loads(nowhere.err)["detail"]
