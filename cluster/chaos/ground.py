"""The ground on which it happens: nodes, their disks and links, and who of them is up.

Each node is a process that the others reach through a proxy of ours (`links`). Some cut their Raft
log very short, so that whoever was away for a moment has to be filled. Where mounting is allowed,
each node's directory is a small file system of its own in memory, which can be made full: a tmpfs
takes a new size while it is mounted. Elsewhere no disk is ever full.

The ground knows which ends of a process were asked for. One that was not is a violation, and the
node is started again so that the run goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import combinations, cycle
from pathlib import Path
from typing import Any

import aiohttp

from cluster import topology
from cluster.bench.ports import free_ports
from cluster.chaos.links import Links
from cluster.supervisor import NodeFailed, NodeProcess, Supervisor, how_it_ended
from cluster.topology import Topology

STORE = "my_store"
INTERVAL_MS = 1_000
SHORT_LOG_ENTRIES = 100
DISK_MIB = 4_096
READY_LIMIT_S = 120.0
EXITS_WITHOUT_DISK = (1, 70)
"""How a node ends that cannot begin its files, or cannot make its vote durable."""

_REQUEST = aiohttp.ClientTimeout(total=15)
_COMMAND_LIMIT_S = 10
REPLACE_LIMIT_S = 120.0
_MEMBERS_MS = 5_000
_MEMBERS_AGAIN_S = 0.3
_ADVERTISED = "--raft-advertise-address="
_JOIN = "--join=true"
_RESIZE_TRIES = 5
_ROOM_BYTES = 64 << 10


class Ground:
    """The cluster under test. Made by `open_ground`."""

    def __init__(
        self, supervisor: Supervisor, links: Links, disks: bool, http: aiohttp.ClientSession
    ) -> None:
        self.nodes = supervisor.nodes
        self.links = links
        self.disks = disks
        self.http = http
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self._supervisor = supervisor
        self._awaited: set[int | None] = set()
        self._starting = asyncio.Lock()
        self._full: set[str] = set()
        self._diskless: set[int | None] = set()
        self._paused: set[str] = set()
        self._seen_ready: set[str] = set()
        self._replaced: set[str] = set()
        self._watchers: set[asyncio.Task[None]] = set()
        self._over = False

    @property
    def urls(self) -> dict[str, str]:
        """Where each node's HTTP API is."""
        return {name: process.node.url for name, process in self.nodes.items()}

    @property
    def pids(self) -> dict[str, int | None]:
        """Each node's process number, while it runs."""
        return {name: process.pid for name, process in self.nodes.items()}

    # --- processes ---------------------------------------------------------------------------

    async def start(self, node_id: str) -> None:
        """Start a node and watch it, unless it runs already."""
        async with self._starting:
            process = self.nodes[node_id]
            if process.running:
                return
            self._seen_ready.discard(node_id)
            await process.start()
            self._keep(self._look_after(process, process.pid))

    async def kill(self, node_id: str) -> None:
        """End it with -9; returns when it is gone."""
        self._awaited.add(self.nodes[node_id].pid)
        self._paused.discard(node_id)
        await self.nodes[node_id].kill()
        self.counts["kill -9"] += 1

    async def terminate(self, node_id: str) -> None:
        """Ask it to stop. Anything but exit code 0 is a violation.

        A node that was started a moment ago may not have come so far as to listen to signals; it
        has touched no file then, and the signal ends it.
        """
        self._awaited.add(self.nodes[node_id].pid)
        code = await self.nodes[node_id].stop()
        self.counts["SIGTERM"] += 1
        if code == -signal.SIGTERM:
            self.counts["stopped before it began"] += 1
        elif code != 0:
            self.violations.append(f"{node_id} was asked to stop and {how_it_ended(code)}")

    def pause(self, node_id: str) -> None:
        """Freeze the process."""
        self._paused.add(node_id)
        self.nodes[node_id].pause()

    def resume(self, node_id: str) -> None:
        """Let it go on."""
        self._paused.discard(node_id)
        self.nodes[node_id].resume()

    async def wait_ready(self, node_id: str) -> None:
        """Return when it serves. One that does not within the limit is a violation."""
        try:
            await self.nodes[node_id].wait_ready(READY_LIMIT_S)
        except NodeFailed as failure:
            if self.nodes[node_id].running:
                self.violations.append(str(failure))

    def majority_connected(self) -> bool:
        """Whether a majority is up, has been ready since its start, and can talk to each other.

        While a member is replaced, who counts is only known to the nodes: nothing is expected.
        """
        if self._replaced:
            return False
        able = [
            name
            for name, process in self.nodes.items()
            if process.running and name in self._seen_ready and name not in self._paused
        ]
        needed = len(self.nodes) // 2 + 1
        return any(
            all(self.links.connected(*pair) for pair in combinations(group, 2))
            for group in combinations(able, needed)
        )

    async def _look_after(self, process: NodeProcess, pid: int | None) -> None:
        """One that cannot be watched on is a violation: nobody would see how it ends."""
        try:
            await self._watch(process, pid)
        except Exception as error:
            self.violations.append(f"{process.node.node_id} was not watched to its end: {error!r}")

    async def _watch(self, process: NodeProcess, pid: int | None) -> None:
        """Notice when the node is ready for the first time, and when it ends unasked.

        Which end was asked for is told by the process number: by the time this task looks, the
        node may have been started again.
        """
        name = process.node.node_id
        health = asyncio.create_task(self._notice_ready(process))
        try:
            code = await process.wait_exit()
        finally:
            health.cancel()
        if pid in self._awaited or self._over:
            self._awaited.discard(pid)
            return
        if code in EXITS_WITHOUT_DISK and pid in self._diskless:
            self.counts["ended for want of a disk"] += 1
        else:
            self.violations.append(f"{name} {how_it_ended(code)}, and nobody had asked for it")
        if name not in self._full:
            await self.start(name)

    async def _notice_ready(self, process: NodeProcess) -> None:
        with contextlib.suppress(NodeFailed):
            await process.wait_ready(READY_LIMIT_S)
            self._seen_ready.add(process.node.node_id)

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    # --- members -----------------------------------------------------------------------------

    async def replace(self, node_id: str) -> None:
        """Remove a member, and add it again with an empty disk. Too long is a violation."""
        process = self.nodes[node_id]
        options = process.node.options
        (address,) = (word.partition("=")[2] for word in options if word.startswith(_ADVERTISED))
        self._replaced.add(node_id)
        try:
            async with asyncio.timeout(REPLACE_LIMIT_S):
                await self._change("DELETE", node_id, f"/{node_id}", None, "member_not_found")
                await self.kill(node_id)
                self.wipe(node_id)
                process.node = dataclasses.replace(process.node, options=(*options, _JOIN))
                await self.start(node_id)
                body = {"id": node_id, "raft_address": address}
                await self._change("POST", node_id, "", body, "member_exists")
        except TimeoutError:
            self.violations.append(f"{node_id} was not replaced within {REPLACE_LIMIT_S:g} s")
        finally:
            process.node = dataclasses.replace(process.node, options=options)
            self._replaced.discard(node_id)

    async def _change(self, method: str, node_id: str, path: str, body: object, done: str) -> None:
        """Ask one node after the other until the change was made, or `done` says that it was."""
        others = [name for name in self.nodes if name != node_id]
        for name in cycle(others):
            url = f"{self.urls[name]}/v1/cluster/members{path}?timeout_ms={_MEMBERS_MS}"
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
                async with self.http.request(method, url, json=body, timeout=_REQUEST) as answer:
                    told = await answer.json(content_type=None)
                    if answer.status in (200, 201) or told.get("code") == done:
                        return
            await asyncio.sleep(_MEMBERS_AGAIN_S)

    # --- disks -------------------------------------------------------------------------------

    def directory(self, node_id: str) -> Path:
        """Where the node's files are."""
        return self.nodes[node_id].node.data_dir

    def wipe(self, node_id: str) -> None:
        """Remove all files of a node that is down; the directory itself may be a mount."""
        for entry in self.directory(node_id).iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def fill_disk(self, node_id: str) -> None:
        """Leave no room on the node's disk. A node that has to vote then, or starts, ends."""
        self._full.add(node_id)
        self._diskless.add(self.nodes[node_id].pid)
        _resize(self.directory(node_id), _used_bytes)

    def empty_disk(self, node_id: str) -> None:
        """Give it room again."""
        _resize(self.directory(node_id), lambda _: DISK_MIB << 20)
        self._full.discard(node_id)

    # --- questions ---------------------------------------------------------------------------

    async def ask(self, method: str, node_id: str, path: str, body: object = None) -> Any:
        """The body of a 200 of this node, or None."""
        url = self.urls[node_id] + path
        try:
            async with self.http.request(method, url, json=body, timeout=_REQUEST) as answer:
                return await answer.json(content_type=None) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    async def leader(self) -> str | None:
        """Who leads, as the first node that knows says."""
        for node_id in self.nodes:
            if self.nodes[node_id].running and node_id not in self._paused:
                seen = await self.ask("GET", node_id, "/v1/cluster")
                if seen and seen["leader"]:
                    return str(seen["leader"])
        return None

    async def stop_all(self) -> None:
        """Stop all nodes cleanly, at the same time."""
        self._over = True
        await asyncio.gather(*(self.terminate(node_id) for node_id in self.nodes))

    async def close(self) -> None:
        """End whatever still runs."""
        self._over = True
        await self._supervisor.kill()
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)


