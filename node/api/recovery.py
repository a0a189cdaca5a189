"""When members are gone for good: what this node says of itself, and the order to go on without.

These two routes are for `scripts/recover`, which asks every survivor, makes a plan of their answers
and has an operator confirm it. An order is carried out by each survivor for itself: it refuses what
it can see to be wrong or unneeded, makes the new lineage and membership durable, and restarts.
"""

from __future__ import annotations

from node.api.answers import Answer
from node.api.bodies import BodyReader, Decoder, RecoveryBody
from node.api.limits import ApiLimits
from node.api.media import sent
from node.api.ports import Override
from node.api.routes import Reply, Route
from node.api.wire import Request
from node.errors import (
    PersistenceDisabled,
    PersistenceFailed,
    PersistenceTimeout,
    RecoveryRefused,
    UnsupportedMediaType,
)


class Recovery:
    """The routes by which an operator rebuilds a cluster."""

    def __init__(self, override: Override, bodies: BodyReader, limits: ApiLimits) -> None:
        self._override = override
        self._bodies = bodies
        self._decode = Decoder(RecoveryBody, limits)

    def routes(self) -> list[Route]:
        """What this family offers."""
        return [
            Route(
                "GET",
                "/v1/cluster/recovery",
                self.report,
                "What this node knows of its log and the others; for `scripts/recover`.",
                (Reply(200, "Its own view, of this moment.", "RecoveryReport"),),
            ),
            Route(
                "POST",
                "/v1/cluster/recovery",
                self.carry_out,
                "Go on without members that are gone for good; for `scripts/recover`.",
                (
                    Reply(200, "This was done before.", "Recovery"),
                    Reply(202, "It is durable, and this node restarts.", "Recovery"),
                ),
                body="RecoveryBody",
                problems=(
                    RecoveryRefused,
                    PersistenceDisabled,
                    PersistenceFailed,
                    PersistenceTimeout,
                    UnsupportedMediaType,
                ),
            ),
        ]

    async def report(self, request: Request) -> Answer:
        """`GET /v1/cluster/recovery`."""
        media = request.wants
        return Answer(200, media.encode(self._override.report()), media.type)

    async def carry_out(self, request: Request) -> Answer:
        """`POST /v1/cluster/recovery`."""
        order = await self._decode(await self._bodies.read(request), sent(request.message.headers))
        restarting = await self._override.carry_out(order)
        media = request.wants
        body = {"lineage": order.lineage, "restarting": restarting}
        return Answer(202 if restarting else 200, media.encode(body), media.type)
