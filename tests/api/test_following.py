"""Following a store: past joined to present, filters, resuming, slow and leaving clients."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import cbor2
import pytest

from node.api import courses, crowds, following
from node.core import commands
from node.core.frames import ABSENT, encode_frame
from node.core.store import Store
from tests.api.fakes import NOW_US, Node, eventually, serving

NDJSON = {"Accept": "application/x-ndjson"}


class Said(NamedTuple):
    """One thing that a follower was sent."""

    id: int
    event: str
    data: Any


class Stream:
    """A client's end of `subscribe`, in either form."""

    def __init__(self, reader: asyncio.StreamReader, head: bytes) -> None:
        self.head = head
        self.heartbeats = 0
        self._reader = reader
        self._lines = b""
        self.ended = False

    async def next(self) -> Said:
        """The next thing said; `EOFError` at the end."""
        while True:
            block = await self._block()
            if block in (b": hb", b""):
                self.heartbeats += 1
            elif block.startswith(b"{"):
                return Said(**json.loads(block))
            else:
                fields = dict(line.split(b": ", 1) for line in block.split(b"\n"))
                return Said(
                    int(fields[b"id"]), fields[b"event"].decode(), json.loads(fields[b"data"])
                )

    async def take(self, count: int) -> list[Said]:
        return [await self.next() for _ in range(count)]

    async def until(self, event: str) -> list[Said]:
        """All that is said up to and with the first of this kind."""
        said = [await self.next()]
        while said[-1].event != event:
            said.append(await self.next())
        return said

    async def _block(self) -> bytes:
        mark = b"\n" if b"ndjson" in self.head else b"\n\n"
        while mark not in self._lines:
            async with asyncio.timeout(5):
                size = int((await self._reader.readuntil(b"\r\n")).strip() or b"0", 16)
                chunk = await self._reader.readexactly(size + 2)
            if size == 0:
                self.ended = True
                raise EOFError
            self._lines += chunk[:-2]
        block, _, self._lines = self._lines.partition(mark)
        return block


@asynccontextmanager
async def follow(
    node: Node, query: str = "", headers: dict[str, str] | None = None, store: str = "main"
) -> AsyncIterator[Stream]:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port, limit=2**24)
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    target = f"/v1/stores/{store}/subscribe{query}"
    writer.write(f"GET {target} HTTP/1.1\r\nHost: n\r\n{lines}\r\n".encode())
    try:
        yield Stream(reader, await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5))
    finally:
        writer.close()


def put(node: Node, *streams: str, event_type: str = "A", data: bytes = b"") -> None:
    """Append an event to each of these streams."""
    for stream in streams:
        frame = encode_frame(os.urandom(16), event_type, cbor2.dumps(data), ABSENT, "", "")
        node.replica.apply(commands.append("main", NOW_US, stream, commands.ANY, [frame]))


def places(said: list[Said]) -> list[tuple[int, str]]:
    return [(one.id, one.event) for one in said]


@pytest.mark.parametrize("headers", [{}, NDJSON])
async def test_the_past_comes_first_then_caught_up_then_what_is_appended(node: Node, headers):
    put(node, "a", "b")
    async with follow(node, headers=headers) as stream:
        assert places(await stream.take(3)) == [(1, "event"), (2, "event"), (2, "caught_up")]
        put(node, "a")
        (said,) = await stream.take(1)
        assert (said.id, said.event) == (3, "event")
        assert said.data["event_stream_id"] == "a" and said.data["event_number"] == 1
        assert said.data["position"] == 3


async def test_an_empty_store_is_caught_up_with_at_once(node: Node):
    async with follow(node) as stream:
        assert await stream.next() == Said(0, "caught_up", {"position": 0})
        assert b"Content-Type: text/event-stream" in stream.head
        assert b"X-Served-By: n1" in stream.head and b"X-Position: 0" in stream.head


async def test_a_client_goes_on_behind_what_it_saw_last(node: Node):
    put(node, "a", "b", "c")
    async with follow(node, "?after=1") as stream:
        assert places(await stream.until("caught_up"))[0] == (2, "event")
    async with follow(node, "?after=1", {"Last-Event-ID": "2"}) as stream:
        assert places(await stream.until("caught_up")) == [(3, "event"), (3, "caught_up")]
    async with follow(node, "?after=end") as stream:
        assert places(await stream.until("caught_up")) == [(3, "caught_up")]


