"""The client against servers that answer as told: retries, errors, what is certain."""

from __future__ import annotations

import asyncio
import random
import socket
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from cluster.backup.door import Door
from cluster.client import Appended, Client, Event, Filter
from cluster.client_asking import Attempts
from cluster.client_errors import (
    ClientError,
    Deleted,
    LineageChanged,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unavailable,
    WrongExpectedVersion,
    of_problem,
)
from cluster.client_routing import Routing
from cluster.client_sync import SyncClient
from cluster.supervisor import PROJECT
from node.api.limits import ApiLimits
from tests.api.fakes import eventually
from tests.cluster.fake_http import answering

STORED = {"positions": [1], "streams": {"s": 0}, "raft_index": 7, "idempotent": False}
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Node:
    """A fake node: `answers` are given one after the other, the last one again and again."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.url = ""
        self.cluster: dict[str, Any] | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/cluster":
            known = self.cluster or {"leader": None, "members": []}
            return web.json_response(known)
        body = await request.json() if request.can_read_body else None
        self.asked.append((request.path, dict(request.query), body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == "break":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if callable(answer):
            return await answer(request)
        status, content = answer
        return web.json_response(content, status=status)


@asynccontextmanager
async def nodes(*fakes: Node) -> AsyncIterator[list[str]]:
    async with AsyncExitStack() as stack:
        for fake in fakes:
            fake.url = await stack.enter_async_context(answering(fake.answer))
        yield [fake.url for fake in fakes]


def problem(status: int, code: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    return status, {"status": status, "code": code, "detail": "so it is", **fields}


async def test_what_aiohttp_sends_twice_by_itself_is_never_called_certainly_not_stored() -> None:
    """A PUT whose connection breaks is sent again; the node may have carried out the first."""
    heard = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            heard.append(head.split()[0])
            if heard[-1] == b"PUT":
                server.close()
                writer.transport.abort()
                return
            content = b'{"leader": null, "members": []}'
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d"
            writer.write(head % len(content) + b"\r\n\r\n" + content)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Client(f"127.0.0.1:{port}", timeout_s=1) as client:
        with pytest.raises(OutcomeUnknown):
            await client.create_subscription("s")
    assert heard == [b"GET", b"PUT"]


async def test_an_append_says_where_the_events_stand():
    node = Node((201, STORED))
    async with nodes(node) as urls, Client(*urls) as client:
        event = Event("A", {"x": 1}, b"\x00\xff")
        assert await client.append("a b/c", [event], 3) == Appended([1], {"s": 0}, 7, False)
        assert client.seen_index == 7
        ((path, query, body),) = node.asked
        assert path == "/v1/stores/my_store/streams/a b/c/events"
        assert 0 < int(query["timeout_ms"]) <= 15_000
        assert body["expected_version"] == 3
        (sent,) = body["events"]
        assert sent == {
            "event_id": event.id,
            "event_type": "A",
            "data": {"x": 1},
            "metadata_base64": "AP8=",
        }


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), ValueError),
        ({"a": [1, float("inf")]}, ValueError),
        ({"a": b"x"}, TypeError),
        ([bytearray(b"x")], TypeError),
        ((memoryview(b"x"),), TypeError),
        ({1: "a"}, TypeError),
        ([{"a": {None: 1}}], TypeError),
    ],
)
async def test_what_would_be_changed_on_its_way_is_not_sent(value: Any, error: type[Exception]):
    node = Node((201, STORED))
    async with nodes(node) as urls, Client(*urls) as client:
        for event in (Event("A", value), Event("A", metadata=value)):
            with pytest.raises(error):
                await client.append("s", [event])
            with pytest.raises(error):
                await client.append_many([("s", event)])
        with pytest.raises(error):
            await client.record_snapshot("a", "s", 0, "A", value)
        assert node.asked == []


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_bytes_of_all_kinds_are_bytes(kind: Any):
    node = Node((201, STORED))
    async with nodes(node) as urls, Client(*urls) as client:
        await client.append("s", [Event("A", kind(b"\x00\xff")), Event("A", [1.5, {"a": None}])])
        ((_, _, body),) = node.asked
        assert [event.get("data_base64") for event in body["events"]] == ["AP8=", None]
        assert body["events"][1]["data"] == [1.5, {"a": None}]


def test_an_installed_client_tells_programs_its_types():
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-data"]["cluster"] == ["py.typed"]
    assert (PROJECT / "cluster" / "py.typed").exists()


async def test_large_appends_are_nothing_to_warn_of():
    """pytest makes errors of warnings."""
    large = Event("A", "x" * 1_500_000)
    node = Node(problem(503, "no_leader"), (201, STORED))
    async with nodes(node) as urls, Client(*urls) as client:
        await client.append("s", [large])
        assert [body["events"][0]["data"] for _, _, body in node.asked] == [large.data] * 2


@pytest.mark.parametrize(
    "first",
    [
        "break",
        problem(503, "no_leader"),
        problem(504, "outcome_unknown"),
        (500, {"code": "internal_error", "detail": "?"}),
    ],
)
async def test_what_may_succeed_later_is_tried_again_with_the_same_ids(first):
    node = Node(first, (201, STORED))
    async with nodes(node) as urls, Client(*urls) as client:
        await client.append("s", [Event("A")])
        (_, _, one), (_, _, two) = node.asked
        assert one == two


async def test_another_node_is_asked_where_one_is_down():
    up = Node((201, STORED))
    async with nodes(up) as urls, Client("127.0.0.1:9", *urls) as client:
        for _ in range(4):
            await client.append("s", [Event("A")])
        assert len(up.asked) == 4


@pytest.mark.parametrize("kind", [Unavailable, OutcomeUnknown])
async def test_who_cannot_be_reached_does_not_hide_what_another_node_says(kind: type[ClientError]):
    attempts = Attempts(0.2, random.Random(1))
    await attempts.failed(Unavailable("waits for n2", "not_ready"))
    with pytest.raises(kind, match="n2: Connection refused; another node said: waits for n2"):
        while True:
            await attempts.failed(kind("n2: Connection refused"))


async def test_appends_go_to_the_leader_that_a_node_names():
    follower, leader = Node((201, STORED)), Node((201, STORED))
    async with nodes(follower, leader):
        members = [
            {"id": "n1", "http_address": follower.url},
            {"id": "n2", "http_address": leader.url},
        ]
        follower.cluster = leader.cluster = {"leader": "n2", "members": members}
        async with Client(follower.url) as client:
            for _ in range(3):
                await client.append("s", [Event("A")])
        assert (len(follower.asked), len(leader.asked)) == (0, 3)


async def test_a_conflict_is_told_at_once_and_with_its_numbers():
    node = Node(problem(409, "wrong_expected_version", stream="s", expected=1, current=4))
    async with nodes(node) as urls, Client(*urls) as client:
        with pytest.raises(WrongExpectedVersion) as caught:
            await client.append("s", [Event("A")], 1)
        assert (caught.value.stream, caught.value.current) == ("s", 4)
        assert not caught.value.stored and not caught.value.retry
        assert len(node.asked) == 1


async def test_a_conflict_after_an_open_try_does_not_claim_that_nothing_was_stored():
    node = Node("break", problem(409, "wrong_expected_version", stream="s", expected=1, current=4))
    async with nodes(node) as urls, Client(*urls) as client:
        with pytest.raises(WrongExpectedVersion) as caught:
            await client.append("s", [Event("A")], 1)
        assert caught.value.stored


@pytest.mark.parametrize("content", [[], "no", None])
@pytest.mark.parametrize("status", [200, 502])
async def test_what_a_proxy_says_that_is_no_object_is_an_error_of_the_tree(
    content: Any, status: int
):
    async with nodes(Node((status, content))) as urls, Client(*urls, timeout_s=0.3) as client:
        with pytest.raises(Unavailable):
            await client.checkpoint("c")
        with pytest.raises(OutcomeUnknown):
            await client.append("s", [Event("A")])


def saying(status: int, text: str = "<html>", **headers: str) -> Answer:
    """A proxy in place of a node."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text, headers=headers)

    return answer


