"""The judge of a shared subscription: given what consumers wrote down, what was broken?

Consumers write a record each time they get a delivery, say what becomes of it (before they say it),
and are told whether that counted; who torments them writes down when (`consumers`):

    {"op": "got", "at", "received", "consumer", "position", "attempt", "stream", "number", "id"}
    {"op": "said", "at", "position", "attempt", "action"}        ack | retry | park | skip
    {"op": "told", "at", "position", "attempt", "counted"}       true | false | null: an error
    {"op": "failed", "at", "position", "attempt", "error"}       in place of told: no client's error
    {"op": "left", "at", "consumer"}       cancelled, killed, frozen or thawed: what it has may be
                                           with others by now
    {"op": "fault", "at"}                  a node was killed or stopped, or is back; while faults go
                                           on, again before `FAULT_S` are over

Times are seconds of the machine's one monotonic clock; `received` is when the client got the answer
with the delivery. With the events of the store and what is parked in the end, that must be so:

    lost        every wanted event was acknowledged, skipped or parked in the end
    foreign     nothing is delivered that is not a wanted event as it is stored
    overtaken   no event is delivered before every earlier one of its stream was settled for good
    again       none is delivered again once a word about it counted that settles it
    doubled     no delivery is handed out twice
    early       an event comes again only after a refusal, its deadline, a fault, or the loss of the
                consumer that had it
    misparked   what is parked was parked by a word or after its retries, is parked once, and is not
                done besides
    miscounted  the subscription counts each wanted event once as acknowledged, skipped or parked
    failed      no word ends in an error that a client does not promise

"Did not count" is no proof where a node was killed meanwhile: the answer to a first try may have
been lost. And a delivery may be older than its answer, by as long as a node takes to answer:
`_ANSWER_S`. Everything here is pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

EXAMPLES_MAX = 10
"""Of each kind of violation that are kept in words; all are counted."""

FAULT_S = 0.25
"""So long a fault lasts that was noted once."""

_ANSWER_S = 5.5
_FINAL = ("ack", "skip", "park")


class Wanted(NamedTuple):
    """An event that the subscription is to deliver, as it is stored."""

    position: int
    stream: str
    number: int
    event_id: str


class ParkedEvent(NamedTuple):
    """An event that is parked in the end; `parked_at` on the clock of the records."""

    position: int
    attempts: int
    why: str
    parked_at: float


class End(NamedTuple):
    """What is there in the end, when nothing is left to do."""

    wanted: Sequence[Wanted]
    parked: Sequence[ParkedEvent]
    totals: Mapping[str, int]


class Terms(NamedTuple):
    """What the subscription was made with."""

    ack_timeout_s: float
    max_retries: int


@dataclass
class Judgement:
    """What was broken, by kind, with examples; and what there was to judge."""

    violations: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    figures: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, words: str) -> None:
        """One more violation."""
        self.violations[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES_MAX:
            examples.append(words)


@dataclass
class _Delivery:
    """One delivery of an event, as its consumer saw it."""

    consumer: str
    received: float
    said_at: float = float("inf")
    action: str = ""
    told_at: float = float("inf")
    counted: bool | None = None


def judge(records: Iterable[Mapping[str, Any]], end: End, terms: Terms) -> Judgement:
    """Judge the records of a subscription that was made at the store's beginning."""
    return _Judge(records, end, terms).judged()