@contextlib.asynccontextmanager
async def open_ground(
    count: int, directory: Path, options: Iterable[str] = (), disks: bool = True
) -> AsyncIterator[Ground]:
    """A cluster on free ports, with its files in `directory`, started by nobody yet."""
    ports = free_ports(2 * count)
    layout = topology.local(
        count, directory / "nodes", http_port=ports[0], raft_port=ports[count],
        options=(f"--persistence-interval={INTERVAL_MS}", "--log-format=json", *options),
    )  # fmt: skip
    links = Links({node.node_id: node.raft_port for node in layout.nodes})
    through = _through(layout, await links.start())
    mounted = disks and _mount(through)
    supervisor = Supervisor(through, log_dir=directory / "logs")
    async with aiohttp.ClientSession() as http:
        ground = Ground(supervisor, links, mounted, http)
        try:
            yield ground
        finally:
            await ground.close()
            await links.stop()
            if mounted:
                _unmount(through)


def _through(layout: Topology, addresses: dict[str, str]) -> Topology:
    """The same nodes, known by the addresses of their doors; every other one with a short log."""
    short = f"--log-tail-entries-max={SHORT_LOG_ENTRIES}"
    return Topology(
        tuple(
            dataclasses.replace(
                node,
                peers=tuple(
                    f"{name}={at}" for name, at in addresses.items() if name != node.node_id
                ),
                options=(
                    *node.options,
                    f"{_ADVERTISED}{addresses[node.node_id]}",
                    *([short] if number % 2 == 0 else []),
                ),
            )
            for number, node in enumerate(layout.nodes)
        )
    )


