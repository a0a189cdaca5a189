"""`apply` answers anything at all with an outcome, and what it refuses has changed nothing.

A command that raised would stop every node at the same entry, for ever.
"""

from __future__ import annotations

import math
import time
import warnings
from decimal import Decimal
from fractions import Fraction

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core import commands, life_commands
from node.core import subscription_commands as asked
from node.core.conditions import ANY_OF, EXISTS, Condition
from node.core.fields import TIME_US_MAX
from node.core.filters import Filter
from node.core.frames import encode_frame
from node.core.outcomes import (
    Appended,
    AppendedEach,
    BarrierPassed,
    CheckpointMoved,
    CheckpointNotIncreasing,
    EventIdReused,
    Expired,
    Fetched,
    Malformed,
    MetadataSet,
    Replayed,
    Settled,
    SnapshotDeleted,
    SnapshotNotFound,
    SnapshotRecorded,
    SnapshotTooOld,
    StoreCreated,
    StoreDeleted,
    StoreNotFound,
    StreamDeleted,
    StreamNotFound,
    StreamRemoved,
    Subscribed,
    SubscriptionExists,
    SubscriptionNotFound,
    Unsubscribed,
    WrongExpectedVersion,
)
from node.core.snapshots import PLACE_BITS, encode_content
from node.core.state import State
from node.core.stream import Limits
from tests.core.observed import contents, event_id, frame, started

REFUSALS = (
    Malformed,
    WrongExpectedVersion,
    EventIdReused,
    StoreNotFound,
    CheckpointNotIncreasing,
    SnapshotNotFound,
    SnapshotTooOld,
    SubscriptionExists,
    SubscriptionNotFound,
    StreamNotFound,
    StreamDeleted,
)
OUTCOMES = (
    *REFUSALS,
    Appended,
    AppendedEach,
    StoreCreated,
    StoreDeleted,
    CheckpointMoved,
    SnapshotRecorded,
    SnapshotDeleted,
    Subscribed,
    Unsubscribed,
    Fetched,
    Settled,
    Replayed,
    StreamRemoved,
    MetadataSet,
    Expired,
    BarrierPassed,
)

SNAPSHOT = encode_content("Order", b"\x01", b"\xf6")
WHERE = (Condition(("data", "k"), ANY_OF, ((2, 1), (3, "x"))), Condition(("metadata",), EXISTS))
FILTER = Filter(("T", "x" * 100), "s", "s", WHERE)
WANTED = asked.Definition(FILTER, asked.START_AT_END, 1000, 3, 2)
LOOKING = asked.Definition(Filter(where=WHERE), 0, 1000, 3, 2)
FIRST = asked.Delivery((2 << PLACE_BITS) + 4, 1, 1)
VALID = [
    commands.append("main", 5, "s", commands.ANY, [frame(1), frame(2, "x" * 100)]),
    commands.append("main", 5, "s", 2**62, [frame(3)]),
    commands.append_many(
        "main",
        5,
        [("s", frame(4)), ("t", frame(5)), ("s", frame(6))],
        [("s", 0), ("t", commands.NO_STREAM)],
        ("p", 7),
    ),
    commands.append_many("main", 5, [], [], ("p", 1)),
    commands.append_each(
        "main",
        5,
        ["s", "t", "s"],
        [0, -1, commands.ANY],
        [1, 1, 2],
        [frame(at) for at in (7, 8, 9, 10)],
    ),
    commands.append_each("main", 5, ["s", "u"], [commands.ANY] * 2, [1, 1], [frame(90), frame(7)]),
    commands.put_store("main", 5, "persisted"),
    commands.put_store("main", 5, None, 1),
    commands.put_snapshot("main", 5, "o-1", "s", 7, SNAPSHOT),
    commands.delete_snapshot("main", "o-1", "s", 3),
    commands.create_store("other", 5),
    commands.delete_store("main"),
    commands.put_checkpoint("main", "p", 3),
    asked.subscribe("main", 5, "other", WANTED),
    asked.subscribe("main", 5, "all", WANTED),
    asked.unsubscribe("main", "all"),
    asked.fetch("main", 5, "all", "c", 5),
    asked.settle("main", 5, "all", [(FIRST, asked.ACK), (FIRST, asked.SKIP)]),
    asked.settle("main", 2**50, "all", [(FIRST, asked.RETRY)]),
    asked.replay("main", 5, "all", [1, 2]),
    life_commands.set_metadata("main", "s", Limits(1, 1, 1)),
    life_commands.set_metadata("main", "s", Limits()),
    life_commands.expire("main", 2**40),
    life_commands.delete_stream("main", "s", 0, False),
    life_commands.delete_stream("main", "s", commands.ANY, True),
    commands.barrier(),
]

