"""Folding WALs into their databases.

**A fold that a reader stops halfway is not synced**, and SQLite goes on behind it the next time. If
that fold cannot be synced, the kernel may call clean what the first one wrote (see `wal`): it may
never come to the disk, and nothing writes it again. So a file whose fold was stopped, and of which
an fsync fails before one was whole, is of no use. What was in it is in memory, too.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from node.persistence.faults import FilesUnreadable
from node.persistence.node_file import NodeFile
from node.persistence.schema import is_corruption
from node.persistence.store_file import StoreFile


class Folding:
    """Which files were folded halfway. It belongs to the persistence thread."""

    def __init__(self) -> None:
        self._halfway: set[Path] = set()

    def fold(self, file: StoreFile | NodeFile) -> int:
        """Fold as much of a file's WAL as readers allow; the bytes that remain. Raises
        sqlite3.Error.
        """
        left = file.checkpoint_wal()
        if left:
            self._halfway.add(file.path)
        else:
            self._halfway.discard(file.path)
        return left

    def fold_wholly(self, file: StoreFile | NodeFile) -> None:
        """Have the WAL begin anew. Raises `FilesUnreadable` where another process uses it, and
        sqlite3.Error.
        """
        if self.fold(file):
            raise FilesUnreadable(
                file.path,
                "has a WAL that another process uses, and that must be folded after a failure",
            )

    def is_of_no_use(self, path: Path, error: Exception) -> bool:
        """Whether a file that failed is damaged, or may lack what a fold wrote to it."""
        code = getattr(error, "sqlite_errorcode", None)
        is_unsynced = code == sqlite3.SQLITE_IOERR_FSYNC and path in self._halfway
        return is_unsynced or is_corruption(error)

    def forget(self, path: Path) -> None:
        """The file is out of the way: another one takes its place."""
        self._halfway.discard(path)
