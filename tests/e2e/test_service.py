"""What clients of a cluster of real processes can rely on while all or most of it runs."""

from __future__ import annotations

import asyncio
import pickle
import random

import pytest

from cluster.topology import HOST
from tests.e2e.conftest import Cluster

pytestmark = pytest.mark.e2e


async def test_events_appended_through_every_node_are_read_from_every_node(
    cluster: Cluster,
) -> None:
    for number in range(5):
        for node_id, client in cluster.clients.items():
            answer = await client.append(f"from-{node_id}", f"{number}", f"{number}, too")
            assert answer.status == 201, answer
            assert answer.body["first_version"] == 2 * number

    histories = [await client.events(min_position=30) for client in cluster.clients.values()]

    assert [event["position"] for event in histories[0]] == list(range(1, 31))
    assert all(history == histories[0] for history in histories)


async def test_after_the_leader_is_killed_appends_succeed_through_the_others(
    cluster: Cluster,
) -> None:
    leader = await cluster.leader()
    before = await cluster.clients[leader].append("stream", "before")
    await cluster.supervisor[leader].kill()

    others = [client for node_id, client in cluster.clients.items() if node_id != leader]
    for number, client in enumerate(others, start=1):
        answer = await client.append_until_taken("stream", f"after, {number}")
        assert answer.body["first_version"] == number

    await cluster.supervisor.start()
    assert before.status == 201
    for client in cluster.clients.values():
        labels = [event["data"] for event in await client.events(min_position=3)]
        assert labels == ["before", "after, 1", "after, 2"]


async def test_garbage_on_the_raft_port_is_turned_away_and_disturbs_nobody(
    cluster: Cluster,
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    noise = random.Random(seed)
    port = cluster.supervisor["n1"].node.raft_port
    term = (await cluster.any.request("GET", "/v1/cluster")).body["term"]

    garbage = [
        b"",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x08" + noise.randbytes(8),
        pickle.dumps(("become", "leader")),
        b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n",
        *(noise.randbytes(noise.randrange(1, 200_000)) for _ in range(5)),
    ]
    async with asyncio.TaskGroup() as senders:
        for content in garbage:
            senders.create_task(send_and_hang_up(port, content))
        for number in range(20):
            for client in cluster.clients.values():
                assert (await client.append("stream", f"{number}")).status == 201

    assert len(await cluster.any.events(min_position=60)) == 60
    assert (await cluster.any.request("GET", "/v1/cluster")).body["term"] == term


async def send_and_hang_up(port: int, content: bytes) -> None:
    """Send it and wait, boundedly, for the node to close; a reset is as good as an end."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        async with asyncio.timeout(1):
            writer.write(content)
            await writer.drain()
            while await reader.read(1 << 16):
                pass
    except (ConnectionError, TimeoutError):
        pass
    finally:
        writer.close()
