"""What becomes of deliveries, gathered into few commands.

While one command of a subscription is under way, what comes for it waits and shares the next one,
in the order in which it came; so settling costs appends little. A command is waited for 5 s at
most, since others wait behind it, and each request as long as it said, whichever command it is in
or waits for. Then what became of it is unknown, and the same may be said again. At most
`settlements_waiting_max` ids wait on a node. What was taken is carried out whoever leaves
meanwhile.

A delivery id is opaque to clients: which life of the subscription, which event, the number of the
delivery. Settling an id that is over harms nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from node.api.limits import ApiLimits
from node.api.ports import Clock, Replica
from node.api.refusals import refusal
from node.core import subscription_commands as asked
from node.core.outcomes import Settled
from node.core.subscription_commands import SETTLED_MAX, Delivery
from node.errors import InvalidRequest, OutcomeUnknown, Overloaded, PayloadTooLarge

ACTIONS = {
    "retry": asked.RETRY,
    "park": asked.PARK,
    "skip": asked.SKIP,
    "give_back": asked.GIVE_BACK,
}

_ID = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,15})-([0-9a-f]{1,15})").fullmatch
_PATIENCE_MS_MAX = 5_000
_GRACE_S = 0.25  # in which a command's own end, which may tell more, comes before a timer

Stale = asyncio.Future[list[int]]


class _Waiting(NamedTuple):
    """The settlements of one request."""

    settlements: list[tuple[Delivery, int]]
    timeout_ms: int
    answered: Stale
    timer: asyncio.TimerHandle  # it is cancelled with the outcome


class Settlements:
    """All that wait on this node, by store and subscription."""

    def __init__(self, replica: Replica, clock: Clock, limits: ApiLimits) -> None:
        self._replica = replica
        self._clock = clock
        self._limits = limits
        self._waiting: dict[tuple[str, str], deque[_Waiting]] = {}
        self._waiting_ids = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def settle(
        self, store: str, name: str, deliveries: Sequence[Delivery], action: int, timeout_ms: int
    ) -> Stale:
        """Settle at most `SETTLED_MAX` deliveries; the future tells which of them, by their places,
        were over before.

        Raises `Overloaded`; the future ends in the other `ExesdbError`s.
        """
        if self._waiting_ids + len(deliveries) > self._limits.settlements_waiting_max:
            raise Overloaded("too many settlements wait", limit="settlements_waiting_max")
        loop = asyncio.get_running_loop()
        answered: Stale = loop.create_future()
        timer = loop.call_later(timeout_ms / 1000 + _GRACE_S, _time_out, answered)
        key = store, name
        if key not in self._waiting:
            self._waiting[key] = deque()
            task = asyncio.create_task(self._settle(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        settlements = [(delivery, action) for delivery in deliveries]
        self._waiting[key].append(_Waiting(settlements, timeout_ms, answered, timer))
        self._waiting_ids += len(deliveries)
        return answered

    def give_back(
        self, store: str, name: str, deliveries: Sequence[Delivery], failed: bool
    ) -> Stale | None:
        """Let others have at once what a consumer will not settle. One try: should it fail, the
        time of each delivery ends it later. None with nothing to do, or no room to wait."""
        action = asked.RETRY if failed else asked.GIVE_BACK
        try:
            if not deliveries:
                return None
            answered = self.settle(store, name, deliveries, action, _PATIENCE_MS_MAX)
        except Overloaded:
            return None
        answered.add_done_callback(_ignored)
        return answered

    async def _settle(self, key: tuple[str, str]) -> None:
        """One command after another, as long as something waits."""
        waiting = self._waiting[key]
        await asyncio.sleep(0)  # what comes in this turn of the loop goes together
        while waiting:
            batch = _batch(waiting)
            settlements = [each for one in batch for each in one.settlements]
            self._waiting_ids -= len(settlements)
            try:
                command = asked.settle(key[0], self._clock(), key[1], settlements)
                # No longer than that, whoever is patient: others wait behind this command.
                patience_ms = min(max(one.timeout_ms for one in batch), _PATIENCE_MS_MAX)
                outcome, _ = await self._replica.propose(command, patience_ms)
                if not isinstance(outcome, Settled):
                    raise refusal(outcome)
            except Exception as error:
                for one in batch:
                    _fail(one.answered, error)
            else:
                _tell(batch, outcome)
            for one in batch:
                one.timer.cancel()
        del self._waiting[key]


def delivery_id(uid: int, position: int, attempt: int) -> str:
    """The id of a delivery, for clients."""
    return f"{uid:x}-{position:x}-{attempt:x}"


def settled_body(ids: Sequence[str], stale: Sequence[int]) -> dict[str, Any]:
    """The answer to a request that settles: how many it did, and those that were over before."""
    return {"settled": len(ids) - len(stale), "stale": [ids[at] for at in stale]}


def deliveries_of(ids: Sequence[str]) -> list[Delivery]:
    """What ids name. Raises `PayloadTooLarge`, `InvalidRequest`.

    They are counted first: a body has room for two million, and looking at those takes seconds.
    """
    if len(ids) > SETTLED_MAX:
        raise PayloadTooLarge("delivery_ids: too many", limit=SETTLED_MAX, actual=len(ids))
    return [_delivery(one) for one in ids]


def _delivery(text: str) -> Delivery:
    parts = _ID(text)
    if parts is None:
        raise InvalidRequest(f"{text[:80]!r} is no delivery id", parameter="delivery_ids")
    uid, position, attempt = (int(part, 16) for part in parts.groups())
    return Delivery(uid & (2**63 - 1), position, attempt)


def _batch(waiting: deque[_Waiting]) -> list[_Waiting]:
    """As many requests from the beginning as one command may settle."""
    batch = [waiting.popleft()]
    size = len(batch[0].settlements)
    while waiting and size + len(waiting[0].settlements) <= SETTLED_MAX:
        batch.append(waiting.popleft())
        size += len(batch[-1].settlements)
    return batch


def _tell(batch: list[_Waiting], outcome: Settled) -> None:
    """Give each request what is stale of its own."""
    stale = set(outcome.stale)
    first = 0
    for one in batch:
        count = len(one.settlements)
        if not one.answered.done():
            one.answered.set_result([at for at in range(count) if first + at in stale])
        first += count


def _time_out(answered: Stale) -> None:
    _fail(answered, OutcomeUnknown("the outcome was not learned in time"))


def _fail(answered: Stale, error: Exception) -> None:
    if not answered.done():
        answered.set_exception(error)


def _ignored(answered: Stale) -> None:
    if not answered.cancelled():
        answered.exception()
