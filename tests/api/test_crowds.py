"""Crowds: those at the end of a store are told as one, and nobody waits for who is slow."""

from __future__ import annotations

import asyncio
import socket

import pytest

from node.api import courses, crowds, following
from node.api.courses import FORMS, SSE, Course, Encoded
from node.api.crowds import Crowd, Member
from node.api.limits import ApiLimits
from node.core.filters import Filter
from node.errors import NotReady
from tests.api.fakes import Node, eventually, serving
from tests.api.test_following import NDJSON, follow, places, put


def shared(node: Node) -> following.Following:
    return node.api._metrics._following


def members(node: Node) -> list[int]:
    """The sizes of all crowds."""
    return [len(crowd._members) for crowd in shared(node).crowds._crowds.values()]


@pytest.mark.parametrize("headers", [{}, NDJSON])
async def test_what_all_are_sent_is_made_once(node: Node, headers, monkeypatch):
    looks: list[int] = []
    look = Course.look

    def counted(course: Course, *given):
        looks.append(course.position)
        return look(course, *given)

    async with (
        follow(node, headers=headers) as one,
        follow(node, headers=headers) as two,
        follow(node, headers=headers) as three,
    ):
        for stream in (one, two, three):
            await stream.until("caught_up")
        await eventually(lambda: members(node) == [3])
        monkeypatch.setattr(Course, "look", counted)
        put(node, "a", "b")
        for stream in (one, two, three):
            assert places(await stream.take(2)) == [(1, "event"), (2, "event")]
        assert looks.count(0) == 1
        assert shared(node).events_sent == 6


async def test_each_kind_has_a_crowd_of_its_own(node: Node):
    async with (
        follow(node) as all_events,
        follow(node, "?type=B") as some,
        follow(node, headers=NDJSON) as lines,
    ):
        for stream in (all_events, some, lines):
            await stream.until("caught_up")
        await eventually(lambda: members(node) == [1, 1, 1])
        put(node, "a", event_type="A")
        put(node, "a", event_type="B")
        assert places(await all_events.take(2)) == [(1, "event"), (2, "event")]
        assert places(await some.take(1)) == [(2, "event")]
        assert places(await lines.take(2)) == [(1, "event"), (2, "event")]
    await eventually(lambda: shared(node).crowds._crowds == {})
    assert node.api.arrivals._waiting == {}


