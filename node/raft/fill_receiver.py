"""The side of a fill that lacks something.

Histories of committed entries are prefixes of one another, so this node lacks, of every store, just
the events behind its own last position. It does not take that on trust: before a store is extended,
its digest is compared with the source's at that position (see `fill_source` for the questions). One
that differs is an alarm, and is brought over from its first event.

**Nothing of the state is touched before everything is there.** What arrives is loaded into a store
of its own beside the one that is read: a copy of it, which shares the frames, or an empty one. Each
chunk is verified by its digest, then by the rules that hold in a store, and loaded, in slices
between which the event loop does other things. At the end all stores and the index that they reach
change places with the old ones in a single step (`install`): readers, and the persistence worker
when it takes its cut, see the state before it or the state after it.

**Resuming.** A fill may break off: a connection is lost, the leader changes. The unfinished stores
are kept, for `_STAGED_S`. They hold committed events only, so whoever leads next has the same at
these positions, and the next fill goes on behind them once their digest has been compared.

**Flow.** At most `_WINDOW` questions are under way, each answered by one chunk at most, so no more
than 4 MiB (or as many large events) are on their way or wait to be loaded; fewer where answers come
late, because then they queue before the heartbeats and entries of the same connection, or the
source has other things to do. Entries that were committed meanwhile follow from the log, or, where
it was cut, in another fill of what is missing then.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple, TypeVar

from node.core import portion
from node.core.lives import Life
from node.core.portion import Digest, Portion
from node.core.snapshots import Snapshot, Snapshots
from node.core.state import State
from node.core.store import Store
from node.core.subscription import Subscription
from node.raft import fill_checkpoints, fill_lives, fill_snapshots, fill_subscriptions
from node.raft.fill_digests import SLICE_EVENTS, Digests
from node.raft.fill_offer import Chunk, FillRefused, Offered, chunk_of, offer_of
from node.raft.library import now
from node.raft.requests import Requests

log = logging.getLogger(__name__)

T = TypeVar("T")

_WINDOW = 16
_QUEUED_S = 0.1  # an answer that takes so much longer than the fastest one waits behind others
_FIRST_EVENTS = 8
_ANSWER_S = 15.0
_COMPARED_EVENTS = 500_000  # a digest of so many more is made well within `_ANSWER_S`
_STAGED_S = 120.0
_PROGRESS_S = 2.0
_CHUNK_BYTES = 200 * 1024  # aimed at, below what the source allows


class _Staged:
    """A store that is being brought over, and the digest of what it holds so far."""

    def __init__(self, store: Store, digest: Digest) -> None:
        self.store = store
        self.digest = digest


class Filled(NamedTuple):
    """A whole state that a fill brought, not yet part of this node's."""

    raft_index: int
    term: int
    stores: list[tuple[Store, Snapshots, dict[str, Subscription], Offered]]


