"""Requests whose head was parsed before: taken without the parser, and answered as if with it."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest
from aiohttp.http import HttpVersion11, RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from node.api.known_heads import KNOWN_MAX, KnownHeads
from node.api.wire import Connection
from tests.api.fakes import Node, serving

LINES = b"Host: n\r\nContent-Type: application/json\r\n"
BODY = b'{"events":[{"event_type":"A"}]}'
FIRST = b"POST /v1/stores/main/streams/%b/events HTTP/1.1\r\n"


def append(stream: bytes, lines: bytes = LINES, body: bytes = BODY) -> bytes:
    """A whole request."""
    return FIRST % stream + lines + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The pieces that were taken as requests without the parser."""
    pieces: list[bytes] = []
    take = KnownHeads.take

    def watched(heads: KnownHeads, data: bytes) -> object:
        found = take(heads, data)
        if found is not None:
            pieces.append(data)
        return found

    monkeypatch.setattr(KnownHeads, "take", watched)
    return pieces


class Client:
    """One connection that sends pieces and reads answers one by one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, *pieces: bytes) -> None:
        """Send the pieces, apart from one another."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0.005)  # nobody can be asked whether a part has arrived

    async def answer(self) -> tuple[int, bytes]:
        """The next answer's status and body."""
        async with asyncio.timeout(5):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return int(head.split()[1]), await self._reader.readexactly(length)

    async def ask(self, *pieces: bytes) -> tuple[int, bytes]:
        await self.send(*pieces)
        return await self.answer()

    def close(self) -> None:
        self._writer.close()


async def test_the_second_request_with_the_same_lines_is_not_parsed(taken):
    async with serving() as node:
        client = await Client.to(node.port)
        first = await client.ask(append(b"one"))
        assert taken == []
        second = await client.ask(append(b"two"))
        assert taken == [append(b"two")]
        assert (first[0], second[0]) == (201, 201)
        assert b'"streams":{"two":0}' in second[1]
        client.close()


async def test_lines_learned_on_one_connection_are_known_on_all(taken):
    async with serving() as node:
        for stream in (b"one", b"two", b"three"):
            client = await Client.to(node.port)
            assert (await client.ask(append(stream)))[0] == 201
            assert (await client.ask(append(stream)))[0] == 201
            client.close()
        assert len(taken) == 5  # all but the very first


@pytest.mark.parametrize(
    "strange",
    [
        append(b"x").replace(b"HTTP/1.1", b"HTTP/1.0", 1),
        append(b"x").replace(b"POST /", b"POST  /", 1),
        append(b"x").replace(b"POST /", b"PO ST /", 1),
        append(b"x").replace(b"POST /v1", b"POST http://n/v1", 1),
        append(b"x#y"),
        append(b"a\x00b"),
        append(b"a\xffb"),
        append(b"a b"),
        append(b"y" * 9_000),
        append(b"x").replace(b"POST", b"post", 1),
    ],
)
async def test_what_is_strange_is_answered_as_without_known_lines(strange, taken, monkeypatch):
    async def answers() -> list[bytes]:
        async with serving(head_line_bytes_max=8_190) as node:
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            heard = []
            for request in (append(b"one"), append(b"two"), strange):
                writer.write(request)
                await asyncio.sleep(0.02)
                heard.append(await asyncio.wait_for(reader.read(65536), 5))
            writer.close()
            return [part.partition(b"\r\n")[0] + part.partition(b"\r\n\r\n")[2] for part in heard]

    ours = await answers()
    assert taken == [append(b"two")]
    monkeypatch.setattr(Connection, "_took_known", lambda *_: False)
    assert ours == await answers()


async def test_a_part_of_a_body_that_looks_like_a_known_request_is_a_part_of_a_body(taken):
    async with serving() as node:
        client = await Client.to(node.port)
        await client.ask(append(b"a"))
        within = append(b"smuggled")
        status, _ = await client.ask(append(b"b", body=within)[: -len(within)], within)
        assert status == 400
        assert (await client.ask(append(b"c")))[0] == 201
        assert taken == [append(b"c")]
        assert set(node.state.stores["main"].streams) == {"a", "c"}
        client.close()


async def test_a_head_that_asks_for_more_than_an_answer_is_never_remembered(taken):
    async with serving() as node:
        for line in (
            b"Connection: close",
            b"Expect: 100-continue",
            b"Connection: Upgrade\r\nUpgrade: h2c",
        ):
            for _ in range(2):
                client = await Client.to(node.port)
                await client.send(append(b"a"))
                assert (await client.answer())[0] == 201
                await client.send(append(b"s", LINES + line + b"\r\n"))
                client.close()
        assert all(b"close" not in one and b"Expect" not in one for one in taken)
        assert all(b"Upgrade" not in one for one in taken)


