"""From files to a state, before the node takes part in anything.

Every store is rolled back to the node's cut, read, verified, and put into memory, so that memory is
exactly the replicated history up to the cut. Raft replays from there.

What does not fit is never deleted and never guessed at:

* a file that the cut does not list (a store being created or deleted when the process died) is
  renamed `…unused-TIME`;
* if one database is damaged it is renamed `…damaged-TIME`, and *all others* `…unused-TIME`: the
  state must be one prefix over all stores, and the only prefix left is the empty one. The node
  comes up at cut 0 and is filled by the leader. A cluster of one has no one to be filled by; its
  operator finds every byte under the new names.

* a WAL that has lost commits (see `wal`) is copied to `…damaged-TIME`, and what it still has
  counts: the state may be an older one, and the node has forgotten what came after it.

Trouble of the system (permissions, a disk that does not answer) is not damage: it stops the start
and leaves all files where they are.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from node.core.state import State
from node.core.store import Store
from node.core.subscription_state import decode
from node.persistence.blocks import contents_of
from node.persistence.checksums import Checksums
from node.persistence.directory import DataDirectory
from node.persistence.faults import FileFault, OnlyCopyDamaged, StoreDamaged
from node.persistence.node_file import Cut, NodeFile, StoreEntry
from node.persistence.schema import connect, fault_of
from node.persistence.store_file import StoreFile, checksum_of
from node.persistence.wal import (
    cut_off_unpublished,
    kept_if_damaged,
    sync_half_a_fold,
    wal_path,
    write_wal_again,
)

log = logging.getLogger(__name__)

PROGRESS_EVERY_S = 2.0
# Blocks may be of one event each. Loaded together they cost two thirds as much.
_EVENTS_A_STEP = 1_000
_ONLY_COPY = (
    "no other member has what is in it, so this node does not start: move the data directory away, "
    "start anew and restore a backup"
)


@dataclass(slots=True)
class LoadedState:
    """The state at the cut, and the new paths of files that were set aside on the way.

    `lost` says that a database was damaged, so that the node has forgotten something that it had on
    disk: all of it, or, where only a WAL was, what came after the cut.
    Files that only never became part of the cut are set aside too, and nothing is lost with them.
    """

    state: State
    cut_index: int = 0
    cut_term: int = 0
    set_aside: list[str] = field(default_factory=list)
    lost: bool = False


def load_state(
    directory: DataDirectory,
    clock: Callable[[], float] = time.monotonic,
    only_copy: bool = False,
) -> LoadedState:
    """Load everything. Blocks, about 2 s a million events; logs its progress.

    Raises FilesUnreadable or OtherFormat, having renamed nothing, and OnlyCopyDamaged where an
    empty start would not be filled by anybody (`only_copy`).
    """
    started = clock()
    loaded = LoadedState(State())
    damaged_wals: list[str] = []
    try:
        _keep_damaged_wals(directory, damaged_wals)
        cut, entries = _read_node_file(directory)
        with _no_collections():
            stores = [_load_store(directory, entry, clock) for entry in entries]
    except StoreDamaged as damage:
        if only_copy:
            raise OnlyCopyDamaged(damage.path, f"{damage.reason}; {_ONLY_COPY}") from damage
        log.error("Cannot use %s; this node starts empty and is filled by the leader", damage)
        loaded.set_aside = damaged_wals + _set_all_aside(directory, damage.path)
        loaded.lost = True
        return loaded
    loaded.cut_index, loaded.cut_term = cut
    loaded.state.applied_index, loaded.state.applied_term = cut
    loaded.state.stores = {store.name: store for store in stores}
    loaded.set_aside = damaged_wals + _set_unlisted_aside(directory, entries)
    loaded.lost = bool(damaged_wals)
    events = sum(store.position for store in stores)
    log.info(
        "Loaded %d events of %d stores up to raft index %d in %.2f s",
        events,
        len(stores),
        cut.raft_index,
        clock() - started,
    )
    return loaded


def _keep_damaged_wals(directory: DataDirectory, kept: list[str]) -> None:
    """Copy the WALs that have lost commits, before SQLite folds and removes them; their names go to
    `kept`.

    Closing what is looked at folds it, so all of it has to be on the disk before (see `wal`). Where
    another process has it open, it does not, and the one before us may have folded halfway (see
    `folding`). Then a commit, too, may stand in a WAL that does not count, because it was not
    synced. A cut would count again once that process is gone, when the stores have been rolled back
    to the one before it; and what a store is rolled back with would be written over a part of such
    a commit, of which the rest then looks like damage.
    """
    for path in (directory.node_path, *directory.store_files()):
        with _faults_of(path):
            write_wal_again(path)
        copy = kept_if_damaged(path, lambda wal: _copied(directory, wal))
        if copy is not None:
            log.error(
                "%s is damaged: commits that were in it cannot be read; what can be is used, and a "
                "copy is kept as %s",
                *(wal_path(path), copy),
            )
            kept.append(str(copy))
        with _faults_of(path):
            cut_off_unpublished(path)
            sync_half_a_fold(path)


def _copied(directory: DataDirectory, wal: Path) -> Path:
    """A copy for the operator. Where there is no room for one, the damage counts all the same."""
    try:
        return directory.keep_copy(wal, "damaged")
    except OSError as error:
        log.error("%s cannot be copied: %s", wal, error)
        return wal


def _read_node_file(directory: DataDirectory) -> tuple[Cut, list[StoreEntry]]:
    path = directory.node_path
    # The node's database is made before the first store file is: alone, these are what is left.
    is_orphaned = any(directory.store_files())
    if not path.exists():
        if is_orphaned or directory.has(path):
            raise StoreDamaged(path, "is missing")
        return Cut(), []
    with _faults_of(path), closing(NodeFile(path, connect)) as file:
        if file.created and is_orphaned:
            raise StoreDamaged(path, "is empty")
        return file.cut(), file.stores()


def _load_store(directory: DataDirectory, entry: StoreEntry, clock: Callable[[], float]) -> Store:
    path = directory.store_path(entry.name, entry.uid)
    if not path.exists():
        raise StoreDamaged(path, "is missing")
    store = Store(entry.name, entry.uid, entry.created_us)
    store.durability = entry.durability
    store.snapshots.kept = entry.snapshots_kept
    with _faults_of(path), closing(StoreFile(path, entry.cut_index, connect)) as file:
        if file.owner() != (entry.name, entry.uid):
            raise StoreDamaged(path, "is another store's")
        contents = _fill(store, file, clock)
        if contents != file.mark.contents or store.position != file.mark.position:
            raise StoreDamaged(path, "does not hold what was written: its checksums differ")
        if (store.position, store.frame_bytes) != (entry.position, entry.bytes):
            raise StoreDamaged(path, "does not hold as much as the node's database says")
    return store


def _fill(store: Store, file: StoreFile, clock: Callable[[], float]) -> Checksums:
    """Load a file into an empty store; return the checksums of what was read."""
    streams, types = file.stream_names(), file.type_names()
    contents = Checksums().with_names(streams, types)
    store.load_streams(streams)
    store.load_types(types)
    report_at = clock() + PROGRESS_EVERY_S
    for loaded, seals in contents_of(file.blocks(), _EVENTS_A_STEP):
        for seal in seals:
            contents = contents.with_block(seal)
        store.load_events(*loaded)
        if clock() >= report_at:
            report_at += PROGRESS_EVERY_S
            log.info(
                "Loading store %s: %d of %d events", store.name, store.position, file.mark.position
            )
    checkpoints = file.checkpoints()
    store.load_checkpoints(checkpoints)
    store.snapshots.load(file.snapshots())
    store.load_lives(file.lives())
    store.loaded()
    subscriptions = {
        name: decode(name, changed_index, state, store)
        for name, changed_index, state in file.subscriptions.states()
    }
    store.subscriptions.load(subscriptions, file.mark.raft_index)
    return contents._replace(
        snapshots=store.snapshots.digest,
        lives=store.lives.digest,
        checkpoints=checksum_of(checkpoints),
        subscriptions=file.subscriptions.total,
    )


def _set_unlisted_aside(directory: DataDirectory, entries: list[StoreEntry]) -> list[str]:
    listed = {directory.store_path(entry.name, entry.uid) for entry in entries}
    strays = [path for path in directory.store_files() if path not in listed]
    for path in strays:
        log.warning("%s is not part of the state at the cut; it is set aside", path)
    return [str(directory.set_aside(path, "unused")) for path in strays]


def _set_all_aside(directory: DataDirectory, damaged: Path) -> list[str]:
    """Rename every database. node.db goes first: without it none of the others counts."""
    return [
        str(directory.set_aside(path, "damaged" if path == damaged else "unused"))
        for path in (directory.node_path, *directory.store_files())
        if directory.has(path)
    ]


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Whatever reading a database raises becomes a fault of that file.

    A flipped bit may surface as nearly any exception (a name that is no UTF-8, a number that is
    none), so everything but the system's own trouble counts as damage.
    """
    try:
        yield
    except (FileFault, MemoryError):
        raise
    except Exception as error:
        raise fault_of(path, error) from error


@contextmanager
def _no_collections() -> Iterator[None]:
    """Millions of new objects and no cycle among them: the collector would only walk them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
