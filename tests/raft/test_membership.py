"""Who belongs to the cluster: the value, its steps, and which one counts on a node."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations

import pytest

from node.raft import entries
from node.raft.entries import MalformedEntry
from node.raft.journal import Journal
from node.raft.membership import (
    MalformedMembership,
    Member,
    Membership,
    Unsaid,
    changes,
    founding,
)
from tests.raft.solo import Disk, starting_at

D = Member("d", "d:1")


def named(ids: str) -> Membership:
    return founding({one: f"{one}:1" for one in ids})


def subsets(ids: str) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(ids, size) for size in range(len(ids) + 1))


class TestSteps:
    @pytest.mark.parametrize("now", [*filter(None, map("".join, subsets("abcde")))])
    def test_any_majorities_of_two_neighbours_have_a_voter_in_common(self, now: str) -> None:
        for wanted in filter(None, subsets("abcde")):
            before = named(now)
            for step in changes(before, {one: f"{one}:1" for one in wanted}):
                assert step.version == before.version + 1
                for one in subsets("abcde"):
                    for other in subsets("abcde"):
                        if before.is_majority(one) and step.is_majority(other):
                            assert set(one) & set(other) & before.voter_ids & step.voter_ids
                before = step
            assert before.voter_ids == set(wanted)
            assert before.learner is None

    def test_wherever_they_are_broken_off_the_steps_can_be_taken_up_again(self) -> None:
        wanted = {one: f"{one}:1" for one in "cde"}
        path = list(changes(named("abc"), wanted))
        for at, step in enumerate(path):
            assert list(changes(step, wanted)) == path[at + 1 :]

    def test_a_node_is_never_counted_before_it_has_learned(self) -> None:
        before = named("abc")
        for step in changes(before, {one: f"{one}:1" for one in "abcde"}):
            added = step.voter_ids - before.voter_ids
            assert added <= {before.learner_id}
            before = step

    def test_a_learner_at_another_address_is_another_learner(self) -> None:
        first, second, third = changes(
            named("abc").with_learner(D._replace(raft_address="d:2")),
            {one: f"{one}:1" for one in "abcd"},
        )
        assert first.learner is None
        assert second.learner == D
        assert third.voter_ids == set("abcd")

    def test_a_learner_is_a_member_and_no_voter(self) -> None:
        membership = named("ab").with_learner(D)
        assert membership.others("a") == ["b", "d"]
        assert membership.other_voters("a") == ["b"]
        assert not membership.is_majority({"a", "d"})


class TestAsData:
    def test_it_comes_back_as_it_was(self) -> None:
        for membership in (named("ab"), named("abc").with_learner(D), Membership(0, ())):
            entry = entries.encode_membership(membership)
            assert entries.is_membership(entry)
            assert entries.decode_membership(entry) == membership

    def test_an_entry_of_commands_is_no_membership(self) -> None:
        assert not entries.is_membership(entries.encode([entries.Group("n1", 1, [1], [b"x"])]))

    @pytest.mark.parametrize(
        "plain",
        [None, [], [1, [], None, 1], [-1, [["a", "a:1"]], None], [1, [["a"]], None],
         [1, [["a", "x"], ["a", "y"]], None], [1, [["a", "x"]], ["a", "x", 7]], [1, [[1, 2]], None],
         ["1", [["a", "x"]], None], [1, 5, None], [1, [["", "x"]], None],
         [1, [], None], [1, {}, None], [1, [], ["a", "x", 7]], [1, [["a", "x"]], ["b", "y"]],
         [1, [["a", "x"]], ["b", "y", -1]], [1, [["a", "x"]], ["b", "y", True]]],
    )  # fmt: skip
    def test_anything_else_is_refused(self, plain: object) -> None:
        with pytest.raises(MalformedMembership):
            Membership.from_plain(plain)

    def test_a_torn_entry_is_refused(self) -> None:
        with pytest.raises(MalformedEntry):
            entries.decode_membership(entries.encode_membership(named("abc"))[:-3])


class TestWhichCounts:
    def journal(self, **changes: object) -> tuple[Journal, Disk]:
        disk = Disk()
        return Journal(starting_at(10, 1, **changes), disk, "a", named("abc")), disk

    def put(self, journal: Journal, membership: Membership) -> None:
        journal.add(entries.encode_membership(membership), journal.last_index + 1, 1)

    def test_a_membership_counts_as_soon_as_it_is_in_the_log(self) -> None:
        journal, disk = self.journal()
        told: list[Membership] = []
        journal.memberships.on_change = lambda: told.append(journal.memberships.current)
        learning = named("abc").with_learner(D)
        self.put(journal, learning)
        assert journal.memberships.current == learning
        assert told == [learning]
        assert journal.memberships.open
        assert disk.heard == learning, "it is on disk before anybody is told that it is here"
        assert disk.membership == named("abc")

    def test_of_two_voters_one_is_left_only_once_that_is_committed(self) -> None:
        disk = Disk()
        journal = Journal(starting_at(10, 1), disk, "a", named("ab"))
        left = named("ab").without("b")
        self.put(journal, left)
        assert journal.memberships.current == named("ab")
        assert journal.memberships.newest == disk.heard == left
        assert journal.memberships.open
        journal.memberships.whole()
        assert disk.heard == left
        journal.memberships.applied(11)
        assert journal.memberships.current == left
        assert not journal.memberships.open
        self.put(journal, left.with_learner(D))
        assert journal.memberships.current == left.with_learner(D)

    def test_who_goes_of_two_counts_both_until_the_other_has_said_that_it_is_committed(
        self,
    ) -> None:
        disk = Disk()
        journal = Journal(starting_at(10, 1), disk, "b", named("ab"))
        left = named("ab").without("b")
        self.put(journal, left)
        journal.memberships.applied(11)
        assert journal.memberships.current == disk.membership == named("ab")
        assert journal.memberships.unsaid == disk.unsaid == Unsaid(11, left)
        assert journal.memberships.open, "nothing else may be changed meanwhile"
        journal.memberships.learned(left)
        assert journal.memberships.current == disk.membership == left
        assert journal.memberships.unsaid is None
        assert not journal.memberships.open

    def test_who_stays_of_two_does_not_believe_it_while_it_recovers(self) -> None:
        """Were it on disk, the next life would go on alone with what this one still lacks."""
        disk = Disk()
        journal = Journal(starting_at(10, 1, forgetful=True), disk, "a", named("ab"))
        left = named("ab").without("b")
        self.put(journal, left)
        journal.memberships.applied(11)
        assert journal.memberships.current == disk.membership == named("ab")
        journal.memberships.whole()
        assert journal.memberships.current == disk.membership == left
        assert not journal.memberships.open

    def test_one_that_waits_for_a_word_outlives_a_restart_behind_its_entry(self) -> None:
        left = named("ab").without("b")
        for index, waits in ((10, False), (11, True)):
            disk = Disk(unsaid=Unsaid(11, left), heard=left)
            start = starting_at(index, 1, unsaid=disk.unsaid, heard=left)
            journal = Journal(start, disk, "b", named("ab"))
            assert journal.memberships.open == waits
            assert disk.unsaid == (Unsaid(11, left) if waits else None)
            assert (disk.heard == left) == waits, "who never had its entry has it in no log"
            journal.memberships.whole()
            assert journal.memberships.open == waits
            assert journal.memberships.heard == (left if waits else named("ab"))

    def test_one_that_waits_for_a_word_gives_way_to_an_entry_as_old(self) -> None:
        disk = Disk()
        journal = Journal(starting_at(10, 1, forgetful=True), disk, "a", named("ab"))
        self.put(journal, named("ab").without("b"))
        journal.memberships.applied(11)
        in_vain = named("ab").without("a")
        self.put(journal, in_vain)
        assert journal.memberships.unsaid is disk.unsaid is None
        journal.memberships.whole()
        assert journal.memberships.committed == disk.membership == named("ab")
        assert journal.memberships.newest == in_vain

    def test_one_that_waits_for_a_word_and_stands_in_the_log_as_well_is_one(self) -> None:
        """What a fill brings may be further than the fill itself: both still count."""
        left = named("ab").without("b")
        journal = Journal(starting_at(10, 1, forgetful=True), Disk(), "a", named("ab"))
        self.put(journal, left)
        journal.memberships.reached(10, left)
        assert journal.memberships.open
        assert journal.memberships.current == named("ab")

    def test_one_that_is_cut_off_counts_no_more(self) -> None:
        journal, disk = self.journal()
        self.put(journal, named("abc").with_learner(D))
        journal.deleteEntriesFrom(1)
        assert journal.memberships.current == named("abc")
        assert not journal.memberships.open
        assert disk.heard == named("abc")

    def test_cutting_off_something_else_changes_nothing(self) -> None:
        journal, disk = self.journal()
        self.put(journal, named("abc").with_learner(D))
        journal.add(b"x", 12, 1)
        journal.deleteEntriesFrom(2)
        assert journal.memberships.open
        assert disk.heard == named("abc").with_learner(D)

    def test_one_that_is_applied_is_never_taken_back(self) -> None:
        journal, disk = self.journal()
        learning = named("abc").with_learner(D)
        self.put(journal, learning)
        journal.memberships.applied(11)
        assert not journal.memberships.open
        assert disk.membership == learning
        journal.deleteEntriesFrom(1)
        assert journal.memberships.current == learning

    def test_a_newer_one_that_others_have_committed_outranks_the_log(self) -> None:
        journal, disk = self.journal()
        removed = named("abc").with_learner(D).without("d").without("c")
        self.put(journal, named("abc").with_learner(D))
        journal.memberships.learned(removed)
        assert journal.memberships.current == disk.membership == removed
        journal.memberships.learned(named("abc"))
        assert journal.memberships.current == removed

    def test_a_restart_finds_what_was_kept(self) -> None:
        learning = named("abc").with_learner(D)
        kept = {"membership": learning, "heard": learning.with_learner_promoted()}
        journal, _ = self.journal(**kept, forgetful=True)
        assert journal.memberships.current == learning
        assert journal.memberships.heard.version == 2, "it was in the log, which is gone"
        journal, disk = self.journal(**kept)
        assert disk.heard == learning, "it never was in the log, which is whole"

    def test_the_tail_of_a_clean_stop_brings_its_membership_along(self) -> None:
        learning = named("abc").with_learner(D)
        journal, _ = self.journal(tail=((11, 1, entries.encode_membership(learning)),))
        assert journal.memberships.current == learning
        assert journal.memberships.open

    def test_a_fill_leaves_none_that_it_went_past(self) -> None:
        journal, _ = self.journal()
        self.put(journal, named("abc").with_learner(D))
        journal.restart_at(20, 2)
        assert journal.memberships.current == named("abc")

    def test_a_removed_node_may_stand_until_its_removal_is_certain(self) -> None:
        journal, _ = self.journal()
        self.put(journal, named("abc").without("c"))
        assert journal.memberships.may_stand("c")
        journal.memberships.applied(11)
        assert not journal.memberships.may_stand("c")
        assert journal.memberships.may_stand("a")
