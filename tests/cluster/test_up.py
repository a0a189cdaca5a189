"""`scripts/cluster`: what a person sees from the start to the end, with fake nodes behind it."""

import asyncio
import io
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rich.console import Console

from cluster import up
from cluster.supervisor import NodeProcess
from cluster.topology import Topology, local

MakeTopology = Callable[..., Topology]
WAIT_S = 60


class Screen(io.StringIO):
    """What a person sees, who can wait for words to appear."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = asyncio.Event()

    def write(self, text: str) -> int:
        self._changed.set()
        return super().write(text)

    async def shows(self, words: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while words not in self.getvalue():
                self._changed.clear()
                await self._changed.wait()


class Running:
    """A cluster in the foreground, which is this process's."""

    def __init__(self, topology: Topology, **settings: bool) -> None:
        self.screen = Screen()
        console = Console(file=self.screen, width=200)
        self.up = up.Up(topology, "my_store", restart_s=0.01, console=console, **settings)
        self.task = asyncio.create_task(self.up.run())

    def node(self, name: str) -> NodeProcess:
        return self.up._supervisor[name]

    async def end(self) -> int:
        async with asyncio.timeout(WAIT_S):
            return await self.task


@asynccontextmanager
async def running(topology: Topology, **settings: bool) -> AsyncIterator[Running]:
    run = Running(topology, **settings)
    try:
        await run.screen.shows("The cluster is ready")
        yield run
    finally:
        await run.up._supervisor.kill()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().remove_signal_handler(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_all_nodes_cleanly(
    fake_topology: MakeTopology, number: signal.Signals
) -> None:
    async with running(fake_topology()) as run:
        os.kill(os.getpid(), number)
        assert await run.end() == 0
    assert "Stopping n1, n2, n3" in run.screen.getvalue()
    assert "All stopped cleanly" in run.screen.getvalue()


async def test_the_banner_says_where_the_nodes_are_and_what_to_try(
    fake_topology: MakeTopology,
) -> None:
    topology = fake_topology()
    text = up.banner(topology, "my_store")
    assert all(url in text for url in topology.urls)
    assert f"curl {topology.urls[0]}/v1/stores/my_store/streams/greetings/events" in text
    assert f"\n  export EX_ESDB_URL={','.join(topology.urls)}\nCtrl-C" in text, "other ports"
    assert "Then exesdb status and exesdb flush. Ctrl-C" in up.banner(local(3), "s", "exesdb up")
    assert "Then scripts/status and scripts/flush. Ctrl-C" in up.banner(local(3), "s")


async def test_a_node_that_dies_is_reported_and_started_again(fake_topology: MakeTopology) -> None:
    async with running(fake_topology()) as run:
        await run.node("n2").kill()
        await run.screen.shows("n2 was ended by signal SIGKILL. It starts again in 0.01 s.")
        await run.screen.shows("n2 is ready again.")
        assert run.node("n2").running
        os.kill(os.getpid(), signal.SIGTERM)
        assert await run.end() == 0


async def test_a_node_that_dies_may_be_left_dead(fake_topology: MakeTopology) -> None:
    async with running(fake_topology(), restart=False) as run:
        await run.node("n2").kill()
        await run.screen.shows("To start it again:\n  cd ")
        os.kill(os.getpid(), signal.SIGTERM)
        assert await run.end() == 0
    assert "Stopping n1, n3" in run.screen.getvalue()


async def test_an_unclean_stop_is_exit_1(fake_topology: MakeTopology) -> None:
    async with running(fake_topology(1, behave="unclean")) as run:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await run.end() == 1
    assert "n1 ended with exit code 3" in run.screen.getvalue()


async def test_a_second_signal_does_not_wait(fake_topology: MakeTopology) -> None:
    async with running(fake_topology(1, behave="stubborn")) as run:
        os.kill(os.getpid(), signal.SIGINT)
        await run.screen.shows("Stopping n1")
        os.kill(os.getpid(), signal.SIGINT)
        assert await run.end() == 1


async def test_a_node_that_does_not_start_is_exit_1(
    fake_topology: MakeTopology, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Running(fake_topology(2, behave="die"))
    assert await run.end() == 1
    assert "ended with exit code 1 before it was ready" in capsys.readouterr().err


async def test_a_signal_during_the_start_stops_it(fake_topology: MakeTopology) -> None:
    """Also where a node does not even know of signals yet: it has nothing to write."""
    run = Running(fake_topology(1, behave="unready"))
    await run.screen.shows("Starting n1")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await run.end() == 0
    assert not run.node("n1").running
    assert "All stopped cleanly." in run.screen.getvalue()


def test_a_busy_port_is_exit_2_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        far = 1024 if port > 32_000 else 60_000
        code = up.main(["--nodes", "1", "--http-port", str(port), "--raft-port", str(far)])
    assert code == 2
    assert f"port {port}. " in (err := capsys.readouterr().err) and "--http-port" in err


def test_a_data_directory_that_cannot_be_made_is_one_line_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a first run by root."""
    (tmp_path / "data").write_text("in the way")
    ports = ["--http-port", "18391", "--raft-port", "17391"]
    assert up.main(["--data-dir", str(tmp_path / "data"), *ports]) == 1
    assert f"n1 has no data directory: {tmp_path}/data/n1: Not a directory" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("argv", [["--nodes", "0"], ["--http-port", "7102"]])
def test_a_cluster_that_cannot_be_is_exit_64(argv: list[str]) -> None:
    assert up.main(argv) == 64


def test_the_options_reach_every_node(tmp_path: Path) -> None:
    options = ["--nodes", "2", "--data-dir", str(tmp_path), "--store-id", "s",
               "--persistence-interval", "7", "--", "--log-level", "debug"]  # fmt: skip
    expected = "--store-id s --log-format text --persistence-interval 7 --log-level debug"
    for node in up.topology_of(up.parse(options)).nodes:
        assert " ".join(node.argv).endswith(expected)


def test_the_printed_command_line_can_be_typed_anywhere() -> None:
    line = up.command_line(local(1).nodes[0])
    assert line.startswith("cd ") and f"{sys.executable} -m node --node-id n1" in line
