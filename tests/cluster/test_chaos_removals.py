"""The judge of removed events: it accepts what the rules allow, and finds each planted lie."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from cluster.chaos.checker import Findings, Stored, check
from cluster.chaos.history import content_of
from cluster.chaos.removals import Life

S, T, OTHER = "mortal-0-1", "mortal-0-2", "stream-1"


class Mortals:
    """A cluster that does everything right, and the history of who removes events from it.

    Tests then plant a lie in `records`, in what nodes show, `hidden`, or in what they say, `said`.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.records: list[dict[str, Any]] = []
        self.rows: list[Stored] = []  # with those that are removed
        self.first: dict[str, int] = {}
        self.status: dict[str, int] = {}
        self.limits: dict[str, dict[str, int]] = {}
        self.said: dict[str, Life] = {}
        self.hidden: set[int] = set()  # positions
        self.leaked: set[int] = set()

    # --- what is done ------------------------------------------------------------------------

    def append(self, stream: str, count: int, outcome: str = "acknowledged") -> dict[str, Any]:
        first, start = self.last(stream) + 1, len(self.rows) + 1
        ids = [str(uuid.UUID(int=start + at, version=4)) for at in range(count)]
        self.now += 1
        record = {"op": "append", "ids": ids, "stream": stream, "expected": "any",
                  "sent": self.now, "done": self.now + 0.5, "outcome": outcome, "first": first,
                  "positions": list(range(start, start + count)), "over": False,
                  "strange": None}  # fmt: skip
        self.records.append(record)
        for at, event in enumerate(ids):
            self.rows.append(
                Stored(start + at, event, stream, first + at, start, content_of(event))
            )
        self.status[stream] = 200
        self._bound(stream)
        return record

    def delete(
        self, stream: str, expected: int | str = "any", outcome: str = "acknowledged",
        happens: bool = True, hard: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        if happens and outcome != "refused":
            self.first[stream] = self.last(stream) + 1
            self.status[stream] = 410 if hard else 404
            self.limits[stream] = {}
        return self._removal(stream, "end" if hard else "delete", outcome, expected=expected)

    def limit(
        self, stream: str, outcome: str = "acknowledged", happens: bool = True, **limits: int
    ) -> dict[str, Any]:
        if happens:
            self.limits[stream] = limits
            before = min(limits.get("truncate_before", 0), self.last(stream) + 1)
            self.first[stream] = max(self.first.get(stream, 0), before)
            self._bound(stream)
        first = self.first.get(stream, 0)
        return self._removal(stream, "limit", outcome, limits=limits, first=first)

    def read(self, stream: str) -> dict[str, Any]:
        events = [[row.number, row.event_id] for row in self.shown() if row.stream == stream]
        status = self.status.get(stream, 404)
        version = self.last(stream) if status == 200 else -1
        record = {"op": "stream_read", "stream": stream, "status": 410 if status == 410 else 200,
                  "version": version, "events": events}  # fmt: skip
        self.records.append(record)
        return record

    def _removal(self, stream: str, what: str, outcome: str, **fields: Any) -> dict[str, Any]:
        status = {"acknowledged": 204, "refused": 409}.get(outcome)
        record = {"op": "removal", "stream": stream, "what": what, "expected": None, "limits": {},
                  "outcome": outcome, "floats": outcome == "unknown", "status": status,
                  "first": None, "strange": None} | fields  # fmt: skip
        self.records.append(record)
        return record

    def _bound(self, stream: str) -> None:
        if "max_count" in self.limits.get(stream, {}):
            first = self.last(stream) + 1 - self.limits[stream]["max_count"]
            self.first[stream] = max(self.first.get(stream, 0), first)

    # --- what is there -----------------------------------------------------------------------

    def last(self, stream: str) -> int:
        return sum(row.stream == stream for row in self.rows) - 1

    def shown(self) -> list[Stored]:
        """What a node shows."""
        return [
            row
            for row in self.rows
            if row.position not in self.hidden
            and (row.number >= self.first.get(row.stream, 0) or row.position in self.leaked)
        ]

    def position(self, stream: str, number: int) -> int:
        return next(
            row.position for row in self.rows if (row.stream, row.number) == (stream, number)
        )

    def lives(self) -> dict[str, Life]:
        """What a node says."""
        lives = {}
        for stream, status in self.status.items():
            kept = [row.number for row in self.shown() if row.stream == stream]
            last = self.last(stream)
            lives[stream] = (
                Life(200, last, len(kept), min(kept, default=last + 1), self.limits.get(stream, {}))
                if status == 200
                else Life(status)
            )
        return {stream: life for stream, life in lives.items() if stream != OTHER} | self.said

    def judged(self, **others: dict[str, Life]) -> Findings:
        husks = [Stored(*row[:4]) for row in self.rows]
        shown = self.shown()
        lives = {"n1": self.lives(), "n2": self.lives()} | others
        return check(self.records, {"n1": shown, "n2": shown}, {"file": husks}, None, lives)

    def violations(self, **others: dict[str, Life]) -> dict[str, int]:
        return dict(self.judged(**others).violations)


@pytest.fixture
def mortals() -> Mortals:
    """S: 3 of 5 cut off, then deleted, begun anew and limited to 4; T: there; another stream."""
    cluster = Mortals()
    cluster.append(S, 5)
    cluster.append(OTHER, 3)
    cluster.limit(S, truncate_before=3)
    cluster.read(S)
    cluster.delete(S, 4)
    cluster.read(S)
    cluster.append(T, 3)
    cluster.append(S, 3)
    cluster.limit(S, max_count=4)
    cluster.append(S, 3)
    cluster.read(S)
    cluster.append(OTHER, 1)
    return cluster


def test_streams_that_lose_what_the_rules_say_are_accepted(mortals: Mortals) -> None:
    findings = mortals.judged()
    assert not findings.violations, findings.examples
    assert findings.stored == 18 and findings.removals["removed events"] == 7
    assert findings.removals["streams"] == 2 and findings.removals["read"] == 3


def test_an_event_that_no_rule_removed_is_missed(mortals: Mortals) -> None:
    mortals.hidden.add(mortals.position(T, 0))
    mortals.said[T] = Life(200, 2, 2, 1)
    assert mortals.violations() == {"taken": 1}


def test_a_removal_from_another_stream_is_found(mortals: Mortals) -> None:
    mortals.hidden.add(mortals.position(OTHER, 1))
    assert {"gap", "lost", "differing"} <= mortals.violations().keys()


@pytest.mark.parametrize("number", [2, 4, 6], ids=["truncated", "deleted", "one too many"])
def test_a_removed_event_that_is_shown_is_found(mortals: Mortals, number: int) -> None:
    mortals.leaked.add(mortals.position(S, number))
    mortals.said[S] = Life(200, 10, 5, number, {"max_count": 4})
    assert mortals.violations() == {"shown": 1}


def test_a_read_that_shows_a_removed_event_is_found(mortals: Mortals) -> None:
    mortals.records[3]["events"].insert(0, [2, mortals.rows[2].event_id])
    assert mortals.violations() == {"shown": 1}


def test_a_read_that_misses_a_kept_event_is_found(mortals: Mortals) -> None:
    mortals.records[3]["events"].pop()
    assert mortals.violations() == {"taken": 1}


def test_a_read_of_a_deleted_stream_as_if_it_was_there_is_found(mortals: Mortals) -> None:
    mortals.records[5]["version"] = 4
    assert mortals.violations() == {"risen": 1}


def test_numbers_that_begin_again_behind_a_deletion_are_found(mortals: Mortals) -> None:
    place = mortals.position(S, 5) - 1
    mortals.rows[place] = mortals.rows[place]._replace(number=0)
    assert {"gap", "moved"} <= mortals.violations().keys()


def test_what_was_deleted_for_ever_stays_so() -> None:
    mortals = Mortals()
    mortals.append(S, 2)
    mortals.delete(S, hard=True)
    mortals.read(S)
    assert not mortals.violations()
    mortals.said[S] = Life(404)
    assert mortals.violations() == {"risen": 1}
    mortals.said.clear()
    assert mortals.violations(n3={S: Life(404)}) == {"differing": 1}
    mortals.append(S, 1)
    assert mortals.violations()["risen"] == 2, "the append, and the end"


def test_a_stream_that_ends_though_nobody_asked_is_found(mortals: Mortals) -> None:
    mortals.said[T] = Life(410)
    assert mortals.violations()["ended"] == 1
    mortals.said[T] = Life(404)
    assert mortals.violations()["ended"] == 1
    mortals.said.clear()
    mortals.append(T, 1, "refused")["over"] = True
    del mortals.rows[-1]
    assert mortals.violations() == {"ended": 1}


def test_a_deletion_at_a_version_that_has_passed_is_found(mortals: Mortals) -> None:
    mortals.records[4]["expected"] = 3
    assert mortals.violations()["overtaken"] == 1


def test_a_refused_deletion_removes_nothing(mortals: Mortals) -> None:
    mortals.delete(T, 1, "refused")
    assert not mortals.violations()
    mortals.first[T] = 3
    assert mortals.violations() == {"taken": 3}


@pytest.mark.parametrize("happens", [False, True])
def test_a_removal_of_unknown_fate_may_go_either_way(mortals: Mortals, happens: bool) -> None:
    mortals.delete(T, "any", "unknown", happens=happens)
    mortals.limit(S, "unknown", happens=happens, truncate_before=9)
    findings = mortals.judged()
    assert not findings.violations, findings.examples
    assert findings.removals["delete unknown"] == findings.removals["limit unknown"] == 1


def test_a_deletion_of_unknown_fate_may_come_late_but_not_past_its_version(
    mortals: Mortals,
) -> None:
    mortals.delete(T, 2, "unknown", happens=False)
    mortals.append(T, 2)
    mortals.first[T] = 3
    assert not mortals.violations()
    mortals.first[T] = 4
    assert mortals.violations() == {"taken": 1}
    mortals.records[-2]["expected"] = "any"
    assert not mortals.violations()


def test_what_a_limit_says_to_keep_or_not_is_compared_with_the_rule(mortals: Mortals) -> None:
    told = mortals.limit(T, truncate_before=2)
    told["first"] = 1
    assert mortals.violations() == {"shown": 1}
    told["first"] = 3
    assert mortals.violations()["taken"] == 1


def test_events_that_are_too_old_go_and_all_of_them(mortals: Mortals) -> None:
    mortals.limit(T, max_age_ms=10)
    assert mortals.violations() == {"shown": 1}
    mortals.first[T] = 3
    assert not mortals.violations()
    mortals.limit(T)
    mortals.append(T, 1)
    assert not mortals.violations()
    mortals.first[T] = 4
    assert mortals.violations() == {"taken": 1}, "it was appended when there was no limit"


def test_limits_that_are_not_in_force_are_found(mortals: Mortals) -> None:
    mortals.limits[S] = {"max_count": 5}
    assert mortals.violations() == {"unlimited": 1}


def test_a_node_that_says_something_else_of_a_stream_than_it_shows_is_found(
    mortals: Mortals,
) -> None:
    mortals.said[T] = Life(200, 2, 2, 0)
    assert mortals.violations() == {"miscounted": 1}


def test_nodes_that_say_different_things_of_a_stream_are_found(mortals: Mortals) -> None:
    other = mortals.lives() | {T: Life(200, 2, 2, 1)}
    assert mortals.violations(n3=other) == {"differing": 1}


def test_a_strange_answer_to_a_removal_is_found(mortals: Mortals) -> None:
    mortals.records[2]["strange"] = "500"
    assert mortals.violations() == {"strange": 1}
