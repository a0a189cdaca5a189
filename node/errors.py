"""Every error a client can meet, drawn as a tree.

    ExesdbError
    ├── RequestError              the client's fault; nothing was stored; do not repeat it unchanged
    │   ├── InvalidRequest, InvalidEvent, InvalidExpectedVersion, InvalidStartVersion, InvalidCount
    │   ├── Unauthorized, Forbidden, NotAcceptable, UnsupportedMediaType, PayloadTooLarge
    │   ├── RouteMissing, MethodNotAllowed, UpgradeRequired
    │   └── Missing: StoreMissing, StreamMissing, SnapshotMissing, CheckpointMissing,
    │       SubscriptionMissing, MemberMissing
    ├── Conflict                  the state said no; nothing was stored; read again, then decide
    │   ├── WrongExpectedVersion, CheckpointNotIncreasing, SnapshotTooOld, SubscriptionExists
    │   ├── PersistenceDisabled, RecoveryRefused
    │   ├── MemberExists, MembershipChangeOpen, MemberRecovering, LastMember
    │   └── EventIdReused, StreamDeleted
    ├── Unavailable               the cluster's fault; certainly not stored; repeat after a moment
    │   └── NoLeader, Overloaded, NotReady, SlowConsumer
    └── Unfinished                time ran out
        ├── OutcomeUnknown        perhaps stored; repeat with the same event ids
        └── ReadBarrierTimeout, PersistenceTimeout, PersistenceFailed

``code``, ``status`` and the named fields are the contract with clients: they appear in every
``application/problem+json`` answer. ``stored`` says whether an append that ended so may have left
events behind. This module imports nothing, so that every layer may raise what it knows to be true.
"""

from __future__ import annotations

from typing import ClassVar


class ExesdbError(Exception):
    """What went wrong, in words (`detail`) and in named fields.

    ``stored`` is "no" (certainly nothing was written) or "perhaps". ``retry_after_s`` is the pause,
    in seconds, after which the same request may succeed; None where repeating it is pointless.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    stored: ClassVar[str] = "perhaps"
    retry_after_s: ClassVar[int | None] = None

    def __init__(self, detail: str, **fields: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = fields


class RequestError(ExesdbError):
    """The request itself is wrong."""

    status = 400
    stored = "no"


class InvalidRequest(RequestError):
    """A body, parameter or name that is not as the contract says."""

    code = "invalid_request"
    title = "Invalid request"


class InvalidEvent(RequestError):
    """One of the events of an append is not an event."""

    code = "invalid_event"
    title = "Invalid event"


class InvalidExpectedVersion(RequestError):
    """`expected_version` is none of the values that the contract lists."""

    code = "invalid_expected_version"
    title = "Invalid expected version"


class InvalidStartVersion(RequestError):
    """A read's `from` or `after` is not a place to start at."""

    code = "invalid_start_version"
    title = "Invalid start"


class InvalidCount(RequestError):
    """A read's `limit` is not a positive number."""

    code = "invalid_count"
    title = "Invalid count"


class Unauthorized(RequestError):
    """The request names nobody."""

    code = "unauthorized"
    status = 401
    title = "Unauthorized"


class Forbidden(RequestError):
    """The request names somebody who may not do this."""

    code = "forbidden"
    status = 403
    title = "Forbidden"


class RouteMissing(RequestError):
    """No such path."""

    code = "route_not_found"
    status = 404
    title = "No such route"


class UpgradeRequired(RequestError):
    """The route speaks WebSocket, version 13, and the request did not ask for it."""

    code = "upgrade_required"
    status = 426
    title = "Upgrade required"


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    status = 405
    title = "Method not allowed"


class NotAcceptable(RequestError):
    """None of the media types in `Accept` can be produced."""

    code = "not_acceptable"
    status = 406
    title = "Not acceptable"


class PayloadTooLarge(RequestError):
    """A published limit was broken; fields `limit` and `actual`."""

    code = "payload_too_large"
    status = 413
    title = "Payload too large"


class UnsupportedMediaType(RequestError):
    """The body's `Content-Type` is none that the node reads."""

    code = "unsupported_media_type"
    status = 415
    title = "Unsupported media type"


class Missing(RequestError):
    """What the path names does not exist."""

    status = 404


class StoreMissing(Missing):
    """Field `store`."""

    code = "store_not_found"
    title = "Store not found"


class StreamMissing(Missing):
    """Fields `store` and `stream`."""

    code = "stream_not_found"
    title = "Stream not found"


