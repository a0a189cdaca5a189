"""Connections: bounds while reading, slow and strange clients, stopping, the seam to aiohttp."""

from __future__ import annotations

import asyncio
import inspect
import random
import socket
import struct
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp.web_protocol import RequestHandler

from node.api.wire import Connection
from tests.api.fakes import Node, Turns, eventually, serving

EVENTS = "/v1/stores/main/streams/s/events"
POST = b"POST " + EVENTS.encode() + b" HTTP/1.1\r\nHost: n\r\nContent-Type: application/json\r\n"
BODY = b'{"events":[{"event_type":"A"}]}'
WHOLE = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
LIVE = b"GET /health/live HTTP/1.1\r\nHost: n\r\n"


# --- what the wire module relies on beyond aiohttp's public API -----------------------------------


def test_the_seam_to_aiohttp_is_where_it_was():
    """When this fails after an upgrade, read `node/api/wire.py` beside the new aiohttp."""
    assert aiohttp.__version__.startswith("3.14.")
    for method, lines in SEAM.items():
        source = inspect.getsource(getattr(RequestHandler, method))
        for line in lines:
            assert line in source, (method, line)
    assert issubclass(Connection, RequestHandler)


SEAM = {
    "connection_made": ["self.start()", "self._task_handler = task", "self._process_keepalive"],
    "connection_lost": [
        "self._current_request._cancel(exc)",
        "self._parser = None",
        "self._manager = None",
    ],
    "data_received": [
        "self._messages.append((msg, payload))",
        "waiter = self._waiter",
        "waiter.set_result(None)",
        "self._upgraded = upgraded",
        "_ErrInfo(status=400, exc=exc, message=exc.message)",
    ],
    "start": [
        "if not self._messages:",
        "message, payload = self._messages.popleft()",
        "self._parser.message_consumed()",
        "and len(self._messages) <= self._msg_queue_resume_size",
        "self._resume_reading_if_drained()",
        "self._keepalive = bool(resp.keep_alive)",
        "if self._keepalive and not self._close and not self._force_close:",
        "self._next_keepalive_close_time = close_time",
        "if self._keepalive_handle is None:",
        "self._task_handler = None",
    ],
    "_handle_request": [
        "self._request_in_progress = True",
        "self._request_in_progress = False",
        "self._handler_waiter.set_result(None)",
    ],
    "shutdown": ["if self._request_in_progress:", "asyncio.shield(self._task_handler)"],
    "_process_keepalive": ["close_time = self._next_keepalive_close_time", "self._waiter"],
    "eof_received": ["def eof_received(self) -> None:\n        pass\n"],
    "resume_reading": ["self._reading_paused = False"],
    "pause_reading": ["self._reading_paused = True"],
    "pause_writing": ["self._paused = True"],
    "_drain_helper": ["await waiter"],
}


# --- reading --------------------------------------------------------------------------------------


async def test_an_announced_body_over_the_limit_is_refused_before_it_is_sent():
    async with serving(body_bytes_max=1_000, event_bytes_max=500, linger_s=0.05) as node:
        heard = await node.talk(POST + b"Content-Length: 1000001\r\n\r\n", until=b"}")
        assert heard.startswith(b"HTTP/1.1 413 ")
        assert b'"limit":1000' in heard and b'"actual":1000001' in heard
        assert b"Connection: close" in heard


async def test_a_chunked_body_is_cut_off_at_the_limit():
    async with serving(body_bytes_max=100_000, event_bytes_max=500, linger_s=0.05) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
        sent = 0
        try:
            async with asyncio.timeout(10):
                while sent < 200 and not reader.at_eof():
                    writer.write(chunk)
                    await writer.drain()
                    sent += 1
                    if node.api._bodies.arriving_bytes == 0 and sent > 20:
                        break
        except ConnectionError:
            pass
        assert node.api._bodies.arriving_bytes <= 100_000 + 2**19
        heard = await asyncio.wait_for(reader.read(4096), 5)
        assert heard.startswith(b"HTTP/1.1 413 ")
        writer.close()


async def test_a_chunked_body_in_many_pieces_is_an_append(node: Node):
    chunks = b"".join(b"1\r\n%c\r\n" % octet for octet in BODY)
    heard = await node.talk(
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", until=b"}"
    )
    assert heard.startswith(b"HTTP/1.1 201 ")


