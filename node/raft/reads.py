"""How much a read may rely on: waiting until this node's state covers what it asks for.

`leader`: what the leader knew to be committed when it was asked. Two nodes may believe to lead for
up to the leader's fallback time, so this can be stale by that much. `linearizable`: everything that
was acknowledged to anyone before; a command goes through the log, and shares its group commit with
whatever else is under way. No leases, and so no clocks, are relied on.

The leader is asked once for all reads that begin in one turn of the loop: with a question for each
it would be too busy to answer many, and who asks too busy with asking again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from node.core import commands
from node.core.outcomes import Outcome
from node.core.state import State
from node.errors import NoLeader, OutcomeUnknown, ReadBarrierTimeout
from node.raft.library import Engine, now
from node.raft.ports import RaftSettings
from node.raft.requests import NoAnswer, Requests
from node.raft.waiting import Waiting

_ASK_AGAIN_S = 0.02
_ANSWER_S = 1.0  # then the leader is asked anew, or another one

Propose = Callable[[bytes, int], Awaitable[tuple[Outcome, int]]]


class Reads:
    """Barriers for reads on one node."""

    def __init__(
        self,
        engine: Engine,
        settings: RaftSettings,
        state: State,
        requests: Requests,
        waiting: Waiting,
        propose: Propose,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._state = state
        self._requests = requests
        self._waiting = waiting
        self._propose = propose
        self._questions: dict[str, asyncio.Task[int]] = {}  # not sent yet, by leader

    async def barrier(self, level: str, timeout_ms: int) -> None:
        """Return when this node's state covers what the level promises.

        Raises `ReadBarrierTimeout`, `NoLeader`, `NotReady`, `Overloaded`.
        """
        if level == "linearizable":
            try:
                await self._propose(commands.barrier(), timeout_ms)
            except OutcomeUnknown as error:
                raise ReadBarrierTimeout("the barrier did not come back in time") from error
        elif level == "leader":
            deadline = now() + timeout_ms / 1000
            await self.applied(await self._leader_index(deadline), _left_ms(deadline))

    async def applied(self, index: int, timeout_ms: int) -> None:
        """Return when this node has applied the entry at `index`. Raises `ReadBarrierTimeout`."""
        await self._waiting.reach(
            "", lambda: self._state.applied_index, index, timeout_ms, f"raft index {index}"
        )

    async def position(self, store: str, position: int, timeout_ms: int) -> None:
        """Return when the store has that position here. Raises `ReadBarrierTimeout`."""

        def number() -> int:
            found = self._state.stores.get(store)
            return -1 if found is None else found.position

        what = f"position {position} of store {store}"
        await self._waiting.reach(store, number, position, timeout_ms, what)

    async def leader(self, deadline: float) -> str:
        """The leader's id, waited for within `leader_wait_ms`. Raises `NoLeader`."""
        deadline = min(deadline, now() + self._settings.leader_wait_ms / 1000)
        try:
            # One that was there when this was woken may be gone again when it runs.
            while (leader := self._engine.leader) is None:
                await self._waiting.until(
                    lambda: self._engine.leader is not None, _left_ms(deadline), "a leader"
                )
        except ReadBarrierTimeout as error:
            raise NoLeader("no leader is known") from error
        return leader

    async def serve_read_index(self, _: str, __: Any) -> Any:
        """Answer a peer's `read_index`."""
        if not self._engine.leads_with_own_entry_applied():
            raise NoLeader("not leading, or not yet sure of what is committed")
        # It may have applied less: a long backlog takes several turns, and others may be faster.
        return self._engine.commit_index

    async def _leader_index(self, deadline: float) -> int:
        while True:
            leader = await self.leader(deadline)
            if leader == self._settings.node_id:
                what = "an entry of its own term"
                await self._waiting.until(self._is_decided, _left_ms(deadline), what)
                if self._engine.leads_with_own_entry_applied():
                    return self._engine.commit_index
                continue  # another one leads by now, or will
            try:
                async with asyncio.timeout(max(0.01, deadline - now())):
                    return await asyncio.shield(self._question_to(leader))
            except (NoAnswer, TimeoutError, TypeError, ValueError) as error:
                if now() >= deadline:
                    raise ReadBarrierTimeout(f"the leader did not answer: {error}") from error
                await asyncio.sleep(_ASK_AGAIN_S)

    def _is_decided(self) -> bool:
        """Whether this node, which leads, is sure of what is committed, or leads no more."""
        return self._engine.leads_with_own_entry_applied() or not self._engine.leads

    def _question_to(self, leader: str) -> asyncio.Task[int]:
        """One that is sent after this call: its answer covers what was acknowledged before."""
        question = self._questions.get(leader)
        if question is None:
            question = self._questions[leader] = asyncio.create_task(self._ask(leader))
            question.add_done_callback(_let_go)
        return question

    async def _ask(self, leader: str) -> int:
        del self._questions[leader]
        return int(await self._requests.ask(leader, "read_index", None, _ANSWER_S))


def _let_go(question: asyncio.Task[int]) -> None:
    """The time of all that shared it may be over."""
    if not question.cancelled():
        question.exception()


def _left_ms(deadline: float) -> int:
    return max(1, round((deadline - now()) * 1000))
