"""The state file: who this node is, and the term and vote it has promised.

Raft is safe only if a node that voted in a term never votes again in that term, also after a
crash. So term and vote are on disk *before* any message of that term leaves. Saving is synchronous
on purpose, on the event loop as well: an election waits for one fsync, and nothing may overtake it.

There are two copies, both written at every save, one after the other. A sequence number tells
which is newer if a crash came between them, and a checksum tells whether a copy is whole. As
`save` returns only when both are on disk, either copy alone holds every promise that was relied on:
a damaged one falls back on the other. If both are damaged no one can tell what was promised, and
the start is refused.

A copy is two lines, readable with `cat`: JSON, and the SHA-256 of the first line, with blanks up to
a full `_COPY_BYTES`. Fields may be added, with a default for files that lack them; a change of
meaning raises `FORMAT`.

**A full disk takes promises.** Data may wait for room, an election may not: the process would have
to end. So a copy is written over a *spare* of its size, which then takes its place, and the file
that was there becomes the next spare. Nothing is allocated. (Not where a file system copies on
write, or has no hard links.)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from node.persistence.directory import DataDirectory, naming, sync_directory
from node.persistence.faults import FilesUnreadable, OtherFormat, StateFileDamaged

log = logging.getLogger(__name__)

FORMAT = 3
_SPARE, _BEFORE = ".spare", ".before"
_COPY_BYTES = 8 * 1024  # of which sixty members, twice, take most; it may be a multiple
_BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")

Plain = list[Any]  # a membership in terms of JSON


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What a node must not forget.

    `incarnation` counts starts; messages of older ones are dropped. `vote` is the member voted for
    in `term`, or None. `boot_id` is the kernel's at the last save: the same one means that the
    machine has not gone down, so what was written without fsync is still there. `clean` says that
    the last stop wrote the whole log to disk first. `forgetful` is True from a start at which
    something may have been forgotten until a leader has shown that nothing is missing any more.
    `blank` says that there was no state file at that start, so that term and vote themselves are
    not known.

    `lineage` names the history that this node follows; it changes when an operator rebuilds the
    cluster without some of its members. `ancestry` are the lineages that were given up on the way
    to it, the latest last. `founded` says that this node has seen a leader of its lineage: only
    then does it hold that the ancestry is given up. `given_up` is set while this node is one of
    those that were left out: the lineage that it followed. `aside` is then where its data were
    moved, relative to the data directory; empty until they are.

    `membership` is the newest that is known to be committed, `heard` the newest that ever stood in
    the log (see `raft/membership_log.py`); None where the members have never changed. `unsaid` is
    one that waits for a word, with the index at which the state was past its entry.

    `tail` is the incarnation whose tail counts (see `tail_files`); 0 if none does. `tail_in` is the
    directory outside of the data directory in which it grew; empty if it did not.

    `lives` are the incarnations in which this state file was used while it has been blank, the last
    ones; another one may have been used under this node's id in between.
    """

    cluster_id: str
    node_id: str
    incarnation: int
    term: int
    vote: str | None
    boot_id: str
    clean: bool
    lineage: str
    forgetful: bool = True
    blank: bool = False
    ancestry: tuple[str, ...] = ()
    founded: bool = False
    given_up: str | None = None
    aside: str = ""
    membership: Plain | None = None
    heard: Plain | None = None
    unsaid: Plain | None = None
    tail: int = 0
    tail_in: str = ""
    lives: tuple[int, ...] = ()


class StateFile:
    """Both copies of one node's state file. Not safe for two threads."""

    def __init__(self, directory: DataDirectory) -> None:
        self._paths = directory.state_paths
        self._sequence: int | None = None

    def load(self) -> NodeIdentity | None:
        """The newest identity that is whole; None if there is no state file at all.

        Raises StateFileDamaged if there are copies and none is whole, OtherFormat, and
        FilesUnreadable if the system will not let us read one.
        """
        copies = [path for path in self._paths if path.exists()]
        whole = [found for found in map(_read_copy, copies) if found is not None]
        if copies and not whole:
            names = " and ".join(str(path) for path in copies)
            raise StateFileDamaged(
                copies[0],
                f"no undamaged copy of the state file is left ({names}); this node cannot know "
                "what it voted for. Restore one, or move the whole data directory away and let "
                "the node join as a new one",
            )
        if not whole:
            self._sequence = 0
            return None
        self._sequence, identity = max(whole, key=lambda found: found[0])
        return identity

    def save(self, identity: NodeIdentity) -> None:
        """Make `identity` durable in both copies. Blocks for the fsyncs.

        Raises OSError: one copy may hold `identity` by then, or none. The caller must act on
        nothing in it, and best ends the process if it would have had to.
        """
        if self._sequence is None:
            self.load()
        sequence = (self._sequence or 0) + 1
        content = _encode(sequence, identity)
        for path in self._paths:
            _replace(path, content)
        self._sequence = sequence


def kernel_boot_id() -> str:
    """A string that is the same as long as the machine is up; empty where the system has none."""
    try:
        return _BOOT_ID_PATH.read_text().strip()
    except OSError:
        return ""


def _encode(sequence: int, identity: NodeIdentity) -> bytes:
    body = {"format": FORMAT, "sequence": sequence, **asdict(identity)}
    line = json.dumps(body, ensure_ascii=False).encode()
    content = line + b"\n" + hashlib.sha256(line).hexdigest().encode()
    return content + b" " * (-(len(content) + 1) % _COPY_BYTES) + b"\n"


def _replace(path: Path, content: bytes) -> None:
    """Put `content` at `path`: afterwards the whole of it is there, and before, the old one.

    The order is that of `replace_durably`. Raises OSError, which names the file.
    """
    spare, before = (path.with_name(path.name + suffix) for suffix in (_SPARE, _BEFORE))
    _look_after(spare, before, path)
    with naming(spare), open(spare, "r+b" if spare.exists() else "wb") as file:
        file.write(content)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    with suppress(OSError):  # the first one has none before it
        before.unlink(missing_ok=True)
        os.link(path, before)
    spare.rename(path)
    with suppress(OSError):
        before.rename(spare)
    sync_directory(path.parent)


def _look_after(spare: Path, before: Path, path: Path) -> None:
    """The last save may have ended midway: a spare is what was there before, and never the copy."""
    if spare.exists() and path.exists() and spare.samefile(path):
        spare.unlink()
    if not spare.exists() and before.exists() and not before.samefile(path):
        before.rename(spare)


def _read_copy(path: Path) -> tuple[int, NodeIdentity] | None:
    """Sequence and identity of one copy; None if it is torn or changed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FilesUnreadable(path, f"cannot be read: {error}") from error
    line, _, checksum = content.partition(b"\n")
    if checksum.rstrip() != hashlib.sha256(line).hexdigest().encode():
        log.error("%s is damaged; the other copy has to do, and the next promise repairs it", path)
        return None
    body = json.loads(line)
    if body["format"] != FORMAT:
        raise OtherFormat(path, f"has format {body['format']}; this version knows {FORMAT}")
    known = {field.name: body[field.name] for field in fields(NodeIdentity) if field.name in body}
    known["ancestry"] = tuple(known.get("ancestry", ()))
    known["lives"] = tuple(known.get("lives", ()))
    return body["sequence"], NodeIdentity(**known)
