"""The judge of a shared subscription: it accepts an honest history, and finds each planted lie."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cluster.chaos.consumers import Notebook, _told
from cluster.chaos.deliveries import FAULT_S, End, Judgement, ParkedEvent, Terms, Wanted, judge

TERMS = Terms(ack_timeout_s=8.0, max_retries=1)


class Shared:
    """A subscription to events in two streams, and what its consumers wrote down."""

    def __init__(self) -> None:
        self.now = 100.0
        self.records: list[dict[str, Any]] = []
        self.wanted = [
            Wanted(position, "st"[position % 2], (position - 1) // 2, f"id{position}")
            for position in range(1, 7)
        ]
        self.parked: list[ParkedEvent] = []
        self.acked = self.skipped = 0

    def tick(self, seconds: float = 0.01) -> float:
        self.now += seconds
        return self.now

    def note(self, op: str, **fields: Any) -> dict[str, Any]:
        self.records.append({"op": op, "at": self.tick(), **fields})
        return self.records[-1]

    def got(self, position: int, attempt: int = 1, consumer: str = "c1") -> dict[str, Any]:
        one = self.wanted[position - 1]
        return self.note("got", received=self.now, consumer=consumer, position=position,
                         attempt=attempt, stream=one.stream, number=one.number,
                         id=one.event_id)  # fmt: skip

    def settle(
        self, position: int, attempt: int = 1, action: str = "ack", counted: Any = True
    ) -> None:
        about = {"position": position, "attempt": attempt}
        self.note("said", **about, action=action)
        self.note("told", **about, counted=counted)
        if counted is False:
            return
        self.acked += action == "ack"
        self.skipped += action == "skip"
        if action == "park":
            self.parked.append(ParkedEvent(position, attempt, "by_consumer", self.now))

    def handle(self, *positions: int) -> None:
        for position in positions:
            self.got(position)
            self.settle(position)

    def judged(self, **totals: int) -> Judgement:
        counted = {"acked": self.acked, "skipped": self.skipped, "parked": len(self.parked)}
        return judge(self.records, End(self.wanted, self.parked, counted | totals), TERMS)


@pytest.fixture
def shared() -> Shared:
    """The last three events are still to come."""
    one = Shared()
    one.got(1)
    one.settle(1, action="retry")
    one.got(1, 2, "c2")
    one.settle(1, 2)
    one.got(2)
    one.settle(2, action="park")
    one.got(3)
    one.settle(3, action="skip")
    return one


def only(found: Judgement, kind: str) -> None:
    assert dict(found.violations) == {kind: 1}, found.examples


def test_an_honest_history_is_accepted(shared: Shared) -> None:
    shared.handle(4, 5, 6)
    found = shared.judged()
    assert not found.violations
    assert {name: count for name, count in found.figures.items() if count} == {
        **{"events": 6, "deliveries": 7, "delivered again": 1, "parked": 1},
        **{"ack": 4, "retry": 1, "park": 1, "skip": 1},
    }


def test_what_comes_again_after_its_deadline_a_fault_or_a_loss_is_honest(shared: Shared) -> None:
    shared.got(4)
    shared.tick(9.0)  # its deadline
    shared.got(4, 2, "c2")
    shared.settle(4, counted=False)
    shared.note("left", consumer="c2")
    shared.got(4, 3)
    shared.note("fault")
    shared.got(4, 4, "c3")
    shared.settle(4, 4)
    shared.note("left", consumer="c3")
    shared.got(5, 2)  # the first one was lost with c3
    shared.settle(5, 2)
    shared.handle(6)
    assert not shared.judged().violations


@pytest.mark.parametrize(("before_s", "explained"), [(FAULT_S * 0.8, True), (FAULT_S * 1.2, False)])
def test_a_fault_lasts_until_it_would_have_been_noted_again(
    shared: Shared, before_s: float, explained: bool
) -> None:
    shared.note("fault")
    shared.tick(before_s)
    shared.got(4)
    shared.settle(4, action="retry")
    shared.got(4, 3)  # the second one was lost
    shared.settle(4, 3)
    shared.handle(5, 6)
    assert (not shared.judged().violations) == explained


def test_a_word_whose_answer_was_lost_with_a_node_may_have_counted(shared: Shared) -> None:
    shared.got(4)
    shared.note("fault")
    shared.settle(4, counted=False)
    shared.acked += 1
    shared.handle(5, 6)
    assert not shared.judged().violations


def test_an_event_that_never_came_or_was_never_settled_is_lost(shared: Shared) -> None:
    shared.handle(4, 5)
    only(shared.judged(acked=4), "lost")
    shared.got(6)
    only(shared.judged(acked=4), "lost")
    shared.settle(6, counted=False)
    only(shared.judged(acked=4), "lost")


def test_an_event_before_an_earlier_one_of_its_stream_is_settled(shared: Shared) -> None:
    shared.got(4)
    shared.got(6, consumer="c2")
    shared.settle(4)
    shared.settle(6)
    shared.handle(5)
    only(shared.judged(), "overtaken")


def test_an_event_after_one_whose_acknowledgement_did_not_count(shared: Shared) -> None:
    shared.got(4)
    shared.settle(4, counted=False)
    shared.handle(6)
    shared.tick(9.0)
    shared.got(4, 2)
    shared.settle(4, 2)
    shared.handle(5)
    only(shared.judged(), "overtaken")


def test_an_event_of_a_stream_whose_earlier_one_was_parked_only_later(shared: Shared) -> None:
    shared.handle(6, 5)
    shared.got(4)
    shared.settle(4, action="retry")
    shared.got(4, 2)
    shared.settle(4, 2, action="retry")
    shared.parked.append(ParkedEvent(4, 2, "after_retries", shared.now))
    only(shared.judged(), "overtaken")


def test_an_event_that_is_done_does_not_come_again(shared: Shared) -> None:
    shared.handle(4, 5, 6)
    shared.note("fault")  # explains a lost answer, but not this
    shared.got(6, 2)
    only(shared.judged(), "again")


def test_a_delivery_that_two_get(shared: Shared) -> None:
    shared.handle(4, 5)
    shared.got(6)
    shared.got(6, consumer="c2")
    shared.settle(6)
    only(shared.judged(), "doubled")


def test_a_second_delivery_for_no_reason(shared: Shared) -> None:
    shared.got(4)
    shared.note("left", consumer="c2")  # had nothing to do with it
    shared.got(4, 2)
    shared.settle(4, 2)
    shared.handle(5, 6)
    only(shared.judged(), "early")


def test_a_second_delivery_before_the_refusal(shared: Shared) -> None:
    shared.got(4)
    shared.got(4, 2)
    shared.settle(4, action="retry")
    shared.settle(4, 2)
    shared.handle(5, 6)
    only(shared.judged(), "early")


def test_a_delivery_that_was_never_seen_with_nobody_lost(shared: Shared) -> None:
    shared.handle(4, 5)
    shared.got(6, 2)
    shared.settle(6, 2)
    only(shared.judged(), "early")


@pytest.mark.parametrize("lie", [{"position": 9}, {"id": "x"}, {"number": 7}, {"stream": "u"}])
def test_an_event_that_is_not_wanted_or_not_so_stored(shared: Shared, lie: dict[str, Any]) -> None:
    shared.handle(4, 5, 6)
    shared.records.append(shared.records[-3] | {"attempt": 1, "position": 9} | lie)
    found = shared.judged()
    assert found.violations["foreign"] == 1


def test_what_is_parked_is_parked_once_for_a_reason_and_not_done(shared: Shared) -> None:
    shared.handle(4, 5, 6)
    honest = list(shared.parked)
    for lie in (
        [*honest, honest[0]],
        [*honest, ParkedEvent(6, 1, "by_consumer", 0.0)],
        [*honest, ParkedEvent(6, 1, "after_retries", 0.0)],
        [honest[0]._replace(why="after_retries")],
        [honest[0]._replace(attempts=2)],
        [],
    ):
        shared.parked = lie
        assert shared.judged(acked=4, parked=1).violations["misparked"] >= 1, lie


def test_totals_that_do_not_add_up(shared: Shared) -> None:
    shared.handle(4, 5, 6)
    assert shared.judged(acked=5).violations == {"miscounted": 1}
    assert shared.judged(acked=3, parked=2).violations == {"miscounted": 1}


async def test_a_word_that_ends_in_no_clients_error(shared: Shared, tmp_path: Path) -> None:
    shared.handle(4, 5, 6)
    settled = asyncio.get_running_loop().create_future()
    settled.set_exception(KeyError("stale"))
    with Notebook(tmp_path / "notes") as notes:
        _told(notes, {"position": 6, "attempt": 1}, settled)
    shared.records.append(json.loads((tmp_path / "notes").read_text()))
    found = shared.judged()
    only(found, "failed")
    assert found.examples["failed"] == ["the word about delivery 1 of 6 ended in KeyError('stale')"]
