"""How a client asks: of any node, again where that is safe, until there is an answer or no time.

What a client does (`client`, `client_snapshots`, `client_subscriptions`) stands on `_ask`, and on
`_read`, which asks each node for at least what this client was told before, so that it never misses
what it did itself. That holds within a lineage (`client_lineage`): in another one it has done
nothing yet.

A request may go over a `Line`, so that who no longer waits can hang up, and still hear what the
node has said by then; or learn whether anything was sent that may be stored.
"""

from __future__ import annotations

import asyncio
import io
import random
from contextlib import suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NoReturn, Self
from weakref import WeakSet

import aiohttp
import msgspec
from yarl import URL

from cluster.access import content_of, reason_of
from cluster.client_answers import found_in, lost, problem_of, refusal
from cluster.client_errors import ClientError, OutcomeUnknown, Unavailable
from cluster.client_lineage import Lineage
from cluster.client_routing import Routing
from cluster.client_values import exact, quoted

CONNECT_S = 2.0

_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.02, 1.0
_TRY_MIN_S = 1.0
_TRY_MAX_S = 300.0  # a node refuses to wait longer
_BYTES_AT_ONCE_MAX = 2**20


class Line:
    """The connection of one request, for who may have to end it before its answer is there."""

    def __init__(self) -> None:
        self.connection: aiohttp.connector.Connection | None = None
        self._perhaps_stored = False  # by a try that is over

    @property
    def perhaps_stored(self) -> bool:
        """Whether the change that is asked for may be stored, if nothing more is heard of it."""
        return self._perhaps_stored or self.connection is not None

    def try_is_over(self, perhaps_stored: bool) -> None:
        """The last try has come to this, or none was made; the next may find no connection."""
        self.connection = None
        self._perhaps_stored = perhaps_stored

    def use(self) -> None:
        """The next request of this task goes over this line."""
        _line.set(self)

    def hang_up(self) -> bool:
        """Say to the node that nothing more is coming; it ends the connection, and an answer that
        was on its way comes before that. Whether there is such an end to wait for."""
        if self.connection is None:
            return False
        transport, protocol = self.connection.transport, self.connection.protocol
        if transport is None or protocol is None:
            return True  # all of the answer is there
        protocol.force_close()  # nobody else speaks on it
        if transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()
        return True


_line: ContextVar[Line | None] = ContextVar("_line", default=None)


class _Connector(aiohttp.TCPConnector):
    """Notes in the line of a task which connection its request got."""

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # aiohttp's
    ) -> aiohttp.connector.Connection:
        connection = await super().connect(req, traces, timeout)
        line = _line.get()
        if line is not None and req.method != "GET":  # as a look for the leader is
            line.connection = connection
        return connection


class Attempts:
    """How long one call goes on trying, and what is known after each try."""

    def __init__(self, timeout_s: float, chance: random.Random) -> None:
        self.perhaps_stored = False
        self._until = asyncio.get_running_loop().time() + timeout_s
        self._chance = chance
        self._pause_s = _PAUSE_FIRST_S
        self._answered = ""

    def try_s(self) -> float:
        """How long the next try may take, in seconds; at least a little, so that one is made.

        It is half of what is left, so that a node that says nothing, because it is frozen or
        behind a broken network, leaves time to ask another; and no more than a node may wait.
        """
        left_s = self._until - asyncio.get_running_loop().time()
        return max(0.05, min(left_s, max(_TRY_MIN_S, left_s / 2), _TRY_MAX_S))

    async def failed(self, error: ClientError) -> None:
        """Pause before the next try. Raises the error that tells how it stands if time is over."""
        self.perhaps_stored = self.perhaps_stored or error.stored
        if error.code:
            self._answered = error.detail
        pause_s = self._pause_s * (0.5 + self._chance.random())
        if asyncio.get_running_loop().time() + pause_s >= self._until:
            self.end(error)
        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
        await asyncio.sleep(pause_s)

    def end(self, error: ClientError) -> NoReturn:
        """Raise the error that tells how it stands after `error`, as there is no further try."""
        self.perhaps_stored = self.perhaps_stored or error.stored
        if self._answered and not error.code:  # says more than that this node is away
            error.detail += f"; another node said: {self._answered}"
        if self.perhaps_stored:
            raise OutcomeUnknown(error.detail, "outcome_unknown", error.fields) from error
        raise error


