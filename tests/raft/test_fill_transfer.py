"""What a fill sends, what it takes for true, and what it leaves when it breaks off."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from typing import Any

import cbor2
import pytest

from node.core import commands
from node.core import subscription_commands as asked
from node.core.fields import NUMBER_MAX
from node.core.filters import Filter
from node.core.outcomes import CheckpointMoved
from node.core.portion import Digest, Portion
from node.core.snapshots import encode_content
from node.core.state import State
from node.core.subscription_commands import Definition
from node.raft import fill_checkpoints, fill_digests, fill_receiver, fill_snapshots, fill_source
from node.raft.fill_digests import Digests
from node.raft.fill_receiver import FillReceiver, FillRefused
from node.raft.fill_source import FillSource, OfferGone
from node.raft.requests import NoAnswer
from tests.core.observed import contents
from tests.raft.harness import event
from tests.raft.test_fill import Direct, small_chunks
from tests.raft.virtual_time import simulate


@pytest.fixture(autouse=True)
def _little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch, events=3, window=4)
    monkeypatch.setattr(fill_source, "REST_S", 0.0)
    monkeypatch.setattr(fill_digests, "REST_S", 0.0)
    monkeypatch.setattr(fill_digests, "SLICE_EVENTS", 4)
    monkeypatch.setattr(fill_digests, "_MILESTONE", 16)
    monkeypatch.setattr(fill_digests, "_RECENT_MAX", 3)
    monkeypatch.setattr(fill_receiver, "_COMPARED_EVENTS", 10)
    monkeypatch.setattr(fill_checkpoints, "CHECKPOINTS_A_CHUNK", 2)
    monkeypatch.setattr(fill_snapshots, "PLACES_A_CHUNK", 5)
    monkeypatch.setattr(fill_snapshots, "SNAPSHOTS_A_CHUNK", 2)
    monkeypatch.setattr(fill_snapshots, "_LOADED_MAX", 3)


def history(entries: int, seed: int = 1) -> list[list[bytes]]:
    """Entries on two stores, one of which is deleted and created anew on the way."""

    def snapshot(store: str, number: int) -> list[bytes]:
        content = encode_content("T", bytes(number), b"\xf6")
        return [commands.put_snapshot(store, number, f"o-{number % 5}", "s", number, content)]

    chance = random.Random(seed)
    made = [[commands.create_store("a", 1)], [commands.create_store("b", 1)]]
    for number in range(entries):
        store = chance.choice("aab")
        kind = f"kind-{chance.randrange(1 + number // 10)}"
        events = [
            (f"s{chance.randrange(1 + number // 4)}", event(1000 * number + at, kind))
            for at in range(1, chance.randrange(2, 5))
        ]
        made.append([commands.append_many(store, number, events, [], None)])
        if number % 7 == 0:
            made.append([commands.put_checkpoint(store, f"c{number % 3}", number)])
        if number % 3 == 0:
            made.append(snapshot(store, number))
        if number % 10 == 9:
            made.append([commands.delete_snapshot(store, f"o-{(number - 3) % 5}", "s", number - 3)])
        if number == entries // 3:
            made.append([commands.put_store("a", 1, None, 4)])
        made[-1].append(consumed(chance, store, number))
        if number == entries // 2:
            made.append([commands.delete_store("b")])
            made.append([commands.create_store("b", number)])
    return made


def consumed(chance: random.Random, store: str, number: int) -> bytes:
    """Something that happens to one of three subscriptions, if it is there."""
    name = chance.choice("xyz")
    match chance.randrange(6):
        case 0 | 1:
            definition = Definition(Filter(), 0, 1_000, 1, 1_000)
            return asked.subscribe(store, number, name, definition)
        case 2 if chance.random() < 0.5:
            return asked.unsubscribe(store, name)
        case _:
            return asked.fetch(store, number * 100_000, name, "consumer", 3)


def state_of(entries: list[list[bytes]]) -> State:
    state = State()
    for index, entry in enumerate(entries, 2):
        state.apply(index, 1, entry)
    return state


class Pair:
    """A source with a whole history, and a receiver with its first `known` entries."""

    def __init__(self, known: int, entries: int = 60) -> None:
        whole = history(entries)
        self.source_state, self.state = state_of(whole), state_of(whole[:known])
        self.alarms: list[str] = []
        self.changed: list[str] = []
        self.source = FillSource(self.source_state, Digests())
        self.link = Direct(self.source)
        self.receiver = FillReceiver(self.state, self.link, Digests(), self.alarms.append)
        self.state.on_change = self.changed.append

    async def fill(self) -> None:
        self.receiver.install(await self.receiver.fetch("n1"))

    async def break_off(self, topic: str, answers: int) -> None:
        """A fill that has no answer any more after so many on one topic."""

        def lose(_: str, answer: Any) -> Any:
            if self.link.asked[topic] > answers:
                raise NoAnswer("lost the connection")
            return answer

        honest, self.link.spoil = self.link.spoil, lose
        with pytest.raises(NoAnswer):
            await self.fill()
        self.link.spoil = honest

    def check(self) -> None:
        """Both are alike in all that they will ever do."""
        assert contents(self.state) == contents(self.source_state)
        self.state.check()


@pytest.mark.parametrize("known", [0, 1, 2, 5, 30, 40, 50, 72, 90])
async def test_a_filled_state_equals_the_source_and_goes_on_like_it(known: int) -> None:
    pair = Pair(known)
    await pair.fill()
    pair.check()
    assert pair.alarms == []
    for index, entry in enumerate(history(20, seed=2)[2:], 1000):
        assert pair.state.apply(index, 2, entry) == pair.source_state.apply(index, 2, entry)
    pair.check()


async def test_only_what_is_missing_is_sent() -> None:
    pair = Pair(60)
    whole, known = pair.source_state.stores.values(), list(pair.state.stores.values())
    places = {one.place for store in known for one in store.snapshots.all()}
    snapshots = [one for store in whole for one in store.snapshots.all()]
    brought = sum(len(one.content) for one in snapshots if one.place not in places)
    assert 0 < brought < sum(len(one.content) for one in snapshots)
    events = sum(store.position for store in whole) - sum(store.position for store in known)
    lacked = sum(store.frame_bytes for store in whole) - sum(store.frame_bytes for store in known)
    await pair.fill()
    assert pair.receiver.counters["fill_events_received"] == events > 20
    assert pair.source.counters["fill_bytes_sent"] == lacked + 20 * events + brought
    assert pair.receiver.counters["fill_bytes_received"] >= lacked + brought


async def test_only_stores_that_changed_are_told() -> None:
    pair = Pair(0)
    await pair.fill()
    pair.changed.clear()
    index = pair.source_state.applied_index + 1
    pair.source_state.apply(index, 1, [commands.put_checkpoint("a", "late", 1)])
    await pair.fill()
    assert pair.changed == ["a"]
    pair.check()


@pytest.mark.parametrize("known", [0, 72])
async def test_a_store_s_durability_comes_along(known: int) -> None:
    pair = Pair(known)
    command = commands.put_store("a", 1, "persisted")
    pair.source_state.apply(pair.source_state.applied_index + 1, 1, [command])
    await pair.fill()
    assert "a" in pair.changed
    assert pair.state.stores["a"].durability == "persisted"
    pair.check()


@pytest.mark.parametrize("known", [0, 72])
async def test_a_checkpoint_may_stand_at_the_greatest_number_there_is(known: int) -> None:
    pair = Pair(known)
    command = commands.put_checkpoint("a", "far", NUMBER_MAX)
    outcomes = pair.source_state.apply(pair.source_state.applied_index + 1, 1, [command])
    assert outcomes == [CheckpointMoved("far", NUMBER_MAX)]
    await pair.fill()
    pair.check()


@pytest.mark.parametrize("known", [0, 72])
async def test_however_many_checkpoints_there_are_no_answer_is_long(
    known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is longer than a frame between nodes may be closes the connection."""
    monkeypatch.setattr(fill_checkpoints, "CHECKPOINTS_A_CHUNK", 512)
    pair = Pair(known)
    names = [f"{number:0200d}" for number in range(3_000)]
    moves = [commands.put_checkpoint("a", name, at) for at, name in enumerate(names, 1)]
    pair.source_state.apply(pair.source_state.applied_index + 1, 1, moves)
    longest = 0

    def measured(_: str, answer: Any) -> Any:
        nonlocal longest
        longest = max(longest, len(cbor2.dumps(answer)))
        return answer

    pair.link.spoil = measured
    await pair.fill()
    pair.check()
    assert longest < 256 * 1024


