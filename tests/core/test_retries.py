"""Retry safety: ids are judged before the expected version, and decide what a repetition means."""

from __future__ import annotations

import pytest

from node.core import commands, life_commands, recent
from node.core.commands import ANY, NO_STREAM
from node.core.outcomes import (
    Appended,
    CheckpointNotIncreasing,
    EventIdReused,
    WrongExpectedVersion,
)
from node.core.state import State
from node.core.stream import Limits
from tests.core.observed import contents, encoded, event_id, frame, remembered, started, sweep

A, B, C = frame(1), frame(2), frame(3)
NEW = frame(9)


def test_a_repeated_append_gets_its_first_answer_whatever_version_it_expects():
    state = stored()
    original = Appended(0, 2, [1, 2, 3], {"s": 2}, True)
    for expected in (NO_STREAM, ANY, 0, 7, commands.STREAM_EXISTS):
        assert refused_or_found(state, append("s", [A, B, C], expected)) == original


def test_a_repeated_append_to_several_streams_gets_its_first_answer():
    state = started()
    events = [("s", A), ("t", B), ("s", C)]
    encoding = commands.append_many("main", 5, events, [("s", NO_STREAM)], ("p", 1))
    [first] = state.apply(2, 1, [encoding])
    assert first == Appended(0, 1, range(1, 4), {"s": 1, "t": 0}, False)
    assert refused_or_found(state, encoding) == Appended(0, 1, [1, 2, 3], {"s": 1, "t": 0}, True)


def test_a_repetition_in_the_same_entry_is_recognised():
    state = started()
    first, second = state.apply(2, 1, [append("s", [A], NO_STREAM)] * 2)
    assert (first.idempotent, second.idempotent) == (False, True)
    assert list(first.positions) == list(second.positions) == [1]


@pytest.mark.parametrize(
    ("events", "named"),
    [
        ([("s", A), ("s", NEW)], 1),
        ([("s", NEW), ("s", A)], 1),
        ([("s", A), ("s", B), ("s", C), ("s", NEW)], 1),
        ([("s", frame(1, data=b"\x02"))], 1),
        ([("s", A), ("s", frame(2, "OtherType"))], 2),
        ([("s", NEW), ("s", frame(2, data=b"\x02"))], 2),
        ([("other", A)], 1),
        ([("s", A), ("other", B)], 2),
        ([("s", NEW), ("other", B)], 2),
        ([("s", B), ("s", A)], 2),
        ([("s", A), ("s", A)], 1),
        ([("s", NEW), ("s", NEW)], 9),
        ([("s", NEW), ("other", frame(9, data=b"\x02"))], 9),
    ],
    ids=[
        "stored, new",
        "new, stored",
        "all stored and one more",
        "other data",
        "the second with another type",
        "new, and one with other data",
        "another stream",
        "the second in another stream",
        "new, and one in another stream",
        "another order",
        "one stored id twice",
        "one new id twice",
        "one new id twice with other content and stream",
    ],
)
def test_anything_between_new_and_repeated_is_refused_and_names_an_id(events, named):
    state = stored()
    encoding = commands.append_many("main", 5, events, [], ("p", 1))
    outcome = refused_or_found(state, encoding)
    assert isinstance(outcome, EventIdReused)
    assert outcome.event_id == event_id(named)
    if {stream for stream, _ in events} == {"s"}:
        assert refused_or_found(state, append("s", [one for _, one in events])) == outcome


def test_a_part_of_a_stored_append_in_its_order_counts_as_stored():
    assert refused_or_found(stored(), append("s", [A, C])) == Appended(0, 2, [1, 3], {"s": 2}, True)


def test_ids_are_judged_before_checks_and_checkpoint():
    state = stored()
    state.apply(3, 1, [commands.put_checkpoint("main", "p", 5)])
    wrong = commands.append_many("main", 5, [("s", A), ("s", NEW)], [("s", 77)], ("p", 1))
    assert isinstance(refused_or_found(state, wrong), EventIdReused)
    behind = commands.append_many("main", 5, [("s", A)], [("s", 77)], ("p", 1))
    assert refused_or_found(state, behind) == Appended(0, 0, [1], {"s": 0}, True)


def test_a_checkpoint_moves_forward_although_all_events_were_stored_before():
    """A processor that makes its ids from what it reads may have cut its batches otherwise."""
    state = stored()
    state.apply(3, 1, [commands.put_checkpoint("main", "p", 5)])
    told: list[str] = []
    state.on_change = told.append
    for position, stands in ((7, 7), (6, 7), (7, 7), (9, 9)):
        again = commands.append_many("main", 5, [("s", A)], [("s", 77)], ("p", position))
        [outcome] = state.apply(state.applied_index + 1, 1, [again])
        assert outcome == Appended(0, 0, [1], {"s": 0}, True)
        assert state.stores["main"].checkpoints == {"p": stands}
    assert told == ["main"] * 2, "so that it comes to the disk"
    other = commands.append_many("main", 5, [("s", A), ("s", NEW)], [], ("p", 11))
    assert isinstance(refused_or_found(state, other), EventIdReused)
    assert state.stores["main"].checkpoints == {"p": 9}


