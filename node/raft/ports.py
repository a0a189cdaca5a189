"""What replication needs from the node around it, its settings, and the port to its peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ssl import SSLContext
from typing import Protocol

from node.raft.membership import NOBODY, Membership, Unsaid, founding
from node.raft.messages import Message

LogEntry = tuple[int, int, bytes]
"""Index, term, and the entry itself."""


class Promises(Protocol):
    """What must not be forgotten. Each call but `try_membership` returns when it is on disk, or
    ends the process.
    """

    def save(self, term: int, vote: str | None) -> None:
        """Make the promise durable before anything is said in that term."""

    def recovered(self) -> None:
        """Nothing is missing here any more: from now on this node is not forgetful."""

    def save_membership(
        self, committed: Membership, heard: Membership, unsaid: Unsaid | None
    ) -> None:
        """Keep the newest membership known to be committed, the newest ever in the log, and one
        that waits for a word; on disk when this returns.
        """

    def try_membership(
        self, committed: Membership, heard: Membership, unsaid: Unsaid | None
    ) -> None:
        """`save_membership` of what need not be: raises `OSError` where it cannot be kept.

        Nothing must follow from it then, and yet a later life may find it.
        """


class Tail(Protocol):
    """Where the log behind the cut survives the process.

    Each call tells of a change that the log has just made. When it returns the change is kept, or
    the tail knows that it is not: the log sends, acknowledges and counts nothing before.
    """

    @property
    def counters(self) -> Mapping[str, int]:
        """Numbers for the metrics."""

    def begin(self, index: int, entries: Sequence[LogEntry]) -> None:
        """The log behind `index` is `entries`, whatever was here before."""

    def append(self, index: int, term: int, entry: bytes) -> None:
        """An entry was added at the end."""

    def truncated(self, index: int) -> None:
        """What stood at `index` and behind it was dropped."""

    def restarted(self, index: int) -> None:
        """The log is empty and begins behind `index`: the state came another way."""

    def persisted(self, index: int) -> None:
        """This node's disk reaches up to `index`."""


class Listener(Protocol):
    """The replica, as the network sees it. All calls are made on the event loop."""

    def connected(self, peer: str, incarnation: int) -> None:
        """A session with the peer is up."""

    def disconnected(self, peer: str) -> None:
        """The session with the peer is gone."""

    def received(self, peer: str, message: Message) -> None:
        """A message of the peer, in the order in which it was sent."""

    def batch_done(self) -> None:
        """A good moment to act on what was received."""


class Network(Protocol):
    """Sessions with the peers: `transport.Transport`, or a simulated one."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Numbers for the metrics."""

    async def start(self, listener: Listener) -> None:
        """Begin to connect; from now on the listener is told."""

    async def stop(self) -> None:
        """Close everything."""

    def reach(self, addresses: Mapping[str, str]) -> None:
        """From now on dial these nodes (raft addresses by id) and no others.

        Sessions that are up stay: a node that is no member any more falls silent by itself.
        """

    def send(self, peer: str, message: Message) -> bool:
        """Queue a message; False if it was dropped."""

    def is_connected(self, peer: str) -> bool:
        """Whether there is a session with the peer."""

    def incarnation(self, peer: str) -> int:
        """The latest incarnation in which the peer has been seen; 0 if never."""


@dataclass(frozen=True)
class StartingPoint:
    """What a node knows when it starts.

    `index` and `term` are the cut up to which its state was loaded; `tail` are the log entries
    behind it (index, term, entry), contiguous. `forgetful` says that it may have acknowledged
    entries that it no longer has: it then starts recovering. `blank` says that it may have promised
    more than `term` and `vote`, which it no longer knows; what it has promised in one of `lives`
    (incarnations, not all there were) and since it knows. `membership` and `heard` are what
    `Promises.save_membership` kept; None where nothing was, and the founding membership counts. So
    is `unsaid`, which counts only if the state that was loaded is past it.
    """

    incarnation: int
    term: int
    vote: str | None
    index: int
    index_term: int
    forgetful: bool
    tail: tuple[LogEntry, ...] = ()
    blank: bool = False
    membership: Membership | None = None
    heard: Membership | None = None
    lives: tuple[int, ...] = ()
    unsaid: Unsaid | None = None


@dataclass(frozen=True)
class RaftSettings:
    """Addresses, times and bounds of replication. Times are in milliseconds, sizes in bytes.

    `peers` are the other founding members; where the membership has changed since, only nodes that
    may be asked. A node that `joins` belongs to no membership until the members say so.
    """

    node_id: str
    raft_address: str
    raft_advertise_address: str
    http_address: str
    peers: dict[str, str]
    secret: bytes
    joins: bool = False
    heartbeat_ms: int = 50
    election_min_ms: int = 400
    election_max_ms: int = 900
    leader_fallback_ms: int = 1000
    leader_wait_ms: int = 2000
    handshake_ms: int = 3000
    silence_ms: int = 3000
    proposals_max: int = 10_000
    proposal_bytes_max: int = 64 * 1024 * 1024
    entry_commands_max: int = 1000
    entry_bytes_max: int = 1024 * 1024
    entry_dear_max: int = 8
    entries_in_flight_max: int = 2
    memory_only: bool = False
    log_tail_entries_max: int = 10_000
    log_tail_bytes_max: int = 64 * 1024 * 1024
    peer_queue_bytes_max: int = 64 * 1024 * 1024
    peer_window_bytes: int = 8 * 1024 * 1024
    frame_bytes_max: int = 64 * 1024 * 1024
    strangers_max: int = 64
    server_tls: SSLContext | None = None
    client_tls: SSLContext | None = None

    @property
    def founding(self) -> Membership:
        """The membership where none is known to have been changed to."""
        if self.joins:
            return NOBODY
        return founding({**self.peers, self.node_id: self.raft_advertise_address})
