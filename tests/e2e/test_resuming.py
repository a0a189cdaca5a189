"""Followers that live through twenty deaths of the leader, and restarts of the other nodes."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from cluster.client import Client, Event, Filter, Recorded
from tests.e2e.conftest import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KILLS = 20
BETWEEN = 20
"""Events that are acknowledged between two deaths, at least."""


class Follower:
    """What one subscription gave, until the last event."""

    def __init__(self, client: Client, wanted: Filter) -> None:
        self.subscription = client.subscribe(0, wanted)
        self.seen: list[Recorded] = []
        self.longest_silence_s = 0.0

    async def follow(self) -> None:
        heard = time.monotonic()
        async for event in self.subscription:
            self.longest_silence_s = max(self.longest_silence_s, time.monotonic() - heard)
            heard = time.monotonic()
            self.seen.append(event)
            if event.type == "End":
                return


async def written(client: Client, stored: list[int], chance: random.Random) -> None:
    """Append without end."""
    while True:
        stream = f"{chance.choice('ab')}-{chance.randrange(5)}"
        events = [Event(chance.choice("XY"), n) for n in range(chance.randint(1, 3))]
        stored.extend((await client.append(stream, events)).positions)


async def test_every_event_comes_once_and_in_order_through_twenty_deaths(cluster: Cluster):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    urls = cluster.supervisor.topology.urls
    stored: list[int] = []
    restarts = 0
    async with Client(*urls, timeout_s=30) as client:
        everything = Follower(client, Filter())
        some = Follower(client, Filter(("X", "End"), "a-"))
        following = [asyncio.create_task(one.follow()) for one in (everything, some)]
        writing = asyncio.create_task(written(client, stored, chance))
        for _ in range(KILLS):
            until = len(stored) + BETWEEN
            async with asyncio.timeout(30):
                while len(stored) < until and not writing.done():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            leader = cluster.supervisor[await cluster.leader()]
            await leader.kill()
            await leader.start()
            await leader.wait_ready()
            if chance.random() < 0.5:
                restarts += 1
                node = chance.choice(list(cluster.supervisor.nodes.values()))
                await node.restart()
                await node.wait_ready()
        writing.cancel()
        await asyncio.wait({writing})
        stored.extend((await client.append("a-end", [Event("End")])).positions)
        async with asyncio.timeout(30):
            await asyncio.gather(*following)
        whole = [event async for event in client.read()]
    for follower in (everything, some):
        print(
            f"{KILLS} leader kills, {restarts} restarts: {len(follower.seen)} events over"
            f" {follower.subscription.connections} connections,"
            f" longest silence {follower.longest_silence_s:.2f} s"
        )
    assert everything.seen == whole
    assert [event.position for event in whole] == list(range(1, len(whole) + 1))
    assert set(stored) <= {event.position for event in whole}
    assert some.seen == [
        event for event in whole if event.type != "Y" and event.stream.startswith("a-")
    ]