async def test_a_large_body_in_slow_pieces_is_an_append(node: Node):
    body = BODY[:-3] + b',"data":"' + b"x" * 900_000 + b'"}]}'
    head = POST + b"Content-Length: %d\r\n\r\n" % len(body)
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    for start in range(0, len(body), 100_000):
        writer.write(head + body[start : start + 100_000])
        head = b""
        await writer.drain()
    heard = await asyncio.wait_for(reader.read(4096), 10)
    assert heard.startswith(b"HTTP/1.1 201 ")
    assert node.api._bodies.arriving_bytes == 0
    writer.close()


async def test_a_client_that_asks_before_it_sends_is_told_to_continue(node: Node):
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
    assert (
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
    )
    writer.write(BODY)
    assert (await asyncio.wait_for(reader.read(4096), 5)).startswith(b"HTTP/1.1 201 ")
    writer.close()


async def test_a_body_that_does_not_come_is_given_up():
    async with serving(body_s=0.05, linger_s=0.05) as node:
        heard = await node.talk(POST + b"Content-Length: 100\r\n\r\n{")
        assert heard.startswith(b"HTTP/1.1 400 ")
        assert b"not complete" in heard
        assert node.api._bodies.arriving_bytes == 0


async def test_a_client_that_leaves_in_the_middle_of_a_body_leaves_nothing_behind(node, caplog):
    _, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(POST + b"Content-Length: 100000\r\n\r\n" + b" " * 70_000)
    await eventually(lambda: node.api._bodies.arriving_bytes > 0)
    writer.close()
    await eventually(lambda: node.api._bodies.arriving_bytes == 0)
    assert (await node.append("s")).status == 201
    assert not caplog.records  # it is no defect of ours, and nothing to log


async def test_a_head_that_does_not_come_is_given_up():
    async with serving(idle_s=0.1) as node:
        assert await node.talk(b"GET /health/live HTTP/1.1\r\nHo") == b""
        assert await node.talk(b"") == b""


async def test_an_idle_connection_is_closed_after_its_time():
    async with serving(idle_s=0.1) as node:
        heard = await node.talk(LIVE + b"\r\n")
        assert heard.startswith(b"HTTP/1.1 200 ")


async def test_large_bodies_together_are_bounded():
    async with serving(
        body_bytes_max=100_000, event_bytes_max=1_000, arriving_bytes_max=150_000, linger_s=0.05
    ) as node:
        writers = []
        for _ in range(2):
            _, writer = await asyncio.open_connection("127.0.0.1", node.port)
            writer.write(POST + b"Content-Length: 99999\r\n\r\n" + b" " * 70_000)
            writers.append(writer)
        await eventually(lambda: node.api._bodies.arriving_bytes == 140_000)
        heard = await node.talk(POST + b"Content-Length: 99999\r\n\r\n" + b" " * 70_000, until=b"}")
        assert heard.startswith(b"HTTP/1.1 503 ")
        assert b"arriving_bytes_max" in heard and b"Retry-After: 1\r\n" in heard
        for writer in writers:
            writer.close()


# --- answering ------------------------------------------------------------------------------------


async def test_requests_sent_together_are_answered_in_order(node: Node):
    count = 100
    heard = await node.talk(WHOLE * count, until=b'"positions":[%d]' % count)
    assert heard.count(b"HTTP/1.1 201 ") == count
    places = [heard.index(b'"positions":[%d]' % n) for n in range(1, count + 1)]
    assert places == sorted(places)


async def test_answers_that_leave_in_different_ways_do_not_overtake_one_another(node: Node):
    await node.append("large", data="x" * 100_000)  # is not written together with others
    large = b"GET /v1/stores/main/events HTTP/1.1\r\nHost: n\r\n\r\n"
    streamed = b"GET /v1/stores/main/subscribe HTTP/1.1\r\nHost: n\r\n\r\n"
    live = LIVE + b"\r\n"
    heard = await node.talk(live + large + live + WHOLE + live + streamed, until=b"caught_up")
    at = 0
    for part in (b'"live"', b'"xxx', b'"live"', b" 201 Created", b'"live"', b"text/event-stream"):
        assert part in heard[at:], part
        at = heard.index(part, at) + len(part)


async def test_a_client_is_told_to_continue_behind_the_answer_before(node: Node):
    asks = POST + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    heard = await node.talk(LIVE + b"\r\n" + asks, until=b"Continue\r\n\r\n")
    assert heard.startswith(b"HTTP/1.1 200 ")


