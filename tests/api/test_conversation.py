"""What is said over a WebSocket: the same outcomes as over HTTP, many at once, in bounds."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import cbor2
import pytest

from node.api.limits import INTEGER_KEYS_MAX
from node.api.socket_messages import Append, Misfit, requests
from node.api.values import INTEGER_BITS_MAX, are_plain_items
from node.core import commands
from node.errors import NoLeader, OutcomeUnknown
from tests.api.fakes import Node, Turns, eventually, serving

CBOR = {"Content-Type": "application/cbor", "Accept": "application/cbor"}


class Client:
    """A client's end: sends requests, keeps answers by their ids."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.answers: dict[Any, list[Any]] = {}
        self.messages = 0

    async def send(self, *requests: Any) -> None:
        await self.socket.send_bytes(cbor2.dumps(requests))

    async def hear(self) -> None:
        """Take one message."""
        message = await asyncio.wait_for(self.socket.receive(), 5)
        assert message.type is aiohttp.WSMsgType.BINARY, message
        self.messages += 1
        for request_id, *answer in cbor2.loads(message.data):
            self.answers.setdefault(request_id, []).append(answer)

    async def final(self, request_id: int) -> tuple[int, Any]:
        """The last answer with this id, which is forgotten."""
        while not (request_id in self.answers and type(self.answers[request_id][-1][0]) is int):
            await self.hear()
        status, body = self.answers.pop(request_id)[-1]
        return status, body

    async def ask(self, kind: str, *fields: Any) -> tuple[int, Any]:
        await self.send([kind, 77, *fields])
        return await self.final(77)

    async def until(self, request_id: int, kind: str) -> list[list[Any]]:
        """All that a subscription was told, up to the first of this kind; it is forgotten."""
        while not any(said[0] == kind for said in self.answers.get(request_id, ())):
            await self.hear()
        return self.answers.pop(request_id)

    async def records(self, request_id: int, count: int) -> list[Any]:
        """The next so many records of a subscription."""
        records: list[Any] = []
        while len(records) < count:
            for kind, body in self.answers.pop(request_id, ()):
                records += body if kind == "events" else ()
            if len(records) < count:
                await self.hear()
        return records


@asynccontextmanager
async def talking(node: Node, store: str = "main") -> AsyncIterator[Client]:
    url = f"http://127.0.0.1:{node.port}/v1/stores/{store}/ws"
    async with node.session.ws_connect(url, max_msg_size=0) as socket:
        yield Client(socket)


@pytest.fixture
async def client(node: Node) -> AsyncIterator[Client]:
    async with talking(node) as found:
        yield found


def event(value: Any = 1, **fields: Any) -> dict[str, Any]:
    return {"event_type": "A", "data_cbor": cbor2.dumps(value), **fields}


# --- appends --------------------------------------------------------------------------------------


async def test_an_append_tells_versions_positions_and_the_index(client: Client):
    assert await client.ask("append", "s", [event(), event()]) == (201, [0, 1, [1, 2], 2])
    assert await client.ask("append", "s", [event()], 1) == (201, [2, 2, [3], 3])
    again = event(event_id=bytes(16))
    assert await client.ask("append", "t", [again], "no_stream") == (201, [0, 0, [4], 4])
    assert await client.ask("append", "t", [again], "no_stream") == (200, [0, 0, [4], 5])


async def test_requests_of_one_message_are_taken_in_order_and_answered_together(client: Client):
    await client.send(*(["append", n, "s", [event(n)], n - 1] for n in range(50)))
    for number in range(50):
        status, (first, last, positions, _) = await client.final(number)
        assert (status, first, last, positions) == (201, number, number, [number + 1])
    assert client.messages < 10


