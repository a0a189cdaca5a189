"""Restores: the same history in another store, or an error, never another one."""

from __future__ import annotations

import asyncio
import json
import math
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.__main__ import main
from cluster.backup import BackupFailed, carrying, lives, restoring
from cluster.backup.digest import StoredEvent
from cluster.backup.door import CBOR, JSON, Door
from cluster.backup.file import Finished
from cluster.client_errors import WrongExpectedVersion
from tests.cluster.fake_store import FakeStore, serving_store
from tests.cluster.test_backup import filled, take

EVENTS = 60


@pytest.fixture
async def backup(tmp_path: Path) -> AsyncIterator[Finished]:
    store = filled(EVENTS)
    store.durability, store.checkpoints = "persisted", {"billing": 12}
    async with serving_store(store) as url:
        await take(tmp_path / "b", url)
    with Finished.open(tmp_path / "b") as found:
        yield found


async def restore(found: Finished, *urls: str) -> int:
    """Restore, compare, and say at which position it began."""
    async with Door(urls, "s", timeout_s=5) as door:
        begun = await restoring.begin(door, found, lambda _: None)
        await restoring.restore(door, found, begun.position, lambda _: None)
        await lives.remove(door, found, lambda _: None)
        await carrying.restore(door, found, lambda _: None)
        await lives.limit(door, found, lambda _: None)
        await carrying.subscribe(door, found)
        for known in (begun, restoring.NOTHING):
            answered = await restoring.digest(door, known, found.head.until, lambda _: None)
            assert answered == found.link
        return begun.position


def timeless(events: list[StoredEvent]) -> str:
    return repr([event[:-1] for event in events])


async def test_a_new_store_gets_everything_back_as_it_was(backup: Finished) -> None:
    store = FakeStore()
    async with serving_store(store) as url:
        assert await restore(backup, url) == 0
    restored = [StoredEvent.of(event) for event in store.events]
    assert timeless(restored) == timeless(list(backup.events()))
    assert (store.durability, store.checkpoints) == ("persisted", {"billing": 12})


async def test_a_restore_goes_on_where_an_earlier_one_ended(
    backup: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "BATCH_EVENTS", 4)
    store = FakeStore()
    async with serving_store(store) as url:
        async with Door([url], "s", 5) as door:
            await restoring.begin(door, backup, lambda _: None)
            for batch in list(restoring.batches(backup.events()))[:5]:
                await door.ask("POST", "/append", [], batch.body, batch.media)
        before = len(store.events)
        assert 0 < await restore(backup, url) == before < EVENTS
        assert await restore(backup, url) == EVENTS == len(store.events)


async def test_a_store_with_anything_else_is_refused_and_left_alone(backup: Finished) -> None:
    longer, other, late = filled(EVENTS + 1), filled(5), filled(20)
    other.events[2]["data"] = "other"
    late.events[19]["event_id"] = str(uuid.uuid4())
    for store in (longer, other, late):
        count = len(store.events)
        async with serving_store(store) as url:
            with pytest.raises(BackupFailed, match="holds other events"):
                await restore(backup, url)
        assert len(store.events) == count and store.durability is None
        assert not [what for what, _ in store.requests if not what.startswith("GET")]


async def test_somebody_else_who_writes_to_the_store_is_noticed(
    backup: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restoring, "BATCH_EVENTS", 4)
    for stream, error in (("other", BackupFailed), ("s-1", WrongExpectedVersion)):
        store = FakeStore()
        async with serving_store(store) as url, Door([url], "s", 5) as door:

            def interfere(_: int, store: FakeStore = store, stream: str = stream) -> None:
                if len(store.events) < 10:
                    new = {"stream": stream, "event_type": "T", "event_id": str(uuid.uuid4())}
                    store.add(new, True)

            await restoring.begin(door, backup, lambda _: None)
            with pytest.raises(error):
                await restoring.restore(door, backup, 0, interfere)


async def test_a_node_that_dies_in_the_middle_is_passed_over(backup: Finished) -> None:
    one = FakeStore([])
    two = FakeStore(one.events)  # the same events at both, as in a cluster
    one.break_at = 4
    async with serving_store(one) as first, serving_store(two) as second:
        await restore(backup, first, second)
    assert len(one.events) == EVENTS


async def test_a_checkpoint_that_stands_elsewhere_is_an_error(backup: Finished) -> None:
    store = FakeStore([])
    store.checkpoints["billing"] = 40
    async with serving_store(store) as url:
        with pytest.raises(Exception, match="checkpoint_not_increasing"):
            await restore(backup, url)


def event(position: int, data: Any, metadata_type: str = JSON) -> StoredEvent:
    return StoredEvent(
        position, "s", position - 1, str(uuid.uuid4()), "T", JSON, metadata_type, data, None, 0
    )


def test_a_batch_ends_where_the_way_of_writing_changes_and_within_its_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restoring, "BATCH_EVENTS", 3)
    monkeypatch.setattr(restoring, "BATCH_BYTES_MAX", 5_000)
    kinds = [JSON, JSON, JSON, JSON, CBOR, "application/octet-stream", JSON, JSON]
    sizes = [1, 1, 1, 1, 1, 1, 4_900, 4_900]
    events = [
        event(position, "x" * size, kind)
        for position, (kind, size) in enumerate(zip(kinds, sizes, strict=True), 1)
    ]
    made = list(restoring.batches(iter(events)))
    assert [(one.first, one.events, one.media) for one in made] == [
        *((1, 3, JSON), (4, 1, JSON), (5, 2, CBOR), (7, 1, JSON), (8, 1, JSON))
    ]
    assert [one.versions["s"] for one in made] == [2, 3, 5, 6, 7]
    checks = [json.loads(one.body)["checks"] for one in made if one.media == JSON]
    assert [check["expected_version"] for (check,) in checks] == [-1, 2, 5, 6]


async def test_the_command_compares_both_sides_and_shows_them(
    backup: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    async def exesdb(*words: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, ["restore", str(backup.path), *words])
        return code, *capsys.readouterr()

    store = FakeStore()
    async with serving_store(store) as url:
        code, out, _ = await exesdb("--store", "s", "--url", url, "--json")
        said = json.loads(out)
        assert (code, said["events"], said["resumed_at"]) == (0, EVENTS, 0)
        assert said["digest_of_file"] == said["digest_of_store"] == backup.link.hex()
        store.events[3]["data"] = math.pi
        code, _, err = await exesdb("--url", url)
        assert code == 1 and "holds other events" in err
