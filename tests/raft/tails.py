"""A tail in memory that outlives the node it is told by, as the real one outlives its process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from node.raft.ports import LogEntry


class FakeTail:
    """`ports.Tail`: what a killed node finds again, and whether that is all of its log."""

    counters: Mapping[str, int] = {}

    def __init__(self) -> None:
        self._base = 0
        self._entries: list[LogEntry] = []

    def behind(self, cut: int) -> tuple[tuple[LogEntry, ...], bool]:
        """The entries from a cut on, and whether that is all of its log."""
        found = tuple(entry for entry in self._entries if entry[0] >= cut)
        return found, self._base <= max(cut, 1)

    def begin(self, index: int, entries: Sequence[LogEntry]) -> None:
        self._base, self._entries = index, list(entries)

    def append(self, index: int, term: int, entry: bytes) -> None:
        assert index == (self._entries[-1][0] if self._entries else self._base) + 1
        self._entries.append((index, term, entry))

    def truncated(self, index: int) -> None:
        self._entries = [entry for entry in self._entries if entry[0] < index]
        self._base = min(self._base, index - 1)

    def restarted(self, index: int) -> None:
        self._base, self._entries = index, []

    def persisted(self, index: int) -> None:
        """It has room for all of it."""
