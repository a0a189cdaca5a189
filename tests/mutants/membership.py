"""Defects in who is counted, and from when on (A9)."""

from __future__ import annotations

from tests.mutants.defect import Defect

_STEPS = "raft/test_membership.py::TestSteps"
_COUNTS = "raft/test_membership.py::TestWhichCounts"
_CHANGES = "raft/test_membership_change.py"
_REMNANTS = "raft/test_remnants.py"
_COUNTING = "raft/test_replication_rules.py::TestStrangers"

DEFECTS = (
    Defect(
        "membership-counts-when-applied",
        "A9: a membership counts from the moment at which it is in the log",
        "raft/membership_log.py",
        "        current = max(self.committed, newest, key=_version)\n",
        "        current = self.committed\n",
        (_COUNTS,),
    ),
    Defect(
        "cut-off-membership-counts",
        "A9: a membership that is cut off counts no more",
        "raft/membership_log.py",
        "        self._in_log = [item for item in self._in_log if not goes(item[0])]\n",
        "",
        (_COUNTS,),
    ),
    Defect(
        "committed-membership-is-taken-back",
        "A9: what is committed is never taken back",
        "raft/membership_log.py",
        "        if committed.version > self.committed.version:\n",
        "        if committed != self.committed:\n",
        (_COUNTS,),
    ),
    Defect(
        "membership-of-nobody",
        "j: a membership that has no voters is none, whoever names it",
        "raft/membership.py",
        "        if version > NOBODY.version and not members:\n",
        "        if False:\n",
        ("raft/test_membership.py::TestAsData",),
    ),
    Defect(
        "membership-not-kept",
        "A9, promise before word: a membership is on disk before it is acknowledged",
        "raft/membership_log.py",
        "            self._promises.save_membership(committed, heard)\n",
        "",
        (_COUNTS,),
    ),
    Defect(
        "removed-node-stands",
        "A9: who is certain to be removed does not stand",
        "raft/membership_log.py",
        "        return node_id in self.current.voter_ids or node_id in self.committed.voter_ids\n",
        "        return bool(node_id)\n",
        (_COUNTS,),
    ),
    Defect(
        "new-member-is-counted-at-once",
        "A9: a new member is not counted before it has learned",
        "raft/membership.py",
        "            now = now.with_learner(member)\n            yield now\n",
        "            now = now.with_learner(member)\n",
        (_STEPS,),
    ),
    Defect(
        "two-members-removed-at-once",
        "A9: one change at a time, so that old and new majorities meet",
        "raft/membership.py",
        "        now = now.without(node_id)\n        yield now\n",
        "        now = now.without(node_id)\n    yield now\n",
        (_STEPS,),
    ),
    Defect(
        "learner-in-a-majority",
        "A9: a learner is not counted",
        "raft/membership.py",
        "        return 2 * len(self.voter_ids.intersection(node_ids)) > len(self.voters)\n",
        "        return 2 * len(set(node_ids)) > len(self.voters)\n",
        (_STEPS,),
    ),
    Defect(
        "learner-s-ack-commits",
        "A9: a learner is not counted",
        "raft/library.py",
        "        counted = {Node(voter) for voter in voters - {own}}\n",
        "        counted = {Node(peer) for peer in others}\n",
        (_COUNTING,),
    ),
    Defect(
        "two-changes-at-once",
        "A9: a change waits until the one before is committed",
        "raft/membership_change.py",
        '        if self._log.open:\n            raise MembershipChangeOpen("another',
        '        if not self._log:\n            raise MembershipChangeOpen("another',
        (_CHANGES,),
    ),
    Defect(
        "learner-is-promoted-at-once",
        "A9: a new member is not counted before it has caught up",
        "raft/membership_change.py",
        "        if ready and learner.id in self._at_hand(then) and",
        "        if",
        (_CHANGES,),
    ),
    Defect(
        "change-while-a-member-recovers",
        "A9: no change while a member recovers that is not the one removed",
        "raft/membership_change.py",
        "        if recover and leaving not in recover:\n",
        "        if False:\n",
        (_CHANGES,),
    ),
    Defect(
        "recovering-members-hold-one-another",
        "A9: one of several that recover can be removed",
        "raft/membership_change.py",
        "        if recover and leaving not in recover:\n",
        "        if recover != [leaving] * len(recover):\n",
        (
            f"{_REMNANTS}::"
            "test_wiped_voters_that_wait_for_one_gone_for_good_can_be_removed_one_by_one",
        ),
    ),
    Defect(
        "word-of-an-earlier-life",
        "A9: nobody is counted on the word of an earlier life",
        "raft/replica.py",
        "            self._members.forget(peer)\n",
        "",
        (f"{_REMNANTS}::test_a_learner_is_not_counted_on_the_word_of_an_earlier_life",),
    ),
    Defect(
        "heard-of-outlives-a-fill",
        "A9: what came to nothing is forgotten, however that is learned",
        "raft/membership_log.py",
        "        if self.heard in dropped:\n",
        "        if False:\n",
        (f"{_REMNANTS}::test_a_fill_ends_what_was_heard_of_a_membership_that_came_to_nothing",),
    ),
    Defect(
        "fill-brings-no-membership",
        "A9: a fill brings the membership that its entries would have brought",
        "raft/filling.py",
        "            await self._ask_members(source)\n",
        "",
        ("raft/test_filling.py",),
    ),
    Defect(
        "removed-leader-counts-itself",
        "A9: a leader that is no voter does not count itself",
        "raft/library.py",
        "            counted.add(Node(own))\n",
        "            pass\n",
        (_COUNTING,),
    ),
    Defect(
        "change-before-an-entry-of-the-own-term",
        "A9: a leader changes nothing before it has committed an entry of its own term",
        "raft/membership_change.py",
        "        sure = self._engine.leads_with_own_entry_applied\n",
        "        sure = lambda: self._engine.leads  # noqa: E731\n",
        (
            f"{_CHANGES}::TestInterruptions::test_a_new_leader_changes_nothing_before_an_entry_of_its_own_is_committed",
        ),
    ),
    Defect(
        "too-few-are-left",
        "A9: refused where too few of those who are left can be reached",
        "raft/membership_change.py",
        "        if not then.is_majority(self._at_hand(then)):\n",
        "        if not then.voters:\n",
        (f"{_CHANGES}::TestRemoving",),
    ),
    Defect(
        "learner-never-stands",
        "A9, cold start: where only a learner's log reaches the floor, it stands",
        "raft/election.py",
        " or last_resort)",
        ")",
        (
            f"{_CHANGES}::TestInterruptions::test_a_learner_stands_where_only_its_log_can_end_a_cold_start",
        ),
    ),
    Defect(
        "learner-stands-at-once",
        "A9: a learner stands only where voters seem to be unable to",
        "raft/election.py",
        " and self._silences > _LEARNER_PATIENCE",
        "",
        ("raft/test_elections.py::TestPreVote",),
    ),
    Defect(
        "learner-leads-on",
        "A9: a learner that leads ends its reign when the voters hold its log",
        "raft/membership_change.py",
        "            self._lead_for_the_voters()\n",
        "            pass\n",
        (
            f"{_CHANGES}::TestInterruptions::test_a_learner_stands_where_only_its_log_can_end_a_cold_start",
        ),
    ),
    Defect(
        "removed-leader-goes-on",
        "A9: a leader that was removed ends its reign",
        "raft/membership_change.py",
        'and ends its reign")\n            self._engine.retire()\n',
        'and ends its reign")\n',
        (f"{_CHANGES}::TestInterruptions::test_a_leader_whose_removal_is_certain_ends_its_reign",),
    ),
    Defect(
        "removed-node-serves",
        "A9: a node that was removed takes nothing",
        "raft/replica.py",
        "        if self._changes.outside:\n            raise",
        "        if self._changes.outside is None:\n            raise",
        (f"{_CHANGES}::TestRemoving",),
    ),
)
