"""What stands in for the rest of a node in the tests of its API.

`FakeReplica` is a cluster of one in the same process: it applies each command to a real `State` on
the next turn of the event loop, as group commit does. What a cluster can answer beside that (no
leader, an unknown outcome, a lagging node) a test asks for by setting an attribute.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp
import cbor2
import msgspec
from yarl import URL

from node.api.limits import ApiLimits
from node.api.server import ApiServer
from node.core import commands
from node.core.outcomes import Outcome
from node.core.state import State
from node.errors import ExesdbError, PersistenceDisabled, ReadBarrierTimeout

NOW_US = 1_795_464_000_123_456  # 2026-11-23T20:00:00.123456Z

NOBODY = 1
"""A port at which nobody listens. A client that was told an address follows it."""


class Member(NamedTuple):
    id: str
    http_address: str
    raft_address: str
    role: str
    commit_index: int
    applied_index: int
    persisted_index: int
    last_contact_ms: int | None
    voter: bool = True


class Membership(NamedTuple):
    version: int
    voter_ids: frozenset[str]
    learner_id: str | None


class Status(NamedTuple):
    node_id: str
    leader: str | None
    term: int
    members: list[Member]


class FakeReplica:
    """Applies commands at once, unless a test has set one of its attributes."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.peers: list[str] = []
        self.propose_error: ExesdbError | None = None
        self.barrier_error: ExesdbError | None = None
        self.member_error: ExesdbError | None = None
        self.learns = False
        self.reasons: list[str] = []
        self.recovering = False
        self.silent: list[str] = []
        self.barriers: list[str] = []
        self.before_barrier: Callable[[], None] = lambda: None
        self.wait_for_ever = False
        self.http_port = NOBODY
        self._queue: list[tuple[bytes, asyncio.Future[tuple[Outcome, int]]]] = []
        self._moved = asyncio.Event()

    @property
    def applied_index(self) -> int:
        return self.state.applied_index

    def apply(self, command: bytes) -> Outcome:
        (outcome,) = self.state.apply(self.state.applied_index + 1, 1, [command])
        self._moved.set()
        self._moved = asyncio.Event()
        return outcome

    async def propose(self, command: bytes, timeout_ms: int) -> tuple[Outcome, int]:
        if self.propose_error is not None:
            raise self.propose_error
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Outcome, int]] = loop.create_future()
        if not self._queue:
            loop.call_soon(self._flush)
        self._queue.append((command, future))
        return await future

    def _flush(self) -> None:
        queue, self._queue = self._queue, []
        index = self.state.applied_index + 1
        outcomes = self.state.apply(index, 1, [command for command, _ in queue])
        for (_, future), outcome in zip(queue, outcomes, strict=True):
            if not future.done():
                future.set_result((outcome, index))
        self._moved.set()
        self._moved = asyncio.Event()

    async def barrier(self, level: str, timeout_ms: int) -> None:
        self.barriers.append(level)
        if self.barrier_error is not None:
            raise self.barrier_error
        self.before_barrier()

    async def add_member(self, member_id: str, raft_address: str, timeout_ms: int) -> Membership:
        if self.member_error is not None:
            raise self.member_error
        if self.learns:
            return Membership(1, frozenset({"n1"}), member_id)
        return Membership(2, frozenset({"n1", member_id}), None)

    async def remove_member(self, member_id: str, timeout_ms: int) -> Membership:
        if self.member_error is not None:
            raise self.member_error
        return Membership(3, frozenset({"n1"} - {member_id}), None)

    async def wait_applied(self, index: int, timeout_ms: int) -> None:
        await self._until(lambda: self.applied_index >= index, timeout_ms)

    async def wait_position(self, store: str, position: int, timeout_ms: int) -> None:
        await self._until(lambda: self.state.stores[store].position >= position, timeout_ms)

    async def _until(self, holds: Callable[[], bool], timeout_ms: int) -> None:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while not holds():
                    await self._moved.wait()
        except TimeoutError:
            raise ReadBarrierTimeout("not that far") from None

    def status(self) -> Status:
        at = self.applied_index
        own = f"http://127.0.0.1:{self.http_port}"
        members = [Member("n1", own, "127.0.0.1:7101", "leader", at, at, 0, None)]
        peers_url = f"http://127.0.0.1:{NOBODY}"
        members += [
            Member(peer, peers_url, "127.0.0.1:7102", "follower", at, at, 0, 7)
            for peer in self.peers
        ]
        members += [Member(peer, "", "", "unreachable", 0, 0, 0, None) for peer in self.silent]
        return Status("n1", None if self.reasons else "n1", 3, members)

    def not_ready_reasons(self) -> list[str]:
        return self.reasons

    def counters(self) -> dict[str, int]:
        to_peers = {"bytes_sent_to_n-2": 8, "bytes_sent_to_n.2": 9}
        return {"proposals": 5, "bytes-sent": 17, **to_peers}

    async def transfer_leadership(self, to: str | None, timeout_ms: int) -> str:
        return to or "n2"


