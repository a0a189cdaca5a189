"""The `expected_version` table of API.md, judged inside `apply`, for both kinds of append."""

from __future__ import annotations

import pytest

from node.core import commands
from node.core.commands import ANY, NO_STREAM, STREAM_EXISTS
from node.core.outcomes import Appended, WrongExpectedVersion
from tests.core.observed import contents, frame, started

TABLE = [
    # expected, version of the stream (-1 for absent), whether the append goes through
    (ANY, -1, True),
    (ANY, 0, True),
    (ANY, 3, True),
    (NO_STREAM, -1, True),
    (NO_STREAM, 0, False),
    (NO_STREAM, 3, False),
    (STREAM_EXISTS, -1, False),
    (STREAM_EXISTS, 0, True),
    (STREAM_EXISTS, 3, True),
    (0, -1, False),
    (0, 0, True),
    (0, 3, False),
    (3, -1, False),
    (3, 0, False),
    (3, 3, True),
    (4, 3, False),
    (2**62, 3, False),
]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("expected", "version", "passes"), TABLE)
def test_an_append_to_one_stream_follows_the_table(expected, version, passes, count):
    state = at_version(version)
    before = contents(state)["stores"]
    frames = [frame(100 + number) for number in range(count)]
    [outcome] = state.apply(9, 1, [commands.append("main", 5, "s", expected, frames)])
    if passes:
        first = version + 1
        positions = range(version + 2, version + 2 + count)
        assert outcome == Appended(first, version + count, positions, {"s": version + count}, False)
    else:
        assert outcome == WrongExpectedVersion("s", expected, version)
        assert contents(state)["stores"] == before


@pytest.mark.parametrize(("expected", "version", "passes"), TABLE)
def test_a_check_of_an_append_to_several_streams_follows_the_table(expected, version, passes):
    state = at_version(version)
    before = contents(state)["stores"]
    events = [("t", frame(100)), ("s", frame(101))]
    encoded = commands.append_many("main", 5, events, [("t", ANY), ("s", expected)], ("p", 1))
    [outcome] = state.apply(9, 1, [encoded])
    if passes:
        assert isinstance(outcome, Appended)
        assert dict(outcome.streams) == {"t": 0, "s": version + 1}
        assert state.stores["main"].checkpoints == {"p": 1}
    else:
        assert outcome == WrongExpectedVersion("s", expected, version)
        assert contents(state)["stores"] == before


def test_checks_are_judged_against_the_state_before_the_append():
    state = started()
    events = [("s", frame(1)), ("s", frame(2))]
    checks = [("s", NO_STREAM), ("s", NO_STREAM), ("untouched", NO_STREAM)]
    [outcome] = state.apply(2, 1, [commands.append_many("main", 5, events, checks, None)])
    assert outcome == Appended(0, 1, range(1, 3), {"s": 1}, False)


def test_a_checked_stream_that_gets_no_event_is_not_made():
    state = started()
    checks = [("untouched", NO_STREAM)]
    state.apply(2, 1, [commands.append_many("main", 5, [("s", frame(1))], checks, None)])
    assert list(state.stores["main"].stream_names) == ["s"]


def test_of_appends_that_expect_the_same_version_the_first_wins():
    state = at_version(0)
    rivals = [commands.append("main", 5, "s", 0, [frame(50 + number)]) for number in range(5)]
    outcomes = state.apply(9, 1, rivals)
    assert isinstance(outcomes[0], Appended)
    assert outcomes[1:] == [WrongExpectedVersion("s", 0, 1)] * 4


def test_one_refused_stream_or_checkpoint_refuses_the_whole_append():
    state = at_version(0)
    state.apply(8, 1, [commands.put_checkpoint("main", "p", 5)])
    before = contents(state)["stores"]
    events = [("new", frame(60, "NewType")), ("s", frame(61))]
    state.apply(9, 1, [commands.append_many("main", 5, events, [("s", 0)], ("p", 5))])
    state.apply(9, 1, [commands.append_many("main", 5, events, [("s", 1)], ("p", 6))])
    assert contents(state)["stores"] == before


def at_version(version: int):
    """A state whose stream `s` is at this version; -1 for no such stream."""
    state = started()
    for number in range(version + 1):
        state.apply(2, 1, [commands.append("main", 1, "s", ANY, [frame(number)])])
    return state
