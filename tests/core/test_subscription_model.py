"""A subscription against its rules, in many random walks.

The reference keeps one word for each wanted event and says which answers are allowed; of what may
be handed out next the state chooses. A second state, which is encoded and decoded now and then,
must stay the same as the first.
"""

from __future__ import annotations

import random
from typing import Any

import cbor2
import pytest

from node.core import commands, life_commands, subscription
from node.core import subscription_commands as asked
from node.core.conditions import ANY_OF, Condition
from node.core.filters import Filter
from node.core.outcomes import Fetched, Subscribed
from node.core.state import State
from node.core.stream import Limits
from node.core.subscription import Subscription
from node.core.subscription_commands import Definition, Delivery
from node.core.subscription_state import decode, encode, take
from tests.core.observed import frame, started
from tests.core.subscription_reference import DONE, GONE, IN_FLIGHT, NEW, PARKED, WAITING, Reference

STREAMS = ["a-1", "a-2", "a-3", "b-1"]
TIMEOUT_MS = 100
TIMEOUT_US = TIMEOUT_MS * 1_000

EVEN = Condition(("data", "even"), ANY_OF, ((1, True),))
FILTERS = [
    Filter(),
    Filter(types=("T",)),
    Filter(stream_prefix="a-"),
    Filter(types=("T", "never"), stream_prefix="a-"),
    Filter(stream="a-2"),
    Filter(types=("T",), stream="a-1"),
    Filter(stream="nothing"),
    Filter(where=(EVEN,)),
    Filter(types=("T",), stream_prefix="a-", where=(EVEN,)),
    Filter(stream="a-2", where=(EVEN,)),
]


