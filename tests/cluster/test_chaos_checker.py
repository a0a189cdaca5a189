"""The judge of a chaos run: it accepts an honest history, and finds each lie that is planted."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from cluster.chaos.checker import Findings, Stored, check
from cluster.chaos.history import History, content_of, read_history


def identifier(number: int) -> str:
    return str(uuid.UUID(int=number, version=4))


class Honest:
    """A cluster that does everything right, one append after the other, and its history.

    Tests then plant a lie in `records`, or in what the nodes hold in the end, `rows`.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.records: list[dict[str, Any]] = []
        self.rows: list[Stored] = []

    def append(
        self, *numbers: int, stream: str = "s", outcome: str = "acknowledged", expected: Any = "any"
    ) -> dict[str, Any]:
        """An append of events with these numbers; it is stored unless it was refused."""
        ids = [identifier(number) for number in numbers]
        first = sum(row.stream == stream for row in self.rows)
        start = len(self.rows) + 1
        record = {"op": "append", "ids": ids, "stream": stream, "expected": expected,
                  "sent": self._tick(), "done": self._tick(), "outcome": outcome, "first": first,
                  "positions": list(range(start, start + len(ids))), "strange": None}  # fmt: skip
        self.records.append(record)
        if outcome != "refused":
            for offset, event in enumerate(ids):
                self.rows.append(
                    Stored(start + offset, event, stream, first + offset, start, content_of(event))
                )
        return record

    def read(self, level: str = "linearizable", token: int = 0) -> dict[str, Any]:
        """A read of everything that is stored by now."""
        record = {"op": "read", "reader": "r", "level": level, "node": "n1", "sent": self._tick(),
                  "done": self._tick(), "after": 0, "head": len(self.rows), "token": token,
                  "events": [[row.position, row.event_id] for row in self.rows]}  # fmt: skip
        self.records.append(record)
        return record

    def _tick(self) -> float:
        self.now += 1
        return self.now

    def judged(self, **others: list[Stored]) -> Findings:
        return check(self.records, {"n1": self.rows} | others, {})


@pytest.fixture
def honest() -> Honest:
    """Four appends in two streams, one of them refused, with reads between them."""
    cluster = Honest()
    cluster.append(1, 2)
    cluster.append(3, stream="t", expected=-1)
    cluster.read()
    cluster.append(4, outcome="refused")
    cluster.append(5, outcome="unknown")
    cluster.append(6, expected=2)
    cluster.read("session", token=3)
    cluster.read("local")
    cluster.append(7, stream="t")
    return cluster


def test_an_honest_history_is_accepted(honest: Honest) -> None:
    findings = honest.judged(n2=list(honest.rows), n3=list(honest.rows))
    assert not findings.violations
    assert findings.events == {"acknowledged": 5, "refused": 1, "unknown": 1, "unknown_stored": 1}
    assert findings.stored == 6 and findings.reads.total() == 3


def test_an_unknown_append_may_be_missing() -> None:
    cluster = Honest()
    cluster.append(1, outcome="unknown")
    cluster.rows.clear()
    assert not cluster.judged().violations


def test_a_lost_event_is_found(honest: Honest) -> None:
    honest.rows.pop()
    assert honest.judged().violations["lost"] == 1


def test_a_doubled_event_is_found(honest: Honest) -> None:
    last = honest.rows[-1]
    honest.rows.append(last._replace(position=last.position + 1, number=last.number + 1))
    assert honest.judged().violations == {"doubled": 1}


def test_an_event_that_stands_elsewhere_than_was_told_is_found(honest: Honest) -> None:
    one, other = honest.rows[2], honest.rows[5]
    honest.rows[2] = one._replace(event_id=other.event_id, data=other.data)
    honest.rows[5] = other._replace(event_id=one.event_id, data=one.data)
    assert honest.judged().violations["moved"] == 2


def test_an_event_in_another_stream_than_was_told_is_found() -> None:
    cluster = Honest()
    cluster.append(1)
    cluster.rows[0] = cluster.rows[0]._replace(stream="elsewhere")
    assert cluster.judged().violations == {"moved": 1}


def test_altered_data_is_found(honest: Honest) -> None:
    honest.rows[0] = honest.rows[0]._replace(data=content_of(identifier(99)))
    assert honest.judged().violations == {"altered": 1}


