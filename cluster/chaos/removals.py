"""The judge of removed events: what of each mortal stream may be shown, what must, what must not.

Each remover (`removers`) has streams of its own and does one thing after the other, and events are
removed from the beginning of a stream only. So all that is known of a stream are two numbers, which
grow: events before `gone` are removed for certain, events from `kept` on are kept for certain. What
lies between may be shown or not: that is where answers were lost. A request whose answer was lost
floats: it may be carried out at any later time, unless the version that it expects has passed.

    taken       an acknowledged event that no rule removed is not shown, or another one is
    shown       an event is shown that was removed for certain
    risen       a stream is there that was deleted, for ever or until somebody appends
    ended       a stream is not there, though nobody deleted it; or for ever, though nobody asked
    overtaken   a deletion with an exact version was acknowledged though the stream was past it
    miscounted  what a node says of a stream is not what it shows of it
    unlimited   the metadata of a stream are not those that were acknowledged last
    differing   two nodes that say something else of a stream

That no other stream loses anything is judged where those are, in `checker`, and so is that numbers
go on behind removed events. Everything here is pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.chaos.history import ACKNOWLEDGED, UNKNOWN

if TYPE_CHECKING:  # the checker hands them in
    from cluster.chaos.checker import Findings, Stored

ALL = 2**63
"""Behind every number."""

_OVER, _MISSING = 410, 404


class Life(NamedTuple):
    """What a node says of a stream: absent is 404, deleted for ever 410, and 200 all the rest."""

    status: int
    version: int = -1
    kept: int = 0
    first: int = 0
    metadata: Mapping[str, int] = {}


class _Stream:
    """What is known of one stream, from what its remover was told so far."""

    def __init__(self) -> None:
        self.acknowledged: dict[int, str] = {}
        self.last = -1
        self.reach = -1  # the last number that it may have: also of appends of unknown fate
        self.gone = 0
        self.kept = 0
        self.limits: Mapping[str, int] = {}
        self.floating: list[Mapping[str, int]] = []  # limits that may come into force at any time
        self.is_there: bool | None = False  # None: nobody knows
        self.drifts = False  # an append of unknown fate may begin it anew
        self.is_loose = False  # a deletion of unknown fate may come at any time
        self.is_over: bool | None = False  # for ever

    def arrive(self) -> None:
        """It was there a moment ago, for certain."""
        self.is_there = None if self.is_loose or self.is_over is None else True

    def bound(self) -> None:
        """Move both numbers by what limits say of the events that there are by now."""
        may = [_reaches(self.reach, limits) for limits in (self.limits, *self.floating)]
        may += [limits.get("truncate_before", 0) for limits in self.floating]
        self.kept = ALL if self.is_loose else max(self.kept, *may)
        if not self.floating and "max_count" in self.limits:
            self.gone = max(self.gone, self.last + 1 - self.limits["max_count"])

    def delete(self, up_to: int) -> None:
        """It was deleted, softly, when `up_to` was its last number."""
        self.gone = max(self.gone, up_to + 1)
        self.kept = max(self.kept, up_to + 1)
        self.limits = {}
        self.is_there = None if self.drifts else False


def _reaches(last: int, limits: Mapping[str, int]) -> int:
    """The first number that lasting limits must keep where `last` is the last one."""
    if "max_age_ms" in limits:
        return last + 1
    return last + 1 - limits["max_count"] if "max_count" in limits else 0


class Removals:
    """Takes the records in the order in which each remover wrote them.

    `places` says where each event stands that ever was stored, removed or not.
    """

    def __init__(self, places: Mapping[str, Stored], findings: Findings) -> None:
        self._places = places
        self._findings = findings
        self._streams: dict[str, _Stream] = defaultdict(_Stream)

    # --- what was done -----------------------------------------------------------------------

    def append(self, record: Mapping[str, Any]) -> None:
        """One append to a mortal stream."""
        name = record["stream"]
        stream = self._streams[name]
        if record.get("over") and stream.is_over is False:
            self._add("ended", f"an append to {name} was told that it is deleted for ever")
        if record["outcome"] == ACKNOWLEDGED:
            if stream.is_over:
                self._add("risen", f"{name} was deleted for ever, and took {record['ids'][0]}")
            for number, event in enumerate(record["ids"], start=record["first"]):
                stream.acknowledged[number] = event
                stream.last = max(stream.last, number)
            stream.arrive()
        elif record["outcome"] == UNKNOWN:
            stream.drifts = True
            stream.is_there = stream.is_there or None
            for event in record["ids"]:
                if event in self._places:
                    stream.reach = max(stream.reach, self._places[event].number)
        stream.reach = max(stream.reach, stream.last)
        stream.bound()

    def remove(self, record: Mapping[str, Any]) -> None:
        """One deletion, or new metadata."""
        name, what = record["stream"], record["what"]
        stream = self._streams[name]
        self._findings.removals[f"{what} {record['outcome']}"] += 1
        if record["strange"]:
            self._add("strange", f"{record['strange']} for {what} of {name}")
        if not record["floats"]:  # else it may be its own first try that was carried out
            self._must_be_there(name, stream, record["status"])
        acknowledged = record["outcome"] == ACKNOWLEDGED
        if acknowledged and stream.is_over:
            self._add("risen", f"{name} was deleted for ever, and {what} was acknowledged")
        floats = record["floats"] or record["outcome"] == UNKNOWN
        if what == "limit":
            self._limit(name, stream, record, acknowledged, floats)
        elif what == "delete":
            self._delete(name, stream, record["expected"], acknowledged, floats)
        elif acknowledged:
            self._overtaken(name, stream, record["expected"])
            stream.gone = stream.kept = ALL
            stream.is_there, stream.is_over = False, True
        elif floats and not stream.is_over:
            stream.is_there = stream.is_over = None
            stream.kept = ALL
        stream.bound()

    def _must_be_there(self, name: str, stream: _Stream, status: int | None) -> None:
        if status == _OVER and stream.is_over is False:
            self._add("ended", f"{name} is deleted for ever, which nobody asked for")
        if status == _MISSING and stream.is_there:
            self._add("ended", f"{name} is absent, though nobody deleted it")

    def _delete(
        self, name: str, stream: _Stream, expected: Any, acknowledged: bool, floats: bool
    ) -> None:
        if not isinstance(expected, int):
            if acknowledged:
                stream.delete(stream.last)
                stream.kept = max(stream.kept, stream.reach + 1)
            if floats:
                stream.is_loose, stream.is_there = True, None
                stream.floating.append({})
        elif acknowledged:
            self._overtaken(name, stream, expected)
            stream.delete(expected)
        elif floats and expected >= stream.last:  # else it cannot be carried out any more
            stream.kept = max(stream.kept, expected + 1)
            stream.floating.append({})
            stream.is_there = None

    def _limit(
        self,
        name: str,
        stream: _Stream,
        record: Mapping[str, Any],
        acknowledged: bool,
        floats: bool,
    ) -> None:
        limits, first = record["limits"], record["first"]
        if floats:
            stream.floating.append(limits)
        if not acknowledged:
            return
        before = limits.get("truncate_before", 0)
        stream.limits = limits
        stream.kept = max(stream.kept, min(before, stream.reach + 1))
        stream.arrive()
        stream.bound()
        if first > stream.kept:
            self._add("taken", f"{name} is kept from {first}; {stream.kept} is to be kept")
        if first < max(stream.gone, min(before, stream.last + 1)):
            self._add("shown", f"{name} is kept from {first}, though {limits} say more")
        stream.gone = max(stream.gone, first)

    def _overtaken(self, name: str, stream: _Stream, expected: Any) -> None:
        if isinstance(expected, int) and expected < stream.last:
            self._add("overtaken", f"{name} was deleted at {expected}, and {stream.last} was known")

    # --- what is shown -----------------------------------------------------------------------

    def read(self, record: Mapping[str, Any]) -> None:
        """One linearizable read of a whole stream."""
        self._findings.removals["read"] += 1
        name = record["stream"]
        rows = {number: event for number, event in record["events"]}
        is_over, is_there = record["status"] == _OVER, record["version"] >= 0
        self._look(name, rows, is_over, is_there, "a read")

    def finish(self, order: Iterable[Stored], lives: Mapping[str, Mapping[str, Life]]) -> None:
        """Compare with what nodes show in the end, `order`, and say of each stream."""
        rows: dict[str, dict[int, str]] = defaultdict(dict)
        for row in order:
            if row.stream in self._streams:
                rows[row.stream][row.number] = row.event_id
        last: dict[str, int] = defaultdict(lambda: -1)
        for row in self._places.values():
            last[row.stream] = max(last[row.stream], row.number)
        first = next(iter(lives.values()), {})
        for node, theirs in lives.items():
            for name in first.keys() | theirs.keys():
                if theirs.get(name) != first.get(name):
                    self._add(
                        "differing", f"{node} says {theirs.get(name)} of {name}, {first.get(name)}"
                    )
        for name in self._streams:
            life = first.get(name, Life(_MISSING))
            self._findings.removals["streams"] += 1
            self._findings.removals["ended"] += life.status == _OVER
            self._look(name, rows[name], life.status == _OVER, life.status == 200, "the end")
            self._believe(name, life, rows[name], last[name])

    def _look(
        self, name: str, rows: Mapping[int, str], is_over: bool, is_there: bool, when: str
    ) -> None:
        stream = self._streams[name]
        if is_over and stream.is_over is False:
            self._add("ended", f"{name} is deleted for ever in {when}, which nobody asked for")
        if not is_over and stream.is_over:
            self._add("risen", f"{name} was deleted for ever, and is not so in {when}")
        if not is_over and not is_there and stream.is_there:
            self._add("ended", f"{name} is absent in {when}, though nobody deleted it")
        if is_there and stream.is_there is False:
            self._add("risen", f"{name} is there in {when}, though it was deleted")
        for number in rows:
            if number < stream.gone:
                self._add("shown", f"{name} shows {number} in {when}; {stream.gone} is its first")
        for number, event in stream.acknowledged.items():
            if number >= stream.kept and rows.get(number) != event:
                self._add("taken", f"{name} has {rows.get(number)} at {number} in {when}, not "
                          f"{event}; all from {stream.kept} is to be kept")  # fmt: skip

    def _believe(self, name: str, life: Life, rows: Mapping[int, str], last: int) -> None:
        """Compare what nodes say of a stream with what they show of it."""
        stream = self._streams[name]
        if life.status != 200:
            if rows:
                self._add("miscounted", f"{name} is not there, and shows {len(rows)} events")
            return
        said = (life.version, life.kept, life.first)
        if said != (last, len(rows), min(rows, default=last + 1)):
            self._add("miscounted", f"{name} says {said}, and shows {sorted(rows)[:3]} to {last}")
        if stream.floating or not stream.is_there or stream.drifts:
            return
        for limit in ("max_count", "max_age_ms"):
            if life.metadata.get(limit) != stream.limits.get(limit):
                self._add("unlimited", f"{name} has {life.metadata}, not {stream.limits}")
        if "max_age_ms" in stream.limits and rows:
            self._add("shown", f"{name} shows {len(rows)} events in the end that are too old")

    def _add(self, kind: str, words: str) -> None:
        self._findings.add(kind, words)
