"""Supervisor: real node processes, started, watched, stopped, killed and started again.

It treats nodes as an operator would. It gives them a command line, believes them when
`GET /health/ready` says 200, asks them to end with SIGTERM, and kills them with -9 if they do not,
or if a test wants to see what a crash does. It only ever signals processes that it has started,
through the handle that it got for them, so a process number that was used again cannot be hit.

Each node runs in a session of its own: a Ctrl-C on the terminal reaches the supervisor alone,
which then stops the nodes in its own way. Where the machine has `setpriv`, a node also gets a
SIGTERM when its supervisor is killed, so that no orphans keep the ports.

Every wait has a bound. `READY_S` is generous because a node that loads a million events takes its
time; `STOP_S` is more than the longest stop, with a last cycle on a slow disk (see ARCHITECTURE).
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import aiohttp

from cluster.topology import HOST, LocalNode, Topology

PROJECT = Path(__file__).resolve().parent.parent
READY_S = 120.0
STOP_S = 90.0
KILL_S = 10.0

_POLL_S = 0.05
_PROBE = aiohttp.ClientTimeout(total=2.0)
_TAIL_LINES = 15


class NodeFailed(Exception):
    """A node ended, or did not become ready in time. The message says which and shows its words."""


class PortBusy(Exception):
    """Somebody already listens on a port that the cluster needs."""


def claim_ports(ports: Iterable[int]) -> None:
    """Make sure that nobody listens on these ports of loopback. Raises PortBusy, naming all."""
    busy = [port for port in ports if not _free(port)]
    if busy:
        names = ", ".join(map(str, busy))
        raise PortBusy(f"already in use on {HOST}: port {names}")


def _free(port: int) -> bool:
    """Connections that are closing may linger on a port; a listener may not."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


class NodeProcess:
    """One node as a process. `log` collects what it prints; without it, it prints to our stderr."""

    def __init__(self, node: LocalNode, log: Path | None = None) -> None:
        self.node = node
        self.log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Its process number while it runs."""
        return self._process.pid if self._process and self.running else None

    @property
    def running(self) -> bool:
        """Whether the process is there, ready or not."""
        return self._process is not None and self._process.returncode is None

    @property
    def exit_code(self) -> int | None:
        """How it ended: the exit code, minus the signal's number, or None."""
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        """Start the process. It is not ready yet when this returns.

        Raises NodeFailed where its data directory cannot be made.
        """
        if self.running:
            raise RuntimeError(f"{self.node.node_id} runs already")
        try:
            self.node.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            name = f"{self.node.node_id} has no data directory"
            raise NodeFailed(f"{name}: {self.node.data_dir}: {error.strerror}") from error
        with contextlib.ExitStack() as files:
            output = files.enter_context(self._output()) if self.log else None
            self._process = await asyncio.create_subprocess_exec(
                *tied_to_us(), *self.node.argv,
                stdin=asyncio.subprocess.DEVNULL, stdout=output or 2, stderr=output,
                cwd=None, env=environment(), start_new_session=True,
            )  # fmt: skip

    def _output(self) -> IO[bytes]:
        assert self.log is not None
        self.log.parent.mkdir(parents=True, exist_ok=True)
        return self.log.open("ab")

    async def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Return when the node serves clients. Raises NodeFailed if it ends or takes too long."""
        try:
            async with asyncio.timeout(timeout_s), aiohttp.ClientSession(timeout=_PROBE) as http:
                while not await self._ready(http):
                    if not self.running:
                        raise NodeFailed(self._epitaph())
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            text = f"{self.node.node_id} was not ready within {timeout_s:g} s{self._tail()}"
            raise NodeFailed(text) from None

    async def _ready(self, http: aiohttp.ClientSession) -> bool:
        try:
            async with http.get(f"{self.node.url}/health/ready") as answer:
                return answer.status == 200 and self.running
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def stop(self, timeout_s: float = STOP_S) -> int:
        """Ask it to end and return its exit code; past the bound kill it, which gives -9."""
        if self._process is None:
            return 0
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._process.wait()
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """End it at once with -9, as a crash would."""
        if self._process is None:
            return 0
        self._signal(signal.SIGKILL)
        async with asyncio.timeout(KILL_S):
            return await self._process.wait()

    def pause(self) -> None:
        """Freeze it where it stands, as a machine that swaps or a virtual one that moves does."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    async def restart(self, timeout_s: float = STOP_S) -> None:
        """Stop it if it runs, and start it again. Not ready yet when this returns."""
        await self.stop(timeout_s)
        await self.start()

    async def wait_exit(self) -> int:
        """Return its exit code when it ends by whatever cause. Has no bound: a node may run on."""
        assert self._process is not None, "not started"
        return await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _epitaph(self) -> str:
        return (
            f"{self.node.node_id} {how_it_ended(self.exit_code)} before it was ready{self._tail()}"
        )

    def _tail(self) -> str:
        """The last lines of its log, for messages."""
        if self.log is None or not self.log.exists():
            return ""
        with self.log.open(errors="replace") as lines:
            return ":\n" + "".join(deque(lines, _TAIL_LINES))


def how_it_ended(exit_code: int | None) -> str:
    """An exit code in words."""
    if exit_code is not None and exit_code < 0:
        return f"was ended by signal {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"


def tied_to_us() -> tuple[str, ...]:
    """The prefix of a command that ends with us. It replaces itself by the command: same pid."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "TERM", "--") if setpriv else ()


def environment() -> dict[str, str]:
    """With it our programs are found wherever this one was started from."""
    paths = [str(PROJECT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


class Supervisor:
    """A whole local cluster. `async with Supervisor(topology):` starts it and always ends it.

    With `log_dir` each node's output goes to `<log_dir>/<node_id>.log`.
    """

    def __init__(self, topology: Topology, log_dir: Path | None = None) -> None:
        self.topology = topology
        self.nodes = {
            node.node_id: NodeProcess(node, log_dir and log_dir / f"{node.node_id}.log")
            for node in topology.nodes
        }

    async def __aenter__(self) -> "Supervisor":
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def __getitem__(self, node_id: str) -> NodeProcess:
        return self.nodes[node_id]

    async def start(self, timeout_s: float = READY_S) -> None:
        """Start every node that does not run and wait until all are ready.

        Raises PortBusy before anything is started; NodeFailed leaves the others running.
        """
        idle = [process for process in self.nodes.values() if not process.running]
        claim_ports(port for process in idle
                    for port in (process.node.http_port, process.node.raft_port))  # fmt: skip
        for process in idle:
            await process.start()
        await self.wait_ready(timeout_s)

    async def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Return when all nodes are ready. Raises NodeFailed for the first that is not."""
        tasks = [asyncio.create_task(each.wait_ready(timeout_s)) for each in self.nodes.values()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def stop(self, timeout_s: float = STOP_S) -> dict[str, int]:
        """Stop all nodes at the same time; their exit codes by id, -9 where it took a kill."""
        codes = await asyncio.gather(*(each.stop(timeout_s) for each in self.nodes.values()))
        return dict(zip(self.nodes, codes, strict=True))

    async def kill(self) -> None:
        """End all nodes with -9 at the same time, as a power cut would."""
        await asyncio.gather(*(process.kill() for process in self.nodes.values()))
