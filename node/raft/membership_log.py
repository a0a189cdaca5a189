"""Which membership counts on this node now: the newest in its log, or the newest committed one.

A membership counts from the moment at which its entry is put into the log, before it is committed,
and ceases to count if the entry is cut off again. Were it to count only once it is applied, a node
that holds two changes and has applied none could still be elected by a majority of the oldest.

There is one exception: of two voters both must hold the change that leaves one, so it counts once
it is committed. The one that stays could decide it alone; if it lost its disk later, the other one
would know of nothing that came since, and the two would go on from there (see `recovery`).

And it is committed, for everybody, once the one that stays takes it to be. A leader that goes
applies it first, and from then on only the other one is counted: had that one lost its memory, and
believed it, it would go on alone, from a log that may lack what both have acknowledged. So who goes
waits for the word of the one that stays. And that one, while it recovers, keeps to what it knew.
That such a membership was applied is kept on disk: the log may be cut behind it, and who restarts
would know of no change at all, and make another one beside it.

Five things are known:

    newest       the last one in the log, unless one as new or newer is known to be committed
    current      by it votes and acknowledgements are counted: the newest, with that exception
    committed    the newest that can never be taken back; learned by applying it, or from a member
                 that has applied it
    unsaid       one that was applied here, and leaves one voter: it waits for that one's word
    heard        the newest that ever stood in the log, kept durably before it is acknowledged. A
                 node that lost its log still knows by it that the membership may have changed.

`committed` may be ahead of the log: a majority of that membership holds its entry, so a node that
lacks the entry is elected by no majority of it, as it would be by none of an older one. That is an
argument about who may lead, not about what a leader counts: acknowledgements that it was given
before are worth nothing in a membership of a later term. So a leader that is told of one which it
has not committed ends its reign first (see `membership_change`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from node.raft import entries
from node.raft.entries import MalformedEntry
from node.raft.membership import Membership, Unsaid
from node.raft.ports import Promises, StartingPoint

log = logging.getLogger(__name__)


def _ignore() -> None:
    """Nobody listens yet."""


class MembershipLog:
    """The memberships in one node's log. `on_change` is called when `current` has changed."""

    def __init__(
        self, start: StartingPoint, promises: Promises, founding: Membership, node_id: str
    ) -> None:
        self._promises = promises
        self._node_id = node_id
        self._in_log: list[tuple[int, Membership]] = []
        self._is_whole = False
        self.committed = start.membership or founding
        self.heard = max(self.committed, start.heard or founding, key=_version)
        self.unsaid = start.unsaid
        self.newest = self.current = self.committed
        self.on_change: Callable[[], None] = _ignore
        if start.unsaid is not None and start.unsaid.at > start.index:
            self._keep(self.committed, self.heard, None)  # it is in the log, or lost with it
        self._settle()

    @property
    def open(self) -> bool:
        """Whether a change is under way: the newest membership is not known to be committed."""
        return self.newest.version > self.committed.version

    def holds(self, membership: Membership, commit_index: int) -> bool:
        """Whether it is in the log, committed, and only not applied yet."""
        return any(at <= commit_index and one == membership for at, one in self._in_log)

    def may_stand(self, node_id: str) -> bool:
        """Whether the node may lead: it is counted, or its removal is not certain yet.

        Until it is, this node's log may be the only one complete enough to win.
        """
        return node_id in self.current.voter_ids or node_id in self.committed.voter_ids

    def appended(self, index: int, entry: bytes) -> None:
        """An entry was put into the log."""
        if not entries.is_membership(entry):
            return
        try:
            membership = entries.decode_membership(entry)
        except MalformedEntry as error:
            log.critical("entry %d is malformed and changes no membership: %s", index, error)
            return
        self._in_log.append((index, membership))
        self._keep(*self._with(membership))
        self._settle()

    def prepare(self, membership: Membership) -> None:
        """Keep on disk what this node would put into the log, before it does.

        What is in the log has to be kept, or the process ends. Raises `OSError`: the disk is in no
        state for that, and nothing must be put there.
        """
        known = self._with(membership)
        self._promises.try_membership(*known)
        self.committed, self.heard, self.unsaid = known

    def check(self) -> None:
        """Raise `OSError` if the disk is in no state to keep anything."""
        self._promises.try_membership(self.committed, self.heard, self.unsaid)

    def cut_from(self, index: int) -> None:
        """The log was cut: nothing from `index` on is in it any more."""
        self._drop(lambda at: at >= index)

    def applied(self, index: int) -> None:
        """The entry at `index` is committed, and with it its membership, if it has one."""
        if self._in_log and self._in_log[0][0] <= index:
            self.reached(*self._in_log.pop(0))

    def reached(self, index: int, membership: Membership) -> None:
        """This node's state is past the entry of this membership, at `index` or further."""
        leaves_one = len(membership.voters) == 1 < len(self.committed.voters)
        is_sure = self._node_id in membership.voter_ids and self._is_whole
        if leaves_one and not is_sure and membership.version > self.committed.version:
            heard = max(self.heard, membership, key=_version)
            self._keep(self.committed, heard, Unsaid(index, membership))
            self._settle()
        else:
            self.learned(membership)

    def learned(self, committed: Membership) -> None:
        """A member knows this membership to be committed."""
        if committed.version > self.committed.version:
            unsaid = self.unsaid
            if unsaid is not None and unsaid.membership.version <= committed.version:
                unsaid = None
            self._keep(committed, max(self.heard, committed, key=_version), unsaid)
            self._settle()

    def whole(self) -> None:
        """The log lacks nothing that this node has acknowledged: what is not in it was in vain.

        It never lacked anything, or a leader has shown what this node had missed.
        """
        self._is_whole = True
        if self.unsaid is not None and self._node_id in self.unsaid.membership.voter_ids:
            self.learned(self.unsaid.membership)
        self._keep(self.committed, self.newest, self.unsaid)

    def restarted(self, index: int, ends: bool) -> None:
        """The state up to `index` came another way; `ends`: nothing behind it is in the log.

        What goes was committed, and is then known to be, or came to nothing.
        """
        self._drop(lambda at: ends or at <= index)

    def _with(self, membership: Membership) -> tuple[Membership, Membership, Unsaid | None]:
        """What is known once this stands in the log: committed, heard and unsaid."""
        heard = membership if membership.version >= self.heard.version else self.heard
        unsaid = self.unsaid
        if unsaid is not None and unsaid.membership.version >= membership.version:
            unsaid = None  # versions only grow: the log that it stood in was lost
        return self.committed, heard, unsaid

    def _drop(self, goes: Callable[[int], bool]) -> None:
        """What stands at these indexes is in the log no more, and will never be in force."""
        dropped = [membership for at, membership in self._in_log if goes(at)]
        self._in_log = [item for item in self._in_log if not goes(item[0])]
        self._settle()
        if self.heard in dropped:
            self._keep(self.committed, self.newest, self.unsaid)

    def _keep(self, committed: Membership, heard: Membership, unsaid: Unsaid | None) -> None:
        if (committed, heard, unsaid) != (self.committed, self.heard, self.unsaid):
            self._promises.save_membership(committed, heard, unsaid)
            self.committed, self.heard, self.unsaid = committed, heard, unsaid

    def _settle(self) -> None:
        # Of two with one version, the one in the log has come to nothing: it stands last of equals.
        unsaid = [self.unsaid.membership] if self.unsaid is not None else []
        in_log = [membership for _, membership in self._in_log if membership not in unsaid]
        known = sorted([*unsaid, *in_log, self.committed], key=_version)
        self.newest = current = known[-1]
        if self.open and len(current.voters) < len(known[-2].voters) == 2:
            current = known[-2]
        if current != self.current:
            self.current = current
            self.on_change()


def _version(membership: Membership) -> int:
    return membership.version
