"""What the benchmark sends and how it shows figures; the measuring itself needs nodes and wrk."""

from __future__ import annotations

import io
import json

import cbor2
import pytest
from rich.console import Console

from cluster.bench.report import Report, Series, ratio
from cluster.bench.wrk import DATA_BYTES, cbor_events_head, event_template


def test_the_events_data_is_as_long_as_a_value_of_the_peer() -> None:
    data = event_template()["data"]
    assert len(json.dumps(data, separators=(",", ":"))) == DATA_BYTES == 256


@pytest.mark.parametrize("events", [1, 23, 100, 1_000])
def test_a_cbor_body_can_be_put_together_from_encoded_events(events: int) -> None:
    item = cbor2.dumps(event_template("id", "order"))
    body = cbor_events_head(events) + item * events
    assert cbor2.loads(body) == {"events": [event_template("id", "order")] * events}


def test_a_series_shows_its_median_with_its_spread() -> None:
    assert str(Series([12_800.0, 12_100.0, 13_050.4])) == "12,800 [12,100..13,050]"
    assert str(Series([4.61, 0.9])) == "2.76 [0.9..4.61]"


def test_a_ratio_is_of_medians_so_that_one_bad_repetition_does_not_decide() -> None:
    assert ratio(Series([2.0, 2.0, 90.0]), Series([1.0, 1.0, 1.0])) == 2.0


def test_a_verdict_stands_beside_what_was_asked_for() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    Report(console).verdict("p99", "1.20 x", "<= 1.5 x", met=True)
    assert "p99: 1.20 x (asked for: <= 1.5 x)" in console.export_text()