async def test_a_client_that_is_ahead_of_this_node_waits_until_it_is_reached(node: Node):
    put(node, "a")
    async with follow(node, "?after=3") as stream:
        put(node, "b", "c", "d")
        said = await stream.until("event")
        assert [one.id for one in said if one.event == "event"] == [4]


async def test_filters_show_only_what_matches_and_checkpoints_tell_how_far_was_looked(node: Node):
    put(node, "order-1", "bill-1", "order-2")
    put(node, "order-1", event_type="B")
    async with follow(node, "?stream_prefix=order-&type=A") as stream:
        assert places(await stream.until("caught_up")) == [
            (1, "event"),
            (3, "event"),
            (4, "caught_up"),
        ]
        for _ in range(2 * courses._CHECKPOINT_POSITIONS):
            put(node, "bill-1")
        said = await stream.until("checkpoint")
        assert said[-1].id >= 4 + courses._CHECKPOINT_POSITIONS
        assert said[-1].data == {"position": said[-1].id}


async def test_a_quiet_follower_of_a_filter_is_told_how_far_was_looked_after_a_while(
    node: Node, monkeypatch
):
    monkeypatch.setattr(crowds, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(courses, "_CHECKPOINT_S", 0.05)
    async with follow(node, "?type=B") as stream:
        await stream.until("caught_up")
        put(node, "a")
        assert places(await stream.take(1)) == [(1, "checkpoint")]


async def test_one_stream_is_followed_through_its_own_positions(node: Node):
    put(node, "a", "b", "a", "b", "a")
    async with follow(node, "?stream=a") as stream:
        assert places(await stream.until("caught_up")) == [
            (1, "event"),
            (3, "event"),
            (5, "event"),
            (5, "caught_up"),
        ]
        put(node, "b", "a")
        assert places(await stream.until("event")) == [(7, "event")]


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("?after=x", {}, 400, b"invalid_start_version"),
        ("", {"Last-Event-ID": "-1"}, 400, b"invalid_start_version"),
        ("?stream=%24all", {}, 400, b"invalid_request"),
        ("?nonsense=1", {}, 400, b"invalid_request"),
        ("", {"Accept": "application/json"}, 406, b"not_acceptable"),
    ],
)
async def test_what_cannot_be_followed_is_refused(node: Node, query, headers, status, code):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    heard = await node.talk(
        f"GET /v1/stores/main/subscribe{query} HTTP/1.1\r\nHost: n\r\n{lines}\r\n".encode(),
        until=b"}",
    )
    assert heard.startswith(b"HTTP/1.1 %d " % status) and code in heard


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("*/*", "text/event-stream"),
        ("text/*", "text/event-stream"),
        ("application/*", "application/x-ndjson"),
        ("", "text/event-stream"),
        ("application/x-ndjson, */*", "application/x-ndjson"),
        ("application/x-ndjson, text/event-stream", "application/x-ndjson"),
        ("application/x-ndjson;q=0.5, text/event-stream", "text/event-stream"),
        ("application/x-ndjson;q=0, */*;q=0.1", "text/event-stream"),
        ("text/event-stream;q=0", "application/problem+json"),
    ],
)
async def test_accept_chooses_the_form(node: Node, accept, form):
    target = "/v1/stores/main/subscribe"
    heard = await node.talk(
        f"HEAD {target} HTTP/1.1\r\nHost: n\r\nAccept: {accept}\r\n\r\n".encode(),
        until=b"\r\n\r\n",
    )
    assert f"Content-Type: {form}\r\n".encode() in heard


async def test_an_unknown_store_is_not_followed(node: Node):
    heard = await node.talk(b"GET /v1/stores/x/subscribe HTTP/1.1\r\nHost: n\r\n\r\n", until=b"}")
    assert b" 404 " in heard and b"store_not_found" in heard


def filled(node: Node, *streams: str) -> None:
    """What a fill does: another object with the same events, and more, takes the store's place."""
    old = node.state.stores["main"]
    new = Store(old.name, old.uid, old.created_us)
    for _ in new.copying(old):
        pass
    new.loaded()
    node.state.stores = {**node.state.stores, "main": new}
    put(node, *streams)


