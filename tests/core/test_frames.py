"""Frames: what goes in comes out, the offsets are right, and nothing else passes for a frame."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.frames import (
    ABSENT,
    decode_frame,
    encode_frame,
    frame_id,
    frame_type,
    frame_type_bytes,
    is_frame,
)
from tests.core.observed import frame

ID = bytes(range(16))
LENGTHS = [1, 2, 22, 23, 24, 25, 127, 128, 254, 255]
content_types = st.sampled_from(
    ["application/json", "application/cbor", "application/octet-stream", "text/plain", ""]
)
event_types = st.text(min_size=1, max_size=255).filter(lambda text: len(text.encode()) <= 255)


@given(
    st.binary(min_size=16, max_size=16),
    event_types,
    st.binary(max_size=300),
    st.binary(max_size=300),
    content_types,
    content_types,
)
def test_a_frame_gives_back_what_was_encoded(
    event_id, event_type, data, metadata, data_type, metadata_type
):
    encoded = encode_frame(event_id, event_type, data, metadata, data_type, metadata_type)
    assert is_frame(encoded)
    decoded = decode_frame(encoded)
    assert decoded == (event_id, event_type, data_type, metadata_type, data, metadata)
    assert frame_id(encoded) == event_id
    assert frame_type(encoded) == event_type
    assert frame_type_bytes(encoded) == event_type.encode()


@pytest.mark.parametrize("letter", ["x", "é", "日", "😀"])
def test_the_type_is_found_at_every_length(letter):
    width = len(letter.encode())
    for length in range(1, 256):
        event_type = letter * (length // width) + "x" * (length % width)
        encoded = encode_frame(ID, event_type, b"\x01", ABSENT, "application/json", "a/b")
        assert is_frame(encoded), length
        assert (frame_id(encoded), frame_type(encoded)) == (ID, event_type)


@pytest.mark.parametrize(
    ("content_type", "stored"),
    [
        ("application/json", 0),
        ("application/cbor", 1),
        ("application/octet-stream", 2),
        ("text/csv", "text/csv"),
    ],
)
def test_usual_content_types_take_one_byte_and_others_are_kept(content_type, stored):
    encoded = encode_frame(ID, "T", b"\x01", ABSENT, content_type, content_type)
    assert cbor2.loads(encoded)[3:5] == [stored, stored]
    assert decode_frame(encoded)[2:4] == (content_type, content_type)


def test_the_layout_on_disk_and_in_logs_does_not_change():
    encoded = encode_frame(ID, "Happened", b"\x18\x2a", ABSENT, "application/json", "a/b")
    assert encoded.hex() == (
        "870150" + ID.hex() + "68" + b"Happened".hex() + "00" + "63612f62" + "42182a" + "41f6"
    )


def test_the_smallest_frame_is_a_frame_and_one_byte_less_is_none():
    smallest = encode_frame(ID, "T", b"", b"", "application/json", "application/json")
    assert is_frame(smallest)
    assert not is_frame(smallest[:-1])


@pytest.mark.parametrize(
    "event_type",
    ["", "x" * 256, "é" * 128, 7, None, b"bytes", ["list"]],
    ids=["empty", "256 bytes", "256 bytes in 128 letters", "number", "null", "bytes", "list"],
)
def test_a_wrong_type_makes_no_frame(event_type):
    assert not is_frame(cbor2.dumps([1, ID, event_type, 0, 0, b"\x01" * 300, b"\xf6"]))


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "text",
        [],
        bytearray(frame(1)),
        b"",
        frame(1)[:24],
        cbor2.dumps([2, ID, "T", 0, 0, b"\x01", b"\xf6"]),
        cbor2.dumps([1, ID[:15], "T", 0, 0, b"\x01", b"\xf6"]),
        cbor2.dumps([1, ID + b"x", "T", 0, 0, b"\x01", b"\xf6"]),
        cbor2.dumps([1, ID.hex()[:16], "T", 0, 0, b"\x01", b"\xf6"]),
        cbor2.dumps([1, ID, "T", 0, 0, b"\x01"]),
        cbor2.dumps({1: ID}),
    ],
)
def test_other_values_are_no_frames(value):
    assert not is_frame(value)


@pytest.mark.parametrize("broken", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"ok\x80"])
def test_a_type_that_is_not_utf8_makes_no_frame(broken):
    head = b"\x87\x01\x50" + ID
    assert not is_frame(head + bytes([0x60 + len(broken)]) + broken + b"\x00\x00\x41\x01\x41\xf6")
    padded = broken + b"x" * 30
    assert not is_frame(head + bytes([0x78, len(padded)]) + padded + b"\x00\x00\x41\x01\x41\xf6")


def test_a_length_that_is_not_in_its_shortest_form_makes_no_frame():
    # Else two frames with the same content would differ, and so would their types.
    head = b"\x87\x01\x50" + ID
    assert not is_frame(head + b"\x78\x05Short" + b"\x00\x00\x41\x01\x41\xf6")
    assert not is_frame(head + b"\x79\x00\x05Short" + b"\x00\x00\x41\x01\x41\xf6")


@pytest.mark.parametrize("length", LENGTHS)
def test_a_frame_that_ends_inside_its_type_is_none(length):
    whole = frame(1, "x" * length)
    inside = 20 + (length > 23) + length - 1
    assert not is_frame(whole[:inside])


@st.composite
def all_but_frames(draw):
    """Bytes behind the head of a frame and the length of its type; hardly others ever pass."""
    length = draw(
        st.sampled_from([b"\x61", b"\x64", b"\x77", b"\x78\x18", b"\x78\x19", b"\x79\x00"])
    )
    name = draw(st.text("aé日😀", min_size=1, max_size=26)).encode()
    cut = draw(st.integers(0, 3))
    tail = draw(st.binary(max_size=30))
    return b"\x87\x01\x50" + ID + length + name[cut:] + tail


@given(st.binary(max_size=64) | all_but_frames())
def test_of_whatever_passes_for_a_frame_id_and_type_can_be_read(value):
    if is_frame(value):
        assert len(frame_id(value)) == 16
        assert 1 <= len(frame_type(value).encode()) <= 255
