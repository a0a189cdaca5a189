"""What the state answers to a command.

A refusal is a value like a success: `apply` never raises, because PySyncObj stops for ever at an
entry whose application raised, on every node at once. Outcomes are the same on every node, and the
node that took the request turns its own into an HTTP answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Appended(NamedTuple):
    """Events are stored: just now, or by an earlier try of the same request (`idempotent`).

    `first_version` and `last_version` are event numbers in the stream of the first event;
    `positions` has one store position per event of the request, in the request's order; `streams`
    tells the number of the last event of the request in each stream it wrote to. An append of
    nothing but a checkpoint has no positions and -1 for both versions.
    """

    first_version: int
    last_version: int
    positions: Sequence[int]
    streams: Mapping[str, int]
    idempotent: bool


class AppendedEach(NamedTuple):
    """What became of each of several appends, in order.

    `numbers` and `positions` are those of the first event of each that is stored now. `others` has
    the outcome of each that is not, by its place in the command (whose number and position are 0).
    """

    numbers: Sequence[int]
    positions: Sequence[int]
    others: Mapping[int, Appended | WrongExpectedVersion | EventIdReused | StreamDeleted]

    def of(self, place: int, stream: str, count: int) -> Outcome:
        """What the append at this place, of `count` events to `stream`, came to."""
        position = self.positions[place]
        if not position:
            return self.others[place]
        first, last = self.numbers[place], self.numbers[place] + count - 1
        return Appended(first, last, range(position, position + count), {stream: last}, False)


class WrongExpectedVersion(NamedTuple):
    """The stream is not where the writer believed; `current` is -1 where there is none."""

    stream: str
    expected: int
    current: int


class EventIdReused(NamedTuple):
    """An event id of the request is stored already, and not as part of this same request."""

    event_id: bytes
    detail: str


class StoreNotFound(NamedTuple):
    """No such store at this point of the history."""

    store: str


class StoreCreated(NamedTuple):
    """The store exists now; `created` is False if it did before."""

    created: bool


class StoreDeleted(NamedTuple):
    """The store and all it held are gone."""

    store: str


class CheckpointMoved(NamedTuple):
    """The checkpoint stands at `position` now."""

    name: str
    position: int


class CheckpointNotIncreasing(NamedTuple):
    """The checkpoint stands at `current` already; nothing was written."""

    name: str
    position: int
    current: int


class SnapshotRecorded(NamedTuple):
    """The snapshot is kept; `replaced` says that one of the same version had to go for it."""

    replaced: bool


class SnapshotTooOld(NamedTuple):
    """Not recorded: the `kept` snapshots that its series may hold are all of greater versions."""

    source: str
    stream: str
    version: int
    kept: int


class SnapshotDeleted(NamedTuple):
    """The snapshot is gone."""

    source: str
    stream: str
    version: int


class SnapshotNotFound(NamedTuple):
    """There is no snapshot of this version."""

    source: str
    stream: str
    version: int


class StreamNotFound(NamedTuple):
    """No such stream at this point of the history: there was none yet, or it was deleted."""

    store: str
    stream: str


class StreamDeleted(NamedTuple):
    """Refused: the stream was deleted for ever."""

    stream: str


class StreamRemoved(NamedTuple):
    """The stream is deleted now, and all its events up to number `version` are removed."""

    stream: str
    version: int
    hard: bool


class MetadataSet(NamedTuple):
    """The limits are in force; events with a number below `first` are removed.

    `truncate_before` is what is kept of the one asked for: at most the next event number.
    """

    stream: str
    first: int
    truncate_before: int | None


class Expired(NamedTuple):
    """So many events of so many streams were too old and are removed, and so many snapshots that
    were beyond what is kept.

    `has_more` says that the command ended at its own bound: another one removes more at once.
    """

    streams: int
    events: int
    has_more: bool
    snapshots: int = 0


class Subscribed(NamedTuple):
    """The subscription exists as asked for; `created` is False if it did before."""

    name: str
    created: bool


class Unsubscribed(NamedTuple):
    """The subscription and all that it remembered is gone."""

    name: str


class SubscriptionNotFound(NamedTuple):
    """No such subscription at this point of the history."""

    store: str
    name: str


class SubscriptionExists(NamedTuple):
    """The subscription exists with another filter or start (`field`), which never change."""

    name: str
    field: str


class SubscriptionsFull(NamedTuple):
    """The store has as many subscriptions as it may."""

    limit: int


class Fetched(NamedTuple):
    """Events were handed out: (position, attempt) each, of the life `uid` of the subscription.

    `has_more` says that the command ended at its own bounds: another one may find more at once.
    """

    uid: int
    deliveries: Sequence[tuple[int, int]]
    has_more: bool


class Settled(NamedTuple):
    """Deliveries are settled, but for those at these places of the request: they were over."""

    stale: Sequence[int]


class Replayed(NamedTuple):
    """So many parked events will be delivered again; `has_more` says to ask for the rest."""

    events: int
    has_more: bool = False


class BarrierPassed(NamedTuple):
    """A command that changes nothing has come through the log."""


class Malformed(NamedTuple):
    """The bytes are no command of this version; nothing was changed, on any node."""

    detail: str


Outcome = (
    Appended
    | AppendedEach
    | WrongExpectedVersion
    | EventIdReused
    | StoreNotFound
    | StoreCreated
    | StoreDeleted
    | CheckpointMoved
    | CheckpointNotIncreasing
    | SnapshotRecorded
    | SnapshotTooOld
    | SnapshotDeleted
    | SnapshotNotFound
    | StreamNotFound
    | StreamDeleted
    | StreamRemoved
    | MetadataSet
    | Expired
    | Subscribed
    | Unsubscribed
    | SubscriptionNotFound
    | SubscriptionExists
    | SubscriptionsFull
    | Fetched
    | Settled
    | Replayed
    | BarrierPassed
    | Malformed
)
