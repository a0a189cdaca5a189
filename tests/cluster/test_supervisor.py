"""Real processes, started, stopped and killed; the program behind them is a fake node."""

import asyncio
import os
import select
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import supervisor
from cluster.supervisor import NodeFailed, PortBusy, Supervisor
from cluster.topology import Topology

MakeTopology = Callable[..., Topology]


async def test_a_cluster_starts_serves_and_stops_cleanly(fake_topology: MakeTopology) -> None:
    cluster = Supervisor(fake_topology())
    await cluster.start(60)
    assert all(process.running and process.pid for process in cluster.nodes.values())
    assert await cluster.stop() == {"n1": 0, "n2": 0, "n3": 0}
    assert not any(process.running for process in cluster.nodes.values())


async def test_leaving_the_context_leaves_nothing_running(fake_topology: MakeTopology) -> None:
    with pytest.raises(RuntimeError, match="a test went wrong"):
        async with Supervisor(fake_topology()) as cluster:
            pids = [process.pid for process in cluster.nodes.values()]
            raise RuntimeError("a test went wrong")
    for pid in pids:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_killed_node_is_seen_and_can_be_started_again(fake_topology: MakeTopology) -> None:
    async with Supervisor(fake_topology()) as cluster:
        before = cluster["n2"].pid
        assert await cluster["n2"].kill() == -signal.SIGKILL
        assert not cluster["n2"].running and cluster["n1"].running
        await cluster["n2"].start()
        await cluster["n2"].wait_ready(60)
        assert cluster["n2"].pid != before


async def test_starting_again_starts_only_who_is_down(fake_topology: MakeTopology) -> None:
    async with Supervisor(fake_topology()) as cluster:
        pids = {name: process.pid for name, process in cluster.nodes.items()}
        await cluster["n3"].stop()
        await cluster.start(60)
        assert cluster["n1"].pid == pids["n1"] and cluster["n3"].pid != pids["n3"]


async def test_a_restart_is_a_stop_and_a_start(fake_topology: MakeTopology) -> None:
    async with Supervisor(fake_topology(1)) as cluster:
        before = cluster["n1"].pid
        await cluster["n1"].restart()
        await cluster["n1"].wait_ready(60)
        assert cluster["n1"].pid != before


async def test_a_node_that_does_not_stop_in_time_is_killed(fake_topology: MakeTopology) -> None:
    async with Supervisor(fake_topology(1, behave="stubborn")) as cluster:
        assert await cluster.stop(timeout_s=0.2) == {"n1": -signal.SIGKILL}


async def test_an_unclean_stop_shows_in_the_exit_code(fake_topology: MakeTopology) -> None:
    async with Supervisor(fake_topology(1, behave="unclean")) as cluster:
        assert await cluster.stop() == {"n1": 3}


async def test_a_node_that_ends_before_it_is_ready_is_reported_with_its_words(
    fake_topology: MakeTopology, tmp_path: Path
) -> None:
    cluster = Supervisor(fake_topology(1, behave="die"), log_dir=tmp_path / "logs")
    with pytest.raises(NodeFailed, match=r"n1 ended with exit code 1.*\n(.*\n)*no reason given"):
        await cluster.start(60)


async def test_a_node_that_is_never_ready_is_not_waited_for_for_ever(
    fake_topology: MakeTopology, tmp_path: Path
) -> None:
    cluster = Supervisor(fake_topology(1, behave="unready"), log_dir=tmp_path)
    try:
        await cluster["n1"].start()
        async with asyncio.timeout(10):
            while "begins" not in (tmp_path / "n1.log").read_text():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        with pytest.raises(NodeFailed, match=r"not ready within 0\.3 s:\nn1 begins"):
            await cluster.start(0.3)
    finally:
        await cluster.kill()


async def test_a_busy_port_is_an_error_before_anything_starts(fake_topology: MakeTopology) -> None:
    topology = fake_topology()
    cluster = Supervisor(topology)
    port = topology.nodes[2].raft_port
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PortBusy, match=str(port)):
        await cluster.start(60)
    assert not any(process.running for process in cluster.nodes.values())


async def test_stopping_what_never_ran_is_nothing(fake_topology: MakeTopology) -> None:
    cluster = Supervisor(fake_topology(1))
    assert await cluster.stop() == {"n1": 0}
    await cluster.kill()


async def test_a_node_cannot_be_started_twice(fake_topology: MakeTopology) -> None:
    async with Supervisor(fake_topology(1)) as cluster:
        with pytest.raises(RuntimeError, match="runs already"):
            await cluster["n1"].start()


ORPHANS = """
import asyncio, sys
from pathlib import Path
from cluster.supervisor import Supervisor
from tests.cluster.conftest import FakeNode
from cluster.topology import local

async def main():
    topology = local(1, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), (), FakeNode)
    async with Supervisor(topology) as cluster:
        print(cluster["n1"].pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv (util-linux)")
async def test_nodes_end_when_their_supervisor_is_killed(
    fake_topology: MakeTopology, tmp_path: Path
) -> None:
    node = fake_topology(1).nodes[0]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ORPHANS, str(tmp_path), str(node.http_port), str(node.raft_port),
        cwd=supervisor.PROJECT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            end = os.pidfd_open(int(await process.stdout.readline()))
    finally:
        process.kill()
        await process.wait()
    try:
        ended, _, _ = await asyncio.to_thread(select.select, [end], [], [], 10)
        assert ended
    finally:
        os.close(end)


def test_an_end_is_told_in_words() -> None:
    assert supervisor.how_it_ended(-9) == "was ended by signal SIGKILL"
    assert supervisor.how_it_ended(2) == "ended with exit code 2"
