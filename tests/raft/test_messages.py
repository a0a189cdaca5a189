"""What nodes say to one another: every field of every message is checked where it comes in."""

from __future__ import annotations

import contextlib
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.raft import entries, messages, plain

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


@given(st.lists(cbor_values, max_size=9) | cbor_values)
def test_any_value_is_a_message_or_malformed_and_nothing_else(value: Any) -> None:
    for data in (cbor2.dumps(value), cbor2.dumps([0, 0, value]), cbor2.dumps([0, 3, value])):
        with contextlib.suppress(messages.MalformedMessage):
            messages.decode(data)


@given(cbor_values)
def test_any_value_is_an_entry_or_malformed_and_nothing_else(value: Any) -> None:
    for data in (cbor2.dumps(value), cbor2.dumps([1, value]), cbor2.dumps([1, [value]])):
        with contextlib.suppress(entries.MalformedEntry):
            entries.decode(data)


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