async def test_an_append_is_answered_when_its_outcome_is_known(node: Node, client: Client):
    gate, propose = asyncio.Event(), node.replica.propose

    async def held(command, timeout_ms):
        await gate.wait()
        return await propose(command, timeout_ms)

    node.replica.propose = held  # type: ignore[method-assign]
    await client.send(["append", 1, "s", [event()]], ["ping", 2])
    assert await client.final(2) == (200, None)
    assert not client.answers
    gate.set()
    assert await client.final(1) == (201, [0, 0, [1], 2])


async def test_a_thousand_under_way_are_all_answered(node: Node, client: Client):
    for start in range(0, 1_000, 10):
        await client.send(*(["append", start + n, f"s{n}", [event()]] for n in range(10)))
    found = [await client.final(number) for number in range(1_000)]
    assert {status for status, _ in found} == {201}
    assert sorted(body[2][0] for _, body in found) == list(range(1, 1_001))
    assert node.state.stores["main"].position == 1_000
    assert client.messages < 500


async def test_an_encoded_value_and_the_same_value_in_its_place_are_read_alike(client: Client):
    for value in (None, 1, -1, 2**70, 1.5, "x", b"x", [], [1, [2]], {"a": {1: b"y"}}):
        status, body = await client.ask("append", "s", [event(value)])
        assert status == 201
        placed = {"event_type": "A", "data": value}
        assert (await client.ask("append", "s", [placed]))[0] == 201
        _, page = await client.ask("read", "s", {"from": body[0]})
        first, second = page["events"]
        assert first["data"] == second["data"] == value
        assert first["data_content_type"] == second["data_content_type"]
        assert first["metadata"] is second["metadata"] is None


def nested(depth: int) -> bytes:
    return b"\x81" * depth + b"\x01"


GOOD_ITEMS = [
    cbor2.dumps(value)
    for value in (1, "ü", [], {}, {"a": [1.5, None, True, b"\xff"]}, {1: 2}, 2**64, -(2**80))
] + [nested(64), b"\x9f\x01\xff", b"\x18\x01"]
BAD_ITEMS = [
    *(b"", b"\xf7", b"\xe5", b"\xf8\x20", b"\x01\x01", b"\x82\x01", b"\x58\x20abc", b"\xff"),
    *(b"\xc0\x60", b"\xd8\x1c\x80", b"\xc1\x01", b"\x61\xff", b"\xa1\x41a\x01"),
    *(b"\xa2\x61a\x01\x61a\x02", b"\xa1\xf6\x01", b"\xa2\x01\x01\x611\x02", b"\x51" + b"x" * 16),
    cbor2.dumps(2 ** (INTEGER_BITS_MAX + 1)),
    b"\x01\x50" + bytes(16),
    b"\xa1\x81\x01\x02",
]


async def test_encoded_items_are_judged_as_strictly_as_values(client: Client):
    for item in GOOD_ITEMS:
        plain = {"event_type": "A", "data_cbor": item}
        assert (await client.ask("append", "s", [plain]))[0] == 201, item
        both = {"event_type": "A", "metadata_cbor": item}
        assert (await client.ask("append", "s", [event(), both]))[0] == 201, item
    for item in BAD_ITEMS:
        for field in ("data_cbor", "metadata_cbor"):
            status, body = await client.ask(
                "append", "s", [event(), {"event_type": "A", field: item}]
            )
            assert (status, body["code"]) == (400, "invalid_event"), item
            assert body["event"] == 1 and body["stored"] == "no"
    for field in ("data_cbor", "metadata_cbor"):
        status, body = await client.ask("append", "s", [{"event_type": "A", field: nested(65)}])
        assert (status, body["code"], body["limit"]) == (413, "payload_too_large", 64)


def test_items_that_are_cut_or_joined_are_never_taken_for_plain():
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(2_000):
        items = [chance.choice(GOOD_ITEMS[:5]) for _ in range(chance.randint(1, 5))]
        assert are_plain_items(items, 64)
        whole = b"".join(items)
        cuts = sorted(chance.randrange(len(whole) + 1) for _ in range(len(items) - 1))
        parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        if parts != items and are_plain_items(parts, 64):
            for part in parts:
                decoder = cbor2.CBORDecoder(__import__("io").BytesIO(part))
                decoder.decode()
                with pytest.raises(cbor2.CBORDecodeEOF):
                    decoder.read(1)


