"""Our cluster as a measurement sees it: fresh, on free ports, gone with its data afterwards."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from cluster import topology
from cluster.access import request
from cluster.bench import wrk
from cluster.bench.machine import stored_bytes
from cluster.bench.ports import free_ports
from cluster.supervisor import NodeProcess, Supervisor

NODES = 3
STORE = "bench"
DEFAULT_INTERVAL_MS = 5_000
FLUSH_LIMIT_S = 120
ATTEMPTS_MAX = 80
ATTEMPT_PAUSE_S = 0.25
WARM_UP = wrk.Load(connections=64, batch=1, seconds=2)
_SCRAPE = aiohttp.ClientTimeout(total=10)


class Options(NamedTuple):
    """The settings that measurements change; everything else is a node's default."""

    interval_ms: int = DEFAULT_INTERVAL_MS
    persistence: bool = True
    more: tuple[str, ...] = ()

    def argv(self) -> tuple[str, ...]:
        return (
            f"--persistence-interval={self.interval_ms}",
            f"--persistence-enabled={str(self.persistence).lower()}",
            "--log-level=warning",
            *self.more,
        )


class Cluster:
    """Three nodes and what measurements ask of them."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.urls = supervisor.topology.urls

    async def ask(self, method: str, path: str, urls: list[str] | None = None) -> dict[str, Any]:
        """Return the answer of the first of `urls` that has one.

        On a busy machine the cluster may be between two leaders: what may be asked again is.
        Raises RuntimeError with the last refusal.
        """
        for _ in range(ATTEMPTS_MAX):
            reply = await request(method, urls or self.urls, path, timeout_s=FLUSH_LIMIT_S)
            if reply.status in (200, 201):
                return reply.body
            if reply.status not in (207, 503, 504):
                break
            await asyncio.sleep(ATTEMPT_PAUSE_S)
        raise RuntimeError(f"{method} {reply.url}{path}: {reply.status} {reply.body}")

    async def leader(self) -> NodeProcess:
        leader: str = (await self.ask("GET", "/v1/cluster"))["leader"]
        return self.supervisor[leader]

    async def follower(self) -> NodeProcess:
        leader = await self.leader()
        return next(node for node in self.supervisor.nodes.values() if node is not leader)

    async def events(self) -> int:
        return int((await self.ask("GET", f"/v1/stores/{STORE}"))["events"])

    async def flush(self) -> None:
        """Put everything on every node's disk."""
        await self.ask("POST", "/v1/persistence/force?scope=cluster")

    async def flush_one(self, node: NodeProcess) -> float:
        """Flush one node; the milliseconds that it says it took."""
        path = f"/v1/stores/{STORE}/persistence/force?scope=node"
        (report,) = (await self.ask("POST", path, [node.node.url]))["nodes"].values()
        return float(report["duration_ms"])

    async def metrics(self, node: NodeProcess) -> dict[str, float]:
        """Return the node's metrics by their name with labels, as Prometheus reads them."""
        async with (
            aiohttp.ClientSession(timeout=_SCRAPE) as session,
            session.get(f"{node.node.url}/metrics") as response,
        ):
            lines = (await response.text()).splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def disk_bytes(self) -> int:
        """Return the bytes of all nodes' files."""
        return sum(stored_bytes(node.data_dir) for node in self.supervisor.topology.nodes)


@asynccontextmanager
async def running(options: Options | None = None) -> AsyncIterator[Cluster]:
    """Start a cluster with an empty store STORE; stop it and remove its files at the end."""
    ports = free_ports(2 * NODES)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        layout = topology.local(
            NODES,
            Path(directory),
            http_port=ports[0],
            raft_port=ports[NODES],
            options=(options or Options()).argv(),
        )
        async with Supervisor(layout, log_dir=Path(directory) / "logs") as supervisor:
            cluster = Cluster(supervisor)
            await cluster.ask("PUT", f"/v1/stores/{STORE}")
            yield cluster


async def load(node: NodeProcess, what: wrk.Load) -> wrk.Outcome:
    """Run wrk against the node while this process stands aside."""
    return await asyncio.to_thread(wrk.run, node.node.url, STORE, what)


async def warm_up(node: NodeProcess) -> None:
    """Let connections, caches and the processor's clock settle before anything counts."""
    await load(node, WARM_UP)
