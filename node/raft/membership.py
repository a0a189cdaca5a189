"""Who belongs to the cluster: a value, and the only ways in which one such value becomes another.

A membership names the voters, of whom a majority decides everything, and at most one learner: a
node that is sent the log but is not counted. Each change makes the next version.

Why a change is safe (Raft's single-server changes): `with_learner`, `with_learner_promoted` and
`without` change the voters by at most one node. A majority of the old voters and a majority of the
new ones then have a node in common, so no two of them can decide differently; two changes at once
would lose that. `changes` gives the values that lead from one membership to another, one step at a
time, each of which is put into the log only when the one before is committed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple


class MalformedMembership(ValueError):
    """What was to be a membership is none."""


class Member(NamedTuple):
    """A node, and where the others reach its raft port."""

    id: str
    raft_address: str


@dataclass(frozen=True)
class Membership:
    """One membership. `version` 0 is the founding one, which comes from the configuration.

    Only that of a node which joins, and does not know yet who the others are, has no voters.
    `since` is the incarnation in which the learner was added, by which it knows whether it has lost
    its disk since; 0 if that is not known. `term` is that of the leader who added it: whatever the
    learner promised in an earlier life, as a voter, no later term counts it.
    """

    version: int
    voters: tuple[Member, ...]
    learner: Member | None = None
    since: int = 0
    term: int = 0

    # --- looking -----------------------------------------------------------------------------

    @cached_property
    def addresses(self) -> dict[str, str]:
        """Where each member's raft port is reached, the learner's too, by id."""
        members = [*self.voters, *([self.learner] if self.learner else [])]
        return dict(sorted(members))

    @cached_property
    def voter_ids(self) -> frozenset[str]:
        """Those who are counted."""
        return frozenset(member.id for member in self.voters)

    @property
    def learner_id(self) -> str | None:
        """The node that is being added, if any."""
        return None if self.learner is None else self.learner.id

    def others(self, node_id: str) -> list[str]:
        """All members but this one, the learner too, in order."""
        return [member for member in self.addresses if member != node_id]

    def other_voters(self, node_id: str) -> list[str]:
        """All voters but this one, in order."""
        return [member.id for member in self.voters if member.id != node_id]

    def is_majority(self, node_ids: Collection[str]) -> bool:
        """Whether these nodes, as far as they are voters, can decide."""
        return 2 * len(self.voter_ids.intersection(node_ids)) > len(self.voters)

    # --- steps -------------------------------------------------------------------------------

    def with_learner(self, member: Member) -> Membership:
        """The next version, in which a new node is sent the log."""
        assert self.learner is None and member.id not in self.voter_ids
        return Membership(self.version + 1, self.voters, member)

    def with_learner_promoted(self) -> Membership:
        """The next version, in which the learner is counted."""
        assert self.learner is not None
        return Membership(self.version + 1, tuple(sorted([*self.voters, self.learner])))

    def without(self, node_id: str) -> Membership:
        """The next version, in which a voter is not counted, or the learner is forgotten."""
        if self.learner is not None and self.learner.id == node_id:
            return Membership(self.version + 1, self.voters)
        voters = tuple(member for member in self.voters if member.id != node_id)
        assert len(voters) == len(self.voters) - 1 > 0
        return Membership(self.version + 1, voters, self.learner, self.since, self.term)

    # --- as data -----------------------------------------------------------------------------

    def plain(self) -> list[Any]:
        """In terms of CBOR and JSON."""
        learner = None if self.learner is None else [*self.learner, self.since, self.term]
        return [self.version, [list(member) for member in self.voters], learner]

    @classmethod
    def from_plain(cls, plain: Any) -> Membership:
        """Undo `plain`. Raises `MalformedMembership`, and nothing else."""
        try:
            version, voters, learner = plain
            members = tuple(sorted(_member(voter) for voter in voters))
            membership = cls(version, members)
            if learner is not None:
                *named, since, term = learner
                membership = cls(version, members, _member(named), since, term)
        except (TypeError, ValueError) as error:
            raise MalformedMembership("no membership") from error
        if type(version) is not int or not 0 <= version < 2**32:
            raise MalformedMembership("a membership without a version")
        if not _is_number(membership.since) or not _is_number(membership.term):
            raise MalformedMembership("a learner without an incarnation and a term")
        if version > NOBODY.version and not members:
            raise MalformedMembership("a membership without voters")
        if len(membership.addresses) != len(members) + (learner is not None):
            raise MalformedMembership("a membership that names a node twice")
        return membership


class Unsaid(NamedTuple):
    """A membership of one voter, which waits for that one's word (see `membership_log`): the state
    was past its entry `at` this index.
    """

    at: int
    membership: Membership


NOBODY = Membership(0, ())
"""The membership of a node that belongs to none as far as it knows."""


def founding(addresses: Mapping[str, str]) -> Membership:
    """The membership with which a cluster begins."""
    return Membership(0, tuple(sorted(Member(*item) for item in addresses.items())))


def changes(now: Membership, wanted: Mapping[str, str]) -> Iterator[Membership]:
    """The steps from `now` to voters with these ids and addresses: additions first, one by one."""
    if now.learner is not None and wanted.get(now.learner.id) != now.learner.raft_address:
        now = now.without(now.learner.id)
        yield now
    if now.learner is not None:
        now = now.with_learner_promoted()
        yield now
    for member in sorted(Member(*item) for item in wanted.items()):
        if member.id not in now.voter_ids:
            now = now.with_learner(member)
            yield now
            now = now.with_learner_promoted()
            yield now
    for node_id in sorted(now.voter_ids - wanted.keys()):
        now = now.without(node_id)
        yield now


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _member(plain: Any) -> Member:
    node_id, raft_address = plain
    if not isinstance(node_id, str) or not isinstance(raft_address, str) or not node_id:
        raise ValueError("a member is an id and an address")
    return Member(node_id, raft_address)