# Values that a field does not expect: other types, edges of ranges, what cannot be compared,
# printed, hashed or encoded without care.
NESTED: list[object] = []
for _ in range(300):
    NESTED = [NESTED]
ODD = [
    None,
    True,
    False,
    0,
    -1,
    -2,
    -3,
    -5,
    2**62 + 1,
    2**63,
    2**64,
    -(2**64),
    10**5000,
    -(10**5000),
    1.0,
    math.nan,
    math.inf,
    Decimal("NaN"),
    Decimal("1e400"),
    Fraction(1, 3),
    "",
    "x" * 256,
    "é" * 128,
    "x" * 100_000,
    "\0",
    b"",
    b"main",
    b"x" * 100,
    [],
    [[]],
    [None],
    ["s"],
    ["s", 0],
    ["s", 0, 0],
    [["s", 0]],
    [["s", None]],
    [["s", -3]],
    [[["s"], 0]],
    NESTED,
    {},
    {"s": 0},
    {1: {2: 3}},
    {1, "one", (2, 3)},
    cbor2.undefined,
    cbor2.CBORSimpleValue(99),
    cbor2.CBORTag(6000, [1]),
]


def apply_and_compare(state: State, encoded: bytes) -> object:
    """Apply a command; check that the state is sound, and the same as before if it was refused."""
    before = contents(state)["stores"]
    [outcome] = state.apply(state.applied_index + 1, 1, [encoded])
    assert isinstance(outcome, OUTCOMES)
    state.check()
    if isinstance(outcome, REFUSALS):
        assert contents(state)["stores"] == before
    return outcome


def filled() -> State:
    """A state with something in it that a command could spoil."""
    state = started("main")
    state.apply(
        2,
        1,
        [
            commands.append("main", 9, "s", -1, [frame(90)]),
            commands.put_checkpoint("main", "p", 2),
            commands.put_snapshot("main", 9, "o-1", "s", 3, SNAPSHOT),
            commands.put_snapshot("main", 9, "o-1", "s", 9, SNAPSHOT),
            asked.subscribe("main", 9, "all", asked.Definition(Filter(), 0, 100, 0, 9)),
            commands.append("main", 9, "t", -1, [frame(91), frame(92)]),
            asked.fetch("main", 9, "all", "c", 1),
        ],
    )
    return state


cbor_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40)
    | st.sampled_from(range(len(ODD))).map(lambda at: ODD[at]),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.integers() | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=20))
def test_arbitrary_bytes_are_answered_and_change_nothing(garbage):
    state = filled()
    for encoded in garbage:
        apply_and_compare(state, encoded)


@given(st.sampled_from(VALID), st.binary(max_size=80))
def test_arbitrary_bytes_behind_the_head_of_a_command_are_answered(command, garbage):
    apply_and_compare(filled(), command[:3] + garbage)


@given(cbor_values)
def test_arbitrary_cbor_is_answered_and_changes_nothing(value):
    assert isinstance(apply_and_compare(filled(), cbor2.dumps(value)), Malformed)


@given(st.sampled_from(VALID), st.data())
def test_arbitrary_cbor_in_place_of_fields_is_answered(command, data):
    fields = cbor2.loads(command)
    for _ in range(data.draw(st.integers(1, 3))):
        fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(cbor_values)
    apply_and_compare(filled(), cbor2.dumps(fields))


