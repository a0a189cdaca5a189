"""The tail's format: what a segment of it holds, and what a chain of segments means.

The tail is what this node's Raft log holds behind the cut, kept so that a process that is killed
forgets nothing. It is a chain of segments, files of one size each:

    header   magic, format, life, sequence, CRC-32 of those; then two words of eight bytes:
             end     up to where records count; moved last, by one store to memory
             state   open, closed (the next segment goes on), or gap (records are missing behind it)
    record   length, CRC-32, kind, index, term | the entry

    entry      the log's entry at `index`
    truncated  the log drops what it has from `index` on
    start      the log begins anew behind `index`: the tail is complete only if this node's disk
               reaches there

A record counts once `end` has moved past it, and it is acknowledged only then. So there is no torn
record: whatever is wrong in front of `end` is damage, and never read as a shorter history. One
record behind `end` may be whole, that of a process which died between the two stores; if more are,
`end` itself is damaged. A checksum begins with its segment's own start value, so no record of
another segment is taken for one of this.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct
from zlib import crc32

FORMAT = 1
MAGIC = b"EXTAIL\r\n"  # the line end shows a file that went through a text conversion

HEADER = Struct("<8sIIQQI")
_SEALED = Struct("<8sIIQQ")
WORD = Struct("<Q")
END_AT, STATE_AT, RECORDS_AT = 64, 72, 128
RECORD = Struct("<IIBxxxQQ")
RECORD_SEALED = Struct("<IBxxxQQ")

# Far from one another, so that no flipped bit makes one of another.
OPEN, CLOSED, GAP = 0, 0x6465736F6C63, 0x21706167


class Kind(IntEnum):
    """What a record says."""

    ENTRY = 1
    TRUNCATED = 2
    START = 3


_KINDS = frozenset(Kind)

Entry = tuple[int, int, bytes]
"""One entry of the Raft log: index, term, and what it holds."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a segment."""

    kind: int
    index: int
    term: int
    entry: bytes = b""


class Damage(Exception):
    """A segment holds what nobody wrote; the message continues "PATH …"."""


class TooNew(Exception):
    """A segment has a format that this version does not know."""


@dataclass(slots=True)
class Segment:
    """One segment, as it was read. `damage` says what is wrong behind its records."""

    life: int
    sequence: int
    state: int = OPEN
    records: list[Record] = field(default_factory=list)
    damage: str | None = None


def seed(life: int, sequence: int) -> int:
    """Where the checksums of a segment's records begin."""
    return crc32(WORD.pack(life) + WORD.pack(sequence))


def header(life: int, sequence: int, end: int = RECORDS_AT, state: int = OPEN) -> bytes:
    """The bytes in front of a segment's records."""
    sealed = _SEALED.pack(MAGIC, FORMAT, 0, life, sequence)
    checked = sealed + crc32(sealed).to_bytes(4, "little")
    return (checked.ljust(END_AT, b"\0") + WORD.pack(end) + WORD.pack(state)).ljust(
        RECORDS_AT, b"\0"
    )


def encoded(record: Record, seed: int) -> bytes:
    """A record's bytes, in a segment with this start value."""
    length, what = len(record.entry), (record.kind, record.index, record.term)
    checksum = crc32(record.entry, crc32(RECORD_SEALED.pack(length, *what), seed))
    return RECORD.pack(length, checksum, *what) + record.entry


def whole_segment(life: int, sequence: int, records: Iterable[Record], state: int) -> bytes:
    """A segment that holds these records and has no room for more."""
    start = seed(life, sequence)
    body = b"".join(encoded(record, start) for record in records)
    return header(life, sequence, RECORDS_AT + len(body), state) + body


def read_segment(content: bytes) -> Segment:
    """Read one segment. Raises `TooNew`, and `Damage` where not even the header can be trusted."""
    if len(content) < RECORDS_AT:
        raise Damage("is shorter than its header")
    magic, version, _, life, sequence, checksum = HEADER.unpack_from(content)
    if magic != MAGIC or crc32(content[: _SEALED.size]) != checksum:
        raise Damage("has a damaged header")
    if version > FORMAT:
        raise TooNew(f"has format {version}; this version knows {FORMAT}")
    (end,), (state,) = WORD.unpack_from(content, END_AT), WORD.unpack_from(content, STATE_AT)
    segment = Segment(life, sequence, state)
    if state not in (OPEN, CLOSED, GAP):
        segment.damage = "has a damaged header"
    else:
        _read_records(segment, content, end)
    return segment


def _read_records(segment: Segment, content: bytes, end: int) -> None:
    at, start = RECORDS_AT, seed(segment.life, segment.sequence)
    while at < end:
        record = _record_at(content, at, start)
        if record is None or at + RECORD.size + len(record.entry) > end:
            segment.damage = f"has a damaged record at byte {at}"
            return
        segment.records.append(record)
        at += RECORD.size + len(record.entry)
    if at != end:
        segment.damage = "has a damaged header"
        return
    last = _record_at(content, at, start)
    if last is not None:
        segment.records.append(last)
        if _record_at(content, at + RECORD.size + len(last.entry), start) is not None:
            segment.damage = "holds records behind its end"


def _record_at(content: bytes, at: int, start: int) -> Record | None:
    """The record at a byte; None if there is none, or not a whole one."""
    body = at + RECORD.size
    if body > len(content):
        return None
    length, checksum, kind, index, term = RECORD.unpack_from(content, at)
    entry = content[body : body + length]
    sealed = RECORD_SEALED.pack(length, kind, index, term)
    if len(entry) < length or crc32(entry, crc32(sealed, start)) != checksum:
        return None
    return Record(kind, index, term, entry) if kind in _KINDS else None


class Replay:
    """What a chain of segments means. Give it their records in order.

    `runs` are stretches of the log, each with the index in front of it and its entries; a later one
    begins where the tail does not continue the one before.
    """

    def __init__(self) -> None:
        self.runs: list[tuple[int, list[Entry]]] = []

    def take(self, record: Record) -> None:
        """Take the next record. Raises `Damage` where it cannot follow."""
        if record.kind == Kind.START:
            self.runs.append((record.index, []))
            return
        if not self.runs:
            # Segments that the disk has passed are gone, and the start went with them.
            self.runs.append((record.index - 1, []))
        if record.kind == Kind.TRUNCATED:
            self._truncate(record.index)
        else:
            self._add(record)

    def _truncate(self, index: int) -> None:
        base, entries = self.runs[-1]
        del entries[max(0, index - base - 1) :]
        self.runs[-1] = min(base, index - 1), entries

    def _add(self, record: Record) -> None:
        base, entries = self.runs[-1]
        following = base + len(entries) + 1
        if record.index != following:
            raise Damage(f"holds entry {record.index} where {following} belongs")
        entries.append((record.index, record.term, record.entry))

    def behind(self, cut: int) -> tuple[list[Entry], bool]:
        """The log behind a cut (with the entry at it, to compare), and whether that is all of it.

        If the last run begins behind the cut, what lies between is lost; then the last run that
        does follow the cut is better than nothing.
        """
        for base, entries in reversed(self.runs):
            if base <= cut:
                return entries[max(0, cut - base - 1) :], base == self.runs[-1][0]
        return [], False
