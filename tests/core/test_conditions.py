"""Conditions on what events hold: against a plain reference, and at their edges."""

from __future__ import annotations

import math
import re
import time
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core import conditions
from node.core.conditions import ABSENT, ANY_OF, EXISTS, PREFIX, Condition, Inspector
from node.core.fields import MalformedCommand
from node.core.frames import encode_frame
from tests.core.observed import event_id

NOTHING = object()
BIG = 2**300

KEYS = st.sampled_from(["a", "b", "a.b", "0", "1", "-1", "", "é"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2, 2**53, 2**53 + 1, BIG])
    | st.sampled_from([0.0, -0.0, 1.0, 1.5, float(2**53), math.inf, math.nan])
    | st.sampled_from(["", "1", "a", "ab", "é"])
    | st.sampled_from([b"", b"1", b"a", b"ab"])
)
PAYLOADS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS | st.sampled_from([2, -2, BIG]), inner, max_size=4)
    ),
    max_leaves=12,
)
COMPARABLE = SCALARS.filter(lambda plain: plain == plain)


@st.composite
def wishes(draw: st.DrawFn) -> tuple[list[str], int, list[Any]]:
    """A path, a test and its plain values."""
    root = draw(st.sampled_from(conditions.ROOTS))
    path = [root, *draw(st.lists(KEYS | st.sampled_from(["2", "-2", str(BIG)]), max_size=3))]
    test = draw(st.sampled_from([ANY_OF, PREFIX, EXISTS, ABSENT]))
    if test == ANY_OF:
        return path, test, draw(st.lists(COMPARABLE, min_size=1, max_size=3))
    if test == PREFIX:
        return path, test, [draw(st.sampled_from(["", "a", "é", b"", b"a"]))]
    return path, test, []


def encoded(data: bytes, metadata: bytes = b"\xf6") -> bytes:
    return encode_frame(event_id(1), "T", data, metadata, "", "")


def holds(path: list[str], test: int, plain: list[Any], data: Any, metadata: Any = None) -> bool:
    given = cbor2.loads(cbor2.dumps([(path, test, plain)]))
    inspector = Inspector(conditions.decoded(given))
    return inspector.holds(encoded(cbor2.dumps(data), cbor2.dumps(metadata)))


def reference(path: list[str], test: int, plain: list[Any], payload: Any) -> bool:
    """What a condition means, told in the words of JSON."""
    for key in path[1:]:
        if isinstance(payload, dict):
            payload = {str(one): value for one, value in payload.items()}.get(key, NOTHING)
        elif isinstance(payload, list):
            payload = {str(at): value for at, value in enumerate(payload)}.get(key, NOTHING)
        else:
            payload = NOTHING
    if test == EXISTS:
        return payload is not NOTHING and (len(path) > 1 or payload is not None)
    if test == ABSENT:
        return not reference(path, EXISTS, plain, payload) if len(path) == 1 else payload is NOTHING
    if test == PREFIX:
        return type(payload) is type(plain[0]) and payload[: len(plain[0])] == plain[0]
    return any(equal(payload, one) for one in plain)


def equal(one: Any, other: Any) -> bool:
    numbers = (int, float)
    if type(one) in numbers and type(other) in numbers:
        return one == other
    return type(one) is type(other) and type(one) in (type(None), bool, str, bytes) and one == other


@given(st.lists(wishes(), min_size=1, max_size=3), PAYLOADS, PAYLOADS)
def test_conditions_hold_where_the_reference_says_so(wanted, data, metadata):
    data, metadata = (_with_one_key_each(one) for one in (data, metadata))
    given = cbor2.loads(cbor2.dumps(wanted))
    found = Inspector(conditions.decoded(given)).holds(
        encoded(cbor2.dumps(data), cbor2.dumps(metadata))
    )
    payloads = {"data": data, "metadata": metadata}
    assert found == all(reference(*wish, payloads[wish[0][0]]) for wish in wanted)


def _with_one_key_each(value: Any) -> Any:
    """Without keys that are one in JSON, which no event has."""
    if isinstance(value, list):
        return [_with_one_key_each(one) for one in value]
    if isinstance(value, dict):
        return {
            key: _with_one_key_each(one)
            for key, one in value.items()
            if isinstance(key, str) or str(key) not in value
        }
    return value