async def test_one_bad_event_fails_its_own_request_only(client: Client):
    await client.send(
        ["append", 1, "s", [event()]],
        ["append", 2, "s", [event(), {"event_type": "A", "data_cbor": b"\xf7"}]],
        ["append", 3, "s", [{"event_typ": "A"}]],
        ["append", 4, "$s", [event()]],
        ["append", 5, "s", []],
        ["append", 6, "s", [event()], "later"],
        ["append", 7, "s", [event()], None, "maybe"],
        ["append", 8, "s", [event()], None, None, 0],
        ["append", 9, "s", [event(data=1)]],
        ["unknown", 10],
        ["append", 11, "s", [event()], 0],
        ["append", 12, "s", [event()], 0],
        ["append", 13, "s", [event()], None, None, 300_001],
    )
    codes = {number: await client.final(number) for number in range(1, 14)}
    assert codes[13][0] == 413 and codes[13][1]["actual"] == 300_001
    assert [codes[number][0] for number in (1, 11, 12)] == [201, 201, 409]
    assert codes[12][1]["expected"] == 0 and codes[12][1]["current"] == 1
    assert [codes[n][1]["code"] for n in (2, 9)] == ["invalid_event"] * 2
    assert codes[6][1]["code"] == "invalid_expected_version"
    assert [codes[n][1]["code"] for n in (3, 4, 5, 7, 8, 10)] == ["invalid_request"] * 6


BAD_VALUES = [
    *(nested(65), nested(66), nested(70), nested(5_000)),
    cbor2.dumps(dict.fromkeys(range(INTEGER_KEYS_MAX + 1))),
    *(b"\xd8\x1c\x80", b"\xc1\x01", b"\xf8\x10", b"\x61\xff", b"\xa2\x61a\x01\x61a\x02"),
    *(b"\xa2\xf6\x01\x61a\x59\x02\x00" + bytes(512), b"\xa1\xf9\x3e\x00\x01", b"\xa1\x81\x01\x02"),
]


@pytest.mark.parametrize("value", BAD_VALUES, ids=lambda value: value[:5].hex())
async def test_a_bad_value_fails_its_own_request_only_and_as_over_http(node: Node, value: bytes):
    placed = cbor2.dumps({"event_type": "A", "data": 0})[:-1] + value
    body = cbor2.dumps({"events": [0]})[:-1] + placed
    http = await node.ask("POST", "/v1/stores/main/streams/s/events", data=body, headers=CBOR)
    assert http.status in (400, 413) and http.body["stored"] == "no"
    async with talking(node) as client:
        await client.send(["subscribe", 1])
        message = [["append", 2, "s", [event()]], ["append", 3, "s", [0]], ["ping", 4]]
        encoded = cbor2.dumps(message).replace(b"\x03\x61s\x81\x00", b"\x03\x61s\x81" + placed)
        await client.socket.send_bytes(encoded)
        assert (await client.final(2))[0] == 201
        status, problem = await client.final(3)
        assert await client.final(4) == (200, None)
        told = ("code", "stored", "limit", "actual", "event")
        assert status == http.status
        assert [problem.get(name) for name in told] == [http.body.get(name) for name in told]
        assert len(await client.records(1, 1)) == 1


async def test_any_number_of_requests_may_have_integer_keys(node: Node, client: Client):
    """Also beyond 64 bits, of which one body may have no more than 64."""
    data = {n: n for n in range(12)} | {2**64: 1}
    await client.send(
        *(["append", n, "s", [{"event_type": "A", "data": data}]] for n in range(2_000))
    )
    for number in range(2_000):
        assert (await client.final(number))[0] == 201