@pytest.mark.parametrize("text", ["<html>", "", "[]", '{"code": 16, "message": "no"}'])
@pytest.mark.parametrize("status", [301, 302, 307, 401, 403, 404, 407, 413])
async def test_what_a_proxy_refuses_is_a_definite_no_that_names_the_status(status: int, text: str):
    node = Node(saying(status, text))
    async with nodes(node) as urls, Client(*urls) as client:
        for call in (client.append("s", [Event("A")]), client.version("s")):
            with pytest.raises(Refused, match=f"{urls[0]}: HTTP status {status}") as caught:
                await call
            assert not caught.value.stored
        with pytest.raises(Refused, match=f"HTTP status {status}"):
            await anext(aiter(client.subscribe()))
        assert len(node.asked) == 3, "nothing was tried again"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, Unavailable), (303, OutcomeUnknown), (408, OutcomeUnknown), (503, OutcomeUnknown)],
)
async def test_what_a_proxy_did_is_not_known_where_it_may_have_passed_it_on(
    status: int, kind: type[ClientError]
):
    async with nodes(Node(saying(status))) as urls, Client(*urls, timeout_s=0.3) as client:
        with pytest.raises(kind, match=f"HTTP status {status}"):
            await client.append("s", [Event("A")])


async def test_an_append_does_not_follow_to_another_address_where_it_would_be_a_read():
    node = Node(saying(302, Location="/elsewhere"), (200, {"events": []}))
    async with nodes(node) as urls, Client(*urls) as client:
        with pytest.raises(Refused, match="HTTP status 302 Found, to /elsewhere"):
            await client.append("s", [Event("A")])