@pytest.mark.parametrize(
    ("stored", "wanted", "expected"),
    [
        (1, 1.0, True),
        (1.0, 1, True),
        (-0.0, 0, True),
        (2**53 + 1, float(2**53), False),
        (BIG, float(BIG), True),
        (BIG + 1, BIG, False),
        (1e308, 1e308, True),
        (math.inf, math.inf, True),
        (math.nan, 0, False),
        (True, 1, False),
        (1, True, False),
        (0, False, False),
        (False, False, True),
        (None, None, True),
        (None, 0, False),
        ("1", 1, False),
        ("a", b"a", False),
        (b"a", "a", False),
        (b"a", b"a", True),
        ("e\u0301", "\u00e9", False),
        ([1], 1, False),
        ({}, None, False),
    ],
)
def test_what_is_equal_to_what(stored, wanted, expected):
    assert holds(["data"], ANY_OF, [wanted], stored) is expected
    assert holds(["metadata", "k"], ANY_OF, ["other", wanted], None, {"k": stored}) is expected


@pytest.mark.parametrize(
    ("keys", "data", "expected"),
    [
        ([], 7, True),
        (["a", "b"], {"a": {"b": 7}}, True),
        (["a.b"], {"a.b": 7}, True),
        (["a", "b"], {"a.b": 7}, False),
        ([""], {"": 7}, True),
        (["1"], {"1": 7}, True),
        (["1"], {1: 7}, True),
        (["-1"], {-1: 7}, True),
        (["01"], {1: 7}, False),
        (["+1"], {1: 7}, False),
        (["\u0661"], {1: 7}, False),  # an Arabic digit
        ([str(BIG)], {BIG: 7}, True),
        (["1"], [0, 7], True),
        (["a", "0", "b"], {"a": [{"b": 7}]}, True),
        (["2"], [0, 7], False),
        (["-1"], [0, 7], False),
        (["0"], "7", False),
        (["a"], None, False),
    ],
)
def test_where_keys_lead(keys, data, expected):
    assert holds(["data", *keys], ANY_OF, [7], data) is expected
    assert holds(["data", *keys], EXISTS, [], data) is (expected or data == 7)
    assert holds(["metadata", *keys], ANY_OF, [7], 7, data) is expected


def test_the_payload_exists_where_it_is_not_null_and_a_null_inside_exists():
    assert not holds(["data"], EXISTS, [], None) and holds(["data"], ABSENT, [], None)
    assert holds(["data"], EXISTS, [], {}) and holds(["data"], ANY_OF, [None], None)
    assert holds(["data", "k"], EXISTS, [], {"k": None})
    assert holds(["data", "k"], ABSENT, [], {"j": 1})


