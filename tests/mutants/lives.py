"""Defects in how streams end: what is removed, when its frames go, who knows of it."""

from __future__ import annotations

from tests.mutants.defect import Defect

_RETRIES = "core/test_retries.py"
_CORE = "core/test_lives.py"
_SWEEPER = "persistence/test_sweeper.py"
_API = "api/test_lives.py"
_LISTED = f"{_API}::test_all_streams_are_listed_with_their_lives_as_of_a_position"
_FILL = "raft/test_fill_lives.py"

DEFECTS = (
    Defect(
        "streams-as-of-now",
        "a list of streams as of a position tells how long they were there",
        "api/reads.py",
        "    size = bisect_right(stream.positions, until)\n",
        "    size = len(stream.positions)\n",
        (_LISTED,),
    ),
    Defect(
        "deleted-streams-not-listed",
        "whoever asks for deleted streams sees them, too",
        "api/reads.py",
        "merge(names, store.lives.departed.irange(minimum=start)) if deleted else names\n",
        "names\n",
        (_LISTED,),
    ),
    Defect(
        "all-deleted-streams-for-each-page",
        "a page of streams costs what it returns",
        "api/reads.py",
        "store.lives.departed.irange(minimum=start)) if deleted",
        "sorted(one for one in store.lives.departed if one >= start)) if deleted",
        (f"{_API}::test_a_page_of_deleted_streams_costs_what_it_returns",),
    ),
    Defect(
        "deleted-streams-out-of-order",
        "deleted streams stand in order of their names",
        "core/lives.py",
        "        self.departed: SortedDict[str, Stream] = SortedDict()\n",
        "        self.departed: SortedDict[str, Stream] = SortedDict(lambda name: -len(name))\n",
        (f"{_CORE}::test_deleted_streams_stand_in_order_of_their_names",),
    ),
    Defect(
        "deleted-for-ever-until-the-next-append",
        "a stream that was deleted hard takes no event again",
        "core/store.py",
        "        if found is None and self.lives.is_over(stream):\n"
        "            return StreamDeleted(stream)\n",
        "",
        (_CORE,),
    ),
    Defect(
        "truncation-of-the-future",
        "truncate_before removes no event that is yet to come",
        "core/lives.py",
        "            before = min(limits.truncate_before, len(found.positions))\n",
        "            before = limits.truncate_before\n",
        (_CORE,),
    ),
    Defect(
        "retry-of-a-swept-event-is-another",
        "I7: a retry has its original answer, whatever became of the events",
        "core/store.py",
        "        same = stored == frame if self.kept(position) else prints_of([stored]) =="
        " prints_of([frame])\n",
        "        same = stored == frame\n",
        (_CORE,),
    ),
    Defect(
        "retry-judged-by-what-is-swept",
        "a retry is answered alike on all nodes, whoever has swept",
        "core/store.py",
        "        same = stored == frame if self.kept(position) else",
        "        same = stored == frame if not stored.startswith(b'\\x83') else",
        (_RETRIES,),
    ),
    Defect(
        "limits-forgotten-in-shared-appends",
        "max_count counts however events come",
        "core/appending.py",
        "            _limit(store, ordinals)\n",
        "            pass\n",
        (_CORE,),
    ),
    Defect(
        "swept-before-the-cut",
        "a restart at the cut has all that was there to be read",
        "persistence/ledger.py",
        "                _merge(self._removed, Removal(name, store.origin, index, until))\n",
        "                _merge(self._sweepable, Removal(name, store.origin, index, until))\n",
        (_SWEEPER,),
    ),
    Defect(
        "swept-under-a-fill",
        "who is filled with a state has all that is there to be read in it",
        "persistence/ledger.py",
        "            if held_from is not None and removal.raft_index > held_from\n",
        "            if held_from is not None and removal.raft_index < held_from\n",
        (_SWEEPER,),
    ),
    Defect(
        "half-swept-for-ever",
        "a start goes on with what was not swept",
        "persistence/ledger.py",
        "        if self._state.applied_index == cut.raft_index:\n            self.release_all()\n",
        "",
        (_SWEEPER,),
    ),
    Defect(
        "swept-blocks-unsummed",
        "I13: what is read is what was written",
        "persistence/blocks.py",
        "        and _checksum(*block[:5]) == block.checksum\n",
        "        and (block.seal != block.checksum or _checksum(*block[:5]) == block.checksum)\n",
        (_SWEEPER,),
    ),
    Defect(
        "lives-are-not-rolled-back",
        "I13: a file rolled back to its mark is what was there",
        "persistence/store_file.py",
        "        life_rows.roll_back(self._connection, raft_index)\n",
        "",
        (_SWEEPER,),
    ),
    Defect(
        "a-deletion-is-nothing-new",
        "I13: what a fill installs is the state at its index",
        "raft/fill_receiver.py",
        " and fill_lives.fits(live.lives, one.lives):\n                self._staged.pop",
        ":\n                self._staged.pop",
        (_FILL,),
    ),
    Defect(
        "husks-of-kept-events",
        "an event that is kept has its frame",
        "core/store.py",
        "            if self.stream_list[ordinal].first < first:\n",
        "            if self.stream_list[ordinal].first < 0:\n",
        (_FILL,),
    ),
    Defect(
        "expired-by-everybody",
        "the leader's clock decides what is too old, and no other",
        "raft/retention.py",
        "            for name in sorted(self._state.stores) if self._log.leads else ():\n",
        "            for name in sorted(self._state.stores):\n",
        ("raft/test_retention.py",),
    ),
    Defect(
        "scan-trusts-what-it-saw-first",
        "no reader is shown what was removed",
        "api/filters.py",
        "            before, takes_all = left, self.wanted.takes_all and not store.lives.removed\n",
        "            before, takes_all = left, matcher.takes_all\n",
        (f"{_API}::test_events_that_are_removed_during_a_scan_are_passed_by",),
    ),
    Defect(
        "husk-is-handed-to-a-consumer",
        "no consumer is handed what was removed",
        "api/desks.py",
        "        kept = [one for one in fetched.deliveries if store.kept(one[0])]\n",
        "        kept = list(fetched.deliveries)\n",
        (f"{_API}::test_what_is_removed_before_a_fetch_is_answered_is_given_back_at_once",),
    ),
    Defect(
        "a-state-with-integers-for-keys",
        "what bounds the keys of one map bounds those of a fold, too",
        "core/folding.py",
        "        key = _as_text(key)\n",
        "",
        (
            "core/test_folding.py::test_the_keys_of_a_state_are_text",
            "api/test_folds.py"
            "::test_integer_keys_that_were_chosen_to_be_slow_cost_what_others_cost",
        ),
    ),
    Defect(
        "fold-of-removed-events",
        "a fold begins at what is kept",
        "api/folds.py",
        "range(max(began + 1, stream.first), last + 1)",
        "range(began + 1, last + 1)",
        (f"{_API}::test_a_fold_begins_at_what_is_kept_or_at_a_snapshot",),
    ),
)
