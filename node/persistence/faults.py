"""What can be wrong with the files at start, drawn as a tree.

    FileFault
    ├── DirectoryInUse        another process holds the data directory
    ├── OtherFormat           written by another version of this program; start that one
    ├── FilesUnreadable       the system refuses (permissions, a full disk); nothing was moved
    ├── StateFileDamaged      both copies of the state file; a person has to decide
    ├── OnlyCopyDamaged       a database, and there is no other member that could fill this node
    └── StoreDamaged          one database; the loader sets it aside and the leader refills the node

All but the last stop the start, with a sentence that names the file. They are not answers to a
client, which is why they do not stand in `node.errors`.
"""

from __future__ import annotations

from pathlib import Path


class FileFault(Exception):
    """A file of the data directory at `path` cannot be used; the message says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class DirectoryInUse(FileFault):
    """Another process runs on this data directory. Two of them would destroy it."""


class OtherFormat(FileFault):
    """The file has another format than this program reads. Files are left where they are."""


class FilesUnreadable(FileFault):
    """The operating system, not the content, is the trouble. Files are left where they are."""


class StateFileDamaged(FileFault):
    """Neither copy of the state file can be trusted, so neither can a vote of this node."""


class OnlyCopyDamaged(FileFault):
    """A database is damaged, and no other node has what is in it. Nothing was moved."""


class StoreDamaged(FileFault):
    """A database does not hold what it must hold at the cut."""
