"""What the replicated state refused, as the error that the client gets.

The state answers with values; here they become errors, once, for all routes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from node.core.commands import NO_STREAM, STREAM_EXISTS
from node.core.ids import format_id
from node.core.outcomes import (
    CheckpointNotIncreasing,
    EventIdReused,
    Malformed,
    Outcome,
    SnapshotNotFound,
    SnapshotTooOld,
    StoreNotFound,
    StreamDeleted,
    StreamNotFound,
    SubscriptionExists,
    SubscriptionNotFound,
    SubscriptionsFull,
    WrongExpectedVersion,
)
from node.errors import CheckpointNotIncreasing as CheckpointNotIncreasingError
from node.errors import EventIdReused as EventIdReusedError
from node.errors import (
    ExesdbError,
    PayloadTooLarge,
    SnapshotMissing,
    StoreMissing,
    StreamMissing,
    SubscriptionMissing,
)
from node.errors import SnapshotTooOld as SnapshotTooOldError
from node.errors import StreamDeleted as StreamDeletedError
from node.errors import SubscriptionExists as SubscriptionExistsError
from node.errors import WrongExpectedVersion as WrongExpectedVersionError


def refusal(outcome: Outcome) -> ExesdbError:
    """The error that an outcome stands for; an unexpected outcome is a defect of ours."""
    make = _ERRORS.get(type(outcome))
    return (
        ExesdbError(f"unexpected outcome {type(outcome).__name__}")
        if make is None
        else make(outcome)
    )


def _wrong_expected_version(outcome: WrongExpectedVersion) -> ExesdbError:
    expected = "stream_exists" if outcome.expected == STREAM_EXISTS else outcome.expected
    return WrongExpectedVersionError(
        f"stream {outcome.stream!r} {_standing(outcome)}",
        stream=outcome.stream,
        expected=expected,
        current=outcome.current,
    )


def _standing(outcome: WrongExpectedVersion) -> str:
    """How a stream stands, beside what was expected of it."""
    if outcome.current == NO_STREAM:
        return "does not exist"
    expected = "new" if outcome.expected == NO_STREAM else f"at {outcome.expected}"
    return f"is at version {outcome.current}, not {expected}"


def _event_id_reused(outcome: EventIdReused) -> ExesdbError:
    event_id = format_id(outcome.event_id)
    return EventIdReusedError(f"event id {event_id}: {outcome.detail}", event_id=event_id)


def _checkpoint_not_increasing(outcome: CheckpointNotIncreasing) -> ExesdbError:
    return CheckpointNotIncreasingError(
        f"checkpoint {outcome.name!r} stands at {outcome.current}, not below {outcome.position}",
        checkpoint=outcome.name,
        position=outcome.position,
        current=outcome.current,
    )


def _snapshot_too_old(outcome: SnapshotTooOld) -> ExesdbError:
    return SnapshotTooOldError(
        f"version {outcome.version} is older than all snapshots of {outcome.source!r} and stream "
        f"{outcome.stream!r} that the store keeps",
        **outcome._asdict(),
    )


def _snapshot_not_found(outcome: SnapshotNotFound) -> ExesdbError:
    return SnapshotMissing(
        f"no snapshot of {outcome.source!r} and stream {outcome.stream!r} at version "
        f"{outcome.version}",
        **outcome._asdict(),
    )


def _subscription_exists(outcome: SubscriptionExists) -> ExesdbError:
    field = "filter" if outcome.field == "wanted" else outcome.field
    return SubscriptionExistsError(
        f"subscription {outcome.name!r} exists with another {field}, which does not change",
        subscription=outcome.name,
        field=field,
    )


def _subscriptions_full(outcome: SubscriptionsFull) -> ExesdbError:
    return PayloadTooLarge(
        "the store has as many subscriptions as it may",
        limit=outcome.limit,
        actual=outcome.limit + 1,
    )


def _subscription_not_found(outcome: SubscriptionNotFound) -> ExesdbError:
    return SubscriptionMissing(
        f"no subscription {outcome.name!r} in store {outcome.store!r}",
        store=outcome.store,
        subscription=outcome.name,
    )


def _stream_not_found(outcome: StreamNotFound) -> ExesdbError:
    return stream_missing(outcome.store, outcome.stream)


def _stream_deleted(outcome: StreamDeleted) -> ExesdbError:
    return stream_deleted(outcome.stream)


def stream_missing(store: str, stream: str) -> StreamMissing:
    """The error for a stream that is not there."""
    return StreamMissing(f"no stream {stream!r} in store {store!r}", store=store, stream=stream)


def stream_deleted(stream: str) -> StreamDeletedError:
    """The error for a stream that was deleted for ever."""
    return StreamDeletedError(f"stream {stream!r} was deleted for ever", stream=stream)


def _store_not_found(outcome: StoreNotFound) -> ExesdbError:
    return StoreMissing(f"no store {outcome.store!r}", store=outcome.store)


def _malformed(outcome: Malformed) -> ExesdbError:
    return ExesdbError(f"the state could not read the command: {outcome.detail}")


_ERRORS: dict[type, Callable[[Any], ExesdbError]] = {
    WrongExpectedVersion: _wrong_expected_version,
    EventIdReused: _event_id_reused,
    CheckpointNotIncreasing: _checkpoint_not_increasing,
    SnapshotTooOld: _snapshot_too_old,
    SnapshotNotFound: _snapshot_not_found,
    StoreNotFound: _store_not_found,
    StreamNotFound: _stream_not_found,
    StreamDeleted: _stream_deleted,
    SubscriptionExists: _subscription_exists,
    SubscriptionNotFound: _subscription_not_found,
    SubscriptionsFull: _subscriptions_full,
    Malformed: _malformed,
}
