"""Who this node is when it starts, what it has promised, and how it leaves.

The state file keeps what a node must not forget (see `persistence/state_file.py`). This module says
what follows from it: whether the node may have forgotten something it acknowledged, and so starts
recovering. That is so unless the last stop was clean: the clean mark is written last, after the cut
and the whole log behind it are on disk, and it is taken back, durably, before the node says a word.

A promise (term and vote) that cannot be written ends the process: a node that goes on with one
that it might forget can help to elect two leaders in one term.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Iterable, Sequence

from node.persistence.directory import DataDirectory
from node.persistence.state_file import NodeIdentity, StateFile, kernel_boot_id
from node.persistence.tail_file import TailEntry, TailFile
from node.raft.ports import StartingPoint

log = logging.getLogger(__name__)

EXIT_PROMISE_LOST = 70


class WrongDirectory(Exception):
    """The data directory belongs to another node or another cluster."""


class Identity:
    """The durable identity of one node; also the `Promises` of its replica."""

    def __init__(self, directory: DataDirectory, node_id: str, members: Iterable[str]) -> None:
        self.cluster = cluster_id(members)
        self._file = StateFile(directory)
        self._tail = TailFile(directory)
        self._now = self._begin(node_id)

    def starting_point(self, index: int, term: int, damaged: bool) -> StartingPoint:
        """From where the replica goes on, given the cut to which the state was loaded."""
        loaded = self._tail.load()
        tail = loaded.entries if loaded else []
        # A clean stop always leaves a tail, if only an empty one; without it something is missing.
        incomplete = loaded is None or loaded.torn
        return StartingPoint(
            incarnation=self._now.incarnation,
            term=self._now.term,
            vote=self._now.vote,
            index=index,
            index_term=term,
            forgetful=self._forgetful or damaged or incomplete,
            tail=tuple((entry.index, entry.term, entry.entry) for entry in tail),
        )

    def save(self, term: int, vote: str | None) -> None:
        """Promise; on disk when this returns."""
        try:
            self._keep(dataclasses.replace(self._now, term=term, vote=vote))
        except OSError as error:
            log.critical("term %d cannot be made durable, the process ends: %s", term, error)
            logging.shutdown()
            os._exit(EXIT_PROMISE_LOST)

    def leave(self, log_tail: Sequence[tuple[int, int, bytes]]) -> None:
        """A clean stop: keep the log behind the cut, then the mark. Raises `OSError`."""
        self._tail.save(TailEntry(*entry) for entry in log_tail)
        self._keep(dataclasses.replace(self._now, clean=True))

    def _begin(self, node_id: str) -> NodeIdentity:
        known = self._file.load()
        if known is None:
            known = NodeIdentity(
                self.cluster, node_id, 0, 0, None, kernel_boot_id(), False, uuid.uuid4().hex
            )
        if (known.node_id, known.cluster_id) != (node_id, self.cluster):
            raise WrongDirectory(
                f"the data directory is that of node {known.node_id} in a cluster with other "
                "members; give this node a directory of its own"
            )
        self._forgetful = not known.clean
        begun = dataclasses.replace(
            known, incarnation=self._next_incarnation(known), boot_id=kernel_boot_id(), clean=False
        )
        self._file.save(begun)
        return begun

    @staticmethod
    def _next_incarnation(known: NodeIdentity) -> int:
        """Later than any before, also where the directory was wiped and nothing is known of them.

        Peers refuse an incarnation older than one they have seen. The clock need not be right: it
        only has to have moved on since the life that was forgotten.
        """
        return max(known.incarnation + 1, int(time.time()))

    def _keep(self, identity: NodeIdentity) -> None:
        self._file.save(identity)
        self._now = identity


def cluster_id(members: Iterable[str]) -> str:
    """What the nodes of one cluster have in common before they have ever spoken: who they are."""
    return hashlib.sha256("\n".join(sorted(members)).encode()).hexdigest()[:16]
