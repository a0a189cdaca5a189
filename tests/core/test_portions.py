"""Portions and digests: a store that was brought over in pieces is the one it came from."""

from __future__ import annotations

from array import array

import pytest

from node.core import commands, portion, recent
from node.core.portion import Digest, Portion
from node.core.store import Store
from tests.core.observed import store_contents
from tests.core.test_loading import grown


@pytest.fixture(autouse=True)
def _ids_are_soon_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "REMEMBERED_MIN", 10)


def portions(store: Store, events: int, frame_bytes_max: int = 1 << 30) -> list[Portion]:
    """All of a store, `events` at a time."""
    digest, taken = Digest(), []
    while digest.position < store.position:
        until = min(digest.position + events, store.position)
        taken.append(portion.take(store, digest, until, frame_bytes_max))
        digest.add(taken[-1])
    return taken


def empty_like(store: Store) -> Store:
    return Store(store.name, store.uid, store.created_us)


@pytest.mark.parametrize("events", [1, 7, 1000])
def test_a_store_that_came_in_portions_equals_the_original(events: int) -> None:
    original = grown(45).stores["main"]
    brought = empty_like(original)
    for one in portions(original, events):
        portion.load(brought, one)
    brought.load_checkpoints(
        {name: (at, original.checkpoint_index[name]) for name, at in original.checkpoints.items()}
    )
    brought.loaded()
    brought.check()
    assert store_contents(brought) == store_contents(original)


def test_a_digest_does_not_depend_on_how_the_events_were_cut() -> None:
    store = grown(45).stores["main"]
    values = set()
    for events in (1, 2, 7, 1000):
        digest = Digest()
        for one in portions(store, events):
            digest.add(one)
        values.add(digest.value())
    assert len(values) == 1


def test_a_digest_tells_stores_apart_that_differ_in_one_place() -> None:
    values = set()
    whole = portions(grown(20).stores["main"], 1000)[0]
    one_bit = [
        whole,
        *(
            whole._replace(**{field: flipped(getattr(whole, field))})
            for field in ("stream_of", "created", "type_of", "frames")
        ),
        whole._replace(streams=["b", "a", *whole.streams[2:]]),
        whole._replace(types=[*whole.types[:-1], "Other"]),
        whole._replace(streams=[*whole.streams[:-1], whole.streams[-1] + whole.types[0]]),
    ]
    for variant in one_bit:
        digest = Digest()
        digest.add(variant)
        values.add(digest.value())
    assert len(values) == len(one_bit)


def test_a_portion_whose_lengths_do_not_fit_its_frames_has_no_digest() -> None:
    whole = portions(grown(20).stores["main"], 1000)[0]
    with pytest.raises(ValueError, match="longer or shorter"):
        Digest().add(whole._replace(lengths=flipped(whole.lengths)))


def flipped(column: bytes) -> bytes:
    return column[:9] + bytes([column[9] ^ 1]) + column[10:]


def test_a_copy_of_a_digest_goes_on_by_itself() -> None:
    first, second = portions(grown(20).stores["main"], 10)
    digest = Digest()
    digest.add(first)
    before, copied = digest.value(), digest.copy()
    copied.add(second)
    assert digest.value() == before != copied.value()
    assert (copied.position, copied.streams, copied.types) == (20, 3, 3)


def test_a_portion_keeps_to_its_bytes_but_holds_one_event_at_least() -> None:
    store = grown(20).stores["main"]
    size = len(store.frame(1))
    assert portion.take(store, Digest(), 20, 0).until == 1
    assert [one.until for one in portions(store, 20, 5 * size)][-1] == 20
    assert all(len(one.frames) <= 5 * size + 60 for one in portions(store, 20, 5 * size))


SPOILED = {
    "a gap before it": lambda one: one._replace(after=one.after + 1),
    "no events": lambda one: Portion(one.after, [], [], b"", b"", b"", b"", b""),
    "a column too short": lambda one: one._replace(created=one.created[:-8]),
    "half a number": lambda one: one._replace(stream_of=one.stream_of[:-1]),
    "frames too short": lambda one: one._replace(frames=one.frames[:-1]),
    "a frame that is none": lambda one: one._replace(frames=b"x" + one.frames[1:]),
    "an unknown stream": lambda one: one._replace(streams=one.streams[:-1]),
    "a stream without events": lambda one: one._replace(streams=[*one.streams, "more"]),
    "a stream twice": lambda one: one._replace(streams=[*one.streams[:-1], one.streams[0]]),
    "an unknown type": lambda one: one._replace(types=one.types[:-1]),
    "types exchanged": lambda one: one._replace(types=one.types[::-1]),
    "a time that decreases": lambda one: one._replace(created=one.created[-8:] + one.created[8:]),
    "a time beyond all": lambda one: one._replace(created=one.created[:-8] + b"\xff" * 7 + b"\x7f"),
    "other order of streams": lambda one: one._replace(
        stream_of=array("I", [2]).tobytes() + one.stream_of[4:]
    ),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_a_portion_that_does_not_fit_is_refused(spoil) -> None:
    original = grown(20).stores["main"]
    original._created[-1] = 50
    [whole] = portions(original, 1000)
    with pytest.raises(ValueError, match=r"."):
        portion.load(empty_like(original), spoil(whole))


@pytest.mark.parametrize("size", [0, 1, 9, 20, 45])
def test_a_copy_is_of_the_moment_at_which_it_began(size: int) -> None:
    state = grown(size)
    original = state.stores["main"]
    expected = {**store_contents(grown(size).stores["main"])}
    copied = empty_like(original)
    steps = copied.copying(original)
    next(steps, None)
    frame = grown(46).stores["main"].frame(46)
    command = commands.append_many("main", 99, [("a", frame)], [], None)
    for index in range(100, 103):
        state.apply(index, 1, [command])
    for _ in steps:
        pass
    copied.load_checkpoints(
        {name: (at, original.checkpoint_index[name]) for name, at in original.checkpoints.items()}
    )
    copied.loaded()
    copied.check()
    assert copied.origin is original.origin
    assert store_contents(copied) == expected
