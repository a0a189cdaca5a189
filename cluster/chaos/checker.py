"""The judge: given a history and what every node holds in the end, what was broken?

No search is needed, because each append is told its stream, number and position, and each read says
how far it saw. The events sorted by position are the one order that everybody must have seen:

    lost          an acknowledged event that is not stored
    doubled       an event id that is stored more than once
    moved         stored, but not at the stream, number or position that was acknowledged
    altered       stored with other data than was sent
    refused       stored, though every attempt was refused
    foreign       stored, though nobody ever sent it
    torn          some events of one append are stored and others not, or not one after the other
    gap           positions not 1, 2, 3 …, numbers of a stream not 0, 1, 2 …, or time going back;
                  removed events count, where a file still knows of them
    reordered     acknowledged before another append was sent, or a read was answered before it was,
                  and yet stored behind that append, or in front of what the read had seen
    overtaken     an append with an exact version was acknowledged elsewhere than right behind it
    differing     two nodes that do not hold the same
    misread       a read saw an event where the final order has another one or none
    stale         a linearizable read did not see what was acknowledged, or read, before it was sent
    went_back     a session was shown less than its token asked for
    strange       an answer that no client may ever get

Nodes pass by what was removed, but their files know its ids, streams, numbers and positions. So the
one order is what the first node shows, and between that the events of mortal streams, and of no
others, as the first file has them. Which of those are to be shown is judged in `removals`, what is
said of snapshots in `keepers`, of a subscription in `deliveries`.

An unknown append may be stored or not; both are fine, once.

Everything is pure: records and rows go in, `Findings` come out. Memory: about 1 KiB an append.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cluster.chaos.history import (
    ACKNOWLEDGED,
    LINEARIZABLE,
    LOCAL,
    MORTAL_PREFIX,
    REFUSED,
    SESSION,
    UNKNOWN,
    content_of,
)
from cluster.chaos.keepers import Aggregates, Kept
from cluster.chaos.removals import Life, Removals

EXAMPLES_MAX = 10
"""Of each kind of violation that are kept in words; all are counted."""


class Stored(NamedTuple):
    """One event as a node gives it in the end."""

    position: int
    event_id: str
    stream: str
    number: int
    created: int = 0
    data: Any = None
    """None where it was not read: files are compared without it."""


@dataclass
class Findings:
    """What was broken, by kind, with examples; and what there was to judge."""

    violations: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    """By outcome, and `unknown_stored`: of the unknown ones, how many are there."""
    stored: int = 0
    reads: Counter[str] = field(default_factory=Counter)
    snapshots: Counter[str] = field(default_factory=Counter)
    """Changes by outcome, and reads."""
    removals: Counter[str] = field(default_factory=Counter)
    """Changes by kind and outcome, reads, streams, those that ended, and removed events."""

    def add(self, kind: str, words: str) -> None:
        """One more violation."""
        self.violations[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES_MAX:
            examples.append(words)


class _Append(NamedTuple):
    ids: list[str]
    stream: str
    expected: Any
    sent: float
    done: float
    outcome: str
    first: int
    positions: list[int]


class _Read(NamedTuple):
    level: str
    node: str
    sent: float
    done: float
    head: int


def check(
    records: Iterable[Mapping[str, Any]],
    finals: Mapping[str, Iterable[Stored]],
    files: Mapping[str, Iterable[Stored]],
    snapshots: Mapping[str, Kept] | None = None,
    lives: Mapping[str, Mapping[str, Life]] | None = None,
) -> Findings:
    """Judge a history against the rows that each node shows, in the order of positions.

    `finals` must not be empty, and its nodes' rows must be equal. `files` are the rows of files,
    with those of removed events; where there are none, nothing may be removed. `snapshots` are
    those that each node has, `lives` what it says of mortal streams; None if nobody has looked.
    """
    findings = Findings()
    shown, order = _final_order(finals, files, findings)
    judge, aggregates = _Judge(order, findings), Aggregates(findings)
    removals = Removals(judge.places, findings)

    def append(record: Mapping[str, Any]) -> None:
        judge.append(record)
        if record["stream"].startswith(MORTAL_PREFIX):
            removals.append(record)

    takes = {
        "append": append,
        "read": judge.read,
        "snapshot": aggregates.change,
        "snapshot_read": aggregates.read,
        "removal": removals.remove,
        "stream_read": removals.read,
    }
    for record in records:
        takes[record["op"]](record)
    judge.finish()
    if snapshots is not None:
        aggregates.finish(snapshots)
    if lives is not None:
        removals.finish(shown, lives)
    return findings


def _final_order(
    finals: Mapping[str, Iterable[Stored]],
    files: Mapping[str, Iterable[Stored]],
    findings: Findings,
) -> tuple[list[Stored], list[Stored]]:
    """What nodes show, and with what was removed the one order; both compared with all others."""
    (first, rows), *others = finals.items()
    shown = list(rows)
    for node, others_rows in others:
        _compare(first, shown, node, others_rows, findings)
    order = shown
    for file, rows in files.items():
        if order is shown:
            rows = list(rows)
            order = _with_removed(shown, rows)
        _compare("the order", order, file, rows, findings)
    findings.stored = len(order)
    findings.removals["removed events"] = len(order) - len(shown)
    _must_be_gapless(order, findings)
    return shown, order


def _with_removed(shown: list[Stored], file: list[Stored]) -> list[Stored]:
    """A new list: the rows that nodes show, and those of a file that only mortal streams miss."""
    positions = {row.position for row in shown}
    removed = (
        row
        for row in file
        if row.position not in positions and row.stream.startswith(MORTAL_PREFIX)
    )
    return sorted([*shown, *removed], key=lambda row: row.position)


def _must_be_gapless(order: list[Stored], findings: Findings) -> None:
    numbers: Counter[str] = Counter()
    created = 0
    for expected, row in enumerate(order, start=1):
        if row.position != expected:
            findings.add("gap", f"position {row.position} stands where {expected} should")
        if row.number != numbers[row.stream]:
            findings.add(
                "gap",
                f"{row.stream} has number {row.number} where {numbers[row.stream]} should be",
            )
        if row.data is not None and row.created < created:
            findings.add("gap", f"position {row.position} is older than the one before it")
        numbers[row.stream] = row.number + 1
        created = max(created, row.created)


def _compare(
    first: str, order: list[Stored], node: str, rows: Iterable[Stored], findings: Findings
) -> None:
    count = 0
    for row in rows:
        count += 1
        if count <= len(order) and not _same(order[count - 1], row):
            findings.add(
                "differing", f"{node} has {row[:4]} where {first} has {order[count - 1][:4]}"
            )
    if count != len(order):
        findings.add("differing", f"{node} holds {count} events, {first} {len(order)}")


def _same(one: Stored, other: Stored) -> bool:
    if other.data is None:
        return one[:4] == other[:4]
    return one == other


class _Judge:
    """Takes the records one by one; what needs all of them is looked at in `finish`.

    `places` says of each event where it stands.
    """

    def __init__(self, order: list[Stored], findings: Findings) -> None:
        self._order = order
        self._findings = findings
        self.places: dict[str, Stored] = {}
        for row in order:
            if row.event_id in self.places:
                findings.add("doubled", f"{row.event_id} stands at {row.position}, too")
            self.places.setdefault(row.event_id, row)
        self._unclaimed = set(self.places)
        self._acknowledged: list[_Append] = []
        self._reads: list[_Read] = []

    # --- appends -----------------------------------------------------------------------------

    def append(self, record: Mapping[str, Any]) -> None:
        """One append; what it says of itself is compared with what is stored."""
        append = _Append(*(record[name] for name in _Append._fields))
        self._unclaimed.difference_update(append.ids)
        self._findings.events[append.outcome] += len(append.ids)
        if record["strange"]:
            self._findings.add("strange", f"{record['strange']} for {append.ids[0]}")
        rows = [self.places[event] for event in append.ids if event in self.places]
        if append.outcome == ACKNOWLEDGED:
            self._acknowledged.append(append)
            self._must_be_there(append)
        elif append.outcome == REFUSED:
            for row in rows:
                self._findings.add("refused", f"{row.event_id} stands at {row.position}")
        elif append.outcome == UNKNOWN:
            self._findings.events["unknown_stored"] += len(rows)
        self._must_be_whole(append, rows)

    def _must_be_there(self, append: _Append) -> None:
        for offset, (event, position) in enumerate(zip(append.ids, append.positions, strict=True)):
            row = self.places.get(event)
            if row is None:
                self._findings.add("lost", f"{event} of {append.stream}, position {position}")
                continue
            told = (position, append.stream, append.first + offset)
            if (row.position, row.stream, row.number) != told:
                self._findings.add("moved", f"{event} was told {told}, stands at {row[:4]}")
        exact = isinstance(append.expected, int)
        if exact and append.first != append.expected + 1:
            self._findings.add(
                "overtaken", f"{append.ids[0]} expected {append.expected}, got {append.first}"
            )

    def _must_be_whole(self, append: _Append, rows: list[Stored]) -> None:
        if not rows:
            return
        start = rows[0].position
        if [row.position for row in rows] != list(range(start, start + len(append.ids))):
            self._findings.add(
                "torn", f"of {len(append.ids)} events from {append.ids[0]}, {len(rows)} are at "
                f"{[row.position for row in rows][:5]}"
            )  # fmt: skip
        for row in rows:
            if row.data is not None and row.data != content_of(row.event_id):
                self._findings.add("altered", f"{row.event_id} at {row.position}")

    # --- reads -------------------------------------------------------------------------------

    def read(self, record: Mapping[str, Any]) -> None:
        """One read: what it saw must stand there in the end."""
        read = _Read(*(record[name] for name in _Read._fields))
        self._findings.reads[read.level] += 1
        self._reads.append(read)
        for position, event in record["events"]:
            there = self._order[position - 1].event_id if position <= len(self._order) else None
            if there != event:
                self._findings.add(
                    "misread", f"{read.node} gave {event} at {position}; in the end it is {there}"
                )
        if read.head > len(self._order):
            self._findings.add("misread", f"{read.node} had {read.head} events, more than the end")
        if read.level == SESSION and read.head < record["token"]:
            self._findings.add(
                "went_back", f"{read.node} had {read.head}, the session knew {record['token']}"
            )

    # --- the order of things -----------------------------------------------------------------

    def finish(self) -> None:
        """What needs the whole history: real time against the order of positions."""
        for event in self._unclaimed:
            row = self.places[event]
            self._findings.add("foreign", f"{event} at {row.position} was never sent")
        self._appends_keep_their_order()
        self._later_appends_stand_behind_reads()
        self._linearizable_reads_see_everything()

    def _appends_keep_their_order(self) -> None:
        latest_sent, latest = 0.0, ""
        for append in sorted(self._acknowledged, key=lambda each: each.positions[0]):
            if append.done < latest_sent:
                self._findings.add(
                    "reordered", f"{append.ids[0]} was acknowledged before {latest} was sent, and "
                    f"stands behind it at {append.positions[0]}"
                )  # fmt: skip
            if append.sent > latest_sent:
                latest_sent, latest = append.sent, append.ids[0]

    def _later_appends_stand_behind_reads(self) -> None:
        seen = _Highest((read.done, read.head) for read in self._reads)
        for append in self._acknowledged:
            head = seen.before(append.sent)
            if append.positions[0] <= head:
                self._findings.add(
                    "reordered", f"{append.ids[0]} stands at {append.positions[0]}, but {head} "
                    "had been read before it was sent"
                )  # fmt: skip

    def _linearizable_reads_see_everything(self) -> None:
        told = _Highest((append.done, append.positions[-1]) for append in self._acknowledged)
        seen = _Highest((read.done, read.head) for read in self._reads)
        for read in self._reads:
            if read.level == LOCAL or read.level == SESSION:
                continue
            assert read.level == LINEARIZABLE
            known = max(told.before(read.sent), seen.before(read.sent))
            if read.head < known:
                self._findings.add(
                    "stale", f"{read.node} gave {read.head} at {read.sent:.3f} s, {known} was known"
                )


class _Highest:
    """The highest position among those that were known before a moment."""

    def __init__(self, pairs: Iterable[tuple[float, int]]) -> None:
        self._times: list[float] = []
        self._highest: list[int] = []
        for moment, position in sorted(pairs):
            self._times.append(moment)
            self._highest.append(max(position, self._highest[-1] if self._highest else 0))

    def before(self, moment: float) -> int:
        count = bisect_left(self._times, moment)
        return self._highest[count - 1] if count else 0
