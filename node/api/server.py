"""The HTTP server: listening, the way of one request, stopping.

The way of a request, in the order in which it can end:

    head parsed            by aiohttp; what is not HTTP is answered 400 and closed (`wire`)
    answer's media chosen  for refusals, too (`media`)
    route found            404, 405 (`routes`)
    names and query read   400, 406, 413 (`names`, `media`, `parameters`)
    handler                one of the families; reads the body if it needs one
    headers added          X-Served-By on every answer, position and index on those of a store;
                           the index where no path was read, too
    answer written         at once, in one piece; a client that does not take it is disconnected

Every refusal is an `ExesdbError` and becomes a problem; anything else that is raised is a defect of
ours: it is logged with its traceback, and the client gets a 500 that says so.

Stopping: no new connections, `ready` says no, waiting reads are woken and answer with what they
have, WebSockets are closed once what is under way on them is answered, running requests get
`stop_s` to end, then the connections are closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from urllib.parse import unquote

from aiohttp import web

from node.api import media, problems
from node.api.answers import Answer, Heads
from node.api.appends import Appends
from node.api.arrivals import Arrivals
from node.api.bodies import BodyReader
from node.api.checkpoints import Checkpoints
from node.api.cluster import Cluster
from node.api.deliveries import Deliveries
from node.api.desks import Desks
from node.api.folds import Folds
from node.api.following import Following
from node.api.gathering import Gathering
from node.api.known_heads import KnownHeads
from node.api.levels import Levels, index_header, store_headers
from node.api.limits import ApiLimits
from node.api.lives import LifeRoutes
from node.api.members import Members
from node.api.metrics import UNMATCHED, Metrics
from node.api.openapi import Document
from node.api.outbox import Outbox
from node.api.persistence import Persistence
from node.api.ports import Clock, ForceOn, NodeInfo, OnDisk, Override, Replica, Worker
from node.api.reads import Reads
from node.api.recovery import Recovery
from node.api.routes import Route, Router, origin_form
from node.api.snapshots import SnapshotRoutes
from node.api.stores import Stores
from node.api.subscriptions import SubscriptionRoutes
from node.api.talks import Talks
from node.api.wire import Connection, Request, logger
from node.core.commands import REPLICATED
from node.core.state import State
from node.errors import ExesdbError, NotAcceptable

LISTEN_BACKLOG = 1_024

_STORES = "/v1/stores/"


class ApiServer:
    """The HTTP API of one node.

    `arrivals.arrived(store)` is to be called on the event loop for each store that an applied entry
    changed. Raises `ValueError` for limits that contradict one another.
    """

    def __init__(
        self,
        replica: Replica,
        worker: Worker,
        force_on: ForceOn,
        on_disk: OnDisk,
        state: State,
        info: NodeInfo,
        clock: Clock,
        override: Override,
        limits: ApiLimits | None = None,
        default_durability: str = REPLICATED,
    ) -> None:
        self.limits = limits or ApiLimits()
        if wrong := self.limits.check():
            raise ValueError("; ".join(wrong))
        self.arrivals = Arrivals(self.limits.waiting_reads_max)
        self._state = state
        self._heads = Heads(info.node_id)
        self._bodies = BodyReader(self.limits)
        self._cluster = Cluster(replica, info, self._bodies, self.limits)
        levels = Levels(replica, state, self.limits)
        following = Following(levels, state, self.arrivals, self.limits)
        gathering = Gathering(replica, clock, self.limits)
        appends = Appends(
            *(replica, gathering, worker, on_disk, clock, self._bodies, self.limits),
            *(state, default_durability),
        )
        reads = Reads(levels, state, self.arrivals, self.limits)
        desks = Desks(replica, clock, levels, self.arrivals, self.limits)
        self._talks = Talks(
            *(gathering, on_disk, clock, levels, self._bodies, self.limits),
            *(appends, reads, following, desks),
        )
        self._metrics = Metrics(
            replica, worker, state, self.arrivals, self._bodies, following, self._talks, info, clock
        )
        families = (
            *(appends, reads, following, self._talks, Folds(levels, self.limits)),
            Stores(replica, worker, state, clock, levels, self._bodies, self.limits),
            Checkpoints(replica, levels, self._bodies, self.limits),
            SnapshotRoutes(replica, clock, levels, self._bodies, self.limits),
            SubscriptionRoutes(replica, clock, levels, self._bodies, self.limits),
            Deliveries(clock, levels, desks, self._bodies, self.limits),
            LifeRoutes(replica, self._bodies, self.limits),
            Persistence(replica, worker, force_on, state, levels, self._bodies, self.limits),
            self._cluster,
            Members(replica, self._bodies, self.limits),
            Recovery(override, self._bodies, self.limits),
            self._metrics,
        )
        document = Document(info.version)
        routes = [route for family in (*families, document) for route in family.routes()]
        document.describe(routes)
        self._router = Router(routes)
        self._timings = {route: self._metrics.timings(route.method, route.path) for route in routes}
        self._unmatched = self._metrics.timings(UNMATCHED, UNMATCHED)
        self._server: web.Server | None = None
        self._listener: asyncio.Server | None = None

    # --- life --------------------------------------------------------------------------------

    async def start(self, host: str, port: int) -> int:
        """Listen; the port, which the system chooses for 0. Raises `OSError` where it cannot."""
        loop = asyncio.get_running_loop()
        # aiohttp's server keeps the connections; they answer through `_handle` themselves.
        server = self._server = web.Server(_unused)
        known = KnownHeads(self.limits.head_line_bytes_max)
        outbox = Outbox(loop)

        def connection() -> Connection:
            return Connection(
                server,
                self.limits,
                self._heads,
                outbox,
                known,
                self._handle,
                self._unreadable,
                self._crowded,
                loop,
            )

        self._listener = await loop.create_server(connection, host, port, backlog=LISTEN_BACKLOG)
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Stop listening, let running requests end within `stop_s`, close all connections."""
        if self._listener is None or self._server is None:
            return
        self._heads.closing = True
        self._cluster.stop()
        self._listener.close()
        self.arrivals.stop()
        await self._talks.stop()  # while its connections still hear what is said to them
        self._server.pre_shutdown()
        await self._server.shutdown(self.limits.stop_s)
        await self._listener.wait_closed()
        self._listener = self._server = None

    # --- one request -------------------------------------------------------------------------

    async def _handle(self, request: Request) -> Answer:
        began = time.perf_counter()
        message = request.message
        timings = self._unmatched
        path, _, query = origin_form(message.path).partition("?")
        try:
            unwanted = _choose_media(request)
            found = self._router.find(message.method, path)
            route = found.route
            timings = self._timings[route]
            names = found.names()
            if unwanted is not None and route.negotiates:
                raise unwanted
            request.parameters = route.values(query)
            answer = await route.handler(request, *names)
            if route.in_store:
                answer.lines += store_headers(self._state, names[0])
        except ExesdbError as error:
            try:
                answer = self._refusal(request, path, error)
            except Exception:  # such as a field that cannot be written
                answer = self._failed(request, path)
        except ConnectionError:
            raise  # the client left; the connection ends by itself
        except Exception:
            answer = self._failed(request, path)
        timings.add(answer.status, time.perf_counter() - began)
        return answer

    def _failed(self, request: Request, path: str) -> Answer:
        """The answer where the exception that is being handled is a defect of ours."""
        message = request.message
        logger.exception("%s %s failed", message.method, message.path[:200])
        return self._refusal(request, path, problems.internal())

    def _refusal(self, request: Request, path: str, error: ExesdbError) -> Answer:
        """The error as an answer, with the headers of the store that the path names.

        A body that was not read to its end cannot be skipped: close.
        """
        answer = problems.answer(error, request.wants, close=not request.payload.is_eof())
        if path.startswith(_STORES):
            name, _, _ = path[len(_STORES) :].partition("/")
            answer.lines += store_headers(self._state, unquote(name))
        return answer

    def _unreadable(self, words: str) -> Answer:
        return self._about_any_path(problems.unparsable(words))

    def _crowded(self) -> Answer:
        return self._about_any_path(problems.crowded(self.limits.connections_max))

    def _about_any_path(self, answer: Answer) -> Answer:
        """The answer where no path was read: with what one about a store must have."""
        answer.lines += index_header(self._state)
        return answer

    def routes(self) -> Iterator[Route]:
        """All that is offered, for documents and tests."""
        return iter(self._router.routes)


def _choose_media(request: Request) -> NotAcceptable | None:
    """Set how the answer is written, refusals included; the refusal where nothing will do."""
    try:
        request.wants = media.wanted(request.message.headers)
    except NotAcceptable as error:
        return error
    return None


async def _unused(request: web.BaseRequest) -> web.StreamResponse:
    raise AssertionError("connections answer by themselves")
