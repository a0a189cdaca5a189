"""Defects in what a follower keeps, a leader believes, and a fill installs (A1-A3, A6-A10, …)."""

from __future__ import annotations

from tests.mutants.defect import Defect

_RULES = "raft/test_replication_rules.py"

DEFECTS = (
    Defect(
        "repeated-message-cuts-the-log",
        "A1: entries that are known are taken out of a message before the library sees it",
        "raft/guard.py",
        "        if known == len(message.entries):\n",
        "        if known == len(message.entries) == -1:\n",
        (f"{_RULES}::TestResending",),
    ),
    Defect(
        "ack-takes-next-index-back",
        "A1: a success ack never lowers the next index",
        "raft/library.py",
        "self._SyncObj__raftNextIndex[node] = max(before, message.next_index)",
        "self._SyncObj__raftNextIndex[node] = message.next_index",
        (
            f"{_RULES}::TestResending::test_a_leader_sends_each_entry_once_to_a_follower_that_keeps_up",
        ),
    ),
    Defect(
        "committed-entry-is-cut",
        "A1, I12: a conflict at or below the commit index is refused",
        "raft/guard.py",
        "        if first_new <= self._engine.commit_index:\n",
        "        if first_new <= 0:\n",
        (f"{_RULES}::TestResending::test_ours_never_cuts_at_or_below_the_commit_index",),
    ),
    Defect(
        "heartbeat-commits-what-was-not-compared",
        "A2: only what a message was compared with is committed",
        "raft/guard.py",
        "commit_index=min(message.commit_index, end),",
        "commit_index=message.commit_index,",
        (f"{_RULES}::TestResending::test_ours_acknowledges_only_what_the_message_covered",),
    ),
    Defect(
        "heartbeat-acks-the-whole-log",
        "A2, I11: a follower acks no more than the leader compared",
        "raft/library.py",
        "            nextNodeIdx = self.ack_limit + 1\n",
        "            nextNodeIdx = self.journal.last_index + 1\n",
        (f"{_RULES}::TestResending::test_ours_acknowledges_only_what_the_message_covered",),
    ),
    Defect(
        "divergent-tail-survives-a-fill",
        "A2: behind an installed state the log stays only where it agrees",
        "raft/journal.py",
        "        if self.term_at(index) == term:\n",
        "        if self.term_at(index) is not None:\n",
        ("raft/test_journal.py",),
    ),
    Defect(
        "acknowledged-tail-lost-by-a-fill",
        "A3: an installed state cuts nothing that agrees and may have been acknowledged",
        "raft/journal.py",
        "            behind = self._items[index - self.base_index + 1 :]\n",
        "            behind = []\n",
        ("raft/test_journal.py",),
    ),
    Defect(
        "entry-applied-twice-after-an-exception",
        "A6: an entry is counted before it is applied",
        "raft/library.py",
        "            applied = self._SyncObj__raftLastApplied = index\n"
        "            self._apply(index, term, entry)\n",
        "            self._apply(index, term, entry)\n"
        "            applied = self._SyncObj__raftLastApplied = index\n",
        (
            "raft/test_library.py::TestClosedDoors::"
            "test_ours_applies_nothing_twice_even_if_applying_raises",
        ),
    ),
    Defect(
        "library-applies-entries",
        "A7: the library never looks into an entry",
        "raft/library.py",
        "    def _SyncObj__applyLogEntries(self) -> bool:\n",
        "    def _own_applyLogEntries(self) -> bool:\n",
        (
            "raft/test_library.py::TestNoPickle::"
            "test_an_entry_that_looks_like_a_command_of_the_library_is_only_bytes",
        ),
    ),
    Defect(
        "library-changes-membership",
        "A9: the library's own membership changes are off",
        "raft/library.py",
        "dynamicMembershipChange=False",
        "dynamicMembershipChange=True",
        ("raft/test_library.py::TestClosedDoors",),
    ),
    Defect(
        "library-compacts-the-log",
        "A3: no dump of the library is made or loaded",
        "raft/library.py",
        '        raise AssertionError("the library must not load a dump")\n',
        "        return None\n",
        ("raft/test_library.py::TestClosedDoors::test_ours_never_loads_a_dump_nor_compacts",),
    ),
    Defect(
        "another-library-is-accepted",
        "the seams hold for one exact source of the library",
        "raft/pinned.py",
        "    if VERSION != EXPECTED_VERSION or found != EXPECTED_SHA256:\n",
        "    if VERSION != EXPECTED_VERSION and found != EXPECTED_SHA256:\n",
        ("raft/test_library.py::TestSeams",),
    ),
    Defect(
        "reset-asks-for-the-end-of-the-log",
        "A15: every reset answers commit index + 1",
        "raft/library.py",
        "Ack(self.term, self.commit_index + 1, True, False)",
        "Ack(self.term, self.journal.last_index + 1, True, False)",
        (f"{_RULES}::TestConflicts",),
    ),
    Defect(
        "reset-goes-behind-what-the-peer-holds",
        "A16: a leader goes back no further than the peer's match index",
        "raft/library.py",
        "        target = max(next_index, self.match_index(peer) + 1)\n",
        "        target = next_index\n",
        (f"{_RULES}::TestConflicts",),
    ),
    Defect(
        "every-reset-sends-everything-again",
        "A16: of many resets only the first counts",
        "raft/window.py",
        "        if to == self._rewound_to and moment - self._rewound_at < pause_s:\n",
        "        if moment < self._rewound_at:\n",
        (f"{_RULES}::TestConflicts",),
    ),
    Defect(
        "deposed-leader-is-not-told",
        "A17: who speaks in an old term learns the current one",
        "raft/guard.py",
        "        if message.term < engine.term:\n"
        "            self._send(peer, TermNotice(engine.term))\n",
        "        if message.term < engine.term:\n",
        (f"{_RULES}::TestOldTerms",),
    ),
    Defect(
        "notice-of-a-higher-term-is-ignored",
        "A17: a deposed leader steps down at the notice",
        "raft/guard.py",
        "        if term > self._engine.term:\n",
        "        if term > self._engine.term + 100:\n",
        (f"{_RULES}::TestOldTerms",),
    ),
    Defect(
        "window-without-end",
        "A22: no more than a window is under way to a peer",
        "raft/window.py",
        "        return self._bytes < self._bytes_max\n",
        "        return self._bytes >= 0\n",
        ("raft/test_library.py::TestFlow",),
    ),
    Defect(
        "window-outlives-a-reign",
        "A22: what was under way in an earlier reign closes no window",
        "raft/library.py",
        "        for window in self._windows.values():\n            window.clear()\n",
        "",
        ("raft/test_library.py::TestFlow",),
    ),
    Defect(
        "slice-copies-the-log",
        "A23: an open slice of the log gives at most two items",
        "raft/journal.py",
        "            return self._items[key.start : key.start + 2]\n",
        "            return self._items[key.start :]\n",
        ("raft/test_journal.py",),
    ),
    Defect(
        "backlog-applied-in-one-turn",
        "A24: applying leaves room for heartbeats",
        "raft/library.py",
        "            if now() >= deadline:\n                break\n        return False\n",
        "        return False\n",
        ("raft/test_library.py::TestFlow",),
    ),
    Defect(
        "log-cut-beyond-the-disk",
        "A24: the log is cut only up to what this node has persisted",
        "raft/journal.py",
        "        droppable = min(persisted_index, self.last_index) - self.base_index\n",
        "        droppable = self.last_index - self.base_index\n",
        ("raft/test_journal.py::TestCutting",),
    ),
    Defect(
        "ack-of-another-term",
        "a: an ack counts only in the term in which it was given",
        "raft/guard.py",
        "        if message.term != engine.term:\n"
        "            self.notice_term(peer, message.term)\n"
        "            return\n",
        "        self.notice_term(peer, message.term)\n",
        (f"{_RULES}::TestOldTerms",),
    ),
    Defect(
        "ack-of-what-was-never-sent",
        "a, I11: nobody holds what the leader does not have",
        "raft/guard.py",
        "        if message.next_index > engine.journal.last_index + 1:\n",
        "        if message.next_index < 0:\n",
        (f"{_RULES}::TestOldTerms",),
    ),
    Defect(
        "ack-of-an-earlier-life",
        "a: what a peer held in an earlier incarnation counts no more",
        "raft/replica.py",
        "            self._engine.forget_peer(peer)\n",
        "",
        (
            "raft/test_recovery.py::TestClusters::"
            "test_a_restarted_follower_s_earlier_word_counts_no_more",
        ),
    ),
    Defect(
        "ack-of-a-stranger",
        "a: acks count only from members",
        "raft/guard.py",
        "        if not engine.leads or peer not in engine.membership.addresses:\n",
        "        if not engine.leads:\n",
        (f"{_RULES}::TestStrangers",),
    ),
    Defect(
        "term-that-no-election-led-to",
        "a term that no elections could have led to is not believed",
        "raft/guard.py",
        "        if term <= self._engine.term + _TERM_LEAP_MAX:\n",
        "        if term >= 0:\n",
        (f"{_RULES}::TestStrangers",),
    ),
    Defect(
        "second-leader-is-obeyed",
        "k: one leader a term",
        "raft/guard.py",
        "        if known not in (None, peer):\n",
        "        if known == 0:\n",
        (f"{_RULES}::TestTwoLeaders",),
    ),
    Defect(
        "second-leader-is-obeyed-after-a-silence",
        "k: the leader of a term is remembered also while none is known",
        "raft/guard.py",
        "        self._obeyed = message.term, peer\n",
        "",
        (f"{_RULES}::TestTwoLeaders",),
    ),
)
