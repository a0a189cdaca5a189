"""Handing leadership over, on request or before a stop.

The leader proposes nothing more, waits until the target holds its whole log, and asks it to stand
at once (Raft's TimeoutNow). What clients submit meanwhile waits in the queue and goes to the new
leader. If nobody takes over within the time, the old leader goes on as if nothing had been asked.
That time is short, however long who asked would wait: until it is over nobody's append goes on.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from node.errors import MemberMissing, NotReady
from node.raft.library import Engine, now
from node.raft.ports import Network, RaftSettings
from node.raft.proposals import Proposals
from node.raft.reads import Reads
from node.raft.requests import NoAnswer, Requests
from node.raft.waiting import Waiting

_STEP_S = 0.01


class HandOver:
    """The hand-over of one node's leadership, and the door to ask for it on any node."""

    def __init__(
        self,
        engine: Engine,
        settings: RaftSettings,
        network: Network,
        proposals: Proposals,
        requests: Requests,
        reads: Reads,
        waiting: Waiting,
        turn: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._network = network
        self._proposals = proposals
        self._requests = requests
        self._reads = reads
        self._waiting = waiting
        self._turn = turn

    async def to(self, member: str | None, timeout_ms: int) -> str:
        """Hand leadership to a member, or to the one that is furthest; gives the leader's id.

        Raises `MemberMissing`, `NoLeader`, `NotReady` (no other member, or not this one, can take
        over), `ReadBarrierTimeout`.
        """
        self._check_member(member)
        deadline = now() + timeout_ms / 1000
        leader = await self._reads.leader(deadline)
        if leader == member:
            return leader
        if leader == self._settings.node_id:
            await self._hand_over(member, deadline)
        else:
            await self._ask(leader, member, deadline)
        while (new := self._engine.leader) is None or new == leader:
            left_ms = max(1, round((deadline - now()) * 1000))
            await self._waiting.until(
                lambda: self._engine.leader not in (None, leader), left_ms, "a new leader"
            )
        return new

    async def serve(self, _: str, member: Any) -> Any:
        """Answer a peer's `hand_over`."""
        self._check_member(member)
        await self._hand_over(member, math.inf)
        return None

    def _check_member(self, member: str | None) -> None:
        if member is not None and member not in self._engine.membership.voter_ids:
            raise MemberMissing("that is no member", member=member)

    async def _ask(self, leader: str, member: str | None, deadline: float) -> None:
        try:
            await self._requests.ask(leader, "hand_over", member, max(0.01, deadline - now()))
        except NoAnswer as error:
            raise NotReady(f"the leader did not hand over: {error}") from error

    async def _hand_over(self, member: str | None, deadline: float) -> None:
        if member is not None and not self._network.is_connected(member):
            raise NotReady(f"{member} is not connected")
        deadline = min(deadline, now() + self._settings.leader_wait_ms / 1000)
        self._proposals.pause()
        try:
            while now() < deadline and self._engine.leads:
                target = member or self._furthest()
                if target is None:
                    break
                if self._engine.hand_over(target):
                    left_ms = max(1, round((deadline - now()) * 1000))
                    await self._waiting.until(
                        lambda: not self._engine.leads, left_ms, "the end of its reign"
                    )
                    return
                self._turn()
                await asyncio.sleep(_STEP_S)  # acks of what is in flight arrive
            raise NotReady("no other member could take over in time")
        finally:
            self._proposals.resume()

    def _furthest(self) -> str | None:
        peers = self._engine.membership.other_voters(self._settings.node_id)
        connected = [peer for peer in peers if self._network.is_connected(peer)]
        return max(connected, key=self._engine.match_index, default=None)
