"""What is known here of the members: each says a few times a second how far it is (gossip)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from node.raft.library import FOLLOWER, LEADER, Engine, now
from node.raft.messages import Gossip
from node.raft.ports import Network, RaftSettings


class MemberStatus(NamedTuple):
    """One member as this node knows it; `last_contact_ms` is None for the node itself.

    The indexes are None where it has said nothing since this node started.
    `voter` is False for a node that is not counted: it learns, was removed, or has yet to join.
    """

    id: str
    http_address: str
    raft_address: str
    role: str
    commit_index: int | None
    applied_index: int | None
    persisted_index: int | None
    last_contact_ms: int | None
    voter: bool


class ClusterStatus(NamedTuple):
    """The cluster as this node sees it."""

    node_id: str
    leader: str | None
    term: int
    members: list[MemberStatus]


class Outlook(NamedTuple):
    """What an operator must know of a node before members are given up.

    `counted` are those by whom it would be elected, or elects, a leader: the voters in its log.
    `voters` are all that are counted by the newest membership that it knows or the one before
    (raft addresses by id), `learners` those that are being added by one of them and counted by
    neither, `reaches` all members with a connection to it.
    """

    leader: str | None
    term: int
    last_term: int
    last_index: int
    membership_version: int
    counted: list[str]
    voters: dict[str, str]
    learners: dict[str, str]
    reaches: list[str]


class Members:
    """The members' last words, and this node's own."""

    def __init__(
        self,
        engine: Engine,
        settings: RaftSettings,
        network: Network,
        recovering: Callable[[], bool],
        persisted_index: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._network = network
        self._recovering = recovering
        self._persisted_index = persisted_index
        self._said: dict[str, tuple[float, Gossip]] = {}

    def status(self) -> ClusterStatus:
        """All members, in order of their ids."""
        others = self._engine.membership.others(self._settings.node_id)
        members = [self._own(), *map(self._peer, others)]
        members.sort(key=lambda member: member.id)
        return ClusterStatus(
            self._settings.node_id, self._engine.leader, self._engine.term, members
        )

    def outlook(self) -> Outlook:
        """This node's log, and whom it knows and reaches."""
        engine, memberships = self._engine, self._engine.journal.memberships
        known = (memberships.committed, memberships.heard)
        voters = dict(voter for one in known for voter in one.voters)
        learners = dict(one.learner for one in known if one.learner is not None)
        learners = {one: at for one, at in learners.items() if one not in voters}
        return Outlook(
            engine.leader,
            engine.term,
            engine.journal.last_term,
            engine.journal.last_index,
            memberships.heard.version,
            sorted(memberships.current.voter_ids),
            voters,
            learners,
            [peer for peer in {**voters, **learners} if self._network.is_connected(peer)],
        )

    def role_of(self, node_id: str) -> str:
        """What a node is as far as this one knows; `unreachable` if it has not said so lately."""
        own = node_id == self._settings.node_id
        return (self._own() if own else self._peer(node_id)).role

    def heard(self, peer: str, gossip: Gossip) -> None:
        """A peer told how far it is."""
        self._said[peer] = now(), gossip

    def forget(self, peer: str) -> None:
        """The peer is a new incarnation: what the earlier one said is true of it no more."""
        self._said.pop(peer, None)

    def say(self) -> None:
        """Tell every peer how far this node is, if it is one of them."""
        if self._settings.node_id not in self._engine.membership.addresses:
            return
        own = self._own()
        gossip = Gossip(
            own.role,
            self._engine.term,
            self._engine.commit_index,
            self._engine.applied_index,
            self._persisted_index(),
            own.http_address,
            own.raft_address,
        )
        for peer in self._engine.membership.others(self._settings.node_id):
            self._network.send(peer, gossip)

    def _own(self) -> MemberStatus:
        settings = self._settings
        return MemberStatus(
            settings.node_id,
            settings.http_address,
            settings.raft_advertise_address,
            "recovering" if self._recovering() else self._engine.role,
            self._engine.commit_index,
            self._engine.applied_index,
            self._persisted_index(),
            None,
            settings.node_id in self._engine.membership.voter_ids,
        )

    def _role(self, peer: str, said: Gossip) -> str:
        """What a peer is. Its own word may be older than the last election; who leads this node
        knows best, so nobody else is shown as leader.
        """
        if not self._network.is_connected(peer):
            return "unreachable"
        if peer == self._engine.leader:
            return LEADER
        return FOLLOWER if said.role == LEADER else said.role

    def _peer(self, peer: str) -> MemberStatus:
        heard_at, said = self._said.get(peer, (0.0, None))
        raft_address = self._engine.membership.addresses.get(peer, "")
        voter = peer in self._engine.membership.voter_ids
        if said is None:
            role, said_nothing = "unreachable", (None, None, None, None)
            return MemberStatus(peer, "", raft_address, role, *said_nothing, voter)
        return MemberStatus(
            peer,
            said.http_address,
            raft_address,
            self._role(peer, said),
            said.commit_index,
            said.applied_index,
            said.persisted_index,
            round((now() - heard_at) * 1000),
            voter,
        )
