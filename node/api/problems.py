"""Errors as answers: `application/problem+json` (RFC 9457) and its CBOR twin.

Every problem has `type`, `title`, `status`, `detail`, `code` and `stored` ("no": certainly nothing
was written; "perhaps": it may have been), and the named fields of its error. `Retry-After` and
`Allow` are set where they help.
"""

from __future__ import annotations

from typing import Any

from node.api.answers import Answer
from node.api.media import JSON, Media
from node.errors import ExesdbError, InvalidRequest, Overloaded, UpgradeRequired

TYPE_PREFIX = "urn:exesdb:problem:"


def members(error: ExesdbError) -> dict[str, Any]:
    """The members of a problem, ready for either encoding."""
    return {
        "type": TYPE_PREFIX + error.code,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "stored": error.stored,
        **error.fields,
    }


def answer(error: ExesdbError, media: Media, close: bool = False) -> Answer:
    """The answer that tells a client about an error."""
    lines = b""
    if error.retry_after_s is not None:
        lines += b"Retry-After: %d\r\n" % error.retry_after_s
    allow = error.fields.get("allow")
    if isinstance(allow, list):
        lines += b"Allow: %b\r\n" % ", ".join(allow).encode()
    if isinstance(error, UpgradeRequired):
        lines += b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    return Answer(
        error.status, media.encode(members(error)), media.problem_type, lines, close=close
    )


def unparsable(words: str) -> Answer:
    """The answer to bytes that are not an HTTP request."""
    return answer(InvalidRequest(f"not a readable HTTP request: {words[:200]}"), JSON, close=True)


def crowded(connections_max: int) -> Answer:
    """The answer to a connection too many."""
    error = Overloaded(f"{connections_max} connections are open already", limit="connections_max")
    return answer(error, JSON, close=True)


def internal() -> ExesdbError:
    """What a client learns of a defect of ours; the log has the rest."""
    return ExesdbError("an unexpected error; the node's log tells more")
