"""WebSockets below the messages: handshake, frames, bounds, silence, the seam to aiohttp."""

from __future__ import annotations

import asyncio
import inspect
import random
import struct
from contextlib import asynccontextmanager

import cbor2
from aiohttp._websocket import reader_py, writer
from aiohttp.web_protocol import RequestHandler

from tests.api.fakes import Node, eventually, serving

ASK = (
    b"GET /v1/stores/main/ws HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
HELLO = cbor2.dumps([["ping", 1]])
DEEP = b"\x81" * 100 + b"\x00"
HELLO_ANSWER = cbor2.dumps([[1, 200, None]])


def test_the_seam_to_aiohttp_is_where_it_was():
    """When this fails after an upgrade, read `node/api/sockets.py` beside the new aiohttp."""
    for kind, method, lines in SEAM:
        source = inspect.getsource(getattr(kind, method))
        for line in lines:
            assert line in source, (method, line)


SEAM = [
    (RequestHandler, "set_parser", ["self._payload_parser.feed_data(self._message_tail)"]),
    (RequestHandler, "data_received", ["eof, tail = self._payload_parser.feed_data(data)"]),
    (RequestHandler, "connection_lost", ["self._payload_parser.feed_eof()"]),
    (reader_py.WebSocketDataQueue, "__init__", ["self._limit = limit * 2", "self._buffer"]),
    (reader_py.WebSocketDataQueue, "feed_data", ["self._protocol.pause_reading()"]),
    (reader_py.WebSocketReader, "feed_data", ["set_exception(self.queue, exc)"]),
    (reader_py.WebSocketReader, "_feed_data", ["WSCloseCode.MESSAGE_TOO_BIG"]),
    (writer.WebSocketWriter, "_write_websocket_frame", ["self.transport.write(header + message)"]),
]


class Wire:
    """A client's end, frame by frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, payload: bytes, kind: int = BINARY, fin: bool = True) -> None:
        mask = b"\x01\x02\x03\x04"
        size = len(payload)
        head = bytes((kind | (0x80 if fin else 0),))
        if size < 126:
            head += bytes((0x80 | size,))
        elif size < 65536:
            head += b"\xfe" + struct.pack("!H", size)
        else:
            head += b"\xff" + struct.pack("!Q", size)
        self.writer.write(head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload)))

    async def frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(5):
            first, size = await self.reader.readexactly(2)
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return first & 15, await self.reader.readexactly(size)

    async def closing(self) -> tuple[int, bytes]:
        """The code and words of the next frame, which must close."""
        kind, payload = await self.frame()
        assert kind == CLOSE, (kind, payload)
        return struct.unpack("!H", payload[:2])[0], payload[2:]

    async def ended(self) -> None:
        async with asyncio.timeout(5):
            assert await self.reader.read() == b""


@asynccontextmanager
async def wire(node: Node, ask: bytes = ASK):
    reader, stream = await asyncio.open_connection("127.0.0.1", node.port)
    stream.write(ask)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 101 "), head
    try:
        yield Wire(reader, stream)
    finally:
        stream.close()


# --- the handshake --------------------------------------------------------------------------------


async def test_the_handshake_is_that_of_rfc_6455_and_names_node_and_position(node: Node):
    head = await node.talk(ASK, until=b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
    assert b"Upgrade: websocket\r\n" in head and b"Connection: Upgrade\r\n" in head
    assert b"X-Served-By: n1\r\n" in head and b"X-Position: 0\r\n" in head


async def test_what_is_no_websocket_is_answered_over_http(node: Node):
    answer = await node.ask("GET", "/v1/stores/main/ws")
    assert (answer.status, answer.code) == (426, "upgrade_required")
    assert answer.headers["Sec-WebSocket-Version"] == "13"
    assert (answer.headers["Connection"], answer.headers["Upgrade"]) == ("Upgrade", "websocket")
    for wrong, status in (
        (ASK.replace(b"Version: 13", b"Version: 12"), b" 426 "),
        (ASK.replace(b"Sec-WebSocket-Version: 13\r\n", b""), b" 426 "),
        (ASK.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"eA=="), b" 400 "),
        (ASK.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlI*NhbXBsZSBub25jZQ=="), b" 400 "),
        (ASK.replace(b"/main/", b"/none/"), b" 404 "),
        (ASK.replace(b"/ws ", b"/ws?x=1 "), b" 400 "),
        (ASK.replace(b"Upgrade: websocket", b"Upgrade: h2c"), b" 426 "),
    ):
        heard = await node.talk(wrong + b"\x81\x00" * 9, until=b"}")
        assert heard.startswith(b"HTTP/1.1" + status), (wrong, heard)
        assert b"application/problem+json" in heard


async def test_messages_sent_behind_the_handshake_in_one_piece_are_heard(node: Node):
    hello = bytes((0x82, 0x80 | len(HELLO))) + b"\0\0\0\0" + HELLO
    async with wire(node, ASK + hello * 3) as client:
        answers = []
        while len(answers) < 3:
            kind, payload = await client.frame()
            assert kind == BINARY
            answers += cbor2.loads(payload)
        assert answers == [[1, 200, None]] * 3


async def test_websockets_beyond_the_limit_are_refused():
    async with serving(sockets_max=1) as node, wire(node) as client:
        heard = await node.talk(ASK)
        assert heard.startswith(b"HTTP/1.1 503 ") and b"sockets_max" in heard
        client.writer.close()
        await eventually(lambda: not node.api._talks.conversations)
        async with wire(node):
            pass


# --- frames ---------------------------------------------------------------------------------------


async def test_a_message_in_fragments_with_a_ping_between_is_one_message(node: Node):
    async with wire(node) as client:
        client.send(HELLO[:3], BINARY, fin=False)
        client.send(b"there?", PING)
        client.send(HELLO[3:], 0)
        assert {await client.frame(), await client.frame()} == {
            (PONG, b"there?"),
            (BINARY, HELLO_ANSWER),
        }


async def test_a_close_is_answered_and_ends_the_connection(node: Node):
    async with wire(node) as client:
        client.send(struct.pack("!H", 1000) + b"bye", CLOSE)
        assert (await client.closing())[0] == 1000
        await client.ended()
    await eventually(lambda: not node.api._talks.conversations)


async def test_what_breaks_a_rule_is_told_by_a_close_code_and_hurts_nobody_else(node: Node):
    async with wire(node) as other:
        for payload, kind, fin, code in (
            (b"hello", TEXT, True, 1003),
            (b"\xff", BINARY, True, 1007),
            (b"", BINARY, True, 1007),
            (cbor2.dumps({"a": 1}), BINARY, True, 1007),
            (cbor2.dumps([1]), BINARY, True, 1007),
            (cbor2.dumps([["ping", "x"]]), BINARY, True, 1007),
            (cbor2.dumps([["ping", -1]]), BINARY, True, 1007),
            (HELLO + b"\x01", BINARY, True, 1007),
            (b"\x82" + HELLO[1:], BINARY, True, 1007),
            (b"\x82" + HELLO[1:] + b"\x00", BINARY, True, 1007),
            (b"\x82" + HELLO[1:] + b"\x82\xf7" + DEEP, BINARY, True, 1007),
            (b"\x82" + HELLO[1:] + b"\x82\x64ping" + DEEP, BINARY, True, 1007),
            (b"\x82" + HELLO[1:] + b"\x83\x01\x02" + DEEP, BINARY, True, 1007),
            (b"\x82" + HELLO[1:] + b"\x83\x64ping\x01\xfc", BINARY, True, 1007),
            (b"\x81\xd9\xd9\xf7" + HELLO[1:], BINARY, True, 1007),
            (HELLO, 0, True, 1002),
            (HELLO, 3, True, 1002),
            (b"x" * 126, PING, True, 1002),
            (b"x", PING, False, 1002),
        ):
            async with wire(node) as client:
                client.send(payload, kind, fin)
                assert (await client.closing())[0] == code, (payload, kind)
                client.writer.close()
        other.send(HELLO)
        assert await other.frame() == (BINARY, HELLO_ANSWER)
    assert (await node.append("s")).status == 201


async def test_a_message_over_the_limit_is_closed_with_1009_while_it_is_still_sent():
    async with serving(body_bytes_max=1_000, event_bytes_max=500, linger_s=0.5) as node:
        async with wire(node) as client:
            client.send(cbor2.dumps([["ping", 1], "x" * 300_000]))
            assert (await client.closing())[0] == 1009
            client.writer.close()
        await eventually(lambda: not node.api._talks.conversations)
        assert node.api._bodies.arriving_bytes == 0


async def test_large_messages_together_are_bounded():
    async with serving(
        body_bytes_max=100_000, event_bytes_max=1_000, arriving_bytes_max=150_000, linger_s=0.1
    ) as node:
        async with wire(node) as first, wire(node) as second, wire(node) as third:
            for client in (first, second):
                client.send(b"\x80" * 60_000, BINARY, fin=False)
            await eventually(lambda: node.api._bodies.arriving_bytes > 120_000)
            third.send(b"\x80" * 60_000, BINARY, fin=False)
            assert (await third.closing())[0] == 1013
            third.writer.close()
            await eventually(lambda: node.api._bodies.arriving_bytes < 130_000)
        await eventually(lambda: node.api._bodies.arriving_bytes == 0)


SMALL_ROOM = {"body_bytes_max": 100_000, "event_bytes_max": 1_000, "arriving_bytes_max": 150_000}
PART = b"\x80" * 60_000


def arriving(node: Node) -> int:
    return node.api._bodies.arriving_bytes


async def test_parts_of_a_message_count_whatever_frames_stand_between_them():
    async with (
        serving(**SMALL_ROOM, linger_s=0.1) as node,
        wire(node) as first,
        wire(node) as second,
        wire(node) as third,
    ):
        for count, client in enumerate((first, second), 1):
            client.send(PART, BINARY, fin=False)
            client.send(b"", PONG)
            client.send(b"there?", PING)
            assert await client.frame() == (PONG, b"there?")
            client.send(b"and now?", PING)
            assert await client.frame() == (PONG, b"and now?")
            assert arriving(node) >= 60_000 * count
        third.send(PART, BINARY, fin=False)
        assert (await third.closing())[0] == 1013


async def test_the_beginning_of_a_message_counts_although_the_end_of_another_came_with_it():
    async with (
        serving(**SMALL_ROOM, linger_s=0.1) as node,
        wire(node) as first,
        wire(node) as second,
        wire(node) as third,
    ):
        for client in (first, second):
            client.send(HELLO[:3], BINARY, fin=False)
            client.send(HELLO[3:], 0)
            client.send(PART, BINARY, fin=False)
            assert await client.frame() == (BINARY, HELLO_ANSWER)
        await eventually(lambda: arriving(node) >= 120_000)
        third.send(HELLO)
        third.send(PART, BINARY, fin=False)
        third.send(HELLO, 0, fin=False)
        assert await third.frame() == (BINARY, HELLO_ANSWER)
        assert (await third.closing())[0] == 1013


async def test_of_who_is_refused_nothing_more_is_kept_although_it_reads_no_answers():
    """Its conversation waits for it, and does not come to the error."""
    async with serving(**SMALL_ROOM, stream_buffer_bytes_max=10_000) as node:
        for _ in range(12):
            assert (await node.append("s", 90, data="x" * 900)).status == 201
        async with wire(node) as first, wire(node) as client:
            first.send(b"\x80" * 90_000, BINARY, fin=False)
            await eventually(lambda: arriving(node) >= 90_000)
            client.reader._transport.pause_reading()
            for number in range(200):
                client.send(cbor2.dumps([["read", number, "s"]]))
            talks = node.api._talks.conversations
            await eventually(lambda: any(one._socket.is_full for one in talks))
            client.send(HELLO)  # is not taken before there is room for its answer
            for part in range(30):
                client.send(b"\x80" * 3_000, 0 if part else BINARY, fin=False)
                await asyncio.sleep(0.002)
            assert 150_000 < arriving(node) < 160_000


async def test_what_is_whole_leaves_nothing_behind_that_counts(node: Node):
    async with wire(node) as client:
        for _ in range(20):
            client.send(b"there?", PING)
            assert await client.frame() == (PONG, b"there?")
        for size in (10, 1_000, 100_000):
            event = {"event_type": "A", "data": "x" * size}
            client.send(cbor2.dumps([["append", 1, "s", [event]]]))
            assert (await client.frame())[0] == BINARY
            assert arriving(node) == 0


async def test_random_bytes_close_the_connection_and_nothing_else(node: Node, caplog):
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    append = cbor2.dumps([["append", 1, "s", [{"event_type": "A", "data": [1, {"a": "b"}]}], 3]])
    for _ in range(150):
        async with wire(node) as client:
            octets = bytearray(append)
            for _ in range(chance.randint(1, 4)):
                octets[chance.randrange(len(octets))] = chance.randrange(256)
            client.send(bytes(octets))
            kind, payload = await client.frame()
            if kind == BINARY:
                ((_, status, _),) = cbor2.loads(payload)
                assert 200 <= status < 500
            else:
                assert payload[:2] == struct.pack("!H", 1007), payload
    assert (await node.append("t")).status == 201
    node.state.check()
    assert not caplog.records


# --- silence and slowness -------------------------------------------------------------------------


async def test_a_silent_client_is_pinged_twice_and_cut():
    async with serving(ping_s=0.03) as node, wire(node) as client:
        assert await client.frame() == (PING, b"")
        assert await client.frame() == (PING, b"")
        await client.ended()


async def test_a_client_that_answers_pings_stays():
    async with serving(ping_s=0.02) as node, wire(node) as client:
        for _ in range(6):
            assert await client.frame() == (PING, b"")
            client.send(b"", PONG)
        client.send(HELLO)
        kinds = [await client.frame()]
        while kinds[-1][0] != BINARY:
            kinds.append(await client.frame())


async def test_a_client_that_reads_nothing_is_not_read_from_and_is_cut():
    async with serving(ping_s=0.1, stream_buffer_bytes_max=10_000) as node:
        await node.append("s", 100, data="x" * 10_000)
        async with wire(node) as client:
            transport = next(c for c in node.api._server.connections if c._upgraded).transport
            for number in range(200):
                client.send(cbor2.dumps([["read", number, "s"]]))
            await eventually(lambda: transport.get_write_buffer_size() > 10_000)
            assert transport.get_write_buffer_size() < 5_000_000
            await eventually(transport.is_closing)
        await eventually(lambda: not node.api._talks.conversations)


async def test_a_client_that_only_pings_and_reads_nothing_is_read_no_more():
    """Each ping is owed an answer, and they would all wait at the node."""
    async with serving(stream_buffer_bytes_max=50_000) as node, wire(node) as client:
        client.reader._transport.pause_reading()
        (conversation,) = node.api._talks.conversations
        transport = conversation._socket._transport
        ping = bytes((0x80 | PING, 0x80 | 125)) + bytes(4 + 125)  # masked with zeros
        for _ in range(150):  # 20 MB, more than the kernel keeps for both ends
            client.writer.write(ping * 1_000)
            try:
                await asyncio.wait_for(client.writer.drain(), 1)
            except TimeoutError:
                break
        else:
            raise AssertionError("all of them were read")
        assert transport.get_write_buffer_size() < 1_000_000
        client.writer.transport.abort()
