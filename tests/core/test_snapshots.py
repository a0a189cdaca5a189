"""Snapshots: which are there, which go when a series is full, and what the disk is told."""

from __future__ import annotations

import random

import pytest

from node.core import commands, life_commands, snapshots
from node.core.outcomes import (
    Expired,
    Outcome,
    SnapshotDeleted,
    SnapshotNotFound,
    SnapshotRecorded,
    SnapshotTooOld,
    StoreNotFound,
)
from node.core.snapshots import KEPT_MAX, Snapshot, Snapshots, decode_content, encode_content
from node.core.state import State
from tests.core.observed import contents, started

CONTENT = encode_content("Order", b"\x01", b"\xf6")


def apply(state: State, *encoded: bytes) -> list[object]:
    return list(state.apply(state.applied_index + 1, 1, encoded))


def put(version: int, source: str = "o-1", stream: str = "s", content: bytes = CONTENT) -> bytes:
    return commands.put_snapshot("main", 7, source, stream, version, content)


def versions(state: State, source: str = "o-1", stream: str = "s") -> list[int]:
    found = state.stores["main"].snapshots.between(source, stream, 0, 2**62, backward=False)
    return [one.version for one in found]


def test_versions_may_have_gaps_and_come_in_any_order() -> None:
    state = started("main")
    assert apply(state, *map(put, (40, 7, 2**62, 0))) == [SnapshotRecorded(False)] * 4
    assert versions(state) == [0, 7, 40, 2**62]
    held = state.stores["main"].snapshots
    assert [one.version for one in held.between("o-1", "s", 1, 40, backward=True)] == [40, 7]
    latest = held.latest("o-1", "s")
    assert latest is not None and latest.version == 2**62
    assert held.latest("o-1", "t") is None and held.get("o-1", "s", 8) is None
    assert state.stores["main"].position == 0
    state.check()


def test_a_snapshot_of_the_same_version_is_replaced() -> None:
    state = started("main")
    other = encode_content("Order", b"\x02", b"\xf6")
    assert apply(state, put(3), put(3, content=other)) == [
        SnapshotRecorded(False),
        SnapshotRecorded(True),
    ]
    found = state.stores["main"].snapshots.get("o-1", "s", 3)
    assert found is not None and decode_content(found.content) == ("Order", b"\x02", b"\xf6")
    assert versions(state) == [3]
    state.check()


def test_what_is_not_there_cannot_be_deleted() -> None:
    state = started("main")
    gone = commands.delete_snapshot("main", "o-1", "s", 3)
    assert apply(state, gone, put(3), gone, gone) == [
        SnapshotNotFound("o-1", "s", 3),
        SnapshotRecorded(False),
        SnapshotDeleted("o-1", "s", 3),
        SnapshotNotFound("o-1", "s", 3),
    ]
    assert not list(state.stores["main"].snapshots.keys(("", "")))
    assert state.stores["main"].snapshots.digest == 0
    elsewhere = commands.put_snapshot("none", 7, "o-1", "s", 3, CONTENT)
    assert apply(state, elsewhere) == [StoreNotFound("none")]


def test_a_store_keeps_the_greatest_versions_of_each_series() -> None:
    state = started("main")
    apply(state, commands.put_store("main", 1, None, 2))
    for version in (5, 9, 7):
        apply(state, put(version), put(version, stream="t"))
    assert versions(state) == versions(state, stream="t") == [7, 9]
    before = contents(state)["stores"]
    assert apply(state, put(6)) == [SnapshotTooOld("o-1", "s", 6, 2)]
    assert contents(state)["stores"] == before
    assert apply(state, put(7), put(8)) == [SnapshotRecorded(True), SnapshotRecorded(False)]
    assert versions(state) == [8, 9]
    state.check()


def test_a_smaller_number_to_keep_counts_at_once() -> None:
    state = started("main")
    apply(state, *map(put, range(5)), put(1, source="o-2"))
    apply(state, commands.put_store("main", 1, None, 3))
    assert versions(state) == [2, 3, 4] and versions(state, "o-2") == [1]
    apply(state, commands.put_store("main", 1, "persisted"))
    assert state.stores["main"].snapshots.kept == 3, "what is not given stays"
    assert state.stores["main"].durability == "persisted"
    apply(state, commands.put_store("main", 1, None, KEPT_MAX))
    assert state.stores["main"].durability == "persisted"
    apply(state, put(0))
    assert versions(state) == [0, 2, 3, 4]
    state.check()


def let_go_of(state: State, *command: bytes) -> tuple[list[int], Outcome]:
    """Apply it, and the leader's clock until it says that all is done: how many went each time."""
    held, went = state.stores["main"].snapshots, []
    while True:
        before = len(held)
        (outcome,) = apply(state, *(command if not went else [life_commands.expire("main", 1)]))
        state.check()
        went.append(before - len(held))
        if len(went) > 1 and not outcome.has_more:
            return went, outcome