def test_a_refused_append_leaves_its_ids_free():
    state = stored()
    assert isinstance(refused_or_found(state, append("s", [NEW], 77)), WrongExpectedVersion)
    [outcome] = state.apply(4, 1, [append("s", [NEW], 2)])
    assert outcome == Appended(3, 3, range(4, 5), {"s": 3}, False)


def test_ids_are_known_in_their_own_store_only():
    state = stored("main", "other")
    [outcome] = state.apply(4, 1, [commands.append("other", 5, "s", NO_STREAM, [A, B, C])])
    assert outcome == Appended(0, 2, range(1, 4), {"s": 2}, False)


def test_a_store_made_again_remembers_nothing():
    state = stored()
    uid = state.stores["main"].uid
    again = [commands.delete_store("main"), commands.create_store("main", 9)]
    state.apply(4, 1, [*again, append("s", [A], NO_STREAM)])
    assert state.stores["main"].position == 1
    assert state.stores["main"].uid > uid


def test_a_repeated_append_of_a_checkpoint_alone_is_not_increasing():
    state = started()
    encoding = commands.append_many("main", 5, [], [], ("p", 3))
    [outcome] = state.apply(2, 1, [encoding])
    assert outcome == Appended(-1, -1, range(1, 1), {}, False)
    assert refused_or_found(state, encoding) == CheckpointNotIncreasing("p", 3, 3)


def test_a_checkpoint_only_moves_forward():
    state = started()
    moves = [commands.put_checkpoint("main", "p", position) for position in (0, 0, 4, 3, 4, 5)]
    outcomes = state.apply(2, 1, moves)
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "CheckpointMoved",
        "CheckpointNotIncreasing",
        "CheckpointMoved",
        "CheckpointNotIncreasing",
        "CheckpointNotIncreasing",
        "CheckpointMoved",
    ]
    assert state.stores["main"].checkpoint_index == {"p": 2}


def test_a_large_append_with_its_last_id_twice_is_refused_in_linear_time():
    # Comparing each id with all before it took more than a second, on every node.
    frames = [frame(number) for number in range(10_000)]
    outcome = refused_or_found(started(), append("s", [*frames, frames[-1]]))
    assert isinstance(outcome, EventIdReused)
    assert outcome.event_id == event_id(9_999)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 10, 11, 20, 25, 60])
def test_the_last_events_are_remembered_however_they_were_appended(monkeypatch, batch):
    monkeypatch.setattr(recent, "REMEMBERED_MIN", 10)
    state, frames = started(), [frame(number) for number in range(60)]
    for start in range(0, 60, batch):
        state.apply(2, 1, [append("s", frames[start : start + batch])])
        store = state.stores["main"]
        store.check()
        known = remembered(store)
        assert min(10, store.position) <= len(known) < 20
        newest = range(store.position - len(known), store.position)
        assert known == {event_id(number): number + 1 for number in newest}


def test_a_forgotten_id_counts_as_new(monkeypatch):
    monkeypatch.setattr(recent, "REMEMBERED_MIN", 10)
    state = started()
    for number in range(20):
        state.apply(2, 1, [append("s", [frame(number)])])
    assert refused_or_found(state, append("s", [frame(10)])).idempotent
    [outcome] = state.apply(3, 1, [append("s", [frame(9)])])
    assert (outcome.first_version, outcome.idempotent) == (20, False)
    assert refused_or_found(state, append("s", [frame(9)])).positions == [21]
    state.check()


def test_no_fewer_ids_are_remembered_than_the_contract_promises():
    assert recent.REMEMBERED_MIN >= 100_000


@pytest.mark.parametrize("swept", [False, True])
def test_a_retry_of_what_was_removed_is_judged_alike_whether_it_was_swept_or_not(swept):
    """Bytes can be chosen that have the CRC-32 of others, and of a husk no more is left."""
    data = b"\x45AAAAA"
    other = b"\x45" + bytes(a ^ b for a, b in zip(b"AAAAA", _CHANGES_NO_CRC, strict=True))
    state = started()
    state.apply(2, 1, [append("s", [frame(1, data=data), B])])
    retry = append("s", [frame(1, data=other)])
    assert isinstance(refused_or_found(state, retry), EventIdReused)
    state.apply(3, 1, [life_commands.set_metadata("main", "s", Limits(max_count=1))])
    if swept:
        sweep(state.stores["main"])
    assert refused_or_found(state, retry) == Appended(0, 0, [1], {"s": 0}, True)
    shorter = append("s", [frame(1, data=b"\x40")])
    assert isinstance(refused_or_found(state, shorter), EventIdReused)


# The polynomial of CRC-32: a xor with it changes no checksum.
_CHANGES_NO_CRC = bytes.fromhex("410671db01")


def append(stream: str, frames: list[bytes], expected: int = ANY) -> bytes:
    return encoded(commands.Append("main", 5, stream, expected, frames))


def stored(*stores: str) -> State:
    """A state in which A, B and C stand in the stream `s` of `main`."""
    state = started(*stores)
    state.apply(2, 1, [append("s", [A, B, C], NO_STREAM)])
    return state


def refused_or_found(state: State, encoding: bytes):
    """The outcome of a command that must not change anything."""
    before = contents(state)
    [outcome] = state.apply(state.applied_index, state.applied_term, [encoding])
    assert contents(state) == before
    return outcome
