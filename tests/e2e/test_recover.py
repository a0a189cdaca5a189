"""Members that are gone for good: what an operator does, and what becomes of one that returns."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cluster import recover as tool
from cluster import topology
from cluster.bench.ports import free_ports
from cluster.client import Client as Program
from cluster.client import Event, Recorded
from cluster.client_errors import LineageChanged
from cluster.recover_plan import make
from cluster.supervisor import PROJECT, Supervisor
from cluster.topology import Topology
from tests.e2e.client import Client
from tests.e2e.conftest import Cluster

pytestmark = pytest.mark.e2e

RECOVER_S = 240.0
"""More than the tool itself waits, so that its own words come first."""


async def recover(*argv: str) -> tuple[int, str]:
    """Run the tool as an operator would; its exit code, and all that it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cluster.recover", *argv),
        cwd=PROJECT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(RECOVER_S):
        said, _ = await process.communicate()
    print(said.decode())
    assert process.returncode is not None
    return process.returncode, said.decode()


async def told(client: Client) -> dict[str, Any]:
    """What a node says of the cluster; empty while it restarts."""
    try:
        return (await client.request("GET", "/v1/cluster")).body
    except aiohttp.ClientError:
        return {}


async def until(client: Client, holds: Any, within_s: float = 60) -> dict[str, Any]:
    """What the node says once that is so."""
    async with asyncio.timeout(within_s):
        while True:
            body = await told(client)
            if body and holds(body):
                return body
            await asyncio.sleep(0.05)


async def test_the_last_of_three_goes_on_alone_and_an_old_copy_is_quarantined(
    cluster: Cluster, layout: Topology, tmp_path: Path
) -> None:
    n1, n2 = cluster.clients["n1"], cluster.clients["n2"]
    url = layout.node("n1").url
    for number in range(20):
        assert (await n1.append("stream", f"{number}")).status == 201
    await cluster.any.flush()
    code, said = await recover("--nodes", url, "--missing", "n2,n3", "--yes")
    assert code == 3 and "leads" in said, "not while the cluster works"

    for node_id in ("n2", "n3"):
        await cluster.supervisor[node_id].kill()
    shutil.copytree(layout.node("n2").data_dir, tmp_path / "old copy of n2")
    for node_id in ("n2", "n3"):
        shutil.rmtree(layout.node(node_id).data_dir)
    await until(n1, lambda body: body["leader"] is None)
    refused = await n1.append("stream", "nobody to hold it")
    assert (refused.status, refused.body["code"]) == (503, "no_leader")

    code, said = await recover("--nodes", url, "--missing", "n2", "--yes")
    assert code == 1 and "n3 is a member too" in said
    code, said = await recover("--nodes", url, "--missing", "n2,n3", "--yes")
    assert code == 0, said
    assert [event["data"] for event in await n1.events(20)] == [f"{number}" for number in range(20)]
    assert (await n1.append_until_taken("stream", "alone")).body["first_version"] == 20
    now = await told(n1)
    assert [member["id"] for member in now["members"]] == ["n1"]
    assert now["founded"] and len(now["ancestry"]) == 1

    code, said = await recover("--nodes", url, "--missing", "n2,n3", "--yes")
    assert code == 3 and "n1 leads" in said

    shutil.copytree(tmp_path / "old copy of n2", layout.node("n2").data_dir)
    await cluster.supervisor["n2"].start()
    stranger = await until(n2, lambda body: "its data stand in" in (body["quarantined"] or ""))
    assert stranger["lineage"] == now["lineage"]
    assert "waits to be added as a member" in stranger["quarantined"]
    [aside] = layout.node("n2").data_dir.glob("quarantined-*")
    assert list(aside.glob("stores/*.db")), "kept, not deleted"
    ready = await n2.request("GET", "/health/ready")
    assert ready.status == 503 and "quarantined" in ready.body["detail"]
    assert (await n2.append("stream", "not here")).status == 503
    assert (await told(n1))["leader"] == "n1"
    assert len(await n1.events(21)) == 21

    await cluster.supervisor["n1"].restart()
    await cluster.supervisor["n1"].wait_ready()
    assert (await told(n1))["lineage"] == now["lineage"]
    assert len(await n1.events(21)) == 21


