"""The Raft log in memory, and the promises that must outlive it.

PySyncObj gets this object where it would make its own journal. It looks like one (items are tuples
``(entry, index, term)``; ``journal[0]`` is the base, an entry that is already part of the state),
and is more careful:

* term and vote go to disk before `setCurrentTerm` returns, so before any message of that term
  leaves; the term is never below that of the last entry;
* the commit index that the library reads at its start is the one whose state was loaded;
* an open-ended slice gives at most two items, because the only place that takes one asks whether
  anything follows, and the stock answer copied the whole log for every message;
* its size in bytes is known, and so is the membership that stands in it (see `membership_log`);
* each change goes to the tail (`ports.Tail`) within the call that makes it, so it is kept before
  anybody hears of it: nothing is sent, acknowledged or counted from inside a change.

The log is cut from the front as what it holds gets onto this node's disk (`cut`), keeping a tail so
that a peer that was away for a moment is served from the log. Who lacks more is filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from node.raft.membership import NOBODY, Membership
from node.raft.membership_log import MembershipLog
from node.raft.ports import LogEntry, Promises, StartingPoint, Tail

NO_OP = b"\x01"

_CUT_ITEMS_MIN = 100  # fewer are not worth moving the rest

Item = tuple[bytes, int, int]


class NoTail:
    """The tail of a node that keeps none: it has forgotten whenever it was killed."""

    counters: Mapping[str, int] = MappingProxyType({})

    def begin(self, index: int, entries: Sequence[LogEntry]) -> None:
        """Nothing is kept."""

    def append(self, index: int, term: int, entry: bytes) -> None:
        """Nothing is kept."""

    def truncated(self, index: int) -> None:
        """Nothing is kept."""

    def restarted(self, index: int) -> None:
        """Nothing is kept."""

    def persisted(self, index: int) -> None:
        """Nothing is kept."""


class Journal:
    """The log from its base to its last entry; indexes are contiguous."""

    def __init__(
        self,
        start: StartingPoint,
        promises: Promises,
        node_id: str,
        founding: Membership = NOBODY,
        tail: Tail | None = None,
    ) -> None:
        self.memberships = MembershipLog(start, promises, founding, node_id)
        # The library's first entry has index 1; a log that begins with nothing begins there, too.
        self._items: list[Item] = [(NO_OP, max(start.index, 1), start.index_term)]
        self._promises = promises
        self._term, self._vote = start.term, start.vote
        self.bytes = 0
        self._tail: Tail = NoTail()
        self._add_tail(start)
        if not start.forgetful:
            # Killed after it was kept and before it was in the log, it was never acknowledged.
            self.memberships.whole()
        self._tail = tail or self._tail
        self._tail.begin(self.base_index, self.tail_after(self.base_index))
        if self._term < self.last_term:
            self._term, self._vote = self.last_term, None

    # --- what the replica asks ---------------------------------------------------------------

    @property
    def base_index(self) -> int:
        """The index of the base: what stands before it can no longer be sent from the log."""
        return self._items[0][1]

    @property
    def last_index(self) -> int:
        """The index of the last entry."""
        return self._items[-1][1]

    @property
    def last_term(self) -> int:
        """The term of the last entry."""
        return self._items[-1][2]

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`; None if the log does not hold it."""
        at = index - self._items[0][1]
        return self._items[at][2] if 0 <= at < len(self._items) else None

    def item(self, index: int) -> Item:
        """The entry at an index that the log holds."""
        return self._items[index - self._items[0][1]]

    def items_from(self, index: int, items_max: int, bytes_max: int) -> list[Item]:
        """Entries from `index` on: `items_max` and `bytes_max` at most, or one."""
        start = index - self._items[0][1]
        items = self._items[start : start + items_max]
        size = 0
        for at, item in enumerate(items):
            size += len(item[0])
            if size > bytes_max:
                return items[: max(at, 1)]
        return items

    def tail_after(self, index: int) -> list[LogEntry]:
        """All entries behind `index` as (index, term, entry), for the tail file."""
        return [(at, term, entry) for entry, at, term in self._items if at > index]

    def restart_at(self, index: int, term: int) -> None:
        """Move the base to `index`: the state up to there came another way.

        What stands behind it stays if this log agrees there: this node may have acknowledged it,
        and whoever leads next may need it. Where the log differs, or ends before, nothing behind
        the committed entry at `index` can be worth keeping.
        """
        behind: list[Item] = []
        if self.term_at(index) == term:
            behind = self._items[index - self.base_index + 1 :]
        else:
            self._tail.restarted(index)
        self._items = [(NO_OP, index, term), *behind]
        self.memberships.restarted(index, ends=not behind)
        self.bytes = sum(len(entry) for entry, _, _ in behind)

    def cut(self, persisted_index: int, items_max: int, bytes_max: int) -> None:
        """Drop entries up to `persisted_index`, but keep the last ones within both bounds.

        Only what is on disk, and therefore applied and committed, is ever dropped: the log of a
        node whose disk fails grows, until its appends are refused.
        """
        droppable = min(persisted_index, self.last_index) - self.base_index
        keep = min(len(self._items) - 1, items_max)
        if self.bytes > bytes_max:
            keep = min(keep, self._fitting(bytes_max))
        dropped = min(droppable, len(self._items) - 1 - keep)
        if dropped < _CUT_ITEMS_MIN:
            return
        self._forget(self._items[1 : dropped + 1])
        _, index, term = self._items[dropped]
        self._items[: dropped + 1] = [(NO_OP, index, term)]

    def _fitting(self, bytes_max: int) -> int:
        """How many of the last entries have no more than `bytes_max` together."""
        size = 0
        for count, item in enumerate(reversed(self._items)):
            size += len(item[0])
            if size > bytes_max:
                return count
        return len(self._items)

    # --- what the library asks ---------------------------------------------------------------

    def add(self, entry: bytes, index: int, term: int) -> None:
        """Add the entry that follows the last one."""
        assert index == self._items[-1][1] + 1, "a log has no gaps"
        self._items.append((entry, index, term))
        self.bytes += len(entry)
        self.memberships.appended(index, entry)
        self._tail.append(index, term, entry)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, key: int | slice) -> Item | list[Item]:
        if isinstance(key, slice) and key.stop is None and key.start is not None:
            return self._items[key.start : key.start + 2]
        return self._items[key]

    def deleteEntriesFrom(self, at: int) -> None:
        """Drop everything from item `at` on: a leader has other entries there."""
        if at < len(self._items):
            self._tail.truncated(self._items[at][1])
        self._forget(self._items[at:])
        del self._items[at:]
        self.memberships.cut_from(self.last_index + 1)

    def deleteEntriesTo(self, at: int) -> None:
        """Not used: the library's own compaction is switched off."""
        raise AssertionError("the library must not compact the log")

    def clear(self) -> None:
        """Not used: the library's own snapshots are switched off."""
        raise AssertionError("the library must not clear the log")

    def setCurrentTerm(self, term: int, vote: str | None) -> None:
        """Promise: durable when this returns."""
        if (term, vote) == (self._term, self._vote):
            return
        self._promises.save(term, vote)
        self._term, self._vote = term, vote

    def getCurrentTerm(self) -> int:
        """The durable term, never below that of the last entry."""
        return self._term

    def getVotedForNodeId(self) -> str | None:
        """Whom this node voted for in that term."""
        return self._vote

    def getRaftCommitIndex(self) -> int:
        """What is known to be committed at the start: the state that was loaded."""
        return self.base_index

    def setRaftCommitIndex(self, index: int) -> None:
        """The commit index needs no record: it follows from what is persisted."""

    def onOneSecondTimer(self) -> None:
        """Nothing to flush."""

    def _destroy(self) -> None:
        """Nothing to close."""

    def _add_tail(self, start: StartingPoint) -> None:
        """Take the tail as far as it follows the base.

        It may begin before the base. If it holds another entry there, what follows belongs to a
        history that was given up.
        """
        terms = {index: term for index, term, _ in start.tail}
        if terms.get(start.index, start.index_term) != start.index_term:
            return
        for index, term, entry in start.tail:
            if index == self.last_index + 1 and term >= self.last_term:
                self.add(entry, index, term)

    def _forget(self, items: Iterable[Item]) -> None:
        self.bytes -= sum(len(entry) for entry, _, _ in items)