async def test_a_store_that_lacks_nothing_stays_the_same_object() -> None:
    pair = Pair(0)
    await pair.fill()
    before = dict(pair.state.stores)
    command = commands.append("b", 1, "s", commands.ANY, [event(7_000_000)])
    pair.source_state.apply(pair.source_state.applied_index + 1, 1, [command])
    await pair.fill()
    assert pair.state.stores["a"] is before["a"]
    assert pair.state.stores["b"] is not before["b"]
    assert pair.state.stores["b"].origin is before["b"].origin, "its file can be gone on with"
    pair.check()


async def test_the_source_may_grow_while_it_is_read() -> None:
    pair = Pair(30)
    whole = contents(pair.source_state)

    def grow(topic: str, answer: Any) -> Any:
        index = pair.source_state.applied_index + 1
        command = commands.append("a", 1, f"n{index}", commands.ANY, [event(9_000_000 + index)])
        pair.source_state.apply(index, 1, [command])
        return answer

    pair.link.spoil = grow
    await pair.fill()
    assert contents(pair.state) == whole
    pair.state.check()


async def test_entries_that_came_through_the_log_meanwhile_are_part_of_what_is_installed() -> None:
    pair = Pair(20)
    filled = await pair.receiver.fetch("n1")
    for index, entry in enumerate(history(60)[20:25], 22):
        pair.state.apply(index, 1, entry)
    pair.receiver.install(filled)
    pair.check()


