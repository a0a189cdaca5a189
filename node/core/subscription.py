"""A persistent subscription: which events were handed to whom, and what became of them.

Consumers fetch events and settle each delivery: acknowledged, refused to be tried again, parked,
skipped, or given back untried. What is not settled in time counts as refused. Delivery is at least
once, and in order per stream: **an event is handed to nobody while an earlier one of its stream is
in flight or waits to be tried again.** A parked event no longer holds up its stream.

    cursor      the scan has evaluated everything up to here
    in flight   position -> who has it since when; oldest first
    lines       of each stream with something in flight, waiting, or left behind by the scan
    ready       the lines that have something to hand out, in the order in which they got it
    parked      position -> why; each event once, until it is replayed

The scan never stops for a busy stream, and keeps no list of what it passes by: where it meets an
event of a busy stream it notes in the stream's line that it is `behind`, and the line is later
served from the stream's own list of positions. So what a slow event holds up is its own stream, and
the memory is bounded by what is in flight, waiting and parked: a replay lets no more wait than may
be parked.

**Time** is what commands carry: the greatest that was seen. Deliveries are judged by it when a
command is applied, so that all nodes agree; nothing happens between commands. One node whose clock
was far ahead must not stop the time of all others: a command that is `CLOCK_BACK_US` behind sets
the time back.

**What was removed** (see `lives`) is handed out no more. The scan passes it by; what waits to be
tried again is dropped when its turn comes, and counts as skipped; what is parked stays listed until
a replay drops it. What is in flight can be settled as ever.

A fetch evaluates at most `EVALUATED_MAX` events, looks into at most `DECODED_BYTES_MAX` of them and
hands out at most `FETCH_BYTES_MAX`, or one event; its outcome says whether it ended there.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice, takewhile
from typing import TYPE_CHECKING, NamedTuple

from node.core.filters import Matcher
from node.core.outcomes import Fetched, Replayed, Settled
from node.core.subscription_commands import ACK, GIVE_BACK, PARK, RETRY, Definition, Delivery

if TYPE_CHECKING:  # a store holds its subscriptions
    from node.core.store import Store

EVALUATED_MAX = 5_000
DECODED_BYTES_MAX = 256 * 1024  # some milliseconds of every node's time
FETCH_BYTES_MAX = 4 * 1024 * 1024
MOVED_MAX = 1_000  # deliveries that a command takes back, parked events that it lets go on
PARKED_MAX = 10_000
CLOCK_BACK_US = 3_600 * 1_000_000

_SLICE_POSITIONS = 256

BY_CONSUMER, AFTER_RETRIES = range(2)  # why an event is parked


class Handed(NamedTuple):
    """An event in flight: its stream, which delivery of it this is, and how many have failed."""

    stream: int
    attempt: int
    failures: int
    handed_us: int
    consumer: str


class Waiting(NamedTuple):
    """An event that will be handed out again, after so many deliveries and failures."""

    position: int
    attempt: int
    failures: int


class Parked(NamedTuple):
    """An event that was given up, with the last of its deliveries."""

    attempt: int
    why: int
    parked_us: int
    consumer: str


class Counts(NamedTuple):
    """What happened since the subscription was made."""

    delivered: int = 0
    redelivered: int = 0
    acked: int = 0
    skipped: int = 0
    parked: int = 0


class Line:
    """What is to be done about one stream. `in_flight` is a position, 0 without.

    `behind` is set where the scan has passed events of the stream by: those after it, up to the
    cursor, are still to be evaluated.
    """

    __slots__ = ("behind", "in_flight", "waiting")

    def __init__(self) -> None:
        self.in_flight = 0
        self.waiting: list[Waiting] = []  # by position
        self.behind: int | None = None

    @property
    def has_more(self) -> bool:
        """Whether there is something to hand out when nothing is in flight."""
        return bool(self.waiting) or self.behind is not None


class _Round:
    """One fetch: for whom, what it may still do, and what it has handed out."""

    def __init__(self, store: Store, matcher: Matcher, consumer: str, limit: int) -> None:
        self.store = store
        self.matcher = matcher
        self.consumer = consumer
        self.limit = limit
        self.evaluations = EVALUATED_MAX
        self.frame_bytes = 0
        self.deliveries: list[tuple[int, int]] = []

    @property
    def exhausted(self) -> bool:
        return (
            self.evaluations <= 0
            or self.frame_bytes >= FETCH_BYTES_MAX
            or self.matcher.decoded_bytes >= DECODED_BYTES_MAX
        )

    @property
    def over(self) -> bool:
        return len(self.deliveries) >= self.limit or self.exhausted


class Subscription:
    """One life of a subscription; `uid` is the place in history at which it was made.

    `changed_index` is the Raft index of the last command that had an effect on it.
    """

    def __init__(self, name: str, uid: int, definition: Definition, cursor: int) -> None:
        self.name = name
        self.uid = uid
        self.definition = definition
        self.cursor = cursor
        self.changed_index = 0
        self.clock_us = self.fetched_us = self.progressed_us = 0
        self.counts = Counts()
        self.in_flight: dict[int, Handed] = {}
        self.lines: dict[int, Line] = {}
        self.ready: OrderedDict[int, None] = OrderedDict()
        self.parked: dict[int, Parked] = {}

    # --- looking -----------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many events wait to be handed out again. The cost grows with the lines."""
        return sum(len(line.waiting) for line in self.lines.values())

    @property
    def settled_up_to(self) -> int:
        """A position up to which every wanted event was settled, or parked.

        Another subscription that begins behind it misses nothing that this one would still hand
        out, but for what is parked. It may be a little smaller than it could be, where nobody has
        fetched since. The cost grows with the lines.
        """
        unsettled = [position - 1 for position in self.in_flight]
        for line in self.lines.values():
            unsettled += [one.position - 1 for one in line.waiting[:1]]
            if line.behind is not None:
                unsettled.append(line.behind)
        return min((self.cursor, *unsettled))

    @property
    def room(self) -> int:
        """How many more events may be in flight; each of them may have to be parked."""
        in_flight = len(self.in_flight)
        return min(self.definition.max_in_flight, PARKED_MAX - len(self.parked)) - in_flight

    def next_expiry_us(self) -> int | None:
        """When the oldest delivery is over; None with nothing in flight."""
        oldest = next(iter(self.in_flight.values()), None)
        return None if oldest is None else oldest.handed_us + self._timeout_us

    @property
    def _timeout_us(self) -> int:
        return self.definition.ack_timeout_ms * 1_000

    # --- handing out -------------------------------------------------------------------------

    def fetch(self, store: Store, now_us: int, consumer: str, max_events: int) -> Fetched:
        """Hand out up to `max_events`: what waits first, then what the scan finds."""
        self._advance(now_us)
        self.fetched_us = self.clock_us
        more_is_over = self._expire()
        matcher = Matcher(store, self.definition.wanted)
        limit = min(max_events, self.room)
        turn = _Round(store, matcher, consumer, limit)
        self._serve_ready(turn)
        if not turn.over:
            self._scan(turn)
        has_more = turn.exhausted and len(turn.deliveries) < limit
        has_more = has_more or (more_is_over and len(turn.deliveries) < max_events)
        return Fetched(self.uid, turn.deliveries, has_more)

    def _serve_ready(self, turn: _Round) -> None:
        while self.ready and not turn.over:
            ordinal = next(iter(self.ready))
            line = self.lines[ordinal]
            if line.waiting:
                position, attempt, failures = line.waiting.pop(0)
                if turn.store.kept(position):
                    self._hand(turn, ordinal, position, attempt + 1, failures)
                else:
                    self._pass_over(turn)
            elif found := self._next_behind(turn, ordinal, line):
                self._hand(turn, ordinal, found, 1, 0)
            if not (line.in_flight or line.has_more):
                del self.lines[ordinal], self.ready[ordinal]

    def _pass_over(self, turn: _Round) -> None:
        """What waited was removed meanwhile."""
        turn.evaluations -= 1
        self.counts = self.counts._replace(skipped=self.counts.skipped + 1)
        self.progressed_us = self.clock_us

    def _next_behind(self, turn: _Round, ordinal: int, line: Line) -> int:
        """The next event that the scan has passed by; 0 if there is none, or the round is over."""
        stream = turn.store.stream_list[ordinal]
        positions = stream.positions
        at = max(stream.first, bisect_right(positions, line.behind or 0))
        while at < len(positions) and positions[at] <= self.cursor:
            if turn.exhausted:
                return 0
            turn.evaluations -= 1
            line.behind = position = positions[at]
            if turn.matcher.matches(next(turn.store.rows(position - 1, position))):
                if at + 1 == len(positions) or positions[at + 1] > self.cursor:
                    line.behind = None  # it was the last that the scan has passed by
                return position
            at += 1
        line.behind = None
        return 0

    def _scan(self, turn: _Round) -> None:
        """Go on behind the cursor."""
        store, wanted = turn.store, self.definition.wanted
        if wanted.stream is not None:
            self._scan_stream(turn, wanted.stream)
            return
        takes_all, looks_inside = turn.matcher.takes_all, bool(wanted.where)
        while self.cursor < store.position and not turn.over:
            slice_end = self.cursor + min(_SLICE_POSITIONS, turn.evaluations)
            for row in store.rows(self.cursor, min(slice_end, store.position)):
                self.cursor = row[0]
                turn.evaluations -= 1
                if takes_all or turn.matcher.matches(row):
                    self._meet(turn, row[1], row[0])
                elif not looks_inside:
                    continue
                if turn.over:
                    return

    def _scan_stream(self, turn: _Round, name: str) -> None:
        """Go on in the only stream that is wanted: nothing between its events matters."""
        store = turn.store
        stream = store.streams.get(name)
        while self.cursor < store.position and not turn.over:
            positions = () if stream is None else stream.positions
            at = bisect_right(positions, self.cursor)
            if stream is not None:
                at = max(at, stream.first)
            if stream is None or at == len(positions):
                self.cursor = store.position
            elif stream.ordinal in self.lines:
                self._meet(turn, stream.ordinal, positions[at])
                self.cursor = store.position
            else:
                self.cursor = position = positions[at]
                turn.evaluations -= 1
                if turn.matcher.matches(next(store.rows(position - 1, position))):
                    self._meet(turn, stream.ordinal, position)

    def _meet(self, turn: _Round, ordinal: int, position: int) -> None:
        """The scan has come to an event that is wanted."""
        line = self.lines.get(ordinal)
        if line is None:
            self.lines[ordinal] = Line()
            self._hand(turn, ordinal, position, 1, 0)
        elif line.behind is None:
            line.behind = position - 1

    def _hand(self, turn: _Round, ordinal: int, position: int, attempt: int, failures: int) -> None:
        self.lines[ordinal].in_flight = position
        self.ready.pop(ordinal, None)
        handed = Handed(ordinal, attempt, failures, self.clock_us, turn.consumer)
        self.in_flight[position] = handed
        turn.deliveries.append((position, attempt))
        turn.frame_bytes += len(turn.store.frame(position))
        counts = self.counts
        self.counts = counts._replace(
            delivered=counts.delivered + 1, redelivered=counts.redelivered + (attempt > 1)
        )

    # --- settling ----------------------------------------------------------------------------

    def settle(self, now_us: int, settlements: Sequence[tuple[Delivery, int]]) -> Settled:
        """Book what became of deliveries. One that is late counts, unless it was taken back."""
        self._advance(now_us)
        stale = [
            at
            for at, (delivery, action) in enumerate(settlements)
            if not self._settle(delivery, action)
        ]
        self._expire()
        return Settled(stale)

    def replay(self, store: Store, now_us: int, positions: Sequence[int]) -> Replayed:
        """Let parked events be handed out again, with all their retries; all with no positions.

        No more than `MOVED_MAX` at once, the first ones first; nor more than may wait.
        """
        self._advance(now_us)
        chosen = sorted(self.parked.keys() & set(positions) if positions else self.parked)
        room, removed, replayed = PARKED_MAX - self.waiting, 0, 0
        for position in chosen[:MOVED_MAX]:
            if not store.kept(position):
                del self.parked[position]
                removed += 1
            elif replayed < room:
                replayed += 1
                parked = self.parked.pop(position)
                ordinal = next(store.rows(position - 1, position))[1]
                line = self.lines.setdefault(ordinal, Line())
                insort(line.waiting, Waiting(position, parked.attempt, 0))
                if not line.in_flight:
                    self.ready[ordinal] = None
        has_more = removed + replayed == MOVED_MAX < len(chosen)
        return Replayed(replayed, has_more)

    def _settle(self, delivery: Delivery, action: int) -> bool:
        """Whether the delivery was in flight, and now is not."""
        uid, position, attempt = delivery
        handed = self.in_flight.get(position)
        if uid != self.uid or handed is None or handed.attempt != attempt:
            return False
        if action == RETRY:
            self._fail(position, handed)
            return True
        if action == GIVE_BACK:
            self._again(position, handed, handed.failures)
            return True
        counts = self.counts
        if action == PARK:
            self._park(position, handed, BY_CONSUMER)
        elif action == ACK:
            self.counts = counts._replace(acked=counts.acked + 1)
        else:
            self.counts = counts._replace(skipped=counts.skipped + 1)
        self.progressed_us = self.clock_us
        self._release(position, handed)
        return True

    def _expire(self) -> bool:
        """Take back what was not settled in time, the oldest first; whether there is more of it."""
        latest = self.clock_us - self._timeout_us
        over = takewhile(lambda item: item[1].handed_us <= latest, self.in_flight.items())
        taken = list(islice(over, MOVED_MAX + 1))
        for position, handed in taken[:MOVED_MAX]:
            self._fail(position, handed)
        return len(taken) > MOVED_MAX

    def _fail(self, position: int, handed: Handed) -> None:
        """Try again, or give up."""
        failures = handed.failures + 1
        if failures > self.definition.max_retries:
            self._park(position, handed, AFTER_RETRIES)
            self._release(position, handed)
        else:
            self._again(position, handed, failures)

    def _again(self, position: int, handed: Handed, failures: int) -> None:
        """Let the event be handed out again."""
        waiting = self.lines[handed.stream].waiting
        insort(waiting, Waiting(position, handed.attempt, failures))
        self._release(position, handed)

    def _park(self, position: int, handed: Handed, why: int) -> None:
        self.parked[position] = Parked(handed.attempt, why, self.clock_us, handed.consumer)
        self.counts = self.counts._replace(parked=self.counts.parked + 1)
        self.progressed_us = self.clock_us

    def _release(self, position: int, handed: Handed) -> None:
        """The event is no longer in flight: its stream goes on."""
        del self.in_flight[position]
        line = self.lines[handed.stream]
        line.in_flight = 0
        if line.has_more:
            self.ready[handed.stream] = None
        else:
            del self.lines[handed.stream]

    def _advance(self, now_us: int) -> None:
        if now_us >= self.clock_us - CLOCK_BACK_US:
            self.clock_us = max(self.clock_us, now_us)
            return
        self.clock_us = now_us
        self.fetched_us = min(self.fetched_us, now_us)
        self.progressed_us = min(self.progressed_us, now_us)
        self.in_flight = {
            position: handed._replace(handed_us=min(handed.handed_us, now_us))
            for position, handed in self.in_flight.items()
        }

    # --- invariants --------------------------------------------------------------------------

    def check(self, store: Store) -> None:
        """Raise `AssertionError` unless everything that must hold of a subscription holds."""
        assert 0 <= self.cursor <= max(store.position, self.definition.start_after)
        busy = {line.in_flight: at for at, line in self.lines.items() if line.in_flight}
        assert busy == {position: handed.stream for position, handed in self.in_flight.items()}
        times = [handed.handed_us for handed in self.in_flight.values()]
        assert times == sorted(times) and (not times or times[-1] <= self.clock_us)
        assert set(self.ready) == {at for at, line in self.lines.items() if not line.in_flight}
        waiting = []
        for ordinal, line in self.lines.items():
            assert line.in_flight or line.has_more, "a line without anything"
            assert line.waiting == sorted(line.waiting)
            assert line.behind is None or 0 <= line.behind <= self.cursor
            waiting += [(one.position, ordinal) for one in line.waiting]
        tracked = [*self.in_flight, *self.parked, *(position for position, _ in waiting)]
        assert len(tracked) == len(set(tracked)), "an event in two places"
        for position in tracked:
            assert 1 <= position <= min(self.cursor, store.position)
        for position, ordinal in [*waiting, *busy.items()]:
            assert next(store.rows(position - 1, position))[1] == ordinal, "a wrong stream"
        assert len(self.parked) <= PARKED_MAX
