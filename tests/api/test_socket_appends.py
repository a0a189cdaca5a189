"""Events that come together over a WebSocket become what they become one by one, or are refused so.

A request goes the quick way and the careful one (`Careful`), and both must say the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api.limits import INTEGER_KEYS_MAX, ApiLimits
from node.api.socket_appends import SocketAppends
from node.api.socket_messages import Append, requests
from node.core.frames import decode_frame
from node.errors import InvalidEvent, PayloadTooLarge, RequestError
from tests.api.fakes import NOW_US, Turns

TIGHT = ApiLimits(event_bytes_max=250, nesting_max=4)
ITEM = cbor2.dumps({"n": 1})
ODD_KEY = cbor2.dumps({1: 1})  # such an item is not plain for certain


class _Appends:
    """As much of `Appends` as an append to one stream asks."""

    def durable(self, wanted: str | None, store: str) -> bool:
        return False


class Careful(SocketAppends):
    """The one who looks at each event by itself, and has its own words for what is wrong."""

    def _together(self, *_: Any) -> None:
        return None


def said(
    events: Sequence[dict[str, Any]], kind: type[SocketAppends], limits: ApiLimits = TIGHT
) -> Any:
    """The frames that a request becomes, or all that its client is told instead."""
    appends = kind(_Appends(), lambda: NOW_US, limits)  # type: ignore[arg-type]
    found = asyncio.run(requests(cbor2.dumps([["append", 1, "s", events]]), limits.nesting_max))
    assert type(found[0]) is Append
    try:
        if appends.are_plain(found):
            return appends.prepared_at_once("store", found[0])[1]
        return asyncio.run(appends.prepared("store", found[0], plain=False))[1]
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


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"event_id": "x"}, {"data_cbor": b"\xf7"}),
        ({"data_cbor": b"\xf7"}, {"event_id": "x"}),
        ({"metadata_cbor": b"\xa1\xf6\x01"}, {"event_type": ""}),
    ],
    ids=str,
)
def test_the_first_of_several_events_that_are_wrong_is_named(first, second):
    good = {"event_type": "opened", "data_cbor": ODD_KEY}
    error, detail, fields = said([good, good | first, good | second], SocketAppends)
    assert (error, fields) == (InvalidEvent, {"event": 1})
    assert detail.startswith("event 1: ")


def test_an_encoded_item_with_many_integer_keys_is_too_large():
    many = cbor2.dumps(dict.fromkeys(range(INTEGER_KEYS_MAX + 1)))
    events = [{"event_type": "opened", "metadata_cbor": many}]
    error, detail, fields = said(events, SocketAppends, ApiLimits())
    assert (error, detail[:14]) == (PayloadTooLarge, "metadata_cbor:")
    assert fields == {"limit": INTEGER_KEYS_MAX, "actual": INTEGER_KEYS_MAX + 1}


def test_an_encoded_item_that_is_too_large_is_not_looked_at():
    error, _, fields = said([{"event_type": "opened", "data_cbor": b"\xff" * 251}], SocketAppends)
    assert (error, fields) == (PayloadTooLarge, {"limit": 250, "actual": 252})


async def test_while_items_with_integer_keys_are_judged_others_get_turns():
    limits = ApiLimits()
    appends = SocketAppends(_Appends(), lambda: NOW_US, limits)  # type: ignore[arg-type]
    for count, length in ((30, 10_000), (9_000, 25)):
        events = [{"event_type": "A", "data_cbor": cbor2.dumps({1: [1] * length})}] * count
        found = await requests(cbor2.dumps([["append", 1, "s", events]]), limits.nesting_max)
        assert type(found[0]) is Append and not appends.are_plain(found)
        async with Turns() as turns:
            await appends.prepared("store", found[0], plain=False)
        assert turns.longest_s < turns.took_s / 5


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
