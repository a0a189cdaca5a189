"""The only module that reaches into PySyncObj.

We use its state machine of roles, terms, votes and commitment, by subclassing, and nothing else of
it: not its sockets, threads, pickles, dump files, journals, forwarding or membership changes. Where
a step of its own is unsafe or slow, the subclass overrides the step. That is possible because
Python turns ``self.__name`` inside class SyncObj into ``self._SyncObj__name``. The seams:

    overridden                          why
    _SyncObj__generateRaftTimeout       infinity: elections start only through `stand` (PreVote)
    _SyncObj__sendAppendEntries         window, batches and no pickled chunks: `replicate`
    _SyncObj__sendNextNodeIdx           acks carry the term and only what was verified
    _SyncObj__applyLogEntries           budgeted, and a command cannot be applied twice
    _SyncObj__tryLogCompaction          no dump of the library's
    _SyncObj__loadDumpFile              likewise
    _SyncObj__onBecomeLeader            each reign begins with open windows
    _checkCommandsToApply               the library's command queue stays empty: `append`

    read or written
    _SyncObj__raftState, __raftLeader, __raftCurrentTerm, __raftCommitIndex, __raftLastApplied,
    __raftNextIndex, __raftMatchIndex, __raftElectionDeadline, __otherNodes, __connectedNodes,
    __lastResponseTime, __newAppendEntriesTime, __transferInProgress, __readonlyNodes, _poller,
    __setCurrentTerm (called)

The library counts `__otherNodes`, and itself always. `_configure` keeps these the voters of the
journal's membership, and the learner a read-only node. A node that is no voter itself stands among
its own other nodes: one more that never answers takes back what the library counts for it.

`pinned` refuses any other source than the one this was read in. Upstream's names stop at this door.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pysyncobj.syncobj as upstream
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node

from node.raft.bridge import Bridge, NoPoller, Outbox
from node.raft.journal import Journal
from node.raft.membership import Membership
from node.raft.messages import Ack, AppendEntries, Behind, RequestVote, TimeoutNow, Vote
from node.raft.pinned import verify
from node.raft.ports import RaftSettings
from node.raft.window import Window

FOLLOWER, CANDIDATE, LEADER = "follower", "candidate", "leader"
_ROLES = (FOLLOWER, CANDIDATE, LEADER)

_NEVER = float("inf")
_APPLY_S = 0.005  # applying pauses here: a long backlog must leave room for heartbeats
_SEND_ENTRIES_MAX, _SEND_BYTES_MAX = 1024, 4 * 1024 * 1024


def now() -> float:
    """The library's clock, in seconds: everything in this package measures time by it."""
    return float(upstream.monotonicTime())


def use_clock(clock: Callable[[], float]) -> None:
    """Let the library, and with it this package, measure time by another clock (simulations)."""
    upstream.monotonicTime = clock


