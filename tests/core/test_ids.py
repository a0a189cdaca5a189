"""Event ids: version 7 of RFC 9562, in the order of time."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from node.core.ids import RANDOM_BYTES, format_id, new_event_id

times = st.integers(0, 2**48 - 1)
chance = st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES)


@given(times, chance)
def test_an_id_is_a_uuid_of_version_7_that_begins_with_its_time(unix_ms, random):
    made = uuid.UUID(bytes=new_event_id(unix_ms, random))
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == unix_ms


@given(times, times, chance, chance)
def test_ids_are_in_the_order_of_their_times(sooner, later, one, other):
    first, second = new_event_id(sooner, one), new_event_id(later, other)
    assert (sooner < later) <= (first < second)


@given(times, chance)
def test_all_but_six_of_the_random_bits_are_used(unix_ms, random):
    # Version and variant take 4 + 2 of the 80.
    made = int.from_bytes(new_event_id(unix_ms, random), "big")
    kept = (made >> 64 & 0x0FFF, made & (1 << 62) - 1)
    source = int.from_bytes(random, "big")
    assert kept == (source >> 64 & 0x0FFF, source & (1 << 62) - 1)


@given(st.binary(min_size=16, max_size=16))
def test_the_text_form_is_the_usual_one(event_id):
    assert format_id(event_id) == str(uuid.UUID(bytes=event_id))
