"""Folding WALs into their databases.

**A fold that a reader stops halfway is not synced**, and SQLite goes on behind it the next time. If
that fold cannot be synced, the kernel may call clean what the first one wrote (see `wal`): it may
never come to the disk, and nothing writes it again. So it is synced at once. The file is closed for
that, because closing any descriptor of a file gives back all locks that a process has on it.

**What a reader left in a WAL is folded again when the file is opened**, so that the WAL begins
anew with nothing in it. Else SQLite would write over older frames once the reader is idle, and of
a frame that is half written over another one nobody can tell that it is not damaged (see `wal`).
"""

from __future__ import annotations

from node.persistence.faults import FilesUnreadable, StoreDamaged
from node.persistence.node_file import NodeFile
from node.persistence.store_file import StoreFile
from node.persistence.wal import sync_half_a_fold


def fold(file: StoreFile | NodeFile) -> int:
    """Fold as much of a file's WAL as readers allow; the bytes that remain. If there are any, the
    file is closed. Raises sqlite3.Error, OSError, StoreDamaged.
    """
    left = file.checkpoint_wal()
    if left:
        file.close()
        try:
            sync_half_a_fold(file.path)
        except OSError as error:  # it could not even be opened for that
            raise StoreDamaged(file.path, f"was folded halfway, and not synced: {error}") from error
    return left


def fold_wholly(file: StoreFile | NodeFile) -> None:
    """Have the WAL begin anew. Raises `FilesUnreadable` where another process uses it, and what
    `fold` does.
    """
    if fold(file):
        raise FilesUnreadable(
            file.path,
            "has a WAL that another process uses, and that must be folded after a failure",
        )
