"""Batches and digests of the demo, without a cluster."""

from __future__ import annotations

import cbor2
import pytest

from cluster.demo_flights import FlightEvent
from cluster.demo_transfer import EVENTS_IN_BATCH, HistoryDigest, TransferFailed, prepare


def flight_events(count: int, streams: int) -> list[FlightEvent]:
    return [
        FlightEvent(
            moment=number,
            stream=f"aircraft-{number % streams}",
            event_id=f"00000000-0000-5000-8000-{number:012x}",
            event_type="FlightDeparted",
            data=cbor2.dumps({"flight": number}),
        )
        for number in range(count)
    ]


def test_every_event_is_in_one_batch_and_streams_stay_in_order_in_one_lane() -> None:
    events = flight_events(3 * EVENTS_IN_BATCH + 17, streams=10)
    lanes, _ = prepare(events, lanes=3)
    seen: dict[str, list[int]] = {}
    lane_of: dict[str, int] = {}
    for lane, batches in enumerate(lanes):
        for batch in batches:
            sent = cbor2.loads(batch.body)["events"]
            assert len(sent) == batch.events <= EVENTS_IN_BATCH
            for event in sent:
                assert lane_of.setdefault(event["stream"], lane) == lane
                seen.setdefault(event["stream"], []).append(event["data"]["flight"])
    expected: dict[str, list[int]] = {}
    for number, event in enumerate(events):
        expected.setdefault(event.stream, []).append(number)
    assert seen == expected


def test_a_batch_says_which_stream_versions_its_answer_must_show() -> None:
    lanes, digest = prepare(flight_events(25, streams=10), lanes=1)
    ((batch,),) = lanes
    assert batch.versions == {f"aircraft-{n}": (2 if n < 5 else 1) for n in range(10)}
    assert (digest.streams, digest.events) == (10, 25)


def test_digests_agree_when_streams_interleave_differently_and_only_then() -> None:
    def digest(*events: tuple[str, int, bytes]) -> str:
        result = HistoryDigest()
        for stream, number, data in events:
            result.add(stream, number, "Type", data)
        return result.hexdigest()

    one = digest(("a", 0, b"x"), ("b", 0, b"y"), ("a", 1, b"z"))
    assert digest(("b", 0, b"y"), ("a", 0, b"x"), ("a", 1, b"z")) == one
    assert digest(("b", 0, b"y"), ("a", 0, b"z"), ("a", 1, b"x")) != one
    assert digest(("a", 0, b"x"), ("b", 0, b"y")) != one
    assert digest() != one


def test_a_digest_refuses_a_gap_and_a_repetition() -> None:
    digest = HistoryDigest()
    digest.add("a", 0, "Type", b"x")
    for number in (0, 2):
        with pytest.raises(TransferFailed, match="where 1 is due"):
            digest.add("a", number, "Type", b"x")
