"""Streams that are deleted or keep only a part of their events, as every reader sees them."""

from __future__ import annotations

import asyncio
from typing import Any

import cbor2
import pytest

from node.api.filters import Scan
from node.api.limits import ApiLimits
from node.core import commands, life_commands
from node.core.commands import ANY
from node.core.filters import Filter
from node.core.store import Store
from tests.api.fakes import Answered, Node
from tests.api.test_conversation import talking
from tests.api.test_following import NDJSON, follow
from tests.core.observed import frame

STORE = "/v1/stores/main"
S, T = f"{STORE}/streams/s", f"{STORE}/streams/t"
ONE = f"{STORE}/subscriptions/one"


async def fill(node: Node) -> None:
    """Positions 1 to 12: the odd ones of s, the even ones of t."""
    for n in range(6):
        for stream in ("s", "t"):
            await node.append(stream, data={"n": n, "total": {"$sum": n}})


def positions(answer: Answered) -> list[int]:
    return [event["position"] for event in answer.body["events"]]


def numbers(answer: Answered) -> list[int]:
    return [event["event_number"] for event in answer.body["events"]]


async def truncate(node: Node, before: int) -> Answered:
    return await node.ask("PUT", S + "/metadata", json={"truncate_before": before})


def sweep(node: Node) -> None:
    """Take the frames of all removed events out of memory."""
    store = node.state.stores["main"]
    for position in range(1, store.position + 1):
        if not store.kept(position):
            store._frames[position - 1] = b"\x80"


async def test_what_a_stream_keeps_is_told_when_it_is_set_and_looked_at(node: Node):
    await fill(node)
    answer = await node.ask("PUT", S + "/metadata", json={"max_count": 4, "truncate_before": 99})
    metadata = {"max_count": 4, "truncate_before": 6}
    assert (answer.status, answer.body) == (
        200,
        {"stream": "s", "first_event_number": 6, "metadata": metadata},
    )
    looked = (await node.ask("GET", S)).body
    assert looked == {
        **{"stream": "s", "version": 5, "count": 0},
        **{"first_event_number": 6, "metadata": metadata},
    }
    await node.append("s", 5)
    assert (await node.ask("GET", S)).body["first_event_number"] == 7
    again = await node.ask("PUT", S + "/metadata", json={})
    assert again.body["metadata"] == {}
    assert (await node.ask("GET", S)).body["count"] == 4, "what was removed stays removed"


@pytest.mark.parametrize(
    ("query", "expected", "after", "is_end"),
    [
        ("", [4, 5], 6, True),
        ("?from=0&limit=1", [4], 5, False),
        ("?from=5", [5], 6, True),
        ("?from=9", [], 9, True),
        ("?direction=backward", [5, 4], 3, True),
        ("?direction=backward&limit=1", [5], 4, False),
        ("?direction=backward&from=4&limit=1", [4], 3, True),
        ("?direction=backward&from=3", [], 3, True),
        ("?from=end", [5], 6, True),
    ],
)
async def test_a_truncated_stream_is_read_from_what_it_keeps(
    node: Node, query, expected, after, is_end
):
    await fill(node)
    await truncate(node, 4)
    sweep(node)
    answer = await node.ask("GET", f"{S}/events{query}")
    assert numbers(answer) == expected
    assert (answer.body["version"], answer.body["next"], answer.body["is_end"]) == (
        *(5, after),
        is_end,
    )


async def test_a_stream_that_keeps_nothing_is_there_and_empty(node: Node):
    await fill(node)
    await truncate(node, 6)
    for query in ("", "?direction=backward", "?from=end", "?must_exist=true"):
        answer = await node.ask("GET", f"{S}/events{query}")
        assert (answer.status, answer.body["version"], answer.body["events"]) == (200, 5, [])
        assert answer.body["is_end"]


KEPT = [2, 4, 6, 8, 9, 10, 11, 12]  # s is truncated before number 4


