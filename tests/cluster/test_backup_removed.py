"""Backups of stores in which events were removed: what is gone stays gone, all else as it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cbor2
import pytest

from cluster.__main__ import main
from cluster.backup import BackupFailed, carrying, lives, restoring, taking
from cluster.backup.door import Door
from cluster.backup.file import Finished, partial_of
from cluster.backup.history import Filler
from node.core import life_commands
from tests.api.fakes import NOW_US, Node, serving
from tests.cluster.test_backup import unwatched

STORE = "/v1/stores/main"
CBOR = {"Content-Type": "application/cbor"}
DAY_MS = 86_400_000
SEEDS = 8


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with serving() as made:
        yield made


@pytest.fixture
async def other() -> AsyncIterator[Node]:
    async with serving() as made:
        yield made


def door(node: Node) -> Door:
    return Door([f"http://127.0.0.1:{node.port}"], "main", timeout_s=5)


async def take(
    node: Node, path: Path, advance: Callable[[int], Any] = lambda _: None, opened: Any = door
) -> None:
    async with opened(node) as asked:
        with await taking.begin(asked, path, unwatched) as written:
            await taking.take(asked, written, advance)
            written.finish(lambda _: None)


async def restore(node: Node, path: Path) -> None:
    """All that the command does, with all that it compares."""
    with Finished.open(path) as found:
        found.check(lambda _: None)
        async with door(node) as opened:
            begun = await restoring.begin(opened, found, lambda _: None)
            await restoring.restore(opened, found, begun.position, lambda _: None)
            await lives.remove(opened, found, lambda _: None)
            until = found.head.until
            assert await restoring.digest(opened, begun, until, lambda _: None) == found.link
            await carrying.restore(opened, found, lambda _: None)
            await lives.limit(opened, found, lambda _: None)
            await carrying.subscribe(opened, found)
            answered = await carrying.digest(opened, until, lambda _: None)
        assert answered == found.digest_beside


def where(stream: str) -> str:
    return f"{STORE}/streams/{quote(stream, safe='')}"


async def limit(node: Node, stream: str, **metadata: int) -> None:
    answer = await node.ask("PUT", where(stream) + "/metadata", json=metadata)
    assert answer.status == 200, answer.body


async def delete(node: Node, stream: str, hard: bool = False) -> None:
    answer = await node.ask("DELETE", where(stream) + ("?hard=true" if hard else ""))
    assert answer.status == 204, answer.body


async def readable(node: Node) -> list[Any]:
    """What clients can read of events and streams, without times."""
    facts = (await node.ask("GET", STORE)).body
    found: list[Any] = [(facts["streams"], facts["events"], facts["position"])]
    pages = [f"{STORE}/events?limit=10000", f"{STORE}/events?limit=10000&direction=backward"]
    listed = (await node.ask("GET", f"{STORE}/streams?deleted=true&limit=10000")).body["streams"]
    found += listed
    for one in listed:
        looked = await node.ask("GET", where(one["stream"]))
        found.append((looked.status, looked.body if looked.status == 200 else looked.code))
        pages += [where(one["stream"]) + "/events?limit=10000"]
        pages += [where(one["stream"]) + "/events?from=2&limit=3"]
    for target in pages:
        page = await node.ask("GET", target, headers={"Accept": "application/cbor"})
        for event in page.body.get("events", ()):
            del event["created"], event["created_epoch"]
        found.append((page.status, page.body if page.status == 200 else page.code))
    return found


async def alike(node: Node, other: Node) -> None:
    """Whether the same is there, and the same comes of further appends."""
    assert await readable(other) == await readable(node)
    other.state.check()
    listed = (await node.ask("GET", f"{STORE}/streams?deleted=true&limit=10000")).body["streams"]
    for name in [one["stream"] for one in listed]:
        answers = []
        for one in (node, other):
            answer = await one.append(quote(name, safe=""))
            told = ("first_version", "positions") if answer.status == 201 else ("code", "status")
            answers.append([answer.body[field] for field in told])
        assert answers[0] == answers[1]
    assert len(await readable(other)) == len(await readable(node))


async def removals(node: Node) -> None:
    """A store with every kind of removal in it: 29 positions, 6 events of which are kept."""
    for stream in ("cut", "counted", "aged", "emptied", "gone", "buried", "anew"):
        await node.append(stream, 4)
    await limit(node, "cut", truncate_before=2)
    await limit(node, "counted", max_count=3, max_age_ms=DAY_MS)
    await limit(node, "aged", max_age_ms=5)
    node.replica.apply(life_commands.expire("main", NOW_US + 5_000_000))
    await limit(node, "aged", max_age_ms=10 * DAY_MS)
    await limit(node, "emptied", truncate_before=4)
    await delete(node, "gone")
    await delete(node, "buried", hard=True)
    await delete(node, "anew")
    await node.append("anew")


async def test_all_that_was_removed_is_removed_again_and_all_else_is_as_it_was(
    node: Node, other: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lives, "PAGE_STREAMS", 2)
    await removals(node)
    await take(node, tmp_path / "b")
    await restore(other, tmp_path / "b")
    assert await readable(other) == await readable(node)
    await restore(other, tmp_path / "b")  # once more changes nothing
    with Finished.open(tmp_path / "b") as found:
        assert (found.count, found.head.until) == (6, 29)
        assert {life.stream: life[1:4] for life in found.beside.lives()} == {
            "aged": ("alive", 3, 4),
            "anew": ("alive", 4, 4),
            "buried": ("deleted_for_ever", 3, 4),
            "counted": ("alive", 3, 1),
            "cut": ("alive", 3, 2),
            "emptied": ("alive", 3, 4),
            "gone": ("deleted", 3, 4),
        }
    await alike(node, other)


async def build(node: Node, chance: random.Random) -> None:
    """A random history in a few streams, with removals of all kinds at any time."""
    streams = [f"s/{n} ü" for n in range(chance.randint(1, 8))]
    for _ in range(chance.randint(5, 60)):
        await act(node, chance, chance.choice(streams))


async def act(node: Node, chance: random.Random, stream: str) -> None:
    what = chance.random()
    if what < 0.7:
        await append(node, chance, stream)
    elif what < 0.9:
        choices = {
            "max_count": chance.randint(1, 9),
            "truncate_before": chance.randint(0, 12),
            "max_age_ms": chance.choice((1, DAY_MS)),
        }
        wanted = {name: value for name, value in choices.items() if chance.random() < 0.5}
        await node.ask("PUT", where(stream) + "/metadata", json=wanted)
    elif what < 0.97:
        await node.ask("DELETE", where(stream) + chance.choice(("", "", "?hard=true")))
    else:
        node.replica.apply(life_commands.expire("main", NOW_US + 5_000_000))


async def append(node: Node, chance: random.Random, stream: str) -> None:
    events = [
        {
            "event_type": chance.choice(("T", "U")),
            "event_id": str(uuid.UUID(int=chance.getrandbits(128))),
            "data": chance.choice((None, 1, 1.0, "text", {"n": chance.random()})),
            "metadata": chance.choice((None, {"by": 1})),
        }
        for _ in range(chance.randint(1, 6))
    ]
    target = where(stream) + "/events"
    if chance.random() < 0.5:
        await node.ask("POST", target, json={"events": events})
        return
    events[0]["data"] = b"\x00\xff"
    await node.ask("POST", target, data=cbor2.dumps({"events": events}), headers=CBOR)


async def test_random_histories_come_back_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = random.randrange(10**9)
    print(f"seeds {first} to {first + SEEDS - 1}")
    monkeypatch.setattr(restoring, "BATCH_EVENTS", 7)
    monkeypatch.setattr(lives, "PAGE_STREAMS", 3)
    for seed in range(first, first + SEEDS):
        async with serving() as node, serving() as other:
            await build(node, random.Random(seed))
            await take(node, tmp_path / f"{seed}")
            await restore(other, tmp_path / f"{seed}")
            await alike(node, other)


async def test_what_is_removed_while_the_backup_runs_is_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens to the store meanwhile, what comes back is the store of one moment but for
    what had been removed when the lives were read."""
    monkeypatch.setattr("cluster.backup.door.PAGE_EVENTS", 5)
    monkeypatch.setattr(lives, "PAGE_STREAMS", 2)
    first = random.randrange(10**9)
    print(f"seeds {first} to {first + SEEDS - 1}")
    for seed in range(first, first + SEEDS):
        chance = random.Random(seed)
        path = tmp_path / f"{seed}"

        class Meanwhile(Door):
            """Between any two requests something happens to the store."""

            async def _ask(self, *what: Any) -> bytes:
                answer = await super()._ask(*what)
                if chance.random() < 0.5:  # noqa: B023
                    await act(node, chance, f"s/{chance.randrange(8)} ü")  # noqa: B023
                return answer

        def opened(one: Node, kind: type[Door] = Meanwhile) -> Door:
            return kind([f"http://127.0.0.1:{one.port}"], "main", timeout_s=5)

        async with serving() as node, serving() as other:
            await build(node, chance)
            await take(node, path, opened=opened)
            await restore(other, path)
            other.state.check()
            there, here = node.state.stores["main"], other.state.stores["main"]
            for stream in there.stream_list:
                size = sum(position <= here.position for position in stream.positions)
                if size:
                    found = here.streams.get(stream.name) or here.lives.departed[stream.name]
                    assert len(found.positions) == size
                    assert found.first <= min(stream.first, size)
                    kept = stream.positions[found.first : size]
                    assert found.positions[found.first :] == kept


