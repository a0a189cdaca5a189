"""All database files of a node, and one cycle over them from start to end.

Everything here runs in the one thread that may use SQLite; the connections live and die there. The
worker hands over a plan taken on the event loop and gets a result back: failures are values in it,
even those that are defects of ours, because one failing store must not stop the others.

A cycle, in the order that makes it safe:

1. each store file gets what is new in a transaction of its own, with the mark it reaches; the name
   of a new file is synced;
2. only if all of them succeeded, node.db moves the cut and lists the marks: the cycle has happened;
3. only then are the files of deleted stores removed.

A crash between 1 and 2 leaves store files ahead of the cut; the loader rolls them back. What any
failure leaves behind is treated as unknown: the connection is closed, and the file is opened again,
and rolled back to its last certain mark, before the next try.

**After a failure the WAL is written again, and then begun anew.** Pages whose fsync has failed are
in the kernel's cache and perhaps never come to the disk (see `wal`). SQLite finds them there when
it opens the file again, and would append behind them: a loss of power then ends the WAL at the
hole, and takes what was reported as persisted since. So `write_wal_again` comes before SQLite does.
Nor is it known whether the first page of a new file is on the disk, and SQLite deletes a WAL that
it finds beside an empty file. So the WAL is then folded into the file, all of it, before anything
more is said of it; while another process uses it, that fails like the disk. Both are done, too,
with what a process finds when it begins: the one before it may have failed.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from node.core.store import Store
from node.persistence.directory import DataDirectory
from node.persistence.faults import FileFault, FilesUnreadable, StoreDamaged
from node.persistence.folding import fold, fold_wholly
from node.persistence.node_file import Cut, NodeFile, StoreEntry, entry_of
from node.persistence.places import Places
from node.persistence.schema import (
    Connect,
    connect,
    fault_of,
    fitting,
    is_corruption,
    of_this_version,
)
from node.persistence.store_file import StoreCut, StoreFile
from node.persistence.wal import wal_bytes, write_wal_again

log = logging.getLogger(__name__)

# Connections kept open; beyond it the one that was used longest ago is closed.
OPEN_FILES_MAX = 64
# A WAL is folded into its database, between cycles, once it is larger than this.
WAL_BYTES_MAX = 8 * 1024 * 1024
# How many free pages leave a file in one step: 1 MiB, which is a few milliseconds.
_PAGES_A_STEP = 64
# Beyond this a reader must be holding the WAL, and an operator should know.
WAL_BYTES_ALARM = 256 * 1024 * 1024

# Told, in the persistence thread, what turned out to be of no use between cycles: the file of a
# store (its uid) or node.db (None), and why. It must be known before the next result of a cycle is.
Doubt = Callable[[int | None, str], None]
# Told there that the cut is gone with node.db, or with a store that it lists: a restart now would
# find nothing. What a cycle writes anew then may take long.
CutLost = Callable[[], None]

# What files and disks do; the last where SQLite quotes a text of the file that is no UTF-8.
_FAILURES = (sqlite3.Error, OSError, FileFault, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class CyclePlan:
    """What one cycle is to make durable: the state at `cut`.

    `gone` are (name, uid) of stores that no longer exist there. `whole` is False if a store with
    something new is left out (its breaker is open): the cut then stays where it is.
    """

    cut: Cut
    stores: Sequence[StoreCut]
    gone: Sequence[tuple[str, int]]
    whole: bool


@dataclass(slots=True)
class CycleResult:
    """What became of a plan. Each planned store is in `written` or in `errors`.

    `lost` are the failed stores whose file is gone or damaged: they have to be written from
    their first event again. `durations_ms` has the time that each store took. `node_error` says
    why the cut did not move although every store was written.
    """

    written: dict[str, StoreEntry] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    durations_ms: dict[str, float] = field(default_factory=dict)
    cut_moved: bool = False
    node_error: str | None = None


class Database:
    """The files of one node. Every method belongs to the persistence thread, and `doubt` and
    `cut_lost` are called there.
    """

    def __init__(
        self,
        directory: DataDirectory,
        connect: Connect = connect,
        clock: Callable[[], float] = time.monotonic,
        doubt: Doubt = lambda uid, why: None,
        cut_lost: CutLost = lambda: None,
    ) -> None:
        self._directory = directory
        self._connect = connect
        self._clock = clock
        self._doubt = doubt
        self._cut_lost = cut_lost
        self._node: NodeFile | None = None
        self._safe_cut = Cut()  # the one that a restart would get back to
        self._lists_another = False  # node.db, than was certain when it was closed
        self._files: OrderedDict[int, StoreFile] = OrderedDict()
        self._marks: dict[int, int] = {}  # uid -> raft index of the last certain mark
        self._listed: dict[str, StoreEntry] = {}  # what node.db has, or had before it was removed
        self._unlisted: dict[str, StoreEntry] = {}  # written, but not in node.db yet
        self._gone: dict[tuple[str, int], Path] = {}  # to be unlisted, then removed
        self._places = Places(directory)
        self._grown: dict[int, StoreFile] = {}  # written since their WAL was last looked at
        # Whose WAL has no hole: it was written again and folded since the last failure, and since
        # this process began.
        self._sure: set[int] = set()
        self._node_is_sure = False
        self._doubted: set[int] = set()  # told of, and not written anew yet

    def open(self) -> tuple[Cut, list[StoreEntry]]:
        """Open node.db: the cut, and the stores at it. Raises FileFault."""
        try:
            node = self._node_file()
            self._safe_cut = node.cut()
            entries = node.stores()
        except (sqlite3.Error, OSError) as error:
            raise fault_of(self._directory.node_path, error) from error
        self._marks = {entry.uid: entry.cut_index for entry in entries}
        self._listed = {entry.name: entry for entry in entries}
        return self._safe_cut, entries

    def run(self, plan: CyclePlan) -> CycleResult:
        """One cycle. Never raises, whatever a file or disk does, or what is read from them."""
        result = CycleResult()
        for name, uid in plan.gone:
            self._forget(name, uid)
        for cut in plan.stores:
            self._write(cut, plan.cut, result)
        if plan.whole and not result.errors:
            self._move_cut(plan.cut, result)
        return result

    def tidy(self) -> None:
        """Between cycles: fold WALs that grew too large into their files, without waiting."""
        grown, self._grown = self._grown, {}
        for uid, file in grown.items():
            if self._files.get(uid) is file and wal_bytes(file.path) > WAL_BYTES_MAX:
                self._fold(uid, file)
        if self._node is not None and wal_bytes(self._node.path) > WAL_BYTES_MAX:
            self._fold_node(self._node)

    def sweep(self, store: Store, positions: Sequence[int]) -> int:
        """Bring the husks at these positions, which rise, to a store's file; how many of them one
        step was enough for.

        Raises StoreDamaged where the file itself is what is wrong, else FilesUnreadable.
        """
        if store.uid not in self._marks:
            return len(positions)  # nothing of it is written yet, or it was deleted
        path = self._directory.store_path(store.name, store.uid)
        try:
            file = self._store_file(path, store.uid)
            swept = file.sweep(positions)
        except _FAILURES as error:
            self._failed_between(store.uid, path, error)
            fault = StoreDamaged if is_corruption(error) else FilesUnreadable
            raise fault(path, str(error)) from error
        self._grown[store.uid] = file
        self.tidy()
        return swept

    def give_back(self, store: Store) -> bool:
        """Let a store's file get shorter by a step; whether there may be another one."""
        if store.uid not in self._marks:
            return False
        path = self._directory.store_path(store.name, store.uid)
        try:
            file = self._store_file(path, store.uid)
            gave = file.give_back(_PAGES_A_STEP)
        except _FAILURES as error:
            self._failed_between(store.uid, path, error)
            log.warning("Cannot make %s shorter: %s", path, error)
            return False
        if gave:
            self._grown[store.uid] = file
            self.tidy()
        else:
            self._fold(store.uid, file)
        return gave

    def close(self) -> None:
        """Close everything; what is left then are plain .db files (unless a reader holds one)."""
        for uid in list(self._files):
            self._close_file(uid)
        self._close_node()

    # --- one store ---------------------------------------------------------------------------

    def _write(self, cut: StoreCut, at: Cut, result: CycleResult) -> None:
        store = cut.store
        path = self._directory.store_path(store.name, store.uid)
        started = self._clock()
        if cut.anew:
            self._close_file(store.uid)
            self._start_store_over(path, store.uid, "replaced")
        try:
            file = self._store_file(path, store.uid)
            with fitting(path):
                file.append(cut, at.raft_index, at.term, self._safe_cut.raft_index)
            self._places.sync(path)
        except Exception as error:
            self._close_failed(store.uid)
            result.errors[store.name] = _told(path, error)
            if is_corruption(error):
                self._start_store_over(path, store.uid, "damaged")
                result.lost.add(store.name)
        else:
            self._marks[store.uid] = at.raft_index
            self._grown[store.uid] = file
            self._unlisted[store.name] = result.written[store.name] = entry_of(cut, at)
        result.durations_ms[store.name] = (self._clock() - started) * 1000

    def _store_file(self, path: Path, uid: int) -> StoreFile:
        """The open file of a store, at its last certain mark."""
        self._places.clear(path)
        mark = self._marks.get(uid, 0)
        if mark and not path.exists():
            raise StoreDamaged(path, "was removed while the node ran; it is written anew")
        file = self._files.get(uid)
        if file is None:
            file = self._open_store_file(path, uid, mark)
            while len(self._files) > OPEN_FILES_MAX:
                self._close_file(next(iter(self._files)))
        self._files.move_to_end(uid)
        return file

    def _open_store_file(self, path: Path, uid: int, mark: int) -> StoreFile:
        is_sure = uid in self._sure
        if not is_sure:
            write_wal_again(path)
        self._places.note(path)
        file = self._opened(path, uid, mark)
        if not is_sure:
            fold_wholly(file)
            self._sure.add(uid)
        elif wal_bytes(path) and fold(file):  # a reader still keeps it; see `folding`
            file = self._opened(path, uid, mark)
        return file

    def _opened(self, path: Path, uid: int, mark: int) -> StoreFile:
        with of_this_version(path, bool(mark)):
            file = self._files[uid] = StoreFile(path, mark, self._connect)
        return file

    def _start_store_over(self, path: Path, uid: int, why: str) -> None:
        """Memory holds all of the store: a new file will."""
        mark = self._marks.pop(uid, 0)
        self._doubted.discard(uid)
        self._places.start_over(path, why if mark else None)
        if mark:
            self._cut_lost()

    def _fold(self, uid: int, file: StoreFile) -> None:
        try:
            left = fold(file)
        except _FAILURES as error:
            self._failed_between(uid, file.path, error)
            log.warning("Cannot fold the WAL of %s: %s", file.path, error)
            return
        if left:
            self._close_file(uid)
        if left > WAL_BYTES_ALARM:
            log.warning(
                "The WAL of %s has %d bytes; another process seems to read the file at length",
                file.path,
                left,
            )

    def _forget(self, name: str, uid: int) -> None:
        self._close_failed(uid)
        self._marks.pop(uid, None)
        self._doubted.discard(uid)
        self._gone[name, uid] = self._directory.store_path(name, uid)
        if name in self._unlisted and self._unlisted[name].uid == uid:
            del self._unlisted[name]

    def _close_failed(self, uid: int) -> None:
        """Close a file of which nobody knows what came to the disk, or has to."""
        self._sure.discard(uid)
        self._close_file(uid)

    def _failed_between(self, uid: int, path: Path, error: Exception) -> None:
        """The same between cycles. A file of no use is put out of the way at once: another process
        might find in it what is on no disk. Its mark stays, for a plan that was taken before is of
        what is new only. It is told of once: the next try may come when it is to be written anew.
        """
        self._close_failed(uid)
        if is_corruption(error) and uid not in self._doubted:
            self._doubted.add(uid)
            self._places.start_over(path, "damaged")
            self._doubt(uid, f"{path}: {error}")

    def _close_file(self, uid: int) -> None:
        self._grown.pop(uid, None)
        file = self._files.pop(uid, None)
        if file is not None:
            _close_quietly(file)

    # --- the cut -----------------------------------------------------------------------------

    def _move_cut(self, cut: Cut, result: CycleResult) -> None:
        gone = {name for name, _ in self._gone}
        listed = {name: one for name, one in self._listed.items() if name not in gone}
        listed |= self._unlisted
        try:
            node = self._node_file()
            if not self._node_is_sure:
                fold_wholly(node)
                self._node_is_sure = True
            changed = None if self._lists_another else self._unlisted.values()
            with fitting(node.path):
                node.move(cut, listed.values(), changed, gone)
            self._places.sync(self._directory.node_path)
        except Exception as error:
            self._close_node()
            self._node_is_sure = False
            result.node_error = _told(self._directory.node_path, error)
            if is_corruption(error):
                self._start_node_over()
                self._cut_lost()
            return
        self._safe_cut, self._lists_another = cut, False
        self._listed = listed
        self._unlisted.clear()
        result.cut_moved = True
        self._remove_gone()

    def _remove_gone(self) -> None:
        gone, self._gone = self._gone, {}
        for path in gone.values():
            try:
                self._places.remove(path)
            except OSError as error:
                # It is listed nowhere any more: the next start sets it aside.
                log.warning("Cannot remove %s of a deleted store: %s", path, error)

    def _node_file(self) -> NodeFile:
        path = self._directory.node_path
        self._places.clear(path)
        was_there = self._node is not None or self._safe_cut != Cut()
        if was_there and not path.exists():
            log.error("%s was removed while the node ran; it is written anew", path)
            self._close_node()
            # Where another process has the old one open, a new WAL has no header before it is
            # folded: SQLite goes on by the index of the old one.
            self._node_is_sure = False
            self._safe_cut = Cut()
            self._cut_lost()
        if self._node is None:
            self._node = self._open_node_file(path)
        return self._node

    def _open_node_file(self, path: Path) -> NodeFile:
        if not self._node_is_sure:
            write_wal_again(path)
        self._places.note(path)
        with of_this_version(path, self._safe_cut != Cut()):
            node = NodeFile(path, self._connect)
        try:
            self._recognize(node)
            if self._node_is_sure and wal_bytes(path) and fold(node):
                node = NodeFile(path, self._connect)
        except BaseException:
            node.close()
            raise
        return node

    def _recognize(self, node: NodeFile) -> None:
        """Raise StoreDamaged if node.db is older than what was certain, as where a part of its WAL
        can no longer be read: SQLite takes what is before that.

        It may be newer: a move that failed may be there all the same, even one of the process
        before, which the index of a reader hid until now.
        """
        if self._safe_cut == Cut():
            return
        found = node.cut()
        if found < self._safe_cut:
            raise StoreDamaged(node.path, "has an older cut than the one that was written last")
        self._lists_another = found != self._safe_cut

    def _fold_node(self, node: NodeFile) -> None:
        try:
            if fold(node):
                self._close_node()
        except _FAILURES as error:
            self._close_node()
            log.warning("Cannot fold the WAL of %s: %s", node.path, error)
            if is_corruption(error):
                self._start_node_over()
                self._doubt(None, str(error))

    def _start_node_over(self) -> None:
        """What it listed is known here: the next cycle writes all of it to a new one."""
        cut, self._safe_cut = self._safe_cut, Cut()
        self._places.start_over(self._directory.node_path, "damaged" if cut != Cut() else None)

    def _close_node(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            _close_quietly(node)


def _told(path: Path, error: Exception) -> str:
    """What to say of a failure. If no file or disk explains it, it is ours: the log shows where."""
    if isinstance(error, _FAILURES):
        return f"{path}: {error}"
    log.error("Writing %s failed", path, exc_info=error)
    return f"{path}: {error!r}"


def _close_quietly(file: StoreFile | NodeFile) -> None:
    try:
        file.close()
    except sqlite3.Error as error:
        log.warning("Closing %s: %s", file.path, error)