async def test_an_answer_that_lacks_what_a_node_tells_is_an_error_of_the_tree():
    async with nodes(Node((200, {}))) as urls, Client(*urls) as client:
        with pytest.raises(OutcomeUnknown, match="lacks 'positions'") as caught:
            await client.append("s", [Event("A")])
        assert caught.value.stored
        with pytest.raises(Unavailable, match="lacks 'version'"):
            await client.version("s")


async def test_a_subscription_passes_over_who_says_what_no_node_does():
    node = Node(saying(200), streaming("{}"), streaming(line("event", 1, recorded(1))))
    async with nodes(node) as urls, Client(*urls) as client:
        assert (await anext(aiter(client.subscribe()))).position == 1


@pytest.mark.parametrize("content", [b"<html>", b'"no"', b"null", b"[]"])
async def test_a_backup_ends_in_an_error_of_the_tree_whatever_a_proxy_says(content: bytes):
    async def forbidden(request: web.Request) -> web.Response:
        return web.Response(status=403, body=content)

    async with nodes(Node(forbidden)) as urls, Door(urls, "s", 0.3) as door:
        with pytest.raises(ClientError):
            await door.ask("GET", "", [])


async def test_time_that_runs_out_tells_what_is_certain():
    for answer, kind, stored in [
        (problem(503, "no_leader"), Unavailable, False),
        (problem(504, "outcome_unknown"), OutcomeUnknown, True),
        (problem(500, "internal_error", stored="perhaps"), OutcomeUnknown, True),
        ((502, {}), OutcomeUnknown, True),  # of a proxy
    ]:
        async with nodes(Node(answer)) as urls, Client(*urls, timeout_s=1) as client:
            with pytest.raises(kind) as caught:
                await client.append("s", [Event("A")])
            assert caught.value.stored is stored and caught.value.retry


async def test_one_open_try_makes_the_whole_call_open():
    node = Node("break", problem(503, "no_leader"))
    async with nodes(node) as urls, Client(*urls, timeout_s=1) as client:
        with pytest.raises(OutcomeUnknown):
            await client.append("s", [Event("A")])
        assert len(node.asked) > 1


