"""A batch is judged and encoded in one go, and comes out as if each event had come alone."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.api import framing
from node.api.appends import Decoder
from node.api.bodies import AppendBody
from node.api.framing import Framer
from node.api.limits import ApiLimits
from node.api.media import JSON
from node.core.frames import decode_frame, frame_id
from node.errors import InvalidEvent, PayloadTooLarge
from tests.api.fakes import NOW_US

LIMITS = ApiLimits()
_decode = Decoder(AppendBody, LIMITS)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
events = st.fixed_dictionaries(
    {
        "event_id": st.uuids().map(str),
        "event_type": st.sampled_from(["opened", "größer", "x" * 200]),
    },
    optional={
        "data": values,
        "metadata": values,
        "data_base64": st.just("AAEC"),
        "data_content_type": st.just("text/plain"),
    },
).filter(lambda event: not {"data", "data_base64"} <= event.keys())


def framed(some: list[dict[str, Any]], limits: ApiLimits = LIMITS) -> list[bytes]:
    """What one request with these events becomes."""
    body = json.dumps({"events": some}).encode()
    return asyncio.run(Framer(limits).frames(_decode(body, JSON).events, body, JSON, NOW_US))


def event(event_id: Any = None, **fields: Any) -> dict[str, Any]:
    return {"event_type": "opened", "data": {"n": 1}, "event_id": event_id or str(uuid4())} | fields


@given(st.lists(events, min_size=2, max_size=8))
def test_a_batch_becomes_the_frames_that_its_events_become_alone(some):
    assert framed(some) == [frame for one in some for frame in framed([one])]


def test_events_of_a_batch_get_ids_of_their_own_where_they_bring_none():
    some = [{"event_type": "opened", "data": n} for n in range(300)]
    ids = {frame_id(frame) for frame in framed(some)}
    assert len(ids) == 300
    assert {UUID(bytes=one).version for one in ids} == {7}


def test_a_batch_may_bring_some_ids_and_leave_others_to_the_node():
    mine = str(uuid4())
    frames = framed([event(mine), {"event_type": "opened"}])
    assert str(UUID(bytes=frame_id(frames[0]))) == mine
    assert UUID(bytes=frame_id(frames[1])).version == 7


# Each pair would pass if only the texts of all ids together were looked at.
@pytest.mark.parametrize(
    "change",
    [
        lambda one, two: (one + two[0], two[1:]),
        lambda one, two: (one[:8] + two[8], two[:8] + "-" + two[9:]),
        lambda one, two: (one, " " + two[1:]),
        lambda one, two: (one, two[:-2] + "g0"),
        lambda one, two: (one, two.replace("-", "0", 1)),
        lambda one, two: (one, "é" + two[1:]),
    ],
)
def test_a_batch_with_a_bad_id_is_refused_and_names_its_event(change):
    one, two = change(str(uuid4()), str(uuid4()))
    good = str(uuid4())
    with pytest.raises(InvalidEvent) as refused:
        framed([event(good), event(one), event(two)])
    assert refused.value.fields["event"] == (2 if len(one) == 36 and one[8] == "-" else 1)


@pytest.mark.parametrize("name", ["", "x" * 256, "ring\a"])
def test_a_batch_with_a_bad_type_is_refused_and_names_its_event(name):
    with pytest.raises(InvalidEvent) as refused:
        framed([event(), event(event_type=name)])
    assert refused.value.fields["event"] == 1


def test_a_batch_with_an_event_that_is_too_large_is_refused():
    limits = ApiLimits(event_bytes_max=100)
    with pytest.raises(PayloadTooLarge) as refused:
        framed([event(), event(data="d" * 60, metadata="m" * 60)], limits)
    assert refused.value.fields["limit"] == 100


def test_a_batch_with_an_event_that_nests_too_deeply_is_refused():
    deep: Any = 1
    for _ in range(LIMITS.nesting_max + 1):
        deep = [deep]
    with pytest.raises(InvalidEvent):
        framed([event(), event(data=deep)])


def test_a_value_that_looks_like_the_seam_between_two_is_kept_as_it_is(monkeypatch):
    seam = b"sixteen octets.."  # "P" and this, as text in CBOR, has the bytes of the encoded seam
    monkeypatch.setattr(framing, "_SEAM", seam)
    monkeypatch.setattr(framing, "_ENCODED_SEAM", b"P" + seam)
    text = "P" + seam.decode()
    frames = framed([event(data=text), event(data=[text, 2])])
    assert [cbor2.loads(decode_frame(frame).data) for frame in frames] == [text, [text, 2]]
