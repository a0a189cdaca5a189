"""The state against a plain reference, under any sequence of commands that hypothesis thinks of.

Every command goes to three: the state, a second state (which must stay equal, byte for byte), and
the reference. Ids are remembered for a handful of events only, so that forgetting takes part. The
second state is swept at any moment, and nothing may show it.
A failure prints the sequence of steps and a line that reproduces it.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from node.core import commands, recent, snapshots
from node.core.commands import Append, AppendEach, AppendMany
from node.core.fields import TIME_US_MAX
from node.core.life_commands import DeleteStream, Expire, SetMetadata
from node.core.outcomes import Appended, AppendedEach, EventIdReused
from node.core.snapshots import encode_content
from node.core.state import State
from node.core.stream import Limits
from tests.core.observed import contents, encoded, frame, remembered, sweep
from tests.core.reference import ReferenceState, Reused

REMEMBERED_MIN = 5
SERIES_BYTES_MAX = 60
CURRENT = 10**6  # in a strategy: the version that the stream has now

stores = st.sampled_from(["main", "main", "main", "other"])
streams = st.sampled_from(["a", "b", "order-1", "ß" * 127, "日本"])
versions = st.sampled_from([commands.ANY, CURRENT, CURRENT, CURRENT - 1, CURRENT + 1]) | (
    st.sampled_from([commands.NO_STREAM, commands.STREAM_EXISTS, 0, 1, 2**62])
)
times = st.integers(0, 50) | st.just(TIME_US_MAX - 1)
types = st.sampled_from(["T", "OrderPlaced", "é" * 12, "x" * 255])
hardness = st.sampled_from([False, False, False, True])
few = st.none() | st.integers(0, 5)
limits = st.builds(Limits, st.none() | st.integers(1, 4), st.none() | st.integers(1, 30), few)
sources = st.sampled_from(["o-1", "o-2"])
versions_of_snapshots = st.integers(0, 6) | st.just(2**62)
checkpoints = st.tuples(st.sampled_from(["p", "q"]), st.integers(0, 9))


class StateAgainstReference(RuleBasedStateMachine):
    """See the top of the file."""

    def __init__(self) -> None:
        super().__init__()
        self._real_remembered_min = recent.REMEMBERED_MIN
        recent.REMEMBERED_MIN = REMEMBERED_MIN
        self._real_series_bytes_max = snapshots.SERIES_BYTES_MAX
        snapshots.SERIES_BYTES_MAX = SERIES_BYTES_MAX
        self.state, self.twin = State(), State()
        self.reference = ReferenceState(REMEMBERED_MIN, SERIES_BYTES_MAX)
        self.index = 0
        self.ids = 0
        self.sent: list[Append | AppendMany] = []
        self.reported: list[str] = []
        self.state.on_change = self.reported.append
        self.do(commands.CreateStore("main", 1))

    def teardown(self) -> None:
        recent.REMEMBERED_MIN = self._real_remembered_min
        snapshots.SERIES_BYTES_MAX = self._real_series_bytes_max

    @rule(
        store=stores,
        stream=streams,
        version=versions,
        created=times,
        kinds=st.lists(types, min_size=1, max_size=5),
    )
    def append(self, store: str, stream: str, version: int, created: int, kinds: list[str]) -> None:
        frames = [self.fresh(kind) for kind in kinds]
        self.do(Append(store, created, stream, self.version(store, stream, version), frames))

    @rule(
        store=stores,
        where=st.lists(st.tuples(streams, types), max_size=6),
        checks=st.lists(st.tuples(streams, versions), max_size=3),
        checkpoint=st.none() | checkpoints,
        created=times,
    )
    def append_many(self, store, where, checks, checkpoint, created):
        events = [(stream, self.fresh(kind)) for stream, kind in where]
        judged = [(stream, self.version(store, stream, version)) for stream, version in checks]
        self.do(AppendMany(store, created, events, judged, checkpoint))

    @rule(
        store=stores,
        appends=st.lists(
            st.tuples(
                streams, versions, st.lists(types, min_size=1, max_size=3), st.integers(0, 9)
            ),
            min_size=1,
            max_size=5,
        ),
        created=times,
    )
    def append_each(self, store, appends, created):
        names, expected, counts, frames = [], [], [], []
        for stream, version, kinds, chance in appends:
            again = self.earlier(chance) if self.sent and chance < 4 else None
            if isinstance(again, Append):  # a retry among others
                stream, fresh = again.stream, again.frames
            else:
                fresh = [self.fresh(kind) for kind in kinds]
            names.append(stream)
            expected.append(self.version(store, stream, version))
            counts.append(len(fresh))
            frames += fresh
        self.do(AppendEach(store, created, names, expected, counts, frames))

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 5), created=times)
    def retry(self, which: int, created: int) -> None:
        self.do(self.earlier(which)._replace(created_us=created))

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 5), random=st.randoms(use_true_random=False), stream=streams)
    def retry_with_a_difference(self, which: int, random: Any, stream: str) -> None:
        command = self.earlier(which)
        events = self.events_of(command)
        if not events:
            return
        place = random.randrange(len(events))
        name, old = events[place]
        match random.randrange(6):
            case 0:
                del events[place]
            case 1:
                events.insert(place, (name, self.fresh("New")))
            case 2:
                events[place] = (stream, old)
            case 3:
                events[place] = (name, frame(int.from_bytes(old[3:19], "big"), "T", b"\x07"))
            case 4:
                events.insert(random.randrange(len(events)), events.pop())
            case 5:
                events.insert(place, events[-1])
        self.do(AppendMany(command.store, 0, events, [], None))

    @rule(store=stores, created=times)
    def create_store(self, store: str, created: int) -> None:
        self.do(commands.CreateStore(store, created))

    @precondition(lambda self: self.index % 9 == 0)
    @rule(store=stores)
    def delete_store(self, store: str) -> None:
        self.do(commands.DeleteStore(store))

    @rule(store=stores, checkpoint=checkpoints)
    def put_checkpoint(self, store: str, checkpoint: tuple[str, int]) -> None:
        self.do(commands.PutCheckpoint(store, *checkpoint))

    @rule(
        store=stores,
        source=sources,
        stream=st.sampled_from(["a", "b"]),
        version=versions_of_snapshots,
        size=st.integers(0, 50),
    )
    def put_snapshot(self, store: str, source: str, stream: str, version: int, size: int) -> None:
        content = encode_content("T", bytes(size), b"\xf6")
        self.do(commands.PutSnapshot(store, self.index, source, stream, version, content))

    @rule(
        store=stores,
        source=sources,
        stream=st.sampled_from(["a", "b"]),
        version=versions_of_snapshots,
    )
    def delete_snapshot(self, store: str, source: str, stream: str, version: int) -> None:
        self.do(commands.DeleteSnapshot(store, source, stream, version))

    @rule(store=stores, kept=st.none() | st.sampled_from([1, 2, 3, 10_000]))
    def put_store(self, store: str, kept: int | None) -> None:
        self.do(commands.PutStore(store, 1, None, kept))

    @rule(
        store=stores, stream=streams, version=versions, hard=st.sampled_from([False] * 4 + [True])
    )
    def delete_stream(self, store: str, stream: str, version: int, hard: bool) -> None:
        self.do(DeleteStream(store, stream, self.version(store, stream, version), hard))

    @rule(store=stores, stream=streams, limits=limits)
    def set_metadata(self, store: str, stream: str, limits: Limits) -> None:
        self.do(SetMetadata(store, stream, limits))

    @rule(store=stores, now_us=st.integers(0, 50_000))
    def expire(self, store: str, now_us: int) -> None:
        self.do(Expire(store, now_us))

    @rule(store=stores, events_max=st.integers(1, 4))
    def sweep_the_second(self, store: str, events_max: int) -> None:
        if store in self.twin.stores:
            sweep(self.twin.stores[store], events_max)

    @rule()
    def barrier(self) -> None:
        self.do(commands.Barrier())

    @invariant()
    def everything_is_where_the_reference_has_it(self) -> None:
        self.state.check()
        self.twin.check()
        assert contents(self.state) == contents(self.twin)
        assert self.state.stores.keys() == self.reference.stores.keys()
        for name, store in self.state.stores.items():
            expected = self.reference.stores[name]
            records = [store.record(at) for at in range(1, store.position + 1)]
            assert [(r.stream, r.number, r.created_us, r.frame) for r in records] == expected.events
            self.everything_lives_as_the_reference_has_it(name)
            assert store.checkpoints == expected.checkpoints
            assert store.snapshots.kept == expected.kept
            kept = {one[:3]: one.content for one in store.snapshots.all()}
            assert kept == expected.snapshots
            assert remembered(store) == expected.remembered()
            assert store.created_us == expected.created_us

    def everything_lives_as_the_reference_has_it(self, name: str) -> None:
        store, expected = self.state.stores[name], self.reference.stores[name]
        assert list(store.stream_names) == sorted(store.streams) == expected.names()
        assert list(store.lives.departed) == sorted(expected.absent | expected.over)
        for stream in store.stream_list:
            numbers = expected.kept_numbers(stream.name)
            assert list(range(stream.first, len(stream.positions))) == numbers
            assert [at for at in stream.positions if store.kept(at)] == [
                stream.positions[number] for number in numbers
            ]
            assert store.version(stream.name) == expected.version(stream.name)
            assert stream.limits == expected.limits.get(stream.name, Limits())
            assert store.lives.is_over(stream.name) == (stream.name in expected.over)
        assert store.kept_events == store.position - len(expected.removed)

    # --- the means ----------------------------------------------------------------------------

    def do(self, command: Any) -> None:
        """Give a command to all three and compare the answers."""
        self.index += 1
        if isinstance(command, Append | AppendMany):
            self.sent.append(command)
        encoding = encoded(command)
        before = contents(self.state)["stores"]
        self.reported.clear()
        [outcome] = self.state.apply(self.index, 1, [encoding])
        [twin] = self.twin.apply(self.index, 1, [encoding])
        expected = self.reference.apply(command)
        assert outcome == twin
        if isinstance(outcome, AppendedEach):
            assert isinstance(expected, list) and isinstance(command, AppendEach)
            columns = zip(command.streams, command.counts, strict=True)
            for place, (stream, count) in enumerate(columns):
                compare(outcome.of(place, stream, count), expected[place])
        else:
            compare(outcome, expected)
        if contents(self.state)["stores"] != before:
            assert self.reported == [command.store]

    def fresh(self, kind: str) -> bytes:
        self.ids += 1
        return frame(self.ids, kind)

    def earlier(self, which: int) -> Append | AppendMany:
        return self.sent[-1 - which % len(self.sent)]

    @staticmethod
    def events_of(command: Append | AppendMany) -> list[tuple[str, bytes]]:
        if isinstance(command, AppendMany):
            return list(command.events)
        return [(command.stream, one) for one in command.frames]

    def version(self, store: str, stream: str, asked: int) -> int:
        if abs(asked - CURRENT) > 1:
            return asked
        known = self.reference.stores.get(store)
        return max(commands.NO_STREAM, asked - CURRENT + (known.version(stream) if known else -1))


def compare(outcome: Any, expected: Any) -> None:
    """The outcome of the state with that of the reference."""
    if isinstance(expected, Reused):
        assert isinstance(outcome, EventIdReused)
        assert outcome.event_id in expected.ids
    else:
        assert type(outcome) is type(expected)
        assert plain(outcome) == plain(expected)


def plain(outcome: Any) -> tuple[Any, ...]:
    """The fields of an outcome, with positions as a list."""
    if isinstance(outcome, Appended):
        return tuple(outcome._replace(positions=list(outcome.positions)))
    return tuple(outcome)


StateAgainstReference.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=40,
)
TestStateAgainstReference = StateAgainstReference.TestCase