async def test_many_requests_sent_together_leave_the_loop_to_others(node: Node):
    async with Turns() as turns:
        heard = await node.talk((LIVE + b"\r\n") * 500 + LIVE + b"Connection: close\r\n\r\n")
    assert heard.count(b"HTTP/1.1 200 ") == 501
    assert turns.count > 400


async def test_http_1_0_is_closed_unless_it_asks_to_stay(node: Node):
    heard = await node.talk(b"GET /health/live HTTP/1.0\r\n\r\n")
    assert b"Connection: close\r\n" in heard
    stay = b"GET /health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    heard = await node.talk(stay + b"GET /health/live HTTP/1.0\r\n\r\n")
    assert heard.count(b"HTTP/1.1 200 ") == 2
    assert b"Connection: keep-alive\r\n" in heard


async def test_head_has_the_headers_of_get_and_no_body(node: Node):
    heard = await node.talk(b"HEAD /v1/stores HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
    head, _, body = heard.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Length: " in head and b"Content-Length: 0" not in head
    assert body == b""


async def test_an_upgrade_is_declined_and_ends_the_connection(node: Node):
    ask = b"GET /v1/stores/main/ws HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\n"
    ask += b"Upgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    heard = await node.talk(ask + b"\x81\x00" * 9)
    assert heard.startswith(b"HTTP/1.1 400 ")
    assert b"Connection: close\r\n" in heard


async def test_what_cannot_be_read_may_be_about_a_store_and_is_told_the_index(node: Node):
    """Every answer about a store has it, and nobody can tell which path the bytes meant."""
    await node.append("s")
    ask = b"GET /v1/stores/main/events?x=" + b"x" * node.api.limits.head_line_bytes_max
    heard = await node.talk(ask + b" HTTP/1.1\r\nHost: n\r\n\r\n")
    assert heard.startswith(b"HTTP/1.1 400 ") and b"not a readable HTTP request" in heard
    assert b"X-Served-By: n1\r\n" in heard
    assert b"X-Applied-Index: %d\r\n" % node.replica.applied_index in heard


async def test_a_client_that_does_not_read_its_answer_is_disconnected():
    async with serving(write_s=0.1) as node:
        for _ in range(8):
            await node.append("s", data="x" * 1_000_000)
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port, limit=1024)
        ask = b"GET /v1/stores/main/events HTTP/1.1\r\nHost: n\r\n\r\n"
        writer.write(ask * 8)
        await eventually(lambda: len(node.api._server.connections) == 2)
        await eventually(lambda: len(node.api._server.connections) == 1)  # the session's own
        assert reader.at_eof() is False  # it was not the client that left
        writer.close()


async def test_connections_beyond_the_limit_are_told_so():
    async with serving(connections_max=3) as node:
        writers = []
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", node.port)
            writers.append(writer)
        await eventually(lambda: len(node.api._server.connections) == 3)
        heard = await node.talk(LIVE + b"\r\n")
        assert heard.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in heard
        assert b'"code":"overloaded"' in heard and b'"limit":"connections_max"' in heard
        assert b"X-Applied-Index: %d\r\n" % node.replica.applied_index in heard
        for writer in writers:
            writer.close()
        await eventually(lambda: not node.api._server.connections)
        assert (await node.ask("GET", "/health/live")).status == 200


@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_client_that_has_said_all_it_will_is_answered(node: Node, pieces):
    """`printf ... | nc -N`: it ends its side and waits for the answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    octets = WHOLE * 20 + LIVE + b"\r\n"
    for start in range(0, len(octets), len(octets) // pieces + 1):
        writer.write(octets[start : start + len(octets) // pieces + 1])
        await writer.drain()
    writer.write_eof()
    heard = await asyncio.wait_for(reader.read(), 5)  # to the end: the node ends its side, too
    assert heard.count(b"HTTP/1.1 201 ") == 20
    assert heard.endswith(b'{"status":"live"}')
    writer.close()
    await eventually(lambda: not node.api._server.connections)


@pytest.mark.parametrize(
    "octets",
    [
        POST + b"Content-Length: 100\r\n\r\n{",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        LIVE,
        b"GET /v1/stores/main/events?wait_ms=60000 HTTP/1.1\r\nHost: n\r\n\r\n",
        b"GET /v1/stores/main/subscribe HTTP/1.1\r\nHost: n\r\n\r\n",
    ],
)
async def test_a_client_that_leaves_is_not_waited_for(node: Node, octets):
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(octets)
    await asyncio.sleep(0.05)
    writer.write_eof()
    async with asyncio.timeout(2):
        await reader.read()
    writer.close()
    await eventually(lambda: not node.api._server.connections)
    assert node.api.arrivals.reads == 0


WAITING = [
    "GET /v1/stores/main/events?min_position=100&timeout_ms=300000",
    "GET /v1/stores/main/streams/s/events?min_index=1000&timeout_ms=300000",
    "GET /v1/stores?min_index=1000&timeout_ms=300000",
    "GET /v1/stores/main/subscribe?min_position=100&timeout_ms=300000",
    "GET /v1/stores/main/events?consistency=linearizable&timeout_ms=300000",
    "GET /v1/stores/elsewhere?timeout_ms=300000",
    "POST /v1/stores/main/persistence/force?timeout_ms=300000",
    "POST /v1/stores/elsewhere/persistence/force?timeout_ms=300000",
    "POST /v1/stores/elsewhere/persistence/request",
    "POST /v1/persistence/force?scope=cluster&timeout_ms=300000",
]


def reset_on_close(writer: asyncio.StreamWriter) -> None:
    """As where the process was killed with something unread."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


