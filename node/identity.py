"""Who this node is when it starts, what it has promised, and how it leaves.

The state file keeps what a node must not forget (see `persistence/state_file.py`). This module says
what follows from it: whether the node may have forgotten something it acknowledged, and so starts
recovering. It has forgotten nothing if the tail of its last life (`persistence/tail_files.py`)
holds the whole log behind the cut, and can be believed:

* after a clean stop: the mark is written last, after the cut and the log behind it are on disk, and
  it is taken back, durably, before the node says a word;
* or while the kernel is the same that ran in the last life: what a process had written when it was
  killed is still there, whether or not it had reached the disk.

A tail that cannot be believed is loaded as far as it is whole. The node starts recovering, and what
it holds counts where all members have forgotten. That it is forgetful is on disk, too, until a
leader has shown it what it missed: neither a stop nor another kill makes it forget that.

Without a state file not even term and vote are known. The node is then *blank*, until it recovers
(see `raft/recovery.py`).

A promise (term and vote) that cannot be written ends the process: a node that goes on with one
that it might forget can help to elect two leaders in one term.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from node.persistence.directory import DataDirectory
from node.persistence.state_file import NodeIdentity, StateFile, kernel_boot_id
from node.persistence.tail import Tail
from node.persistence.tail_files import LoadedTail, TailFiles
from node.raft.lineage import Standing
from node.raft.membership import NOBODY, Membership, Unsaid
from node.raft.ports import LogEntry, StartingPoint
from node.raft.session import INCARNATION_BITS, JOINING

log = logging.getLogger(__name__)

EXIT_PROMISE_LOST = 70

_CLOCK_MS_MAX = 2**INCARNATION_BITS - 2**32  # lives enough are left behind the last one
_LIVES_MAX = 64  # a blank node that was added in an earlier one asks all others, as any would

_NO_LINEAGE = "none yet"


class WrongDirectory(Exception):
    """The data directory belongs to another node or another cluster."""


class Identity:
    """The durable identity of one node; also the `Promises` of its replica."""

    def __init__(
        self,
        directory: DataDirectory,
        node_id: str,
        members: Iterable[str],
        joins: bool = False,
        tail_dir: Path | None = None,
    ) -> None:
        members = set(members)
        self._founding = JOINING if joins else cluster_id(members)
        self._founders = set() if joins else members
        self._file = StateFile(directory)
        self._over = False
        self._damaged: Path | None = None
        self._now = self._begin(node_id, joins)
        self._tail_in = directory.annex(tail_dir, node_id) if tail_dir is not None else None
        before = Path(self._now.tail_in) if self._now.tail_in else None
        self._tails = TailFiles(directory, self._tail_in, before)
        if self._now.given_up is not None and not self._now.aside:
            self._set_aside(directory)

    @property
    def cluster(self) -> str:
        """What the nodes of this cluster have in common; `JOINING` while that is not known."""
        return self._now.cluster_id

    @property
    def standing(self) -> Standing:
        """The lineage that this node follows, as it is on disk."""
        return Standing(self._now.lineage, self._now.ancestry, self._now.founded)

    @property
    def is_alone(self) -> bool:
        """Whether this node is the only voter: nobody else is certain to have what it has."""
        known = [*filter(None, map(_membership, (self._now.membership, self._now.heard)))]
        voters = {name for one in known for name in one.voter_ids} if known else self._founders
        return voters == {self._now.node_id}

    @property
    def quarantined(self) -> str | None:
        """In words, why this node is no member until it is added; None if it is not quarantined."""
        if self._now.given_up is None:
            return None
        aside = f"; its data stand in {self._now.aside}" if self._now.aside else ""
        return (
            f"quarantined: its lineage {self._now.given_up} was given up for "
            f"{self._now.lineage}{aside}; it waits to be added as a member"
        )

    def starting_point(self, index: int, term: int, damaged: bool) -> StartingPoint:
        """From where the replica goes on, given the cut to which the state was loaded."""
        # A log begins with the library's own entry at 1, which is never persisted or sent.
        loaded = self._tails.load(self._now.tail, max(index, 1))
        self._damaged = loaded.damaged
        flaw = "a database was damaged" if damaged else loaded.flaw or _misfit(loaded, index, term)
        if flaw is not None and not self._now.forgetful:
            self._keep(dataclasses.replace(self._now, forgetful=True))
        if self._now.forgetful:
            new = self._now.blank and self._now.given_up is None and not damaged
            why = "its data directory is new, or was wiped" if new else flaw or self._doubt
            log.warning("this node may have forgotten something and starts recovering: %s", why)
        return StartingPoint(
            incarnation=self._now.incarnation,
            term=self._now.term,
            vote=self._now.vote,
            index=index,
            index_term=term,
            forgetful=self._now.forgetful,
            blank=self._now.blank,
            lives=self._now.lives,
            tail=tuple(loaded.entries),
            membership=_membership(self._now.membership),
            heard=_membership(self._now.heard),
            unsaid=_unsaid(self._now.unsaid),
        )

    def new_tail(self, bytes_max: int, pressed: Callable[[], None]) -> Tail:
        """The tail of this life, for the log that goes on from the starting point."""
        return Tail(self._tails, self._now.incarnation, bytes_max, pressed)

    def begun(self, with_tail: bool) -> None:
        """The log has begun, and its tail, if it has one: the last life's no longer counts.

        To be called before the node says a word. Raises `OSError`.
        """
        self._keep(
            dataclasses.replace(
                self._now,
                tail=self._now.incarnation if with_tail else 0,
                tail_in=str(self._tail_in or "") if with_tail else "",
            )
        )
        self._tails.keep_only(self._now.tail, self._damaged)

    def join(self, cluster: str, standing: Standing) -> None:
        """A member has proven itself: this node belongs to its cluster and follows its lineage."""
        self._promise(cluster_id=cluster, lineage=standing.lineage, ancestry=standing.ancestry)

    def save(self, term: int, vote: str | None) -> None:
        """Promise; on disk when this returns."""
        self._promise(term=term, vote=vote)

    def recovered(self) -> None:
        """A leader has shown that nothing is missing here any more; on disk when this returns."""
        self._promise(forgetful=False, blank=False, founded=True, given_up=None, aside="")

    def quarantine(self, newer: Standing) -> None:
        """Another lineage took the place of this node's: it is a stranger there, and blank.

        It has promised nothing there on this disk. But another one may have been used under its id
        since, which was a member, and is lost.
        On disk when this returns, or the process ends. Its data are moved aside at the next start;
        until then this process must not act on them any more.
        """
        self._promise(
            lineage=newer.lineage,
            ancestry=newer.ancestry,
            founded=False,
            forgetful=True,
            blank=True,
            lives=(),
            term=0,
            vote=None,
            given_up=self._now.lineage,
            aside="",
            membership=NOBODY.plain(),
            heard=NOBODY.plain(),
            unsaid=None,
        )
        self._over = True

    def rebuild(self, lineage: str, membership: Membership) -> None:
        """By an operator's order: go on in a new lineage, with these members only.

        On disk when this returns, or the process ends. From then on this node is forgetful: the
        members make a cold start, so that the furthest log of all of them is the one that counts.
        One that was blank stays so, unless it is the only one: in the new lineage it has promised
        nothing yet, but the same order may reach it again after it lost its disk there.
        """
        standing = self.standing.followed_by(lineage)
        self._promise(
            **standing._asdict(),
            forgetful=True,
            blank=self._now.blank and len(membership.voters) > 1,
            membership=membership.plain(),
            heard=membership.plain(),
            unsaid=None,
        )
        self._over = True

    def save_membership(
        self, committed: Membership, heard: Membership, unsaid: Unsaid | None
    ) -> None:
        """Keep who belongs to the cluster; on disk when this returns."""
        self._promise(**_memberships(committed, heard, unsaid))

    def try_membership(
        self, committed: Membership, heard: Membership, unsaid: Unsaid | None
    ) -> None:
        """Keep who is about to belong to the cluster. Raises `OSError`: then nobody must."""
        if not self._over:
            self._keep(dataclasses.replace(self._now, **_memberships(committed, heard, unsaid)))

    def leave(self, cut: int, behind: Iterable[LogEntry]) -> None:
        """A clean stop: keep the log behind the cut, then the mark. Raises `OSError`.

        A node that is still recovering stays forgetful, however cleanly it stops.
        """
        life = self._now.incarnation
        written = self._tails.write(life, max(cut, 1), behind, last=True)
        self._tails.keep_only_file(written)
        self._keep(dataclasses.replace(self._now, clean=True, tail=life))

    def _begin(self, node_id: str, joins: bool) -> NodeIdentity:
        known = self._file.load()
        if known is None:
            # All founders must agree on the lineage before they have ever spoken.
            known = NodeIdentity(
                *(self._founding, node_id, 0, 0, None, kernel_boot_id(), False),
                lineage=self._founding or _NO_LINEAGE,
                blank=True,
                membership=NOBODY.plain() if joins else None,
            )
        # What the options say counts only where it was never changed.
        changed = known.membership is not None
        other = known.cluster_id != self._founding and not changed
        if known.node_id != node_id:
            raise WrongDirectory(
                f"the data directory is that of node {known.node_id}; "
                "give this node a directory of its own"
            )
        if other:
            raise WrongDirectory(
                f"the data directory is that of {node_id} in a cluster with other founders; start "
                "it with the peers that it was first given (scripts/member adds and removes "
                "others), or, for another cluster, give it a directory of its own"
            )
        self._doubt = _doubt_of(known)
        incarnation = self._next_incarnation(known)
        # Durable, because a stop or another crash before this node has recovered changes nothing.
        begun = dataclasses.replace(
            known,
            incarnation=incarnation,
            lives=(*known.lives, incarnation)[-_LIVES_MAX:] if known.blank else (),
            boot_id=kernel_boot_id(),
            forgetful=self._doubt is not None,
            clean=False,
        )
        self._file.save(begun)
        return begun

    def _set_aside(self, directory: DataDirectory) -> None:
        """Never merged and never deleted: what the given-up lineage had here is only moved."""
        self._tails.bring_home()
        aside = directory.quarantine()
        directory.tail_path.mkdir(exist_ok=True)
        if aside:
            log.critical(
                "lineage %s was given up for %s: all data of this node were moved to %s",
                *(self._now.given_up, self._now.lineage, directory.path / aside),
            )
        self._keep(
            dataclasses.replace(self._now, aside=aside or "no place, there were none", tail=0)
        )

    @staticmethod
    def _next_incarnation(known: NodeIdentity) -> int:
        """Later than any before, also where the directory was wiped and nothing is known of them.

        Peers refuse an incarnation older than one they have seen. The clock need not be right: it
        only has to have moved on by a millisecond since the life that was forgotten began. One that
        is a century ahead is passed over: peers refuse such an incarnation, and all that follow it.
        """
        moment_ms = time.time_ns() // 1_000_000
        return max(known.incarnation + 1, moment_ms if moment_ms < _CLOCK_MS_MAX else 0)

    def _promise(self, **changes: Any) -> None:
        if self._over:
            return  # what this life still does, it does in a lineage that is given up
        try:
            self._keep(dataclasses.replace(self._now, **changes))
        except OSError as error:
            log.critical("%s cannot be made durable, the process ends: %s", changes, error)
            logging.shutdown()
            os._exit(EXIT_PROMISE_LOST)

    def _keep(self, identity: NodeIdentity) -> None:
        self._file.save(identity)
        self._now = identity


def _doubt_of(known: NodeIdentity) -> str | None:
    """Why this node may have forgotten something, whatever its tail says; None if it has not."""
    if known.forgetful:
        return "it has not recovered since it last had to, or never ran"
    if not known.clean and not known.boot_id == kernel_boot_id() != "":
        return "it was not stopped, and the machine has been down since"
    return None


def _misfit(tail: LoadedTail, index: int, term: int) -> str | None:
    """Why a tail is not the one of the log that the cut belongs to; None if it may be."""
    for at, other, _ in tail.entries[:1]:
        if at == index and other != term:
            return f"the tail holds entry {index} of term {other}, the disk of term {term}"
    return None


def _memberships(committed: Membership, heard: Membership, unsaid: Unsaid | None) -> dict[str, Any]:
    waiting = None if unsaid is None else [unsaid.at, unsaid.membership.plain()]
    return {"membership": committed.plain(), "heard": heard.plain(), "unsaid": waiting}


def _unsaid(plain: list[Any] | None) -> Unsaid | None:
    return None if plain is None else Unsaid(plain[0], Membership.from_plain(plain[1]))


def _membership(plain: list[Any] | None) -> Membership | None:
    return None if plain is None else Membership.from_plain(plain)


def cluster_id(members: Iterable[str]) -> str:
    """What the nodes of one cluster have in common before they have ever spoken: who they are."""
    return hashlib.sha256("\n".join(sorted(members)).encode()).hexdigest()[:16]