class FillReceiver:
    """Brings what this node lacks. `alarm` is told of what must never happen."""

    def __init__(
        self, state: State, requests: Requests, digests: Digests, alarm: Callable[[str], None]
    ) -> None:
        self.counters: Counter[str] = Counter(fill_events_received=0, fill_bytes_received=0)
        self.progress = "begins"
        self._state = state
        self._requests = requests
        self._digests = digests
        self._alarm = alarm
        self._staged: dict[int, _Staged] = {}
        self._staged_snapshots: dict[int, dict[int, Snapshot]] = {}  # uid -> place -> snapshot
        self._differing: set[int] = set()  # uids of stores whose history is not the source's
        self._used_at = 0.0
        self._told_at = 0.0

    async def fetch(self, source: str) -> Filled:
        """Bring what this node lacks. Raises `FillRefused` or `requests.NoAnswer`."""
        answer = await self._ask(source, "fill_begin", None)
        number, index, term, offered = offer_of(answer)
        if index <= self._state.applied_index:
            raise FillRefused(f"{source} is at {index}, this node at {self._state.applied_index}")
        uids = {one.uid for one in offered}
        self._staged = {uid: staged for uid, staged in self._staged.items() if uid in uids}
        for uid in self._staged_snapshots.keys() - uids:
            del self._staged_snapshots[uid]
        self._differing.clear()
        stores = []
        lives = []
        for one in offered:
            link = _Link(self._requests, source, number, index, one.at)
            store = await self._bring(link, one)
            snapshots = await self._bring_snapshots(link, one)
            subscriptions = await self._bring_subscriptions(link, one, store)
            moved = await self._bring_checkpoints(link, one)
            stores.append((store, snapshots, subscriptions, one._replace(moved=moved)))
            lives.append(await self._bring_lives(link, one))
        for (store, _, _, one), brought in zip(stores, lives, strict=True):
            await self._load_lives(store, one, brought)
        return Filled(index, term, stores)

    def install(self, filled: Filled) -> None:
        """Make it the state, in one step. Raises `FillRefused` if it is not ahead of the state."""
        state = self._state
        if filled.raft_index <= state.applied_index:
            raise FillRefused(f"this node has reached {state.applied_index} meanwhile")
        # Those that are this node's own may have changed since they were compared.
        if any(
            not fill_snapshots.fits(one, offered.snapshots)
            or not fill_lives.fits(store.lives, offered.lives)
            for store, one, _, offered in filled.stores
        ):
            raise FillRefused("the snapshots or streams of this node have changed meanwhile")
        if any(map(self._came_meanwhile, (store for store, *_ in filled.stores))):
            raise FillRefused("a store that is brought came through the log meanwhile")
        before, after = state.stores, {}
        changed = set(before)
        for store, snapshots, subscriptions, one in filled.stores:
            after[store.name] = store
            if store is before.get(store.name) and _facts(store) == _offered_facts(one):
                changed.discard(store.name)
            else:
                changed.add(store.name)
                store.subscriptions.load(subscriptions, filled.raft_index)
            store.durability = one.durability
            store.load_checkpoints(one.moved)
            if snapshots is not store.snapshots:
                snapshots.replaces(filled.raft_index)
                store.snapshots = snapshots
            snapshots.kept = one.snapshots.kept
        state.stores = after
        state.applied_index, state.applied_term = filled.raft_index, filled.term
        self._staged, self._staged_snapshots = {}, {}
        for name in sorted(changed):
            state.on_change(name)

    def expire(self) -> None:
        """Give up unfinished stores with which no fill went on."""
        if now() - self._used_at > _STAGED_S:
            self._staged, self._staged_snapshots = {}, {}

    # --- one store ---------------------------------------------------------------------------

    async def _bring(self, link: _Link, one: Offered) -> Store:
        """The store as offered: this node's own if it lacks nothing, else one beside it."""
        live = self._state.stores.get(one.name)
        if live is not None and live.uid != one.uid:
            live = None
        staged = self._staged.get(one.uid)
        if staged is None or not await self._goes_on(link, one, staged, live):
            if live is None or not await self._agrees(link, one, live):
                staged = _Staged(Store(one.name, one.uid, one.created_us), Digest())
            elif live.position == one.position and fill_lives.fits(live.lives, one.lives):
                self._staged.pop(one.uid, None)
                return live
            else:
                staged = await self._copy(live)
        elif (
            live is not None
            and staged.store.origin is not live.origin
            and await self._agrees(link, one, live)
        ):
            # It came through the log meanwhile, and is the same: its file can be gone on with.
            staged.store.origin = live.origin
        # Kept while it is whole, so that it is there for the next fill if this one breaks off.
        self._staged[one.uid] = staged
        await self._complete(link, one, staged)
        return staged.store

    async def _bring_snapshots(self, link: _Link, one: Offered) -> Snapshots:
        """Its snapshots as offered: this node's own if they are the same, else others."""
        live = self._state.stores.get(one.name)
        own = live.snapshots if live is not None and live.uid == one.uid else None
        brought = self._staged_snapshots.setdefault(one.uid, {})

        async def ask(topic: str, of_store: list[Any]) -> Any:
            return await self._question(link, topic, *of_store)

        def alarm(text: str) -> None:
            self._alarm(f"store {one.name}, beside {link.source}: {text}")

        known = len(brought)
        try:
            bringing = fill_snapshots.bring(ask, one.snapshots, own, brought, alarm)
            return await _or_refused(link, bringing)
        finally:
            fresh = list(brought.values())[known:]
            self.counters["fill_bytes_received"] += sum(len(found.content) for found in fresh)

    async def _bring_subscriptions(
        self, link: _Link, one: Offered, store: Store
    ) -> dict[str, Subscription]:
        """Its subscriptions as offered; those that did not change are this node's own."""
        live = self._state.stores.get(one.name)
        same = live if live is not None and live.origin is store.origin else None
        ask = partial(self._question, link, "fill_subscriptions")
        bringing = fill_subscriptions.bring(ask, one.subscriptions, store, same)
        return await _or_refused(link, bringing)

    async def _bring_checkpoints(self, link: _Link, one: Offered) -> dict[str, tuple[int, int]]:
        """Its checkpoints as offered."""
        ask = partial(self._question, link, "fill_checkpoints")
        return await _or_refused(link, fill_checkpoints.bring(ask, one.checkpoints))

    async def _bring_lives(self, link: _Link, one: Offered) -> list[Life]:
        """How its streams live, as offered; nothing where that is what this node has."""
        live = self._state.stores.get(one.name)
        if live is not None and live.uid == one.uid and fill_lives.fits(live.lives, one.lives):
            return live.lives.all()
        ask = partial(self._question, link, "fill_lives")
        return await _or_refused(link, fill_lives.bring(ask, one.lives))

    async def _question(self, link: _Link, topic: str, *of_store: Any) -> Any:
        """The source's answer to a question about the store that is under way."""
        self._used_at = now()
        return await self._ask(link.source, topic, [link.number, link.at, *of_store])

    async def _load_lives(self, store: Store, one: Offered, lives: list[Life]) -> None:
        """Load them into a store that was brought; another fill cannot go on with it then."""
        if store is self._state.stores.get(one.name):
            return
        self._staged.pop(one.uid, None)
        try:
            await fill_lives.load(store, lives, one.lives)
        except ValueError as error:
            raise FillRefused(str(error)) from error

    async def _goes_on(
        self, link: _Link, one: Offered, staged: _Staged, live: Store | None
    ) -> bool:
        """Whether an earlier fill's unfinished store is worth going on with, and fits."""
        position = staged.digest.position
        if position > one.position or (live is not None and live.position >= position):
            return False
        return position > 0 and await link.digest(position) == staged.digest.value()

    async def _agrees(self, link: _Link, one: Offered, live: Store) -> bool:
        """Whether the source holds the same up to where this node's store ends.

        Compared at several places, so that no answer takes long.
        """
        position = live.position
        if self._state.applied_index > link.raft_index:
            raise FillRefused(f"this node has reached {self._state.applied_index} meanwhile")
        if position > one.position:
            self._alarm(f"store {one.name} has {position} events, {one.position} are offered")
            raise FillRefused(f"store {one.name} is longer here than at {link.source}")
        for at in [*range(_COMPARED_EVENTS, position, _COMPARED_EVENTS), position]:
            theirs, own = await asyncio.gather(link.digest(at), self._digests.at(live, at))
            self._used_at = now()
            if own.value() != theirs:
                self._alarm(
                    f"store {one.name} differs from {link.source}'s at or before position {at}; "
                    "all of it is brought over"
                )
                self._digests.forget(one.uid)
                self._differing.add(one.uid)
                return False
            self._digests.keep(one.uid, own)
        return True

    def _came_meanwhile(self, store: Store) -> bool:
        """Whether this node has it by now, and has begun a file that this one could not go on with.

        Such a file is set aside before the new one counts, and a crash between would lose both.
        """
        live = self._state.stores.get(store.name)
        if live is None or live.uid != store.uid or live.origin is store.origin:
            return False
        return store.uid not in self._differing

    async def _copy(self, live: Store) -> _Staged:
        copied = Store(live.name, live.uid, live.created_us)
        for _ in copied.copying(live):
            await asyncio.sleep(0)
        return _Staged(copied, await self._digests.at(live, copied.position))

    async def _complete(self, link: _Link, one: Offered, staged: _Staged) -> None:
        store, digest = staged.store, staged.digest
        try:
            async with aclosing(_chunks(link, store.position, one.position)) as chunks:
                async for taken, value in chunks:
                    digest.add(taken)
                    if digest.value() != value:
                        raise FillRefused(f"a chunk of {one.name} is not what it should be")
                    portion.load(store, taken)
                    self._count(one, taken)
                    await asyncio.sleep(0)
        except (FillRefused, ValueError) as error:
            # What was begun with this chunk is not finished, and nothing can tell it apart.
            self._staged.pop(one.uid, None)
            raise FillRefused(str(error)) from error
        for _ in store.remembering():
            await asyncio.sleep(0)

    def _count(self, one: Offered, taken: Portion) -> None:
        self.counters["fill_events_received"] += taken.until - taken.after
        self.counters["fill_bytes_received"] += sum(map(len, taken[3:]))
        self.progress = f"{taken.until} of {one.position} events of store {one.name}"
        self._used_at = now()
        if now() - self._told_at > _PROGRESS_S:
            self._told_at = now()
            log.info("filling: %s", self.progress)

    async def _ask(self, source: str, topic: str, body: Any) -> Any:
        return await self._requests.ask(source, topic, body, _ANSWER_S)