async def test_a_store_that_is_filled_while_a_follower_waits_for_room_hides_nothing(
    node: Node, monkeypatch
):
    put(node, "a")
    look, looked, room = following._Follower._look, asyncio.Event(), asyncio.Event()

    async def slow(self, *args):
        await look(self, *args)
        if not looked.is_set():
            looked.set()
            await room.wait()

    async with follow(node) as one:
        await one.until("caught_up")
        monkeypatch.setattr(following._Follower, "_look", slow)
        async with follow(node) as two:
            await asyncio.wait_for(looked.wait(), 5)
            filled(node, "a", "a")
            assert places(await one.take(2)) == [(2, "event"), (3, "event")]
            room.set()
            put(node, "a")
            said = [await two.until("caught_up"), await two.take(3)]
            events = [place for some in said for place, what in places(some) if what == "event"]
            assert events == [1, 2, 3, 4]


async def test_the_last_word_when_the_store_is_deleted(node: Node):
    async with follow(node) as stream:
        await stream.until("caught_up")
        node.replica.apply(commands.delete_store("main"))
        said = await stream.next()
        assert said.event == "error" and said.data["code"] == "store_not_found"
        assert said.data["retry"] is False
        with pytest.raises(EOFError):
            await stream.next()


async def test_the_last_word_when_the_node_stops():
    async with serving() as node:
        put(node, "a")
        async with follow(node) as stream:
            await stream.until("caught_up")
            stopping = asyncio.ensure_future(node.api.stop())
            said = await stream.next()
            assert said.event == "error" and said.data["code"] == "not_ready"
            assert said.data["retry"] is True and said.data["position"] == 1
            with pytest.raises(EOFError):
                await stream.next()
            await asyncio.wait_for(stopping, 5)


async def test_an_event_is_encoded_once_for_all_who_follow_closely(node: Node, monkeypatch):
    encoded = []
    encode = courses.json_event
    monkeypatch.setattr(
        courses, "json_event", lambda record: encoded.append(record.position) or encode(record)
    )
    monkeypatch.setattr(courses, "_CLOSE_POSITIONS", 10)
    monkeypatch.setattr(courses, "_ENCODED_BYTES_MAX", 20 * 400)
    put(node, *["a"] * 100)
    async with follow(node, "?after=90") as close:
        await close.until("caught_up")
        async with follow(node) as far:  # drives out nothing of what is shared
            await far.until("caught_up")
        async with follow(node, "?after=90") as also_close:
            await also_close.until("caught_up")
    assert encoded == [*range(91, 101), *range(1, 91)]


async def test_signs_of_life(node: Node, monkeypatch):
    monkeypatch.setattr(crowds, "HEARTBEAT_S", 0.02)
    async with follow(node) as stream:
        await stream.until("caught_up")
        waiting = asyncio.ensure_future(stream.next())
        await eventually(lambda: stream.heartbeats >= 3)
        put(node, "a")
        assert (await waiting).id == 1


async def test_signs_of_life_come_also_while_the_store_changes_otherwise(node: Node, monkeypatch):
    monkeypatch.setattr(crowds, "HEARTBEAT_S", 0.1)
    async with follow(node) as stream, follow(node, "?after=1000") as ahead:
        waiting = []
        for one in (stream, ahead):
            await one.until("caught_up")
            waiting.append(asyncio.ensure_future(one.next()))
        for position in range(1, 20):
            node.replica.apply(commands.put_checkpoint("main", "c", position))
            await asyncio.sleep(0.05)
        assert stream.heartbeats >= 3
        seen = ahead.heartbeats
        for _ in range(20):
            put(node, "a")
            await asyncio.sleep(0.05)
        assert ahead.heartbeats >= seen + 3
        put(node, *["a"] * 1_000)
        assert [(await one).id for one in waiting] == [1, 1_001]


