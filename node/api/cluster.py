"""The cluster and this node in it: members, leadership, settings, health."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node.api.answers import Answer
from node.api.bodies import BodyReader, Decoder, LeaderBody
from node.api.limits import ApiLimits
from node.api.media import JSON, sent
from node.api.parameters import timeout
from node.api.ports import MemberStatus, NodeInfo, Replica
from node.api.routes import Reply, Route
from node.api.wire import Request
from node.errors import (
    MemberMissing,
    NoLeader,
    NotReady,
    ReadBarrierTimeout,
    UnsupportedMediaType,
)


class Cluster:
    """The routes about the cluster, this node's settings and its health."""

    def __init__(
        self, replica: Replica, info: NodeInfo, bodies: BodyReader, limits: ApiLimits
    ) -> None:
        self._replica = replica
        self._info = info
        self._bodies = bodies
        self._limits = limits
        self._decode_leader = Decoder(LeaderBody, limits, optional=True)
        self._stopping = False

    def routes(self) -> list[Route]:
        """What this family offers."""
        return [
            Route(
                "GET",
                "/v1/cluster",
                self.cluster,
                "Look at the cluster, as this node sees it.",
                (Reply(200, "Members, roles, progress.", "Cluster"),),
            ),
            Route(
                "POST",
                "/v1/cluster/leader",
                self.leader,
                "Hand leadership over.",
                (Reply(200, "There is a new leader.", "Leader"),),
                (timeout(self._limits),),
                body="LeaderBody",
                body_required=False,
                problems=(
                    MemberMissing,
                    NoLeader,
                    NotReady,
                    ReadBarrierTimeout,
                    UnsupportedMediaType,
                ),
            ),
            Route(
                "GET",
                "/v1/info",
                self.info,
                "Version, limits and settings of this node.",
                (Reply(200, "This node.", "Info"),),
            ),
            Route(
                "GET",
                "/health/live",
                self.live,
                "Whether the process runs.",
                (Reply(200, "It does, whatever `Accept` says.", "Health", (JSON.type,)),),
            ),
            Route(
                "GET",
                "/health/ready",
                self.ready,
                "Whether this node should be sent requests.",
                (Reply(200, "It should, whatever `Accept` says.", "Health", (JSON.type,)),),
                problems=(NotReady,),
            ),
        ]

    def stop(self) -> None:
        """From now on this node is not ready."""
        self._stopping = True

    async def cluster(self, request: Request) -> Answer:
        """`GET /v1/cluster`."""
        status = self._replica.status()
        body = {
            "node_id": status.node_id,
            "leader": status.leader,
            "term": status.term,
            "members": [_member(member) for member in status.members],
            "waits_for": self._reasons(),
            **self._info.lineage(),
        }
        return _answer(request, body)

    async def leader(self, request: Request) -> Answer:
        """`POST /v1/cluster/leader`."""
        body = await self._bodies.read(request)
        media = sent(request.message.headers) if body else request.wants
        to = (await self._decode_leader(body, media)).to
        leader = await self._replica.transfer_leadership(to, request.parameters["timeout_ms"])
        return _answer(request, {"leader": leader})

    async def info(self, request: Request) -> Answer:
        """`GET /v1/info`."""
        body = {
            "node_id": self._info.node_id,
            "version": self._info.version,
            "limits": self._limits.published(),
            "config": self._info.config(),
        }
        return _answer(request, body)

    async def live(self, request: Request) -> Answer:
        """`GET /health/live`."""
        return _answer(request, {"status": "live"})

    async def ready(self, request: Request) -> Answer:
        """`GET /health/ready`."""
        reasons = self._reasons()
        if self._stopping:
            reasons.append("this node is stopping")
        if reasons:
            raise NotReady("; ".join(reasons), reasons=reasons)
        return _answer(request, {"status": "ready"})

    def _reasons(self) -> list[str]:
        """Why this node is not ready, and which peers it cannot speak with meanwhile."""
        lineage = self._info.lineage()
        quarantined = lineage["quarantined"]
        reasons = [*([quarantined] if quarantined else []), *self._replica.not_ready_reasons()]
        if reasons:
            reasons += self._silent()
            reasons += [f"{peer} is refused: {why}" for peer, why in lineage["refused"].items()]
        return reasons

    def _silent(self) -> list[str]:
        """Who is missing where a member knows no leader: "no leader" alone says nothing to do."""
        status = self._replica.status()
        voters = {member.id: member.role for member in status.members if member.voter}
        silent = [one for one, role in voters.items() if role == "unreachable"]
        if status.leader is not None or status.node_id not in voters or not silent:
            return []
        refused = "refused (another secret, certificate or list of peers)"
        words = f"no word of {', '.join(silent)}: down, out of reach, or {refused}"
        if self._replica.recovering:
            return [words]
        return [f"{words}; a leader needs {len(voters) // 2 + 1} of {len(voters)} members"]


def _member(member: MemberStatus) -> dict[str, Any]:
    return {
        "id": member.id,
        "http_address": member.http_address,
        "raft_address": member.raft_address,
        "role": member.role,
        "commit_index": member.commit_index,
        "applied_index": member.applied_index,
        "persisted_index": member.persisted_index,
        "last_contact_ms": member.last_contact_ms,
        "voter": member.voter,
    }


def _answer(request: Request, body: Mapping[str, Any]) -> Answer:
    media = request.wants
    return Answer(200, media.encode(body), media.type)
