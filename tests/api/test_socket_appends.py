"""Events that come together over a WebSocket become what they become one by one, or are refused so.

A request goes the quick way and the careful one (`Careful`), and both must say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api.limits import ApiLimits
from node.api.socket_appends import SocketAppends
from node.api.socket_messages import Append, requests
from node.core.frames import decode_frame
from node.errors import InvalidEvent, RequestError
from tests.api.fakes import NOW_US

TIGHT = ApiLimits(event_bytes_max=250, nesting_max=4)
ITEM = cbor2.dumps({"n": 1})


class _Appends:
    """As much of `Appends` as an append to one stream asks."""

    def durable(self, wanted: str | None, store: str) -> bool:
        return False


class Careful(SocketAppends):
    """The one who looks at each event by itself, and has its own words for what is wrong."""

    def _together(self, *_: Any) -> None:
        return None


def said(events: Sequence[dict[str, Any]], kind: type[SocketAppends]) -> Any:
    """The frames that a request becomes, or all that its client is told instead."""
    appends = kind(_Appends(), lambda: NOW_US, TIGHT)  # type: ignore[arg-type]
    found = requests(cbor2.dumps([["append", 1, "s", events]]), TIGHT.nesting_max)
    assert type(found[0]) is Append
    try:
        return appends.prepared_at_once("store", found[0], appends.are_plain(found))[1]
    except RequestError as error:
        return type(error), error.detail, error.fields


usual = st.fixed_dictionaries(
    {
        "event_id": st.uuids().map(lambda one: one.bytes) | st.uuids().map(str),
        "event_type": st.sampled_from(["opened", "größer"]),
        "data_cbor": st.binary(max_size=30).map(cbor2.dumps) | st.just(ITEM),
    },
    optional={"metadata_cbor": st.just(ITEM)},
)
odd = st.fixed_dictionaries(
    {},
    optional={
        "event_id": st.sampled_from(["", "0" * 36, b"", b"x" * 17, 7]),
        "event_type": st.sampled_from(["", "x" * 256, "ring\a"]),
        "data": st.sampled_from([None, 1, cbor2.undefined]),
        "metadata": st.just(1),
        "data_base64": st.just(b"octets"),
        "metadata_base64": st.just(b"octets"),
        "data_content_type": st.just("text/plain"),
        "data_cbor": st.sampled_from(
            [None, b"", b"\xf7", b"\x01\x01", b"\x9f\x01\xff", b"\x81" * 5 + b"\x01"]
        ),
        "metadata_cbor": st.sampled_from([None, b"\xe5", b"\x58", cbor2.dumps("m" * 300)]),
    },
)


@given(st.lists(usual, min_size=2, max_size=5), st.integers(0, 4), odd)
def test_a_batch_is_answered_as_if_each_event_were_looked_at_alone(some, at, change):
    some[at % len(some)] |= change
    assert said(some, SocketAppends) == said(some, Careful)


@pytest.mark.parametrize(
    "beside",
    [
        *({"data": 1}, {"metadata": None}, {"data_base64": b"x"}, {"metadata_base64": b"x"}),
        {"data_content_type": "text/plain"},
    ],
    ids=str,
)
def test_a_batch_with_a_value_beside_an_encoded_item_is_refused_and_names_its_event(beside):
    one = {"event_type": "opened", "data_cbor": ITEM}
    error, _, fields = said([one, one | beside, one], SocketAppends)
    assert (error, fields["event"]) == (InvalidEvent, 1)


@pytest.mark.parametrize(("item", "kind"), [(b"\x41x", "octet-stream"), (ITEM, "cbor")])
def test_a_batch_of_encoded_items_is_stored_as_it_came(item, kind):
    some = [
        {"event_id": UUID(int=n).bytes, "event_type": "opened", "data_cbor": item} for n in range(3)
    ]
    frames = [decode_frame(frame) for frame in said(some, SocketAppends)]
    assert [frame.event_id for frame in frames] == [UUID(int=n).bytes for n in range(3)]
    assert {(frame.data, frame.data_content_type) for frame in frames} == {
        (item, f"application/{kind}")
    }