@given(st.sampled_from(VALID), st.data())
def test_a_command_with_flipped_lost_or_added_bytes_is_answered(command, data):
    mutated = bytearray(command)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(mutated) - 1))
        match data.draw(st.integers(0, 3)):
            case 0:
                mutated[place] ^= 1 << data.draw(st.integers(0, 7))
            case 1:
                mutated[place] = data.draw(st.integers(0, 255))
            case 2:
                mutated[place:place] = data.draw(st.binary(min_size=1, max_size=9))
            case 3:
                del mutated[place : place + data.draw(st.integers(1, len(mutated)))]
                mutated = mutated or bytearray(b"\0")
    apply_and_compare(filled(), bytes(mutated))


@pytest.mark.parametrize("command", VALID, ids=range(len(VALID)))
def test_every_field_refuses_every_odd_value_or_takes_it_whole(command):
    fields = cbor2.loads(command)
    for place in range(len(fields)):
        for odd in ODD:
            changed = [*fields[:place], odd, *fields[place + 1 :]]
            apply_and_compare(filled(), cbor2.dumps(changed))


@pytest.mark.parametrize("command", VALID, ids=range(len(VALID)))
def test_a_command_with_a_field_too_few_or_too_many_is_malformed(command):
    fields = cbor2.loads(command)
    for changed in (fields[:-1], [*fields, None], [*fields, *fields]):
        assert isinstance(apply_and_compare(filled(), cbor2.dumps(changed)), Malformed)


@pytest.mark.parametrize("command", VALID, ids=range(len(VALID)))
def test_every_beginning_of_a_command_is_malformed(command):
    state = filled()
    for length in range(len(command)):
        assert isinstance(apply_and_compare(state, command[:length]), Malformed)


@pytest.mark.parametrize(
    "version", [0, 2, 23, 24, 255, True, 1.0, "1", None, 10**5000], ids=range(10)
)
def test_another_format_version_is_malformed(version):
    fields = cbor2.loads(VALID[0])
    encoded = cbor2.dumps([version, *fields[1:]])
    assert isinstance(apply_and_compare(filled(), encoded), Malformed)


@pytest.mark.parametrize(
    "kind", [6, 23, 24, -1, True, 0.0, "0", None, 10**5000, NESTED], ids=range(10)
)
def test_an_unknown_kind_is_malformed(kind):
    # A number of more than 4300 digits cannot even be printed.
    encoded = cbor2.dumps([1, kind, *cbor2.loads(VALID[0])[2:]])
    assert isinstance(apply_and_compare(filled(), encoded), Malformed)


def test_a_refusal_reads_the_same_on_every_node():
    # A set has another order in every process, so its content may not show.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [outcome] = filled().apply(3, 1, [cbor2.dumps([1, {"a", "b", "c"}])])
    assert isinstance(outcome, Malformed)
    assert "'a'" not in outcome.detail


@pytest.mark.parametrize(
    "name",
    ["", "A", "a/b", "..", "../a", "a b", "-a", ".a", "a\n", "a\0", "é", "x" * 65, None, 7, b"a"],
)
def test_a_store_whose_name_could_not_name_its_file_is_never_made(name):
    encoded = cbor2.dumps([1, 2, name, 5])
    assert isinstance(apply_and_compare(filled(), encoded), Malformed)