def test_no_command_lets_go_of_more_snapshots_than_take_some_milliseconds() -> None:
    state = started("main")
    for source in ("o-1", "o-2", "o-3"):
        apply(state, *(put(version, source) for version in range(900)))
    went, outcome = let_go_of(state, commands.put_store("main", 1, None, 2))
    assert went == [1_000, 1_000, 694] and outcome == Expired(0, 0, False, 694)
    assert [versions(state, f"o-{n}") for n in (1, 2, 3)] == [[898, 899]] * 3
    assert apply(state, life_commands.expire("main", 1)) == [Expired(0, 0, False)]


def test_large_snapshots_go_a_few_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(snapshots, "DROPPED_BYTES_MAX", 2 * len(CONTENT))
    state = started("main")
    apply(state, *map(put, range(6)))
    went, _ = let_go_of(state, commands.put_store("main", 1, None, 1))
    assert went == [2, 2, 1] and versions(state) == [5]


def test_who_records_a_snapshot_does_not_wait_for_the_clock(monkeypatch) -> None:
    monkeypatch.setattr(snapshots, "DROPPED_MAX", 1)
    state = started("main")
    apply(state, *map(put, range(5)), *(put(version, "o-2") for version in range(5)))
    apply(state, commands.put_store("main", 1, None, 2))
    assert apply(state, put(0)) == [SnapshotTooOld("o-1", "s", 0, 2)]
    assert apply(state, put(7)) == [SnapshotRecorded(False)]
    assert versions(state) == [4, 7] and versions(state, "o-2") == [0, 1, 2, 3, 4]
    apply(state, commands.put_store("main", 1, None, 4))
    assert versions(state, "o-2") == [1, 2, 3, 4]
    assert apply(state, life_commands.expire("main", 1)) == [Expired(0, 0, False)]
    state.check()


def test_a_series_is_bounded_in_bytes_but_keeps_its_greatest(monkeypatch) -> None:
    monkeypatch.setattr(snapshots, "SERIES_BYTES_MAX", 3 * len(CONTENT))
    state = started("main")
    apply(state, *map(put, (1, 2, 3)))
    assert apply(state, put(0)) == [SnapshotTooOld("o-1", "s", 0, KEPT_MAX)]
    apply(state, put(4))
    assert versions(state) == [2, 3, 4]
    large = encode_content("Order", bytes(10 * len(CONTENT)), b"\xf6")
    assert apply(state, put(5, content=large)) == [SnapshotRecorded(False)]
    assert versions(state) == [5]
    assert apply(state, put(5, content=large)) == [SnapshotRecorded(True)]
    state.check()


def test_the_disk_is_told_what_came_and_what_went(monkeypatch) -> None:
    state = started("main")
    apply(state, put(1), put(2))
    apply(state, put(3))
    at = state.applied_index
    apply(state, put(1), commands.delete_snapshot("main", "o-1", "s", 2), put(9), put(9))
    held = state.stores["main"].snapshots
    assert held.changed_index == at + 1
    assert [one.version for one in held.recorded_after(at)] == [1, 9]
    assert [place >> 20 for place in held.gone_after(at) or ()] == [at - 1, at - 1, at + 1]
    held.forget_gone(at + 1)
    assert held.gone_after(at + 1) == []
    monkeypatch.setattr(snapshots, "_GONE_MAX", 2)
    apply(state, put(9))
    apply(state, *[put(9)] * 3)
    assert held.gone_after(at + 1) is None, "more went than is remembered"
    assert held.gone_after(at + 3) == []
    state.check()


def test_equal_snapshots_have_equal_digests_however_they_came_to_be() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    state = started("main")
    for _ in range(100):
        version, source = chance.randrange(6), chance.choice(["o-1", "o-2"])
        if chance.random() < 0.3:
            apply(state, commands.delete_snapshot("main", source, "s", version))
        else:
            apply(state, put(version, source))
    held, copied = state.stores["main"].snapshots, Snapshots()
    copied.load(held.all())
    copied.check()
    assert copied.digest == held.digest and copied.all() == held.all()
    copied.put(held.all()[0]._replace(created_us=8, place=copied.all()[-1].place + 1))
    assert copied.digest != held.digest


def test_what_does_not_fit_is_not_loaded() -> None:
    one = Snapshot("o-1", "s", 1, 7, 5, CONTENT)
    for other in (one, one._replace(place=4, version=2), one._replace(place=6)):
        held = Snapshots()
        with pytest.raises(ValueError):
            held.load([one, other])
