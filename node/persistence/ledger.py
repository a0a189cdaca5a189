"""The books of the persistence worker: what is pending, what is on disk, what it cost.

Everything here happens on the event loop, in single steps, so it needs no lock. `changed` is called
for every applied entry and costs a dictionary look-up; a cycle costs in proportion to the stores
that have something new, never to those that exist.

`take` is the moment of the cut: the names that are pending leave the pending set and the counts of
each store are read, all in one step, so a plan is the state at one raft index. `settle` books the
outcome; what failed is pending again, as old as it was.

A store's `covered_index` is the raft index up to which its own file is complete. A store with
nothing new is complete up to every cut that passes, so only failing stores need one of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from node.core.commands import BY_NODE
from node.core.snapshots import KEPT_MAX
from node.core.state import State
from node.core.store import Store
from node.core.subscription_state import take
from node.persistence.breaker import Breaker, BreakerState, worst
from node.persistence.database import CyclePlan, CycleResult
from node.persistence.node_file import Cut, StoreEntry
from node.persistence.snapshot_rows import cut_of
from node.persistence.store_file import CheckpointMove, StoreCut

# How old the sum of the backlog may be. At 100 MB/s it is 2 MB short of the truth by then.
_BACKLOG_SAMPLE_S = 0.02


@dataclass(slots=True)
class Totals:
    """What was done since the start."""

    cycles: int = 0
    events: int = 0
    bytes: int = 0
    failures: int = 0
    requests: int = 0


@dataclass(slots=True)
class Account:
    """One store, as far as this node's disk is concerned.

    `origin` is that of the store whose contents are in the file. `moves_after` is the raft index up
    to which checkpoint moves, snapshots, subscriptions and lives are in it; `snapshot_bytes` is how
    much of snapshots the store had ever been given by then. `failing_since` is the raft index that
    its file covered when it began to fail; None while it does not.
    """

    name: str
    uid: int
    origin: object
    breaker: Breaker
    position: int = 0
    bytes: int = 0
    moves_after: int = 0
    snapshot_bytes: int = 0
    failing_since: int | None = None
    durability: str = BY_NODE
    snapshots_kept: int = KEPT_MAX
    last_duration_ms: float = 0.0
    last_error: str | None = None
    totals: Totals = field(default_factory=Totals)


class Removal(NamedTuple):
    """What may be swept of one store, whose events have this origin: of each stream, by ordinal,
    the events below a number. Removed at or before the Raft index."""

    name: str
    origin: object
    raft_index: int
    until: dict[int, int]


class Ledger:
    """The accounts of all stores of one state. `clock` is monotonic, in seconds."""

    def __init__(
        self, state: State, new_breaker: Callable[[], Breaker], clock: Callable[[], float]
    ) -> None:
        self._state = state
        self._new_breaker = new_breaker
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self._pending: dict[str, float] = {}  # name -> when its oldest unpersisted change came
        self._taken: dict[str, float] = {}  # the same for the cycle that is under way
        self._forgotten: list[tuple[str, int]] = []  # stores to unlist, until a cut passes
        self._removed: dict[str, Removal] = {}  # until a cut passes
        self._sweepable: dict[str, Removal] = {}
        self._node_breaker = new_breaker()
        self._backlog = (0.0, 0)  # when it was summed, and the sum
        self.cut = Cut()  # what a restart would get back to
        self._lost_since = False  # whether that was lost since the last plan was taken
        self.covered_index = 0  # up to here every store that is not failing is in its file
        self.node_error: str | None = None

    def open(self, cut: Cut, entries: Collection[StoreEntry]) -> None:
        """Begin from what node.db says, and note what memory has beyond it already.

        Raises ValueError if memory is behind the disk: then it was not loaded from it.
        """
        if self._state.applied_index < cut.raft_index:
            raise ValueError(
                f"the state is at raft index {self._state.applied_index}, the disk is at "
                f"{cut.raft_index}: load the state before starting the worker"
            )
        self.cut, self.covered_index = cut, cut.raft_index
        for entry in entries:
            store = self._state.stores.get(entry.name)
            origin = store.origin if store is not None else None
            account = self._accounts[entry.name] = Account(
                entry.name, entry.uid, origin, self._new_breaker(), entry.position, entry.bytes
            )
            account.moves_after = cut.raft_index
            account.durability, account.snapshots_kept = entry[6:]
            if store is not None:
                ahead = store.snapshots.recorded_after(cut.raft_index)
                lacking = sum(len(one.content) for one in ahead)
                account.snapshot_bytes = store.snapshots.recorded_bytes - lacking
        for name in {entry.name for entry in entries} | self._state.stores.keys():
            if self._is_new(name):
                self.changed(name)
        if self._state.applied_index == cut.raft_index:
            self.release_all()
        for name, store in self._state.stores.items():
            if store.lives.has_removed:
                self.changed(name)

    # --- noting ------------------------------------------------------------------------------

    def changed(self, name: str) -> None:
        """A store has something that is not on disk, or was created or deleted."""
        if name not in self._pending:
            self._pending[name] = self._clock()

    def requested(self, name: str) -> None:
        """Somebody asked for this store to be persisted; twice is once."""
        account = self._accounts.get(name)
        if account is not None:
            account.totals.requests += 1
        self.changed(name)

    def doubted(self, uid: int | None, why: str) -> None:
        """The file of a store was found to be of no use, or node.db: nothing in it counts any more.

        A restart would find that file, and set all of them aside. A plan that is taken after this
        may move the cut again; one that was taken before goes behind what is there.
        """
        self.cut = Cut()
        self._lost_since = True
        for account in [one for one in self._accounts.values() if one.uid == uid]:
            account.origin = None
            account.position = account.bytes = account.moves_after = account.failing_since = 0
            account.snapshot_bytes = 0
            account.last_error = why
            self.changed(account.name)

    def cut_lost(self) -> None:
        """A restart would find nothing before the cut moves again."""
        self.cut = Cut()

    @property
    def behind(self) -> bool:
        """Whether a cycle has anything to do, be it only to move the cut."""
        return bool(self._pending) or self._state.applied_index > self.cut.raft_index

    # --- a cycle -----------------------------------------------------------------------------

    def take(self, forced: bool) -> CyclePlan:
        """The plan of a cycle that starts now. `forced` tries also where a breaker is open."""
        now = self._clock()
        self._lost_since = False
        for name, taken_at in self._taken.items():  # of a cycle that was never settled
            self._pending[name] = min(taken_at, self._pending.get(name, taken_at))
        due = [
            name
            for name in self._pending
            if forced or name not in self._accounts or self._accounts[name].breaker.allows(now)
        ]
        since = {name: self._pending.pop(name) for name in due}
        cuts = [cut for name in due if (cut := self._cut_of(name)) is not None]
        self._taken = {cut.store.name: since[cut.store.name] for cut in cuts}
        whole = not self._pending and (forced or self._node_breaker.allows(now))
        at = Cut(self._state.applied_index, self._state.applied_term)
        self._take_removed(due)
        return CyclePlan(at, cuts, tuple(self._forgotten), whole)

    def settle(self, plan: CyclePlan, result: CycleResult) -> None:
        """Book what became of a plan."""
        before = self.covered_index
        for cut in plan.stores:
            account = self._accounts[cut.store.name]
            account.last_duration_ms = result.durations_ms[account.name]
            if account.name in result.errors:
                self._book_failure(account, result, before)
            elif account.origin is cut.store.origin:  # else it was doubted meanwhile: written anew
                _book_success(account, cut, plan.cut.raft_index)
        self.covered_index = plan.cut.raft_index
        self._taken = {}
        self._backlog = (0.0, 0)
        self._book_cut(plan, result)

    def _book_cut(self, plan: CyclePlan, result: CycleResult) -> None:
        self.node_error = result.node_error
        if result.node_error is not None:
            self._node_breaker.failed(self._clock())
        if result.cut_moved:
            self._node_breaker.succeeded()
            if not self._lost_since:
                self.cut = plan.cut
            self._forgotten = self._forgotten[len(plan.gone) :]
            self._release()

    def _book_failure(self, account: Account, result: CycleResult, covered: int) -> None:
        since = self._taken[account.name]
        self._pending[account.name] = min(since, self._pending.get(account.name, since))
        account.breaker.failed(self._clock())
        account.last_error = result.errors[account.name]
        account.totals.failures += 1
        if account.failing_since is None:
            account.failing_since = covered
        if account.name in result.lost:
            account.position = account.bytes = account.moves_after = account.failing_since = 0
            account.snapshot_bytes = 0

    def _cut_of(self, name: str) -> StoreCut | None:
        """What a pending store's plan is; None if it is gone, or has nothing new after all."""
        store = self._state.stores.get(name)
        account = self._accounts.get(name)
        if account is not None and (store is None or store.uid != account.uid):
            self._forgotten.append((name, account.uid))
            del self._accounts[name]
            account = None
        if store is None:
            return None
        if account is None:
            account = Account(name, store.uid, store.origin, self._new_breaker())
            self._accounts[name] = account
            return _cut(store, account)
        if account.origin is not store.origin:
            # Its events came from elsewhere, and those in the file may not be the same.
            account.origin, account.failing_since = store.origin, 0
            account.position = account.bytes = account.moves_after = account.snapshot_bytes = 0
            return replace(_cut(store, account), anew=True)
        return _cut(store, account) if _differs(store, account) else None

    def _is_new(self, name: str) -> bool:
        """Whether memory and disk differ about a store, at the start."""
        store, account = self._state.stores.get(name), self._accounts.get(name)
        if store is None or account is None or store.uid != account.uid:
            return True
        return _differs(store, account)

    # --- what may be swept -------------------------------------------------------------------

    def sweepable(self, held_from: int | None) -> list[Removal]:
        """What may be swept now, each once; nothing that was removed behind `held_from`."""
        held = {
            name: removal
            for name, removal in self._sweepable.items()
            if held_from is not None and removal.raft_index > held_from
        }
        free = [one for name, one in self._sweepable.items() if name not in held]
        self._sweepable = held
        return free

    def release_all(self) -> None:
        """All that was removed may be swept: it is on disk, or nothing ever is."""
        self._take_removed(self._state.stores)
        self._release()

    def _take_removed(self, names: Iterable[str]) -> None:
        for name in names:
            store = self._state.stores.get(name)
            if store is not None and store.lives.has_removed:
                until = store.lives.take_removed(store)
                index = self._state.applied_index
                _merge(self._removed, Removal(name, store.origin, index, until))

    def _release(self) -> None:
        """The cut on disk has passed all that was taken."""
        for removal in self._removed.values():
            _merge(self._sweepable, removal)
        self._removed = {}

    # --- looking -----------------------------------------------------------------------------

    def account(self, name: str) -> Account | None:
        """The books of one store; None before its first cycle."""
        return self._accounts.get(name)

    def covered(self, name: str) -> int:
        """The raft index up to which this store's own file is complete."""
        account = self._accounts.get(name)
        if account is not None and account.failing_since is not None:
            return account.failing_since
        return self.covered_index

    def oldest_ms(self, name: str) -> int:
        """The age of the oldest change that is not on disk; 0 if there is none."""
        times = [held[name] for held in (self._pending, self._taken) if name in held]
        return int((self._clock() - min(times)) * 1000) if times else 0

    def unpersisted_bytes(self, name: str) -> int:
        """How many bytes of a store's frames and snapshots are in memory only."""
        store, account = self._state.stores.get(name), self._accounts.get(name)
        if store is None:
            return 0
        events, snapshots = store.frame_bytes, store.snapshots.recorded_bytes
        if account is None or account.uid != store.uid:
            return events + snapshots
        # Snapshots that another node brought are counted anew, and may be fewer.
        return events - account.bytes + max(0, snapshots - account.snapshot_bytes)

    def backlog_bytes(self) -> int:
        """The same of all stores, at most `_BACKLOG_SAMPLE_S` old: it is asked at every append."""
        now = self._clock()
        summed_at, total = self._backlog
        if not summed_at or now - summed_at > _BACKLOG_SAMPLE_S:
            total = sum(map(self.unpersisted_bytes, self._pending.keys() | self._taken.keys()))
            self._backlog = (now, total)
        return total

    def breaker(self) -> BreakerState:
        """The worst state among the breakers of the stores and of node.db."""
        now = self._clock()
        breakers = [self._node_breaker, *(account.breaker for account in self._accounts.values())]
        return worst([breaker.state(now) for breaker in breakers])


