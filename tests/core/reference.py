"""The event store as one would write it without caring for speed: what the real one must equal.

One list of events a store, everything else is counted from it when asked. It takes decoded
commands (the types of `node.core.commands`) and answers with the outcomes of API.md; what those
leave open (the text of a refusal, which of several bad ids is named) it leaves open, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from node.core import commands, life_commands
from node.core.frames import decode_frame
from node.core.outcomes import (
    Appended,
    BarrierPassed,
    CheckpointMoved,
    CheckpointNotIncreasing,
    Expired,
    MetadataSet,
    Outcome,
    SnapshotDeleted,
    SnapshotNotFound,
    SnapshotRecorded,
    SnapshotTooOld,
    StoreCreated,
    StoreDeleted,
    StoreNotFound,
    StreamDeleted,
    StreamNotFound,
    StreamRemoved,
    WrongExpectedVersion,
)
from node.core.stream import Limits


class Reused(NamedTuple):
    """An `EventIdReused` that names one of these ids."""

    ids: frozenset[bytes]


class Event(NamedTuple):
    """One stored event."""

    stream: str
    number: int
    created_us: int
    frame: bytes


@dataclass
class ReferenceStore:
    """One store."""

    name: str
    created_us: int
    remembered_min: int
    events: list[Event] = field(default_factory=list)
    checkpoints: dict[str, int] = field(default_factory=dict)
    kept: int = 10_000
    series_bytes_max: int = 64 * 1024 * 1024
    snapshots: dict[tuple[str, str, int], bytes] = field(default_factory=dict)
    removed: set[tuple[str, int]] = field(default_factory=set)  # stream, number
    absent: set[str] = field(default_factory=set)
    over: set[str] = field(default_factory=set)
    limits: dict[str, Limits] = field(default_factory=dict)

    def numbers(self, stream: str) -> range:
        """All event numbers that were ever given in a stream."""
        return range(sum(event.stream == stream for event in self.events))

    def version(self, stream: str) -> int:
        """The number of the last event of a stream, -1 where there is no such stream."""
        gone = stream in self.absent or stream in self.over
        return -1 if gone else len(self.numbers(stream)) - 1

    def kept_numbers(self, stream: str) -> list[int]:
        """The numbers of a stream's events that can be read."""
        return [number for number in self.numbers(stream) if (stream, number) not in self.removed]

    def names(self) -> list[str]:
        """The streams that there are."""
        return sorted({event.stream for event in self.events} - self.absent - self.over)

    def delete_stream(self, stream: str, expected: int, hard: bool) -> Outcome:
        """Judge the expected version, then remove it all."""
        if stream in self.over:
            return StreamDeleted(stream)
        current = self.version(stream)
        if not as_expected(expected, current):
            return WrongExpectedVersion(stream, expected, current)
        if not self.numbers(stream) or (stream in self.absent and not hard):
            return StreamNotFound(self.name, stream)
        self.removed.update((stream, number) for number in self.numbers(stream))
        self.absent.discard(stream)
        (self.over if hard else self.absent).add(stream)
        self.limits.pop(stream, None)
        return StreamRemoved(stream, len(self.numbers(stream)) - 1, hard)

    def set_metadata(self, stream: str, limits: Limits) -> Outcome:
        """All three at once; no event that is yet to come is removed."""
        if stream in self.over:
            return StreamDeleted(stream)
        if self.version(stream) < 0:
            return StreamNotFound(self.name, stream)
        count = len(self.numbers(stream))
        if limits.truncate_before is not None:
            limits = limits._replace(truncate_before=min(count, limits.truncate_before))
            self.removed.update((stream, number) for number in range(limits.truncate_before))
        self.limits[stream] = limits
        self.limit()
        first = min(self.kept_numbers(stream), default=count)
        return MetadataSet(stream, first, limits.truncate_before)

    def limit(self) -> None:
        """What `max_count` asks for."""
        for stream, limits in self.limits.items():
            if limits.max_count is not None:
                last = self.numbers(stream)[: -limits.max_count]
                self.removed.update((stream, number) for number in last)

    def expire(self, now_us: int) -> Outcome:
        """What `max_age_ms` asks for; more than a few streams are not judged here."""
        expired = {
            (event.stream, event.number)
            for event in self.events
            if (age_ms := self.limits.get(event.stream, Limits()).max_age_ms) is not None
            and event.created_us + age_ms * 1000 <= now_us
        } - self.removed
        self.removed |= expired
        return Expired(len({stream for stream, _ in expired}), len(expired), False)

    def remembered(self) -> dict[bytes, int]:
        """Event id -> position, of the events whose ids are remembered."""
        generation = len(self.events) // self.remembered_min
        start = max(0, generation - 1) * self.remembered_min
        return {
            decode_frame(event.frame).event_id: position
            for position, event in enumerate(self.events[start:], start + 1)
        }

    def append(
        self,
        events: list[tuple[str, bytes]],
        checks: list[tuple[str, int]],
        checkpoint: tuple[str, int] | None,
        created_us: int,
    ) -> Outcome | Reused:
        """Ids first, then the checks, then the checkpoint, then write it all."""
        ids = [decode_frame(frame).event_id for _, frame in events]
        known = self.remembered()
        if len(set(ids)) < len(ids):
            return Reused(frozenset(ids))
        if any(one in known for one in ids):
            earlier = self._earlier_try(events, [known.get(one, 0) for one in ids], frozenset(ids))
            if isinstance(earlier, Appended) and checkpoint and self._increases(*checkpoint):
                self.checkpoints.update([checkpoint])
            return earlier
        for stream, _ in [*events, *checks]:
            if stream in self.over:
                return StreamDeleted(stream)
        for stream, expected in checks:
            if not as_expected(expected, self.version(stream)):
                return WrongExpectedVersion(stream, expected, self.version(stream))
        if checkpoint is not None and not self._increases(*checkpoint):
            return CheckpointNotIncreasing(*checkpoint, self.checkpoints[checkpoint[0]])
        after = len(self.events)
        created_us = max([created_us, *(event.created_us for event in self.events[-1:])])
        for stream, frame in events:
            number = len(self.numbers(stream))
            self.events.append(Event(stream, number, created_us, frame))
            self.absent.discard(stream)
        self.limit()
        self.checkpoints.update([checkpoint] if checkpoint else [])
        return self._appended(list(range(after + 1, len(self.events) + 1)), idempotent=False)

    def put_checkpoint(self, name: str, position: int) -> Outcome:
        """Move a checkpoint if that is forward."""
        if not self._increases(name, position):
            return CheckpointNotIncreasing(name, position, self.checkpoints[name])
        self.checkpoints[name] = position
        return CheckpointMoved(name, position)

    def put_snapshot(self, source: str, stream: str, version: int, content: bytes) -> Outcome:
        """Add it, then throw the smallest away until the rest fits; it must be among the rest."""
        replaced = (source, stream, version) in self.snapshots
        after = {**self.snapshots, (source, stream, version): content}
        series = sorted(key for key in after if key[:2] == (source, stream))
        while len(series) > self.kept or (
            len(series) > 1 and sum(len(after[key]) for key in series) > self.series_bytes_max
        ):
            del after[series.pop(0)]
        if (source, stream, version) not in after:
            return SnapshotTooOld(source, stream, version, self.kept)
        self.snapshots = after
        return SnapshotRecorded(replaced)

    def delete_snapshot(self, *key: Any) -> Outcome:
        """Remove exactly this one."""
        gone = self.snapshots.pop(key, None)
        return SnapshotNotFound(*key) if gone is None else SnapshotDeleted(*key)

    def keep(self, kept: int) -> None:
        """Of each series the greatest versions."""
        self.kept = kept
        for pair in {key[:2] for key in self.snapshots}:
            for key in sorted(key for key in self.snapshots if key[:2] == pair)[:-kept]:
                del self.snapshots[key]

    def _earlier_try(
        self, events: list[tuple[str, bytes]], positions: list[int], ids: frozenset[bytes]
    ) -> Outcome | Reused:
        stored = [self.events[at - 1] if at else None for at in positions]
        same = all(
            found is not None and (found.stream, found.frame) == (stream, frame)
            for found, (stream, frame) in zip(stored, events, strict=True)
        )
        if same and positions == sorted(positions):
            return self._appended(positions, idempotent=True)
        return Reused(ids)

    def _appended(self, positions: list[int], idempotent: bool) -> Appended:
        events = [self.events[position - 1] for position in positions]
        streams = {event.stream: event.number for event in events}
        if not events:
            return Appended(-1, -1, positions, streams, idempotent)
        first = events[0]
        return Appended(first.number, streams[first.stream], positions, streams, idempotent)

    def _increases(self, name: str, position: int) -> bool:
        return name not in self.checkpoints or position > self.checkpoints[name]


