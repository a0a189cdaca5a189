"""A batch is judged and encoded in one go, and comes out as if each event had come alone.

What is said of a good batch and of a bad one is compared with the careful way (`Careful`), which
takes each event by itself.
"""

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
from node.api.media import CBOR, JSON, Media
from node.core.frames import decode_frame, frame_id
from node.errors import InvalidEvent, PayloadTooLarge, RequestError
from tests.api.fakes import NOW_US, Turns

LIMITS = ApiLimits()

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


# What may be wrong with an event, or unusual about it, by the encoding that can say so.
_odd_ids = st.sampled_from(["", "0" * 36, "01890A5D-AC96-774B-BCCE-B302099A8057", 7, [1]])
_odd_types = st.sampled_from(["", "x" * 255, "x" * 256, "ring\a", "é" * 128])
_odd_fields = {
    "event_id": _odd_ids,
    "event_type": _odd_types,
    "data": values | st.just("d" * 300),
    "metadata": values | st.just("m" * 300),
    "data_base64": st.sampled_from(["AAEC", ""]),
    "metadata_base64": st.just("AAEC"),
    "data_content_type": st.sampled_from(["text/plain", "", "a\nb"]),
}
_cbor_values = st.sampled_from(
    [
        *(b"", b"octets", {1: "one"}, {1: 1, "1": 2}, {b"key": 1}, [b"inner"], [[[[[1]]]]]),
        *(2**64, -(2**70), 2**14_000, float("nan"), float("inf"), -0.0, cbor2.undefined),
        *(cbor2.CBORSimpleValue(16), cbor2.CBORTag(1, 2), cbor2.CBORTag(4_000, "x"), "größer"),
    ]
)
_odd_cbor_fields = {
    **_odd_fields,
    "event_id": _odd_ids | st.binary(min_size=15, max_size=17),
    "data": values | _cbor_values,
    "metadata": _cbor_values,
    "data_base64": st.just(b"octets"),
    "metadata_base64": st.just(b"octets"),
}
TIGHT = ApiLimits(event_bytes_max=250, nesting_max=4)


class Careful(Framer):
    """The one who looks at each event by itself, and has its own words for what is wrong."""

    def frames_of_items(self, *_: Any) -> None:
        return None


def body_of(some: list[dict[str, Any]], media: Media) -> bytes:
    return json.dumps({"events": some}).encode() if media is JSON else cbor2.dumps({"events": some})


def framed(
    some: list[dict[str, Any]],
    limits: ApiLimits = LIMITS,
    media: Media = JSON,
    framer: type[Framer] = Framer,
) -> list[bytes]:
    """What one request with these events becomes."""
    body = body_of(some, media)

    async def taken() -> list[bytes]:
        events = (await Decoder(AppendBody, limits)(body, media)).events
        return await framer(limits).frames(events, body, media, NOW_US)

    return asyncio.run(taken())


def said(some: list[dict[str, Any]], media: Media, framer: type[Framer]) -> Any:
    """The frames that a request becomes, or all that its client is told instead."""
    try:
        return framed(some, TIGHT, media, framer)
    except RequestError as error:
        return type(error), error.detail, error.fields


def event(event_id: Any = None, **fields: Any) -> dict[str, Any]:
    return {"event_type": "opened", "data": {"n": 1}, "event_id": event_id or str(uuid4())} | fields


@pytest.mark.parametrize("media", [JSON, CBOR], ids=["json", "cbor"])
@given(some=st.lists(events, min_size=2, max_size=8))
def test_a_batch_becomes_the_frames_that_its_events_become_alone(media, some):
    assert framed(some, media=media) == [
        frame for one in some for frame in framed([one], media=media)
    ]


def _with_one_odd(usual: Any, odd: dict[str, Any]) -> Any:
    """A batch in which one event is not like the others."""
    changed = st.fixed_dictionaries({}, optional=odd).filter(bool)
    return st.builds(
        lambda some, at, change: [
            one | change if place == at % len(some) else one for place, one in enumerate(some)
        ],
        *(st.lists(usual, min_size=2, max_size=5), st.integers(0, 4), changed),
    )


_usual = st.fixed_dictionaries(
    {"event_id": st.uuids().map(str), "event_type": st.just("opened"), "data": texts}
)
_usual_cbor = _usual.map(lambda event: event | {"event_id": UUID(event["event_id"]).bytes})


@given(_with_one_odd(_usual, _odd_fields))
def test_a_json_batch_with_an_odd_event_is_answered_as_if_it_were_looked_at_alone(some):
    assert said(some, JSON, Framer) == said(some, JSON, Careful)


@given(_with_one_odd(_usual | _usual_cbor, _odd_cbor_fields))
def test_a_cbor_batch_with_an_odd_event_is_answered_as_if_it_were_looked_at_alone(some):
    assert said(some, CBOR, Framer) == said(some, CBOR, Careful)


def test_a_cbor_batch_of_octets_keeps_their_content_type():
    some = [event(uuid4().bytes, data=bytes([n]), metadata={"n": n}) for n in range(3)]
    frames = [decode_frame(frame) for frame in framed(some, media=CBOR)]
    assert {frame.data_content_type for frame in frames} == {"application/octet-stream"}
    assert {frame.metadata_content_type for frame in frames} == {"application/cbor"}


def test_a_cbor_batch_of_octets_and_others_keeps_the_content_type_of_each():
    some = [event(uuid4().bytes, data=data) for data in (b"octets", "text", b"octets")]
    kinds = [decode_frame(frame).data_content_type for frame in framed(some, media=CBOR)]
    octets, other = "application/octet-stream", "application/cbor"
    assert kinds == [octets, other, octets]


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


async def test_while_values_that_may_be_anything_are_judged_others_get_turns():
    body = body_of([event(data={1: [1] * 10_000}) for _ in range(80)], CBOR)
    events = (await Decoder(AppendBody, LIMITS)(body, CBOR)).events
    async with Turns() as turns:
        assert len(await Framer(LIMITS).frames(events, body, CBOR, NOW_US)) == 80
    assert turns.longest_s < turns.took_s / 5


def test_a_batch_with_an_event_that_nests_too_deeply_is_refused():
    deep: Any = 1
    for _ in range(LIMITS.nesting_max + 1):
        deep = [deep]
    with pytest.raises(PayloadTooLarge) as refused:
        framed([event(), event(data=deep)])
    assert refused.value.fields["limit"] == LIMITS.nesting_max


def test_a_value_that_looks_like_the_seam_between_two_is_kept_as_it_is(monkeypatch):
    seam = b"sixteen octets.."  # "P" and this, as text in CBOR, has the bytes of the encoded seam
    monkeypatch.setattr(framing, "_SEAM", seam)
    monkeypatch.setattr(framing, "_ENCODED_SEAM", b"P" + seam)
    text = "P" + seam.decode()
    frames = framed([event(data=text), event(data=[text, 2])])
    assert [cbor2.loads(decode_frame(frame).data) for frame in frames] == [text, [text, 2]]