async def test_while_a_message_is_taken_apart_others_get_turns():
    good = ["append", 1, "s", [{"event_type": "A", "data": {"a": [1]}}]]
    deep = ["append", 2, "s", [{"event_type": "A", "data": cbor2.loads(nested(70))}]]
    misfit = ["append", 3, "s", 0]
    for bad in (deep, misfit):
        message = cbor2.dumps([good] * 5_000 + [bad])
        async with Turns() as turns:
            *taken, last = await requests(message, 64)
        assert {type(request) for request in taken} == {Append} and type(last) is Misfit
        assert turns.count > 5


async def test_an_option_of_thousands_of_digits_is_refused(client: Client):
    for kind, fields in (("read", [None, {"limit": 1 << 16_000}]),
                         ("subscribe", [{"after": 1 << 16_000}])):  # fmt: skip
        status, problem = await client.ask(kind, *fields)
        assert (status, problem["code"]) == (400, "invalid_request")


async def test_durable_appends_wait_for_the_disk(node: Node, client: Client):
    assert (await client.ask("append", "s", [event()], None, "persisted"))[0] == 201
    assert node.worker.durable == [2]
    node.worker.durable_error = OutcomeUnknown("not in time")
    status, body = await client.ask("append", "s", [event()], None, "persisted")
    assert (status, body["stored"]) == (504, "perhaps")
    node.worker.enabled = False
    assert (await client.ask("append", "s", [event()], None, "persisted"))[0] == 409


async def test_what_the_cluster_answers_is_told(node: Node, client: Client):
    node.replica.propose_error = NoLeader("none")
    status, body = await client.ask("append", "s", [event()])
    assert (status, body["code"], body["stored"]) == (503, "no_leader", "no")