async def test_a_node_that_comes_further_than_the_offer_meanwhile_is_no_alarm() -> None:
    """A new leader's log may reach back to where it ends, while it asks the old one."""
    pair, whole = Pair(72), history(60)
    older = FillSource(state_of(whole[:76]), Digests())

    def overtake(topic: str, answer: Any) -> Any:
        if topic == "fill_digest" and pair.link.asked["fill_digest"] == 1:
            for index, entry in enumerate(whole[72:], 74):
                pair.state.apply(index, 1, entry)
        return answer

    pair.link = Direct(older)
    pair.link.spoil = overtake
    pair.receiver = FillReceiver(pair.state, pair.link, Digests(), pair.alarms.append)
    with pytest.raises(FillRefused):
        await pair.fill()
    assert pair.alarms == []
    assert contents(pair.state) == contents(pair.source_state)


async def test_nothing_is_installed_that_is_not_ahead() -> None:
    """A8."""
    pair = Pair(20)
    filled = await pair.receiver.fetch("n1")
    for index, entry in enumerate(history(60)[20:], 22):
        pair.state.apply(index, 1, entry)
    before = contents(pair.state)
    with pytest.raises(FillRefused, match="has reached"):
        pair.receiver.install(filled)
    with pytest.raises(FillRefused):
        await pair.receiver.fetch("n1")
    assert contents(pair.state) == before


# --- what is not as it should be ---