class _Judge:
    def __init__(self, records: Iterable[Mapping[str, Any]], end: End, terms: Terms) -> None:
        self._found = Judgement()
        self._end = end
        self._terms = terms
        self._parked = {one.position: one for one in end.parked}
        self._wanted = {one.position: one for one in end.wanted}
        self._seen: dict[int, dict[int, _Delivery]] = {}  # position -> attempt -> delivery
        self._faults: list[float] = []
        self._lost: dict[str, list[float]] = {}  # of each consumer
        for record in sorted(records, key=lambda one: float(one["at"])):
            self._take(record)
        self._losses = sorted(at for times in (*self._lost.values(), self._faults) for at in times)

    def _take(self, record: Mapping[str, Any]) -> None:
        kind, at = record["op"], record["at"]
        if kind == "fault":
            self._faults.append(at)
        elif kind == "left":
            self._lost.setdefault(record["consumer"], []).append(at)
        elif kind == "got":
            self._got(record)
        elif kind == "failed":
            words = f"the word about delivery {record['attempt']} of {record['position']} ended in"
            self._found.add("failed", f"{words} {record['error']}")
        else:
            delivery = self._seen[record["position"]][record["attempt"]]
            if kind == "said":
                delivery.said_at, delivery.action = at, record["action"]
            else:
                delivery.told_at, delivery.counted = at, record["counted"]

    def _got(self, record: Mapping[str, Any]) -> None:
        position, attempt = record["position"], record["attempt"]
        known = self._wanted.get(position)
        is_said = (record["stream"], record["number"], record["id"])
        if known is None or known[1:] != is_said:
            self._found.add("foreign", f"position {position} was delivered as {is_said}")
        attempts = self._seen.setdefault(position, {})
        if attempt in attempts:
            whose = f"{attempts[attempt].consumer} and {record['consumer']}"
            self._found.add("doubled", f"delivery {attempt} of {position} went to {whose}")
        attempts[attempt] = _Delivery(record["consumer"], record["received"])

    # --- judging -----------------------------------------------------------------------------

    def judged(self) -> Judgement:
        for position, attempts in self._seen.items():
            self._judge_again(position, attempts)
            self._judge_early(position, attempts)
        self._judge_order()
        self._judge_parked()
        self._judge_totals()
        self._count()
        return self._found

    def _judge_again(self, position: int, attempts: Mapping[int, _Delivery]) -> None:
        final = [a for a, one in attempts.items() if one.action in _FINAL and one.counted]
        if final and max(attempts) > min(final):
            words = (
                f"position {position} was settled by delivery {min(final)}, then {max(attempts)}"
            )
            self._found.add("again", words)

    def _judge_early(self, position: int, attempts: Mapping[int, _Delivery]) -> None:
        for attempt, delivery in attempts.items():
            before = max((one for one in attempts if one < attempt), default=0)
            if attempt > 1 and not self._may_come_again(attempts, before, attempt):
                words = f"delivery {attempt} of {position} came at {delivery.received:.3f}"
                self._found.add("early", f"{words}, and nothing had ended delivery {before}")

    def _may_come_again(self, attempts: Mapping[int, _Delivery], before: int, attempt: int) -> bool:
        """Whether something explains a delivery, beside the one that was seen before it."""
        received = attempts[attempt].received
        if not before:  # the first ones went to nobody who wrote it down
            return _any_within(self._losses, 0.0, received)
        earlier = attempts[before]
        if received >= earlier.received + self._terms.ack_timeout_s - _ANSWER_S:
            return True
        if attempt == before + 1 and earlier.action == "retry" and earlier.said_at <= received:
            return True
        # One that was frozen got its answer late, perhaps after the next one.
        within = sorted((earlier.received, received))
        gone = self._losses if attempt > before + 1 else self._lost.get(earlier.consumer, [])
        return _any_within(gone, *within) or _any_within(
            self._faults, within[0] - FAULT_S, within[1]
        )

    def _judge_order(self) -> None:
        """Each event of a stream comes after those before it are settled."""
        settled: dict[str, float] = {}  # of each stream: when the last of all before could be
        for one in sorted(self._end.wanted):
            attempts = self._seen.get(one.position, {}).values()
            first = min((each.received for each in attempts), default=float("inf"))
            if first < settled.get(one.stream, 0.0):
                words = f"event {one.number} of {one.stream} came at {first:.3f}, when an earlier"
                self._found.add("overtaken", f"{words} one was not settled")
            at = self._settled_at(one)
            if at == float("inf"):
                self._found.add("lost", f"event {one.number} of {one.stream} was never settled")
                continue
            settled[one.stream] = max(settled.get(one.stream, 0.0), at)

    def _settled_at(self, one: Wanted) -> float:
        """When an event was settled at the earliest; never, if it was not."""
        parked = self._parked.get(one.position)
        if parked is not None and parked.why == "after_retries":
            return parked.parked_at
        return min(
            (
                each.said_at
                for each in self._seen.get(one.position, {}).values()
                if each.action in _FINAL and not self._refuted(each)
            ),
            default=float("inf"),
        )

    def _refuted(self, delivery: _Delivery) -> bool:
        """Whether its consumer's word certainly did not count."""
        return delivery.counted is False and not _any_within(
            self._faults, delivery.said_at - _ANSWER_S, delivery.told_at
        )

    def _judge_parked(self) -> None:
        if len(self._parked) < len(self._end.parked):
            self._found.add("misparked", "an event is parked more than once")
        for position, parked in self._parked.items():
            attempts = self._seen.get(position, {})
            if any(one.action in ("ack", "skip") and one.counted for one in attempts.values()):
                self._found.add("misparked", f"position {position} is done and parked")
            last = attempts.get(parked.attempts)
            by_word = last is not None and last.action == "park"
            if parked.why == "by_consumer" and not by_word:
                self._found.add("misparked", f"position {position} was parked by nobody's word")
            if parked.why == "after_retries" and parked.attempts <= self._terms.max_retries:
                words = f"position {position} was parked after {parked.attempts} deliveries"
                self._found.add("misparked", words)
        for position, attempts in self._seen.items():
            said = any(one.action == "park" and one.counted for one in attempts.values())
            if said and position not in self._parked:
                self._found.add("misparked", f"position {position} was to be parked, and is not")

    def _judge_totals(self) -> None:
        totals = self._end.totals
        settled = totals["acked"] + totals["skipped"] + totals["parked"]
        if settled != len(self._end.wanted):
            words = f"{settled} events are counted as settled, of {len(self._end.wanted)}"
            self._found.add("miscounted", words)
        if totals["parked"] != len(self._end.parked):
            words = f"{totals['parked']} events were parked, {len(self._end.parked)} are"
            self._found.add("miscounted", words)

    def _count(self) -> None:
        figures = self._found.figures
        figures["events"] = len(self._end.wanted)
        figures["parked"] = len(self._end.parked)
        for attempts in self._seen.values():
            figures["deliveries"] += len(attempts)
            figures["delivered again"] += len(attempts) - (1 in attempts)
            for one in attempts.values():
                figures[one.action or "no word"] += 1
                figures["stale"] += one.counted is False


def _any_within(times: Sequence[float], first: float, last: float) -> bool:
    """Whether one of these sorted times lies between, both included."""
    at = bisect_left(times, first)
    return at < len(times) and times[at] <= last