@pytest.mark.parametrize(
    ("query", "expected", "after"),
    [
        ("", KEPT, 12),
        ("limit=1", [2], 2),
        ("after=2&limit=2", [4, 6], 6),
        ("until=7", [2, 4, 6], 7),
        ("stream=s", [9, 11], 12),
        ("stream=s&until=7", [], 7),
        ("stream=s&direction=backward", [11, 9], 1),
        ("direction=backward&limit=3", [12, 11, 10], 10),
        ("direction=backward&after=8", [6, 4, 2], 1),
        ("type=Happened", KEPT, 12),
    ],
)
async def test_the_store_is_read_without_what_was_removed(node: Node, query, expected, after):
    await fill(node)
    await truncate(node, 4)
    sweep(node)
    answer = await node.ask("GET", f"{STORE}/events?{query}")
    assert positions(answer) == expected
    assert (answer.body["head"], answer.body["next"]) == (12, after)


async def test_followers_pass_removed_events_by(node: Node):
    await fill(node)
    await truncate(node, 4)
    sweep(node)
    async with follow(node, "", NDJSON) as stream:
        said = await stream.until("caught_up")
        assert [one.id for one in said] == [*KEPT, 12]
        await node.ask("DELETE", T)
        await node.append("t", 1)
        told = await stream.next()
        assert (told.id, told.data["event_number"]) == (13, 6)
    async with talking(node) as client:
        await client.send(["subscribe", 1, {}])
        said = await client.until(1, "caught_up")
        records = [record for kind, many in said if kind == "events" for record in many]
        assert [record[0] for record in records] == [9, 11, 13]
        status, page = await client.ask("read", "s", {"from": 0})
        assert (status, [event["position"] for event in page["events"]]) == (200, [9, 11])


async def test_a_deleted_stream_reads_as_absent_and_its_numbers_go_on(node: Node):
    await fill(node)
    assert (await node.ask("DELETE", S + "?expected_version=4")).code == "wrong_expected_version"
    assert (await node.ask("DELETE", S + "?expected_version=5")).status == 204
    sweep(node)
    assert (await node.ask("GET", S)).code == "stream_not_found"
    page = await node.ask("GET", S + "/events")
    assert (page.status, page.body["version"], page.body["events"]) == (200, -1, [])
    assert (await node.ask("GET", S + "/events?must_exist=true")).status == 404
    assert (await node.ask("GET", S + "/fold")).code == "stream_not_found"
    listed = await node.ask("GET", STORE + "/streams")
    assert [one["stream"] for one in listed.body["streams"]] == ["t"]
    (store,) = (await node.ask("GET", "/v1/stores")).body["stores"]
    assert store == {"store": "main", "streams": 1, "events": 6, "position": 12}
    assert (await node.ask("DELETE", S)).code == "stream_not_found"
    event = {"event_type": "A"}
    body = {"expected_version": "no_stream", "events": [event]}
    answer = await node.ask("POST", S + "/events", json=body)
    assert (answer.status, answer.body["first_version"]) == (201, 6)
    assert numbers(await node.ask("GET", S + "/events")) == [6]


async def test_a_stream_that_was_deleted_for_ever_is_410_at_every_door(node: Node):
    await fill(node)
    assert (await node.ask("DELETE", S + "?hard=true")).status == 204
    sweep(node)
    event = {"event_type": "A", "stream": "s"}
    plain = {"event_type": "A"}
    answers = [
        await node.ask("GET", S),
        await node.ask("GET", S + "/events"),
        await node.ask("GET", S + "/fold"),
        await node.ask("DELETE", S),
        await node.ask("DELETE", S + "?hard=true"),
        await node.ask("PUT", S + "/metadata", json={"max_count": 1}),
        await node.ask("POST", S + "/events", json={"events": [plain]}),
        await node.ask("POST", STORE + "/append", json={"events": [event]}),
        await node.ask(
            "POST",
            STORE + "/append",
            json={
                "events": [{**event, "stream": "t"}],
                "checks": [{"stream": "s", "expected_version": "any"}],
            },
        ),
    ]
    for answer in answers:
        assert (answer.status, answer.code, answer.body["stream"]) == (410, "stream_deleted", "s")
        assert answer.body["stored"] == "no"
    async with talking(node) as client:
        for asked in (
            ["append", "s", [plain]],
            ["append_many", [event]],
            ["read", "s", {}],
        ):
            status, problem = await client.ask(*asked)
            assert (status, problem["code"]) == (410, "stream_deleted"), asked
    assert positions(await node.ask("GET", STORE + "/events")) == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("given", ["no_stream", -1, 7, 2**62 + 5])
