"""What a persistent subscription may answer, without a thought for cost.

One word for each wanted event. Of what may be handed out next the real one chooses; the reference
says which choices are allowed, and raises `AssertionError` for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node.core import subscription
from node.core import subscription_commands as asked
from node.core.outcomes import Fetched, Replayed, Settled
from node.core.subscription_commands import Definition, Delivery

NEW, IN_FLIGHT, WAITING, PARKED, DONE = "new", "in flight", "waiting", "parked", "done"
GONE = "gone"  # removed, before it was settled


@dataclass
class Wanted:
    """One event that the filter takes."""

    stream: str
    status: str = NEW
    attempt: int = 0
    failures: int = 0
    handed_us: int = 0
    removed: bool = False


class Reference:
    """One life of a subscription; `definition.start_after` is a position."""

    def __init__(self, uid: int, definition: Definition, now_us: int) -> None:
        self.uid = uid
        self.definition = definition
        self.events: dict[int, Wanted] = {}
        self.clock_us = now_us

    def appended(self, position: int, stream: str, kind: str) -> None:
        """An event is stored."""
        wanted = self.definition.wanted
        takes = (
            position > self.definition.start_after
            and (not wanted.types or kind in wanted.types)
            and stream.startswith(wanted.stream_prefix)
            and wanted.stream in (None, stream)
        )
        if takes:
            self.events[position] = Wanted(stream)

    def redefined(self, definition: Definition) -> None:
        """The bounds are others now."""
        self.definition = definition._replace(start_after=self.definition.start_after)

    def removed(self, position: int) -> None:
        """The event is no longer kept: it is not handed out again."""
        one = self.events.get(position)
        if one is not None:
            one.removed = True
            if one.status in (NEW, WAITING):
                one.status = GONE

    def of(self, *statuses: str) -> list[int]:
        """The events of which one of these words is true."""
        return [position for position, one in self.events.items() if one.status in statuses]

    def may_be_handed_out(self) -> set[int]:
        """The first unsettled event of each stream that has nothing in flight."""
        busy = {self.events[position].stream for position in self.of(IN_FLIGHT)}
        firsts: dict[str, int] = {}
        for position in sorted(self.of(NEW, WAITING)):
            firsts.setdefault(self.events[position].stream, position)
        return {position for stream, position in firsts.items() if stream not in busy}

    def fetched(self, now_us: int, most: int, outcome: Fetched) -> None:
        """A fetch was answered so."""
        self._advance(now_us)
        self._expire()
        full = subscription.PARKED_MAX - len(self.of(PARKED))
        limit = min(most, min(self.definition.max_in_flight, full) - len(self.of(IN_FLIGHT)))
        assert outcome.uid == self.uid
        assert len(outcome.deliveries) <= max(0, limit), "too many"
        allowed = self.may_be_handed_out()
        for position, attempt in outcome.deliveries:
            assert position in allowed, f"{position} is out of turn"
            allowed.remove(position)
            one = self.events[position]
            one.status, one.attempt, one.handed_us = IN_FLIGHT, one.attempt + 1, self.clock_us
            assert attempt == one.attempt, f"delivery {one.attempt} of {position} is called another"
        if len(outcome.deliveries) < limit and not outcome.has_more:
            assert not allowed, f"{sorted(allowed)} were left behind"

    def settled(
        self, now_us: int, settlements: Sequence[tuple[Delivery, int]], outcome: Settled
    ) -> None:
        """A settlement was answered so."""
        self._advance(now_us)
        counted = [self._settle(delivery, action) for delivery, action in settlements]
        self._expire()
        assert outcome == Settled([at for at, counts in enumerate(counted) if not counts])

    def replayed(self, now_us: int, positions: Sequence[int], outcome: Replayed) -> None:
        """A replay of these, or of all with none, was answered so."""
        self._advance(now_us)
        chosen = [one for one in self.of(PARKED) if not positions or one in positions]
        kept = [one for one in chosen if not self.events[one].removed]
        room = subscription.PARKED_MAX - len(self.of(WAITING))
        least = min(len(kept), room - len(self.of(GONE)))  # some of which are not dropped yet
        assert least <= outcome.events <= min(len(kept), max(0, room)) and not outcome.has_more
        for position in set(chosen) - set(kept[outcome.events :]):
            one = self.events[position]
            one.status, one.failures = GONE if one.removed else WAITING, 0

    def _settle(self, delivery: Delivery, action: int) -> bool:
        """Whether the delivery counts."""
        one = self.events.get(delivery.position)
        if delivery.uid != self.uid or one is None:
            return False
        if one.status != IN_FLIGHT or one.attempt != delivery.attempt:
            return False
        if action == asked.RETRY:
            self._fail(one)
        elif action == asked.GIVE_BACK:
            one.status = GONE if one.removed else WAITING
        else:
            one.status = PARKED if action == asked.PARK else DONE
        return True

    def _advance(self, now_us: int) -> None:
        if now_us >= self.clock_us - subscription.CLOCK_BACK_US:
            self.clock_us = max(self.clock_us, now_us)
            return
        self.clock_us = now_us
        for position in self.of(IN_FLIGHT):
            self.events[position].handed_us = min(self.events[position].handed_us, now_us)

    def _expire(self) -> None:
        over_us = self.clock_us - self.definition.ack_timeout_ms * 1_000
        for position in self.of(IN_FLIGHT):
            if self.events[position].handed_us <= over_us:
                self._fail(self.events[position])

    def _fail(self, one: Wanted) -> None:
        one.failures += 1
        if one.failures > self.definition.max_retries:
            one.status = PARKED
        else:
            one.status = GONE if one.removed else WAITING
