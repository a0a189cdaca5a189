"""Adding and removing members of the cluster, one at a time.

Each answer says who is counted now, as the cluster has committed it. A node that was added is
counted (201) once it has caught up; where that takes longer than the request may wait, the answer
is 202, the node goes on learning, and the same request may be repeated to wait on.
"""

from __future__ import annotations

from node.api import names
from node.api.bodies import BodyReader, Decoder, MemberBody
from node.api.limits import ApiLimits
from node.api.media import sent
from node.api.parameters import timeout
from node.api.ports import Membership, Replica
from node.api.routes import Reply, Route
from node.api.wire import Answer, Request
from node.errors import (
    InvalidRequest,
    LastMember,
    MemberExists,
    MemberMissing,
    MemberRecovering,
    MembershipChangeOpen,
    NoLeader,
    NotReady,
    OutcomeUnknown,
    PayloadTooLarge,
    UnsupportedMediaType,
)

_PATH = "/v1/cluster/members"
_REFUSALS = (MembershipChangeOpen, MemberRecovering, NoLeader, NotReady, OutcomeUnknown)


class Members:
    """The routes that change who belongs to the cluster."""

    def __init__(self, replica: Replica, bodies: BodyReader, limits: ApiLimits) -> None:
        self._replica = replica
        self._bodies = bodies
        self._limits = limits
        self._decode = Decoder(MemberBody, limits)

    def routes(self) -> list[Route]:
        """What this family offers."""
        return [
            Route(
                "POST",
                _PATH,
                self.add,
                "Add a node that was started with --join; it is counted once it has caught up.",
                (
                    Reply(201, "It is a member, and counted.", "Membership"),
                    Reply(202, "It is learning, and will be counted then.", "Membership"),
                ),
                (timeout(self._limits),),
                body="MemberBody",
                problems=(MemberExists, PayloadTooLarge, UnsupportedMediaType, *_REFUSALS),
            ),
            Route(
                "DELETE",
                _PATH + "/{id}",
                self.remove,
                "Remove a member.",
                (Reply(200, "It is no member any more.", "Membership"),),
                (timeout(self._limits),),
                problems=(MemberMissing, LastMember, *_REFUSALS),
            ),
        ]

    async def add(self, request: Request) -> Answer:
        """`POST /v1/cluster/members`."""
        body = self._decode(await self._bodies.read(request), sent(request.message.headers))
        names.checked_name(body.id, "id")
        if not 0 < len(body.raft_address) <= names.NAME_BYTES_MAX:
            raise InvalidRequest("raft_address: must be host:port", parameter="raft_address")
        timeout_ms = request.parameters["timeout_ms"]
        membership = await self._replica.add_member(body.id, body.raft_address, timeout_ms)
        return _answer(request, 201 if body.id in membership.voter_ids else 202, membership)

    async def remove(self, request: Request, member: str) -> Answer:
        """`DELETE /v1/cluster/members/{id}`."""
        timeout_ms = request.parameters["timeout_ms"]
        return _answer(request, 200, await self._replica.remove_member(member, timeout_ms))


def _answer(request: Request, status: int, membership: Membership) -> Answer:
    media = request.wants
    body = {
        "version": membership.version,
        "voters": sorted(membership.voter_ids),
        "learner": membership.learner_id,
    }
    return Answer(status, media.encode(body), media.type)
