"""When followers are told that the commit index has moved."""

from __future__ import annotations

import asyncio

from node.raft.messages import AppendEntries, Message
from tests.raft.harness import Cluster
from tests.raft.virtual_time import simulate


def test_under_load_the_next_entry_tells_it_and_nothing_else_does() -> None:
    async def scenario() -> None:
        cluster = Cluster(3, heartbeat_ms=100)
        cluster.links.delay_s = lambda _: 0.0005
        leader = await cluster.ready()
        empty = 0

        def count(sender: str, receiver: str, message: Message) -> None:
            nonlocal empty
            empty += isinstance(message, AppendEntries) and not message.entries

        cluster.links.watchers.append(count)

        async def appending() -> None:
            for _ in range(400):
                await cluster.append(leader)
                await asyncio.sleep(0.0007)  # the way to the client and back

        # Two closed loops, half a round apart: often there is something that is not told yet.
        one = asyncio.ensure_future(appending())
        await asyncio.sleep(0.0008)
        await appending()
        await one
        assert empty <= 20, "heartbeats, and the end"

    simulate(scenario)


def test_when_nothing_follows_followers_learn_it_within_moments() -> None:
    async def scenario() -> None:
        cluster = Cluster(3, heartbeat_ms=100)
        leader = await cluster.ready()
        for _ in range(5):
            _, index = await cluster.append(leader)
            await asyncio.sleep(0.006)  # twice the moment, and the way there
            assert all(cluster[one].applied_index >= index for one in cluster.followers())

    simulate(scenario)