async def test_an_interrupted_restore_goes_on_wherever_it_was(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "BATCH_EVENTS", 4)
    await removals(node)
    await take(node, tmp_path / "b")
    wanted = await readable(node)
    requests = 0

    class Broken(Door):
        left = 0

        async def _ask(self, method: str, *what: Any) -> bytes:
            nonlocal requests
            if method != "GET":
                requests += 1
                Broken.left -= 1
                if not Broken.left:
                    raise InterruptedError
            return await super()._ask(method, *what)

    monkeypatch.setattr("tests.cluster.test_backup_removed.Door", Broken)
    async with serving() as other:
        await restore(other, tmp_path / "b")
    assert requests > 15
    for stop in range(1, requests + 1):
        async with serving() as other:
            Broken.left = stop
            with pytest.raises(InterruptedError):
                await restore(other, tmp_path / "b")
            await restore(other, tmp_path / "b")
            assert await readable(other) == wanted


async def test_an_interrupted_backup_reads_the_lives_again(node: Node, tmp_path: Path) -> None:
    await removals(node)

    def stop(_: int) -> None:
        raise InterruptedError

    class Ending(Door):
        def __init__(self, one: Node) -> None:
            super().__init__([f"http://127.0.0.1:{one.port}"], "main", timeout_s=5)

        async def pages(self, path: str, limit: int, query: Any = ()) -> AsyncIterator[Any]:
            assert path == "/streams"
            raise InterruptedError
            yield

    with pytest.raises(InterruptedError):
        await take(node, tmp_path / "b", stop)
    for finished in (False, True):
        async with door(node) as opened:
            with await taking.begin(opened, tmp_path / "b", unwatched) as written:
                await taking.take(opened, written, lambda _: None)
                if finished:
                    written.finish(lambda _: None)
        if finished:  # and dies before the file has its name
            (tmp_path / "b").rename(partial_of(tmp_path / "b"))
    await delete(node, "cut")
    with pytest.raises(InterruptedError):
        await take(node, tmp_path / "b", opened=Ending)
    await take(node, tmp_path / "b")
    async with serving() as other:
        await restore(other, tmp_path / "b")
        assert await readable(other) == await readable(node)


