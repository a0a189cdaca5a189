"""What the API needs from the rest of the node, and no more.

`service` hands these in. Nothing here names a concrete class of another package, so the API can be
tested with a replica that applies commands in the same process, and the packages can change without
each other. Every method that waits is bounded by its `timeout_ms`; the errors that it may raise are
those of `node.errors` that its docstring names, and they reach the client as they are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Any, Protocol

from node.core.outcomes import Outcome


class MemberStatus(Protocol):
    """One member as this node sees it."""

    @property
    def id(self) -> str: ...
    @property
    def http_address(self) -> str: ...
    @property
    def raft_address(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def commit_index(self) -> int | None: ...
    @property
    def applied_index(self) -> int | None: ...
    @property
    def persisted_index(self) -> int | None: ...
    @property
    def last_contact_ms(self) -> float | None: ...
    @property
    def voter(self) -> bool: ...


class ClusterStatus(Protocol):
    """The cluster as this node sees it; `leader` is None while none is known."""

    @property
    def node_id(self) -> str: ...
    @property
    def leader(self) -> str | None: ...
    @property
    def term(self) -> int: ...
    @property
    def members(self) -> Sequence[MemberStatus]: ...


class Membership(Protocol):
    """Who belongs to the cluster, as it has committed it."""

    @property
    def version(self) -> int: ...
    @property
    def voter_ids(self) -> Collection[str]: ...
    @property
    def learner_id(self) -> str | None: ...


class Replica(Protocol):
    """The replicated log."""

    @property
    def applied_index(self) -> int: ...

    @property
    def recovering(self) -> bool:
        """Whether this node may lack what it once acknowledged, and so must serve nobody."""
        ...

    def propose(self, command: bytes, timeout_ms: int) -> Awaitable[tuple[Outcome, int]]:
        """Commit a command; its outcome and Raft index, once this node has applied it.

        Raises `NoLeader`, `Overloaded`, `NotReady` (certainly not stored), `OutcomeUnknown`.
        """
        ...

    async def barrier(self, level: str, timeout_ms: int) -> None:
        """Return when this node's state covers all that was committed when the call was made.

        `level` is "leader" (as the leader knows it) or "linearizable" (proven by a majority).
        Raises `NoLeader`, `NotReady`, `ReadBarrierTimeout`.
        """
        ...

    async def wait_applied(self, index: int, timeout_ms: int) -> None:
        """Return when this node has applied the entry at `index`. Raises `ReadBarrierTimeout`."""
        ...

    async def wait_position(self, store: str, position: int, timeout_ms: int) -> object:
        """Return when the store has `position` on this node, or the time is over.

        Whether it has is looked at again afterwards; it may raise `ReadBarrierTimeout` itself.
        """
        ...

    def status(self) -> ClusterStatus:
        """Members, roles and progress."""
        ...

    def not_ready_reasons(self) -> list[str]:
        """Why clients should not be sent here; empty when they should."""
        ...

    async def transfer_leadership(self, to: str | None, timeout_ms: int) -> str:
        """Hand leadership to a member (or to any); the id of the new leader."""
        ...

    async def add_member(self, member_id: str, raft_address: str, timeout_ms: int) -> Membership:
        """Add a node; in the answer it is counted, or still learns if the time is over.

        Raises `InvalidRequest`, `MemberExists`, `MembershipChangeOpen`, `MemberRecovering`,
        `NoLeader`, `OutcomeUnknown`.
        """
        ...

    async def remove_member(self, member_id: str, timeout_ms: int) -> Membership:
        """Remove a member. Raises `MemberMissing`, `LastMember`, and what `add_member` raises."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Numbers for the metrics: what was counted since the start, and levels."""
        ...


class ForceReport(Protocol):
    """What a flush of this node reached."""

    def entry(self) -> Mapping[str, Any]:
        """The node's entry in the answer of a flush: `persisted_index`, `persisted_position`,
        `bytes`, `duration_ms`."""
        ...


class Worker(Protocol):
    """The persistence worker of this node."""

    @property
    def enabled(self) -> bool: ...
    @property
    def backlog_bytes(self) -> int: ...
    @property
    def persisted_index(self) -> int: ...
    @property
    def set_aside(self) -> Sequence[str]: ...

    def request(self, store: str) -> None:
        """Queue a store for the next cycle, and wake the worker. Raises `PersistenceDisabled`."""
        ...

    async def force(
        self, stores: Collection[str] | None, index: int, timeout_ms: int
    ) -> ForceReport:
        """Return when everything up to `index` is on this node's disk.

        Raises `PersistenceDisabled`, `PersistenceTimeout`, `PersistenceFailed`.
        """
        ...

    def status(self) -> Mapping[str, Any]:
        """The body of `GET /v1/persistence`."""
        ...

    def store_status(self, name: str) -> Mapping[str, Any]:
        """What `status` says of one store, which must exist."""
        ...

    def set_interval(self, interval_ms: int) -> None:
        """Change the pause between cycles while running."""
        ...


class ForceOn(Protocol):
    """Has another member persist; the service asks it through the Raft transport."""

    async def __call__(
        self, member_id: str, stores: Collection[str] | None, index: int, timeout_ms: int
    ) -> Mapping[str, Any]:
        """The member's entry in the answer of a flush: `persisted_index`, `persisted_position`,
        `bytes`, `duration_ms`.

        Raises `PersistenceDisabled`, `PersistenceTimeout`, `PersistenceFailed`, or one of the
        `Unavailable` when the member cannot be reached.
        """
        ...


class OnDisk(Protocol):
    """Waits until a majority has everything up to a Raft index on disk."""

    async def __call__(self, index: int, timeout_ms: int) -> None:
        """Return when it has. Raises `OutcomeUnknown` when the time is over, `Overloaded`."""
        ...


class RecoveryOrder(Protocol):
    """What an operator wants: go on in `lineage` with `voters` (ids and raft addresses) only."""

    @property
    def lineage(self) -> str: ...
    @property
    def parent(self) -> str: ...
    @property
    def membership_version(self) -> int: ...
    @property
    def voters(self) -> Mapping[str, str]: ...
    @property
    def missing(self) -> Sequence[str]: ...


class Override(Protocol):
    """What an operator may force upon this node when members are gone for good."""

    def report(self) -> Mapping[str, Any]:
        """The body of `GET /v1/cluster/recovery`."""
        ...

    async def carry_out(self, order: RecoveryOrder) -> bool:
        """Make the order durable, and restart; False if it was carried out before.

        Raises `RecoveryRefused`, `PersistenceDisabled`, `PersistenceTimeout`, `PersistenceFailed`.
        """
        ...


class NodeInfo(Protocol):
    """Who this node is, and with what settings it runs."""

    @property
    def node_id(self) -> str: ...
    @property
    def version(self) -> str: ...

    def config(self) -> Mapping[str, Any]:
        """Every setting with its value and where that came from; secrets hidden."""
        ...

    def lineage(self) -> Mapping[str, Any]:
        """What `GET /v1/cluster` says of the history that this node follows: `lineage`, `ancestry`,
        `founded`, `quarantined`, and in `refused` why peers are refused for theirs, by their ids.
        """
        ...


class Clock(Protocol):
    """The wall clock."""

    def __call__(self) -> int:
        """Microseconds since 1970-01-01T00:00:00Z."""
        ...