@dataclass
class ReferenceState:
    """All stores."""

    remembered_min: int
    series_bytes_max: int
    stores: dict[str, ReferenceStore] = field(default_factory=dict)

    def apply(self, command: Any) -> Outcome | Reused | list[Outcome | Reused]:
        """What the state must answer to a well-formed command; to each of several appends."""
        match command:
            case commands.Barrier():
                return BarrierPassed()
            case commands.CreateStore(name, created_us):
                created = name not in self.stores
                fresh = ReferenceStore(name, created_us, self.remembered_min)
                fresh.series_bytes_max = self.series_bytes_max
                self.stores.setdefault(name, fresh)
                return StoreCreated(created)
            case commands.PutStore(name, created_us, _, kept):
                outcome = self.apply(commands.CreateStore(name, created_us))
                if kept is not None:
                    self.stores[name].keep(kept)
                return outcome
        store = self.stores.get(command.store)
        if store is None:
            return StoreNotFound(command.store)
        match command:
            case life_commands.DeleteStream(_, stream, expected, hard):
                return store.delete_stream(stream, expected, hard)
            case life_commands.SetMetadata(_, stream, limits):
                return store.set_metadata(stream, limits)
            case life_commands.Expire(_, now_us):
                return store.expire(now_us)
            case commands.DeleteStore(name):
                del self.stores[name]
                return StoreDeleted(name)
            case commands.PutCheckpoint(_, name, position):
                return store.put_checkpoint(name, position)
            case commands.PutSnapshot(_, _, source, stream, version, content):
                return store.put_snapshot(source, stream, version, content)
            case commands.DeleteSnapshot(_, source, stream, version):
                return store.delete_snapshot(source, stream, version)
            case commands.Append(_, created_us, stream, expected, frames):
                events = [(stream, frame) for frame in frames]
                return store.append(events, [(stream, expected)], None, created_us)
            case commands.AppendEach(_, created_us, streams, versions, counts, frames):
                ends = list(accumulate(counts))
                return [
                    store.append(
                        [(stream, frame) for frame in frames[end - count : end]],
                        [(stream, version)],
                        None,
                        created_us,
                    )
                    for stream, version, count, end in zip(
                        streams, versions, counts, ends, strict=True
                    )
                ]
            case commands.AppendMany(_, created_us, events, checks, checkpoint):
                return store.append(events, checks, checkpoint, created_us)
        raise AssertionError(command)


def as_expected(expected: int, current: int) -> bool:
    """The table of API.md."""
    return {
        commands.ANY: True,
        commands.NO_STREAM: current == -1,
        commands.STREAM_EXISTS: current >= 0,
    }.get(expected, expected == current)