async def test_an_interrupted_backup_that_was_changed_is_found_out_before_it_loses_anything(
    node: Node, tmp_path: Path
) -> None:
    await node.append("s", 3)
    async with door(node) as opened:
        with await taking.begin(opened, tmp_path / "b", unwatched) as written:
            await taking.take(opened, written, lambda _: None)
    with contextlib.closing(sqlite3.connect(partial_of(tmp_path / "b"))) as connection:
        connection.execute("UPDATE events SET data = x'c11b7fffffffffffffff' WHERE position = 2")
        connection.commit()
    await limit(node, "s", truncate_before=1)
    with pytest.raises(BackupFailed, match="does not give back what was written to it"):
        await take(node, tmp_path / "b")


@pytest.mark.parametrize("stream", ["cut", "other"])
async def test_a_store_that_has_anything_else_in_place_of_a_filler_is_refused(
    node: Node, other: Node, tmp_path: Path, stream: str
) -> None:
    await node.append("s", 3)
    await node.append("cut", 3)
    await limit(node, "cut", truncate_before=3)
    await take(node, tmp_path / "b")
    with Finished.open(tmp_path / "b") as found:
        assert [type(one) is Filler for one in found.history()] == [False] * 3 + [True] * 3
        events = [
            {"stream": "s", "event_id": one.event_id, "event_type": "Happened", "data": one.data}
            for one in found.events()
        ]
    events.append({"stream": stream, "event_id": str(uuid.uuid4()), "event_type": "Removed"})
    answer = await other.ask("POST", f"{STORE}/append", json={"events": events})
    assert answer.status == 201
    with pytest.raises(BackupFailed, match="holds other events"):
        await restore(other, tmp_path / "b")


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM lives WHERE stream = 'gone'",
        "UPDATE lives SET first = first - 1 WHERE stream = 'cut'",
        "UPDATE lives SET first = 4 WHERE stream = 'counted'",
        "UPDATE lives SET life = 'deleted' WHERE stream = 'cut'",
        "UPDATE lives SET life = 'deleted' WHERE stream = 'buried'",
        "UPDATE lives SET version = 5, first = 6 WHERE stream = 'gone'",
        "UPDATE lives SET metadata = '{\"max_count\":4}' WHERE stream = 'counted'",
        "UPDATE lives SET stream = 'c' WHERE stream = 'cut'",
        "UPDATE lives SET first = iif(stream = 'gone', 8, 0) WHERE stream IN ('gone', 'emptied')",
        "DELETE FROM events WHERE number = 3",
    ],
)
async def test_a_file_whose_lives_were_changed_is_found_out(
    node: Node, tmp_path: Path, damage: str
) -> None:
    await removals(node)
    await take(node, tmp_path / "b")
    with contextlib.closing(sqlite3.connect(tmp_path / "b")) as connection:
        assert connection.execute(damage).rowcount
        connection.commit()
    with Finished.open(tmp_path / "b") as found, pytest.raises(BackupFailed, match="is damaged"):
        found.check(lambda _: None)


async def test_the_commands_tell_how_much_was_removed(
    node: Node, other: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def exesdb(*words: str) -> dict[str, Any]:
        assert await asyncio.to_thread(main, [*words, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    await removals(node)
    here, there = (f"--url=http://127.0.0.1:{one.port}" for one in (node, other))
    path = str(tmp_path / "b")
    taken = await exesdb("backup", path, "--store=main", here)
    checked = await exesdb("backup", path, "--check")
    restored = await exesdb("restore", path, there)
    counts = {"events": 6, "removed": 23, "lives_of_streams": 7}
    for said in (taken, checked, restored):
        assert counts.items() <= said.items()
    assert restored["beside_in_store"] == taken["digest_beside"] == checked["digest_beside"]
    assert await readable(other) == await readable(node)


async def test_lives_are_readable_in_the_shell(node: Node, tmp_path: Path) -> None:
    await node.append("s", 3)
    await limit(node, "s", max_count=2)
    await take(node, tmp_path / "b")
    with contextlib.closing(sqlite3.connect(tmp_path / "b")) as connection:
        (row,) = connection.execute("SELECT * FROM lives").fetchall()
    assert row[:4] == ("s", "alive", 2, 1) and json.loads(row[4]) == {"max_count": 2}