async def test_random_pieces_of_random_requests_are_answered_as_by_the_parser_alone(
    taken, monkeypatch
):
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    conversations = [_conversation(chance) for _ in range(25)]
    async with serving() as node:
        ours = [await _converse(node, one) for one in conversations]
    assert taken
    monkeypatch.setattr(Connection, "_took_known", lambda *_: False)
    async with serving() as node:
        for conversation, answered in zip(conversations, ours, strict=True):
            assert answered == await _converse(node, conversation), conversation


def _conversation(chance: random.Random) -> list[tuple[int, list[bytes]]]:
    """What is sent before the next answers are awaited: how many, and in which pieces."""
    steps = []
    for _ in range(chance.randint(3, 10)):
        requests = [_request(chance) for _ in range(chance.choice([1, 1, 1, 1, 1, 1, 2, 3]))]
        sent = b"".join(requests)
        cuts = sorted(chance.sample(range(1, len(sent)), chance.choice([0, 0, 0, 1, 2])))
        pieces = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
        steps.append((len(requests), pieces))
    return steps


def _request(chance: random.Random) -> bytes:
    body = chance.choice([BODY, BODY, BODY, b'{"events":[]}', b"{", BODY + b" "])
    stream = chance.choice([b"a", b"b", b"%41", b"$x"])
    return chance.choice(
        [
            *[append(stream, body=body)] * 4,
            append(stream, LINES + b"Accept: application/json\r\n", body),
            b"GET /v1/stores/main/streams/a/events?limit=2 HTTP/1.1\r\nHost: n\r\n\r\n",
            b"GET /nowhere HTTP/1.1\r\nHost: n\r\n\r\n",
            FIRST % stream
            + LINES
            + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        ]
    )


async def _converse(
    node: Node, conversation: list[tuple[int, list[bytes]]]
) -> list[tuple[int, bytes]]:
    """All answers, up to the one that ends the connection (it refused a body before it came)."""
    answered = []
    client = await Client.to(node.port)
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        for count, pieces in conversation:
            await client.send(*pieces)
            for _ in range(count):
                answered.append(await client.answer())  # noqa: PERF401
    client.close()
    # Generated ids differ from one run to the next.
    return [(status, b"" if b"event_id" in body else body) for status, body in answered]


def test_lines_that_never_repeat_take_no_more_than_their_share():
    heads = KnownHeads(8_190)
    for number in range(3 * KNOWN_MAX):
        lines = CIMultiDictProxy(CIMultiDict({"X-Trace": str(number)}))
        message = RawRequestMessage(
            "GET", "/", HttpVersion11, lines, (), False, None, False, False, URL("/")
        )
        data = b"GET / HTTP/1.1\r\nX-Trace: %d\r\n\r\n" % number
        assert heads.learn(data, message) == 0
        assert heads.take(data) is not None
        assert len(heads._known) <= KNOWN_MAX


def message(**headers: str) -> RawRequestMessage:
    parts = CIMultiDictProxy(CIMultiDict(headers))
    return RawRequestMessage(
        "POST", "/x", HttpVersion11, parts, (), False, None, False, False, URL("/x")
    )


def test_a_head_that_has_not_ended_is_no_request():
    """Its lines may be known, and as many bytes may be there as its body would have."""
    first = FIRST % b"a"
    for length in range(400):
        lines = b"\r\nHost: n\r\nContent-Length: %d" % length
        if len(first.rstrip(b"\r\n") + lines) + 1 - 3 == length:
            break
    heads = KnownHeads(16_384)
    known = message(Host="n", **{"Content-Length": str(length)})
    whole = first.rstrip(b"\r\n") + lines + b"\r\n\r\n" + b"y" * length
    assert heads.learn(whole, known) == 0
    assert heads.take(whole) is not None
    for end in range(len(whole)):
        assert heads.take(whole[:end]) is None


def test_nothing_is_learned_of_a_request_behind_empty_lines():
    """The parser passes over them; what would be remembered are not its header lines."""
    for empty in (b"\r\n", b"\r\n\r\n"):
        heads = KnownHeads(16_384)
        assert heads.learn(empty + FIRST % b"a" + b"Host: n\r\n\r\n", message(Host="n")) in (
            None,
            0,
        )
        for later in (b"GET /v1/stores HTTP/1.1\r\n\r\n", FIRST % b"a" + b"Host: n\r\n\r\n"):
            assert heads.take(later) is None
