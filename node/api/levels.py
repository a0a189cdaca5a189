"""Read levels: how fresh what a read sees must be.

    consistency=local         what this node has applied (the default)
    consistency=leader        at least what the leader had committed when the read came
    consistency=linearizable  the same, proven by a majority after the read came
    min_index=N               at least the entry at Raft index N
    min_position=N            at least position N of the store: read your own writes on any node

The waits share the request's `timeout_ms`, and end in 504 `read_barrier_timeout`; or they end with
the client that leaves.

A store that this node does not know may have been created a moment ago through another node. So
before a read says 404 it asks for the leader's state once and looks again; `PUT` of a store has
promised that it can be used on any node at once.
"""

from __future__ import annotations

import time
from typing import Any

from node.api.limits import ApiLimits
from node.api.parameters import Parameter, choice, integer, timeout
from node.api.ports import Replica
from node.api.wire import Request
from node.core.state import State
from node.core.store import Store
from node.errors import (
    ExesdbError,
    InvalidCount,
    InvalidStartVersion,
    NoLeader,
    NotReady,
    ReadBarrierTimeout,
    StoreMissing,
)

UNKNOWN_STORE_MS = 2_000  # the bound of the second look for a store that is not known here

LEVEL_PROBLEMS: tuple[type[ExesdbError], ...] = (NoLeader, NotReady, ReadBarrierTimeout)
READ_PROBLEMS: tuple[type[ExesdbError], ...] = (
    StoreMissing,
    InvalidStartVersion,
    InvalidCount,
    *LEVEL_PROBLEMS,
)


class Levels:
    """Waits for the freshness that a read asks for, then gives it the store."""

    def __init__(self, replica: Replica, state: State, limits: ApiLimits) -> None:
        self._replica = replica
        self._state = state
        self.parameters: tuple[Parameter, ...] = (
            choice(
                "consistency",
                "How fresh the answer must be.",
                ("local", "leader", "linearizable"),
            ),
            integer("min_index", "Wait until this node has applied this Raft index."),
            timeout(limits),
        )
        self.store_parameters = (
            *self.parameters,
            integer("min_position", "Wait until the store has this position on this node."),
        )

    async def reach(self, request: Request) -> None:
        """Return when this node's state is as fresh as the request asks.

        Raises `ReadBarrierTimeout`, `NoLeader`, `NotReady`; the last also for the level `local`
        where the node may have forgotten what it acknowledged before it was started.
        """
        if self._replica.recovering:
            raise NotReady("this node is recovering", reasons=self._replica.not_ready_reasons())
        parameters = request.parameters
        level = parameters["consistency"]
        index = parameters["min_index"]
        if level == "local" and index is None:
            return
        deadline = _Deadline(parameters["timeout_ms"])
        with request.while_there():
            if level != "local":
                await self._replica.barrier(level, deadline.left_ms())
            if index is not None and self._state.applied_index < index:
                await self._replica.wait_applied(index, deadline.left_ms())

    async def store(self, request: Request, name: str) -> Store:
        """The store, as fresh as asked. Raises `StoreMissing` and what `reach` raises."""
        deadline = _Deadline(request.parameters["timeout_ms"])
        await self.reach(request)
        position = request.parameters["min_position"] or 0
        store = self._state.stores.get(name)
        if store is not None and store.position >= position:  # most reads
            return store
        with request.while_there():
            return await self._awaited(name, position, deadline)

    async def _awaited(self, name: str, position: int, deadline: _Deadline) -> Store:
        store = await self.known(name, min(deadline.left_ms(), UNKNOWN_STORE_MS))
        if store.position >= position:
            return store
        await self._replica.wait_position(name, position, deadline.left_ms())
        store = await self.known(name, deadline.left_ms())
        if store.position < position:
            raise ReadBarrierTimeout(
                f"store {name!r} is at position {store.position} on this node, not at {position}",
                store=name,
                min_position=position,
                position=store.position,
            )
        return store

    async def known(self, name: str, timeout_ms: int) -> Store:
        """The store by its name, after a second look at the leader's state if need be."""
        store = self._state.stores.get(name)
        if store is None:
            await self._replica.barrier("leader", timeout_ms)
            store = self._state.stores.get(name)
        if store is None:
            raise StoreMissing(f"no store {name!r}", store=name)
        return store


class _Deadline:
    """What is left of a request's time."""

    def __init__(self, timeout_ms: int) -> None:
        self._at = time.monotonic() + timeout_ms / 1000

    def left_ms(self) -> int:
        """Milliseconds left, at least 1, so that what is there already is still given."""
        return max(1, int((self._at - time.monotonic()) * 1000))


def index_header(state: State) -> bytes:
    """The header that tells how far this node has applied."""
    return b"X-Applied-Index: %d\r\n" % state.applied_index


def store_headers(state: State, name: Any) -> bytes:
    """The headers of every answer about a store; an unknown store has no position."""
    store = state.stores.get(name)
    if store is None:
        return index_header(state)
    return b"X-Position: %d\r\nX-Applied-Index: %d\r\n" % (store.position, state.applied_index)
