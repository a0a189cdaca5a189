"""Changing who belongs to the cluster, one step at a time, through the log.

The leader puts the next membership into the log (the steps are those of `membership.changes`), and
it counts from then on. The next step comes only when

* the one before is committed: two uncommitted changes can make majorities that have no node in
  common;
* the leader has committed an entry of its own term: until then a change of an earlier leader, which
  this one has not got, may still come into force (of two voters both hold what leaves one of them:
  see `membership_log`);
* no voter recovers, or one that does is being removed, and enough of the voters to be are at hand
  to decide.

A node is added as a learner. It is filled and sent the log, and counted when it is no longer
recovering and `_BEHIND_MAX` entries from the end. Nothing of a change is kept outside the log: who
leads next finds a learner there and goes on, or may be asked to remove it. A leader that is to be
removed hands its leadership over first; one that is elected while its own removal is not yet
certain ends its reign when it is: of two, when the one that stays has said that it knows (see
`membership_log`). A removal is answered when the node that went may be stopped for good. Where
one other voter is left beside the leader, that one must have said that it knows, too: should the
leader lose its disk, it alone can tell who the members are.

Whoever has applied a membership tells the members and all that it dials, and so does a node that
meets another. By that a node learns that it was removed while it was away, or where the members are
now. Such a word may be lost (see `transport`). So a node that is no member as far as it knows, and
hears from one, says what it knows, and who is told less than it knows says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from node.errors import (
    ExesdbError,
    InvalidRequest,
    LastMember,
    MemberExists,
    MemberMissing,
    MemberRecovering,
    MembershipChangeOpen,
    NoLeader,
    OutcomeUnknown,
    Overloaded,
    PersistenceFailed,
    ReadBarrierTimeout,
)
from node.raft import entries
from node.raft.handover import HandOver
from node.raft.library import LEADER, Engine, now
from node.raft.members import Members
from node.raft.membership import MalformedMembership, Member, Membership, changes
from node.raft.messages import Gossip, MembershipNotice
from node.raft.ports import Network, RaftSettings
from node.raft.reads import Reads
from node.raft.recovery import Recovery
from node.raft.requests import NoAnswer, Requests
from node.raft.transport import split_address
from node.raft.waiting import Waiting

log = logging.getLogger(__name__)

_TOPIC = "change_members"
_ADD, _REMOVE = "add", "remove"
_BEHIND_MAX = 64  # entries; half a second of them at most, and more would delay the first commits
_STEP_AGAIN_S = 5.0  # where the disk refused
_MARGIN_S = 0.25  # the leader's own time limit comes first, so that its word arrives
_ERRORS: dict[str, type[ExesdbError]] = {
    error.code: error
    for error in (
        InvalidRequest,
        LastMember,
        MemberExists,
        MemberMissing,
        MemberRecovering,
        MembershipChangeOpen,
        NoLeader,
        PersistenceFailed,
    )
}


class MembershipChanges:
    """The membership's way of time on one node, and the door to change it on any node."""

    def __init__(
        self,
        engine: Engine,
        settings: RaftSettings,
        network: Network,
        members: Members,
        recovery: Recovery,
        requests: Requests,
        reads: Reads,
        hand_over: HandOver,
        waiting: Waiting,
    ) -> None:
        self._engine = engine
        self._log = engine.journal.memberships
        self._settings = settings
        self._network = network
        self._members = members
        self._recovery = recovery
        self._requests = requests
        self._reads = reads
        self._hand_over = hand_over
        self._waiting = waiting
        self._announced = self._log.committed.version
        self._confirmed = 0  # the newest version that a voter of it has told
        self._reached: Mapping[str, str] = {}
        self._doubted: tuple[Member, str] | None = None
        self._next_step = 0.0
        requests.serve(_TOPIC, self._serve)

    # --- asking ------------------------------------------------------------------------------

    async def add(self, member: Member, timeout_ms: int) -> Membership:
        """Add a node; the membership in which it is counted, or still learns when time is over.

        Raises `InvalidRequest`, `MemberExists`, `MembershipChangeOpen`, `MemberRecovering`,
        `NoLeader`, `PersistenceFailed` (nothing has changed), `OutcomeUnknown`.
        """
        return await self._change([_ADD, *member], now() + timeout_ms / 1000)

    async def remove(self, member_id: str, timeout_ms: int) -> Membership:
        """Remove a voter or the learner; the membership without it, committed.

        Raises `MemberMissing`, `LastMember`, and what `add` raises.
        """
        return await self._change([_REMOVE, member_id, ""], now() + timeout_ms / 1000)

    async def _change(self, wish: Sequence[str], deadline: float) -> Membership:
        leader = await self._reads.leader(deadline)
        if leader == self._settings.node_id:
            return await self._lead(wish, deadline)
        left_s = max(0.01, deadline - now())
        try:
            answer = await self._requests.ask(
                leader, _TOPIC, [*wish, round(left_s * 1000)], left_s + _MARGIN_S
            )
            code, content = answer
            if code is None:
                return Membership.from_plain(content)
        except (NoAnswer, TypeError, ValueError) as error:
            raise OutcomeUnknown(f"the leader did not answer: {error}") from error
        raise _ERRORS.get(code, OutcomeUnknown)(str(content))

    async def _serve(self, _: str, body: Any) -> Any:
        try:
            kind, member_id, address, left_ms = body
            wish = [str(kind), str(member_id), str(address)]
            return [None, (await self._lead(wish, now() + int(left_ms) / 1000)).plain()]
        except ExesdbError as error:
            return [error.code, error.detail]

    # --- leading -----------------------------------------------------------------------------

    async def _lead(self, wish: Sequence[str], deadline: float) -> Membership:
        kind, member_id, address = wish
        sure = self._engine.leads_with_own_entry_applied
        await self._wait(lambda: sure() or not self._engine.leads, deadline)
        if not sure():
            raise NoLeader("this node does not lead any more")
        own = self._settings.node_id
        if member_id != own and own not in self._log.committed.addresses:
            raise NoLeader("this node was removed, and its reign ends")
        if kind == _ADD:
            return await self._add(Member(member_id, address), deadline)
        return await self._remove(member_id, deadline)

    async def _add(self, member: Member, deadline: float) -> Membership:
        if self._log.current.learner != member:
            self._check_new(member)
            self._check_quiet(None, self._log.current.with_learner(member))
            self._take_step({**self._voters(), member.id: member.raft_address})
        await self._until(lambda: member.id in self._log.committed.addresses, deadline)
        await self._wait(lambda: member.id in self._log.committed.voter_ids, deadline)
        return self._log.committed

    async def _remove(self, member_id: str, deadline: float) -> Membership:
        if member_id not in self._log.newest.addresses:
            if self._is_gone(member_id):
                raise MemberMissing("that is no member", member=member_id)
            return await self._removed(member_id, deadline)  # its removal may come to nothing yet
        if self._log.current.voter_ids == {member_id}:
            raise LastMember("the last member cannot be removed", member=member_id)
        if member_id == self._settings.node_id:
            self._keep(self._log.check)  # it has to survive the next leader's election
            await self._hand_over.to(None, _left_ms(deadline))
            return await self._change([_REMOVE, member_id, ""], deadline)
        self._check_quiet(member_id, self._log.current.without(member_id))
        self._take_step({one: at for one, at in self._voters().items() if one != member_id})
        return await self._removed(member_id, deadline)

    async def _removed(self, member_id: str, deadline: float) -> Membership:
        await self._until(lambda: self._is_gone(member_id), deadline)
        return self._log.committed

    def _is_gone(self, member_id: str) -> bool:
        """Whether the node was removed, and may be stopped for good."""
        committed = self._log.committed
        others = committed.other_voters(self._settings.node_id)
        is_known = len(others) != 1 or self._confirmed >= committed.version
        return member_id not in committed.addresses and is_known

    def _check_new(self, member: Member) -> None:
        try:
            split_address(member.raft_address)
        except ValueError as error:
            raise InvalidRequest("raft_address must be host:port") from error
        current = self._log.current
        if current.learner is not None:
            raise MembershipChangeOpen(f"{current.learner.id} is being added")
        if member.id in current.addresses or member.raft_address in current.addresses.values():
            raise MemberExists("there is a member with that id or address", member=member.id)

    def _check_quiet(self, leaving: str | None, then: Membership) -> None:
        """Raise unless nothing else is under way, and those who are left can decide."""
        if self._log.open:
            raise MembershipChangeOpen("another change is not committed yet")
        learner = self._log.current.learner_id
        if learner is not None:
            if learner == leaving:
                return  # nobody else is counted after it than before
            raise MembershipChangeOpen(f"{learner} is being added")
        roles = {one: self._members.role_of(one) for one in sorted(self._log.current.voter_ids)}
        recover = [one for one, role in roles.items() if role == "recovering"]
        # Some may wait for one another's removal: each that goes leaves fewer of them.
        if recover and leaving not in recover:
            raise MemberRecovering(f"{recover[0]} is recovering", member=recover[0])
        if len(then.voters) == 1 and leaving is not None and roles[leaving] == "unreachable":
            raise MemberRecovering("of two the one that goes must hear of it", member=leaving)
        if not then.is_majority(self._at_hand(then)):
            raise MemberRecovering("too few of the members that would be left can be reached")

    def _at_hand(self, membership: Membership) -> list[str]:
        good = ("leader", "follower", "candidate")
        return [one for one in membership.voter_ids if self._members.role_of(one) in good]

    def _voters(self) -> dict[str, str]:
        return {voter.id: voter.raft_address for voter in self._log.current.voters}

    def _take_step(self, wanted: Mapping[str, str]) -> None:
        """Put the next membership on the way to these voters into the log, kept on disk first.

        Raises `PersistenceFailed`; else the process would end there (see `identity`), and the only
        voter may be the only one that has everything.
        """
        step = next(changes(self._log.current, wanted))
        if step.learner_id is not None and step.learner != self._log.current.learner:
            since = self._network.incarnation(step.learner_id)
            step = replace(step, since=since, term=self._engine.term)
        self._keep(lambda: self._log.prepare(step))
        log.info("membership %d: voters %s, learner %s", step.version,
                 ", ".join(sorted(step.voter_ids)), step.learner_id or "none")  # fmt: skip
        self._engine.append(entries.encode_membership(step))

    @staticmethod
    def _keep(keep: Callable[[], None]) -> None:
        try:
            keep()
        except OSError as error:
            raise PersistenceFailed(
                f"the leader's disk cannot keep who the members are, so none is changed: {error}"
            ) from error

    async def _until(self, holds: Any, deadline: float) -> None:
        """Wait for a commit. Raises `OutcomeUnknown` when time or this reign ends before."""
        term = self._engine.term
        await self._wait(
            lambda: holds() or not self._engine.leads or self._engine.term != term, deadline
        )
        if not holds():
            raise OutcomeUnknown("the change was not seen to be committed; look at the members")

    async def _wait(self, holds: Any, deadline: float) -> None:
        try:
            await self._waiting.until(holds, _left_ms(deadline), "a membership")
        except (ReadBarrierTimeout, Overloaded):
            # So many reads may wait here: what is in the log by now is not refused for that.
            log.debug("a change of the membership takes longer than its request waits")

    # --- the way of time ---------------------------------------------------------------------

    @property
    def outside(self) -> bool:
        """Whether this node is certain to be no member: it was removed, or is yet to be added."""
        own, committed = self._settings.node_id, self._log.committed
        known = committed.version > 0 and own not in committed.addresses
        return known and own not in self._log.current.addresses

    @property
    def silent(self) -> bool:
        """Whether this node speaks with nobody: it is no member, and has nothing to ask either."""
        return self.outside and self._recovery.may_obey()

    def tick(self) -> None:
        """Let the members know, keep sessions with them, and take the next step if it is time."""
        if self._log.committed.version > self._announced:
            self._announce()
        self._reach()
        if not self._engine.leads or self._log.open:
            return
        own, committed = self._settings.node_id, self._log.committed
        if own == committed.learner_id:
            self._lead_for_the_voters()
        elif own not in committed.voter_ids:
            log.info("this node was removed, and ends its reign")
            self._engine.retire()
        elif self._log.current.learner is not None:
            self._promote(self._log.current.learner)

    def met(self, peer: str) -> None:
        """Tell a peer who the members are."""
        if self._log.committed.version:
            self._network.send(peer, MembershipNotice(self._log.committed.plain()))

    def heard(self, peer: str, gossip: Gossip) -> None:
        """A peer told how far it is; where one of the two is no member, it may not know it yet.

        And of two voters the one that leads waits for the other's word, which may have been lost.
        """
        is_member = peer in self._log.current.addresses
        if is_member:
            self._members.heard(peer, gossip)
            learner = self._log.current.learner
            if self._engine.leads and learner is not None and learner.id == peer:
                self._compare(learner, gossip.raft_address)
        two = {self._settings.node_id, peer}
        is_awaited = gossip.role == LEADER and self._log.committed.voter_ids == two
        if self.outside or not is_member or is_awaited:
            self.met(peer)

    def told(self, peer: str, message: MembershipNotice) -> None:
        """A peer knows a membership to be committed."""
        try:
            committed = Membership.from_plain(message.committed)
        except MalformedMembership:
            log.warning("%s named members that are none", peer)
            return
        self._learn(committed)
        if committed.version < self._log.committed.version:
            self.met(peer)
        if peer in committed.voter_ids:
            self._confirmed = max(self._confirmed, committed.version)
            self._waiting.advanced()

    def _learn(self, committed: Membership) -> None:
        """Believe it, but never count by it what was acknowledged in a reign that is over.

        A leader's log holds all that was committed before it led, and nothing is committed in its
        term but by itself. If it is told of more, somebody leads a later term, and those who have
        acknowledged entries of this one may have cut them off since. (Or it leads anew, and knows
        too little of what its log holds; or it is to go, see `membership_log`. Then an election is
        all that this costs.)
        """
        if committed.version <= self._log.committed.version:
            return
        if self._engine.leads:
            if self._log.holds(committed, self._engine.commit_index):
                return  # others were quicker to apply it
            log.info("told of members that this leader has not committed: its reign is over")
            self._engine.retire()
        self._log.learned(committed)

    def _compare(self, learner: Member, address: str) -> None:
        """Say so, once, where a node that is being added calls itself by another address.

        It may well have two, so it is counted all the same.
        """
        if address == learner.raft_address or self._doubted == (learner, address):
            return
        self._doubted = learner, address
        log.warning(
            "%s is added at %s and says that it is at %r: if the members cannot reach it where it "
            "is added, remove it and add it where it is",
            *(*learner, address),
        )

    def _announce(self) -> None:
        self._announced = self._log.committed.version
        if self.outside:
            log.warning("this node is no member of the cluster; its data stay where they are")
        for peer in sorted({*self._reached, *self._log.committed.addresses}):
            self.met(peer)
        self._waiting.advanced()

    def _reach(self) -> None:
        wanted: dict[str, str] = {}
        if not self.silent:
            if self._recovery.active:
                wanted |= {**self._settings.peers, **self._recovery.addresses()}
            wanted |= self._log.current.addresses
        wanted.pop(self._settings.node_id, None)
        if wanted != self._reached:
            self._reached = wanted
            self._network.reach(wanted)

    def _lead_for_the_voters(self) -> None:
        """This node is only being added, and leads because nobody else could (see `election`)."""
        if self._engine.leads_with_own_entry_applied():
            log.info("a majority holds the log of this node, which is no voter: its reign ends")
            self._engine.retire()

    def _promote(self, learner: Member) -> None:
        engine = self._engine
        then = self._log.current.with_learner_promoted()
        verified = engine.match_index(learner.id)
        near = verified > 0 and verified + _BEHIND_MAX >= engine.journal.last_index
        ready = near and engine.leads_with_own_entry_applied() and now() >= self._next_step
        if ready and learner.id in self._at_hand(then) and then.is_majority(self._at_hand(then)):
            try:
                self._take_step({**self._voters(), learner.id: learner.raft_address})
            except PersistenceFailed as error:
                self._next_step = now() + _STEP_AGAIN_S
                log.warning("%s is not counted yet: %s", learner.id, error.detail)


def _left_ms(deadline: float) -> int:
    return max(1, round((deadline - now()) * 1000))
