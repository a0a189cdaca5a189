"""Where database files are made: what stands in the way there, and whether a new name is durable.

**A file of no use is out of the way before another is made in its place.** What was relied on once
is renamed, never deleted. Where the disk refuses that, the file stays as it is, unopened, and the
renaming is tried again whenever something is to be written there.

**A new name is durable before what is in the file counts.** It is noted before the file is opened,
which may make it and fail all the same, and stays noted until its directory was synced.
"""

from __future__ import annotations

import logging
from pathlib import Path

from node.persistence.directory import DataDirectory, sync_directory

log = logging.getLogger(__name__)


class Places:
    """The places of one node's databases. It belongs to the persistence thread."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        # Of no use, and still there: why it is to be set aside, or None if it is to be removed.
        self._in_the_way: dict[Path, str | None] = {}
        self._new_names: set[Path] = set()

    def start_over(self, path: Path, why: str | None) -> None:
        """Put a file out of the way, if not at once, then before the next is made.

        Without a mark or a cut that is certain it was never relied on (None). It is then removed:
        keeping those would fill a bad disk.
        """
        self._in_the_way.setdefault(path, why)
        try:
            self.clear(path)
        except OSError as error:
            log.error("Cannot put %s out of the way: %s", path, error)

    def clear(self, path: Path) -> None:
        """Have nothing at `path` that is of no use. Raises OSError."""
        if path not in self._in_the_way:
            return
        why = self._in_the_way[path]
        if why is None:
            self._directory.remove(path)
        elif self._directory.has(path):
            log.error("Set aside %s", self._directory.set_aside(path, why))
        del self._in_the_way[path]

    def remove(self, path: Path) -> None:
        """Delete a file that nothing refers to; what was to be set aside is. Raises OSError."""
        self.clear(path)
        self._new_names.discard(path)
        self._directory.remove(path)

    def note(self, path: Path) -> None:
        """A file is about to be opened, and made if it is not there."""
        if not path.exists():
            self._new_names.add(path)

    def sync(self, path: Path) -> None:
        """Make the name of a file durable if it is new. Raises OSError."""
        if path in self._new_names:
            sync_directory(path.parent)
            self._new_names.discard(path)
