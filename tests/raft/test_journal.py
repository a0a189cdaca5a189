"""The log in memory, and what it keeps when its base moves."""

from __future__ import annotations

import pytest

from node.raft.journal import Journal
from node.raft.ports import StartingPoint
from tests.raft.tails import FakeTail


class Kept:
    """Promises that are only counted."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, str | None]] = []

    def save(self, term: int, vote: str | None) -> None:
        self.saved.append((term, vote))

    def recovered(self) -> None:
        """Not asked for here."""


def start(**changes) -> StartingPoint:
    known = dict(incarnation=1, term=3, vote=None, index=10, index_term=2, forgetful=False)
    return StartingPoint(**{**known, **changes})


def journal_of(*terms: int, **changes) -> Journal:
    """A log with base 10 of term 2, and entries of these terms behind it."""
    journal = Journal(start(**changes), Kept(), "a")
    for index, term in enumerate(terms, 11):
        journal.add(b"entry %d" % index, index, term)
    return journal


def test_a_moved_base_keeps_what_agrees_with_it_and_may_have_been_acknowledged():
    journal = journal_of(2, 3, 3, 3)
    journal.restart_at(12, 3)
    assert (journal.base_index, journal.last_index, journal.last_term) == (12, 14, 3)
    assert journal.tail_after(12) == [(13, 3, b"entry 13"), (14, 3, b"entry 14")]
    assert journal.bytes == len(b"entry 13entry 14")


@pytest.mark.parametrize(("index", "term"), [(12, 4), (20, 3)])
def test_a_moved_base_drops_what_differs_or_ends_before_it(index: int, term: int):
    journal = journal_of(2, 3, 3, 3)
    journal.restart_at(index, term)
    assert (journal.base_index, journal.last_index, journal.bytes) == (index, index, 0)


class TestTheTailIsToldOfEachChange:
    """What a killed node would find again is what its log holds, after each single change."""

    def kept(self, journal: Journal, tail: FakeTail, cut: int = 10) -> None:
        found, whole = tail.behind(cut)
        assert whole
        assert [entry for entry in found if entry[0] > cut] == journal.tail_after(cut)

    def test_entries_and_truncations(self):
        tail = FakeTail()
        journal = Journal(start(tail=((11, 3, b"old"),)), Kept(), "a", tail=tail)
        self.kept(journal, tail)
        for index in range(12, 20):
            journal.add(b"entry", index, 3)
            self.kept(journal, tail)
        journal.deleteEntriesFrom(5)
        self.kept(journal, tail)
        journal.add(b"other", 15, 4)
        self.kept(journal, tail)
        journal.deleteEntriesFrom(6)
        self.kept(journal, tail)
        assert journal.last_index == 15

    def test_a_moved_base(self):
        tail = FakeTail()
        journal = Journal(start(), Kept(), "a", tail=tail)
        for index in range(11, 15):
            journal.add(b"entry", index, 3)
        journal.restart_at(12, 3)
        self.kept(journal, tail, cut=12)
        assert tail.behind(10)[1], "what stands before the base is still there"
        journal.restart_at(30, 4)
        assert not tail.behind(29)[1]
        journal.add(b"entry", 31, 4)
        self.kept(journal, tail, cut=30)


def test_a_tail_is_taken_up_behind_the_cut_only_where_it_follows():
    tail = ((9, 2, b"x"), (10, 2, b"x"), (11, 3, b"x"), (12, 3, b"x"))
    assert journal_of(tail=tail).last_index == 12
    assert journal_of(tail=tail[3:]).last_index == 10
    other = ((10, 1, b"x"), *tail[2:])
    assert journal_of(tail=other).last_index == 10
    older = tuple((index, 1, b"x") for index in range(11, 13))
    assert journal_of(tail=older).last_index == 10


def test_the_term_is_never_below_that_of_the_last_entry():
    journal = journal_of(tail=((11, 7, b"x"),), vote="n2")
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (7, None)


def test_a_promise_is_saved_once_and_before_it_counts():
    promises = Kept()
    journal = Journal(start(), promises, "a")
    journal.setCurrentTerm(4, "n1")
    journal.setCurrentTerm(4, "n1")
    assert promises.saved == [(4, "n1")]


def test_who_asks_whether_anything_follows_gets_two_items_and_not_the_log():
    journal = journal_of(*[3] * 500)
    assert journal[0:] == [journal[0], journal[1]]
    assert journal[499:] == [journal[499], journal[500]]
    assert (journal[500:], journal[501:]) == ([journal[500]], [])
    assert len(journal[3:40]) == 37


def test_only_a_single_entry_is_ever_sent_that_is_longer_than_the_bound():
    """A message of a whole entry more than the bound may be longer than any may be."""
    journal = journal_of(3, 3, 3)  # of eight bytes each
    assert [index for _, index, _ in journal.items_from(11, 10, 16)] == [11, 12]
    assert [index for _, index, _ in journal.items_from(11, 10, 15)] == [11]
    assert [index for _, index, _ in journal.items_from(12, 10, 1)] == [12]


class TestCutting:
    def test_only_what_is_persisted_is_dropped_and_a_tail_is_kept(self):
        journal = journal_of(*[3] * 500)
        journal.cut(persisted_index=300, items_max=50, bytes_max=10**9)
        assert (journal.base_index, journal.last_index, journal.term_at(300)) == (300, 510, 3)
        assert journal.term_at(299) is None
        journal.cut(persisted_index=510, items_max=50, bytes_max=10**9)
        assert (journal.base_index, journal.last_index) == (460, 510)
        assert [index for index, _, _ in journal.tail_after(0)][1:] == list(range(461, 511))

    def test_the_tail_is_bounded_in_bytes_too(self):
        journal = journal_of(*[3] * 500)
        size = len(b"entry 100")
        journal.cut(persisted_index=510, items_max=10**6, bytes_max=100 * size)
        assert journal.base_index == 410
        assert journal.bytes == 100 * size

    def test_what_is_counted_in_bytes_is_what_is_there(self):
        journal = journal_of(*[3] * 700)
        journal.cut(persisted_index=400, items_max=20, bytes_max=10**9)
        entries = [entry for index, _, entry in journal.tail_after(journal.base_index)]
        assert journal.bytes == sum(map(len, entries))

    def test_a_log_that_is_short_enough_is_left_alone(self):
        journal = journal_of(*[3] * 500)
        journal.cut(persisted_index=510, items_max=10_000, bytes_max=10**9)
        journal.cut(persisted_index=0, items_max=10, bytes_max=10)
        assert journal.base_index == 10