class SnapshotMissing(Missing):
    """Fields `store`, `source`, `stream`, `version`; the last three where it was to be deleted."""

    code = "snapshot_not_found"
    title = "Snapshot not found"


class CheckpointMissing(Missing):
    """Fields `store` and `checkpoint`."""

    code = "checkpoint_not_found"
    title = "Checkpoint not found"


class SubscriptionMissing(Missing):
    """Fields `store` and `subscription`."""

    code = "subscription_not_found"
    title = "Subscription not found"


class MemberMissing(Missing):
    """No member of the cluster has that id."""

    code = "member_not_found"
    title = "Member not found"


class Conflict(ExesdbError):
    """The state refused; it was judged inside the replicated state machine."""

    status = 409
    stored = "no"


class WrongExpectedVersion(Conflict):
    """Fields `stream`, `expected`, `current`."""

    code = "wrong_expected_version"
    title = "Wrong expected version"


class CheckpointNotIncreasing(Conflict):
    """Fields `checkpoint`, `position`, `current`; an append with it wrote nothing."""

    code = "checkpoint_not_increasing"
    title = "Checkpoint does not increase"


class SnapshotTooOld(Conflict):
    """All that a series of snapshots may keep is newer; `source`, `stream`, `version`, `kept`."""

    code = "snapshot_too_old"
    title = "Snapshot too old"


class PersistenceDisabled(Conflict):
    """The node keeps its data in memory only (`persistence_enabled=false`)."""

    code = "persistence_disabled"
    title = "Persistence is disabled"


class SubscriptionExists(Conflict):
    """A subscription of this name has another filter or start; `subscription`, `field`."""

    code = "subscription_exists"
    title = "Subscription exists"


class RecoveryRefused(Conflict):
    """The cluster must not, or need not, be rebuilt without the members that are left out."""

    code = "recovery_refused"
    title = "Recovery refused"


class MemberExists(Conflict):
    """A member has that id or that address already; `member`."""

    code = "member_exists"
    title = "Member exists"


class MembershipChangeOpen(Conflict):
    """Another change of the members is under way: members change one at a time."""

    code = "membership_change_open"
    title = "Another membership change is open"


class MemberRecovering(Conflict):
    """A member recovers, or too few are at hand to decide after the change; `member` if it is one.

    Wait until all is well again, or remove that very member first.
    """

    code = "member_recovering"
    title = "Members are not all well"


class LastMember(Conflict):
    """A cluster has at least one member; `member`."""

    code = "last_member"
    title = "Last member"


class StreamDeleted(Conflict):
    """The stream was deleted for ever."""

    code = "stream_deleted"
    status = 410
    title = "Stream deleted"


class EventIdReused(Conflict):
    """An id is stored with other content, or only some of the request's are; `event_id`."""

    code = "event_id_reused"
    status = 422
    title = "Event id reused"


class Unavailable(ExesdbError):
    """The cluster cannot take the request now, and certainly did not."""

    status = 503
    stored = "no"
    retry_after_s = 1


class NoLeader(Unavailable):
    """No leader is known, or it ceased to lead before it took the request."""

    code = "no_leader"
    title = "No leader"


class Overloaded(Unavailable):
    """A bounded queue is full; field `limit` names it."""

    code = "overloaded"
    title = "Overloaded"


class SlowConsumer(Unavailable):
    """A client that follows a store takes less than is sent; the last word of its stream."""

    code = "slow_consumer"
    title = "Slow consumer"


class NotReady(Unavailable):
    """This node is starting, stopping or recovering."""

    code = "not_ready"
    title = "Not ready"


class Unfinished(ExesdbError):
    """The time allowed ran out."""

    status = 504


class OutcomeUnknown(Unfinished):
    """An append was handed to the cluster and its fate was not learned in time.

    Repeating it with the same event ids is safe, and tells.
    """

    code = "outcome_unknown"
    title = "Outcome unknown"
    retry_after_s = 1


class ReadBarrierTimeout(Unfinished):
    """This node did not get as far as the read asked for."""

    code = "read_barrier_timeout"
    title = "Read barrier timed out"
    stored = "no"
    retry_after_s = 1


class PersistenceTimeout(Unfinished):
    """The flush goes on, but was not done in time."""

    code = "persistence_timeout"
    title = "Persistence timed out"


class PersistenceFailed(ExesdbError):
    """The disk refused: data stay in memory and are tried again; members stay as they are."""

    code = "persistence_failed"
    status = 500
    title = "Persistence failed"
