"""Routes that the contract knows and this version of the node does not serve yet.

They answer 501 `not_implemented`, so that a client can tell "not yet" from a mistyped path. Whoever
builds one of them takes it off this list; a route cannot stand twice.
"""

from __future__ import annotations

from node.api.routes import Route
from node.api.wire import Answer, Request
from node.errors import NotImplementedYet

_STORE = "/v1/stores/{store}"

_LATER = (
    ("DELETE", _STORE + "/streams/{stream}", "Delete a stream."),
    ("PUT", _STORE + "/streams/{stream}/metadata", "Set what a stream keeps."),
)


async def not_yet(request: Request, *_: str) -> Answer:
    """Refuse with 501."""
    raise NotImplementedYet("this route is part of the contract, but not of this version")


def routes() -> list[Route]:
    """The routes that are still to come."""
    return [
        Route(method, path, not_yet, summary, (), problems=(NotImplementedYet,), any_query=True)
        for method, path, summary in _LATER
    ]
