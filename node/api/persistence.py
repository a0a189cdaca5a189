"""Persistence: asking for a flush, waiting for one on a node or on all, and looking at the worker.

A flush covers all that was committed when the request came. That is known by the leader, so a read
barrier comes first, and has half of the time. Where it fails, what the node knows is flushed all
the same: an operator who wants the disk written before a repair must not be refused for want of a
majority. Without a leader that is all that a flush of this node alone can do, and it succeeds;
otherwise the error of the barrier is the answer, once all is flushed.

A flush of the cluster asks every member at once. All succeed: 200. Some: 207, with those that
failed named. None: the error that they share, or 504.

Nobody waits for who leaves: what the disks have begun by then they finish.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Any

from node.api.answers import Answer
from node.api.bodies import BodyReader, Decoder, IntervalBody, NothingBody
from node.api.levels import READ_PROBLEMS, Levels
from node.api.limits import ApiLimits
from node.api.media import sent
from node.api.parameters import choice, timeout
from node.api.ports import ForceOn, Replica, Worker
from node.api.routes import Reply, Route
from node.api.wire import Request
from node.core.state import State
from node.errors import (
    ExesdbError,
    InvalidRequest,
    NoLeader,
    NotReady,
    PersistenceDisabled,
    PersistenceFailed,
    PersistenceTimeout,
    ReadBarrierTimeout,
    UnsupportedMediaType,
)

INTERVAL_MS_MAX = 24 * 3600 * 1000
FORCE_TIMEOUT_MS = 30_000

_FORCE_PROBLEMS: tuple[type[ExesdbError], ...] = (
    PersistenceDisabled,
    PersistenceTimeout,
    PersistenceFailed,
    NoLeader,
    NotReady,
    ReadBarrierTimeout,
)


class Persistence:
    """The routes about the persistence workers."""

    def __init__(
        self,
        replica: Replica,
        worker: Worker,
        force_on: ForceOn,
        state: State,
        levels: Levels,
        bodies: BodyReader,
        limits: ApiLimits,
    ) -> None:
        self._replica = replica
        self._worker = worker
        self._force_on = force_on
        self._state = state
        self._levels = levels
        self._bodies = bodies
        self._decode_interval = Decoder(IntervalBody, limits)
        self._decode_nothing = Decoder(NothingBody, limits, optional=True)
        self._force_parameters = (
            choice("scope", "Flush this node, or every member.", ("node", "cluster")),
            timeout(limits, FORCE_TIMEOUT_MS),
        )

    def routes(self) -> list[Route]:
        """What this family offers."""
        force_replies = (
            Reply(200, "All of it is on disk.", "Flush"),
            Reply(207, "Some members failed; they are named.", "PartialFlush"),
        )
        return [
            Route(
                "POST",
                "/v1/stores/{store}/persistence/request",
                self.request,
                "Queue a store for this node's next cycle.",
                (Reply(202, "It is queued.", "Queued"),),
                problems=(*READ_PROBLEMS, PersistenceDisabled),
            ),
            Route(
                "POST",
                "/v1/stores/{store}/persistence/force",
                self.force_store,
                "Flush a store and wait for it.",
                force_replies,
                self._force_parameters,
                problems=(*READ_PROBLEMS, *_FORCE_PROBLEMS),
            ),
            Route(
                "POST",
                "/v1/persistence/force",
                self.force_all,
                "Flush all stores and wait for it.",
                force_replies,
                self._force_parameters,
                problems=_FORCE_PROBLEMS,
            ),
            Route(
                "GET",
                "/v1/persistence",
                self.status,
                "Look at this node's worker.",
                (Reply(200, "The worker.", "PersistenceStatus"),),
            ),
            Route(
                "PUT",
                "/v1/persistence",
                self.put,
                "Change this node's interval while it runs.",
                (Reply(200, "The worker, as it is now.", "PersistenceStatus"),),
                body="IntervalBody",
                problems=(UnsupportedMediaType,),
            ),
        ]

    async def request(self, request: Request, name: str) -> Answer:
        """`POST /v1/stores/{store}/persistence/request`."""
        await self._expect_nothing(request)
        with request.while_there():
            await self._levels.known(name, FORCE_TIMEOUT_MS)
        self._worker.request(name)
        return _answer(request, 202, {"store": name, "queued": True})

    async def force_store(self, request: Request, name: str) -> Answer:
        """`POST /v1/stores/{store}/persistence/force`."""
        await self._expect_nothing(request)
        began = time.monotonic()
        with request.while_there():
            await self._levels.known(name, request.parameters["timeout_ms"])
            return await self._force(request, [name], began)

    async def force_all(self, request: Request) -> Answer:
        """`POST /v1/persistence/force`."""
        await self._expect_nothing(request)
        with request.while_there():
            return await self._force(request, None, time.monotonic())

    async def status(self, request: Request) -> Answer:
        """`GET /v1/persistence`."""
        return _answer(request, 200, self._worker.status())

    async def put(self, request: Request) -> Answer:
        """`PUT /v1/persistence`."""
        media = sent(request.message.headers)
        body = await self._decode_interval(await self._bodies.read(request), media)
        if not 1 <= body.interval_ms <= INTERVAL_MS_MAX:
            raise InvalidRequest(
                f"interval_ms: must be from 1 to {INTERVAL_MS_MAX}", parameter="interval_ms"
            )
        self._worker.set_interval(body.interval_ms)
        return _answer(request, 200, self._worker.status())

    async def _expect_nothing(self, request: Request) -> None:
        """Refuse a body that says something, such as a `scope`: that is a query parameter."""
        if body := await self._bodies.read(request):
            await self._decode_nothing(body, sent(request.message.headers))

    async def _force(
        self, request: Request, stores: Collection[str] | None, began: float
    ) -> Answer:
        def left_ms() -> int:
            passed_ms = int((time.monotonic() - began) * 1000)
            return max(1, int(request.parameters["timeout_ms"]) - passed_ms)

        on_node = request.parameters["scope"] == "node"
        behind = await self._catch_up(max(1, left_ms() // 2))
        index = self._state.applied_index
        own_id = self._replica.status().node_id
        if on_node:
            entry = await self._force_here(stores, index, left_ms())
            if isinstance(behind, ReadBarrierTimeout):
                raise behind
            return _answer(request, 200, {"nodes": {own_id: entry}})
        results = await self._force_members(own_id, stores, index, left_ms())
        return _flushed(request, results, behind)

    async def _catch_up(self, timeout_ms: int) -> NoLeader | ReadBarrierTimeout | None:
        """Apply what is committed by now; the error where nobody tells what that is, or in time."""
        try:
            await self._replica.barrier("leader", timeout_ms)
        except (NoLeader, ReadBarrierTimeout) as error:
            return error
        return None

    async def _force_here(
        self, stores: Collection[str] | None, index: int, timeout_ms: int
    ) -> Mapping[str, Any]:
        return (await self._worker.force(stores, index, timeout_ms)).entry()

    async def _force_members(
        self, own_id: str, stores: Collection[str] | None, index: int, timeout_ms: int
    ) -> dict[str, Mapping[str, Any] | ExesdbError]:
        """What each member answered: its entry, or the error."""

        async def one(member_id: str) -> Mapping[str, Any] | ExesdbError:
            try:
                async with asyncio.timeout(timeout_ms / 1000):
                    if member_id == own_id:
                        return await self._force_here(stores, index, timeout_ms)
                    return await self._force_on(member_id, stores, index, timeout_ms)
            except TimeoutError:
                return PersistenceTimeout(f"{member_id} did not answer in {timeout_ms} ms")
            except ExesdbError as error:
                return error

        members = [member.id for member in self._replica.status().members]
        results = await asyncio.gather(*(one(member_id) for member_id in members))
        return dict(zip(members, results, strict=True))


def _flushed(
    request: Request,
    results: Mapping[str, Mapping[str, Any] | ExesdbError],
    behind: NoLeader | ReadBarrierTimeout | None,
) -> Answer:
    errors = {id_: one for id_, one in results.items() if isinstance(one, ExesdbError)}
    done = {id_: one for id_, one in results.items() if id_ not in errors}
    if not errors:
        if behind is not None:
            raise behind  # all have flushed, but perhaps not all that was committed
        return _answer(request, 200, {"nodes": done})
    failed = {id_: {"code": one.code, "detail": one.detail} for id_, one in errors.items()}
    if done:
        return _answer(request, 207, {"code": "partial_success", "nodes": done, "failed": failed})
    kinds = {type(error) for error in errors.values()}
    if len(kinds) == 1:
        kind = kinds.pop()
        raise kind("no member could persist", failed=failed)
    raise PersistenceTimeout("no member could persist", failed=failed)


def _answer(request: Request, status: int, body: Mapping[str, Any]) -> Answer:
    media = request.wants
    return Answer(status, media.encode(body), media.type)