async def test_the_same_requests_over_http_and_here_have_the_same_outcomes():
    """Two nodes get the same random appends and reads, one each way."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    async with serving() as one, serving() as other, talking(other) as client:
        for _ in range(600):
            over_http, over_socket = await _both(one, client, chance)
            assert over_http == over_socket
        theirs, ours = one.state.stores["main"], other.state.stores["main"]
        assert theirs.position == ours.position > 10
        for position in range(1, ours.position + 1):
            assert theirs.record(position) == ours.record(position)


IDS = [bytes([n]) * 16 for n in range(40)]


async def _both(one: Node, client: Client, chance: random.Random) -> tuple[Any, Any]:
    stream = chance.choice(("a", "b", "$c", ""))
    version = chance.choice((None, "any", "no_stream", "stream_exists", -1, 0, 1, 5, "x", True))
    events = [
        {
            "event_id": chance.choice(IDS),
            "event_type": chance.choice("AAAB"),
            "data": chance.choice((1, "x", {"a": 1}, b"y")),
        }
        for _ in range(chance.choice((0, 1, 1, 2)))
    ]
    encoded = [{**one, "data_cbor": cbor2.dumps(one["data"])} for one in events]
    for each in encoded:
        del each["data"]
    if chance.random() < 0.5 and stream:
        body = {"events": events} | ({} if version is None else {"expected_version": version})
        http = await one.ask(
            "POST", f"/v1/stores/main/streams/{stream}/events", data=cbor2.dumps(body), headers=CBOR
        )
        status, told = await client.ask("append", stream, chance.choice((events, encoded)), version)
        keys = ("first_version", "last_version", "positions", "raft_index")
        if status < 300:
            return (http.status, [http.body[key] for key in keys]), (status, told)
        return (http.status, http.body), (status, told)
    checks = [] if version is None else [{"stream": stream, "expected_version": version}]
    placed = [{"stream": stream, **each} for each in events]
    mark = chance.choice((None, {"name": "c", "position": chance.randint(-1, 40)}))
    body = {"events": placed, "checks": checks, "checkpoint": mark}
    http = await one.ask("POST", "/v1/stores/main/append", data=cbor2.dumps(body), headers=CBOR)
    told = await client.ask("append_many", placed, checks, mark)
    return (http.status, http.body), told


# --- reads ----------------------------------------------------------------------------------------


async def test_reads_are_those_of_http(node: Node, client: Client):
    await node.append("s", 5)
    await node.append("t", 3, event_type="B")
    for stream, options, target in (
        ("s", {}, "streams/s/events"),
        ("s", {"from": 3, "direction": "backward", "limit": 2}, None),
        ("none", {"must_exist": True}, None),
        (None, {"after": 2, "limit": 2}, None),
        (None, {"type": ["B", "C"], "stream_prefix": "t"}, None),
        (None, {"limit": 0}, None),
        (None, {"limitt": 1}, None),
        (None, {"min_index": 99, "timeout_ms": 1}, None),
    ):
        pairs = [
            (name, str(value).lower() if type(value) is bool else value)
            for name, given in options.items()
            for value in (given if type(given) is list else [given])
        ]
        target = "events" if stream is None else f"streams/{stream}/events"
        query = "&".join(f"{name}={value}" for name, value in pairs)
        http = await node.ask("GET", f"/v1/stores/main/{target}?{query}", headers=CBOR)
        assert await client.ask("read", stream, options) == (http.status, http.body), options
    assert (await client.ask("read", None, {"wait_ms": 5}))[0] == 400
    assert (await client.ask("read", None, {"type": None}))[0] == 400
    assert (await client.ask("read", "$x"))[0] == 400


# --- subscriptions --------------------------------------------------------------------------------


async def test_a_subscription_joins_past_and_present(node: Node, client: Client):
    await node.append("s", 2_500)
    await client.send(["subscribe", 1, {"after": 10}])
    said = await client.until(1, "caught_up")
    records = [record for kind, body in said if kind == "events" for record in body]
    assert [record[0] for record in records] == list(range(11, 2_501))
    assert said[-1] == ["caught_up", 2_500]
    position, number, _, stream, stored = records[0]
    assert (position, number, stream) == (11, 10, "s")
    assert stored[2] == "Happened" and cbor2.loads(stored[5]) == {"n": 10}
    await node.append("t", 3)
    assert [record[:2] for record in await client.records(1, 3)] == [
        [2_501, 0],
        [2_502, 1],
        [2_503, 2],
    ]
    assert node.api._talks._following.followers == 1
    await client.send(["cancel", 1])
    assert await client.final(1) == (200, {"position": 2_503})
    await eventually(lambda: node.api._talks._following.followers == 0)


async def test_filters_and_checkpoints_are_those_of_sse(node: Node, client: Client):
    await node.append("a-1", 3)
    await node.append("b-1", 1_500, event_type="Other")
    await client.send(
        ["subscribe", 1, {"stream_prefix": "a-"}],
        ["subscribe", 2, {"type": ["Other"], "after": 1_500}],
        ["subscribe", 3, {"stream": "a-1", "after": 1}],
        ["subscribe", 4, {"after": "end"}],
    )
    assert [
        r[0] for kind, b in await client.until(1, "caught_up") if kind == "events" for r in b
    ] == [1, 2, 3]
    assert [
        r[0] for kind, b in await client.until(2, "caught_up") if kind == "events" for r in b
    ] == [1_501, 1_502, 1_503]
    assert [
        r[0] for kind, b in await client.until(3, "caught_up") if kind == "events" for r in b
    ] == [2, 3]
    assert await client.until(4, "caught_up") == [["caught_up", 1_503]]
    await node.append("c", 1_200)
    assert (await client.until(1, "checkpoint"))[-1][1] > 1_503


async def test_a_subscription_sends_no_more_than_its_credit(node: Node, client: Client):
    await node.append("s", 100)
    await client.send(["subscribe", 1, {}, 7], ["subscribe", 2, {}, 0])
    assert [record[0] for record in await client.records(1, 7)] == list(range(1, 8))
    await client.send(["credit", 1, 3], ["credit", 2, 1])
    assert [record[0] for record in await client.records(1, 3)] == [8, 9, 10]
    assert [record[0] for record in await client.records(2, 1)] == [1]
    assert (await client.ask("ping")) == (200, None)
    assert not client.answers
    await client.send(["credit", 1, 1_000])
    said = await client.until(1, "caught_up")
    assert sum(len(body) for kind, body in said if kind == "events") == 90


async def test_credit_given_in_the_message_that_subscribes_counts(node: Node, client: Client):
    await node.append("s", 5)
    await client.send(["subscribe", 1, {}, 0], ["credit", 1, 5])
    assert len(await client.records(1, 5)) == 5


async def test_a_subscription_that_cannot_be_is_refused(node: Node, client: Client):
    assert (await client.ask("subscribe", {"after": "x"}))[1]["code"] == "invalid_start_version"
    assert (await client.ask("subscribe", {"aftr": 1}))[0] == 400
    assert (await client.ask("subscribe", {}, -1))[0] == 400
    await client.send(["subscribe", 1, {}])
    await client.until(1, "caught_up")
    await client.send(["subscribe", 1, {}])
    assert (await client.final(1))[0] == 400
    await client.send(["cancel", 99], ["credit", 99, 1])  # both may cross with an end
    assert await client.ask("ping") == (200, None)


async def test_subscriptions_of_a_connection_are_bounded():
    async with serving(socket_feeds_max=3) as node, talking(node) as client:
        await client.send(*(["subscribe", number, {}] for number in range(5)))
        for refused in (3, 4):
            status, body = await client.final(refused)
            assert (status, body["limit"]) == (503, "socket_feeds_max")
        await client.send(["cancel", 0])
        await client.final(0)
        await client.send(["subscribe", 9, {}])
        await client.until(9, "caught_up")


async def test_a_subscription_ends_with_its_store(node: Node):
    await node.ask("PUT", "/v1/stores/other")
    async with talking(node, "other") as client:
        await client.send(["subscribe", 1, {}])
        await client.until(1, "caught_up")
        await node.ask("DELETE", "/v1/stores/other")
        status, body = await client.final(1)
        assert (status, body["code"], body["position"]) == (404, "store_not_found", 0)
        assert (await client.ask("append", "s", [event()]))[0] == 404


async def test_many_subscriptions_see_every_event_once_beside_appends(node: Node, client: Client):
    await client.send(*(["subscribe", 1_000 + n, {}] for n in range(20)))
    async with talking(node) as writer:
        for number in range(60):
            await writer.send(["append", number, f"s{number % 7}", [event(number)]])
            if number % 9 == 0:
                await writer.final(number)
        for follower in range(1_000, 1_020):
            records = await client.records(follower, 60)
            assert [record[0] for record in records] == list(range(1, 61))


# --- bounds and the end ---------------------------------------------------------------------------


async def test_at_the_bound_reading_waits_and_goes_on(node: Node):
    async with serving(socket_requests_max=10) as node, talking(node) as client:
        gate = asyncio.Event()
        propose, seen = node.replica.propose, 0

        async def held(command, timeout_ms):
            nonlocal seen
            asked = commands.decode(command)
            seen += len(asked.streams) if isinstance(asked, commands.AppendEach) else 1
            await gate.wait()
            return await propose(command, timeout_ms)

        node.replica.propose = held  # type: ignore[method-assign]
        await client.send(*(["append", n, "s", [event()]] for n in range(30)))
        await eventually(lambda: seen == 10)
        await client.send(["ping", 99])
        await asyncio.sleep(0.02)
        assert seen == 10 and not client.answers
        gate.set()
        assert {(await client.final(n))[0] for n in range(30)} == {201}
        assert await client.final(99) == (200, None)


async def test_a_slow_reader_of_a_subscription_is_sent_no_more_than_fits():
    async with serving(stream_buffer_bytes_max=50_000, ping_s=5) as node:
        for _ in range(40):
            await node.append("s", 6, data="x" * 100_000)
        async with talking(node) as client, talking(node) as other:
            await client.send(["subscribe", 1, {}])
            await eventually(lambda: any(c.writing_paused for c in node.api._server.connections))
            held = [c.transport.get_write_buffer_size() for c in node.api._server.connections]
            assert max(held) < 2_000_000
            assert (await other.ask("append", "t", [event()]))[0] == 201
            records = await client.records(1, 241)
            assert [record[0] for record in records] == list(range(1, 242))


async def test_a_client_that_leaves_takes_its_subscriptions_and_reads_with_it(node: Node):
    async with talking(node) as client:
        await client.send(*(["subscribe", n, {}] for n in range(5)))
        await client.until(4, "caught_up")
        client.socket._response.connection.transport.abort()
        await eventually(lambda: node.api._talks._following.followers == 0)
        await eventually(lambda: not node.api._talks.conversations)
    assert not node.api.arrivals._waiting


async def test_a_client_that_asks_and_leaves_at_once_leaves_nothing_behind(node: Node):
    """Its requests end before they have begun; a coroutine that nobody awaits is a warning."""
    async with talking(node) as client:
        await client.send(*(["read", number, "s", {}] for number in range(3)))
    await eventually(lambda: not node.api._talks.conversations)
    gc.collect()


async def test_the_last_words_of_a_node_that_stops():
    async with serving(stop_s=2, linger_s=0.2) as node, talking(node) as client:
        gate = asyncio.Event()
        propose = node.replica.propose

        async def held(command, timeout_ms):
            await gate.wait()
            return await propose(command, timeout_ms)

        await client.send(["subscribe", 1, {}], ["subscribe", 2, {}, 0])
        await client.until(1, "caught_up")
        node.replica.propose = held  # type: ignore[method-assign]
        await client.send(["append", 3, "s", [event()]])
        await eventually(lambda: any(c._under_way for c in node.api._talks.conversations))
        stop = asyncio.create_task(node.api.stop())
        for subscription in (1, 2):
            status, body = await client.final(subscription)
            assert (status, body["code"], body["position"]) == (503, "not_ready", 0)
        await client.send(["append", 4, "s", [event()]])
        assert (await client.final(4))[1]["code"] == "not_ready"
        gate.set()
        assert (await client.final(3))[0] == 201
        last = await asyncio.wait_for(client.socket.receive(), 5)
        assert (last.type, last.data) == (aiohttp.WSMsgType.CLOSE, 1001)
        await asyncio.wait_for(stop, 5)


async def test_a_stop_does_not_wait_for_ever():
    async with serving(stop_s=0.1, linger_s=0.05) as node, talking(node) as client:
        never = asyncio.Event()

        async def held(command, timeout_ms):
            await never.wait()

        node.replica.propose = held  # type: ignore[method-assign]
        await client.send(["append", 3, "s", [event()]])
        await eventually(lambda: any(c._under_way for c in node.api._talks.conversations))
        await asyncio.wait_for(node.api.stop(), 5)


async def test_a_defect_is_logged_and_told(node: Node, client: Client, caplog, monkeypatch):
    async def broken(*_: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr(node.api._talks, "page", broken)
    status, body = await client.ask("read")
    assert (status, body["code"]) == (500, "internal_error")
    assert "a defect" in caplog.text


async def test_sockets_and_their_requests_are_counted(node: Node, client: Client):
    await client.send(*(["ping", n] for n in range(7)))
    await client.final(6)
    answer = await node.ask("GET", "/metrics")
    assert b"exesdb_sockets 1.0" in answer.raw
    assert b"exesdb_socket_requests_total 7.0" in answer.raw