def _book_success(account: Account, cut: StoreCut, raft_index: int) -> None:
    account.totals.cycles += 1
    account.totals.events += cut.position - account.position
    account.totals.bytes += cut.frame_bytes - account.bytes
    account.position, account.bytes = cut.position, cut.frame_bytes
    account.moves_after = raft_index
    account.durability = cut.durability
    account.snapshots_kept = cut.snapshots.kept
    account.snapshot_bytes = cut.snapshots.recorded_bytes
    cut.store.snapshots.forget_gone(raft_index)
    account.failing_since = None
    account.last_error = None
    account.breaker.succeeded()


def _merge(removals: dict[str, Removal], later: Removal) -> None:
    known = removals.get(later.name)
    if known is not None and known.origin is later.origin:
        later = later._replace(until={**known.until, **later.until})
    removals[later.name] = later


def _differs(store: Store, account: Account) -> bool:
    """Whether memory has more of a store than its file, or the file has to be tried again."""
    if account.failing_since is not None or store.position != account.position:
        return True
    settings = store.durability, store.snapshots.kept
    if settings != (account.durability, account.snapshots_kept):
        return True
    if store.snapshots.changed_index > account.moves_after:
        return True
    if store.subscriptions.changed_index > account.moves_after:
        return True
    if store.lives.changed_index > account.moves_after:
        return True
    return any(index > account.moves_after for index in store.checkpoint_index.values())


def _cut(store: Store, account: Account) -> StoreCut:
    return StoreCut(
        store=store,
        position=store.position,
        streams=len(store.stream_list),
        types=len(store.type_names),
        frame_bytes=store.frame_bytes,
        durability=store.durability,
        moves=_moves(store, account.moves_after),
        snapshots=cut_of(store.snapshots, account.moves_after),
        subscriptions=tuple(
            take(one)
            for one in store.subscriptions.by_name.values()
            if one.changed_index > account.moves_after
        ),
        subscription_names=frozenset(store.subscriptions.by_name),
        lives=store.lives.changed_after(account.moves_after),
        lives_digest=store.lives.digest,
    )


def _moves(store: Store, after: int) -> tuple[CheckpointMove, ...]:
    """The checkpoints that moved after a raft index."""
    return tuple(
        CheckpointMove(name, index, store.checkpoints[name])
        for name, index in store.checkpoint_index.items()
        if index > after
    )
