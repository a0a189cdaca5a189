"""Defects in what a command does to the state (I1, I3, I5, I6, I7)."""

from __future__ import annotations

from tests.mutants.defect import Defect

_RETRIES = "core/test_retries.py"
_VERSIONS = "core/test_expected_version.py"
_EACH = "core/test_append_each.py"
_LOADING = "core/test_loading.py"

DEFECTS = (
    Defect(
        "end-of-memory-refuses-a-command",
        "I3: what one node cannot do is no outcome",
        "core/commands.py",
        "    except MemoryError:\n        raise  #",
        "    except ZeroDivisionError:\n        raise  #",
        ("core/test_apply_is_total.py::test_the_end_of_memory_is_no_answer",),
    ),
    Defect(
        "checkpoint-of-a-retry-is-no-change",
        "I13: a checkpoint that moved reaches the disk, also where no event was stored",
        "core/state.py",
        "            self._changed.add(store.name)  # also where the events were stored before\n",
        "            pass\n",
        (
            "core/test_retries.py::test_a_checkpoint_moves_forward_although_all_events_were_stored_before",
        ),
    ),
    Defect(
        "version-judged-before-ids",
        "I7: event ids are looked up before the expected version",
        "core/store.py",
        "        if self._recent.knows_any(ids) or _repeats(ids):\n"
        "            return self._earlier_try([(stream, frame) for frame in frames])\n"
        "        found = self.streams.get(stream)\n"
        "        current = NO_STREAM if found is None else len(found.positions) - 1\n"
        "        if found is None and self.lives.is_over(stream):\n"
        "            return StreamDeleted(stream)\n"
        "        if expected != ANY and not as_expected(expected, current):\n"
        "            return WrongExpectedVersion(stream, expected, current)\n",
        "        found = self.streams.get(stream)\n"
        "        current = NO_STREAM if found is None else len(found.positions) - 1\n"
        "        if found is None and self.lives.is_over(stream):\n"
        "            return StreamDeleted(stream)\n"
        "        if expected != ANY and not as_expected(expected, current):\n"
        "            return WrongExpectedVersion(stream, expected, current)\n"
        "        if self._recent.knows_any(ids) or _repeats(ids):\n"
        "            return self._earlier_try([(stream, frame) for frame in frames])\n",
        (_RETRIES,),
    ),
    Defect(
        "retry-stores-again",
        "I1, I7: the same event ids are stored once",
        "core/store.py",
        "        if self._recent.knows_any(ids) or _repeats(ids):\n"
        "            return self._earlier_try([(stream,",
        "        if _repeats(ids):\n            return self._earlier_try([(stream,",
        (_RETRIES,),
    ),
    Defect(
        "retry-with-other-content",
        "I7: an id that is stored with other content is refused",
        "core/store.py",
        "        return same and self.record(position).stream == stream\n",
        "        return self.record(position).stream == stream\n",
        (_RETRIES,),
    ),
    Defect(
        "half-a-retry-is-a-retry",
        "I6, I7: of an append all is stored, or nothing",
        "core/store.py",
        "        if len(positions) < len(events):\n",
        "        if not positions:\n",
        (_RETRIES,),
    ),
    Defect(
        "ids-of-a-restart-forgotten",
        "I7: a loaded store remembers what one that never stopped does",
        "core/columns.py",
        "            self._recent.extend(ids, range(after + 1, until + 1))\n",
        "",
        (_LOADING,),
    ),
    Defect(
        "generations-by-the-restart",
        "I7, I4: what is remembered depends on the position alone",
        "core/recent.py",
        "    return max(0, count // REMEMBERED_MIN - 1) * REMEMBERED_MIN\n",
        "    return max(0, count - REMEMBERED_MIN)\n",
        (_RETRIES, _LOADING),
    ),
    Defect(
        "two-writers-win",
        "I5: of appends that expect the same version exactly one succeeds",
        "core/store.py",
        "        if expected != ANY and not as_expected(expected, current):\n",
        "        if expected != ANY and not as_expected(expected, min(current, expected)):\n",
        (_VERSIONS,),
    ),
    Defect(
        "refused-check-after-the-events",
        "I6: an append to several streams is all or nothing",
        "core/store.py",
        "            or self._refused_check(checks)\n",
        "            or self._refused_check(checks[:1])\n",
        (_VERSIONS,),
    ),
    Defect(
        "checkpoint-goes-back",
        "I9: a checkpoint only moves forward",
        "core/store.py",
        "        if current is None or position > current:\n",
        "        if current is None or position >= 0:\n",
        (_RETRIES,),
    ),
    Defect(
        "time-goes-back",
        "created never decreases",
        "core/columns.py",
        "        if created and created[-1] > created_us:\n"
        "            created_us = created[-1]\n        self._frames.append(frame)\n",
        "        self._frames.append(frame)\n",
        (_LOADING,),
    ),
    Defect(
        "rows-with-a-gap",
        "I3: positions are 1..m without gaps",
        "core/columns.py",
        "        if first != after + 1:\n",
        "        if first <= after:\n",
        (_LOADING,),
    ),
    Defect(
        "numbers-with-a-gap",
        "I3: numbers in a stream are 0..n without gaps",
        "core/columns.py",
        '        if self._number_of[after:] != array("Q", numbers):\n',
        "        if not numbers:\n",
        (_LOADING,),
    ),
    Defect(
        "malformed-command-raises",
        "A6: apply is total",
        "core/commands.py",
        '    need(all(type(ref) is int and 0 <= ref < len(streams) for ref in refs), "refs")\n',
        "",
        ("core/test_apply_is_total.py::test_an_event_of_a_stream_that_is_not_listed_is_malformed",),
    ),
    Defect(
        "malformed-entry-ends-the-node",
        "A6: an entry that makes no sense is passed over",
        "raft/entries.py",
        "    except (plain.NotPlain, TypeError, ValueError) as error:\n"
        '        raise MalformedEntry(f"no entry',
        '    except plain.NotPlain as error:\n        raise MalformedEntry(f"no entry',
        ("raft/test_messages.py::test_any_value_is_an_entry_or_malformed_and_nothing_else",),
    ),
    Defect(
        "what-waits-counts-as-settled",
        "a subscription that begins behind settled_position misses nothing",
        "core/subscription.py",
        "            unsettled += [one.position - 1 for one in line.waiting[:1]]\n",
        "            unsettled += [self.cursor for one in line.waiting[:1]]\n",
        ("core/test_subscription_model.py",),
    ),
    Defect(
        "what-was-passed-by-counts-as-settled",
        "a subscription that begins behind settled_position misses nothing",
        "core/subscription.py",
        "                unsettled.append(line.behind)\n",
        "                unsettled.append(self.cursor)\n",
        ("core/test_subscription_model.py",),
    ),
    Defect(
        "refused-append-keeps-its-frames",
        "I3: a refusal has changed nothing",
        "core/appending.py",
        "stored = [place not in outcome.others for",
        "stored = [place >= 0 for",
        (_EACH,),
    ),
    Defect(
        "retry-among-others-is-stored-twice",
        "I7: an event id is stored once",
        "core/appending.py",
        "    if store._recent.knows_any(ids) or len(set(ids)) < len(ids):\n",
        "    if len(set(ids)) < len(ids):\n",
        (_EACH,),
    ),
    Defect(
        "a-sum-grows-beyond-what-can-be-written",
        "the state of a fold can be answered, and recorded as a snapshot",
        "core/folding.py",
        "    if type(added) is int and added.bit_length() > INTEGER_BITS_MAX:\n",
        "    if type(added) is int and added > 1 << INTEGER_BITS_MAX:\n",
        ("core/test_folding.py::test_a_sum_is_as_long_as_a_value_may_be",),
    ),
)