class _Link(NamedTuple):
    """Questions about one store of one offer, which was made at a Raft index."""

    requests: Requests
    source: str
    number: int
    raft_index: int
    at: int

    async def digest(self, position: int) -> bytes:
        """The source's digest at a position."""
        body = [self.number, self.at, position]
        value = await self.requests.ask(self.source, "fill_digest", body, _ANSWER_S)
        if type(value) is not bytes:
            raise FillRefused("a digest that is none")
        return value

    async def rows(self, after: int, until: int) -> Chunk:
        """A chunk of the events in this range, from its beginning."""
        body = [self.number, self.at, after, until]
        taken, value = chunk_of(await self.requests.ask(self.source, "fill_rows", body, _ANSWER_S))
        if taken.after != after or not after < taken.until <= until:
            raise FillRefused(f"{self.source} answers with events that were not asked for")
        return taken, value


class _Window:
    """How many questions may be under way: one more after each answer that came in time, half as
    many after one that did not.
    """

    def __init__(self) -> None:
        self.size = 1
        self._fastest_s = float("inf")

    async def rows(self, link: _Link, after: int, until: int) -> Chunk:
        """Ask for a range, and learn from how long the answer takes."""
        asked_at = now()
        answer = await link.rows(after, until)
        took_s = now() - asked_at
        self._fastest_s = min(self._fastest_s, took_s)
        late = took_s > self._fastest_s + _QUEUED_S
        self.size = max(1, self.size // 2) if late else min(_WINDOW, self.size + 1)
        return answer


async def _chunks(link: _Link, after: int, until: int) -> AsyncGenerator[Chunk, None]:
    """All events of the range, in order, with several questions under way.

    A few events tell how large they are, and so how many to ask for. Where they grow, the source
    cuts an answer short: then the rest of its range is asked for before anything else is taken.
    """
    window = _Window()

    def ask(after: int, end: int) -> asyncio.Task[Chunk]:
        return asyncio.ensure_future(window.rows(link, after, end))

    asked: deque[tuple[int, asyncio.Task[Chunk]]] = deque()
    following, events = after, _FIRST_EVENTS
    try:
        while asked or following < until:
            while following < until and len(asked) < window.size:
                end = min(until, following + events)
                asked.append((end, ask(following, end)))
                following = end
            end, answer = asked.popleft()
            taken, value = await answer
            events = _events_a_chunk(taken)
            if taken.until < end:
                asked.appendleft((end, ask(taken.until, end)))
                events = taken.until - taken.after
            yield taken, value
    finally:
        for _, answer in asked:
            answer.cancel()
        await asyncio.gather(*(answer for _, answer in asked), return_exceptions=True)


async def _or_refused(link: _Link, bringing: Awaitable[T]) -> T:
    """What is brought; an answer that makes no sense ends the fill."""
    try:
        return await bringing
    except ValueError as error:
        raise FillRefused(f"{link.source}: {error}") from error


def _events_a_chunk(taken: Portion) -> int:
    """How many events like these make a good chunk."""
    event_bytes = len(taken.frames) // (taken.until - taken.after) + 1
    return max(1, min(SLICE_EVENTS, _CHUNK_BYTES // event_bytes))


def _facts(store: Store) -> tuple[Any, ...]:
    """What of a store is small, and may change without an event."""
    snapshots = fill_snapshots.described(store.snapshots)
    subscriptions = fill_subscriptions.changes(store)
    return store.durability, _checkpoints(store), tuple(snapshots), subscriptions


def _offered_facts(one: Offered) -> tuple[Any, ...]:
    return one.durability, one.moved, one.snapshots, one.subscriptions


def _checkpoints(store: Store) -> dict[str, tuple[int, int]]:
    return {name: (at, store.checkpoint_index[name]) for name, at in store.checkpoints.items()}
