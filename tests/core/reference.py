"""The event store as one would write it without caring for speed: what the real one must equal.

One list of events a store, everything else is counted from it when asked. It takes decoded
commands (the types of `node.core.commands`) and answers with the outcomes of API.md; what those
leave open (the text of a refusal, which of several bad ids is named) it leaves open, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from node.core import commands
from node.core.frames import decode_frame
from node.core.outcomes import (
    Appended,
    BarrierPassed,
    CheckpointMoved,
    CheckpointNotIncreasing,
    Outcome,
    SnapshotDeleted,
    SnapshotNotFound,
    SnapshotRecorded,
    SnapshotTooOld,
    StoreCreated,
    StoreDeleted,
    StoreNotFound,
    WrongExpectedVersion,
)


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

    created_us: int
    remembered_min: int
    events: list[Event] = field(default_factory=list)
    checkpoints: dict[str, int] = field(default_factory=dict)
    kept: int = 10_000
    series_bytes_max: int = 64 * 1024 * 1024
    snapshots: dict[tuple[str, str, int], bytes] = field(default_factory=dict)

    def version(self, stream: str) -> int:
        """The number of the last event of a stream, -1 without one."""
        return sum(event.stream == stream for event in self.events) - 1

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
            return self._earlier_try(events, [known.get(one, 0) for one in ids], frozenset(ids))
        for stream, expected in checks:
            if not as_expected(expected, self.version(stream)):
                return WrongExpectedVersion(stream, expected, self.version(stream))
        if checkpoint is not None and not self._increases(*checkpoint):
            return CheckpointNotIncreasing(*checkpoint, self.checkpoints[checkpoint[0]])
        after = len(self.events)
        created_us = max([created_us, *(event.created_us for event in self.events[-1:])])
        for stream, frame in events:
            self.events.append(Event(stream, self.version(stream) + 1, created_us, frame))
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
                fresh = ReferenceStore(created_us, self.remembered_min)
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
