"""The one version of PySyncObj that this package was written against.

`verify` compares a hash of the library's source with the one that `library` was read in, and
refuses to run with another: a new version is read line by line before the hash is changed.
"""

from __future__ import annotations

import hashlib
import inspect

import pysyncobj.syncobj as upstream
from pysyncobj import SyncObj
from pysyncobj.version import VERSION

EXPECTED_VERSION = "0.3.17"
EXPECTED_SHA256 = "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"
SEAMS = (
    "_SyncObj__generateRaftTimeout",
    "_SyncObj__sendAppendEntries",
    "_SyncObj__sendNextNodeIdx",
    "_SyncObj__applyLogEntries",
    "_SyncObj__tryLogCompaction",
    "_SyncObj__loadDumpFile",
    "_SyncObj__onBecomeLeader",
    "_SyncObj__onMessageReceived",
    "_SyncObj__setCurrentTerm",
    "_checkCommandsToApply",
)


class LibraryChanged(RuntimeError):
    """The installed PySyncObj is not the one that this module was written against."""


def verify() -> None:
    """Raise `LibraryChanged` unless the installed library is exactly the expected one."""
    source = inspect.getsource(upstream).encode()
    found = hashlib.sha256(source).hexdigest()
    if VERSION != EXPECTED_VERSION or found != EXPECTED_SHA256:
        raise LibraryChanged(
            f"PySyncObj {EXPECTED_VERSION} is needed, found {VERSION} (syncobj.py {found[:12]}…)"
        )
    missing = [name for name in SEAMS if not hasattr(SyncObj, name)]
    if missing:
        raise LibraryChanged(f"PySyncObj lacks {', '.join(missing)}")
