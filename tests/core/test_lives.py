"""How streams are truncated, limited and deleted, and what a removed event leaves behind."""

from __future__ import annotations

from typing import Any

import pytest

from node.core import commands, lives
from node.core import subscription_commands as asked
from node.core.commands import ANY, NO_STREAM, STREAM_EXISTS
from node.core.filters import Filter, Matcher
from node.core.husks import husk_of, is_husk, prints_of
from node.core.life_commands import delete_stream, expire, set_metadata
from node.core.outcomes import (
    Appended,
    Expired,
    MetadataSet,
    StreamDeleted,
    StreamNotFound,
    StreamRemoved,
    WrongExpectedVersion,
)
from node.core.state import State
from node.core.stream import Limits
from node.core.subscription_commands import Definition, Delivery
from tests.core.observed import frame, started, sweep
from tests.core.test_loading import loaded

MS = 1_000
EVERYTHING = Filter()


class Driven:
    """A state with a store `main`, and short ways to let things happen to it."""

    def __init__(self) -> None:
        self.state: State = started()
        self.store = self.state.stores["main"]
        self.ids = 0

    def do(self, command: bytes) -> Any:
        [outcome] = self.state.apply(self.state.applied_index + 1, 1, [command])
        self.state.check()
        return outcome

    def append(self, stream: str, count: int = 1, expected: int = ANY, at_us: int = 1) -> Any:
        frames = [frame(self.ids + number) for number in range(1, count + 1)]
        self.ids += count
        return self.do(commands.append("main", at_us, stream, expected, frames))

    def delete(self, stream: str, expected: int = ANY, hard: bool = False) -> Any:
        return self.do(delete_stream("main", stream, expected, hard))

    def limit(self, stream: str, *limits: int | None) -> Any:
        return self.do(set_metadata("main", stream, Limits(*limits)))

    def kept(self, stream: str) -> list[int]:
        found = self.store.stream_list[self.ordinals[stream]]
        return [n for n, at in enumerate(found.positions) if self.store.kept(at)]

    @property
    def ordinals(self) -> dict[str, int]:
        return {stream.name: stream.ordinal for stream in self.store.stream_list}


@pytest.fixture
def driven() -> Driven:
    driven = Driven()
    driven.append("s", 5)
    driven.append("t", 2)
    return driven


def test_a_deleted_stream_reads_as_absent_and_its_numbering_goes_on(driven: Driven) -> None:
    assert driven.delete("s", 4) == StreamRemoved("s", 4, False)
    assert driven.store.version("s") == -1 and "s" not in driven.store.stream_names
    assert (driven.store.kept_events, driven.store.position) == (2, 7)
    assert driven.append("s", expected=4) == WrongExpectedVersion("s", 4, -1)
    assert driven.append("s", expected=STREAM_EXISTS).current == -1
    again = driven.append("s", 2, expected=NO_STREAM)
    assert (again.first_version, again.last_version) == (5, 6)
    assert driven.store.version("s") == 6 and driven.kept("s") == [5, 6]


def test_a_deletion_is_judged_by_its_expected_version_first(driven: Driven) -> None:
    assert driven.delete("s", 3) == WrongExpectedVersion("s", 3, 4)
    assert driven.delete("s", NO_STREAM) == WrongExpectedVersion("s", NO_STREAM, 4)
    assert driven.delete("none", 0) == WrongExpectedVersion("none", 0, -1)
    assert driven.delete("none", NO_STREAM) == StreamNotFound("main", "none")
    assert driven.delete("none", ANY, hard=True) == StreamNotFound("main", "none")
    driven.delete("s")
    assert driven.delete("s") == StreamNotFound("main", "s")
    assert driven.delete("s", hard=True) == StreamRemoved("s", 4, True)


def test_a_stream_that_was_deleted_hard_is_refused_for_ever(driven: Driven) -> None:
    driven.delete("s", hard=True)
    gone = StreamDeleted("s")
    new = frame(1000)
    assert driven.append("s") == gone == driven.append("s", expected=17)
    assert driven.delete("s") == gone == driven.delete("s", 3, hard=True)
    assert driven.limit("s", 1, None, None) == gone
    many = commands.append_many("main", 1, [("t", new), ("s", frame(1001))], [], None)
    assert driven.do(many) == gone
    checked = commands.append_many("main", 1, [("t", new)], [("s", ANY)], ("c", 1))
    assert driven.do(checked) == gone and driven.store.checkpoints == {}
    each = commands.append_each("main", 1, ["t", "s"], [ANY, ANY], [1, 1], [new, frame(1002)])
    assert driven.do(each).others == {1: gone}
    assert driven.store.version("t") == 2


def test_deleted_streams_stand_in_order_of_their_names(driven: Driven) -> None:
    for name in ("order-1", "ß", "order-10", "a"):
        driven.append(name)
    for name in ("t", "order-10", "ß", "a", "order-1"):
        driven.delete(name, hard=name == "a")
    driven.append("t")
    driven.delete("s")
    gone = ["a", "order-1", "order-10", "s", "ß"]
    assert list(driven.store.lives.departed) == gone
    copied = loaded(driven.store, 3)
    copied.load_lives(driven.store.lives.all())
    copied.check()
    assert list(copied.lives.departed) == gone


