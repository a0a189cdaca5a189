"""One node's inner parts alone: engine, guard, recovery and election, message by message.

A test gives it single messages and reads its answers from a list. There is no event loop; time is a
`Clock` that the test turns. `Disk` keeps its promises.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from node.raft import messages
from node.raft.election import Election
from node.raft.guard import Guard
from node.raft.journal import Journal
from node.raft.library import Engine
from node.raft.lineage import Standing
from node.raft.membership import NOBODY, Membership, Unsaid
from node.raft.messages import Message
from node.raft.ports import RaftSettings, StartingPoint
from node.raft.recovery import Recovery
from tests.raft.tails import FakeTail

FOUNDERS = Standing("founders", (), founded=False)


@dataclass
class Disk:
    """What a node finds again when it starts: promises, the cut of its state, a tail of the log.

    `tail` was written by a clean stop, `kept` while the node ran, if it keeps one.
    """

    term: int = 0
    vote: str | None = None
    incarnation: int = 0
    cut: int = 0
    clean: bool = False
    forgetful: bool = True
    blank: bool = True
    lives: tuple[int, ...] = ()
    tail: tuple[tuple[int, int, bytes], ...] = ()
    membership: Membership | None = None
    heard: Membership | None = None
    unsaid: Unsaid | None = None
    standing: Standing = FOUNDERS
    aside: list[Disk] = field(default_factory=list)
    kept: FakeTail | None = None
    saves: list[tuple[int, str | None]] = field(default_factory=list)
    full: bool = False

    def save(self, term: int, vote: str | None) -> None:
        """`ports.Promises`: term and vote never go back."""
        assert not self.full, "the process ends"
        assert term >= self.term, "a term went back"
        assert term > self.term or self.vote in (None, vote), "a second vote in one term"
        self.term, self.vote = term, vote
        self.saves.append((term, vote))

    def recovered(self) -> None:
        """`ports.Promises`."""
        self.forgetful = self.blank = False
        self.standing = self.standing._replace(founded=True)

    def rebuild(self, lineage: str, membership: Membership) -> None:
        """What `identity.Identity.rebuild` keeps."""
        self.standing, self.forgetful = self.standing.followed_by(lineage), True
        self.blank = self.blank and len(membership.voters) > 1
        self.membership = self.heard = membership
        self.unsaid = None

    def quarantined(self, newer: Standing) -> Disk:
        """The disk of the next life, when this one's lineage was given up; this one is kept."""
        return Disk(
            incarnation=self.incarnation,
            blank=True,
            membership=NOBODY,
            heard=NOBODY,
            standing=newer._replace(founded=False),
            aside=[*self.aside, self],
        )

    def save_membership(
        self, committed: Membership, heard: Membership, unsaid: Unsaid | None
    ) -> None:
        """`ports.Promises`: what is committed never goes back."""
        assert not self.full, "the process ends"
        assert self.membership is None or committed.version >= self.membership.version
        self.membership, self.heard, self.unsaid = committed, heard, unsaid

    def try_membership(
        self, committed: Membership, heard: Membership, unsaid: Unsaid | None
    ) -> None:
        """`ports.Promises`."""
        if self.full:
            raise OSError(errno.ENOSPC, "the disk is full")
        self.save_membership(committed, heard, unsaid)


def settings_of(node_id: str, everyone: Sequence[str], **changes: Any) -> RaftSettings:
    """Settings for tests; addresses are names only."""
    peers = {peer: f"{peer}:1" for peer in everyone if peer != node_id}
    address = f"{node_id}:1"
    return RaftSettings(node_id, address, address, f"{node_id}:2", peers, b"secret", **changes)


class Solo:
    """The inner parts of one node; what it says is in `said`, until it is taken from there."""

    def __init__(
        self,
        node_id: str = "n1",
        size: int = 3,
        start: StartingPoint | None = None,
        disk: Disk | None = None,
        **changes: Any,
    ) -> None:
        everyone = [f"n{number}" for number in range(1, size + 1)]
        self.settings = settings_of(node_id, everyone, **changes)
        self.disk = disk or Disk()
        start = start or StartingPoint(1, 0, None, 0, 0, forgetful=False)
        self.said: list[tuple[str, Message]] = []
        self.applied: list[tuple[int, int, bytes]] = []
        self.journal = Journal(start, self.disk, self.settings.node_id, self.settings.founding)
        self.engine = Engine(self.settings, self.journal, self, self._apply)
        self.recovery = Recovery(self.engine, self.settings, start, self.disk, self.send)
        self.election = Election(
            self.engine, self.recovery, self.settings, self.send, random.Random(1)
        )
        self.guard = Guard(self.engine, self.recovery, self.send, self.election.heard)
        for peer in self.settings.peers:
            self.engine.connected(peer)

    def send(self, peer: str, message: Message) -> bool:
        """Everything that the parts say ends here."""
        self.said.append((peer, message))
        return True

    def hear(self, peer: str, message: Message) -> list[tuple[str, Message]]:
        """Give the guard a message, and take what the node says to it."""
        self.guard.receive(peer, message)
        return self.take()

    def tick(self) -> list[tuple[str, Message]]:
        """One turn, as the replica does it."""
        self.recovery.tick()
        self.election.tick()
        self.engine.tick()
        return self.take()

    def take(self) -> list[tuple[str, Message]]:
        """What was said since the last time."""
        said, self.said = self.said, []
        return said

    def elect(self) -> None:
        """Make this node the leader of the next term, with everyone's vote."""
        self.engine.stand()
        self.engine.tick()
        for peer in self.settings.peers:
            self.guard.receive(peer, messages.Vote(self.engine.term))
        assert self.engine.leads
        self.take()

    def log(self) -> list[tuple[int, int]]:
        """The log as (index, term), with its base."""
        first, last = self.journal.base_index, self.journal.last_index
        return [(at, self.journal.term_at(at) or 0) for at in range(first, last + 1)]

    def _apply(self, index: int, term: int, entry: bytes) -> None:
        self.applied.append((index, term, entry))


def starting_at(index: int, index_term: int, **changes: Any) -> StartingPoint:
    """The start of a node whose state was loaded up to `index`, and which has forgotten nothing."""
    start = StartingPoint(1, index_term, None, index, index_term, forgetful=False)
    return replace(start, **changes)
