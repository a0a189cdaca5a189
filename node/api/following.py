"""Following a store: everything behind a position, and then everything that comes, in order.

    GET /v1/stores/{store}/subscribe?after=P

A follower keeps nothing but a position. It looks at what this node has applied behind it, sends
what matches, and waits for the store's next change; so the past joins the present without a gap and
without a duplicate, whatever is appended meanwhile, and the position (`id`) of the last thing that
a client saw is all it needs to go on at any other node. Four kinds of things are sent:

    event        a recorded event; `id` is its position
    checkpoint   for filters: everything up to `id` was evaluated; sent where nothing has matched
                 for 1,000 positions, or for 5 s while the store moved
    caught_up    the end of what was there is reached; once, and again after a follower fell back
                 by more than 256 events
    error        the last word: `slow_consumer`, `store_not_found`, `not_ready` (the node stops);
                 its data is the problem, with `retry` and `position`, the last `id` that was sent

They travel as server-sent events, or with `Accept: application/x-ndjson` as lines of JSON, one map
each, with the keys `id`, `event` and `data`. Both have a sign of life at least every `HEARTBEAT_S`
(a comment; an empty line). What is said when is decided in `courses`.

Cost: who has caught up is one of a crowd that is looked for and written for as one (`crowds`), and
an event that several send in one form is encoded once. A look comes no sooner than `_REST_S` times
the number of followers after the last one, so that a hundred of them behind a fast store cost what
a few looks of all cost, and a single one is hardly delayed.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec

from node.api import problems
from node.api.answers import Answer, Streamed
from node.api.arrivals import Arrivals
from node.api.courses import FORMS, NDJSON, SSE, Course, Encoded
from node.api.crowds import Crowd, Crowds
from node.api.levels import READ_PROBLEMS, Levels
from node.api.limits import ApiLimits
from node.api.media import preferred
from node.api.parameters import Parameter, integer
from node.api.reads import END
from node.api.routes import Reply, Route
from node.api.streamed import Outflow, TooSlow
from node.api.wanted import filter_parameters, wanted
from node.api.wire import Request
from node.core.state import State
from node.core.store import Store
from node.errors import (
    ExesdbError,
    InvalidStartVersion,
    NotAcceptable,
    NotReady,
    Overloaded,
    SlowConsumer,
    StoreMissing,
)

_REST_S = 0.0001

_encode = msgspec.json.Encoder().encode


class Following:
    """The route that follows, and what its followers share."""

    def __init__(self, levels: Levels, state: State, arrivals: Arrivals, limits: ApiLimits) -> None:
        self.limits = limits
        self.arrivals = arrivals
        self.encoded = {kind: Encoded(form) for kind, form in FORMS.items()}
        self.crowds = Crowds(self)
        self.followers = 0
        self.events_sent = 0
        self.slow_consumers = 0
        self._levels = levels
        self._state = state

    def routes(self) -> list[Route]:
        """What this family offers."""
        return [
            Route(
                "GET",
                "/v1/stores/{store}/subscribe",
                self.subscribe,
                "Follow a store: all events behind a position, and those to come.",
                (Reply(200, "Events as they come.", types=(SSE, NDJSON)),),
                (
                    _after(),
                    *filter_parameters(self.limits),
                    *self._levels.store_parameters,
                ),
                problems=(*READ_PROBLEMS, NotAcceptable, Overloaded),
            )
        ]

    async def subscribe(self, request: Request, name: str) -> Answer:
        """`GET /v1/stores/{store}/subscribe`."""
        form = _form(request.message.headers.get("Accept"))
        store = await self._levels.store(request, name)
        after = start(request, store)
        self.admit()
        follower = _Follower(self, request, store, after, form)
        lines = b"Cache-Control: no-store\r\nX-Accel-Buffering: no\r\n"
        return Streamed(form, follower.run, lines)

    def admit(self) -> None:
        """Raise `NotReady` or `Overloaded` where nobody more can follow."""
        if self.arrivals.stopped:
            raise NotReady("this node is stopping")
        if self.followers >= self.limits.followers_max:
            raise Overloaded(
                f"{self.limits.followers_max} clients follow already", limit="followers_max"
            )

    @property
    def rest_s(self) -> float:
        """How long one rests after a look who is not behind."""
        return _REST_S * self.followers

    def as_it_is(self, store: Store) -> Store:
        """The store as of now: a node that was filled has another object for it."""
        current = self._state.stores.get(store.name)
        if current is None or current.uid != store.uid:
            raise StoreMissing(f"store {store.name!r} was deleted", store=store.name)
        return current


class _Follower:
    """One client that follows one store."""

    def __init__(
        self, shared: Following, request: Request, store: Store, after: int, form: str
    ) -> None:
        self._shared = shared
        self._request = request
        self._store = store
        self._form = FORMS[form]
        self._course = Course(
            *(shared.encoded[form], shared.limits, wanted(request.parameters), after),
            asyncio.get_running_loop().time(),
        )
        self._sent = after  # the last `id` that the client was sent

    async def run(self, outflow: Outflow) -> None:
        """Send until the client leaves, is too slow, or there is nothing more to follow."""
        shared = self._shared
        shared.followers += 1
        try:
            await self._follow(outflow)
        except TooSlow:
            shared.slow_consumers += 1
            outflow.last(self._error(SlowConsumer("the client takes less than is appended")))
        except ExesdbError as error:
            outflow.last(self._error(error))
        finally:
            shared.followers -= 1

    async def _follow(self, outflow: Outflow) -> None:
        shared = self._shared
        while not shared.arrivals.stopped:
            store = self._store = shared.as_it_is(self._store)
            await self._look(store, outflow)
            # A fill may have put another one in its place while this waited for room.
            store = self._store = shared.as_it_is(store)
            crowd = None
            if self._course.position >= store.position:
                crowd = shared.crowds.find(store, self._course, outflow.chunked)
            if crowd is not None:
                await self._stay(crowd, outflow)
            elif not self._course.is_behind:
                await asyncio.sleep(shared.rest_s)
        raise NotReady("this node is stopping; go on at another one")

    async def _look(self, store: Store, outflow: Outflow) -> None:
        """Send what there is behind the last position, or a part of it."""
        before = self._course.position
        said = await self._course.look(store, asyncio.get_running_loop().time())
        for piece in said.pieces(before):
            self._shared.events_sent += piece.events
            self._sent = piece.last
            await outflow.write(piece.written)

    async def _stay(self, crowd: Crowd, outflow: Outflow) -> None:
        """Be a member of the crowd for as long as the client keeps up, and then wait for room."""
        member = crowd.join(self._course, outflow, self._sent)
        gone = ConnectionResetError("the client is gone")
        self._request.on_gone = partial(crowd.leave, member, gone)
        try:
            await member.left
        finally:
            self._request.on_gone = None
            crowd.leave(member)
            self._sent = member.sent
        self._course = self._course.beside(member.sent, member.is_behind)
        await outflow.room()

    def _error(self, error: ExesdbError) -> bytes:
        body: dict[str, Any] = {
            **problems.members(error),
            "retry": not isinstance(error, StoreMissing),
            "position": self._sent,
        }
        return self._form.written(self._sent, "error", _encode(body))


def _form(accept: str | None) -> str:
    """Which of the two forms the client asked for. Raises `NotAcceptable`."""
    if not accept:
        return SSE
    kinds = (part.partition(";")[0].strip().lower() for part in accept.split(","))
    named = [kind for kind in kinds if kind in FORMS]
    return preferred(accept, dict.fromkeys([*named, SSE, NDJSON]))


def start(request: Request, store: Store) -> int:
    """The position behind which to begin. What a client saw last outranks where it began once."""
    seen = request.message.headers.get("Last-Event-ID")
    if seen:
        return int(integer("Last-Event-ID", "", error=InvalidStartVersion).parse(seen))
    after = request.parameters["after"]
    return store.position if after == END else after


def _after() -> Parameter:
    number = integer("after", "", error=InvalidStartVersion)

    def parse(given: str) -> Any:
        return END if given == END else number.parse(given)

    return Parameter(
        "after",
        "Begin behind this position, or `end`: only with what comes from now on. The header "
        "`Last-Event-ID`, which clients send when they connect again, outranks it.",
        {"oneOf": [number.schema, {"const": END}], "default": 0},
        parse,
        0,
    )