async def test_who_speaks_http_1_0_is_not_sent_chunks(node: Node):
    async with follow(node) as other:
        await other.until("caught_up")
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(b"GET /v1/stores/main/subscribe HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(5):
            await reader.readuntil(b'event: caught_up\ndata: {"position":0}\n\n')
            await eventually(lambda: members(node) == [1, 1])
            put(node, "a")
            assert await reader.readuntil(b"\n") == b"id: 1\n"
        assert places(await other.take(1)) == [(1, "event")]
        writer.close()


async def test_a_newcomer_is_not_told_again_what_it_knows_already(node: Node, monkeypatch):
    async with follow(node) as first:
        await first.until("caught_up")
        monkeypatch.setattr(following, "_REST_S", 0.3)
        put(node, "a")
        await first.until("event")  # and now the crowd rests
        put(node, "b")
        async with follow(node) as second:
            assert places(await second.take(3)) == [(1, "event"), (2, "event"), (2, "caught_up")]
            put(node, "c")
            assert places(await second.take(1)) == [(3, "event")]
            assert places(await first.take(2)) == [(2, "event"), (3, "event")]


@pytest.mark.parametrize("headers", [{}, NDJSON])
async def test_one_that_stands_still_holds_nobody_up_and_comes_back(headers):
    async with (
        serving(stream_buffer_bytes_max=100_000) as node,
        follow(node, headers=headers) as quick,
        follow(node, headers=headers) as slow,
    ):
        await quick.until("caught_up")
        await slow.until("caught_up")
        await eventually(lambda: members(node) == [2])
        slow._reader._transport.pause_reading()
        for position in range(1, 201):
            put(node, "a", data=b"x" * 90_000)
            assert places(await quick.take(1)) == [(position, "event")]
        assert members(node) == [1]
        slow._reader._transport.resume_reading()
        said = [one.id for one in await slow.take(200)]
        assert said == list(range(1, 201))
        await eventually(lambda: members(node) == [2])


async def test_one_of_a_crowd_that_takes_nothing_is_cut_off_with_its_last_word():
    async with (
        serving(
            slow_client_s=0.2, linger_s=5, stream_buffer_bytes_max=100_000, event_bytes_max=100_000
        ) as node,
        follow(node) as slow,
    ):
        await slow.until("caught_up")
        await eventually(lambda: members(node) == [1])
        slow._reader._transport.pause_reading()
        for _ in range(200):
            put(node, "a", data=b"x" * 90_000)
            await asyncio.sleep(0)
        await eventually(lambda: shared(node).slow_consumers == 1)
        slow._reader._transport.resume_reading()
        *events, last = await slow.until("error")
        assert last.data["code"] == "slow_consumer"
        assert last.id == last.data["position"] == len(events) < 200
        assert [one.id for one in events] == list(range(1, len(events) + 1))


async def test_one_that_is_gone_leaves_the_others_alone(node: Node):
    async with follow(node) as stays:
        await stays.until("caught_up")
        leaves = socket.create_connection(("127.0.0.1", node.port))
        leaves.sendall(b"GET /v1/stores/main/subscribe HTTP/1.1\r\nHost: n\r\n\r\n")
        await eventually(lambda: members(node) == [2])
        leaves.close()
        await eventually(lambda: members(node) == [1] and shared(node).followers == 1)
        put(node, "a")
        assert places(await stays.take(1)) == [(1, "event")]


async def test_a_newcomer_hears_of_a_checkpoint_no_later_than_by_itself(node: Node, monkeypatch):
    monkeypatch.setattr(courses, "_CHECKPOINT_POSITIONS", 10)
    async with follow(node, "?type=B") as first:
        await first.until("caught_up")
        put(node, *["a"] * 9)
        async with follow(node, "?type=B&after=0") as second:
            await second.until("caught_up")
            await eventually(lambda: members(node) == [2])
            put(node, "a")
            assert places(await first.take(1)) == places(await second.take(1))


class FullAfter:
    """An outflow with room for so many parts."""

    chunked = False

    def __init__(self, parts: int) -> None:
        self.taken: list[bytes] = []
        self._parts = parts

    def put(self, framed: bytes) -> bool:
        self.taken.append(framed)
        return len(self.taken) < self._parts


class Apart:
    """A crowd that is looked at step by step."""

    def __init__(self, node: Node) -> None:
        self.store = node.state.stores["main"]
        self.course = Course(Encoded(FORMS[SSE]), ApiLimits(), Filter(), self.store.position, 0.0)
        self.course.is_behind = False
        self.crowd = Crowd(shared(node), self.store, self.course, False)

    def join(self, parts: int) -> tuple[Member, FullAfter]:
        outflow = FullAfter(parts)
        return self.crowd.join(self.course, outflow, self.store.position), outflow


@pytest.mark.parametrize(
    ("parts", "sent", "is_behind"), [(1, 3, True), (2, 6, True), (3, 8, True), (4, 8, False)]
)
async def test_who_is_slow_hears_that_it_has_caught_up_if_the_crowd_was_to_hear_it(
    node: Node, monkeypatch, parts, sent, is_behind
):
    monkeypatch.setattr(courses, "_BATCH_EVENTS", 3)
    monkeypatch.setattr(courses, "_PIECE_BYTES", 10_000)
    apart = Apart(node)
    member, outflow = apart.join(parts)
    other, heard = apart.join(100)
    put(node, *"abcdefg", data=b"x" * 100)
    put(node, "h", data=b"x" * 10_000)
    for _ in range(3):
        await apart.crowd._look()
    assert member.left.done() and member.sent == sent
    assert member.is_behind == is_behind
    assert not other.left.done()
    assert heard.taken[-1].startswith(b"id: 8\nevent: caught_up\n")
    assert heard.taken[:parts] == outflow.taken


async def test_a_crowd_ends_for_all_of_its_members_at_once(node: Node):
    apart = Apart(node)
    joined = [apart.join(100)[0] for _ in range(3)]
    apart.crowd.dismiss(NotReady("it stops"))
    for member in joined:
        with pytest.raises(NotReady):
            await member.left
    apart.crowd.leave(joined[0])  # once more, as whoever waited does
    async with asyncio.timeout(1):
        await apart.crowd.run()
    assert node.api.arrivals._waiting == {}


async def test_many_members_are_told_in_slices(node: Node, monkeypatch):
    monkeypatch.setattr(crowds, "_SLICE_MEMBERS", 2)
    apart = Apart(node)
    joined = [apart.join(100) for _ in range(5)]
    put(node, "a")
    await apart.crowd._look()
    assert all(len(outflow.taken) == 1 and member.sent == 1 for member, outflow in joined)