@pytest.mark.parametrize("name", ["a", "_", "0", "a.b-c_d", "x" * 64])
def test_every_name_that_the_contract_allows_names_a_store(name):
    [outcome] = State().apply(1, 1, [commands.create_store(name, 5)])
    assert outcome == StoreCreated(True)


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "日" * 85, "a/b\n"])
def test_names_of_streams_and_checkpoints_have_up_to_255_bytes(name):
    state = started()
    outcomes = state.apply(
        2,
        1,
        [
            commands.append("main", 5, name, -1, [frame(1)]),
            commands.append_many("main", 5, [(name, frame(2))], [(name, 0)], (name, 1)),
            commands.put_checkpoint("main", name, 2),
        ],
    )
    assert [type(one) for one in outcomes] == [Appended, Appended, CheckpointMoved]


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128, "日" * 86, "😀" * 64, None, 7, b"s"])
def test_longer_names_and_values_that_are_no_names_are_malformed(name):
    for fields in (
        [1, 0, "main", 5, name, -2, [frame(1)]],
        [1, 1, "main", 5, [name], [0], [frame(1)], [], None],
        [1, 1, "main", 5, ["s"], [0], [frame(1)], [[name, -2]], None],
        [1, 1, "main", 5, ["s"], [0], [frame(1)], [], [name, 1]],
        [1, 4, "main", name, 1],
    ):
        assert isinstance(apply_and_compare(filled(), cbor2.dumps(fields)), Malformed)


@pytest.mark.parametrize("created_us", [TIME_US_MAX + 1, -1, 5.0, None])
def test_a_time_that_is_no_date_is_malformed(created_us):
    encoded = cbor2.dumps([1, 0, "main", created_us, "s", -2, [frame(1)]])
    assert isinstance(apply_and_compare(filled(), encoded), Malformed)


@pytest.mark.parametrize(
    "refs", [[-1, 0], [0, 2], [0], [0, 1, 1], [0, True], [0, 1.0], [0, None], {0: 1}, None]
)
def test_an_event_of_a_stream_that_is_not_listed_is_malformed(refs):
    encoded = cbor2.dumps([1, 1, "main", 5, ["s", "t"], refs, [frame(1), frame(2)], [], None])
    assert isinstance(apply_and_compare(filled(), encoded), Malformed)


def test_a_refused_command_does_not_stop_the_others_of_its_entry():
    state = started()
    outcomes = state.apply(
        2,
        3,
        [
            commands.append("main", 5, "s", -1, [frame(1)]),
            b"garbage",
            commands.append("nowhere", 5, "s", -1, [frame(2)]),
            commands.append("main", 5, "s", -1, [frame(3)]),
            commands.append("main", 5, "s", 0, [frame(4)]),
        ],
    )
    assert [type(one) for one in outcomes] == [
        Appended,
        Malformed,
        StoreNotFound,
        WrongExpectedVersion,
        Appended,
    ]
    assert (state.applied_index, state.applied_term) == (2, 3)


def test_an_entry_without_commands_moves_the_applied_index():
    state = started()
    assert state.apply(8, 2, []) == []
    assert (state.applied_index, state.applied_term) == (8, 2)


def test_the_end_of_memory_is_no_answer(monkeypatch):
    """The other nodes may have had enough: one that refused the command would differ from them."""
    state = started("main")
    before = contents(state)

    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr(cbor2, "loads", no_memory)
    with pytest.raises(MemoryError):
        state.apply(2, 1, [commands.append("main", 1, "s", commands.ANY, [frame(1)])])
    monkeypatch.undo()
    assert contents(state) == before


def test_a_few_bytes_cannot_keep_every_node_busy_for_ever():
    """Of arrays that hold one array twice a key is made that has 2^n items, and is hashed."""
    key = b"\xd8\x1c\x81\x00"
    for at in range(24, 0, -1):
        key = b"\xd8\x1c\x82" + key + b"\xd8\x1d" + cbor2.dumps(at)
    bomb = b"\xa1" + key + b"\x00"
    event = encode_frame(event_id(200), "T", bomb, b"\xf6", "", "")
    state, began_s = filled(), time.process_time()
    state.apply(3, 1, [b"\x83\x01\x03" + bomb])
    state.apply(4, 1, [commands.append("main", 9, "u", -1, [event])])
    state.apply(5, 1, [asked.subscribe("main", 9, "some", LOOKING)])
    state.apply(6, 1, [asked.fetch("main", 9, "some", "c", 9)])
    assert time.process_time() - began_s < 0.1
