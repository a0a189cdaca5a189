"""What a backup carries beside the events, out of a real API and into another one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest

from cluster.__main__ import main
from cluster.backup import BackupFailed, beside, carrying, lives, restoring, taking
from cluster.backup.door import Door, Query
from cluster.backup.file import Advance, Finished, partial_of
from node.api import stores
from node.api.limits import ApiLimits
from node.core import snapshots
from node.core.snapshots import encode_content
from tests.api.fakes import Node, serving
from tests.cluster.test_backup import VALUES, unwatched

STORE = "/v1/stores/main"
WORKERS = STORE + "/subscriptions/workers"
CBOR = {"Content-Type": "application/cbor"}


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


async def record(node: Node, version: int, data: Any = None, where: str = "billing/s") -> None:
    body = {"source_type": "Order", "data": data, "metadata": {"by": version}}
    path = f"{STORE}/snapshots/{where}/{version}"
    answer = await node.ask("PUT", path, data=cbor2.dumps(body), headers=CBOR)
    assert answer.status in (200, 201), answer.body


async def take(node: Node, path: Path, advance: Advance = lambda _: None) -> None:
    @contextlib.contextmanager
    def watch(_: int):
        yield advance

    async with door(node) as opened:
        with await taking.begin(opened, path, watch) as written:
            await taking.take(opened, written, lambda _: None)
            written.finish(lambda _: None)


async def restore(node: Node, path: Path) -> Finished:
    with Finished.open(path) as found:
        async with door(node) as opened:
            begun = await restoring.begin(opened, found, lambda _: None)
            await restoring.restore(opened, found, begun.position, lambda _: None)
            await lives.remove(opened, found, lambda _: None)
            await carrying.restore(opened, found, lambda _: None)
            await lives.limit(opened, found, lambda _: None)
            await carrying.subscribe(opened, found)
            answered = await carrying.digest(opened, found.head.until, lambda _: None)
        assert answered == found.digest_beside
        return found


async def fetch(node: Node, count: int) -> list[dict[str, Any]]:
    answer = await node.ask("POST", WORKERS + "/fetch", json={"consumer": "c", "max": count})
    return list(answer.body["events"])


async def settle(node: Node, how: str, *events: dict[str, Any]) -> None:
    ids = [event["delivery_id"] for event in events]
    body: dict[str, Any] = {"delivery_ids": ids}
    if how != "ack":
        body["action"] = how
    answer = await node.ask("POST", f"{WORKERS}/{'ack' if how == 'ack' else 'nack'}", json=body)
    assert answer.status == 200 and not answer.body["stale"]


async def everything(node: Node) -> list[Any]:
    """What clients can read beside the events, without times."""
    facts = (await node.ask("GET", STORE)).body
    snapshots = (await node.ask("GET", STORE + "/snapshots?limit=1000")).body["snapshots"]
    for snapshot in snapshots:
        del snapshot["created_at"], snapshot["created_epoch"]
    made = (await node.ask("GET", STORE + "/subscriptions")).body["subscriptions"]
    bounds = ("name", "filter", "ack_timeout_ms", "max_retries", "max_in_flight")
    return [
        (facts["durability"], facts["snapshots_kept"]),
        snapshots,
        [{name: one[name] for name in bounds} for one in made],
        (await node.ask("GET", STORE + "/checkpoints")).body,
    ]


async def test_settings_snapshots_subscriptions_and_checkpoints_come_back(
    node: Node, other: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "PAGE_SNAPSHOTS", 3)
    monkeypatch.setattr(carrying, "PAGE_CHECKPOINTS", 2)
    for number in range(5):
        await node.ask("PUT", f"{STORE}/checkpoints/c%2F{number}", json={"position": number})
    await node.ask("PUT", STORE, json={"durability": "persisted", "snapshots_kept": 20})
    await node.append("s", 12)
    for version, data in enumerate(VALUES):
        await record(node, version, data)
        await record(node, version, data, f"a%2Fb/s-%C3%BC{version % 3}")
    where = [{"path": "data.total", "equals": 12.5}, {"path": "data.n", "any_of": [1, "x", None]}]
    wanted = {"types": ["B", "A"], "stream_prefix": "s", "where": where}
    made = await node.ask("PUT", WORKERS, json={"filter": wanted, "max_retries": 3})
    assert made.status == 201, made.body
    where = [{"path": "data.of", "equals": float("inf")}, {"path": "data.b", "equals": b"\x00"}]
    body = cbor2.dumps({"filter": {"where": where}})
    made = await node.ask("PUT", STORE + "/subscriptions/odd", data=body, headers=CBOR)
    assert made.status == 201, made.body
    await node.ask("PUT", STORE + "/subscriptions/later", json={"start_after": 10**6})
    await node.ask("PUT", STORE + "/checkpoints/reader", json={"position": 7})
    await take(node, tmp_path / "b")
    await restore(other, tmp_path / "b")
    assert await everything(other) == await everything(node)
    await restore(other, tmp_path / "b")  # once more changes nothing
    assert await everything(other) == await everything(node)
    other.state.check()


async def test_a_subscription_goes_on_behind_what_it_had_settled_and_misses_nothing(
    node: Node, other: Node, tmp_path: Path
) -> None:
    for stream in "abcdef":
        await node.append(stream, 2)  # positions 1 and 2 of a, 3 and 4 of b, ...
    await node.ask("PUT", WORKERS, json={})
    firsts = await fetch(node, 6)
    assert [event["position"] for event in firsts] == [1, 3, 5, 7, 9, 11]
    await settle(node, "ack", firsts[0], firsts[2])
    await settle(node, "park", firsts[1], firsts[4])
    await settle(node, "ack", *await fetch(node, 2))  # 2 and 6
    await settle(node, "ack", *await fetch(node, 1))  # 4
    assert [event["position"] for event in await fetch(node, 9)] == [10]  # and 7, 11 in flight
    await take(node, tmp_path / "b")
    found = await restore(other, tmp_path / "b")
    assert json.loads(subscriptions_in(found.path)["workers"])["start_after"] == 6
    with contextlib.closing(sqlite3.connect(found.path)) as connection:
        query = "SELECT position, why, consumer, stream, number FROM parked_events"
        assert connection.execute(query).fetchall() == [
            (3, "by_consumer", "c", "b", 0),
            (9, "by_consumer", "c", "e", 0),
        ]
    seen = []
    while found_now := await fetch(other, 100):
        await settle(other, "ack", *found_now)
        seen += [event["position"] for event in found_now]
    assert seen == [7, 9, 11, 8, 10, 12]  # 9 is parked, and comes again, for it is behind 6
    node.state.check()


def subscriptions_in(path: Path) -> dict[str, str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT name, definition FROM subscriptions"))


async def test_no_snapshot_in_the_file_is_of_events_that_are_not(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "PAGE_SNAPSHOTS", 2)
    await node.append("s", 1)
    for version in range(6):
        await record(node, version)
    loop, going_on = asyncio.get_running_loop(), []

    async def use() -> None:
        await node.append("s", 10)
        await record(node, 10 * len(going_on), where="other/s")

    def advance(_: int) -> None:
        going_on.append(loop.create_task(use()))

    await take(node, tmp_path / "b", advance)
    await asyncio.gather(*going_on)
    with Finished.open(tmp_path / "b") as found:
        last = max(snapshot.version for snapshot in found.beside.snapshots())
        assert found.head.until > last > 0 and len(going_on) >= 3


def test_what_a_series_may_hold_is_what_a_node_keeps_of_it() -> None:
    published = ApiLimits().published()
    assert published["snapshots_kept_max"] == beside.KEPT_MAX
    assert published["snapshot_series_bytes_max"] == beside.SERIES_BYTES_MAX


@pytest.mark.parametrize("bound", ["told", "by default", "bytes"])
async def test_a_series_that_grew_while_it_was_read_holds_no_more_than_is_kept(
    bound: str, node: Node, other: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "PAGE_SNAPSHOTS", 3)
    if bound == "bytes":
        one = encode_content("Order", cbor2.dumps(0), cbor2.dumps({"by": 0}))
        monkeypatch.setattr(snapshots, "SERIES_BYTES_MAX", 3 * len(one))
        monkeypatch.setattr(beside, "SERIES_BYTES_MAX", 3 * len(one))
    else:
        await node.ask("PUT", STORE, json={"snapshots_kept": 3})
    if bound == "by default":
        monkeypatch.setattr(stores, "KEPT_MAX", 3)
        monkeypatch.setattr(beside, "KEPT_MAX", 3)
    await node.append("s", 10)
    for version in range(3):
        await record(node, version, version)

    class Meanwhile(Door):
        async def ask(self, method: str, path: str, query: Query, *more: Any) -> Any:
            page = await super().ask(method, path, query, *more)
            if path == "/snapshots" and page["next"]:
                await record(node, 5, 5)
                await record(node, 6, 6)
            return page

    monkeypatch.setattr("tests.cluster.test_backup_beside.Door", Meanwhile)
    await record(node, 0, 0, "z/z")  # so that there is a second page
    await take(node, tmp_path / "b")
    monkeypatch.setattr("tests.cluster.test_backup_beside.Door", Door)
    monkeypatch.setattr(stores, "KEPT_MAX", snapshots.KEPT_MAX)
    with Finished.open(tmp_path / "b") as found:
        kept = [one.version for one in found.beside.snapshots() if one.source == "billing"]
        assert kept == [2, 5, 6]
    await restore(other, tmp_path / "b")


async def test_what_is_replayed_while_it_is_read_is_not_lost(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.append("s", 1)
    await node.ask("PUT", WORKERS, json={})
    await settle(node, "park", *await fetch(node, 1))
    replays: list[int] = []

    class Meanwhile(Door):
        async def ask(self, method: str, path: str, query: Query, *more: Any) -> Any:
            if path.endswith("/parked") and not replays:
                replays.append((await node.ask("POST", WORKERS + "/parked/replay")).status)
            return await super().ask(method, path, query, *more)

    monkeypatch.setattr("tests.cluster.test_backup_beside.Door", Meanwhile)
    await take(node, tmp_path / "b")
    assert replays == [200]
    assert json.loads(subscriptions_in(tmp_path / "b")["workers"])["start_after"] == 0


async def test_a_backup_that_had_not_come_to_the_events_begins_anew(
    node: Node, tmp_path: Path
) -> None:
    await node.append("s", 3)
    await record(node, 1)

    def stop(_: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        await take(node, tmp_path / "b", stop)
    assert partial_of(tmp_path / "b").exists()
    await record(node, 2)
    await take(node, tmp_path / "b")
    with Finished.open(tmp_path / "b") as found:
        assert [snapshot.version for snapshot in found.beside.snapshots()] == [1, 2]


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM snapshots WHERE version = 1",
        "UPDATE snapshots SET data = '{\"total\": 1}' WHERE version = 1",
        "UPDATE snapshots SET data = x'5a' WHERE version = 1",
        "UPDATE subscriptions SET definition = replace(definition, '30000', '30001')",
        "DELETE FROM parked",
        "UPDATE checkpoints SET position = 1",
        "UPDATE meta SET value = 3 WHERE key = 'snapshots_kept'",
    ],
)
async def test_a_file_that_was_changed_is_found_out(
    node: Node, tmp_path: Path, damage: str
) -> None:
    await node.append("s", 3)
    await record(node, 1, {"total": 0})
    await node.ask("PUT", WORKERS, json={})
    await settle(node, "park", *await fetch(node, 1))
    await node.ask("PUT", STORE + "/checkpoints/reader", json={"position": 2})
    await take(node, tmp_path / "b")
    with contextlib.closing(sqlite3.connect(tmp_path / "b")) as connection:
        connection.execute(damage)
        connection.commit()
    with Finished.open(tmp_path / "b") as found, pytest.raises(BackupFailed, match="is damaged"):
        found.check(lambda _: None)


async def test_a_store_with_snapshots_or_subscriptions_but_no_events_is_refused(
    node: Node, tmp_path: Path
) -> None:
    await node.append("s", 3)
    await take(node, tmp_path / "b")

    async def with_snapshot(target: Node) -> None:
        await record(target, 1)

    async def with_subscription(target: Node) -> None:
        await target.ask("PUT", WORKERS, json={})

    fillings: list[Callable[[Node], Any]] = [with_snapshot, with_subscription]
    for fill in fillings:
        async with serving() as target:
            await fill(target)
            with pytest.raises(BackupFailed, match="has no events, but"):
                await restore(target, tmp_path / "b")
            assert target.state.stores["main"].position == 0


async def test_a_store_that_is_in_use_is_refused_before_anything_is_changed(
    node: Node, tmp_path: Path
) -> None:
    """Such as the one that the backup was taken of: its events are those of an interrupted restore,
    but what stands beside them has gone on.
    """
    await node.append("s", 3)
    await node.ask("PUT", WORKERS, json={})
    await settle(node, "ack", *await fetch(node, 1))
    await node.ask("PUT", STORE + "/checkpoints/reader", json={"position": 2})
    await take(node, tmp_path / "b")
    before = node.state.applied_index
    with pytest.raises(BackupFailed, match=r"store 'main' is not empty, .* subscription 'workers'"):
        await restore(node, tmp_path / "b")
    await node.ask("DELETE", WORKERS)
    await node.ask("PUT", STORE + "/checkpoints/reader", json={"position": 3})
    with pytest.raises(BackupFailed, match=r"store 'main' is not empty, .* checkpoint 'reader'"):
        await restore(node, tmp_path / "b")
    assert node.state.applied_index == before + 2, "only what this test asked for"


async def test_the_commands_tell_what_is_beside_and_compare_it(
    node: Node, other: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def exesdb(*words: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(main, list(words)), *capsys.readouterr()

    await node.append("s", 3)
    await record(node, 1, {"total": 0})
    await node.ask("PUT", WORKERS, json={})
    await settle(node, "park", *await fetch(node, 1))
    path = str(tmp_path / "b")
    here, there = (f"--url=http://127.0.0.1:{one.port}" for one in (node, other))
    code, out, _ = await exesdb("backup", path, "--store=main", here, "--json")
    said = json.loads(out)
    counts = {"checkpoints": 0, "snapshots": 1, "subscriptions": 1, "parked_in_file": 1}
    assert code == 0 and counts.items() <= said.items()
    code, out, _ = await exesdb("restore", path, there, "--json")
    assert code == 0 and counts.items() <= json.loads(out).items()
    assert json.loads(out)["beside_in_store"] == said["digest_beside"]
    await record(other, 2)
    code, _, err = await exesdb("restore", path, there)
    assert code == 1 and "has other settings, checkpoints, snapshots, subscriptions or lives" in err


async def test_an_empty_store_needs_nothing_beside(node: Node, other: Node, tmp_path: Path) -> None:
    async with door(node) as opened:
        with await taking.begin(opened, tmp_path / "b", unwatched) as written:
            await taking.take(opened, written, lambda _: None)
            tally = written.finish(lambda _: None)
    assert sum(tally.counts.values()) == 1  # the settings
    await restore(other, tmp_path / "b")


async def test_a_file_that_was_changed_before_it_is_gone_on_with_is_found_out(
    node: Node, tmp_path: Path
) -> None:
    await node.append("s", 3)
    await record(node, 1, {"total": 0})
    async with door(node) as opened:
        with await taking.begin(opened, tmp_path / "b", unwatched):
            pass
        with contextlib.closing(sqlite3.connect(partial_of(tmp_path / "b"))) as connection:
            connection.execute("UPDATE snapshots SET version = 2")
            connection.commit()
        with pytest.raises(BackupFailed, match="is damaged"):
            await taking.begin(opened, tmp_path / "b", unwatched)
