"""Folding: sums, overwrites and replacements, whatever stood there before."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.folding import SumTooLong, begun, fold
from node.core.items import INTEGER_BITS_MAX


def folded(*events: dict[Any, Any], state: dict[Any, Any] | None = None) -> dict[Any, Any]:
    state = {} if state is None else state
    for data in events:
        fold(state, data)
    return state


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], {}),
        (
            [{"name": "John", "age": 30}, {"city": "Gent"}],
            {"name": "John", "age": 30, "city": "Gent"},
        ),
        ([{"n": {"$sum": 5}}, {"n": {"$sum": 10}}], {"n": 15}),
        ([{"n": 5}, {"n": {"$sum": 10}}], {"n": 15}),
        ([{"n": "five"}, {"n": {"$sum": 10}}], {"n": 10}),
        ([{"n": True}, {"n": {"$sum": 10}}], {"n": 10}),
        ([{"n": {"$sum": 1}}, {"n": {"$overwrite": "x"}}], {"n": "x"}),
        ([{"n": 1}, {"n": {"$replace": {"a": 1}}}], {"n": {"a": 1}}),
        ([{"n": {"$overwrite": {"$sum": 1}}}], {"n": {"$sum": 1}}),
        ([{"n": {"$sum": "5"}}], {"n": {"$sum": "5"}}),
        ([{"n": {"$sum": 1, "more": 1}}], {"n": {"$sum": 1, "more": 1}}),
        ([{"n": {"$sum": 0.5}}, {"n": {"$sum": 1}}], {"n": 1.5}),
        ([{"n": {"$sum": 10**4000}}, {"n": {"$sum": 0.5}}], {"n": math.inf}),
        ([{"n": {"$sum": 0.5}}, {"n": {"$sum": -(10**4000)}}], {"n": -math.inf}),
    ],
)
def test_each_key_follows_its_rule(events: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    assert folded(*events) == expected


MOST = (1 << INTEGER_BITS_MAX) - 1


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_is_as_long_as_a_value_may_be(sign: int) -> None:
    state = folded({"n": {"$sum": sign * MOST}}, {"n": {"$sum": 0}})
    assert state == {"n": sign * MOST}
    with pytest.raises(SumTooLong, match="under 'n'"):
        fold(state, {"n": {"$sum": sign}})
    assert folded({"n": {"$sum": 0.5}}, {"n": {"$sum": sign}}, state=state) == {
        "n": sign * math.inf
    }


@pytest.mark.parametrize("first", [7, "7"])
def test_the_keys_of_a_state_are_text(first: Any) -> None:
    tens = [{key: {"$sum": 10}} for key in (first, 7, "7", -7, "-7", "07", 2**70)]
    expected = {"7": 30, "-7": 20, "07": 10, str(2**70): 10}
    assert folded(*tens) == expected
    assert begun({7: 30, -7: 20, "07": 10, 2**70: 10}) == expected


numbers = st.integers() | st.floats()
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["$sum", "a"]), inner)
    ),
    max_leaves=5,
)
events = st.dictionaries(
    st.sampled_from(["a", "b", 1]), values | st.fixed_dictionaries({"$sum": numbers}), max_size=3
)


@given(st.lists(events, max_size=8), st.integers(0, 8))
def test_folding_from_a_snapshot_is_folding_from_the_start(data: list[Any], at: int) -> None:
    half = folded(*data[:at])
    assert repr(folded(*data[at:], state=half)) == repr(folded(*data))