def _mount(layout: Topology) -> bool:
    """Give each node a disk of its own; False where that is not allowed."""
    done = []
    for node in layout.nodes:
        node.data_dir.mkdir(parents=True, exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(node.data_dir)]
        if not _run(words):
            break
        done.append(node)
    if len(done) < len(layout.nodes):
        _unmount(Topology(tuple(done)))
        return False
    return True


def _unmount(layout: Topology) -> None:
    """Take the disks away, with all that is on them."""
    for node in layout.nodes:
        _run(["umount", "--lazy", str(node.data_dir)])


def _resize(directory: Path, size_bytes: Callable[[Path], int]) -> None:
    # Now and then `mount` cannot read the list of mounts, while others are made or taken away; or
    # the node has written more meanwhile than what is to be the whole size. On a busy machine it
    # does so each time, so there is a little more room at each try; it is soon full, too.
    for attempt in range(_RESIZE_TRIES):
        size = size_bytes(directory) + attempt * _ROOM_BYTES
        words = ["mount", "-o", f"remount,size={size}", str(directory)]
        if _run(words):
            return
    raise RuntimeError(f"the disk at {directory} cannot be given another size")


def _used_bytes(directory: Path) -> int:
    at = os.statvfs(directory)
    # A size of 0, as of a disk that was just wiped, means no limit, for ever.
    return max(at.f_blocks - at.f_bfree, 1) * at.f_frsize


def _run(words: list[str]) -> bool:
    try:
        return subprocess.run(words, capture_output=True, timeout=_COMMAND_LIMIT_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