def test_a_refused_event_that_is_stored_is_found(honest: Honest) -> None:
    honest.append(8)["outcome"] = "refused"
    assert honest.judged().violations == {"refused": 1}


def test_an_event_that_nobody_sent_is_found(honest: Honest) -> None:
    honest.append(8)
    honest.records.pop()
    assert honest.judged().violations == {"foreign": 1}


def test_an_append_of_which_only_a_part_is_stored_is_found() -> None:
    cluster = Honest()
    cluster.append(1, 2, outcome="unknown")
    cluster.rows.pop()
    assert cluster.judged().violations == {"torn": 1}


def test_a_gap_in_the_positions_and_in_a_streams_numbers_is_found(honest: Honest) -> None:
    honest.rows[-1] = honest.rows[-1]._replace(position=9, number=9)
    assert honest.judged().violations["gap"] == 2


def test_time_that_goes_back_is_found(honest: Honest) -> None:
    honest.rows[-1] = honest.rows[-1]._replace(created=0)
    assert honest.judged().violations == {"gap": 1}


def test_an_append_in_front_of_an_earlier_acknowledged_one_is_found() -> None:
    cluster = Honest()
    early, late = cluster.append(1), cluster.append(2, stream="t")
    early["positions"], late["positions"] = [2], [1]
    cluster.rows = [
        row._replace(position=at) for at, row in enumerate(reversed(cluster.rows), start=1)
    ]
    cluster.rows = [row._replace(created=0) for row in cluster.rows]
    assert cluster.judged().violations == {"reordered": 1}


def test_appends_that_overlap_may_stand_in_either_order() -> None:
    cluster = Honest()
    slow, quick = cluster.append(1), cluster.append(2)
    slow["done"] = quick["done"] + 1
    quick["done"] = slow["done"] + 1
    assert not cluster.judged().violations


def test_an_append_in_front_of_what_had_been_read_before_it_was_sent_is_found() -> None:
    cluster = Honest()
    cluster.append(1)
    cluster.append(2, outcome="unknown")
    cluster.read("local")
    cluster.append(3)
    cluster.records[-2]["head"] = 3
    assert cluster.judged().violations == {"reordered": 1}


def test_an_exact_version_that_was_overtaken_is_found(honest: Honest) -> None:
    honest.append(8, stream="t", expected=0)
    assert honest.judged().violations == {"overtaken": 1}


def test_a_node_that_holds_something_else_is_found(honest: Honest) -> None:
    other = list(honest.rows)
    other[1] = other[1]._replace(event_id=identifier(98))
    assert honest.judged(n2=other).violations == {"differing": 1}


def test_a_node_that_holds_less_or_more_is_found(honest: Honest) -> None:
    more = [*honest.rows, honest.rows[-1]]
    findings = honest.judged(n2=honest.rows[:-1], n3=more)
    assert findings.violations == {"differing": 2}


def test_files_are_compared_without_data_and_time(honest: Honest) -> None:
    nodes = {"n1": honest.rows}
    rows = [Stored(*row[:4]) for row in honest.rows]
    assert not check(honest.records, nodes, {"file": rows}).violations
    rows[0] = rows[0]._replace(number=7)
    assert check(honest.records, nodes, {"file": rows}).violations == {"differing": 1}


def test_a_read_that_saw_what_is_not_there_in_the_end_is_found(honest: Honest) -> None:
    honest.read("local")["events"][1][1] = identifier(97)
    assert honest.judged().violations == {"misread": 1}


def test_a_read_beyond_the_end_is_found(honest: Honest) -> None:
    read = honest.read("local")
    read["events"].append([8, identifier(97)])
    read["head"] = 8
    assert honest.judged().violations["misread"] == 2


@pytest.mark.parametrize("level", ["local", "session"])
def test_a_local_read_may_be_behind(honest: Honest, level: str) -> None:
    honest.read(level)["head"] = 3
    assert not honest.judged().violations


def test_a_linearizable_read_that_misses_an_acknowledged_event_is_found(honest: Honest) -> None:
    honest.read()["head"] = 5
    assert honest.judged().violations == {"stale": 1}


def test_a_linearizable_read_behind_an_earlier_read_is_found() -> None:
    cluster = Honest()
    cluster.append(1, outcome="unknown")
    cluster.read("local")
    cluster.read()["head"] = 0
    assert cluster.judged().violations == {"stale": 1}


