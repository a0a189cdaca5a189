"""Asking the peers' persistence workers to flush, over the sessions that are there anyway.

Both sides of the question `flush`: what a peer reached, or the code of the error that kept it from
it. The answer says nothing about Raft; it travels here because these sessions prove who asks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from node.errors import (
    ExesdbError,
    InvalidRequest,
    NotReady,
    PersistenceDisabled,
    PersistenceFailed,
    PersistenceTimeout,
)
from node.raft.requests import NoAnswer, Requests

_TOPIC = "flush"
_PATIENCE_MS_MAX = 300_000  # whatever a peer says, one question does not stay for ever
_MARGIN_S = 0.25  # the peer's own time limit comes first, so that its word arrives
_ERRORS: dict[str, type[ExesdbError]] = {
    error.code: error for error in (PersistenceDisabled, PersistenceTimeout, PersistenceFailed)
}

FlushHere = Callable[[Collection[str] | None, int, int], Awaitable[Mapping[str, Any]]]


class Flushes:
    """Flushes of peers; `flush_here(stores, index, timeout_ms)` is this node's own worker."""

    def __init__(self, requests: Requests, flush_here: FlushHere) -> None:
        self._requests = requests
        self._flush_here = flush_here
        requests.serve(_TOPIC, self._serve)

    async def on(
        self, member_id: str, stores: Collection[str] | None, index: int, timeout_ms: int
    ) -> Mapping[str, Any]:
        """Have a peer persist up to `index`; what it reached.

        Raises `PersistenceDisabled`, `PersistenceTimeout`, `PersistenceFailed` as the peer did, and
        `NotReady` if it cannot be reached.
        """
        body = [None if stores is None else list(stores), index, timeout_ms]
        try:
            answer = await self._requests.ask(
                member_id, _TOPIC, body, timeout_ms / 1000 + _MARGIN_S
            )
            code, content = answer
            if code is None:
                return dict(content)
            error_type = _ERRORS.get(code, PersistenceFailed)
        except (NoAnswer, TypeError, ValueError) as error:
            raise NotReady(str(error), member=member_id) from error
        raise error_type(str(content), member=member_id)

    async def _serve(self, _: str, body: Any) -> Any:
        try:
            stores, index, timeout_ms = body
            if type(index) is not int or type(timeout_ms) is not int:
                raise InvalidRequest("index and timeout_ms are numbers")
            patience_ms = min(timeout_ms, _PATIENCE_MS_MAX)
            return [None, dict(await self._flush_here(stores, index, patience_ms))]
        except ExesdbError as error:
            return [error.code, error.detail]