async def test_where_nobody_takes_the_connection_nothing_is_stored():
    """So it is with a machine that is down: its address says nothing."""
    with ExitStack() as sockets:
        server = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # the queue of those who wait is full
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        port = server.getsockname()[1]
        async with Client(f"127.0.0.1:{port}", timeout_s=0.5) as client:
            with pytest.raises(Unavailable) as caught:
                await client.append("s", [Event("A")])
            assert not caught.value.stored


async def test_looking_for_the_leader_takes_no_longer_than_the_call_may():
    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    node, loop = Node(), asyncio.get_running_loop()
    node.answer = silent  # type: ignore[method-assign]
    async with nodes(node) as urls, Client(*urls, timeout_s=0.2) as client:
        began = loop.time()
        with pytest.raises(OutcomeUnknown):
            await client.append("s", [Event("A")])
        assert loop.time() - began < 1.5


async def test_a_node_that_never_answers_is_given_up():
    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async with nodes(Node(silent)) as urls, Client(*urls, timeout_s=0.2) as client:
        async with asyncio.timeout(5):
            with pytest.raises(OutcomeUnknown):
                await client.append("s", [Event("A")])


@pytest.mark.parametrize(
    "call", [lambda client: client.append("s", [Event("A")]), lambda client: client.version("s")]
)
async def test_a_node_that_never_answers_leaves_time_to_ask_again(call):
    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    node = Node(silent, (201, STORED | {"version": 0}))
    async with nodes(node) as urls, Client(*urls, timeout_s=3) as client:
        await call(client)
        assert len(node.asked) == 2


@pytest.mark.parametrize("timeout_s", [3_600, float("inf")])
async def test_no_node_is_asked_to_wait_longer_than_one_may(timeout_s: float):
    node = Node((201, STORED))
    async with nodes(node) as urls, Client(*urls, timeout_s=timeout_s) as client:
        await client.append("s", [Event("A")])
        assert int(node.asked[0][1]["timeout_ms"]) <= ApiLimits().timeout_ms_max


async def test_reads_go_through_all_pages_and_ask_for_what_was_written():
    def page(first: int, last: bool) -> tuple[int, dict[str, Any]]:
        events = [recorded(position) for position in (first, first + 1)]
        return 200, {"events": events, "next": first + 1, "is_end": last}

    node = Node((201, STORED), page(1, False), page(3, True))
    async with nodes(node) as urls, Client(*urls) as client:
        await client.append("s", [Event("A")])
        read = client.read(0, Filter(("A", "B"), "s", ({"path": "data", "exists": True},)), "t")
        assert [event.position async for event in read] == [1, 2, 3, 4]
        queries = [query for _, query, _ in node.asked[1:]]
        assert [query["after"] for query in queries] == ["0", "2"]
        assert queries[1]["where"] == '[{"path":"data","exists":true}]'
        assert (queries[1]["stream_prefix"], queries[1]["stream"]) == ("s", "t")
        assert all(query["min_index"] == "7" for query in queries)


async def test_a_missing_checkpoint_is_none_and_a_missing_store_is_an_error():
    node = Node(problem(404, "checkpoint_not_found"), problem(404, "store_not_found"))
    async with nodes(node) as urls, Client(*urls) as client:
        assert await client.checkpoint("c") is None
        with pytest.raises(NotFound):
            await client.checkpoint("c")


async def test_a_stream_that_was_not_there_is_not_deleted():
    node = Node(
        problem(404, "stream_not_found"),
        problem(410, "stream_deleted"),
        problem(410, "stream_deleted"),
        problem(404, "stream_not_found"),
        problem(404, "store_not_found"),
    )
    async with nodes(node) as urls, Client(*urls) as client:
        assert not await client.delete_stream("s", 3)
        assert node.asked[0][1]["expected_version"] == "3"
        assert not await client.delete_stream("s", hard=True)
        with pytest.raises(Deleted):
            await client.delete_stream("s")
        assert await client.stream("s") is None
        with pytest.raises(NotFound):
            await client.stream("s")