class Report(NamedTuple):
    persisted_index: int
    persisted_position: int
    bytes: int
    duration_ms: float

    def entry(self) -> Mapping[str, Any]:
        return self._asdict()


class FakeWorker:
    """A worker whose disk is as fast as memory."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.enabled = True
        self.durable: list[int] = []
        self.durable_error: ExesdbError | None = None
        self.backlog_bytes = 11
        self.set_aside = ["stores/main.1.db.damaged-20260101T000000Z"]
        self.persisted_index = 0
        self.requested: list[str] = []
        self.forced: list[tuple[Any, int]] = []
        self.error: ExesdbError | None = None
        self.interval_ms = 5_000

    def request(self, store: str) -> None:
        if isinstance(self.error, PersistenceDisabled):
            raise self.error
        self.requested.append(store)

    async def force(self, stores: Collection[str] | None, index: int, timeout_ms: int) -> Report:
        self.forced.append((stores, index))
        if self.error is not None:
            raise self.error
        self.persisted_index = index
        return Report(index, 1, 100, 1.5)

    def store_status(self, name: str) -> Mapping[str, Any]:
        return {
            "persisted_index": self.persisted_index,
            "oldest_unpersisted_ms": 1_500,
            "totals": {"failures": 3},
        }

    def status(self) -> Mapping[str, Any]:
        stores = {name: self.store_status(name) for name in self._state.stores}
        return {
            "enabled": True,
            "interval_ms": self.interval_ms,
            "breaker": "closed",
            "set_aside": self.set_aside,
            "stores": stores,
        }

    def set_interval(self, interval_ms: int) -> None:
        self.interval_ms = interval_ms


class FakeOverride:
    """Takes every order once."""

    def __init__(self) -> None:
        self.orders: list[Any] = []
        self.error: ExesdbError | None = None

    def report(self) -> Mapping[str, Any]:
        return {
            **{"node_id": "n1", "cluster": "c", "lineage": "zero", "ancestry": [], "founded": True},
            **{"quarantined": None, "recovering": False, "persistent": True, "leader": None},
            **{"term": 3, "last_term": 3, "last_index": 9, "membership_version": 0},
            **{
                "counted": ["n1"],
                "voters": {"n1": "127.0.0.1:7101"},
                "learners": {},
                "reaches": [],
                "positions": {"main": 4},
            },
        }

    async def carry_out(self, order: Any) -> bool:
        if self.error is not None:
            raise self.error
        self.orders.append(order)
        return len(self.orders) == 1


class FakeInfo:
    node_id = "n1"
    version = "0.1.0"

    def config(self) -> Mapping[str, Any]:
        return {"store_id": {"value": "main", "source": "default"}}

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.quarantined: str | None = None

    def lineage(self) -> Mapping[str, Any]:
        known = {"lineage": "zero", "ancestry": [], "founded": True}
        return known | {"quarantined": self.quarantined, "refused": self.refused}


@dataclass
class Answered:
    """An answer with its body decoded."""

    status: int
    body: Any
    headers: Mapping[str, str]
    raw: bytes

    def __post_init__(self) -> None:
        kind = self.headers.get("Content-Type", "")
        if kind.endswith("cbor"):
            self.body = cbor2.loads(self.raw)
        elif kind.endswith("json"):
            self.body = msgspec.json.decode(self.raw)

    @property
    def code(self) -> str:
        return str(self.body["code"])


@dataclass
class Node:
    """A served API with all that is behind it."""

    api: ApiServer
    replica: FakeReplica
    worker: FakeWorker
    override: FakeOverride
    info: FakeInfo
    state: State
    port: int
    session: aiohttp.ClientSession
    peer_results: dict[str, Any] = field(default_factory=dict)

    async def ask(self, method: str, target: str, **kwargs: Any) -> Answered:
        """Send a request exactly as given; the target is not encoded again."""
        url = URL(f"http://127.0.0.1:{self.port}{target}", encoded=True)
        async with self.session.request(method, url, **kwargs) as answer:
            raw = await answer.read()
            return Answered(answer.status, None, answer.headers, raw)

    async def append(self, stream: str, count: int = 1, **event: Any) -> Answered:
        events = [{"event_type": "Happened", "data": {"n": n}, **event} for n in range(count)]
        target = f"/v1/stores/main/streams/{stream}/events"
        return await self.ask("POST", target, json={"events": events})

    async def talk(self, octets: bytes, until: bytes = b"", timeout_s: float = 5) -> bytes:
        """Send raw bytes on a connection of their own; all that comes back until it closes, or
        until `until` was seen."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        heard = b""
        try:
            writer.write(octets)
            async with asyncio.timeout(timeout_s):
                while part := await reader.read(65536):
                    heard += part
                    if until and until in heard:
                        break
        finally:
            writer.close()
        return heard


