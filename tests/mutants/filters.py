"""Defects in filters: what is equal, what exists, how far was looked."""

from __future__ import annotations

from tests.mutants.defect import Defect

_CORE = "core/test_conditions.py"
_MODEL = "core/test_subscription_model.py"
_DOORS = "api/test_filters.py"

DEFECTS = (
    Defect(
        "true-is-one",
        "filters: a truth value is no number",
        "core/conditions.py",
        "    bool: _TRUTH,\n",
        "    bool: _NUMBER,\n",
        (f"{_CORE}::test_what_is_equal_to_what",),
    ),
    Defect(
        "integer-keys-are-not-found",
        "filters: an integer key goes by its digits",
        "core/conditions.py",
        "        if found is _NOTHING and number is not None:\n",
        "        if found is _NOTHING and number is None:\n",
        (f"{_CORE}::test_where_keys_lead",),
    ),
    Defect(
        "negative-index-counts-from-the-end",
        "filters: an index is counted from 0",
        "core/conditions.py",
        "number is not None and 0 <= number < len(value)",
        "number is not None and number < len(value)",
        (f"{_CORE}::test_where_keys_lead",),
    ),
    Defect(
        "null-inside-does-not-exist",
        "filters: only a payload that is null does not exist",
        "core/conditions.py",
        "not (is_payload and found is None)",
        "found is not None",
        (f"{_CORE}::test_the_payload_exists_where_it_is_not_null_and_a_null_inside_exists",),
    ),
    Defect(
        "undecodable-event-raises",
        "apply is total: nothing in an event makes a filter raise",
        "core/conditions.py",
        "    except Exception:  # the library",
        "    except cbor2.CBORDecodeEOF:  # the library",
        (f"{_CORE}::test_in_what_cannot_be_decoded_there_is_nothing",),
    ),
    Defect(
        "conditions-are-unbounded-together",
        "the gate checks every field of a command",
        "core/conditions.py",
        '    need(len(cbor2.dumps(described(conditions))) <= CONDITIONS_BYTES_MAX, "where")\n',
        "",
        (f"{_CORE}::test_what_is_no_condition_is_refused",),
    ),
    Defect(
        "conditions-are-lost-in-a-subscription",
        "a subscription on disk and in a fill is the one that was made",
        "core/subscription_commands.py",
        "    where = conditions.decoded(given[7]) if len(given) == 8 else ()\n",
        "    where = conditions.decoded(given[7])[:0] if len(given) == 8 else ()\n",
        (_MODEL, _DOORS),
    ),
    Defect(
        "subscription-ends-where-it-looked-enough",
        "a fetch that ended at its bounds says so",
        "core/subscription.py",
        "        has_more = turn.exhausted and",
        "        has_more = turn.evaluations <= 0 and",
        (_MODEL,),
    ),
    Defect(
        "scan-skips-where-it-decoded-enough",
        "a filtered reader that follows next skips nothing",
        "api/filters.py",
        "                    if matcher.decoded_bytes >= decoded_max:\n",
        "                    if matcher.decoded_bytes >= decoded_max:\n"
        "                        self.next = self._edge(store.position)\n",
        (f"{_DOORS}::test_a_reader_with_conditions_that_follows_next_sees_each_match_once",),
    ),
    Defect(
        "scan-goes-on-behind-its-types",
        "a filtered reader misses no event, whatever comes up meanwhile",
        "api/filters.py",
        "        while left > 0 and not self.is_end(head):\n",
        "        while left > 0 and not self.is_end(head := store.position):\n",
        (f"{_DOORS}::test_a_type_that_comes_up_during_a_scan_is_not_missed",),
    ),
)
