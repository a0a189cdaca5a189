"""A real node whose raft port is under fire, beside clients that go on appending."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from node.config.options import loopback_secret
from node.identity import cluster_id
from node.raft.session import HELLO_BYTES_MAX
from tests.e2e.client import STORE, Client
from tests.e2e.conftest import Cluster
from tests.raft.fuzzing import Fuzzer, framed
from tests.raft.wire import Hand

HALF_OPEN = 1_000
FRAMES = 20_000
GROWTH_BYTES_MAX = 64 << 20
SECRET = loopback_secret(STORE).encode()


@pytest.mark.e2e
async def test_fire_on_the_raft_port_slows_no_append_and_fills_no_memory(
    cluster: Cluster, tmp_path: Path
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    fuzzer = Fuzzer(seed)
    node = cluster.supervisor["n1"]
    port, client = node.node.raft_port, cluster.clients["n1"]
    calm = await worst_s(client, lambda: asyncio.sleep(3))
    before = resident_bytes(node.pid)
    term = (await client.request("GET", "/v1/cluster")).body["term"]

    under_fire = {
        "half-open": await worst_s(client, lambda: hold_half_open(port)),
        "noise": await worst_s(client, lambda: in_parallel(5, lambda: noise(port, fuzzer))),
    }
    assert (await client.request("GET", "/v1/cluster")).body["term"] == term
    await cluster.supervisor["n3"].kill()
    await client.append_until_taken("s", "after n3 is gone")
    under_fire["a mad n3"] = await worst_s(client, lambda: mad(port, client, fuzzer))

    grown = resident_bytes(node.pid) - before
    print(f"worst append: {calm * 1000:.0f} ms calm, and under fire", in_ms(under_fire))
    print(f"n1 grew by {grown >> 10} KiB")
    assert max(under_fire.values()) < calm + 1.0
    assert grown < GROWTH_BYTES_MAX
    for log in (tmp_path / "logs").iterdir():
        assert "Traceback" not in log.read_text()


async def worst_s(client: Client, meanwhile: Callable[[], Awaitable[Any]]) -> float:
    """The longest that one append after the other takes until `meanwhile` is over."""
    worst, over = 0.0, asyncio.ensure_future(meanwhile())
    while not over.done():
        started = time.monotonic()
        assert (await client.append("s", "x")).status == 201
        worst = max(worst, time.monotonic() - started)
        await asyncio.sleep(0.005)
    await over
    return worst


async def in_parallel(count: int, work: Callable[[], Awaitable[None]]) -> None:
    await asyncio.gather(*(work() for _ in range(count)))


async def noise(port: int, fuzzer: Fuzzer) -> None:
    """A fifth of the frames, each on a connection of its own."""
    for _ in range(FRAMES // 10):
        async with await Hand.dial(port) as hand:
            hand.raw(fuzzer.noise())


async def hold_half_open(port: int) -> None:
    """A thousand connections that never finish their first frame."""
    hands = []
    for number in range(HALF_OPEN):
        hands.append(await Hand.dial(port))
        hands[-1].raw(framed(bytes(HELLO_BYTES_MAX))[: number % HELLO_BYTES_MAX])
    await asyncio.sleep(1)
    for hand in hands:
        await hand.close()


async def mad(port: int, client: Client, fuzzer: Fuzzer) -> None:
    """A member that proves itself and then makes no sense, in the term of the others."""
    sent = 0
    cluster = cluster_id(["n1", "n2", "n3"])
    while sent < FRAMES:
        seen = (await client.request("GET", "/v1/cluster")).body
        term, index = seen["term"], seen["members"][0]["applied_index"]
        for _ in range(20):
            async with await Hand.dial(port) as hand:
                latest = int(time.time()) + 60
                assert await hand.greet(
                    sender="n3",
                    cluster=cluster,
                    incarnation=latest,
                    standing=[cluster, [], True],  # a new cluster follows the lineage of its name
                )
                hand.say([hand.prove(SECRET)])
                for _ in range(10):
                    hand.frame(fuzzer.message(term, index, term))
                    sent += 1
                await asyncio.sleep(0.001)


def resident_bytes(pid: int | None) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) << 10


def in_ms(seconds: dict[str, float]) -> dict[str, int]:
    return {what: round(spent * 1000) for what, spent in seconds.items()}