class Turns:
    """How often the event loop let others have their turn while the block lasted, so far; at its
    end also how long it computed, in all and at most between two of these turns.
    """

    def __init__(self) -> None:
        self.count = 0
        self.took_s = self.longest_s = 0.0

    async def __aenter__(self) -> Turns:
        self._counting = asyncio.create_task(self._run())
        self._since_s = time.process_time()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._counting.cancel()
        self._note()

    async def _run(self) -> None:
        while True:
            self.count += 1
            self._note()
            await asyncio.sleep(0)

    def _note(self) -> None:
        now_s = time.process_time()
        turn_s, self._since_s = now_s - self._since_s, now_s
        self.took_s += turn_s
        self.longest_s = max(self.longest_s, turn_s)


async def eventually(holds: Callable[[], bool], timeout_s: float = 5) -> None:
    """Return when `holds` does; for what happens on a connection, where there is no event."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@asynccontextmanager
async def serving(default_durability: str = "replicated", **limits: Any):
    """A node with the store `main`, answering on a free port."""
    state = State()
    replica = FakeReplica(state)
    worker = FakeWorker(state)
    override = FakeOverride()
    info = FakeInfo()
    peer_results: dict[str, Any] = {}

    async def force_on(
        member_id: str, stores: Collection[str] | None, index: int, timeout_ms: int
    ) -> Mapping[str, Any]:
        result = peer_results[member_id]
        if isinstance(result, BaseException):
            raise result
        return dict(result)

    async def on_disk(index: int, timeout_ms: int) -> None:
        worker.durable.append(index)
        if worker.durable_error is not None:
            raise worker.durable_error

    api = ApiServer(
        replica,
        worker,
        force_on,
        on_disk,
        state,
        info,
        lambda: NOW_US,
        override,
        ApiLimits(**limits),
        default_durability,
    )
    state.on_change = api.arrivals.arrived
    replica.apply(commands.create_store("main", NOW_US))
    port = replica.http_port = await api.start("127.0.0.1", 0)
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        try:
            yield Node(api, replica, worker, override, info, state, port, session, peer_results)
        finally:
            await api.stop()