async def test_a_refused_deletion_names_what_was_expected_in_the_clients_words(node: Node, given):
    await fill(node)
    answer = await node.ask("DELETE", f"{S}?expected_version={given}")
    assert (answer.status, answer.code) == (409, "wrong_expected_version")
    assert answer.body["expected"] == given


@pytest.mark.parametrize("word", ["x", "-2", "1.0", "", "%D9%A1", "9" * 41])
async def test_a_deletion_that_expects_nonsense_is_refused(node: Node, word):
    await fill(node)
    answer = await node.ask("DELETE", f"{S}?expected_version={word}")
    assert (answer.status, answer.code) == (400, "invalid_expected_version")


@pytest.mark.parametrize(
    "body",
    [
        {"max_count": 0},
        {"max_count": True},
        {"max_age_ms": 0},
        {"max_age_ms": 2**62},
        {"truncate_before": -1},
        {"truncate_before": 2**62 + 1},
        {"max_count": "1"},
        {"max": 1},
        [],
    ],
)
async def test_metadata_that_is_none_is_refused(node: Node, body: Any):
    await fill(node)
    answer = await node.ask("PUT", S + "/metadata", json=body)
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert (await node.ask("GET", S)).body["count"] == 6


async def test_a_fold_begins_at_what_is_kept_or_at_a_snapshot(node: Node):
    await fill(node)
    await truncate(node, 4)
    sweep(node)
    body = (await node.ask("GET", S + "/fold")).body
    assert (body["state"], body["version"], body["is_end"]) == ({"n": 5, "total": 9}, 5, True)
    page = (await node.ask("GET", S + "/fold?limit=1")).body
    assert (page["state"]["total"], page["version"], page["is_end"]) == (4, 4, False)
    before = (await node.ask("GET", S + "/fold?max_version=2")).body
    assert (before["state"], before["version"], before["is_end"]) == ({}, 2, True)
    target = STORE + "/snapshots/o/s/3"
    snapshot = {"source_type": "Order", "data": {"total": 100}}
    assert (await node.ask("PUT", target, json=snapshot)).status == 201
    folded = (await node.ask("GET", S + "/fold?source=o")).body
    assert (folded["state"]["total"], folded["snapshot_version"], folded["folded"]) == (109, 3, 2)


async def test_a_persistent_subscription_hands_out_nothing_that_was_removed(node: Node):
    await fill(node)
    assert (await node.ask("PUT", ONE, json={"max_retries": 0})).status == 201
    first = await node.ask("POST", ONE + "/fetch", json={"consumer": "c"})
    assert positions(first) == [1, 2]
    ids = [event["delivery_id"] for event in first.body["events"]]
    await node.ask("POST", ONE + "/nack", json={"delivery_ids": ids, "action": "park"})
    await truncate(node, 4)
    sweep(node)
    assert positions(await node.ask("GET", ONE + "/parked")) == [2]
    assert sorted(positions(await _fetch(node))) == [4, 9]


async def test_what_is_removed_before_a_fetch_is_answered_is_given_back_at_once(node: Node):
    await fill(node)
    assert (await node.ask("PUT", ONE, json={})).status == 201
    propose = node.replica.propose

    async def and_truncate(command: bytes, timeout_ms: int) -> Any:
        found = await propose(command, timeout_ms)
        if type(commands.decode(command)).__name__ == "Fetch":
            limits = life_commands.Limits(truncate_before=4)
            node.replica.apply(life_commands.set_metadata("main", "s", limits))
            sweep(node)
        return found

    node.replica.propose = and_truncate  # type: ignore[method-assign]
    assert positions(await node.ask("POST", ONE + "/fetch", json={"consumer": "c"})) == [2]
    async with asyncio.timeout(5):
        while (found := positions(await _fetch(node))) == []:
            pass
    assert found == [9]