def chunk(**changes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Change fields of a chunk."""

    def spoil(answer: Any) -> Any:
        taken = Portion(*answer[:-1])
        changed = {name: change(getattr(taken, name)) for name, change in changes.items()}
        return [*taken._replace(**changed), answer[-1]]

    return spoil


def flipped(column: bytes) -> bytes:
    return column[:-1] + bytes([column[-1] ^ 1])


def recounted(states: bytes) -> bytes:
    """Subscriptions, the first of which has delivered one event more."""
    first, *others = cbor2.loads(states)
    fields = cbor2.loads(first)
    fields[4][0] += 1
    return cbor2.dumps([cbor2.dumps(fields), *others])


def sooner(description: bytes) -> bytes:
    """An offer that makes sense; only its first store was created a microsecond sooner."""
    index, term, stores = cbor2.loads(description)
    name, uid, created_us, *rest = stores[0]
    return cbor2.dumps([index, term, [[name, uid, created_us - 1, *rest], *stores[1:]]])


LIES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "a bit of a frame": ("fill_rows", chunk(frames=flipped)),
    "a bit of a time": ("fill_rows", chunk(created=flipped)),
    "a bit of a stream": ("fill_rows", chunk(stream_of=flipped)),
    "a bit of a type": ("fill_rows", chunk(type_of=flipped)),
    "other names": ("fill_rows", chunk(streams=lambda names: [*names, "other"])),
    "another place": ("fill_rows", chunk(after=lambda after: after + 1)),
    "a wrong digest": ("fill_rows", lambda answer: [*answer[:-1], bytes(32)]),
    "no digest": ("fill_rows", lambda answer: answer[:-1]),
    "a chunk of other things": ("fill_rows", lambda _: {"rows": 3}),
    "names that are none": ("fill_rows", chunk(streams=lambda _: [7])),
    "columns that are none": ("fill_rows", chunk(created=lambda _: "1234")),
    "no chunk": ("fill_rows", lambda _: None),
    "an offer with a flipped bit": (
        "fill_begin",
        lambda answer: [answer[0], flipped(answer[1]), answer[2]],
    ),
    "an offer of another time": (
        "fill_begin",
        lambda answer: [answer[0], sooner(answer[1]), answer[2]],
    ),
    "a snapshot of another content": (
        "fill_snapshots",
        lambda answer: [[*answer[0][:5], answer[0][5] + b"x"], *answer[1:]],
    ),
    "a snapshot of another version": (
        "fill_snapshots",
        lambda answer: [[*answer[0][:2], 9_999, *answer[0][3:]], *answer[1:]],
    ),
    "a snapshot of another place": (
        "fill_snapshots",
        lambda answer: [[*answer[0][:4], 1, answer[0][5]], *answer[1:]],
    ),
    "a snapshot that is none": ("fill_snapshots", lambda _: [["o", "s", 1]]),
    "no snapshots": ("fill_snapshots", lambda _: []),
    "a list of nothing": ("fill_snapshots", lambda _: None),
    "too many snapshots": ("fill_snapshots", lambda answer: answer * 40),
    "a subscription of other counts": (
        "fill_subscriptions",
        lambda answer: [recounted(answer[0]), answer[1]],
    ),
    "subscriptions that are none": ("fill_subscriptions", lambda answer: [b"", answer[1]]),
    "no subscriptions": ("fill_subscriptions", lambda _: None),
    "no places": ("fill_places", lambda _: b""),
    "half a place": ("fill_places", lambda answer: answer[:-1]),
    "too many places": ("fill_places", lambda answer: answer * 40),
    "places in another order": ("fill_places", lambda answer: answer[8:] + answer[:8]),
    "checkpoints with a flipped bit": (
        "fill_checkpoints",
        lambda answer: [flipped(answer[0]), answer[1]],
    ),
    "checkpoints that are none": (
        "fill_checkpoints",
        lambda _: [packed := cbor2.dumps([["c"], [1]]), hashlib.sha256(packed).digest()],
    ),
    "a checkpoint at no number": (
        "fill_checkpoints",
        lambda _: [packed := cbor2.dumps([["c"], [-1], [1]]), hashlib.sha256(packed).digest()],
    ),
    "no checkpoints": ("fill_checkpoints", lambda _: None),
    "no offer": ("fill_begin", lambda _: []),
    "a digest that is none": ("fill_digest", lambda _: 7),
}


@pytest.mark.parametrize("known", [0, 30])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
@pytest.mark.parametrize("after", [0, 3])
async def test_a_source_that_lies_changes_nothing(
    known: int, lie: tuple[str, Callable[[Any], Any]], after: int
) -> None:
    pair = Pair(known)
    topic, spoil = lie
    if pair.link.asked[topic] == 0 and (known, topic) == (0, "fill_digest"):
        return  # an empty node holds nothing to be compared
    before = contents(pair.state)
    times = 0

    def sometimes(asked: str, answer: Any) -> Any:
        nonlocal times
        times += asked == topic
        due = asked == topic and (times > after or topic != "fill_rows")
        return spoil(answer) if due else answer

    pair.link.spoil = sometimes
    with pytest.raises(FillRefused):
        await pair.fill()
    assert contents(pair.state) == before
    assert pair.changed == []
    pair.state.check()
    pair.link.spoil = lambda _, answer: answer
    await pair.fill()
    pair.check()


async def test_a_history_that_differs_is_an_alarm_and_is_brought_over_whole() -> None:
    pair = Pair(30)
    store = pair.state.stores["a"]
    store._frames[3] = event(123456, store.type_names[store._type_of[3]])
    await pair.fill()
    assert len(pair.alarms) == 1
    assert "store a differs" in pair.alarms[0]
    assert pair.state.stores["a"].origin is not store.origin, "its file cannot be gone on with"
    assert pair.state.stores["b"].position
    pair.check()


async def test_snapshots_that_differ_are_an_alarm_and_are_brought_over() -> None:
    pair = Pair(60)
    held = pair.state.stores["a"].snapshots
    one = held.all()[0]
    kept = {one.place for one in pair.source_state.stores["a"].snapshots.all()}
    one = next(one for one in held.all() if one.place in kept)
    held._by_place[one.place] = one._replace(content=one.content + b"x")
    await pair.fill()
    assert [alarm for alarm in pair.alarms if "snapshots differ" in alarm]
    pair.check()


async def test_own_snapshots_that_changed_meanwhile_are_not_installed() -> None:
    """The digest may be the offered one at first, with a put and its end still in the log."""
    pair = Pair(0)
    await pair.fill()
    at = pair.source_state.applied_index
    content = encode_content("T", b"", b"\xf6")
    coming = commands.put_snapshot("a", 1, "o", "s", 1, content)
    going = commands.delete_snapshot("a", "o", "s", 1)
    pair.source_state.apply(at + 1, 1, [coming])
    pair.source_state.apply(at + 2, 1, [going])
    filled = await pair.receiver.fetch("n1")
    pair.state.apply(at + 1, 1, [coming])
    with pytest.raises(FillRefused, match="changed meanwhile"):
        pair.receiver.install(filled)
    pair.state.check()
    await pair.fill()
    pair.check()


async def test_the_disk_is_told_that_other_snapshots_are_there_now() -> None:
    pair = Pair(60)
    before = pair.state.applied_index
    await pair.fill()
    held = pair.state.stores["a"].snapshots
    assert held.changed_index == pair.state.applied_index > before
    assert held.gone_after(before) is None, "what went is to be found by comparing"


async def test_snapshots_that_were_brought_are_not_brought_again() -> None:
    pair = Pair(0)
    whole = Pair(0)
    await whole.fill()
    await pair.break_off("fill_snapshots", 3)
    await pair.fill()
    pair.check()
    received = pair.receiver.counters["fill_bytes_received"]
    assert received == whole.receiver.counters["fill_bytes_received"]


async def test_a_store_that_is_longer_here_is_an_alarm_and_is_left_alone() -> None:
    pair = Pair(72)
    for number in range(200):
        frame = event(5_000_000 + number)
        pair.state.stores["a"].append("x", commands.ANY, [frame], 1, 1)
    before = contents(pair.state)
    pair.source_state.apply(500, 1, [commands.barrier()])
    with pytest.raises(FillRefused, match="longer here"):
        await pair.fill()
    assert pair.alarms
    assert contents(pair.state) == before


# --- breaking off and going on ---


@pytest.mark.parametrize("known", [0, 30])
async def test_a_fill_that_broke_off_goes_on_behind_what_it_had(known: int) -> None:
    pair = Pair(known)
    whole = Pair(known)
    await whole.fill()
    before = contents(pair.state)
    for _ in range(3):
        answers = 0

        def break_off(topic: str, answer: Any) -> Any:
            nonlocal answers
            answers += topic == "fill_rows"
            if answers > 6:
                raise NoAnswer("lost the connection")
            return answer

        pair.link.spoil = break_off
        with pytest.raises(NoAnswer):
            await pair.fill()
        assert contents(pair.state) == before
        # Another leader, which has more by now, and knows nothing of the earlier offers.
        index = pair.source_state.applied_index + 1
        command = commands.append("a", 1, "s", commands.ANY, [event(8_000_000 + index)])
        pair.source_state.apply(index, 1, [command])
        pair.source = FillSource(pair.source_state, Digests())
        spoiled, pair.link = pair.link, Direct(pair.source)
        pair.receiver._requests = pair.link
        assert spoiled.asked["fill_rows"]
    await pair.fill()
    pair.check()
    assert pair.alarms == []
    received = pair.receiver.counters["fill_events_received"]
    assert received == whole.receiver.counters["fill_events_received"] + 3


async def test_an_unfinished_store_outlives_a_question_that_finds_no_answer() -> None:
    """The next source compares it with its own, which may take longer than an answer may."""
    pair, whole = Pair(0), Pair(0)
    await whole.fill()
    await pair.break_off("fill_rows", 9)
    pair.link.asked.clear()
    await pair.break_off("fill_digest", 0)
    await pair.fill()
    pair.check()
    received = pair.receiver.counters["fill_events_received"]
    assert received == whole.receiver.counters["fill_events_received"]


async def test_a_file_that_was_begun_meanwhile_can_be_gone_on_with() -> None:
    """A file with another origin is set aside before the new one counts: a crash loses both."""
    pair = Pair(0)
    await pair.break_off("fill_rows", 9)
    # A leader whose log reaches back to the beginning.
    for index, entry in enumerate(history(60)[:6], 2):
        pair.state.apply(index, 1, entry)
    origin = pair.state.stores["a"].origin
    begun = next(one for one in pair.receiver._staged.values() if one.store.name == "a")
    assert begun.store.position > pair.state.stores["a"].position > 0
    await pair.fill()
    assert pair.state.stores["a"].origin is origin
    assert pair.alarms == []
    pair.check()


async def test_a_store_that_came_through_the_log_meanwhile_keeps_its_file() -> None:
    pair = Pair(0)

    def arrive(topic: str, answer: Any) -> Any:
        if topic == "fill_rows" and not pair.state.stores:
            for index, entry in enumerate(history(60)[:6], 2):
                pair.state.apply(index, 1, entry)
        return answer

    pair.link.spoil = arrive
    with pytest.raises(FillRefused, match="meanwhile"):
        await pair.fill()
    origin = pair.state.stores["a"].origin
    await pair.fill()
    assert pair.state.stores["a"].origin is origin
    assert pair.alarms == []
    pair.check()


async def test_what_was_begun_with_another_history_is_not_gone_on_with() -> None:
    pair = Pair(0)
    await pair.break_off("fill_rows", 9)
    [begun] = pair.receiver._staged.values()
    assert begun.store.position > 3
    begun.digest = Digest()
    begun.digest.position = begun.store.position
    await pair.fill()
    pair.check()


async def test_what_was_begun_is_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 1000.0
    monkeypatch.setattr(fill_receiver, "now", lambda: moment)
    pair = Pair(0)
    await pair.break_off("fill_rows", 5)
    pair.receiver.expire()
    assert pair.receiver._staged
    moment += fill_receiver._STAGED_S + 1
    pair.receiver.expire()
    assert not pair.receiver._staged


@pytest.mark.parametrize(("queued_s", "most"), [(0.0, 4), (0.12, 3)])
def test_no_more_questions_are_under_way_than_the_window_has_and_fewer_where_answers_queue(
    queued_s: float, most: int
) -> None:
    """On a slow connection chunks stand before heartbeats: few of them may be there."""

    async def scenario() -> None:
        pair = Pair(0)
        ask, under_way = pair.link.ask, 0
        seen: list[int] = []

        async def slow(peer: str, topic: str, body: Any, timeout_s: float) -> Any:
            nonlocal under_way
            under_way += 1
            seen.append(under_way)
            try:
                await asyncio.sleep(0.01 + queued_s * (under_way - 1))
                return await ask(peer, topic, body, timeout_s)
            finally:
                under_way -= 1

        pair.link.ask = slow  # type: ignore[method-assign]
        await pair.fill()
        pair.check()
        assert max(seen) == most
        assert under_way == 0

    simulate(scenario)


# --- offers ---


async def test_an_offer_nobody_asks_for_is_withdrawn_and_lets_go_of_a_deleted_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moment = 1000.0
    monkeypatch.setattr(fill_source, "now", lambda: moment)
    pair = Pair(0)
    number, _, _ = await pair.source.begin("n2", None)
    at_offer = pair.source_state.applied_index
    await pair.source.digest("n2", [number, 0, 20])
    pair.source_state.apply(at_offer + 1, 1, [commands.delete_store("a")])
    assert pair.source.log_needed_from == at_offer
    moment += fill_source._OFFER_IDLE_S - 1
    pair.source.expire()
    await pair.source.rows("n2", [number, 0, 0, 3])  # still there, although the store is not
    moment += fill_source._OFFER_IDLE_S + 1
    pair.source.expire()
    assert pair.source.log_needed_from is None
    assert pair.source._offers == {}
    uids = {store.uid for store in pair.source_state.stores.values()}
    assert pair.source._digests._milestones.keys() <= uids
    with pytest.raises(OfferGone):
        await pair.source.rows("n2", [number, 0, 0, 3])


async def test_a_node_has_one_offer_and_all_together_a_few() -> None:
    source = Pair(0).source
    first = [(await source.begin("n2", None))[0] for _ in range(10)]
    assert len(source._offers) == 1
    others = [(await source.begin(f"m{at}", None))[0] for at in range(10)]
    assert len(source._offers) == fill_source._OFFERS_MAX
    for peer, number in (("n2", first[-1]), ("m0", others[0]), ("m0", others[-1])):
        with pytest.raises(OfferGone):
            await source.rows(peer, [number, 0, 0, 1])


async def test_digests_that_were_made_once_are_not_made_again() -> None:
    store = state_of(history(60)).stores["a"]
    digests = Digests()
    await digests.at(store, store.position)
    taken: list[int] = []
    original = fill_digests.portion.take

    def take(*arguments: Any) -> Any:
        portion = original(*arguments)
        taken.append(portion.until - portion.after)
        return portion

    fill_digests.portion.take = take
    try:
        for position in (1, 16, 17, 31, 32, 40, store.position):
            del taken[:]
            again = await digests.at(store, position)
            assert sum(taken) == position % 16
            assert again.value() == (await Digests().at(store, position)).value()
    finally:
        fill_digests.portion.take = original
    await asyncio.sleep(0)
