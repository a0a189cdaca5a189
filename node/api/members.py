"""Adding and removing members of the cluster, one at a time.

Each answer says who is counted now, as the cluster has committed it. A node that was added is
counted (201) once it has caught up; where that takes longer than the request may wait, the answer
is 202, the node goes on learning, and the same request may be repeated to wait on.
"""

from __future__ import annotations

import re

from node.api.answers import Answer
from node.api.bodies import BodyReader, Decoder, MemberBody
from node.api.limits import ApiLimits
from node.api.media import sent
from node.api.parameters import timeout
from node.api.ports import Membership, Replica
from node.api.routes import Reply, Route
from node.api.wire import Request
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
    PersistenceFailed,
    UnsupportedMediaType,
)

_PATH = "/v1/cluster/members"

# What `node.config` lets a node be called, and where it lets it be.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", re.ASCII).fullmatch
_ADDRESS = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}|\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]):([0-9]{1,5})"
).fullmatch
_PORT_MAX = 65_535
_REFUSALS = (
    MembershipChangeOpen,
    MemberRecovering,
    NoLeader,
    NotReady,
    OutcomeUnknown,
    PersistenceFailed,
)


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
        body = await self._decode(await self._bodies.read(request), sent(request.message.headers))
        _check(body)
        timeout_ms = request.parameters["timeout_ms"]
        membership = await self._replica.add_member(body.id, body.raft_address, timeout_ms)
        return _answer(request, 201 if body.id in membership.voter_ids else 202, membership)

    async def remove(self, request: Request, member: str) -> Answer:
        """`DELETE /v1/cluster/members/{id}`."""
        timeout_ms = request.parameters["timeout_ms"]
        return _answer(request, 200, await self._replica.remove_member(member, timeout_ms))


def _check(body: MemberBody) -> None:
    """Raise `InvalidRequest` where no node can be what is said.

    It would be learning for ever, and nobody else could be added meanwhile.
    """
    if _ID(body.id) is None:
        raise InvalidRequest(
            "id: must be what a node can be called: 1 to 32 of the letters A-Z a-z 0-9 _ . -",
            parameter="id",
        )
    address = _ADDRESS(body.raft_address)
    if address is None or not 1 <= int(address[1]) <= _PORT_MAX:
        raise InvalidRequest(
            f"raft_address: must be host:port with a port of 1..{_PORT_MAX}",
            parameter="raft_address",
        )


def _answer(request: Request, status: int, membership: Membership) -> Answer:
    media = request.wants
    body = {
        "version": membership.version,
        "voters": sorted(membership.voter_ids),
        "learner": membership.learner_id,
    }
    return Answer(status, media.encode(body), media.type)
