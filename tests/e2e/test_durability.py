"""What a cluster of real processes keeps when they are killed, stopped, or out of disk."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster.supervisor import STOP_S
from cluster.topology import Topology
from tests.e2e.client import STORE, Client
from tests.e2e.conftest import Cluster

pytestmark = pytest.mark.e2e


async def test_all_flushed_events_survive_kill_9_of_every_node(cluster: Cluster) -> None:
    for node_id, client in cluster.clients.items():
        for number in range(20):
            assert (await client.append(f"from-{node_id}", f"{number}")).status == 201
    before = await cluster.any.events(min_position=60)
    await cluster.any.flush()

    await cluster.supervisor.kill()
    await cluster.supervisor.start()

    assert len(before) == 60
    for client in cluster.clients.values():
        assert await client.events(min_position=60) == before


async def test_sigterm_under_load_exits_0_and_keeps_every_acknowledged_event(
    cluster: Cluster,
) -> None:
    acknowledged: dict[tuple[str, int], str] = {}
    busy = asyncio.Event()

    async def write(client: Client, stream: str) -> None:
        """Append one event after the other until the node takes no more.

        A busy machine may elect a leader at any time: as long as all are to run, a refusal ends
        nobody, else nobody is left to write what the test waits for.
        """
        for label in map(str, itertools.count()):
            try:
                answer = await client.append(stream, label)
            except aiohttp.ClientError:
                return
            if answer.status != 201:
                if busy.is_set():
                    return
                await asyncio.sleep(0.05)
                continue
            acknowledged[stream, answer.body["first_version"]] = label
            if len(acknowledged) >= 300:
                busy.set()

    async with asyncio.TaskGroup() as writers:
        for client, number in itertools.product(cluster.clients.values(), range(4)):
            writers.create_task(write(client, f"stream-{client.address[-5:]}-{number}"))
        async with asyncio.timeout(60):
            await busy.wait()
        exit_codes = await cluster.supervisor.stop()

    assert set(exit_codes.values()) == {0}, exit_codes
    await cluster.supervisor.start()
    for client in cluster.clients.values():
        found = {
            (event["event_stream_id"], event["event_number"]): event["data"]
            for event in await client.events(min_position=len(acknowledged))
        }
        assert acknowledged.items() <= found.items()


async def test_an_interrupt_stops_a_node_as_sigterm_does(cluster: Cluster) -> None:
    assert (await cluster.clients["n2"].append("s", "before")).status == 201
    node = cluster.supervisor["n2"]
    node._signal(signal.SIGINT)
    async with asyncio.timeout(STOP_S):
        assert await node.wait_exit() == 0


async def test_a_node_whose_directory_was_wiped_is_filled_by_the_others(
    cluster: Cluster, layout: Topology
) -> None:
    for number in range(30):
        assert (await cluster.any.append("s", f"{number}")).status == 201
    await cluster.supervisor["n2"].kill()
    shutil.rmtree(layout.node("n2").data_dir)

    await cluster.supervisor["n2"].start()
    await cluster.supervisor["n2"].wait_ready()

    assert len(await cluster.clients["n2"].events(min_position=30)) == 30


@pytest.fixture
def small_disk(layout: Topology) -> Iterator[Path]:
    """The data directory of n3 on a disk of 8 MiB. Starts before the cluster does."""
    directory = layout.node("n3").data_dir
    directory.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk cannot be mounted here: {error}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True, timeout=10)


async def test_a_full_disk_delays_no_append_is_reported_and_heals_by_itself(
    small_disk: Path, cluster: Cluster
) -> None:
    troubled = cluster.clients["n3"]
    ballast = small_disk / "ballast"
    fill_up(ballast)

    labels = [f"{number:04d}" + "x" * 5_000 for number in range(100)]
    for label, client in zip(labels, itertools.cycle(cluster.clients.values()), strict=False):
        assert (await client.append("stream", label)).status == 201
    failing = await persistence_of(troubled, lambda store: store["last_error"] is not None)
    assert failing["pending_events"] > 0
    assert (await troubled.append("stream", "while the disk is full")).status == 201

    ballast.unlink()
    healed = await persistence_of(troubled, lambda store: store["persisted_position"] == 101)
    assert healed["pending_events"] == 0


def fill_up(ballast: Path) -> None:
    """Write until nothing more fits."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


async def persistence_of(
    client: Client, condition: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """What the node says of the store's persistence, once the condition holds; bounded.

    After five failures a node tries its disk again every 30 s only, which a slow test may see.
    """
    async with asyncio.timeout(60):
        while True:
            answer = await client.request("GET", "/v1/persistence")
            store: dict[str, Any] = answer.body["stores"][STORE]
            if condition(store):
                return store
            await asyncio.sleep(0.05)
