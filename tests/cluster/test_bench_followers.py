"""Followers as the benchmark runs them, against a served API."""

from __future__ import annotations

import asyncio

import pytest

from cluster.bench import followers
from cluster.bench.followers import Chunk, Follower
from cluster.client import Client, Event
from tests.api.fakes import Node, serving


@pytest.fixture
async def node():
    async with serving() as made:
        yield made


def url(node: Node) -> str:
    return f"http://127.0.0.1:{node.port}"


async def test_catching_up_counts_every_event_once(node: Node):
    async with Client(url(node), store="main") as client:
        await client.append(
            "s", [Event("T", {"text": "id: 7\nevent: event\n"}) for _ in range(700)]
        )
    assert (await followers.catch_up(url(node), "main"))["events"] == 700


async def test_all_followers_hear_of_all_appends(node: Node, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(followers, "WARM_UP_S", 0.05)
    found = await followers.fan_out(url(node), "main", url(node), 5, rate=300, seconds=0.3)
    assert found["delivered"] == 5 * found["events"] > 0
    assert 0 <= found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert node.state.stores["main"].position > found["events"]  # the warm-up does not count


async def test_events_are_found_wherever_the_socket_cuts_them():
    chunks: list[Chunk] = []
    said = b"".join(b'id: %d\nevent: event\ndata: {"n":1}\n\n' % n for n in range(1, 40))
    said += b": hb\n\nid: 39\nevent: caught_up\ndata: {}\n\n"
    for size in (1, 7, 64, len(said)):
        follower = Follower(0, chunks.append)
        chunks.clear()
        for start in range(0, len(said), size):
            follower.data_received(said[start : start + size])
        assert sum(chunk.events for chunk in chunks) == follower.last == 39
        assert follower.caught_up.done()


async def test_a_gap_and_an_end_are_failures():
    gap = Follower(5, lambda _: None)
    gap.data_received(b"id: 7\nevent: event\ndata: {}\n\n")
    ended = Follower(5, lambda _: None)
    ended.data_received(b"id: 5\nevent: error\ndata: {}\n\n")
    lost = Follower(5, lambda _: None)
    lost.connection_lost(None)
    for follower in (gap, ended, lost):
        with pytest.raises(RuntimeError):
            async with asyncio.timeout(1):
                await follower.caught_up
