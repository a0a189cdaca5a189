"""What an answer says, of a node or of what stands before it.

Every node answers in JSON, and refuses with a problem that has a code (`client_errors`). Whatever
else comes is of a proxy, or of another program at a wrong address. Its status still tells whether
it is worth to ask again, and whether the request may have reached a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import aiohttp
import msgspec

from cluster.client_errors import ClientError, OutcomeUnknown, Unavailable, of_problem


class Found(dict[str, Any]):
    """An answer. One that lacks what is in every node's is not a node's, and is an error."""

    def __init__(self, method: str, url: str, plain: dict[str, Any]) -> None:
        super().__init__(plain)
        self._kind, self._url = lost(method), url

    def __missing__(self, name: str) -> Any:
        raise self._kind(f"{self._url}: this is no answer of a node, it lacks {name!r}")


def found_in(method: str, url: str, content: bytes) -> Found:
    """What stands in an answer that is no refusal; some are empty."""
    try:
        plain = msgspec.json.decode(content, type=dict[str, Any]) if content else {}
    except msgspec.DecodeError as error:
        raise lost(method)(f"{url}: this is no answer of a node: {error}") from error
    return Found(method, url, plain)


def lost(method: str) -> type[ClientError]:
    """The error where a node may have done what it was asked."""
    return Unavailable if method == "GET" else OutcomeUnknown


def refusal(method: str, status: int, problem: Mapping[str, Any]) -> ClientError:
    """The error of an answer. Of servers that failed, only a node's 503 promises something.

    That of a proxy may also mean that the connection behind it broke. Where one wants something
    else of the client (3xx, 4xx), it has passed nothing on; but for 303, which tells where to see
    what was done, and 408, which some say where the server behind them took too long.
    """
    error = of_problem(status, problem)
    is_promised = problem.get("stored") == "no" or (status == 503 and bool(error.code))
    is_open = isinstance(error, Unavailable) and status != 429
    if method == "GET" or is_promised or not (is_open or status == 303):
        return error
    return OutcomeUnknown(error.detail, error.code, error.fields)


def problem_of(answer: aiohttp.ClientResponse, content: bytes) -> Mapping[str, Any]:
    """What stands in a refusal; for that of a proxy, which may be anything, its status speaks."""
    with suppress(msgspec.DecodeError):
        problem = msgspec.json.decode(content, type=dict[str, Any])
        if isinstance(problem.get("code"), str):
            return problem
    where = f"{answer.url.origin()}: HTTP status {answer.status} {answer.reason or ''}".rstrip()
    to = answer.headers.get("Location")
    return {"detail": f"{where}, to {to}" if to else where}
