"""Access: one request to a cluster, through whichever node answers.

Any node can answer any request, so a tool needs one that is up, not a particular one. A request
goes to the first address; if that cannot be reached, or says that it cannot serve now (503, which
promises that nothing was done), it goes to the next one. Only requests that may be repeated go
through here, because an address that broke in the middle of an answer is passed over too. It may
have done what it was asked: a change of which nothing more is heard ends as one of the client's
(`client_errors`), its outcome unknown.

An answer is read up to `BODY_BYTES_MAX`. A node ends a page at 16 MiB and one event or snapshot (at
most 16 MiB, as a request) of what it has stored. As JSON that may be six times as much, where text
is of control characters; base64 and the names around each event come to less.
"""

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec

from cluster.client_errors import OutcomeUnknown
from cluster.client_values import exact

DEFAULT_URLS = tuple(f"http://127.0.0.1:{port}" for port in (8101, 8102, 8103))
CONNECT_S = 2.0
BODY_BYTES_MAX = 256 << 20
_TRY_MIN_S = 0.05
_UNREACHED = "no node could be reached"

Params = Mapping[str, str] | Sequence[tuple[str, str]]


class Reply(NamedTuple):
    """What a node answered. `perhaps_stored` says that an earlier try may have done it already."""

    url: str
    status: int
    body: dict[str, Any]
    perhaps_stored: bool = False


class Unreachable(Exception):
    """No node gave an answer, or none that can be read. `reasons` says why, by address."""

    def __init__(self, reasons: Mapping[str, str], answered: bool = False) -> None:
        super().__init__("\n".join(f"{url}: {reason}" for url, reason in reasons.items()))
        self.reasons = dict(reasons)
        self.answered = answered

    @property
    def words(self) -> str:
        """What is the matter, before the reasons."""
        return "no node gave an answer that can be read" if self.answered else _UNREACHED


class Unreadable(aiohttp.ClientPayloadError):
    """An answer that is too long, or not one of this API."""


def urls_or_default(given: list[str] | None) -> list[str]:
    """The addresses given, else those of EX_ESDB_URL (commas between), else a local cluster's.

    Raises ValueError for one that is none.
    """
    texts = given or [text.strip() for text in os.environ.get("EX_ESDB_URL", "").split(",")]
    return [url_of(text) for text in texts if text] or list(DEFAULT_URLS)


def url_of(text: str) -> str:
    """The address of a node, of which `http://` may be left out. Raises ValueError."""
    url = text.rstrip("/") if "://" in text else f"http://{text.rstrip('/')}"
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"{text!r} is no address of a node, such as http://127.0.0.1:8101")
    return url


def reason_of(error: Exception) -> str:
    """Why there was no answer, in few words."""
    if isinstance(error, aiohttp.ClientSSLError):  # its number is OpenSSL's, not the system's
        return str(error.__cause__ or error)
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0
        words = os.strerror(number) if number > 0 else error.os_error.strerror
        return words or str(error)
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    return str(error) or type(error).__name__


async def request(
    method: str,
    urls: Sequence[str],
    path: str,
    *,
    params: Params | None = None,
    json: object = None,
    timeout_s: float = 10.0,
    together: bool = False,
) -> Reply:
    """The first answer that a node gives; a 503 only if no node has a better one.

    Each node gets `timeout_s`, or all of them `together`: then a node gets half of what is left, so
    that one which says nothing leaves time for another, and the last one all of it. Raises
    Unreachable, and OutcomeUnknown for a change that was sent and of which nothing more was heard.
    """
    until = asyncio.get_running_loop().time() + timeout_s
    reasons: dict[str, str] = {}
    answered = perhaps_stored = False
    refusal: Reply | None = None
    sent = asyncio.Event()
    async with aiohttp.ClientSession(trace_configs=[_noting(sent)]) as http:
        for url in urls:
            sent.clear()
            try_s = _share_s(until, url == urls[-1]) if together else timeout_s
            bounds = aiohttp.ClientTimeout(total=try_s, connect=min(CONNECT_S, try_s))
            try:
                async with http.request(
                    method, exact(url + path), params=params, json=json, timeout=bounds
                ) as answer:
                    reply = Reply(url, answer.status, await _body(answer), perhaps_stored)
            except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
                answered = answered or isinstance(error, Unreadable)
                perhaps_stored = perhaps_stored or (method != "GET" and sent.is_set())
                reasons[url] = reason_of(error)
                continue
            if reply.status != 503:
                return reply
            reasons[url] = str(reply.body.get("detail", "HTTP status 503"))
            refusal = refusal or reply
    if perhaps_stored:
        words = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
        raise OutcomeUnknown(words, "outcome_unknown")
    if refusal is None:
        raise Unreachable(reasons, answered)
    return refusal


def _noting(sent: asyncio.Event) -> aiohttp.TraceConfig:
    """Sets `sent` before the first byte of a request goes out: what came of it tells less, as
    aiohttp sends some again by itself, and a time-out is the same with a connection or without."""

    async def note(*_: object) -> None:
        sent.set()

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(note)
    return trace


def _share_s(until: float, is_last: bool) -> float:
    """How long a try may take of the time that is left; at least a little, so that it is made."""
    left_s = until - asyncio.get_running_loop().time()
    return max(_TRY_MIN_S, left_s if is_last else left_s / 2)


async def _body(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """The body, which is a JSON object in every answer that is read here; 204 has none."""
    content = await content_of(answer)
    if answer.status == 204:
        return {}
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(content, type=dict[str, Any])
    # A failure without an object is that of a proxy, which did not reach a node either.
    kind = aiohttp.ClientPayloadError if answer.status >= 500 else Unreadable
    raise kind("the answer is not a JSON object")


async def content_of(answer: aiohttp.ClientResponse) -> bytes:
    """What stands in an answer, counted while it comes. Raises Unreadable if it is too much."""
    content = bytearray()
    async for part in answer.content.iter_any():
        content += part
        if len(content) > BODY_BYTES_MAX:
            raise Unreadable(f"the answer is longer than {BODY_BYTES_MAX:,} bytes")
    return bytes(content)