@pytest.mark.parametrize("how", ["ends", "resets", "has ended"])
@pytest.mark.parametrize("target", WAITING)
async def test_a_wait_ends_with_the_client_that_leaves(node: Node, target: str, how: str):
    waits: list[object] = []

    async def for_ever(*asked: object) -> None:
        waits.append(asked)
        await asyncio.Event().wait()

    node.replica.barrier = node.replica._until = for_ever  # type: ignore[method-assign]
    _, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(target.encode() + b" HTTP/1.1\r\nHost: n\r\n\r\n")
    if how == "has ended":
        writer.write_eof()
    await eventually(lambda: bool(waits))
    if how == "resets":
        reset_on_close(writer)
    if how != "has ended":
        writer.close()
    await eventually(lambda: not node.api._server.connections)
    writer.close()


async def test_a_wait_that_is_long_ends_with_the_client_at_once(node: Node):
    _, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(WAITING[0].encode() + b" HTTP/1.1\r\nHost: n\r\n\r\n")
    await asyncio.sleep(0.4)
    assert node.api._server.connections
    writer.close()
    await eventually(lambda: not node.api._server.connections)


async def test_who_says_no_more_is_answered_after_a_short_wait(node: Node):
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(b"GET /v1/stores/main/events?min_position=1 HTTP/1.1\r\nHost: n\r\n\r\n")
    writer.write_eof()
    await eventually(lambda: any(one.ended for one in node.api._server.connections))
    await node.append("s")
    heard = await asyncio.wait_for(reader.read(), 5)
    assert heard.startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_who_stays_is_answered_after_a_long_wait(node: Node):
    read = asyncio.create_task(node.ask("GET", "/v1/stores/main/events?min_position=1"))
    await asyncio.sleep(0.4)
    await node.append("s")
    assert (await read).status == 200


def held_back(node: Node) -> tuple[Callable[[bytes, int], Awaitable[object]], asyncio.Event]:
    """A way to propose that waits for an event, and that event."""
    gate, propose = asyncio.Event(), node.replica.propose

    async def held(command: bytes, timeout_ms: int) -> object:
        await gate.wait()
        return await propose(command, timeout_ms)

    return held, gate


async def test_who_is_gone_has_no_place_while_an_append_goes_on():
    async with serving(connections_max=3) as node:
        held, gate = held_back(node)
        node.replica.propose = held  # type: ignore[method-assign]
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", node.port)
            writer.write(WHOLE)
            await eventually(
                lambda: any(
                    one._request_in_progress and one.transport
                    for one in node.api._server.connections
                )
            )
            reset_on_close(writer)
            writer.close()
            await eventually(lambda: not any(one.transport for one in node.api._server.connections))
        assert len(node.api._server.connections) == 5
        assert (await node.ask("GET", "/health/live")).status == 200
        gate.set()
        await eventually(lambda: node.state.stores["main"].position == 5)


