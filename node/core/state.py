"""The replicated state: all stores, and `apply`, the one door through which anything changes.

The contract of `apply`, on which everything above it relies:

* total: any bytes at all are answered by an outcome; nothing is raised;
* deterministic: the outcome and the state after it depend on the state before it and the command
  alone, never on the node, the clock or the order of a dictionary;
* atomic: it checks everything, then changes everything; a refusal has changed nothing.

A Raft entry carries several commands (group commit). They are applied in order, and the entry's
index is reached when all of them are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from node.core import commands
from node.core.appending import append_each
from node.core.commands import (
    Append,
    AppendEach,
    AppendMany,
    Barrier,
    CreateStore,
    DeleteSnapshot,
    DeleteStore,
    PutCheckpoint,
    PutSnapshot,
    PutStore,
)
from node.core.fields import MalformedCommand
from node.core.life_commands import DeleteStream, Expire, LifeCommand, SetMetadata
from node.core.outcomes import (
    Appended,
    AppendedEach,
    BarrierPassed,
    CheckpointMoved,
    Expired,
    Malformed,
    MetadataSet,
    Outcome,
    SnapshotDeleted,
    SnapshotRecorded,
    StoreCreated,
    StoreDeleted,
    StoreNotFound,
    StreamRemoved,
)
from node.core.snapshots import PLACE_BITS, Snapshot
from node.core.store import Store
from node.core.subscription_commands import (
    Fetch,
    Replay,
    Settle,
    Subscribe,
    SubscriptionCommand,
    Unsubscribe,
)

_CHANGES = (CheckpointMoved, SnapshotRecorded, SnapshotDeleted, StreamRemoved, MetadataSet)


def _ignore(_: str) -> None:
    """Nobody listens yet."""


class State:
    """Every store of the cluster, as of `applied_index` (whose entry had the term `applied_term`).

    `on_change` is called once an entry with the name of each store that the entry changed.
    """

    def __init__(self) -> None:
        self.applied_index = 0
        self.applied_term = 0
        self.stores: dict[str, Store] = {}
        self.on_change: Callable[[str], None] = _ignore
        self._changed: set[str] = set()
        self._appliers: dict[type, Callable[[Any, int], Outcome]] = {
            Append: self._append,
            AppendEach: self._append_each,
            AppendMany: self._append_many,
            CreateStore: self._create_store,
            PutStore: self._put_store,
            DeleteStore: self._delete_store,
            PutCheckpoint: self._put_checkpoint,
            PutSnapshot: self._put_snapshot,
            DeleteSnapshot: self._delete_snapshot,
            DeleteStream: self._on_life,
            SetMetadata: self._on_life,
            Expire: self._on_life,
            Subscribe: self._on_subscription,
            Unsubscribe: self._on_subscription,
            Fetch: self._on_subscription,
            Settle: self._on_subscription,
            Replay: self._on_subscription,
            Barrier: self._barrier,
        }

    def apply(self, index: int, term: int, encoded: Sequence[bytes]) -> list[Outcome]:
        """Apply the commands of the entry at `index`; one outcome a command, in order."""
        base = index << PLACE_BITS
        outcomes = [self._apply_one(command, base + at) for at, command in enumerate(encoded)]
        self.applied_index = index
        self.applied_term = term
        if self._changed:
            changed, self._changed = self._changed, set()
            for store in sorted(changed):
                self.on_change(store)
        return outcomes

    def check(self) -> None:
        """Raise `AssertionError` unless every store is as it must be."""
        for name, store in self.stores.items():
            assert store.name == name
            store.check()
            store.subscriptions.check(store)

    def _apply_one(self, encoded: bytes, place: int) -> Outcome:
        try:
            command = commands.decode(encoded)
        except MalformedCommand as error:
            return Malformed(str(error))
        return self._appliers[type(command)](command, place)

    def _append(self, command: Append, place: int) -> Outcome:
        name, created_us, stream, expected, frames = command
        store = self.stores.get(name)
        if store is None:
            return StoreNotFound(name)
        index = place >> PLACE_BITS
        return self._noting(store.append(stream, expected, frames, created_us, index), store)

    def _append_each(self, command: AppendEach, place: int) -> Outcome:
        store = self.stores.get(command.store)
        if store is None:
            return StoreNotFound(command.store)
        return self._noting(append_each(store, command, place >> PLACE_BITS), store)

    def _append_many(self, command: AppendMany, place: int) -> Outcome:
        store = self.stores.get(command.store)
        if store is None:
            return StoreNotFound(command.store)
        _, created_us, events, checks, checkpoint = command
        index = place >> PLACE_BITS
        outcome = store.append_many(events, checks, checkpoint, created_us, index)
        if checkpoint is not None and store.checkpoint_index.get(checkpoint[0]) == index:
            self._changed.add(store.name)  # also where the events were stored before
        return self._noting(outcome, store)

    def _put_checkpoint(self, command: PutCheckpoint, place: int) -> Outcome:
        store = self.stores.get(command.store)
        if store is None:
            return StoreNotFound(command.store)
        outcome = store.put_checkpoint(command.name, command.position, place >> PLACE_BITS)
        return self._noting(outcome, store)

    def _put_snapshot(self, command: PutSnapshot, place: int) -> Outcome:
        name, created_us, source, stream, version, content = command
        store = self.stores.get(name)
        if store is None:
            return StoreNotFound(name)
        snapshot = Snapshot(source, stream, version, created_us, place, content)
        return self._noting(store.snapshots.put(snapshot), store)

    def _delete_snapshot(self, command: DeleteSnapshot, place: int) -> Outcome:
        name, source, stream, version = command
        store = self.stores.get(name)
        if store is None:
            return StoreNotFound(name)
        outcome = store.snapshots.delete(source, stream, version, place >> PLACE_BITS)
        return self._noting(outcome, store)

    def _on_life(self, command: LifeCommand, place: int) -> Outcome:
        store = self.stores.get(command.store)
        if store is None:
            return StoreNotFound(command.store)
        return self._noting(store.lives.apply(command, store, place >> PLACE_BITS), store)

    def _on_subscription(self, command: SubscriptionCommand, place: int) -> Outcome:
        store = self.stores.get(command.store)
        if store is None:
            return StoreNotFound(command.store)
        outcome, changed = store.subscriptions.apply(command, store, place, place >> PLACE_BITS)
        if changed:
            self._changed.add(store.name)
        return outcome

    def _create_store(self, command: CreateStore, place: int) -> Outcome:
        if command.store in self.stores:
            return StoreCreated(False)
        self.stores[command.store] = Store(command.store, place, command.created_us)
        self._changed.add(command.store)
        return StoreCreated(True)

    def _put_store(self, command: PutStore, place: int) -> Outcome:
        name, created_us, durability, kept = command
        outcome = self._create_store(CreateStore(name, created_us), place)
        store = self.stores[name]
        if durability is not None and store.durability != durability:
            store.durability = durability
            self._changed.add(name)
        if kept is not None and store.snapshots.kept != kept:
            store.snapshots.keep(kept, place >> PLACE_BITS)
            self._changed.add(name)
        return outcome

    def _delete_store(self, command: DeleteStore, _: int) -> Outcome:
        if self.stores.pop(command.store, None) is None:
            return StoreNotFound(command.store)
        self._changed.add(command.store)
        return StoreDeleted(command.store)

    def _barrier(self, _: Barrier, __: int) -> Outcome:
        return BarrierPassed()

    def _noting(self, outcome: Outcome, store: Store) -> Outcome:
        if isinstance(outcome, Appended):
            changed = not outcome.idempotent
        elif isinstance(outcome, AppendedEach):
            changed = any(outcome.positions)
        elif isinstance(outcome, Expired):
            changed = outcome.streams > 0 or outcome.snapshots > 0
        else:
            changed = isinstance(outcome, _CHANGES)
        if changed:
            self._changed.add(store.name)
        return outcome
