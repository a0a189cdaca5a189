"""Stores: which there are, making one, looking at one, removing one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node.api.answers import Answer
from node.api.bodies import UNSET, BodyReader, Decoder, StoreBody
from node.api.levels import LEVEL_PROBLEMS, READ_PROBLEMS, Levels
from node.api.limits import ApiLimits
from node.api.media import sent
from node.api.parameters import timeout
from node.api.ports import Clock, Replica, Worker
from node.api.refusals import refusal
from node.api.routes import Reply, Route
from node.api.wire import Request
from node.core import commands
from node.core.outcomes import StoreCreated, StoreDeleted
from node.core.snapshots import KEPT_MAX
from node.core.state import State
from node.core.store import Store
from node.errors import (
    ExesdbError,
    NoLeader,
    NotReady,
    OutcomeUnknown,
    Overloaded,
    StoreMissing,
    UnsupportedMediaType,
)

CHANGE_PROBLEMS: tuple[type[ExesdbError], ...] = (
    NoLeader,
    Overloaded,
    NotReady,
    OutcomeUnknown,
    UnsupportedMediaType,
)


class Stores:
    """The routes about stores as a whole."""

    def __init__(
        self,
        replica: Replica,
        worker: Worker,
        state: State,
        clock: Clock,
        levels: Levels,
        bodies: BodyReader,
        limits: ApiLimits,
    ) -> None:
        self._replica = replica
        self._worker = worker
        self._state = state
        self._clock = clock
        self._levels = levels
        self._bodies = bodies
        self._timeout = timeout(limits)
        self._decode = Decoder(StoreBody, limits, optional=True)

    def routes(self) -> list[Route]:
        """What this family offers."""
        one = "/v1/stores/{store}"
        return [
            Route(
                "GET",
                "/v1/stores",
                self.all,
                "List the stores.",
                (Reply(200, "All stores, sorted by name.", "StoreList"),),
                self._levels.parameters,
                problems=LEVEL_PROBLEMS,
            ),
            Route(
                "GET",
                one,
                self.one,
                "Look at a store.",
                (Reply(200, "The store.", "StoreInfo"),),
                self._levels.store_parameters,
                problems=READ_PROBLEMS,
            ),
            Route(
                "PUT",
                one,
                self.put,
                "Make a store; say what appends to it wait for unless they say so themselves, and "
                "how many snapshots of an aggregate and stream it keeps.",
                (
                    Reply(201, "The store was made.", "StoreSummary"),
                    Reply(200, "It was there already.", "StoreSummary"),
                ),
                (self._timeout,),
                body="StoreBody",
                body_required=False,
                problems=CHANGE_PROBLEMS,
            ),
            Route(
                "DELETE",
                one,
                self.delete,
                "Remove a store with all it holds. The next leader makes the default one again.",
                (Reply(204, "The store is gone."),),
                (self._timeout,),
                problems=(*CHANGE_PROBLEMS, StoreMissing),
            ),
        ]

    async def all(self, request: Request) -> Answer:
        """`GET /v1/stores`."""
        await self._levels.reach(request)
        stores = [_summary(store) for _, store in sorted(self._state.stores.items())]
        return _answer(request, 200, {"stores": stores})

    async def one(self, request: Request, name: str) -> Answer:
        """`GET /v1/stores/{store}`."""
        store = await self._levels.store(request, name)
        persistence = self._worker.store_status(name)
        kept = store.snapshots.kept
        facts = {
            "durability": store.durability or None,
            "snapshots": len(store.snapshots),
            "snapshots_kept": None if kept == KEPT_MAX else kept,
            "persistence": persistence,
        }
        return _answer(request, 200, {**_summary(store), **facts})

    async def put(self, request: Request, name: str) -> Answer:
        """`PUT /v1/stores/{store}`."""
        body = await self._bodies.read(request)
        wanted = await self._decode(body, sent(request.message.headers) if body else request.wants)
        # None is what a command leaves as it is, and what a client gives back to the default.
        durability = None if wanted.durability is UNSET else wanted.durability or commands.BY_NODE
        kept = None if wanted.snapshots_kept is UNSET else wanted.snapshots_kept or KEPT_MAX
        if durability is None and kept is None:
            command = commands.create_store(name, self._clock())
        else:
            command = commands.put_store(name, self._clock(), durability, kept)
        outcome, _ = await self._replica.propose(command, request.parameters["timeout_ms"])
        if not isinstance(outcome, StoreCreated):
            raise refusal(outcome)
        store = await self._levels.known(name, request.parameters["timeout_ms"])
        return _answer(request, 201 if outcome.created else 200, _summary(store))

    async def delete(self, request: Request, name: str) -> Answer:
        """`DELETE /v1/stores/{store}`."""
        command = commands.delete_store(name)
        outcome, _ = await self._replica.propose(command, request.parameters["timeout_ms"])
        if not isinstance(outcome, StoreDeleted):
            raise refusal(outcome)
        return Answer(204)


def _summary(store: Store) -> dict[str, Any]:
    return {
        "store": store.name,
        "streams": len(store.streams),
        "events": store.kept_events,
        "position": store.position,
    }


def _answer(request: Request, status: int, body: Mapping[str, Any]) -> Answer:
    media = request.wants
    return Answer(status, media.encode(body), media.type)