class Asking:
    """The nodes, the connections to them, and what was seen; see `client.Client`.

    `seen_index` is the greatest Raft index that an answer to a change told of, in this lineage.
    """

    def __init__(
        self,
        *nodes: str,
        store: str = "my_store",
        timeout_s: float = 15.0,
        chance: random.Random | None = None,
    ) -> None:
        self.store = store
        self.seen_index = 0
        self._routing = Routing(nodes or ("127.0.0.1:8101",))
        self._lineage = Lineage()
        self._timeout_s = timeout_s
        self._chance = chance or random.Random()
        self._http: aiohttp.ClientSession | None = None
        self._answers: WeakSet[aiohttp.ClientResponse] = WeakSet()  # those that are being read

    async def __aenter__(self) -> Self:
        if self.is_open:
            raise RuntimeError("the client is in a context already")
        bounds = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
        self._http = aiohttp.ClientSession(
            timeout=bounds, connector=_Connector(limit=0), read_bufsize=2**18
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        session, self._http = self._http, None  # from now on nobody tries again
        # aiohttp closes connections without a word to who reads from them.
        for answer in list(self._answers):
            answer.close()
        if session is not None:
            await session.close()

    @property
    def lineage(self) -> str | None:
        """The lineage of the cluster, as far as a node has told it; see `client_lineage`."""
        return self._lineage.name

    @property
    def is_open(self) -> bool:
        """Whether the client is in its context."""
        return self._http is not None

    async def _ask(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]],
        body: Any = None,
        *,
        as_seen: bool = False,
    ) -> Any:
        """The answer, from whichever node gives it; retried while that is safe and there is time.

        Everything that is asked may be repeated: appends are known by their event ids, a snapshot
        that is recorded again replaces itself, and a delivery is settled once. Who leaves the
        client meanwhile ends the tries, as the end of the time does. With `as_seen`, each node is
        asked for at least what this client has seen.
        """
        self._check_open()
        attempts, loop = Attempts(self._timeout_s, self._chance), asyncio.get_running_loop()
        line = _line.get() or Line()
        line.try_is_over(perhaps_stored=False)
        while True:
            url = await self._node(method != "GET", attempts.try_s() / 2)
            began = loop.time()
            asked = [*query, ("min_index", str(self.seen_index))] if as_seen else query
            try:
                return await self._once(method, url, path, asked, body, attempts.try_s())
            except (Unavailable, OutcomeUnknown) as error:
                line.try_is_over(attempts.perhaps_stored or error.stored)
                self._routing.failed(url, loop.time() - began)
                if error.code == "read_barrier_timeout":  # is that index of this lineage at all?
                    await self._look(url, CONNECT_S)
                if self.is_open:
                    await attempts.failed(error)
                if not self.is_open:
                    attempts.end(error)
            except ClientError as error:
                error.stored = error.stored or attempts.perhaps_stored
                raise

    async def _read(self, path: str, query: list[tuple[str, str]]) -> Any:
        return await self._ask("GET", path, query, as_seen=True)

    async def _once(
        self,
        method: str,
        url: str,
        path: str,
        query: list[tuple[str, str]],
        body: Any,
        try_s: float,
        wait_s: float = 0.0,
    ) -> Any:
        """What one node answers, within `try_s`; after `wait_s` if it was asked to wait."""
        encoded = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"} if encoded else None
        query = [*query, ("timeout_ms", str(max(1, int(try_s * 1000))))]
        bounds = aiohttp.ClientTimeout(total=None, sock_connect=min(CONNECT_S, try_s))
        try:
            async with (
                # The node's own answer to a time-out comes first.
                asyncio.timeout(wait_s + try_s + 0.5),
                self._session.request(
                    method,
                    self._url(url, path),
                    params=query,
                    data=None if encoded is None else _payload(encoded),
                    headers=headers,
                    timeout=bounds,
                    allow_redirects=method == "GET",  # of another it would make a GET
                ) as answer,
            ):
                self._answers.add(answer)
                content = await content_of(answer)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            # aiohttp has sent a PUT or DELETE before, if that was on a connection that broke.
            kind = OutcomeUnknown if method in ("PUT", "DELETE") else Unavailable
            raise kind(f"{url}: {reason_of(error)}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise lost(method)(f"{url}: {reason_of(error)}") from error
        if answer.status >= 300:
            raise refusal(method, answer.status, problem_of(answer, content))
        found = found_in(method, url, content)
        if method != "GET":  # an answer that names no index tells how far the node has applied
            applied = int(answer.headers.get("X-Applied-Index", 0))
            self.seen_index = max(self.seen_index, found.get("raft_index", applied))
        return found

    async def _node(self, for_change: bool, look_s: float) -> str:
        if for_change and self._routing.stale:
            await self._look(self._routing.pick(for_append=False), min(CONNECT_S, look_s))
        return self._routing.pick(for_change)

    async def _look(self, url: str, within_s: float) -> None:
        """Learn what a node knows of the cluster, if it answers within this time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._learn(url, within_s)
        except Unavailable:
            self._routing.failed(url, loop.time() - began)

    async def _learn(self, url: str, within_s: float) -> str | None:
        """Have a node tell who belongs to the cluster, who leads it, and its lineage, which is
        returned; None if something answers that tells none. Raises `Unavailable`."""
        cluster = await self._cluster(url, within_s)
        try:
            if self._lineage.met(cluster):
                self.seen_index = 0
        except Unavailable as error:
            raise Unavailable(f"{url}: {error}") from error
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            self._routing.learned(cluster)
        return self.lineage if "lineage" in cluster else None

    async def _cluster(self, url: str, within_s: float) -> dict[str, Any]:
        try:
            async with (
                asyncio.timeout(within_s),
                self._session.get(f"{url}/v1/cluster") as answer,
            ):
                status, content = answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{url}: {reason_of(error)}") from error
        if status >= 500:
            raise Unavailable(f"{url}: HTTP status {status}")
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(content, type=dict[str, Any])
        return {}

    def _url(self, node: str, path: str) -> URL:
        return exact(f"{node}/v1/stores/{quoted(self.store)}{path}")

    def _check_open(self) -> None:
        if not self.is_open:
            raise RuntimeError("use the client in an `async with` block")

    @property
    def _session(self) -> aiohttp.ClientSession:
        """For what was begun in the context, and may go on behind its end."""
        if self._http is None:
            raise Unavailable("the client was left")
        return self._http


def _payload(encoded: bytes) -> bytes | aiohttp.Payload:
    """A body as aiohttp wants it, which warns of many bytes that are written at once.

    As a payload, and not as a file, it is whole again where aiohttp sends it again.
    """
    if len(encoded) <= _BYTES_AT_ONCE_MAX:
        return encoded
    return aiohttp.BytesIOPayload(io.BytesIO(encoded), content_type="application/json")
