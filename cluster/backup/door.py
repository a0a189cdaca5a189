"""The door: requests about one store to whichever node answers, in CBOR.

It is the client's way of asking (`client`: routing, bounded tries, what is certain after each), for
pages and batches of events with everything that the API tells of them. Bodies go out as they were
made, JSON or CBOR: which of the two a request was is part of what is stored.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

import aiohttp
import cbor2
from yarl import URL

from cluster.access import content_of, reason_of
from cluster.backup.threads import in_thread
from cluster.client_asking import Attempts
from cluster.client_errors import OutcomeUnknown, Unavailable, of_problem
from cluster.client_routing import Routing
from cluster.client_values import exact, quoted

CBOR, JSON = "application/cbor", "application/json"
PAGE_EVENTS = 5_000

_CONNECT_S = 2.0

_UNDER_WAY = 16

Query = list[tuple[str, str]]

NOW: Query = [("consistency", "linearizable")]
"""What was acknowledged before the question is in the answer."""

T = TypeVar("T")


class Door:
    """Requests about a store. Use it as an asynchronous context. Raises ClientError."""

    def __init__(self, urls: Sequence[str], store: str, timeout_s: float) -> None:
        self.store = store
        self._routing = Routing(urls)
        self._timeout_s = timeout_s
        self._chance = random.Random()
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Door:
        bounds = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        self._http = aiohttp.ClientSession(timeout=bounds, read_bufsize=2**20)
        await self._learn()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._http is not None
        await self._http.close()

    async def _learn(self) -> None:
        """Learn the other members, so that they can be asked when a node dies."""
        assert self._http is not None
        for url in self._routing.urls:
            try:
                async with (
                    asyncio.timeout(_CONNECT_S),
                    self._http.get(f"{url}/v1/cluster") as answer,
                ):
                    self._routing.learned(await answer.json())
                    return
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError):
                self._routing.failed(url)

    async def facts(self) -> dict[str, Any]:
        """The store as it is now: what was acknowledged before the call is in it."""
        answer: dict[str, Any] = await self.ask("GET", "", NOW)
        return answer

    async def page(self, after: int, until: int) -> bytes:
        """A page of the store behind `after`, from a node that has `until`; encoded."""
        query = {"after": after, "until": until, "min_position": until, "limit": PAGE_EVENTS}
        return await self._ask(
            "GET", "/events", [(name, str(value)) for name, value in query.items()], None, CBOR
        )

    async def ask(
        self, method: str, path: str, query: Query, body: bytes | None = None, media: str = CBOR
    ) -> Any:
        """The decoded answer; None where it is empty."""
        content = await self._ask(method, path, query, body, media)
        return cbor2.loads(content) if content else None

    async def pages(self, path: str, limit: int, query: Query = NOW) -> AsyncIterator[Any]:
        """All pages of a list that goes on behind its `next`."""
        after: Query = []
        while True:
            page = await self.ask("GET", path, [*query, ("limit", str(limit)), *after])
            yield page
            if page["next"] is None:
                return
            after = [("after", str(page["next"]))]

    async def _ask(
        self, method: str, path: str, query: Query, body: bytes | None, media: str
    ) -> bytes:
        """The answer of whichever node gives one. Everything asked here may be repeated."""
        attempts = Attempts(self._timeout_s, self._chance)
        while True:
            url = self._routing.pick(for_append=method == "POST")
            try_s = attempts.try_s()
            try:
                return await self._once(
                    method,
                    exact(f"{url}/v1/stores/{quoted(self.store)}{path}"),
                    [*query, ("timeout_ms", str(max(1, int(try_s * 1000))))],
                    body,
                    media,
                    try_s,
                )
            except (Unavailable, OutcomeUnknown) as error:
                self._routing.failed(url)
                await attempts.failed(error)

    async def _once(
        self, method: str, url: URL, query: Query, body: bytes | None, media: str, try_s: float
    ) -> bytes:
        assert self._http is not None
        headers = {"Accept": CBOR} | ({"Content-Type": media} if body is not None else {})
        try:
            async with (
                asyncio.timeout(try_s + 0.5),  # the node's own answer to a time-out comes first
                self._http.request(method, url, params=query, data=body, headers=headers) as answer,
            ):
                content = await content_of(answer)
                if answer.status < 400:
                    return content
                problem = cbor2.loads(content)
        except aiohttp.ClientConnectorError as error:
            raise Unavailable(f"{url}: {reason_of(error)}") from error
        except (aiohttp.ClientError, TimeoutError, OSError, cbor2.CBORDecodeError) as error:
            kind = Unavailable if body is None else OutcomeUnknown
            raise kind(f"{url}: {reason_of(error)}") from error
        raise of_problem(answer.status, problem)


async def each(
    things: Iterator[T], put: Callable[[T], Awaitable[None]], advance: Callable[[int], None]
) -> None:
    """Put all, a few at a time. Raises what the first of them raises."""
    while batch := await in_thread(lambda: list(islice(things, _UNDER_WAY))):
        for outcome in await asyncio.gather(*map(put, batch), return_exceptions=True):
            if outcome is not None:
                raise outcome
        advance(len(batch))