class Walk:
    """One random history of one subscription, judged at every step."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.state, self.twin = State(), State()
        self.index = self.ids = 0
        self.now_us = 10**10
        self.delivered: list[Delivery] = []
        self.kinds: list[tuple[str, str]] = []
        self.do(commands.create_store("main", 1))
        for _ in range(self.chance.randrange(3)):
            self.append()
        self.reference = self.subscribe()

    def run(self, steps: int) -> None:
        kinds = [self.append, self.fetch, self.settle, self.replay, self.time_passes]
        weights = [4, 5, 5, 1, 2]
        rare = [self.change_the_bounds, self.restart_the_second, self.remove]
        for _ in range(steps):
            step = self.chance.choices([*kinds, *rare], [*weights, 0.3, 0.5, 0.3])[0]
            step()
            self.check()

    def append(self) -> None:
        for _ in range(self.chance.randrange(5)):
            stream, kind = self.chance.choice(STREAMS), self.chance.choice("TU")
            self.ids += 1
            event = frame(self.ids, kind, cbor2.dumps({"even": self.ids % 2 == 0}))
            self.do(commands.append("main", 5, stream, commands.ANY, [event]))
            self.kinds.append((stream, kind))
            if hasattr(self, "reference"):
                self.tell(self.reference, self.ids)

    def tell(self, reference: Reference, position: int) -> None:
        """Tell the reference of an event, unless its data is not wanted."""
        if position % 2 == 0 or not reference.definition.wanted.where:
            reference.appended(position, *self.kinds[position - 1])

    def subscribe(self) -> Reference:
        start = self.chance.choice([0, 0, 2, asked.START_AT_END])
        definition = self.bounded(Definition(self.chance.choice(FILTERS), start, TIMEOUT_MS, 0, 1))
        made = self.do(asked.subscribe("main", self.now_us, "s", definition))
        assert made == Subscribed("s", True)
        if start == asked.START_AT_END:
            definition = definition._replace(start_after=len(self.kinds))
        reference = Reference(self.uid, definition, self.now_us)
        for position in range(1, len(self.kinds) + 1):
            self.tell(reference, position)
        return reference

    def bounded(self, definition: Definition) -> Definition:
        return definition._replace(
            max_retries=self.chance.choice([0, 1, 2]), max_in_flight=self.chance.choice([1, 2, 4])
        )

    def fetch(self) -> None:
        most = self.chance.randrange(1, 5)
        outcome = self.do(asked.fetch("main", self.now_us, "s", self.chance.choice("cd"), most))
        assert isinstance(outcome, Fetched)
        self.reference.fetched(self.now_us, most, outcome)
        self.delivered += [Delivery(outcome.uid, *one) for one in outcome.deliveries]

    def settle(self) -> None:
        lately = self.delivered[-8:]
        if not lately:
            return
        hows = self.chance.choices(range(asked.GIVE_BACK + 1), [4, 3, 1, 1, 1], k=4)
        named = [(self.chance.choice(lately), how) for how in hows[: self.chance.randrange(5)]]
        if self.chance.random() < 0.1:
            delivery, how = self.chance.choice(lately), asked.ACK
            named.append((delivery._replace(uid=delivery.uid + 1), how))
        outcome = self.do(asked.settle("main", self.now_us, "s", named))
        self.reference.settled(self.now_us, named, outcome)

    def replay(self) -> None:
        parked = self.reference.of(PARKED)
        some = self.chance.random() < 0.5 and len(parked) > 0
        positions = [parked[0], 10**6] if some else []
        outcome = self.do(asked.replay("main", self.now_us, "s", positions))
        self.reference.replayed(self.now_us, positions, outcome)

    def change_the_bounds(self) -> None:
        definition = self.bounded(self.subscription.definition)
        outcome = self.do(asked.subscribe("main", self.now_us, "s", definition))
        assert outcome == Subscribed("s", False)
        self.reference.redefined(definition)

    def remove(self) -> None:
        """Some of a stream, or all of it."""
        name, store = self.chance.choice(STREAMS), self.state.stores["main"]
        if self.chance.random() < 0.3:
            self.do(life_commands.delete_stream("main", name, commands.ANY, False))
        elif (stream := store.streams.get(name)) is not None:
            before = self.chance.randint(stream.first, stream.version + 1)
            limits = Limits(truncate_before=before)
            self.do(life_commands.set_metadata("main", name, limits))
        for position in range(1, store.position + 1):
            if not store.kept(position):
                self.reference.removed(position)

    def restart_the_second(self) -> None:
        store = self.twin.stores["main"]
        taken = take(store.subscriptions.by_name["s"])
        loaded = decode("s", taken.changed_index, encode(taken), store)
        store.subscriptions.load({"s": loaded}, store.subscriptions.changed_index)

    def time_passes(self) -> None:
        self.now_us += self.chance.choice([1, TIMEOUT_US // 2, TIMEOUT_US, -TIMEOUT_US])
        if self.chance.random() < 0.05:
            self.now_us -= subscription.CLOCK_BACK_US  # another node's clock was far ahead

    def check(self) -> None:
        """Both states are sound, the same, and as the reference says."""
        one, store = self.subscription, self.state.stores["main"]
        one.check(store)
        second = self.twin.stores["main"].subscriptions.by_name["s"]
        assert encode(take(one)) == encode(take(second))
        assert sorted(one.in_flight) == sorted(self.reference.of(IN_FLIGHT))
        assert sorted(one.parked) == sorted(self.reference.of(PARKED))
        waiting = [each.position for line in one.lines.values() for each in line.waiting]
        assert sorted(filter(store.kept, waiting)) == sorted(self.reference.of(WAITING))
        unsettled = self.reference.of(NEW, IN_FLIGHT, WAITING)
        assert one.settled_up_to < min(unsettled, default=10**9)
        assert one.settled_up_to <= one.cursor
        assert one.lines or one.settled_up_to == one.cursor
        settled, done = one.counts.acked + one.counts.skipped, len(self.reference.of(DONE))
        assert done <= settled <= done + len(self.reference.of(GONE))

    @property
    def subscription(self) -> Subscription:
        return self.state.stores["main"].subscriptions.by_name["s"]

    @property
    def uid(self) -> int:
        return self.subscription.uid

    def do(self, encoded: bytes) -> Any:
        self.index += 1
        [outcome] = self.state.apply(self.index, 1, [encoded])
        [twin] = self.twin.apply(self.index, 1, [encoded])
        assert outcome == twin
        return outcome


def test_a_subscription_keeps_its_rules_in_random_histories(monkeypatch):
    monkeypatch.setattr(subscription, "EVALUATED_MAX", 3)
    monkeypatch.setattr(subscription, "DECODED_BYTES_MAX", 60)
    monkeypatch.setattr(subscription, "PARKED_MAX", 4)
    for seed in range(100):
        try:
            Walk(seed).run(steps=80)
        except BaseException:
            print(f"seed {seed}")
            raise


class Asked:
    """A subscription of everything, with as much in flight as may be."""

    def __init__(self, streams: list[str]) -> None:
        self.state, self.index = State(), 0
        self.do(commands.create_store("main", 1))
        frames = [frame(number) for number, _ in enumerate(streams)]
        many = list(zip(streams, frames, strict=True))
        self.do(commands.append_many("main", 1, many, [], None))
        definition = Definition(Filter(), 0, TIMEOUT_MS, 1, asked.IN_FLIGHT_MAX)
        self.do(asked.subscribe("main", 1, "s", definition))
        self.one = self.state.stores["main"].subscriptions.by_name["s"]

    def do(self, encoded: bytes) -> Any:
        self.index += 1
        [outcome] = self.state.apply(self.index, 1, [encoded])
        self.state.check()
        return outcome

    def fetch(self, now_us: int, most: int = 1_000) -> Fetched:
        outcome = self.do(asked.fetch("main", now_us, "s", "c", most))
        assert isinstance(outcome, Fetched)
        return outcome

    def park(self) -> int:
        """Park all that is handed out now; how many."""
        fetched = self.fetch(1)
        parked = [(Delivery(fetched.uid, *one), asked.PARK) for one in fetched.deliveries]
        self.do(asked.settle("main", 1, "s", parked))
        return len(parked)


def test_a_command_takes_back_a_bounded_number_of_deliveries(monkeypatch):
    monkeypatch.setattr(subscription, "MOVED_MAX", 10)
    all_of_it = Asked([f"s-{number}" for number in range(25)])
    one = all_of_it.one
    assert len(all_of_it.fetch(1).deliveries) == 25
    fetched = all_of_it.fetch(1 + TIMEOUT_US, 12)
    assert [position for position, _ in fetched.deliveries] == list(range(1, 11))
    assert fetched.has_more and len(one.in_flight) == 25
    all_of_it.do(asked.settle("main", 1 + TIMEOUT_US, "s", []))
    assert one.waiting == 10
    assert len(all_of_it.fetch(1 + TIMEOUT_US, 20).deliveries) == 15
    assert one.waiting == 0


def test_a_replay_of_all_goes_on_where_it_ended(monkeypatch):
    monkeypatch.setattr(subscription, "MOVED_MAX", 10)
    all_of_it = Asked([f"s-{number}" for number in range(25)])
    assert all_of_it.park() == 25
    outcomes = [all_of_it.do(asked.replay("main", 1, "s", [])) for _ in range(4)]
    assert outcomes == [(10, True), (10, True), (5, False), (0, False)]


def test_no_more_wait_than_may_be_parked(monkeypatch):
    monkeypatch.setattr(subscription, "PARKED_MAX", 6)
    streams = [f"s-{at // 5}" for at in range(40)]
    all_of_it = Asked(streams)
    one, store = all_of_it.one, all_of_it.state.stores["main"]
    for _ in range(8):  # a stream each: park it, replay it, and hold its first event
        for _ in range(5):
            fetched = all_of_it.fetch(1, 1)
            parked = [(Delivery(fetched.uid, *one), asked.PARK) for one in fetched.deliveries]
            all_of_it.do(asked.settle("main", 1, "s", parked))
        all_of_it.do(asked.replay("main", 1, "s", []))
        all_of_it.fetch(1, 1)
        assert one.waiting <= subscription.PARKED_MAX
    done: set[int] = set()
    for _ in range(60):  # whatever was refused comes in the end
        all_of_it.do(asked.replay("main", 1, "s", []))
        all_of_it.fetch(1)
        held = [
            (Delivery(one.uid, at, each.attempt), asked.ACK) for at, each in one.in_flight.items()
        ]
        done.update(at for (_, at, _), _ in held)
        all_of_it.do(asked.settle("main", 1, "s", held))
    assert len(done) == store.position and not one.parked


def test_a_few_bytes_of_another_node_cannot_keep_this_one_busy() -> None:
    """What is not plain is refused as it is read: here a row that is named a thousand times."""
    store = started("main").stores["main"]
    shared, named_again = b"\xd8\x1c", b"\xd8\x1d\x00"
    rows = b"\x99\x03\xe8" + shared + b"\x99\x03\xe8" + b"\x00" * 1000 + named_again * 999
    definition = [[], "", None, 0, 1000, 1, 10]
    head = [1, definition, 0, [0, 0, 0], [0, 0, 0, 0, 0], ["c"]]
    encoded = b"\x8b" + b"".join(map(cbor2.dumps, head)) + rows + b"\x80" * 4
    with pytest.raises(ValueError, match=r"is none: .*tag"):
        decode("s", 1, encoded, store)