def recorded(position: int) -> dict[str, Any]:
    return {
        "event_stream_id": "s",
        "event_number": position - 1,
        "position": position,
        "event_id": "i",
        "event_type": "A",
        "data_base64": "AAE=",
        "metadata": None,
        "created_epoch": 1,
    }


def streaming(*lines: str) -> Answer:
    """A node that says these lines and then stops."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        await response.write("".join(line + "\n" for line in lines).encode())
        await response.write_eof()  # aiohttp's client drops what it has of an answer that breaks
        assert request.transport is not None
        request.transport.close()
        return response

    return answer


def line(kind: str, position: int, data: Any) -> str:
    return web.json_response({"id": position, "event": kind, "data": data}).text or ""


async def test_a_subscription_goes_on_where_it_was_when_a_node_leaves():
    one = Node(
        streaming(line("event", 1, recorded(1)), "", line("event", 2, recorded(2))),
        streaming(line("checkpoint", 9, {"position": 9})),
        streaming(line("event", 12, recorded(12)), line("caught_up", 12, {"position": 12})),
        streaming(line("error", 12, problem(404, "store_not_found")[1])),
    )
    async with nodes(one) as urls, Client(*urls) as client:
        subscription = client.subscribe(0)
        seen = []
        with pytest.raises(NotFound):
            async for event in subscription:
                assert subscription.position == event.position
                seen.append((event.position, event.data))
        assert seen == [(1, b"\x00\x01"), (2, b"\x00\x01"), (12, b"\x00\x01")]
        assert [query["after"] for _, query, _ in one.asked] == ["0", "2", "9", "12"]


async def test_a_subscription_outlives_refusals():
    async def by_proxy(request: web.Request) -> web.Response:
        return web.Response(status=502, text="<html>")

    node = Node(
        problem(503, "not_ready"),
        by_proxy,
        (502, []),
        streaming(line("error", 0, problem(503, "slow_consumer")[1])),
        "break",
        streaming(line("event", 1, recorded(1))),
    )
    async with nodes(node) as urls, Client(*urls) as client:
        async for event in client.subscribe():
            assert event.position == 1
            break
        assert len(node.asked) == 6


async def silent_stream(request: web.Request) -> web.StreamResponse:
    """A node that has nothing to say, and is there."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    await asyncio.Event().wait()
    return response


async def test_a_client_is_entered_by_one_at_a_time():
    async with Client("127.0.0.1:9") as client:
        with pytest.raises(RuntimeError, match="already"):
            await client.__aenter__()
    await client.__aexit__(None, None, None)
    async with client:
        assert client.is_open


async def test_leaving_the_client_ends_a_subscription_that_waits():
    node = Node(silent_stream)
    async with nodes(node) as urls:
        async with Client(*urls) as client:
            subscription = client.subscribe()

            async def follow() -> list[Any]:
                return [event async for event in subscription]

            following = asyncio.create_task(follow())
            await eventually(lambda: subscription.connections == 1)
        async with asyncio.timeout(2):
            assert await following == []
        with pytest.raises(RuntimeError, match="async with"):
            await anext(aiter(client.subscribe()))


async def test_a_subscription_that_cannot_connect_says_why_now_and_then(
    caplog: pytest.LogCaptureFixture,
):
    node = Node(*[problem(503, "not_ready")] * 3, streaming(line("event", 1, recorded(1))))
    async with nodes(node) as urls, Client(*urls) as client:
        subscription = client.subscribe()
        events = aiter(subscription)
        following = asyncio.ensure_future(anext(events))
        await eventually(lambda: subscription.last_error is not None)
        assert isinstance(subscription.last_error, Unavailable)
        assert (await following).position == 1 and subscription.last_error is None
    (said,) = [one for one in caplog.records if one.name == "cluster.client"]
    assert said.levelname == "WARNING" and "so it is" in said.message