def test_a_retry_of_what_was_removed_has_its_original_answer(driven: Driven) -> None:
    command = commands.append("main", 1, "s", 4, [frame(101), frame(102)])
    first = driven.do(command)
    driven.delete("s", hard=True)
    sweep(driven.store)
    again = driven.do(command)
    assert isinstance(again, Appended) and again.idempotent
    assert list(again.positions) == list(first.positions) == [8, 9]
    other = commands.append("main", 1, "s", 4, [frame(101, data=b"\x02"), frame(102)])
    assert type(driven.do(other)).__name__ == "EventIdReused"


def test_truncation_never_takes_what_is_yet_to_come(driven: Driven) -> None:
    assert driven.limit("s", None, None, 3) == MetadataSet("s", 3, 3)
    assert driven.kept("s") == [3, 4]
    assert driven.limit("s", None, None, 10**9) == MetadataSet("s", 5, 5)
    assert driven.store.version("s") == 4 and driven.kept("s") == []
    assert driven.append("s", expected=4).first_version == 5
    assert driven.kept("s") == [5]
    assert driven.limit("s", None, None, 0).first == 5, "what was removed stays removed"


def test_the_last_so_many_are_kept_from_when_it_is_set(driven: Driven) -> None:
    driven.limit("s", 2, None, None)
    assert driven.kept("s") == [3, 4]
    driven.append("s", 3)
    assert driven.kept("s") == [6, 7]
    frames = [frame(number) for number in (50, 51, 52)]
    driven.do(commands.append_each("main", 1, ["s", "s"], [ANY, ANY], [1, 2], frames))
    assert driven.kept("s") == [9, 10]
    driven.do(commands.append_many("main", 1, [("s", frame(60))], [], None))
    assert driven.kept("s") == [10, 11]
    driven.limit("s", None, None, None)
    driven.append("s", 3)
    assert driven.kept("s") == [10, 11, 12, 13, 14]


def test_what_is_too_old_goes_when_a_command_says_what_time_it_is() -> None:
    driven = Driven()
    for number in range(4):
        driven.append("s", at_us=number * 10 * MS)
    driven.limit("s", None, 15, None)
    assert driven.store.lives.next_due_us == 15 * MS
    assert driven.do(expire("main", 15 * MS - 1)) == Expired(0, 0, False)
    assert driven.do(expire("main", 26 * MS)) == Expired(1, 2, False)
    assert driven.kept("s") == [2, 3] and driven.store.lives.next_due_us == 35 * MS
    assert driven.do(expire("main", 90 * MS)) == Expired(1, 2, False)
    assert driven.store.version("s") == 3 and driven.store.lives.next_due_us is None
    driven.append("s", at_us=100 * MS)
    assert driven.store.lives.next_due_us == 115 * MS


def test_one_command_expires_a_bounded_number_of_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lives, "EXPIRED_STREAMS_MAX", 2)
    driven = Driven()
    for name in "abc":
        driven.append(name, 3)
        driven.limit(name, None, 1, None)
    assert driven.do(expire("main", 10**9)) == Expired(2, 6, True)
    assert driven.do(expire("main", 10**9)) == Expired(1, 3, False)


def test_readers_pass_removed_events_by(driven: Driven) -> None:
    assert Matcher(driven.store, Filter()).takes_all
    driven.limit("s", None, None, 3)
    sweep(driven.store)
    matcher = Matcher(driven.store, Filter())
    rows = driven.store.rows(0, driven.store.position)
    assert not matcher.takes_all
    assert [row[0] for row in rows if matcher.matches(row)] == [4, 5, 6, 7]


def subscribed(driven: Driven, wanted: Filter = EVERYTHING) -> int:
    definition = Definition(wanted, 0, 1_000, 0, 100)
    driven.do(asked.subscribe("main", 1, "all", definition))
    return driven.store.subscriptions.by_name["all"].uid


def fetched(driven: Driven, count: int = 100) -> list[int]:
    outcome = driven.do(asked.fetch("main", 1, "all", "c", count))
    return [position for position, _ in outcome.deliveries]


@pytest.mark.parametrize("wanted", [Filter(), Filter(stream="s"), Filter(stream_prefix="s")])
def test_a_subscription_hands_out_no_removed_event(driven: Driven, wanted: Filter) -> None:
    uid = subscribed(driven, wanted)
    assert fetched(driven, 1) == [1]
    driven.limit("s", None, None, 3)
    driven.do(asked.settle("main", 1, "all", [(Delivery(uid, 1, 1), asked.ACK)]))
    assert 4 in fetched(driven)
    assert not {2, 3} & driven.store.subscriptions.by_name["all"].in_flight.keys()


def test_what_waits_or_is_parked_is_dropped_in_its_turn(driven: Driven) -> None:
    uid = subscribed(driven)
    assert fetched(driven) == [1, 6]
    parking = [(Delivery(uid, 1, 1), asked.PARK), (Delivery(uid, 6, 1), asked.PARK)]
    driven.do(asked.settle("main", 1, "all", parking))
    driven.delete("s")
    sweep(driven.store)
    one = driven.store.subscriptions.by_name["all"]
    assert set(one.parked) == {1, 6}
    assert driven.do(asked.replay("main", 1, "all", [])).events == 1
    assert not one.parked
    driven.delete("t")
    assert fetched(driven) == [] and one.counts.skipped == 1 and not one.lines


def test_a_husk_has_the_print_of_its_frame() -> None:
    frames = [frame(number, data=b"\x07" * size) for number, size in enumerate([0, 3, 9000])]
    husks = list(map(husk_of, frames))
    assert all(map(is_husk, husks)) and not any(map(is_husk, frames))
    assert prints_of(frames) == prints_of(husks) == prints_of([frames[0], husks[1], frames[2]])
    assert max(map(len, husks)) < 31
