"""One replica of the store, as the rest of the node sees it.

It owns the parts of this package and the order in which they act. Everything happens on the event
loop: a message, a submission or the timer leads to `_turn`, at most once a loop turn, which lets
every part do what is due:

    recovery.tick, election.tick   may this node stand, and should it?
    engine.tick                    roles, commitment, heartbeats; applies what is committed
    proposals.pump                 the next group commit, which carries the new commit index along

`_apply` is the one place where a committed entry meets the state.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from node.core.outcomes import Outcome
from node.core.state import State
from node.errors import NotReady, ReadBarrierTimeout
from node.raft import entries
from node.raft.announcement import Announcement
from node.raft.attention import Attention
from node.raft.election import Election
from node.raft.filling import Filling
from node.raft.guard import Guard
from node.raft.handover import HandOver
from node.raft.journal import NO_OP, Journal, NoTail
from node.raft.library import Engine
from node.raft.members import ClusterStatus, Members, Outlook
from node.raft.membership import Member, Membership
from node.raft.membership_change import MembershipChanges
from node.raft.messages import (
    Answer,
    Ask,
    Behind,
    Gossip,
    MembershipNotice,
    Message,
    PreVote,
    PreVoteRequest,
    Propose,
    RecoveryReport,
    RecoveryRequest,
    Refused,
)
from node.raft.ports import LogEntry, Network, Promises, RaftSettings, StartingPoint, Tail
from node.raft.proposals import Proposals
from node.raft.reads import Reads
from node.raft.recovery import Recovery
from node.raft.requests import Requests
from node.raft.waiting import Waiting

log = logging.getLogger(__name__)

EXIT_DIVERGED = 71

Listen = Callable[[str, Any], None]

_TICK_S = 0.02
_SWEEP_S = 0.05
_GOSSIP_S = 0.2
_CUT_S = 0.25


class Replica:
    """The replicated state on this node, and the door to change it.

    `overloaded` tells whether the disk is too far behind; `persisted_index` how far it is; `chance`
    spreads the elections (a simulation gives its own, so that a seed gives one run). `tail` keeps
    the log where a killed process finds it again; without one such a node comes back recovering.
    """

    def __init__(
        self,
        settings: RaftSettings,
        network: Network,
        start: StartingPoint,
        state: State,
        promises: Promises,
        overloaded: Callable[[], bool],
        persisted_index: Callable[[], int],
        chance: random.Random | None = None,
        tail: Tail | None = None,
    ) -> None:
        self.settings = settings
        self.state = state
        self.requests = Requests(network.send, start.incarnation)
        self._network = network
        self._persisted_index = persisted_index
        self._tail: Tail = tail or NoTail()
        self._journal = Journal(start, promises, settings.node_id, settings.founding, self._tail)
        state.applied_index = self._journal.base_index
        state.applied_term = self._journal.term_at(self._journal.base_index) or 0
        self._engine = Engine(settings, self._journal, self, self._apply)
        self._recovery = Recovery(self._engine, settings, start, promises, network.send)
        self._election = Election(
            self._engine, self._recovery, settings, network.send, chance or random.Random()
        )
        self._attention = Attention(self._election.excuse, self._engine.excuse)
        self._guard = Guard(self._engine, self._recovery, network.send, self._election.heard)
        self._proposals = Proposals(
            self._engine, settings, start.incarnation, network.send, overloaded
        )
        self._waiting = Waiting()
        self.filling = Filling(
            self._engine, settings, state, self.requests, self._guard.alarm, self._fill_ended
        )
        self._members = Members(
            self._engine, settings, network, lambda: self._recovery.active, persisted_index
        )
        self._open_doors(settings, network)
        self._listeners = self._who_listens()
        self._incarnations: dict[str, int] = {}
        self._timers: list[asyncio.Task[None]] = []
        self._turn_scheduled = False
        self._announcement = Announcement(self._engine, settings.node_id)
        self._last_view: tuple[str | None, int] = (None, 0)
        self._elections_won = 0

    def _open_doors(self, settings: RaftSettings, network: Network) -> None:
        """What others ask for: reads, another leader, other members."""
        self._reads = Reads(
            self._engine, settings, self.state, self.requests, self._waiting, self.propose
        )
        self._hand_over = HandOver(
            self._engine,
            settings,
            network,
            self._proposals,
            self.requests,
            self._reads,
            self._waiting,
            self._turn,
        )
        self._changes = MembershipChanges(
            self._engine,
            settings,
            network,
            self._members,
            self._recovery,
            self.requests,
            self._reads,
            self._hand_over,
            self._waiting,
        )

    def open_reigns_with(self, opening: Callable[[], Sequence[bytes]]) -> None:
        """Whenever this node begins to lead, first propose the commands that `opening` gives."""
        self._proposals.opening = opening

    # --- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the raft port and take part. The state must be loaded by now."""
        self.requests.serve("read_index", self._reads.serve_read_index)
        self.requests.serve("hand_over", self._hand_over.serve)
        await self._network.start(self)
        for pause_s, step in (
            (_TICK_S, self._turn),
            (_SWEEP_S, self._proposals.sweep),
            (_GOSSIP_S, self._members.say),
            (_CUT_S, self._cut_log),
        ):
            self._timers.append(asyncio.create_task(_repeat(pause_s, step)))

    async def stop(self) -> None:
        """Close the raft port. After it this node says nothing more to anyone."""
        self._proposals.pause()
        self.filling.cancel()
        for task in self._timers:
            task.cancel()
        await self.requests.stop()
        await self._network.stop()
        self._proposals.stop()

    def end_submissions(self) -> None:
        """The node is stopping: whoever still waits for an outcome learns that it is unknown."""
        self._proposals.stop()

    def log_tail(self, after: int) -> list[LogEntry]:
        """The log behind `after` as (index, term, entry): what a clean stop must keep."""
        return self._journal.tail_after(after)

    # --- changing and reading ----------------------------------------------------------------

    def propose(self, command: bytes, timeout_ms: int) -> Awaitable[tuple[Outcome, int]]:
        """Replicate a command; gives its outcome and Raft index when THIS node has applied it.

        Raises `NotReady`, `NoLeader` or `Overloaded` (certainly not stored), `OutcomeUnknown`.
        """
        if self._changes.outside:
            raise NotReady("this node is no member of the cluster")
        if self._recovery.active:
            raise NotReady("this node is recovering", waits_for=self._recovery.waits_for())
        return self._proposals.submit(command, timeout_ms)

    async def barrier(self, level: str, timeout_ms: int) -> None:
        """Wait until this node's state covers what the level (`leader`, `linearizable`) promises.

        Raises `ReadBarrierTimeout`, `NoLeader`, `NotReady`, `Overloaded`; see `reads`.
        """
        await self._reads.barrier(level, timeout_ms)

    async def wait_applied(self, index: int, timeout_ms: int) -> None:
        """Wait until this node has applied the entry at `index`. Raises `ReadBarrierTimeout`."""
        await self._reads.applied(index, timeout_ms)

    async def wait_position(self, store: str, position: int, timeout_ms: int) -> bool:
        """Whether the store reached that position here within the time."""
        try:
            await self._reads.position(store, position, timeout_ms)
        except ReadBarrierTimeout:
            return False
        return True

    @property
    def applied_index(self) -> int:
        """The Raft index up to which this node's state is."""
        return self.state.applied_index

    # --- the cluster -------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether this node believes that it leads."""
        return self._engine.leads

    @property
    def leader(self) -> str | None:
        """The leader's id, if known."""
        return self._engine.leader

    @property
    def voters(self) -> list[str]:
        """The members that are counted, this node included if it is."""
        return sorted(self._engine.membership.voter_ids)

    @property
    def recovering(self) -> bool:
        """Whether this node may have forgotten promises, and therefore serves nobody."""
        return self._recovery.active

    @property
    def alarms(self) -> list[str]:
        """What must never happen and did; empty in a healthy cluster."""
        return self._guard.alarms

    def not_ready_reasons(self) -> list[str]:
        """Why this node should not be sent requests; empty if it should."""
        reasons = []
        if self._changes.outside:
            reasons.append(
                "no member: this node was removed from the cluster, or is yet to be added"
            )
        elif self._recovery.active:
            reasons.append(f"recovering: waits for {self._recovery.waits_for()}")
        reasons += self._guard.not_ready_reasons()
        if self.filling.active:
            reasons.append(f"being filled by the leader: {self.filling.receiver.progress}")
        if self._engine.leader is None:
            reasons.append("no leader is known")
        elif self._engine.commit_index > self.applied_index:
            behind = self._engine.commit_index - self.applied_index
            reasons.append(f"{behind} committed entries are not applied yet")
        elif self._engine.leads and not self._engine.leads_with_own_entry_applied():
            reasons.append("the new leader has not committed an entry yet")
        return reasons

    def status(self) -> ClusterStatus:
        """The members, as far as this node knows."""
        return self._members.status()

    def outlook(self) -> Outlook:
        """What an operator must know before members are given up."""
        return self._members.outlook()

    def counters(self) -> dict[str, int]:
        """Numbers for the metrics, counted since the start."""
        return {
            **self._network.counters,
            **self._proposals.counters,
            **self.filling.counters,
            **self._tail.counters,
            "started_recovering": int(self._recovery.was_needed),
            "proposals_waiting": self._proposals.waiting,
            "prevote_rounds": self._election.rounds,
            "elections_won": self._elections_won,
            "raft_log_entries": len(self._journal),
            "raft_log_bytes": self._journal.bytes,
            "raft_alarms": len(self._guard.alarms),
        }

    async def transfer_leadership(self, to: str | None, timeout_ms: int) -> str:
        """Hand leadership to a member (or to the one that is furthest); gives the leader's id.

        Raises `MemberMissing`, `NoLeader`, `NotReady`, `ReadBarrierTimeout`; see `handover`.
        """
        return await self._hand_over.to(to, timeout_ms)

    async def add_member(self, member_id: str, raft_address: str, timeout_ms: int) -> Membership:
        """Add a node; see `MembershipChanges.add` for what it gives and raises."""
        return await self._changes.add(Member(member_id, raft_address), timeout_ms)

    async def remove_member(self, member_id: str, timeout_ms: int) -> Membership:
        """Remove a node; see `MembershipChanges.remove` for what it gives and raises."""
        return await self._changes.remove(member_id, timeout_ms)

    # --- what the transport tells ------------------------------------------------------------

    def send(self, peer: str, message: Message) -> bool:
        """The engine's outbox."""
        return self._network.send(peer, message)

    def connected(self, peer: str, incarnation: int) -> None:
        """A session with a peer is up."""
        if self._incarnations.get(peer) != incarnation:  # it may have forgotten its earlier life
            self._engine.forget_peer(peer)
            self._members.forget(peer)
            self._incarnations[peer] = incarnation
        self._engine.connected(peer)
        self._changes.met(peer)
        self._members.say()
        self._kick()

    def disconnected(self, peer: str) -> None:
        """The session with a peer is gone."""
        self._engine.disconnected(peer)
        self.requests.disconnected(peer)
        self._kick()

    def received(self, peer: str, message: Message) -> None:
        """A message of a proven peer; whatever it is, it stops nothing."""
        try:
            self._receive(peer, message)
        except Exception:
            # Not what it held: that may be of any size.
            log.exception("a %s of %s could not be handled", type(message).__name__, peer)

    def batch_done(self) -> None:
        """Act on what was received."""
        self._kick()

    def _receive(self, peer: str, message: Message) -> None:
        if self._guard.believes(peer, message):
            listen: Listen = self._listeners.get(type(message), self._guard.receive)
            listen(peer, message)

    def _who_listens(self) -> dict[type[Any], Listen]:
        """Who takes which kind of message; the guard takes those of Raft itself."""
        seen = self._network.incarnation
        return {
            Propose: lambda peer, message: self._proposals.proposed(peer, seen(peer), message),
            Refused: self._proposals.refused,
            PreVoteRequest: self._attention.first(self._election.request),
            PreVote: self._election.answer,
            RecoveryRequest: self._recovery.request,
            RecoveryReport: self._recovery.report,
            Gossip: self._changes.heard,
            MembershipNotice: self._changes.told,
            Behind: self.filling.behind,
            Ask: self.requests.asked,
            Answer: self.requests.answered,
        }

    def _fill_ended(self, installed: bool) -> None:
        if installed:
            self._proposals.skipped()
        self._waiting.advanced()
        self._kick()

    # --- the way of time ---------------------------------------------------------------------

    def _kick(self) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Let every part do what is due."""
        self._turn_scheduled = False
        self._attention.look()
        if self._recovery.active and not self._changes.silent:
            self._recovery.tick()
            if not self._recovery.active:
                self._members.say()  # a change of members may wait for it
        self._election.tick()
        self._engine.tick()
        self._changes.tick()
        self._proposals.pump()
        if self._engine.leads and self._announcement.due():
            self._kick()
        if self._engine.commit_index > self._engine.applied_index:
            self._kick()  # a long backlog is applied in several turns
        self._notice_view()

    def _cut_log(self) -> None:
        settings = self.settings
        # Without a disk there is nothing to wait for: a restart comes back empty either way.
        kept = self.applied_index if settings.memory_only else self._persisted_index()
        kept = self.filling.cut_at_most(kept, self._journal.bytes)
        self._journal.cut(kept, settings.log_tail_entries_max, settings.log_tail_bytes_max)
        self.filling.expire()
        self._tail.persisted(self._persisted_index())

    def _notice_view(self) -> None:
        view = self._engine.leader, self._engine.term
        if view == self._last_view:
            return
        self._last_view = view
        log.info("term %d, leader %s", view[1], view[0] or "unknown")
        self._waiting.advanced()
        if self._engine.leads:
            self._elections_won += 1

    def _apply(self, index: int, term: int, entry: bytes) -> None:
        groups: list[entries.Group] = []
        self._journal.memberships.applied(index)
        if entry != NO_OP and not entries.is_membership(entry):
            try:
                groups = entries.decode(entry)
            except entries.MalformedEntry as error:
                self._guard.alarm(f"entry {index} is malformed and is passed over: {error}")
        batch = [command for group in groups for command in group.commands]
        try:
            outcomes = self.state.apply(index, term, batch)
        except BaseException:
            # It is total, so this is a defect or the end of memory. A node that went on would hold
            # another state than the others and call it the same.
            log.critical("entry %d could not be applied, the process ends", index, exc_info=True)
            logging.shutdown()
            os._exit(EXIT_DIVERGED)
        if self._proposals.applied(index, term, groups, outcomes):
            self._announcement.awaited = True
        self._waiting.advanced()


async def _repeat(pause_s: float, step: Callable[[], None]) -> None:
    while True:
        try:
            step()
        except Exception:
            log.exception("a step of the replica failed and is tried again")
        await asyncio.sleep(pause_s)