async def test_who_says_no_more_has_a_bounded_time_for_each_answer():
    """Half a connection may stand for who waits, and for who has left."""
    async with serving(eof_s=0.3) as node:
        propose, (held, gate) = node.replica.propose, held_back(node)

        async def slowly(command: bytes, timeout_ms: int) -> object:
            await asyncio.sleep(0.1)
            return await propose(command, timeout_ms)

        for way, answered in ((slowly, 5), (held, 0)):
            node.replica.propose = way  # type: ignore[method-assign]
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            writer.write(WHOLE * 5)
            writer.write_eof()
            heard = await asyncio.wait_for(reader.read(), 5)
            assert heard.count(b"HTTP/1.1 201 ") == answered
            writer.close()
        assert node.state.stores["main"].position == 5
        gate.set()
        await eventually(lambda: node.state.stores["main"].position == 6)  # what was proposed
        await eventually(lambda: not node.api._server.connections)


async def test_a_target_in_absolute_form_is_the_path_in_it(node: Node):
    """What is meant for a proxy: RFC 9112 has every server take it."""
    for target, status in (
        (b"http://n:8101/health/live", 200),
        (b"HTTP://n/v1/stores/main/streams?prefix=http://a/b", 200),
        (b"http://n", 404),
        (b"http://n?x=/health/live", 404),
        (b"https://n/v1/stores/none", 404),
        (b"ftp://n/health/live", 400),
    ):
        heard = await node.talk(b"GET %b HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n" % target)
        assert heard.startswith(b"HTTP/1.1 %d " % status), (target, heard)
    assert b"X-Applied-Index: " in await node.talk(
        b"GET http://n/v1/stores/none HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n"
    )


# --- garbage --------------------------------------------------------------------------------------


GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"\x00" * 1_000,
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /health/live HTTP/1.1\r\n\r\n",  # no Host
    b"GET /health/live HTTP/1.1\r\nHost: n\r\nBad Header: x\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: n\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\nHost: n\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: n\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: n\r\n\r\n",
    POST + b"Content-Length: -1\r\n\r\n",
    POST + b"Content-Length: 1x\r\n\r\n",
    POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: n\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: n\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: n\r\n" + b"X: a\r\n" * 200 + b"\r\n",
]


async def test_garbage_is_a_4xx_problem_or_a_closed_connection(node: Node):
    for octets in GARBAGE:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(octets)
        writer.write_eof()
        heard = await asyncio.wait_for(reader.read(65536), 5)
        writer.close()
        assert heard == b"" or heard.startswith(b"HTTP/1.1 4"), (octets[:60], heard[:200])
        assert heard == b"" or b"application/problem+json" in heard, (octets[:60], heard[:300])
    assert (await node.append("s")).status == 201


async def test_random_changes_to_a_request_never_stop_the_node(node: Node):
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(150):
        octets = bytearray(WHOLE)
        for _ in range(chance.randint(1, 4)):
            octets[chance.randrange(len(octets))] = chance.randrange(256)
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(octets)
        writer.write_eof()
        heard = await asyncio.wait_for(reader.read(65536), 5)
        writer.close()
        assert heard[:10] in (b"", b"HTTP/1.1 2", b"HTTP/1.1 4"), heard[:200]
    assert (await node.append("s")).status == 201
    node.state.check()


# --- stopping -------------------------------------------------------------------------------------


async def test_stopping_lets_running_requests_end_and_refuses_new_connections():
    async with serving() as node:
        gate = asyncio.Event()
        propose = node.replica.propose

        async def held(command, timeout_ms):
            await gate.wait()
            return await propose(command, timeout_ms)

        node.replica.propose = held  # type: ignore[method-assign]
        append = asyncio.create_task(node.append("s"))
        await eventually(lambda: any(c._request_in_progress for c in node.api._server.connections))
        stop = asyncio.create_task(node.api.stop())
        await asyncio.sleep(0)
        gate.set()
        answer = await asyncio.wait_for(append, 5)
        assert answer.status == 201
        assert answer.headers["Connection"] == "close"
        await asyncio.wait_for(stop, 5)
        try:
            await asyncio.open_connection("127.0.0.1", node.port)
            raise AssertionError("still listening")
        except ConnectionRefusedError:
            pass


async def test_stopping_is_bounded_for_requests_that_do_not_end():
    async with serving(stop_s=0.05) as node:
        gate = asyncio.Event()

        async def never(command, timeout_ms):
            await gate.wait()

        node.replica.propose = never  # type: ignore[method-assign]
        append = asyncio.create_task(node.append("s"))
        await eventually(lambda: any(c._request_in_progress for c in node.api._server.connections))
        await asyncio.wait_for(node.api.stop(), 5)
        (ended,) = await asyncio.gather(append, return_exceptions=True)
        assert isinstance(ended, aiohttp.ClientError)
