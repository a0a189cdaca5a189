"""A consumer of a persistent subscription: events that are its to handle until it settles them.

    async with client.consume("mails", consumer="c1") as consumer:
        async for delivery in consumer:
            try:
                send_mail(delivery.event.data)
            except BadAddress:
                await delivery.nack("park")             # nobody will try again by himself
            else:
                await delivery.ack()

It goes on for ever, through the death of any node: at another one, where deliveries whose answer
was lost come again after their deadline. It ends only where there is nothing more to consume
(`NotFound`).

**Settling.** `ack` and `nack` hand their word over at once; a task sends what has gathered, one
request at a time, so that words cost little. Await what they return to learn whether it counted.
False means that it did not, or that nobody can know: the delivery was over (stale), and the event
was or will be handed out again. The first word about a delivery counts, further ones are ignored.

**How much is held.** Events are fetched ahead, so that at most `max_in_flight` are held that are
not settled. Nobody else has them meanwhile, and their streams wait: hold no more than you can
handle within the deadline. What was fetched ahead and is overdue is dropped, for another may have
it by then. What you do not settle is no longer counted once its deadline is over.

**Leaving** the context sends the last words, and lets go of the rest, so that other consumers have
it at once: what was fetched ahead is given back untried, what the program had and did not settle is
to be tried again. A fetch that is under way is hung up on: what its node has answered by then is
given back too, the rest the node takes back itself. If no node takes these words within the
client's `timeout_s`, the events come again after their deadline. Leaving the client first ends the
loop, too, but no word is sent any more.

Several tasks may share a consumer: each `async for` gets deliveries of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from itertools import takewhile
from types import TracebackType
from typing import Any, Literal, get_args

from cluster.client_asking import Asking, Attempts, Line
from cluster.client_errors import OutcomeUnknown, Unavailable
from cluster.client_events import Recorded

IN_FLIGHT, IN_FLIGHT_MAX = 20, 1_000

_WAIT_MS = 10_000  # how long a node waits before it answers that there is nothing
_FETCH_S = 5.0  # and how long it may take beside that
_HANG_UP_S = 1.0  # how long the last answer of a fetch may be on its way to who leaves
_SETTLED_MAX = 1_000  # ids a request

Action = Literal["retry", "park", "skip", "give_back"]


class Delivery:
    """An event that was handed to this consumer, for the `attempt`th time (from 1).

    `until` is its deadline, on the clock of the event loop; the store has its own.
    """

    def __init__(self, consumer: Consumer, plain: Mapping[str, Any], until: float) -> None:
        self.event = Recorded.of(plain)
        self.attempt: int = plain["attempt"]
        self.id: str = plain["delivery_id"]
        self.until = until
        self.settled: asyncio.Future[bool] | None = None
        self._consumer = consumer

    @property
    def overdue(self) -> bool:
        """Whether its deadline is over, as far as this process can tell."""
        return asyncio.get_running_loop().time() >= self.until

    def ack(self) -> asyncio.Future[bool]:
        """It is done. Await what is returned to learn whether that counted; see the module.

        Awaiting it raises `ClientError` if no node could be told in time.
        """
        return self._settle("ack")

    def nack(self, action: Action = "retry") -> asyncio.Future[bool]:
        """It is not done: try it again, "park" it for somebody to look at, or "skip" it.

        "give_back" leaves it to another consumer, as not tried: that does not count as a failure.
        What is returned is as with `ack`. Raises `ValueError` for any other word, which settles
        nothing.
        """
        return self._settle(checked(action))

    def _settle(self, action: str) -> asyncio.Future[bool]:
        if self.settled is None:
            self.settled = self._consumer.settle(self, action)
        # A program that no longer waits for it does not take it from others.
        return _unwatched(asyncio.shield(self.settled))


class Consumer:
    """Deliveries as an asynchronous iterator, in an asynchronous context; see the module."""

    def __init__(self, client: Asking, path: str, name: str, max_in_flight: int) -> None:
        if not 1 <= max_in_flight <= IN_FLIGHT_MAX:
            raise ValueError(f"max_in_flight is 1 to {IN_FLIGHT_MAX}")
        self.name = name
        self._client = client
        self._path = path
        self._max_in_flight = max_in_flight
        self._ack_timeout_s = 0.0
        self._held: dict[str, Delivery] = {}  # not settled, the first deadline first
        self._ahead: deque[Delivery] = deque()  # of those, what the program has not got yet
        self._words: dict[str, list[Delivery]] = {}  # not sent yet, by what they say
        self._waiting = 0  # tasks that wait for a delivery
        self._arrived, self._looked, self._said = (asyncio.Event() for _ in range(3))
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: Exception | None = None
        self._line: Line | None = None  # that of the fetch that is under way
        self._leaving = self._left = False

    async def __aenter__(self) -> Consumer:
        if self._tasks:
            raise RuntimeError("a consumer is entered once: have `consume` make another one")
        found = await self._client._ask("GET", self._path, [("consistency", "leader")])
        self._ack_timeout_s = found["ack_timeout_ms"] / 1000
        self._tasks = [asyncio.create_task(self._fetch_on()), asyncio.create_task(self._send_on())]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        fetching, sending = self._tasks
        try:
            self._leaving = True
            if self._line is not None and self._line.hang_up():
                await asyncio.wait({fetching}, timeout=_HANG_UP_S)
            fetching.cancel()
            await asyncio.wait({fetching})
            untried = {delivery.id for delivery in self._ahead}
            for delivery in [one for one in self._held.values() if one.settled is None]:
                self.settle(delivery, "give_back" if delivery.id in untried else "retry")
                delivery.settled = _answered(False)  # what it says from now on does not count
            self._left = True
            self._said.set()
            await asyncio.wait({sending}, timeout=self._client._timeout_s)
        finally:
            self._left = True
            fetching.cancel()
            sending.cancel()
            for delivery in self._held.values():
                _answer(delivery, False)
            self._ahead.clear()
            self._arrived.set()

    def __aiter__(self) -> Consumer:
        return self

    async def __anext__(self) -> Delivery:
        if not self._tasks:
            raise RuntimeError("use the consumer in an `async with` block; without await, `with`")
        while True:
            self._drop_overdue()
            if self._leaving:
                raise StopAsyncIteration
            if self._ahead:
                self._looked.set()
                return self._ahead.popleft()
            if self._failure is not None:
                raise self._failure
            self._arrived.clear()
            self._waiting += 1
            self._looked.set()
            try:
                await self._arrived.wait()
            finally:
                self._waiting -= 1

    # --- fetching ----------------------------------------------------------------------------

    async def _fetch_on(self) -> None:
        """Fetch where it is wanted, at whichever node, until that is refused for good."""
        attempts, loop = Attempts(float("inf"), self._client._chance), asyncio.get_running_loop()
        try:
            while not self._leaving:
                room = await self._until_wanted()
                url = self._client._routing.pick(for_append=False)
                began = loop.time()
                try:
                    await self._fetch(url, room)
                    attempts = Attempts(float("inf"), self._client._chance)
                except (Unavailable, OutcomeUnknown) as error:
                    if not self._client.is_open:
                        self._leaving = True
                        self._arrived.set()
                    if self._leaving:
                        return
                    lost_s = loop.time() - began - _WAIT_MS / 1000
                    self._client._routing.failed(url, lost_s)
                    await attempts.failed(error)
        except Exception as error:
            self._failure = error
            self._arrived.set()

    async def _until_wanted(self) -> int:
        """Return when a fetch is worth its cost, with the number of deliveries that have room.

        That is when somebody waits, or half of what may be held was settled while the program
        still takes what there is: one that stands still is not handed the same events for ever.
        """
        while True:
            self._drop_overdue()
            room = self._max_in_flight - len(self._held)
            halved = self._ahead and 2 * room >= self._max_in_flight
            if room > 0 and (self._waiting > len(self._ahead) or halved):
                return room
            self._looked.clear()
            open_until = (one.until for one in self._held.values() if one.settled is None)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next(open_until, None)):
                    await self._looked.wait()

    async def _fetch(self, url: str, room: int) -> None:
        body = {"consumer": self.name, "max": room, "wait_ms": _WAIT_MS}
        self._line = Line()
        self._line.use()
        try:
            found = await self._client._once(
                "POST", url, f"{self._path}/fetch", [], body, _FETCH_S, _WAIT_MS / 1000
            )
        finally:
            self._line = None
        until = asyncio.get_running_loop().time() + self._ack_timeout_s
        for plain in found["events"]:
            delivery = Delivery(self, plain, until)
            self._held[delivery.id] = delivery
            self._ahead.append(delivery)
        if self._ahead:
            self._arrived.set()

    def _drop_overdue(self) -> None:
        """What is overdue is no longer held. If the program has it, it may still settle it."""
        now = asyncio.get_running_loop().time()
        while self._ahead and self._ahead[0].until <= now:
            self._ahead.popleft()
        overdue = takewhile(lambda one: one.until <= now, self._held.values())
        for delivery in [one for one in overdue if one.settled is None]:
            del self._held[delivery.id]

    # --- settling ----------------------------------------------------------------------------

    def settle(self, delivery: Delivery, action: str) -> asyncio.Future[bool]:
        """Have a word about a delivery sent; `Delivery.ack` and `nack` are the way here."""
        if self._left:
            return _answered(False)
        self._held[delivery.id] = delivery
        self._words.setdefault(action, []).append(delivery)
        self._said.set()
        return _unwatched(asyncio.get_running_loop().create_future())

    async def _send_on(self) -> None:
        """Send what was said, as long as there is or may be something."""
        while self._words or not self._left:
            if self._words:
                await self._send(next(iter(self._words)))
            else:
                self._said.clear()
                await self._said.wait()

    async def _send(self, action: str) -> None:
        said = self._words.pop(action)
        batch, rest = said[:_SETTLED_MAX], said[_SETTLED_MAX:]
        if rest:
            self._words[action] = rest
        body: dict[str, Any] = {"delivery_ids": [delivery.id for delivery in batch]}
        path = f"{self._path}/ack"
        if action != "ack":
            path, body["action"] = f"{self._path}/nack", action
        answers: Mapping[str, bool | Exception]
        try:
            stale = set((await self._client._ask("POST", path, [], body))["stale"])
            answers = {one.id: one.id not in stale for one in batch}
        except Exception as error:  # whatever it is: who waits for an answer gets one
            answers = dict.fromkeys((one.id for one in batch), error)
        for delivery in batch:
            del self._held[delivery.id]
            _answer(delivery, answers[delivery.id])
        self._looked.set()


def checked(action: Action) -> Action:
    """The action if it is one. Raises `ValueError`."""
    if action not in get_args(Action):
        raise ValueError(f"{action!r} is no action: it is one of {', '.join(get_args(Action))}")
    return action


def _answer(delivery: Delivery, answer: bool | Exception) -> None:
    """Tell who settled the delivery, if anybody did."""
    if delivery.settled is None or delivery.settled.done():
        return
    if isinstance(answer, Exception):
        delivery.settled.set_exception(answer)
    else:
        delivery.settled.set_result(answer)


def _answered(answer: bool) -> asyncio.Future[bool]:
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    future.set_result(answer)
    return future


def _unwatched(future: asyncio.Future[bool]) -> asyncio.Future[bool]:
    """Nobody has to await it: an error in it that nobody looks at is none."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