async def test_a_client_that_is_running_notices_and_reads_on(
    cluster: Cluster, layout: Topology
) -> None:
    urls = [layout.node(node_id).url for node_id in ("n1", "n2", "n3")]
    async with Program(*urls, timeout_s=20) as program:
        await program.append("stream", [Event("A", number) for number in range(20)])
        subscription = program.subscribe()

        async def follow() -> list[Recorded]:
            return [event async for event in subscription]

        following = asyncio.create_task(follow())
        async with asyncio.timeout(30):
            while subscription.position < 20:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        before = program.lineage
        for node_id in ("n2", "n3"):
            await cluster.supervisor[node_id].kill()
            shutil.rmtree(layout.node(node_id).data_dir)
        await until(cluster.clients["n1"], lambda body: body["leader"] is None)
        program.seen_index += 1_000_000  # as if the others had known more
        code, said = await recover("--nodes", urls[0], "--missing", "n2,n3", "--yes")
        assert code == 0, said
        async with asyncio.timeout(60):
            assert await program.version("stream") == 19
            with pytest.raises(LineageChanged) as caught:
                await following
        assert caught.value.before == before and caught.value.now == program.lineage != before
        assert (await program.append("stream", [Event("A")])).raft_index == program.seen_index


async def test_killed_in_the_middle_of_it_the_rest_is_done_by_another_run(tmp_path: Path) -> None:
    ports = free_ports(10)
    layout = topology.local(5, tmp_path / "nodes", http_port=ports[0], raft_port=ports[5])
    timeout = aiohttp.ClientTimeout(total=20)
    supervisor = Supervisor(layout, log_dir=tmp_path / "logs")
    async with supervisor, aiohttp.ClientSession(timeout=timeout) as session:
        try:
            await _half_a_recovery(Cluster(supervisor, session))
        finally:
            await supervisor.kill()


async def _half_a_recovery(cluster: Cluster) -> None:
    n1, n2 = cluster.clients["n1"], cluster.clients["n2"]
    missing, urls = ["n3", "n4", "n5"], [n1.address, n2.address]
    for number in range(10):
        await n1.append_until_taken("stream", f"{number}")
    await n2.events(min_position=10)
    for node_id in missing:
        await cluster.supervisor[node_id].kill()
        shutil.rmtree(cluster.supervisor[node_id].node.data_dir)
    for client in (n1, n2):
        await until(client, lambda body: body["leader"] is None)

    reports, silent = await tool.look(urls)
    plan = make(reports, silent, missing)
    assert await tool.order(plan, next(one for one in reports if one.node_id == "n1")) is None
    await cluster.supervisor["n1"].kill()
    await cluster.supervisor["n1"].start()
    alone = await until(n1, lambda body: body["lineage"] == plan.lineage)
    assert "waits for an answer of n2" in alone["waits_for"][0]
    assert (await told(n2))["lineage"] == plan.parent

    code, said = await recover("--nodes", ",".join(urls), "--missing", ",".join(missing), "--yes")
    assert code == 0 and "has the plan " in said
    for client in (n1, n2):
        await until(client, lambda body: not body["waits_for"])
        assert [event["data"] for event in await client.events(10)] == [f"{n}" for n in range(10)]
        assert (await told(client))["lineage"] == plan.lineage
    assert (await n2.append_until_taken("stream", "after")).body["first_version"] == 10

    # A member of the new lineage that loses its disk knows only the founders' one, and comes back.
    await cluster.supervisor["n2"].kill()
    shutil.rmtree(cluster.supervisor["n2"].node.data_dir)
    await cluster.supervisor["n2"].start()
    back = await until(n2, lambda body: body["leader"] and not body["waits_for"])
    assert (back["lineage"], back["quarantined"]) == (plan.lineage, None)
    assert len(await n2.events(min_position=11)) == 11
