"""JSON and CBOR: which one a request brought, which one its answer wants, and how each is written.

`Content-Type` says what the body is, `Accept` what the answer shall be; both are JSON where they
are missing, and `Accept` where it is empty. It follows RFC 9110: the most specific range that
matches a type gives its weight, the type with the greatest weight wins, JSON wins a draw.
Parameters such as `charset` are ignored: JSON is UTF-8 (RFC 8259), CBOR is binary.

Errors are `application/problem+json` (RFC 9457), and their twin with the same members in CBOR.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cbor2
import msgspec

from node.errors import NotAcceptable, UnsupportedMediaType


@dataclass(frozen=True, slots=True)
class Media:
    """One of the two ways to write a body. `type` also names it in an event's content type."""

    type: str
    problem_type: str
    encode: Callable[[Any], bytes]


JSON = Media("application/json", "application/problem+json", msgspec.json.encode)
CBOR = Media("application/cbor", "application/problem+cbor", cbor2.dumps)

OCTETS = "application/octet-stream"

_SENT: dict[str | None, Media] = {None: JSON, JSON.type: JSON, CBOR.type: CBOR}
# What clients send nearly always; everything else is parsed.
_WANTED: dict[str | None, Media] = _SENT | {"": JSON, "*/*": JSON}


def sent(headers: Mapping[str, str]) -> Media:
    """How the body of a request is written. Raises `UnsupportedMediaType`."""
    if headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedMediaType("compressed bodies are not supported: send none, or identity")
    given = headers.get("Content-Type")
    media = _SENT.get(given)
    if media is None and given is not None:
        media = _SENT.get(given.partition(";")[0].strip().lower())
    if media is None:
        raise UnsupportedMediaType(
            f"Content-Type is {given!r}; send {JSON.type} or {CBOR.type}", accepted=list(_TYPES)
        )
    return media


def wanted(headers: Mapping[str, str]) -> Media:
    """How the answer shall be written. Raises `NotAcceptable`."""
    given = headers.get("Accept")
    media = _WANTED.get(given)
    return _negotiated(given) if media is None and given is not None else media or JSON


def preferred(accept: str, offers: Iterable[str]) -> str:
    """The type with the greatest weight, the first of equals. Raises `NotAcceptable`."""
    offered = list(offers)
    weights = _weights(accept)
    best = max(offered, key=lambda offer: _weight(offer, weights))
    if _weight(best, weights) <= 0:
        raise NotAcceptable(
            f"Accept is {accept[:200]!r}; there are {' and '.join(offered)}", available=offered
        )
    return best


def _negotiated(accept: str) -> Media:
    return _TYPES[preferred(accept, _TYPES)]


def _weight(offer: str, weights: Mapping[str, float]) -> float:
    family = offer.partition("/")[0] + "/*"
    problem = _TYPES[offer].problem_type if offer in _TYPES else offer
    for media_range in (offer, problem, family, "*/*"):
        if media_range in weights:
            return weights[media_range]
    return 0.0


def _weights(accept: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in accept.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weights[media_range] = _quality(parameters)
    return weights


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                return 0.0
    return 1.0


_TYPES = {media.type: media for media in (JSON, CBOR)}
