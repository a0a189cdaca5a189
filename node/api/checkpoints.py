"""Checkpoints: how far a reader of the store has come. They only move forward.

A page of the list looks at the names of all, some 0.1 us each: a store has few.
"""

from __future__ import annotations

import heapq

from node.api.answers import Answer
from node.api.appends import checked_position
from node.api.bodies import BodyReader, CheckpointBody, Decoder
from node.api.levels import READ_PROBLEMS, Levels
from node.api.limits import ApiLimits
from node.api.media import sent
from node.api.names import checked_name
from node.api.parameters import page_limit, text, timeout
from node.api.ports import Replica
from node.api.refusals import refusal
from node.api.routes import Reply, Route
from node.api.stores import CHANGE_PROBLEMS
from node.api.wire import Request
from node.core import commands
from node.core.outcomes import CheckpointMoved
from node.errors import (
    CheckpointMissing,
    CheckpointNotIncreasing,
    InvalidCount,
    StoreMissing,
)


class Checkpoints:
    """The routes about checkpoints."""

    def __init__(
        self, replica: Replica, levels: Levels, bodies: BodyReader, limits: ApiLimits
    ) -> None:
        self._replica = replica
        self._levels = levels
        self._bodies = bodies
        self._timeout = timeout(limits)
        self._limits = limits
        self._decode = Decoder(CheckpointBody, limits)

    def routes(self) -> list[Route]:
        """What this family offers."""
        path = "/v1/stores/{store}/checkpoints/{name}"
        return [
            Route(
                "GET",
                "/v1/stores/{store}/checkpoints",
                self.all,
                "List the checkpoints of a store by name.",
                (Reply(200, "A page of checkpoints.", "CheckpointList"),),
                (
                    text("after", "Begin behind this name.", _name),
                    page_limit(self._limits, InvalidCount),
                    *self._levels.store_parameters,
                ),
                problems=READ_PROBLEMS,
            ),
            Route(
                "GET",
                path,
                self.get,
                "Look at a checkpoint.",
                (Reply(200, "Where it stands.", "Checkpoint"),),
                self._levels.store_parameters,
                problems=(*READ_PROBLEMS, CheckpointMissing),
            ),
            Route(
                "PUT",
                path,
                self.put,
                "Make a checkpoint, or move it forward.",
                (Reply(200, "Where it stands now.", "Checkpoint"),),
                (self._timeout,),
                body="CheckpointBody",
                problems=(*CHANGE_PROBLEMS, StoreMissing, CheckpointNotIncreasing),
            ),
        ]

    async def all(self, request: Request, store_name: str) -> Answer:
        """`GET /v1/stores/{store}/checkpoints`."""
        store = await self._levels.store(request, store_name)
        after, limit = request.parameters["after"] or "", request.parameters["limit"]
        behind = (name for name in store.checkpoints if name > after)
        names = heapq.nsmallest(limit + 1, behind)
        page = [{"name": name, "position": store.checkpoints[name]} for name in names[:limit]]
        following = names[limit - 1] if len(names) > limit else None
        media = request.wants
        return Answer(200, media.encode({"checkpoints": page, "next": following}), media.type)

    async def get(self, request: Request, store_name: str, name: str) -> Answer:
        """`GET /v1/stores/{store}/checkpoints/{name}`."""
        store = await self._levels.store(request, store_name)
        position = store.checkpoints.get(name)
        if position is None:
            raise CheckpointMissing(
                f"no checkpoint {name!r} in store {store_name!r}", store=store_name, checkpoint=name
            )
        return _checkpoint(request, name, position)

    async def put(self, request: Request, store: str, name: str) -> Answer:
        """`PUT /v1/stores/{store}/checkpoints/{name}`."""
        media = sent(request.message.headers)
        body = await self._decode(await self._bodies.read(request), media)
        command = commands.put_checkpoint(store, name, checked_position(body.position))
        outcome, _ = await self._replica.propose(command, request.parameters["timeout_ms"])
        if not isinstance(outcome, CheckpointMoved):
            raise refusal(outcome)
        return _checkpoint(request, outcome.name, outcome.position)


def _name(given: str) -> str:
    return checked_name(given, "checkpoint")


def _checkpoint(request: Request, name: str, position: int) -> Answer:
    media = request.wants
    return Answer(200, media.encode({"name": name, "position": position}), media.type)