async def test_leaving_the_client_ends_a_subscription_that_cannot_connect():
    async with Client("127.0.0.1:9") as client:
        following = asyncio.create_task(anext(aiter(client.subscribe()), None))
        await asyncio.sleep(0)
    async with asyncio.timeout(2):
        assert await following is None


def of_lineage(name: str, *ancestry: str, founded: bool = True) -> dict[str, Any]:
    known = {"lineage": name, "ancestry": list(ancestry), "founded": founded}
    return {"leader": None, "members": [], **known}


async def test_reads_do_not_wait_for_an_index_of_a_lineage_that_was_given_up():
    async def behind(request: web.Request) -> web.Response:
        if int(request.query["min_index"]):
            status, content = problem(504, "read_barrier_timeout")
            return web.json_response(content, status=status)
        return web.json_response({"version": 0})

    node = Node((201, STORED), behind)
    node.cluster = of_lineage("old")
    async with nodes(node) as urls, Client(*urls) as client:
        assert client.lineage is None
        await client.append("s", [Event("A")])
        assert (client.lineage, client.seen_index) == ("old", 7)
        node.cluster = of_lineage("new", "old")
        assert await client.version("s") == 0
        assert (client.lineage, client.seen_index) == ("new", 0)
        await client.version("s")
        assert len(node.asked) == 4, "one more try, and no more than one"


async def test_what_was_seen_holds_while_the_lineage_does():
    node = Node((201, STORED), problem(504, "read_barrier_timeout"))
    node.cluster = of_lineage("old")
    async with nodes(node) as urls, Client(*urls, timeout_s=0.3) as client:
        await client.append("s", [Event("A")])
        with pytest.raises(Unavailable):
            await client.version("s")
        assert client.seen_index == 7


async def test_a_subscription_ends_when_the_cluster_goes_on_in_another_lineage():
    one = streaming(line("event", 1, recorded(1)), line("event", 2, recorded(2)))
    node = Node(one, streaming(line("event", 3, recorded(3))))
    node.cluster = of_lineage("old")
    async with nodes(node) as urls, Client(*urls) as client:
        subscription = client.subscribe()
        with pytest.raises(LineageChanged, match="position 2 is of lineage old") as caught:
            async for event in subscription:
                assert event.position <= 2 and subscription.lineage == "old"
                node.cluster = of_lineage("new", "old")
        assert (caught.value.before, caught.value.now) == ("old", client.lineage)
        assert not caught.value.stored and not caught.value.retry
        with pytest.raises(LineageChanged):
            await anext(aiter(client.subscribe(2, lineage="old")))
        assert (await anext(aiter(client.subscribe(2, lineage="new")))).position == 3


async def test_a_node_of_a_lineage_that_was_given_up_or_is_not_founded_is_not_followed():
    old = Node(streaming(line("event", 1, recorded(7))))
    unfounded = Node(streaming(line("event", 1, recorded(8))))
    new = Node(streaming(line("event", 1, recorded(9))), problem(404, "store_not_found"))
    old.cluster, new.cluster = of_lineage("old"), of_lineage("new", "old")
    unfounded.cluster = of_lineage("newer", "new", founded=False)
    async with nodes(new, old, unfounded) as urls, Client(*urls) as client:
        await client._look(urls[0], 5)
        subscription = client.subscribe(lineage="new")
        with pytest.raises(NotFound):
            async for event in subscription:
                assert event.position == 9
        assert client.lineage == "new"


