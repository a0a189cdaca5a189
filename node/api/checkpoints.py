"""Checkpoints: how far a reader of the store has come. They only move forward."""

from __future__ import annotations

from node.api.appends import checked_position
from node.api.bodies import BodyReader, CheckpointBody, Decoder
from node.api.levels import READ_PROBLEMS, Levels
from node.api.limits import ApiLimits
from node.api.media import sent
from node.api.parameters import timeout
from node.api.ports import Replica
from node.api.refusals import refusal
from node.api.routes import Reply, Route
from node.api.stores import CHANGE_PROBLEMS
from node.api.wire import Answer, Request
from node.core import commands
from node.core.outcomes import CheckpointMoved
from node.errors import CheckpointMissing, CheckpointNotIncreasing, StoreMissing


class Checkpoints:
    """The routes about one checkpoint."""

    def __init__(
        self, replica: Replica, levels: Levels, bodies: BodyReader, limits: ApiLimits
    ) -> None:
        self._replica = replica
        self._levels = levels
        self._bodies = bodies
        self._timeout = timeout(limits)
        self._decode = Decoder(CheckpointBody, limits)

    def routes(self) -> list[Route]:
        """What this family offers."""
        path = "/v1/stores/{store}/checkpoints/{name}"
        return [
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
        body = self._decode(await self._bodies.read(request), media)
        command = commands.put_checkpoint(store, name, checked_position(body.position))
        outcome, _ = await self._replica.propose(command, request.parameters["timeout_ms"])
        if not isinstance(outcome, CheckpointMoved):
            raise refusal(outcome)
        return _checkpoint(request, outcome.name, outcome.position)


def _checkpoint(request: Request, name: str, position: int) -> Answer:
    media = request.wants
    return Answer(200, media.encode({"name": name, "position": position}), media.type)
