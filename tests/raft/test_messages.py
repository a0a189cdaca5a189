"""What nodes say to one another: every field of every message is checked where it comes in."""

from __future__ import annotations

import contextlib
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.raft import entries, messages, plain
from node.raft.membership import Member, Membership

SAMPLES: dict[type, Any] = {int: 5, bool: True, str: "text", list: [], object: {"any": [1]}}
WRONG: dict[type, list[Any]] = {
    int: ["5", 5.0, None, True, -1, 2**63, [5]],
    bool: [1, "true", None],
    str: [b"text", 5, None],
    list: ["text", None, {"a": 1}, 5],
    object: [],
}
KINDS = list(zip(messages._KINDS, messages._SHAPES, strict=True))


def sample(kind: Any, shape: tuple[type, ...]) -> Any:
    """A message of this kind."""
    return kind(*(SAMPLES[expected] for expected in shape))


@pytest.mark.parametrize(("kind", "shape"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
class TestEveryKind:
    def test_it_comes_back_as_it_was(self, kind: Any, shape: tuple[type, ...]) -> None:
        message = sample(kind, shape)
        assert messages.decode(messages.encode(message)) == message

    def test_a_field_of_another_type_is_refused(self, kind: Any, shape: tuple[type, ...]) -> None:
        message = sample(kind, shape)
        for name, expected in zip(kind._fields, shape, strict=True):
            for wrong in WRONG[expected]:
                bad = messages.encode(message._replace(**{name: wrong}))
                with pytest.raises(messages.MalformedMessage):
                    messages.decode(bad)

    def test_a_missing_or_additional_field_is_refused(
        self, kind: Any, shape: tuple[type, ...]
    ) -> None:
        fields = cbor2.loads(messages.encode(sample(kind, shape)))
        for bad in (fields[:-1], [*fields, 1]):
            with pytest.raises(messages.MalformedMessage):
                messages.decode(cbor2.dumps(bad))


@pytest.mark.parametrize(
    "message",
    [
        messages.AppendEntries(1, 1, 1, 1, [[1]]),
        messages.AppendEntries(1, 1, 1, 1, [[1, b""]]),
        messages.AppendEntries(1, 1, 1, 1, [["1", b"x"]]),
        messages.AppendEntries(1, 1, 1, 1, [[-1, b"x"]]),
        messages.AppendEntries(1, 1, 1, 1, [b"x"]),
    ],
)
def test_a_list_that_holds_something_else_is_refused(message: messages.Message) -> None:
    with pytest.raises(messages.MalformedMessage):
        messages.decode(messages.encode(message))


@given(st.binary(max_size=200))
def test_bytes_are_a_message_or_malformed_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(messages.MalformedMessage):
        messages.decode(data)


cbor_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 20) | st.binary(max_size=5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)


def near(*usual: Any) -> st.SearchStrategy[list[Any]]:
    """These values, of which some are replaced by others."""
    return st.tuples(*(st.just(value) | cbor_values for value in usual)).map(list)


@given(st.lists(cbor_values, max_size=9) | cbor_values)
def test_any_value_is_a_message_or_malformed_and_nothing_else(value: Any) -> None:
    with contextlib.suppress(messages.MalformedMessage):
        messages.decode(cbor2.dumps(value))


ENTRIES = st.lists(st.tuples(st.integers(3, 6), st.binary(max_size=1)).map(list), max_size=2)
LISTS = ENTRIES | st.lists(st.integers(0, 9) | st.binary(max_size=3) | cbor_values, max_size=3)


@pytest.mark.parametrize(("kind", "shape"), [pair for pair in KINDS if list in pair[1]])
@settings(max_examples=200)
@given(st.data())
def test_fields_of_any_value_make_a_message_or_a_malformed_one(
    kind: Any, shape: tuple[type, ...], data: st.DataObject
) -> None:
    """What is taken is as `_check_lists` says, so that nobody behind it has to look again."""
    usual = [LISTS if expected is list else st.just(SAMPLES[expected]) for expected in shape]
    odd = data.draw(st.integers(0, 3 * len(shape)))  # the field, if there is one, that is another's
    fields = [data.draw(cbor_values if at == odd else one) for at, one in enumerate(usual)]
    encoded = cbor2.dumps([messages.GROUP, messages._KINDS.index(kind), *fields])
    try:
        message = messages.decode(encoded)
    except messages.MalformedMessage:
        return
    assert messages.decode(messages.encode(message)) == message == kind(*fields)
    if isinstance(message, messages.AppendEntries):
        terms = [message.prev_term, *(term for term, _ in message.entries)]
        assert terms == sorted(terms)
        assert all(type(entry) is bytes and entry for _, entry in message.entries)
    if isinstance(message, messages.Propose):
        assert {type(one) for one in message.commands} <= {bytes}
        assert len(message.sequences) == len(message.commands)
    if isinstance(message, messages.Propose | messages.Refused):
        assert {type(one) for one in message.sequences} <= {int}


@given(st.lists(near("n1", 3, [1, 2], [b"a", b"b"]), max_size=3) | cbor_values)
def test_any_value_is_an_entry_or_malformed_and_nothing_else(value: Any) -> None:
    for data in (cbor2.dumps(value), cbor2.dumps([1, value]), cbor2.dumps([1, [value]])):
        with contextlib.suppress(entries.MalformedEntry):
            for group in entries.decode(data):
                assert {type(one) for one in group.commands} <= {bytes}
                assert {type(one) for one in group.sequences} <= {int}
                assert len(group.sequences) == len(group.commands)


MEMBERSHIP = Membership(3, (Member("n1", "a:1"), Member("n2", "b:2")), Member("n3", "c:3"), 7)


@given(near(*MEMBERSHIP.plain()) | cbor_values)
def test_any_value_is_a_membership_or_malformed_and_nothing_else(value: Any) -> None:
    for data in (cbor2.dumps(value), cbor2.dumps([2, value]), cbor2.dumps([value, value])):
        with contextlib.suppress(entries.MalformedEntry):
            found = entries.decode_membership(data)
            assert entries.decode_membership(entries.encode_membership(found)) == found


def test_an_entry_comes_back_as_it_was() -> None:
    groups = [entries.Group("n1", 3, [1, 2], [b"a", b"b"]), entries.Group("n2", 1, [], [])]
    assert entries.decode(entries.encode(groups)) == groups


def test_what_is_nested_too_deep_is_no_message() -> None:
    """A kilobyte can nest a thousand deep, and whoever walks through it pays for that."""

    def question(depth: int) -> bytes:
        body: list[Any] = []
        for _ in range(depth):
            body = [body]
        return messages.encode(messages.Ask(1, "topic", body))

    assert isinstance(messages.decode(question(plain.NESTING_MAX - 3)), messages.Ask)
    for depth in (plain.NESTING_MAX, 100, 500):
        with pytest.raises(messages.MalformedMessage):
            messages.decode(question(depth))