async def _fetch(node: Node) -> Answered:
    return await node.ask("POST", ONE + "/fetch", json={"consumer": "c"})


class Between:
    """Breathes by letting something happen."""

    def __init__(self, *happenings: Any) -> None:
        self.happenings = list(happenings)

    async def breathe(self) -> None:
        if self.happenings:
            self.happenings.pop(0)()


async def _scanned(node: Node, wanted: Filter, *happenings: Any) -> list[int]:
    """The positions that two runs of one scan find, with something between the slices."""
    store: Store = node.state.stores["main"]
    scan = Scan(wanted, False, 10_000, 0, None, [])
    pacer: Any = Between(*happenings)
    for _ in range(2):
        await scan.run(store, ApiLimits(), pacer, 10_000)
    assert scan.next == store.position
    for record in scan.records(store):
        assert cbor2.loads(record.frame)
    return [row[0] for row in scan.rows]


async def test_events_that_are_removed_during_a_scan_are_passed_by(node: Node):
    await node.append("s", 2_000)

    def remove() -> None:
        limits = life_commands.Limits(truncate_before=1_500)
        node.replica.apply(life_commands.set_metadata("main", "s", limits))
        sweep(node)

    assert await _scanned(node, Filter(), remove) == [*range(1, 513), *range(1_501, 2_001)]


async def test_all_streams_are_listed_with_their_lives_as_of_a_position(node: Node):
    await fill(node)
    await node.append("u", 3)  # 13 to 15
    await node.append("v", 2)  # 16, 17
    await node.ask("PUT", S + "/metadata", json={"max_count": 2})
    await node.ask("DELETE", T)
    await node.ask("DELETE", f"{STORE}/streams/u?hard=true")
    await node.append("s")  # 18
    listed = {}
    after = ""
    while after is not None:
        target = f"{STORE}/streams?deleted=true&until=9&limit=1&after={after}"
        page = (await node.ask("GET", target)).body
        (one,) = page["streams"]
        name = one.pop("stream")
        listed[name] = tuple(one.values())
        after = page["next"]
    assert list(listed.items()) == [
        ("s", (4, 0, 5, {"max_count": 2}, "alive")),
        ("t", (3, 0, 4, {}, "deleted")),
        ("u", (-1, 0, 0, {}, "deleted_for_ever")),
        ("v", (-1, 0, 0, {}, "alive")),
    ]
    now = (await node.ask("GET", f"{STORE}/streams?deleted=true")).body["streams"]
    assert [(one["stream"], one["version"], one["count"]) for one in now] == [
        *(("s", 6, 2), ("t", 5, 0), ("u", 2, 0), ("v", 1, 2))
    ]
    alive = (await node.ask("GET", f"{STORE}/streams?until=11")).body["streams"]
    assert alive == [
        {"stream": "s", "version": 5, "count": 1},
        {"stream": "v", "version": -1, "count": 0},
    ]


class Compared(str):
    """A name that counts how often such names are compared."""

    times = 0

    def __lt__(self, other: str) -> bool:
        Compared.times += 1
        return super().__lt__(other)

    def __ge__(self, other: str) -> bool:
        Compared.times += 1
        return super().__ge__(other)


async def test_a_page_of_deleted_streams_costs_what_it_returns(node: Node):
    store: Store = node.state.stores["main"]
    for n in range(3_000):
        name = Compared(f"d-{n * 7 % 3_000:04}")
        store.append(name, ANY, [frame(n)], 1, n)
        store.lives.apply(life_commands.DeleteStream("main", name, ANY, False), store, n)
    await node.append("d-1500+")
    Compared.times = 0
    target = f"{STORE}/streams?deleted=true&limit=3&after=d-1499"
    page = (await node.ask("GET", target, headers={"Accept": "application/cbor"})).body
    assert [one["stream"] for one in page["streams"]] == ["d-1500", "d-1500+", "d-1501"]
    assert page["next"] == "d-1501"
    assert Compared.times < 100