def test_a_linearizable_read_need_not_see_what_was_acknowledged_after_it_was_sent() -> None:
    cluster = Honest()
    cluster.append(1)
    read = cluster.read()
    read["head"], read["sent"] = 0, 1.5
    assert not cluster.judged().violations


def test_a_session_that_goes_back_behind_its_token_is_found(honest: Honest) -> None:
    honest.read("session", token=6)["head"] = 5
    assert honest.judged().violations == {"went_back": 1}


def test_an_answer_that_nobody_may_get_is_found(honest: Honest) -> None:
    honest.append(8, outcome="unknown")["strange"] = "500 internal_error"
    assert honest.judged().violations == {"strange": 1}


def test_examples_are_bounded_and_everything_is_counted() -> None:
    cluster = Honest()
    cluster.append(*range(1, 101))
    cluster.rows.clear()
    findings = cluster.judged()
    assert findings.violations["lost"] == 100
    assert len(findings.examples["lost"]) == 10


def test_a_history_comes_back_from_its_file_as_it_was_written(
    honest: Honest, tmp_path: Path
) -> None:
    with History(tmp_path / "history") as history:
        for record in honest.records:
            history.record(record)
    assert list(read_history(tmp_path / "history")) == honest.records


class Keeper:
    """An honest keeper of snapshots, and what its node has in the end."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.kept: dict[tuple[str, int], str] = {}

    def change(self, version: int, number: int | None, outcome: str = "acknowledged") -> None:
        """Record a snapshot, or delete it without a number; it is done unless it was refused."""
        key, made = ("a", version), None if number is None else identifier(number)
        self.records.append(
            {"op": "snapshot", "source": "a", "version": version, "id": made, "sent": 1.0,
             "outcome": outcome, "strange": None}
        )  # fmt: skip
        if outcome == "refused":
            return
        self.kept.pop(key, None)
        if made is not None:
            self.kept[key] = made

    def read(self, version: int) -> None:
        """A linearizable read of a version."""
        found = self.kept.get(("a", version))
        self.records.append({"op": "snapshot_read", "source": "a", "version": version, "id": found})

    def judged(self, **others: dict[tuple[str, int], str]) -> Findings:
        return check(self.records, {"n1": []}, {}, {"n1": self.kept} | others)


@pytest.fixture
def keeper() -> Keeper:
    """Versions 1 to 4: recorded, replaced, deleted, perhaps deleted; of 5 all was refused."""
    keeper = Keeper()
    for version in (1, 2, 3, 4):
        keeper.change(version, version)
        keeper.read(version)
    keeper.change(2, 12)
    keeper.change(3, None)
    keeper.change(4, None, "unknown")
    keeper.change(5, 5, "refused")
    for version in (1, 2, 3, 4, 5):
        keeper.read(version)
    return keeper


def test_an_honest_keeper_of_snapshots_is_believed(keeper: Keeper) -> None:
    findings = keeper.judged(n2=dict(keeper.kept))
    assert not findings.violations
    assert findings.snapshots == {"acknowledged": 6, "unknown": 1, "refused": 1, "read": 9}
    keeper.kept["a", 4] = identifier(4)
    assert not keeper.judged().violations, "the deletion may not have been carried out"


@pytest.mark.parametrize(
    ("version", "number"), [(1, None), (2, 2), (3, 3), (4, 99), (5, 5)],
    ids=["lost", "not replaced", "not deleted", "foreign", "refused"],
)  # fmt: skip
def test_a_snapshot_that_is_not_what_was_acknowledged_is_found(
    keeper: Keeper, version: int, number: int | None
) -> None:
    keeper.kept.pop(("a", version), None)
    if number is not None:
        keeper.kept["a", version] = identifier(number)
    assert keeper.judged().violations == {"snapshot lost": 1}


def test_a_linearizable_read_of_an_older_snapshot_is_found(keeper: Keeper) -> None:
    keeper.records[-4]["id"] = identifier(2)
    assert keeper.judged().violations == {"snapshot lost": 1}


def test_nodes_with_other_snapshots_are_found(keeper: Keeper) -> None:
    other = keeper.kept | {("a", 1): identifier(98)}
    assert keeper.judged(n2=other).violations == {"differing": 1}


def test_a_strange_answer_about_a_snapshot_is_found(keeper: Keeper) -> None:
    keeper.records[0]["strange"] = "500"
    assert keeper.judged().violations == {"strange": 1}