async def test_beside_a_store_that_moves_nobody_is_left_without_a_sign_for_long(
    node: Node, monkeypatch
):
    """Events that it does not want come all the time: checkpoints tell how far it is."""
    assert crowds.HEARTBEAT_S + courses._CHECKPOINT_S <= 15, "promised, whatever matches"
    monkeypatch.setattr(crowds, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(courses, "_CHECKPOINT_S", 0.1)
    async with follow(node, "?type=Wanted") as stream:
        await stream.until("caught_up")
        for _ in range(40):
            put(node, "a")
            await asyncio.sleep(0.02)
        async with asyncio.timeout(5):  # one may come when nothing moves any more
            assert [one.event for one in await stream.take(3)] == ["checkpoint"] * 3


async def test_a_client_that_leaves_is_forgotten(node: Node):
    shared = node.api._metrics._following
    async with follow(node) as stream:
        await stream.until("caught_up")
        assert shared.followers == 1
    await eventually(lambda: shared.followers == 0)
    assert node.api.arrivals._waiting == {}


async def test_so_many_followers_and_no_more():
    async with serving(followers_max=2) as node:
        async with follow(node) as one, follow(node) as two:
            await one.until("caught_up")
            await two.until("caught_up")
            heard = await node.talk(
                b"GET /v1/stores/main/subscribe HTTP/1.1\r\nHost: n\r\n\r\n", until=b"}"
            )
            assert b" 503 " in heard and b"followers_max" in heard
        await eventually(lambda: node.api._metrics._following.followers == 0)


async def test_a_client_that_does_not_read_is_cut_off_and_holds_little_memory():
    async with serving(
        slow_client_s=0.1, write_s=0.1, stream_buffer_bytes_max=100_000, event_bytes_max=100_000
    ) as node:
        for _ in range(200):
            put(node, "a", data=b"x" * 90_000)
        connection = socket.create_connection(("127.0.0.1", node.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /v1/stores/main/subscribe HTTP/1.1\r\nHost: n\r\n\r\n")
        shared = node.api._metrics._following
        await eventually(lambda: shared.slow_consumers == 1)
        await eventually(lambda: shared.followers == 0)
        connection.close()


async def test_the_last_word_to_a_slow_client_is_what_it_was():
    async with serving(
        slow_client_s=0.2, linger_s=0.05, stream_buffer_bytes_max=100_000, event_bytes_max=100_000
    ) as node:
        for _ in range(200):
            put(node, "a", data=b"x" * 90_000)
        async with follow(node) as stream:
            stream._reader._transport.pause_reading()
            await eventually(lambda: node.api._metrics._following.slow_consumers == 1)
            await asyncio.sleep(0.2)  # it is slow: the last word waits for it
            stream._reader._transport.resume_reading()
            said = await stream.until("error")
            assert said[-1].data["code"] == "slow_consumer"
            # It names the last event that was sent, from which the client can go on.
            assert said[-1].id == said[-1].data["position"]
            assert [one.id for one in said[:-1]] == list(range(1, len(said)))
            assert len(said) - 1 == said[-1].id


async def test_head_asks_for_the_head_alone(node: Node):
    heard = await node.talk(b"HEAD /v1/stores/main/subscribe HTTP/1.1\r\nHost: n\r\n\r\n")
    assert heard.startswith(b"HTTP/1.1 200 ") and heard.endswith(b"\r\n\r\n")


async def test_followers_that_come_and_go_at_random_miss_nothing_and_see_nothing_twice():
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    async with serving() as node:
        appending = asyncio.create_task(_append_for_a_while(node, random.Random(seed + 1)))
        seen = await asyncio.gather(
            *(_resume_again_and_again(node, random.Random(chance.random())) for _ in range(4))
        )
        await appending
    for positions in seen:
        assert positions == list(range(1, 1501))


async def _append_for_a_while(node: Node, chance: random.Random) -> None:
    left = 1_500
    while left:
        count = min(left, chance.choice([1, 1, 2, 50, 300]))
        put(node, *(chance.choice("abc") for _ in range(count)))
        left -= count
        await asyncio.sleep(chance.choice([0, 0, 0.001, 0.005]))


async def _resume_again_and_again(node: Node, chance: random.Random) -> list[int]:
    positions: list[int] = []
    while len(positions) < 1_500:
        last = positions[-1] if positions else 0
        async with follow(node, headers={"Last-Event-ID": str(last)} if last else {}) as stream:
            for _ in range(chance.randint(1, 700)):
                said = await stream.next()
                if said.event == "event":
                    positions.append(said.id)
                if len(positions) == 1_500:
                    break
    return positions