class Engine(SyncObj):  # type: ignore[misc]
    """One replica of the Raft group.

    `apply(index, term, entry)` is called once for every committed entry, in order, and must not
    raise. `tick` does what is due; call it often, and after every message.
    """

    def __init__(
        self,
        settings: RaftSettings,
        journal: Journal,
        outbox: Outbox,
        apply: Callable[[int, int, bytes], None],
    ) -> None:
        verify()
        self.journal = journal
        self.verified_index = journal.base_index
        self.ack_limit: int | None = None
        self.announced_commit = 0
        self._outbox = outbox
        self._apply = apply
        self._settings = settings
        self._windows: dict[str, Window] = {}
        self._sessions: set[str] = set()
        self._last_append: tuple[tuple[int, ...], AppendEntries] | None = None
        self._bridge = Bridge(outbox)
        conf = SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=True,
            appendEntriesPeriod=settings.heartbeat_ms / 1000,
            raftMinTimeout=settings.election_min_ms / 1000,
            raftMaxTimeout=settings.election_max_ms / 1000,
            leaderFallbackTimeout=settings.leader_fallback_ms / 1000,
            dynamicMembershipChange=False,
            commandsWaitLeader=False,
            journalFile=None,
            fullDumpFile=None,
            password=None,
            pollerType="select",
        )
        make_journal = upstream.createJournal
        upstream.createJournal = lambda _: journal
        try:
            super().__init__(Node(settings.node_id), [], conf=conf, transport=self._bridge)
        finally:
            upstream.createJournal = make_journal
        self._poller = NoPoller()
        self._SyncObj__raftLastApplied = journal.base_index
        self._SyncObj__raftCurrentTerm = journal.getCurrentTerm()
        self._SyncObj__votedForNodeId = journal.getVotedForNodeId()
        self._configure()
        journal.memberships.on_change = self._configure

    # --- what the replica asks ---------------------------------------------------------------

    @property
    def role(self) -> str:
        """`follower`, `candidate` or `leader`."""
        return _ROLES[self._SyncObj__raftState]

    @property
    def leads(self) -> bool:
        """Whether this node believes that it leads."""
        return bool(self._SyncObj__raftState == 2)

    @property
    def leader(self) -> str | None:
        """The id of the leader of the current term, if known."""
        node = self._SyncObj__raftLeader
        return None if node is None else str(node.id)

    @property
    def term(self) -> int:
        """The current term; durable before this node says anything in it."""
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def commit_index(self) -> int:
        """The index up to which this node knows entries to be committed."""
        return int(self._SyncObj__raftCommitIndex)

    @property
    def applied_index(self) -> int:
        """The index up to which entries are applied to the state."""
        return int(self._SyncObj__raftLastApplied)

    def match_index(self, peer: str) -> int:
        """Leader: how far the peer's log is known to agree with ours."""
        return int(self._SyncObj__raftMatchIndex.get(Node(peer), 0))

    def next_index(self, peer: str) -> int:
        """Leader: the entry that goes to the peer next."""
        return int(self._SyncObj__raftNextIndex[Node(peer)])

    @property
    def membership(self) -> Membership:
        """The membership by which this node counts."""
        return self.journal.memberships.current

    def leads_with_own_entry_applied(self) -> bool:
        """Whether it has applied an entry of its own term, and so knows what is committed."""
        return self.leads and self.journal.term_at(self.applied_index) == self.term

    def tick(self) -> None:
        """Do what is due now."""
        self.doTick(0)

    def stand(self) -> None:
        """Stand for election at once; the next tick does it."""
        self._SyncObj__raftElectionDeadline = 0

    def excuse(self, seconds: float) -> None:
        """This node was not run for so long: its peers may have answered (see `attention`)."""
        heard = self._SyncObj__lastResponseTime
        heard.update({node: min(heard_at + seconds, now()) for node, heard_at in heard.items()})

    def forget_leader(self) -> None:
        """The leader has been silent for too long: nobody is known to lead, the term stays."""
        self._SyncObj__raftLeader = None

    def append(self, entry: bytes) -> int:
        """Leader: put an entry into the log and send it on; returns its index."""
        index = self.journal.last_index + 1
        self.journal.add(entry, index, self.term)
        self.replicate()
        return index

    def hand_over(self, peer: str) -> bool:
        """Leader: ask the peer to take over; False if it does not hold the whole log."""
        accepted: list[bool] = []
        self.transferLeadership(Node(peer), lambda _, error: accepted.append(error == 0))
        return accepted == [True]

    def retire(self) -> None:
        """Neither lead nor stand any longer."""
        self._SyncObj__raftState: int = _ROLES.index(FOLLOWER)
        self._SyncObj__raftLeader = None

    def restart_at(self, index: int, term: int) -> None:
        """The state up to `index` came another way: begin the log anew behind it."""
        self.journal.restart_at(index, term)
        self.verified_index = index
        self._SyncObj__raftCommitIndex = index
        self._SyncObj__raftLastApplied = index

    def step_down(self, peer: str, term: int) -> None:
        """Adopt a higher term, as a follower who has voted for nobody."""
        self._bridge.deliver(
            peer,
            # A request that can never be granted: its log is older than any.
            {"type": "request_vote", "term": term, "last_log_index": -1, "last_log_term": -1},
        )

    def abstain(self, term: int) -> None:
        """Adopt a term in which this node may have voted: as if it had, for itself."""
        self.step_down(self._settings.node_id, term)
        if self.journal.getVotedForNodeId() is None:
            self._SyncObj__setCurrentTerm(self.term, self._settings.node_id)

    def forget_peer(self, peer: str) -> None:
        """The peer is a new incarnation: nothing is known of its log any more."""
        if peer not in self._windows:
            return
        if self.leads:
            self._SyncObj__raftMatchIndex[Node(peer)] = 0
            self._SyncObj__raftNextIndex[Node(peer)] = self.journal.last_index + 1
        self._windows[peer].clear()

    def connected(self, peer: str) -> None:
        """A session with the peer is up."""
        self._sessions.add(peer)
        if peer not in self._windows:
            return
        self._windows[peer].clear()
        known = self.match_index(peer)
        if self.leads and known:
            # Whatever was in flight on an earlier session may be lost.
            self._SyncObj__raftNextIndex[Node(peer)] = known + 1
        self._bridge.connected(peer)

    def disconnected(self, peer: str) -> None:
        """The session with the peer is gone."""
        self._sessions.discard(peer)
        self._bridge.disconnected(peer)

    def rewind(self, peer: str, next_index: int) -> None:
        """Leader: go on from `next_index`, but never before what the peer is known to hold."""
        target = max(next_index, self.match_index(peer) + 1)
        if self._windows[peer].rewind(target, now(), self._settings.heartbeat_ms / 1000):
            self._SyncObj__raftNextIndex[Node(peer)] = target
            self._send_entries(peer, always=True)

    def _configure(self) -> None:
        """Count by the journal's membership from now on; votes for another count no more."""
        if self.role == CANDIDATE:
            self.retire()
        settings, voters = self._settings, self.membership.voter_ids
        own, bytes_max = settings.node_id, settings.peer_window_bytes
        before, others = self._windows, self.membership.others(own)
        self._windows = {peer: before.get(peer) or Window(bytes_max) for peer in others}
        counted = {Node(voter) for voter in voters - {own}}
        if own not in voters:
            counted.add(Node(own))
        learns = {Node(peer) for peer in others if peer not in voters}
        self._SyncObj__otherNodes, self._SyncObj__readonlyNodes = counted, learns
        for known, begins in (
            (self._SyncObj__raftNextIndex, self.journal.last_index + 1),
            (self._SyncObj__raftMatchIndex, 0),
            (self._SyncObj__lastResponseTime, now()),
        ):
            for node in known.keys() - (counted | learns):
                del known[node]
            for node in counted | learns:
                known.setdefault(node, begins)
        for peer in before.keys() - self._windows.keys():
            self._bridge.disconnected(peer)
        for peer in (self._windows.keys() - before.keys()) & self._sessions:
            self._bridge.connected(peer)

    # --- messages that passed the guard ------------------------------------------------------

    def receive_append(self, peer: str, message: AppendEntries, ack_limit: int | None) -> None:
        """Take entries from the leader; ack no further than `ack_limit`, if given."""
        entries = [
            (entry, index, term)
            for index, (term, entry) in enumerate(message.entries, message.prev_index + 1)
        ]
        self.ack_limit = ack_limit
        try:
            self._bridge.deliver(
                peer,
                {
                    "type": "append_entries",
                    "term": message.term,
                    "commit_index": message.commit_index,
                    "entries": entries,
                    "prevLogIdx": message.prev_index,
                    "prevLogTerm": message.prev_term,
                },
            )
        finally:
            self.ack_limit = None

    def receive_ack(self, peer: str, message: Ack) -> None:
        """Leader: a follower's ack, current and from a member."""
        node = Node(peer)
        before = self._SyncObj__raftNextIndex[node]
        self._bridge.deliver(
            peer,
            {
                "type": "next_node_idx",
                "next_node_idx": message.next_index,
                "reset": False,
                "success": message.success,
            },
        )
        if message.success:
            # The stock step sets the next index back to the ack's, and so sends again, and has
            # the follower cut and lose, all that is in flight behind it.
            self._SyncObj__raftNextIndex[node] = max(before, message.next_index)
            self._windows[peer].acknowledged(message.next_index - 1)

    def receive_vote_request(self, peer: str, message: RequestVote) -> None:
        """A candidate's request that may be granted."""
        self._bridge.deliver(
            peer,
            {
                "type": "request_vote",
                "term": message.term,
                "last_log_index": message.last_index,
                "last_log_term": message.last_term,
            },
        )

    def receive_vote(self, peer: str, message: Vote) -> None:
        """A vote of this term, the first from this peer."""
        self._bridge.deliver(peer, {"type": "response_vote", "term": message.term})

    def receive_timeout_now(self, peer: str, message: TimeoutNow) -> None:
        """The leader wants this node to take over."""
        self._bridge.deliver(peer, {"type": "timeout_now", "term": message.term})

    # --- replication to followers ------------------------------------------------------------

    def replicate(self) -> None:
        """Leader: send every peer what it lacks, as far as its window is open."""
        for node in self._SyncObj__connectedNodes:
            self._send_entries(node.id, always=False)

    def _SyncObj__sendAppendEntries(self) -> None:
        """The heartbeat: every connected peer gets at least an empty message."""
        self._SyncObj__newAppendEntriesTime = now() + self._settings.heartbeat_ms / 1000
        for node in self._SyncObj__connectedNodes:
            self._send_entries(node.id, always=True)

    def announce_commit(self) -> None:
        """Leader: tell the followers the commit index at once, without waiting for a heartbeat."""
        self._SyncObj__sendAppendEntries()

    def _send_entries(self, peer: str, always: bool) -> None:
        node, journal, window = Node(peer), self.journal, self._windows[peer]
        following = self._SyncObj__raftNextIndex[node]
        if following <= journal.base_index:
            if always:
                self._outbox.send(peer, self._append_message(journal.base_index + 1, 0))
                self._outbox.send(peer, Behind(self.term, journal.base_index))
            return
        sent = False
        while following <= journal.last_index and window.open:
            items = journal.items_from(following, _SEND_ENTRIES_MAX, _SEND_BYTES_MAX)
            if not self._outbox.send(peer, self._append_message(following, len(items))):
                return  # nothing of it left: the next heartbeat tries again from here
            window.sent(items[-1][1], sum(len(item[0]) for item in items))
            following = self._SyncObj__raftNextIndex[node] = items[-1][1] + 1
            sent = True
        if always and not sent:
            self._outbox.send(peer, self._append_message(following, 0))

    def _append_message(self, following: int, count: int) -> AppendEntries:
        """The message with `count` entries from `following` on; the same object for every peer."""
        key = (following, count, self.commit_index, self.term)
        if self._last_append is None or self._last_append[0] != key:
            items = self.journal.items_from(following, count, 2**62) if count else []
            previous = self.journal.item(following - 1)
            self.announced_commit = self.commit_index
            message = AppendEntries(
                self.term,
                following - 1,
                previous[2],
                self.commit_index,
                [[term, entry] for entry, _, term in items],
            )
            self._last_append = key, message
        return self._last_append[1]

    # --- steps of the library that are replaced ----------------------------------------------

    def _SyncObj__generateRaftTimeout(self) -> float:
        return _NEVER

    def _SyncObj__onBecomeLeader(self) -> None:
        # What was under way in an earlier reign may have been cut from the log since, and is then
        # never acknowledged.
        for window in self._windows.values():
            window.clear()
        super()._SyncObj__onBecomeLeader()

    def _SyncObj__sendNextNodeIdx(
        self,
        node: Any,
        reset: bool = False,
        nextNodeIdx: int | None = None,
        success: bool = False,
    ) -> None:
        if reset or not success or nextNodeIdx is None:
            # What is committed always agrees with the leader's log: go on behind it.
            self._outbox.send(node.id, Ack(self.term, self.commit_index + 1, True, False))
            return
        if self.ack_limit is not None:
            nextNodeIdx = self.ack_limit + 1
        self.verified_index = nextNodeIdx - 1
        self._outbox.send(node.id, Ack(self.term, nextNodeIdx, False, True))

    def _SyncObj__applyLogEntries(self) -> bool:
        applied, journal = self._SyncObj__raftLastApplied, self.journal
        until, deadline = self._SyncObj__raftCommitIndex, now() + _APPLY_S
        while applied < until:
            entry, index, term = journal.item(applied + 1)
            # Counted before it is applied: whatever happened below, no entry is applied twice.
            applied = self._SyncObj__raftLastApplied = index
            self._apply(index, term, entry)
            if now() >= deadline:
                break
        return False

    def _checkCommandsToApply(self) -> None:
        """The library's own command queue is not used."""

    def _SyncObj__tryLogCompaction(self) -> None:
        """The library's own compaction is not used."""

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:
        raise AssertionError("the library must not load a dump")
