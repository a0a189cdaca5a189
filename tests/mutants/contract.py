"""Defects in what a client is told, and how fresh (I2, I8, durability on request)."""

from __future__ import annotations

from tests.mutants.defect import Defect

_READING = "api/test_reading.py"
_GATHERING = "api/test_gathering.py"
_APPENDING = "api/test_appending.py"
_FRAMING = "api/test_framing.py"
_CROWDS = "api/test_crowds.py"
_WIRE = "api/test_wire.py"

DEFECTS = (
    Defect(
        "big-integers-in-haste",
        "an integer of too many bits is refused, also where all values are judged at once",
        "api/values.py",
        "_encode_plain = partial(msgspec.msgpack.encode, ",
        "_encode_plain = partial(msgspec.json.encode, ",
        ("api/test_bad_input.py::test_cbor_values_that_cannot_be_kept_are_refused",),
    ),
    Defect(
        "integers-of-json-may-be-longer",
        "what was taken as JSON can be written back as CBOR",
        "api/framing.py",
        "    return not any(body[start : start + _HALF_DIGITS].isdigit() for start in starts)\n",
        "    return not any(body[start : start + _LARGE_DIGITS].isdigit() for start in starts)\n",
        ("api/test_bad_input.py::test_too_long_an_integer_is_found_wherever_it_stands",),
    ),
    Defect(
        "snapshots-of-json-hold-longer-integers",
        "what was taken as JSON can be written back as CBOR",
        "api/framing.py",
        "            plain = _is_plain_json(raw, media)\n",
        "            plain = media is JSON\n",
        ("api/test_bad_input.py::test_an_integer_is_as_long_in_json_as_in_cbor",),
    ),
    Defect(
        "who-leaves-is-waited-for",
        "who has left holds no place among the connections",
        "api/wire.py",
        "            self.on_gone = task.cancel\n",
        "            pass\n",
        (f"{_WIRE}::test_a_wait_that_is_long_ends_with_the_client_at_once",),
    ),
    Defect(
        "who-left-before-the-wait-is-waited-for",
        "who has left holds no place among the connections",
        "api/wire.py",
        "        if self.is_gone:\n            task.cancel()\n",
        "        if task.cancelling():\n            task.cancel()\n",
        (f"{_WIRE}::test_a_wait_ends_with_the_client_that_leaves",),
    ),
    Defect(
        "who-says-no-more-has-no-moment",
        "`printf ... | nc -N` is answered",
        "api/wire.py",
        "call_later(_MOMENT_S, self._end_with_client, task)",
        "call_later(0, self._end_with_client, task)",
        (f"{_WIRE}::test_who_says_no_more_is_answered_after_a_short_wait",),
    ),
    Defect(
        "who-says-no-more-keeps-its-place",
        "who has left holds no place among the connections",
        "api/wire.py",
        "            if request is None or self._current_request is not request:\n",
        "            if True:\n",
        (f"{_WIRE}::test_who_says_no_more_has_a_bounded_time_for_each_answer",),
    ),
    Defect(
        "who-says-no-more-has-one-time-for-all-answers",
        "`printf ... | nc -N` is answered",
        "api/wire.py",
        "            if request is None or self._current_request is not request:\n",
        "            if request is None:\n",
        (f"{_WIRE}::test_who_says_no_more_has_a_bounded_time_for_each_answer",),
    ),
    Defect(
        "lost-connections-are-counted",
        "who has left holds no place among the connections",
        "api/wire.py",
        " and sum(one._manager is not None for one in known) > limit\n",
        "\n",
        (f"{_WIRE}::test_who_is_gone_has_no_place_while_an_append_goes_on",),
    ),
    Defect(
        "unread-path-without-index",
        "an answer about what may be a store tells the applied index",
        "api/server.py",
        "        answer.lines += index_header(self._state)\n",
        '        answer.lines += b""\n',
        (_WIRE,),
    ),
    Defect(
        "any-number-of-integer-keys",
        "no map that is decoded has keys that somebody chose to be slow",
        "api/walking.py",
        "            if integers[depth] > INTEGER_KEYS_MAX:\n",
        "            if integers[depth] < 0:\n",
        ("api/test_walking.py::test_how_many_integer_keys_a_map_may_have_is_a_published_limit",),
    ),
    Defect(
        "ids-of-a-batch-are-judged-by-their-sum",
        "an event id is a UUID, also among others",
        "api/event_ids.py",
        "    if kinds != {str} or set(map(len, given)) != {_TEXT_LENGTH}:\n",
        "    if kinds != {str} or sum(map(len, given)) != _TEXT_LENGTH * len(given):\n",
        (f"{_FRAMING}::test_a_batch_with_a_bad_id_is_refused_and_names_its_event",),
    ),
    Defect(
        "values-of-a-batch-are-split-unseen",
        "an event keeps the value that it came with, also among others",
        "api/framing.py",
        "    return items[1:] if len(items) == len(values) + 1 else None\n",
        "    return items[1:]\n",
        (f"{_FRAMING}::test_a_value_that_looks_like_the_seam_between_two_is_kept_as_it_is",),
    ),
    Defect(
        "content-types-of-a-batch-are-taken-for-one",
        "an event keeps its content type, also among others",
        "api/framing.py",
        "    return kinds.pop() if len(kinds) == 1 else None\n",
        "    return kinds.pop()\n",
        (f"{_FRAMING}::test_a_cbor_batch_of_octets_and_others_keeps_the_content_type_of_each",),
    ),
    Defect(
        "events-of-a-batch-may-have-any-size",
        "an event has at most `event_bytes_max`, also among others",
        "api/framing.py",
        "        if max(map(add, map(len, data), map(len, metadata))) > self._limits.",
        "        if max(map(len, data)) > self._limits.",
        (f"{_FRAMING}::test_a_batch_with_an_event_that_is_too_large_is_refused",),
    ),
    Defect(
        "recovering-node-serves-reads",
        "recovering: no reads of clients",
        "api/levels.py",
        "        if self._replica.recovering:\n",
        "        if self._replica is None:\n",
        (f"{_READING}::test_a_recovering_node_serves_no_reads",),
    ),
    Defect(
        "read-level-is-ignored",
        "h, I8: a read is as fresh as it asks to be",
        "api/levels.py",
        '        if level != "local":\n',
        '        if level == "none":\n',
        (f"{_READING}::test_a_read_level_is_a_barrier_before_the_read",),
    ),
    Defect(
        "read-bound-is-ignored",
        "I8: a session with a token never goes back",
        "api/levels.py",
        "        if index is not None and self._state.applied_index < index:\n",
        "        if index == -1:\n",
        (f"{_READING}::test_a_bound_waits_until_this_node_has_come_so_far",),
    ),
    Defect(
        "any-number-may-be-expected",
        "a refusal can be written, whatever the client gave",
        "api/appends.py",
        " and given.bit_length() <= INTEGER_BITS_MAX:\n",
        ":\n",
        (f"{_APPENDING}::test_an_expected_version_too_long_to_be_written_is_refused",),
    ),
    Defect(
        "a-refusal-that-cannot-be-written-cuts-the-connection",
        "a defect of ours is answered",
        "api/server.py",
        "            except Exception:  # such as a field that cannot be written\n",
        "            except ZeroDivisionError:\n",
        ("api/test_bad_input.py::test_a_refusal_that_cannot_be_written_is_a_500_too",),
    ),
    Defect(
        "durable-append-answers-from-memory",
        "durability=persisted: answered when a majority has it on disk",
        "api/appends.py",
        "        durable = wanted == commands.PERSISTED\n",
        "        durable = False\n",
        (_APPENDING,),
    ),
    Defect(
        "durable-append-to-several-answers-from-memory",
        "durability=persisted: answered when a majority has it on disk",
        "api/appends.py",
        """\
                await self._on_disk(index, request.parameters["timeout_ms"])
            return _appended(request, outcome, index)
        raise refused(outcome, checks)
""",
        """\
                pass
            return _appended(request, outcome, index)
        raise refused(outcome, checks)
""",
        (_APPENDING,),
    ),
    Defect(
        "unknown-outcome-told-as-not-stored",
        "A14, I2: what may be stored is never called definite",
        "errors.py",
        '    stored: ClassVar[str] = "perhaps"\n',
        '    stored: ClassVar[str] = "no"\n',
        (_APPENDING,),
    ),
    Defect(
        "append-told-the-outcome-of-its-neighbour",
        "who appends is told what became of that append",
        "api/gathering.py",
        "outcome.of(place, self.streams[place], self.counts[place])",
        "outcome.of(0, self.streams[place], self.counts[place])",
        (_GATHERING,),
    ),
    Defect(
        "appends-overtake-one-another",
        "what comes after one another on a connection is proposed in that order",
        "api/gathering.py",
        "        self.send()\n        self._propose(command, timeout_ms, then)\n",
        "        self._propose(command, timeout_ms, then)\n",
        (_GATHERING,),
    ),
    Defect(
        "packed-answer-takes-one-number-for-another",
        "an append over a WebSocket is told where its event is",
        "api/socket_messages.py",
        'b"\\x84\\x1b", first, b"\\x1b", last)',
        'b"\\x84\\x1b", last, b"\\x1b", index)',
        ("api/test_conversation.py",),
    ),
    Defect(
        "far-follower-drives-out-what-is-shared",
        "an event is encoded once for all who follow closely",
        "api/courses.py",
        "        if is_close:\n",
        "        if True:\n",
        ("api/test_following.py::test_an_event_is_encoded_once_for_all_who_follow_closely",),
    ),
    Defect(
        "last-word-names-what-was-not-sent",
        "a slow client goes on behind the last event that it was sent",
        "api/following.py",
        "        self._sent = piece.last\n",
        "        self._sent = self._course.position\n",
        ("api/test_following.py::test_the_last_word_to_a_slow_client_is_what_it_was",),
    ),
    Defect(
        "crowd-tells-a-newcomer-what-it-knows",
        "a follower that has caught up is told each event once",
        "api/crowds.py",
        "                if member.knows <= before:\n",
        "                if True:\n",
        (f"{_CROWDS}::test_a_newcomer_is_not_told_again_what_it_knows_already",),
    ),
    Defect(
        "crowd-writes-to-who-has-no-room",
        "what waits for a client that follows is bounded",
        "api/crowds.py",
        "            if not has_room:\n",
        "            if not has_room and not member.outflow.chunked:\n",
        (f"{_CROWDS}::test_one_of_a_crowd_that_takes_nothing_is_cut_off_with_its_last_word",),
    ),
    Defect(
        "slow-member-is-not-told-that-it-has-caught-up",
        "who fell back hears when it has caught up",
        "api/crowds.py",
        "self.is_behind or (self._was_behind and count < len(pieces))",
        "self.is_behind",
        (_CROWDS,),
    ),
    Defect(
        "page-of-checkpoints-begins-with-the-last-one",
        "a page begins behind the last one of the page before",
        "api/checkpoints.py",
        "        behind = (name for name in store.checkpoints if name > after)\n",
        "        behind = (name for name in store.checkpoints if name >= after)\n",
        ("api/test_stores_and_checkpoints.py::test_checkpoints_are_listed_by_name_in_pages",),
    ),
)