@pytest.mark.parametrize(
    "frame",
    [
        encoded(b""),
        encoded(b"\xff"),
        encoded(b"\x81" * 100_000),
        encoded(b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff"),
        encoded(b"\x62\xff\xff"),
        encoded(b"\xc0\x01"),  # a date of the wrong kind
        encoded(b"\xa1\x61k\x01")[:-3],
        b"",
        b"\x01",
    ],
)
def test_in_what_cannot_be_decoded_there_is_nothing(frame):
    for test, plain in ((EXISTS, []), (ANY_OF, [1]), (PREFIX, [""])):
        given = cbor2.loads(cbor2.dumps([(["data", "k"], test, plain)]))
        assert not Inspector(conditions.decoded(given)).holds(frame)
    assert Inspector([Condition(("data", "k"), ABSENT)]).holds(frame)
    assert Inspector([Condition(("data",), ABSENT)]).holds(frame)


@given(st.binary(max_size=40))
def test_whatever_stands_in_an_event_is_judged(octets):
    inspector = Inspector([Condition(("data", "0"), EXISTS), Condition(("metadata",), ABSENT)])
    inspector.holds(encoded(octets, octets))
    inspector.holds(octets)
    assert inspector.decoded_bytes == len(encoded(octets, octets)) + len(octets)


def test_an_event_is_judged_alike_wherever_and_whenever_it_is():
    """An expression is compiled by calls within calls, and only if it was not compiled before."""
    nested = "(?:" * 200 + "a" + ")*" * 200
    event = encoded(b"\xa2\x61k\x07\x61r\xd8\x23" + cbor2.dumps(nested))
    condition = Condition(("data", "k"), ANY_OF, ((2, 7),))

    def judged(calls: int) -> bool:
        return judged(calls - 1) if calls else Inspector([condition]).holds(event)

    re.purge()
    deep_at_first = judged(700)
    shallow = judged(0)
    assert deep_at_first == shallow == judged(700)


DEEPEST = ["data", *"abcdefghijklmnop"]


@pytest.mark.parametrize(
    "given",
    [
        [(DEEPEST, EXISTS, [])],
        [(["data", "x" * 255], EXISTS, [])],
        [(["data"], ANY_OF, [*range(64)])],
        [(["data"], ANY_OF, ["x" * 1_021, b"x" * 1_021, 2**8_000])],
        [(["data"], PREFIX, [""])],
        [(["data", str(n)], EXISTS, []) for n in range(16)],
        [(["data", k], ANY_OF, [n * 1e307 for n in range(1, 18)]) for k in "abcdefg"],
    ],
)
def test_conditions_up_to_their_bounds_come_back_as_they_were_sent(given):
    found = conditions.decoded(cbor2.loads(cbor2.dumps(given)))
    again = conditions.decoded(cbor2.loads(cbor2.dumps(conditions.described(found))))
    assert again == found and len(found) == len(given)


@pytest.mark.parametrize(
    "given",
    [
        None,
        [],
        [(["data"], EXISTS)],
        [([], EXISTS, [])],
        [(["x"], EXISTS, [])],
        [(["data", 1], EXISTS, [])],
        [([*DEEPEST, "q"], EXISTS, [])],
        [(["data", "é" * 128], EXISTS, [])],
        [(["data"], 4, [])],
        [(["data"], True, [])],
        [(["data"], EXISTS, [1])],
        [(["data"], ANY_OF, [])],
        [(["data"], ANY_OF, [[1]])],
        [(["data"], ANY_OF, [{}])],
        [(["data"], ANY_OF, [math.nan])],
        [(["data"], ANY_OF, [*range(65)])],
        [(["data"], ANY_OF, ["x" * 1_022])],
        [(["data"], PREFIX, [1])],
        [(["data"], PREFIX, ["a", "b"])],
        [(["data", str(n)], EXISTS, []) for n in range(17)],
        [(["data"], ANY_OF, [str(n) + "x" * 1_000 for n in range(17)])],
        [(["data", k], ANY_OF, [n * 1e307 for n in range(1, 18)]) for k in "abcdefgh"],
    ],
)
def test_what_is_no_condition_is_refused(given):
    with pytest.raises(MalformedCommand):
        conditions.decoded(cbor2.loads(cbor2.dumps(given)))


def test_in_an_event_with_any_tag_but_those_of_big_integers_there_is_nothing():
    there = Inspector([Condition(("data", "k"), ANY_OF, ((2, 7),))])
    contents = [b"\x00", b"\x61a", b"\x41a", b"\x82\x01\x02", b"\x80", b"\xa0"]
    for tag in (*range(0x500), 43_000, 55_799, 2**63):
        head = bytearray(cbor2.dumps(tag))
        head[0] |= 0xC0
        for content in contents:
            found = there.holds(encoded(b"\xa2\x61k\x07\x61r" + head + content))
            assert found == (tag in (2, 3) and content == b"\x41a")


# Integers are what they hash to, modulo this.
HASHED = 2**61 - 1


def alike(count: int) -> bytes:
    """A map whose keys all hash to the same, and one more."""
    keys = (((at + 100) * HASHED).to_bytes(10, "big") for at in range(count))
    head = b"\xb9" + (count + 1).to_bytes(2, "big")
    return head + b"".join(b"\xc2\x4a" + key + b"\x00" for key in keys) + b"\x61k\x07"


def test_an_event_whose_keys_are_alike_to_a_map_is_judged_as_soon_as_another():
    there = Inspector([Condition(("data", "k"), ANY_OF, ((2, 7),))])
    assert there.holds(encoded(alike(64)))
    began = time.process_time()
    assert not there.holds(encoded(alike(8_000)))
    assert time.process_time() - began < 0.2
