"""Several appends in one command: each comes to what it would have come to alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.core import commands
from node.core.commands import ANY, NO_STREAM, STREAM_EXISTS
from node.core.outcomes import Appended, AppendedEach, EventIdReused, WrongExpectedVersion
from node.core.state import State
from tests.core.observed import frame, started, store_contents

One = tuple[str, int, list[bytes]]

appends = st.tuples(
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from([ANY, ANY, NO_STREAM, STREAM_EXISTS, 0, 1, 2]),
    st.lists(st.integers(1, 40), min_size=1, max_size=3).map(lambda ids: list(map(frame, ids))),
)


def apply_each(state: State, ones: list[One]) -> list[object]:
    """All in one command; the outcome of each."""
    streams, expected, events = (list(column) for column in zip(*ones, strict=True))
    counts = list(map(len, events))
    frames = [one for several in events for one in several]
    command = commands.append_each("main", 9, streams, expected, counts, frames)
    (outcome,) = state.apply(state.applied_index + 1, 1, [command])
    assert isinstance(outcome, AppendedEach)
    places = zip(range(len(ones)), streams, counts, strict=True)
    return [outcome.of(place, stream, count) for place, stream, count in places]


@given(st.lists(st.lists(appends, min_size=1, max_size=6), min_size=1, max_size=4))
def test_it_comes_to_what_one_append_after_the_other_comes_to(commands_of):
    together, apart = started("main"), started("main")
    for ones in commands_of:
        alone = apart.apply(
            apart.applied_index + 1,
            1,
            [commands.append("main", 9, stream, at, events) for stream, at, events in ones],
        )
        assert apply_each(together, ones) == alone
        together.check()
    assert store_contents(together.stores["main"]) == store_contents(apart.stores["main"])


def test_a_refused_append_takes_nothing_from_its_neighbours():
    state = started("main")
    first, refused, last = apply_each(
        state,
        [
            ("a", NO_STREAM, [frame(1), frame(2)]),
            ("a", 0, [frame(3)]),
            ("b", ANY, [frame(4)]),
        ],
    )
    assert first == Appended(0, 1, range(1, 3), {"a": 1}, False)
    assert refused == WrongExpectedVersion("a", 0, 1)
    assert last == Appended(0, 0, range(3, 4), {"b": 0}, False)
    assert [state.stores["main"].frame(at) for at in (1, 2, 3)] == [frame(1), frame(2), frame(4)]


def test_the_same_id_twice_is_a_retry_within_the_command_too():
    state = started("main")
    first, again, other = apply_each(
        state, [("a", ANY, [frame(1)]), ("a", ANY, [frame(1)]), ("b", ANY, [frame(1)])]
    )
    assert first == Appended(0, 0, range(1, 2), {"a": 0}, False)
    assert again == first._replace(positions=[1], idempotent=True)
    assert isinstance(other, EventIdReused)


def test_a_command_that_stores_nothing_reports_no_change():
    state = started("main")
    apply_each(state, [("a", ANY, [frame(1)])])
    changed: list[str] = []
    state.on_change = changed.append
    apply_each(state, [("a", NO_STREAM, [frame(2)]), ("a", ANY, [frame(1)])])
    assert changed == []
    apply_each(state, [("a", NO_STREAM, [frame(2)]), ("a", ANY, [frame(3)])])
    assert changed == ["main"]


def test_the_lists_of_a_command_must_fit_one_another():
    good = ["a", "b"], [ANY, ANY], [1, 2], [frame(1), frame(2), frame(3)]
    assert commands.decode(commands.append_each("main", 9, *good)) == ("main", 9, *good)
    for place, wrong in enumerate((["a"], [ANY], [1, 1], [frame(1)])):
        fields = [*good[:place], wrong, *good[place + 1 :]]
        (outcome,) = started("main").apply(9, 1, [commands.append_each("main", 9, *fields)])
        assert type(outcome).__name__ == "Malformed", place
