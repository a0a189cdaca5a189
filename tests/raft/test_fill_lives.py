"""Removed events in a fill: who holds their frames makes no difference, on either side."""

from __future__ import annotations

import random

import pytest

from node.core import commands, life_commands, lives
from node.core.husks import is_husk
from node.core.portion import Digest
from node.core.state import State
from node.core.stream import Limits
from node.raft import fill_digests, fill_lives, fill_source
from node.raft.fill_digests import Digests
from node.raft.fill_offer import FillRefused
from node.raft.fill_receiver import FillReceiver
from node.raft.fill_source import FillSource
from tests.core.observed import contents, frame, sweep
from tests.raft.test_fill import Direct, small_chunks


@pytest.fixture(autouse=True)
def _little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch, events=3, window=4)
    monkeypatch.setattr(fill_source, "REST_S", 0.0)
    monkeypatch.setattr(fill_digests, "REST_S", 0.0)
    monkeypatch.setattr(fill_lives, "_LIVES_A_CHUNK", 2)
    monkeypatch.setattr(fill_lives, "_LIVES_A_STEP", 3)
    monkeypatch.setattr(lives, "EXPIRED_STREAMS_MAX", 2)


def history(entries: int = 80, seed: int = 3) -> list[bytes]:
    """Entries of one command each, on a store whose streams come and go."""
    chance = random.Random(seed)
    made = [commands.create_store("a", 1)]
    for number in range(entries):
        stream = f"s{chance.randrange(6)}"
        frames = [frame(10 * number + at) for at in range(chance.randrange(1, 5))]
        limits = chance.choice(
            [Limits(2), Limits(None, 5), Limits(None, None, number // 8), Limits(), Limits(3, 9, 1)]
        )
        match chance.randrange(8):
            case 0:
                hard = chance.random() < 0.3
                command = life_commands.delete_stream("a", stream, commands.ANY, hard)
            case 1 | 2:
                command = life_commands.set_metadata("a", stream, limits)
            case 3:
                command = life_commands.expire("a", 1_000 * number)
            case _:
                command = commands.append("a", 1_000 * number, stream, commands.ANY, frames)
        made.append(command)
    return made


def state_of(entries: list[bytes]) -> State:
    state = State()
    for index, entry in enumerate(entries, 2):
        state.apply(index, 1, [entry])
    return state


class Pair:
    """A source with the whole history, and a receiver with its first `known` entries."""

    def __init__(self, known: int, source_swept: bool, swept: bool) -> None:
        self.whole = history()
        self.source_state, self.state = state_of(self.whole), state_of(self.whole[:known])
        for state, is_swept in ((self.source_state, source_swept), (self.state, swept)):
            for store in state.stores.values() if is_swept else ():
                sweep(store)
        self.alarms: list[str] = []
        self.source = FillSource(self.source_state, Digests())
        self.link = Direct(self.source)
        self.receiver = FillReceiver(self.state, self.link, Digests(), self.alarms.append)

    async def fill(self) -> None:
        self.receiver.install(await self.receiver.fetch("n1"))
        self.source_state.check()
        self.state.check()
        assert contents(self.state) == contents(self.source_state)
        assert self.alarms == []


@pytest.mark.parametrize("source_swept", [False, True])
@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("known", [0, 1, 20, 50, 70, 79, 80])
async def test_a_filled_node_equals_its_source_whoever_has_swept(
    known: int, swept: bool, source_swept: bool
) -> None:
    pair = Pair(known, source_swept, swept)
    await pair.fill()
    for index, entry in enumerate(history(60, seed=4)[1:], 1000):
        assert pair.state.apply(index, 2, [entry]) == pair.source_state.apply(index, 2, [entry])
    assert contents(pair.state) == contents(pair.source_state)


async def test_a_filled_node_sweeps_what_it_learned_was_removed() -> None:
    pair = Pair(60, source_swept=False, swept=False)
    await pair.fill()
    store = pair.state.stores["a"]
    touched = store.lives.take_removed(store)
    firsts = {stream.ordinal: stream.first for stream in store.stream_list if stream.first}
    assert touched == firsts != {}


async def test_a_node_that_only_lacks_a_deletion_is_filled_with_it() -> None:
    pair = Pair(81, source_swept=False, swept=False)
    origin = pair.state.stores["a"].origin
    [stream, *_] = pair.source_state.stores["a"].streams
    deletion = life_commands.delete_stream("a", stream, commands.ANY, False)
    pair.source_state.apply(pair.source_state.applied_index + 1, 1, [deletion])
    await pair.fill()
    assert pair.state.stores["a"].origin is origin
    assert stream not in pair.state.stores["a"].streams


async def test_a_source_that_lacks_the_frame_of_a_kept_event_is_refused() -> None:
    pair = Pair(0, source_swept=True, swept=False)

    def older(topic: str, answer: object) -> object:
        if topic == "fill_begin":
            store = pair.source_state.stores["a"]
            name = next(name for name, one in store.streams.items() if one.count)
            deletion = life_commands.delete_stream("a", name, commands.ANY, False)
            pair.source_state.apply(pair.source_state.applied_index + 1, 1, [deletion])
            sweep(store)
        return answer

    pair.link.spoil = older
    with pytest.raises(FillRefused, match="a frame is missing"):
        await pair.receiver.fetch("n1")
    assert pair.state.stores == {}
    pair.link.spoil = lambda _, answer: answer
    await pair.fill()


@pytest.mark.parametrize(
    "lie",
    [
        lambda rows: [*rows[:-1], [*rows[-1][:3], rows[-1][3] + 1, *rows[-1][4:]]],
        lambda rows: [*rows[:-1], [10_000, *rows[-1][1:]]],
        lambda rows: [*rows[:-1], [*rows[-1][:2], 7, *rows[-1][3:]]],
        lambda rows: [*rows[:-1], [*rows[-1][:4], 0, None, None]],
        lambda rows: [*rows[:-1], rows[-1][:5]],
        lambda rows: [*rows[:-1], None],
        lambda rows: [],
        lambda rows: rows * 50,
    ],
)
async def test_lives_that_are_not_those_offered_are_refused(lie) -> None:
    pair = Pair(0, source_swept=False, swept=False)
    pair.link.spoil = lambda topic, answer: lie(answer) if topic == "fill_lives" else answer
    with pytest.raises(FillRefused):
        await pair.receiver.fetch("n1")
    assert pair.state.stores == {}
    pair.link.spoil = lambda _, answer: answer
    await pair.fill()


async def test_a_digest_is_the_same_before_and_after_sweeping() -> None:
    state = state_of(history())
    store = state.stores["a"]
    before: Digest = await Digests().at(store, store.position)
    sweep(store)
    assert any(is_husk(store.frame(at)) for at in range(1, store.position + 1))
    assert (await Digests().at(store, store.position)).value() == before.value()
