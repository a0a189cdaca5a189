"""A state that was loaded from rows equals the one the rows were taken from, in all it will do."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core import commands, recent
from node.core.commands import ANY
from node.core.state import State
from node.core.store import Row, Store
from tests.core.observed import contents, frame, started, store_contents

STREAMS = ["a", "b", "order-1", "日本"]
TYPES = ["T", "OrderPlaced", "é" * 30]


@pytest.fixture(autouse=True)
def _ids_are_soon_forgotten(monkeypatch):
    monkeypatch.setattr(recent, "REMEMBERED_MIN", 10)


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 19, 20, 21, 29, 30, 31, 45])
@pytest.mark.parametrize("slice_rows", [1, 7, 1000])
def test_a_loaded_store_equals_the_one_that_never_stopped(size, slice_rows):
    original = grown(size)
    copied = loaded(original.stores["main"], slice_rows)
    assert store_contents(copied) == store_contents(original.stores["main"])
    copied.check()


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 19, 20, 21, 30, 45])
def test_a_loaded_state_goes_on_like_the_one_that_never_stopped(size):
    original = grown(size)
    copied = copy(original)
    for entry in history(120, seed=size + 1):
        index = original.applied_index + 1
        assert original.apply(index, 2, entry) == copied.apply(index, 2, entry)
        assert contents(original) == contents(copied)
    copied.check()


@given(st.integers(0, 2**32), st.lists(st.integers(0, 60), max_size=4))
def test_two_states_fed_the_same_are_equal_however_often_one_is_reloaded(seed, reloads):
    steady, restarted = started(), started()
    for at, entry in enumerate(history(60, seed)):
        if at in reloads:
            restarted = copy(restarted)
        index = steady.applied_index + 1
        assert steady.apply(index, 1, entry) == restarted.apply(index, 1, entry)
    assert contents(steady) == contents(restarted)


def test_rows_of_a_range_do_not_change_while_the_store_grows():
    state = grown(20)
    store = state.stores["main"]
    rows = store.rows(5, 15)
    expected = list(store.rows(5, 15))
    state.apply(99, 1, [commands.append("main", 5, "a", ANY, [frame(1000)])])
    assert list(rows) == expected
    assert [row[0] for row in expected] == list(range(6, 16))


def test_rows_hold_the_very_bytes_that_entered():
    state, original = started(), frame(1)
    state.apply(2, 1, [commands.append("main", 5, "a", ANY, [original])])
    [row] = state.stores["main"].rows(0, 1)
    assert row == (1, 0, 0, 5, 0, original)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows[1:],
        lambda rows: rows[:3] + rows[4:],
        lambda rows: rows[:3] + rows[3:4] + rows[3:],
        lambda rows: [rows[1], rows[0], *rows[2:]],
        lambda rows: [(row[0] + 1, *row[1:]) for row in rows],
        lambda rows: changed(rows, 4, stream=99),
        lambda rows: changed(rows, 4, number=99),
        lambda rows: changed(rows, 4, type=99),
    ],
    ids=["start", "a gap", "one twice", "order", "moved", "unknown stream", "number", "type"],
)
def test_events_that_do_not_fit_are_refused(spoil):
    original = grown(20).stores["main"]
    store = empty_copy(original)
    with pytest.raises(ValueError, match="store main"):
        for row in spoil(list(original.rows(0, original.position))):
            load(store, [row])


def test_a_stream_name_that_stands_twice_is_refused():
    store = Store("main", 1, 1)
    with pytest.raises(ValueError, match="twice"):
        store.load_streams(["a", "b", "a"])


def test_check_finds_a_store_that_was_not_finished_loading():
    original = grown(20).stores["main"]
    store = empty_copy(original)
    load(store, list(original.rows(0, original.position)))
    with pytest.raises(AssertionError, match="ids"):
        store.check()


def test_created_never_decreases_and_is_kept_by_loading():
    state = started()
    times = [50, 40, 60, 0, 60, 59, 70]
    for number, created_us in enumerate(times):
        frames = [frame(10 * number), frame(10 * number + 1)]
        if number % 2:
            events = [("a", frames[0]), ("b", frames[1])]
            encoding = commands.append_many("main", created_us, events, [], None)
        else:
            encoding = commands.append("main", created_us, "a", ANY, frames)
        state.apply(2 + number, 1, [encoding])
    store = loaded(state.stores["main"], 1000)
    created = [store.record(at).created_us for at in range(1, store.position + 1)]
    assert created == [50, 50, 50, 50, 60, 60, 60, 60, 60, 60, 60, 60, 70, 70]


def test_stores_keep_their_times_to_themselves():
    state = started("main", "other")
    state.apply(2, 1, [commands.append("main", 90, "a", ANY, [frame(1)])])
    state.apply(3, 1, [commands.append("other", 10, "a", ANY, [frame(2)])])
    assert state.stores["other"].record(1).created_us == 10


def changed(rows, at, stream=None, number=None, type=None):
    position, old_stream, old_number, created, old_type, one = rows[at]
    pick = [
        old if new is None else new
        for old, new in ((old_stream, stream), (old_number, number), (old_type, type))
    ]
    return [*rows[:at], (position, pick[0], pick[1], created, pick[2], one), *rows[at + 1 :]]


def history(entries: int, seed: int) -> list[list[bytes]]:
    """Entries of three commands: appends, repetitions of earlier ones, checkpoints."""
    chance = random.Random(seed)
    sent: list[bytes] = []
    for number in range(entries * 3):
        base = 1_000_000 + (seed % 1000) * 10_000 + number * 10
        frames = [frame(base + one, chance.choice(TYPES)) for one in range(chance.randint(1, 4))]
        match chance.randrange(6):
            case 0 | 1:
                expected = chance.choice([ANY, ANY, commands.NO_STREAM, 3])
                one = commands.append(
                    "main", chance.randrange(99), chance.choice(STREAMS), expected, frames
                )
            case 2 | 3:
                events = [(chance.choice(STREAMS), each) for each in frames]
                one = commands.append_many("main", chance.randrange(99), events, [], None)
            case 4:
                one = commands.put_checkpoint("main", chance.choice("pq"), number)
            case _:
                one = chance.choice(sent[-8:]) if sent else commands.barrier()
        sent.append(one)
    return [sent[at : at + 3] for at in range(0, len(sent), 3)]


def grown(size: int) -> State:
    """A state whose store has exactly `size` events in several streams, and checkpoints."""
    state = started()
    for number in range(size):
        stream = STREAMS[number * 7 % 3]
        one = frame(number, TYPES[number % 3])
        state.apply(2 + number, 1, [commands.append("main", number % 13, stream, ANY, [one])])
    moves = [commands.put_checkpoint("main", "p", 4), commands.put_checkpoint("main", "q", 2)]
    state.apply(2 + size, 1, moves)
    return state


def empty_copy(store: Store) -> Store:
    """A store of the same identity with its streams and types, but no events yet."""
    copied = Store(store.name, store.uid, store.created_us)
    copied.load_streams([stream.name for stream in store.stream_list])
    copied.load_types(list(store.type_names))
    return copied


def load(store: Store, rows: list[Row]) -> None:
    """Add rows that follow one another."""
    positions, ordinals, numbers, created, types, frames = zip(*rows, strict=True)
    store.load_events(positions[0], numbers, (ordinals, created, types, frames))


def loaded(store: Store, slice_rows: int) -> Store:
    """The store as it comes back from what is written of it."""
    copied = empty_copy(store)
    for after in range(0, store.position, slice_rows):
        until = min(after + slice_rows, store.position)
        load(copied, list(store.rows(after, until)))
    copied.load_checkpoints(
        {
            name: (position, store.checkpoint_index[name])
            for name, position in store.checkpoints.items()
        }
    )
    copied.loaded()
    return copied


def copy(state: State) -> State:
    """The state as it comes back from what is written of it."""
    copied = State()
    copied.applied_index, copied.applied_term = state.applied_index, state.applied_term
    copied.stores = {name: loaded(store, 7) for name, store in state.stores.items()}
    return copied