@pytest.mark.parametrize("status", [200, 403])
async def test_who_tells_no_lineage_can_be_followed(status: int):
    async def proxy(request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/cluster":
            return web.Response(status=status, text="<html>")
        return await streaming(line("event", 1, recorded(1)))(request)

    node = Node()
    node.answer = proxy  # type: ignore[method-assign]
    async with nodes(node) as urls, Client(*urls) as client:
        assert (await anext(aiter(client.subscribe()))).position == 1


async def test_an_append_that_is_under_way_when_its_client_is_left_is_open():
    async def silent(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    node = Node(silent)
    async with nodes(node) as urls:
        async with Client(*urls) as client:
            appending = asyncio.create_task(client.append("s", [Event("A")]))
            reading = asyncio.create_task(client.version("s"))
            await eventually(lambda: len(node.asked) == 2)
        async with asyncio.timeout(2):
            with pytest.raises(OutcomeUnknown):
                await appending
            with pytest.raises(Unavailable):
                await reading


def test_a_type_that_is_given_as_one_text_is_refused():
    with pytest.raises(TypeError, match=r"Filter\(\('OrderPlaced',\)\)"):
        Filter("OrderPlaced")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [Client, SyncClient])
@pytest.mark.parametrize("address", ["", "kurrentdb://h:2113", "h:abc", "http://", "h:99999"])
def test_an_address_that_is_none_is_refused_where_it_is_given(make: Any, address: str):
    with pytest.raises(ValueError, match="is no address of a node"):
        make("127.0.0.1:8101", address)
    with pytest.raises(TypeError, match="one by one"):
        make([address])


def test_a_node_that_failed_is_passed_over_for_a_while():
    moment = [0.0]
    routing = Routing(["a:1", "b:2", "c:3"], lambda: moment[0])
    routing.failed("http://b:2")
    assert {routing.pick(False) for _ in range(9)} == {"http://a:1", "http://c:3"}
    moment[0] += 3
    assert {routing.pick(False) for _ in range(9)} == set(routing.urls)
    for url in routing.urls:
        routing.failed(url)
    assert routing.pick(True) in routing.urls


def test_a_node_is_passed_over_the_longer_the_more_time_it_costs():
    moment = [0.0]
    routing = Routing(["a:1", "b:2"], lambda: moment[0])
    costs_s, asked = 8.0, 0
    while moment[0] < 600:
        if routing.pick(False) == "http://b:2":
            moment[0] += costs_s
            routing.failed("http://b:2", costs_s)
            asked += 1
        moment[0] += 0.1
    assert 2 <= asked <= 10
    routing.failed("http://b:2", 3_600)
    routing.failed("http://b:2")
    assert {routing.pick(False) for _ in range(9)} == {"http://a:1"}
    moment[0] += 61
    assert {routing.pick(False) for _ in range(9)} == set(routing.urls)


async def test_a_node_that_says_nothing_does_not_hold_up_call_after_call():
    """So it is with a frozen one: without more ado it is asked anew all the time."""

    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    frozen, well, loop = Node(silent), Node((200, {"version": 0})), asyncio.get_running_loop()
    async with nodes(frozen, well) as urls, Client(*urls, timeout_s=2) as client:
        until = loop.time() + 4.5
        while loop.time() < until:
            await client.version("s")
            await asyncio.sleep(0.02)
        assert len(frozen.asked) == 1


def test_a_leader_that_failed_is_no_leader_any_more():
    routing = Routing(["a:1"], lambda: 0.0)
    members = [{"id": "n1", "http_address": "a:1"}, {"id": "n2", "http_address": "b:2"}]
    routing.learned({"leader": "n2", "members": members})
    assert routing.pick(True) == "http://b:2"
    routing.failed("http://b:2")
    assert routing.stale and routing.pick(True) == "http://a:1"


def test_every_status_becomes_an_error_of_the_tree():
    for status in range(400, 600):
        error = of_problem(status, {"code": "x"})
        assert error.code == "x" and not error.stored


async def test_pauses_grow_and_differ():
    seed = random.randrange(2**32)
    print("seed", seed)
    attempts = Attempts(100, random.Random(seed))
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await real(0)

    asyncio.sleep = sleep  # type: ignore[assignment]
    try:
        for _ in range(10):
            await attempts.failed(Unavailable("?"))
    finally:
        asyncio.sleep = real
    assert len(set(slept)) == 10
    assert all(pause <= 1.5 for pause in slept) and slept[-1] > slept[0]
