"""Where the consumers of a persistent subscription wait for events on this node.

A fetch is a command, so it is only proposed where this node's own state says that it may find
something: an event waits to be handed out again, a delivery is over, or an event that is wanted,
of a stream that nobody is busy with, is behind the cursor. One desk a subscription looks, once for
all who wait at it and at most once for each change of the store; so those who wait cost the log
nothing, and appends one look a turn of the event loop.

What may be there is shared out: as many fetches as there may be events, at most one for each who
waits, in the order in which they came, go into the log together. Whoever left meanwhile, what was
fetched for him is given back.

A node that is cut off sees nothing new, and its consumers could wait for ever beside others that
work. So one that is not ready for `_CUT_OFF_S` sends them away.

Beside that the cursor must pass what nobody wants, or the lag of an idle subscription would grow.
After `_AHEAD_MAX` positions, or `_LAGS_S`, a fetch is proposed for that alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from node.api.arrivals import Arrivals
from node.api.filters import Scan
from node.api.levels import UNKNOWN_STORE_MS, Levels
from node.api.limits import ApiLimits
from node.api.pacing import Pacer
from node.api.ports import Clock, Replica
from node.api.refusals import refusal
from node.api.settlements import Settlements
from node.core import subscription_commands as asked
from node.core.outcomes import Fetched
from node.core.store import Store
from node.core.subscription import Subscription
from node.core.subscription_commands import Delivery
from node.errors import NotReady, SubscriptionMissing

_AHEAD_MAX = 256
_LAGS_S = 5.0
_CUT_OFF_S = 10.0
_FETCH_MS = 5_000
_PAUSE_S_MIN = 0.001
_STOPPING = "this node is stopping; go on at another one"
_CUT_OFF = "this node is not ready; go on at another one"

Change = asyncio.Future[None]


def _never() -> bool:
    return False


class _Waiting(NamedTuple):
    """A consumer that waits for at most so many events."""

    consumer: str
    most: int
    is_unable: Callable[[], bool]
    fetched: asyncio.Future[Fetched]


class Desks:
    """All desks of this node, by store and subscription; one is there while somebody is at it."""

    def __init__(
        self,
        replica: Replica,
        clock: Clock,
        levels: Levels,
        arrivals: Arrivals,
        limits: ApiLimits,
    ) -> None:
        self.replica = replica
        self.clock = clock
        self.levels = levels
        self.arrivals = arrivals
        self.settlements = Settlements(replica, clock, limits)
        self.limits = limits
        self._desks: dict[tuple[str, str], Desk] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def at(self, store: str, name: str) -> Iterator[Desk]:
        """The desk of a subscription, for as long as somebody wants something of it."""
        desk = self._desks.get((store, name))
        if desk is None:
            desk = self._desks[store, name] = Desk(self, store, name)
            task = asyncio.create_task(self._open(desk))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        desk.people += 1
        try:
            yield desk
        finally:
            desk.people -= 1
            desk.look()

    async def _open(self, desk: Desk) -> None:
        try:
            await desk.run()
        finally:
            del self._desks[desk.store_name, desk.name]

    async def fetch(
        self, store: str, name: str, consumer: str, most: int, timeout_ms: int
    ) -> Fetched:
        """Fetch now, and go on where a command ended at its own bounds with nothing found.

        Raises `SubscriptionMissing`, `StoreMissing` and what a proposal raises.
        """
        while True:
            command = asked.fetch(store, self.clock(), name, consumer, most)
            outcome, _ = await self.replica.propose(command, timeout_ms)
            if not isinstance(outcome, Fetched):
                raise refusal(outcome)
            if outcome.deliveries or not outcome.has_more:
                return outcome

    def kept(self, store: Store, name: str, fetched: Fetched) -> Fetched:
        """What of it is still there. The rest was removed since, and is given back: the next fetch
        passes it by. Nothing is where the subscription has ended, alone or with its store."""
        one = store.subscriptions.by_name.get(name)
        if one is None or one.uid != fetched.uid:
            return fetched._replace(deliveries=[])
        kept = [one for one in fetched.deliveries if store.kept(one[0])]
        if len(kept) < len(fetched.deliveries):
            gone = [one for one in fetched.deliveries if one not in kept]
            self.give_back(store.name, name, fetched._replace(deliveries=gone))
        return fetched._replace(deliveries=kept)

    def give_back(self, store: str, name: str, fetched: Fetched) -> None:
        """Nobody is there any more for whom this was fetched, or it is not."""
        deliveries = [Delivery(fetched.uid, *one) for one in fetched.deliveries]
        self.settlements.give_back(store, name, deliveries, failed=False)


class Desk:
    """The consumers of one subscription on this node."""

    def __init__(self, desks: Desks, store_name: str, name: str) -> None:
        self.store_name = store_name
        self.name = name
        self.people = 0
        self._desks = desks
        self._waiting: deque[_Waiting] = deque()
        self._change: Change | None = None  # what `run` waits for
        self._moved: Change | None = None  # what those wait for who want to know of a change
        self._seen_index = 0  # as of the last look: the last change of the subscription,
        self._looked = 0  # up to where nothing was found since,
        self._kept_up_at = 0.0  # and when its cursor was not behind, or was moved
        self._ready_at = asyncio.get_running_loop().time()  # when this node was last seen ready

    # --- for consumers -------------------------------------------------------------------------

    async def subscription(self) -> tuple[Subscription, Store]:
        """The subscription as it is here. Raises `SubscriptionMissing`, `StoreMissing`, `NotReady`.

        One that this node does not know may have been made a moment ago, through another one.
        """
        desks = self._desks
        if desks.arrivals.stopped:
            raise NotReady(_STOPPING)
        store = await desks.levels.known(self.store_name, UNKNOWN_STORE_MS)
        one = store.subscriptions.by_name.get(self.name)
        if one is None:
            await desks.replica.barrier("leader", UNKNOWN_STORE_MS)
            store = await desks.levels.known(self.store_name, UNKNOWN_STORE_MS)
            one = store.subscriptions.by_name.get(self.name)
        if one is None:
            raise SubscriptionMissing(
                f"no subscription {self.name!r} in store {self.store_name!r}",
                store=self.store_name,
                subscription=self.name,
            )
        return one, store

    async def take(
        self, consumer: str, most: int, is_unable: Callable[[], bool] = _never
    ) -> Fetched:
        """Wait for events, at most so many. None come where there are some, and `is_unable` then.

        Raises what `subscription` and `Desks.fetch` raise.
        """
        if self._desks.arrivals.stopped:
            raise NotReady(_STOPPING)
        waiting = _Waiting(consumer, most, is_unable, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self.look()
        try:
            return await waiting.fetched
        except asyncio.CancelledError:
            fetched = waiting.fetched
            if fetched.done() and not fetched.cancelled() and not fetched.exception():
                self._desks.give_back(self.store_name, self.name, fetched.result())
            raise

    async def moved(self, timeout_s: float | None) -> None:
        """Return when the subscription has changed, or after a time."""
        if self._desks.arrivals.stopped:
            return
        if self._moved is None:
            self._moved = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._moved,), timeout=timeout_s)

    def look(self) -> None:
        """Have the desk look again."""
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    # --- the desk ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve those who wait until nobody is left, or the node stops."""
        loop, arrivals = asyncio.get_running_loop(), self._desks.arrivals
        while self.people and not arrivals.stopped:
            change = self._change = arrivals.next(self.store_name)
            timer = None
            try:
                pause_s = await self._serve(loop.time())
                if pause_s:
                    timer = loop.call_later(pause_s, self.look)
                if pause_s != 0:
                    await change
            finally:
                if timer is not None:
                    timer.cancel()
                arrivals.forget(self.store_name, change)
        self._end(NotReady(_STOPPING))

    async def _serve(self, moment: float) -> float | None:
        """Look, and hand out what there may be. After how many seconds to look again anyway."""
        try:
            one, store = await self.subscription()
            if one.changed_index != self._seen_index:
                self._seen_index, self._looked = one.changed_index, one.cursor
                self.tell()
            self._waiting = deque(each for each in self._waiting if not each.fetched.done())
            if not self._waiting:
                return None
            if count := await self._there_may_be(one, store, moment):
                self._kept_up_at = moment
                await self._hand_out(count)
                return 0
            self._check_ready(moment)
            return self._pause_s(one, store, moment)
        except Exception as error:
            self._end(error)
            return None

    async def _there_may_be(self, one: Subscription, store: Store, moment: float) -> int:
        """How many events a fetch might hand out, were its bounds not in the way; also 1 where it
        is time that the cursor moves on."""
        expiry_us = one.next_expiry_us()
        is_over = expiry_us is not None and expiry_us <= self._desks.clock()
        count = len(one.in_flight) if is_over else 0
        if one.room <= 0:
            return count
        count += len(one.ready)
        ahead = store.position - one.cursor
        if ahead <= 0:
            self._kept_up_at = moment
        elif ahead > _AHEAD_MAX:
            count += ahead
        else:
            count += await self._streams_ahead(one, store)
            count = count or int(moment - self._kept_up_at >= _LAGS_S)
        return count

    async def _streams_ahead(self, one: Subscription, store: Store) -> int:
        """How many streams that nobody is busy with have a wanted event behind the cursor."""
        scan = Scan(one.definition.wanted, False, _AHEAD_MAX, self._looked, None, [])
        await scan.run(store, self._desks.limits, Pacer(), _AHEAD_MAX)
        found = {row[1] for row in scan.rows} - one.lines.keys()
        if not found:
            self._looked = scan.next
        return len(found)

    async def _hand_out(self, count: int) -> None:
        """Fetch for as many of those who wait as there may be events for."""
        able: deque[_Waiting] = deque()
        for each in self._waiting:
            if each.fetched.done():
                continue  # it left while the desk looked
            if each.is_unable():
                each.fetched.set_result(Fetched(0, (), False))
            else:
                able.append(each)
        self._waiting = able
        if able:
            served = [able.popleft() for _ in range(min(count, len(able)))]
            share = -(-count // len(served))
            await asyncio.gather(*(self._fetch(each, share) for each in served))
            able.extendleft(each for each in reversed(served) if not each.fetched.done())

    async def _fetch(self, waiting: _Waiting, share: int) -> None:
        """Fetch for one; with nothing found, it waits on."""
        most = min(waiting.most, share)
        try:
            fetched = await self._desks.fetch(
                self.store_name, self.name, waiting.consumer, most, _FETCH_MS
            )
        except Exception as error:
            if not waiting.fetched.done():
                waiting.fetched.set_exception(error)
            return
        if waiting.fetched.done():
            self._desks.give_back(self.store_name, self.name, fetched)
        elif fetched.deliveries:
            waiting.fetched.set_result(fetched)

    def _check_ready(self, moment: float) -> None:
        """Raise `NotReady` where this node has not been ready for long; looks now and then."""
        silent_s = moment - self._ready_at
        if silent_s < _LAGS_S:
            return
        reasons = self._desks.replica.not_ready_reasons()
        if not reasons:
            self._ready_at = moment
        elif silent_s >= _CUT_OFF_S:
            raise NotReady(_CUT_OFF, reasons=reasons)

    def _pause_s(self, one: Subscription, store: Store, moment: float) -> float:
        """When the next delivery is over, or the cursor has been behind for long; or anyway."""
        pauses = [_LAGS_S]
        expiry_us = one.next_expiry_us()
        if expiry_us is not None:
            pauses.append(max(_PAUSE_S_MIN, (expiry_us - self._desks.clock()) / 1e6))
        if one.room > 0 and one.cursor < store.position:
            pauses.append(max(_PAUSE_S_MIN, self._kept_up_at + _LAGS_S - moment))
        return min(pauses)

    def tell(self) -> None:
        """Wake those who wait for a change."""
        if self._moved is not None:
            self._moved.set_result(None)
            self._moved = None

    def _end(self, error: Exception) -> None:
        """All who wait end in this error."""
        self.tell()
        for each in self._waiting:
            if not each.fetched.done():
                each.fetched.set_exception(error)
        self._waiting.clear()
