"""Reading streams and the store, page by page."""

from __future__ import annotations

import asyncio
import random

import pytest

from node.core import commands
from node.errors import NoLeader, ReadBarrierTimeout
from tests.api.fakes import Node, Turns, serving

CBOR = {"Accept": "application/cbor"}


async def fill(node: Node) -> None:
    """Positions 1..30: streams a-0, a-1, b-0 in turn, types Odd and Even in turn."""
    for position in range(1, 31):
        stream = ("a-0", "a-1", "b-0")[position % 3]
        await node.append(stream, event_type=("Even", "Odd")[position % 2], data=position)


def positions(answer):
    return [one["position"] for one in answer.body["events"]]


def numbers(answer):
    return [one["event_number"] for one in answer.body["events"]]


@pytest.mark.parametrize("headers", [{}, CBOR])
async def test_a_record_has_all_that_the_contract_lists(node: Node, headers):
    await node.append("s", event_id="0B3E0A4E-0000-4000-8000-00000000ABCD", metadata=[1])
    (record,) = (await node.ask("GET", "/v1/stores/main/events", headers=headers)).body["events"]
    assert record == {
        "event_stream_id": "s",
        "event_number": 0,
        "position": 1,
        "event_id": "0b3e0a4e-0000-4000-8000-00000000abcd",
        "event_type": "Happened",
        "data": {"n": 0},
        "metadata": [1],
        "data_content_type": "application/json",
        "metadata_content_type": "application/json",
        "created": "2026-11-23T20:00:00.123456Z",
        "created_epoch": 1795464000123456,
    }


@pytest.mark.parametrize(
    ("query", "expected", "after", "is_end"),
    [
        ("", [0, 1, 2, 3, 4], 5, True),
        ("?limit=2", [0, 1], 2, False),
        ("?from=3&limit=2", [3, 4], 5, True),
        ("?from=5", [], 5, True),
        ("?from=99", [], 99, True),
        ("?from=end", [4], 5, True),
        ("?direction=backward", [4, 3, 2, 1, 0], -1, True),
        ("?direction=backward&from=end&limit=2", [4, 3], 2, False),
        ("?direction=backward&from=2&limit=9", [2, 1, 0], -1, True),
        ("?direction=backward&from=99&limit=1", [4], 3, False),
    ],
)
async def test_a_stream_is_read_from_anywhere_in_both_directions(
    node, query, expected, after, is_end
):
    await node.append("s", 5)
    answer = await node.ask("GET", f"/v1/stores/main/streams/s/events{query}")
    assert numbers(answer) == expected
    assert {**answer.body, "events": 0} == {
        "stream": "s",
        "version": 4,
        "events": 0,
        "next": after,
        "is_end": is_end,
    }


async def test_an_unknown_stream_is_empty_unless_it_must_exist(node: Node):
    target = "/v1/stores/main/streams/none/events"
    answer = await node.ask("GET", target)
    assert answer.status == 200
    assert answer.body == {"stream": "none", "version": -1, "events": [], "next": 0, "is_end": True}
    answer = await node.ask("GET", target + "?must_exist=true")
    assert (answer.status, answer.code) == (404, "stream_not_found")
    assert (await node.ask("GET", target + "?direction=backward")).body["is_end"] is True


@pytest.mark.parametrize(
    ("query", "expected", "after", "is_end"),
    [
        ("?after=27", [28, 29, 30], 30, True),
        ("?after=3&limit=2", [4, 5], 5, False),
        ("?after=99", [], 99, True),
        ("?after=3&until=5", [4, 5], 5, True),
        ("?type=Odd&limit=3", [1, 3, 5], 5, False),
        ("?type=Odd&type=Even&limit=2", [1, 2], 2, False),
        ("?type=None", [], 30, True),
        ("?stream_prefix=a-&limit=3", [1, 3, 4], 4, False),
        ("?stream_prefix=b-&type=Odd&after=20", [23, 29], 30, True),
        ("?stream_prefix=zzz&until=7", [], 7, True),
        ("?direction=backward&limit=2", [30, 29], 29, False),
        ("?direction=backward&after=3", [2, 1], 1, True),
        ("?direction=backward&after=1", [], 1, True),
        ("?direction=backward&type=Odd&limit=2&after=10", [9, 7], 7, False),
        ("?direction=backward&until=29", [30, 29], 29, True),
    ],
)
async def test_the_store_is_read_in_position_order(node, query, expected, after, is_end):
    await fill(node)
    answer = await node.ask("GET", f"/v1/stores/main/events{query}")
    assert positions(answer) == expected
    assert (answer.body["head"], answer.body["next"], answer.body["is_end"]) == (30, after, is_end)


@pytest.mark.parametrize("direction", ["forward", "backward"])
async def test_a_filtered_reader_that_follows_next_sees_each_match_once(direction):
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    async with serving(positions_per_scan_max=chance.randint(1, 12)) as node:
        await fill(node)
        seen, after, turns = [], None, 0
        while turns < 200:
            turns += 1
            query = f"?type=Odd&stream_prefix=a-&limit={chance.randint(1, 4)}&direction={direction}"
            query += "" if after is None else f"&after={after}"
            answer = await node.ask("GET", f"/v1/stores/main/events{query}")
            seen += positions(answer)
            after = answer.body["next"]
            if answer.body["is_end"]:
                break
        expected = [n for n in range(1, 31) if n % 2 and n % 3 != 2]
        assert seen == (expected if direction == "forward" else expected[::-1])


async def test_a_page_ends_at_its_byte_limit_but_holds_at_least_one_event():
    async with serving(page_bytes_max=10) as node:
        await node.append("s", 3, data="x" * 50)
        for target in ("events", "streams/s/events"):
            answer = await node.ask("GET", f"/v1/stores/main/{target}")
            assert len(answer.body["events"]) == 1
            assert answer.body["is_end"] is False
            assert answer.body["next"] == 1


async def test_a_page_larger_than_the_limit_is_413(node: Node):
    answer = await node.ask("GET", "/v1/stores/main/events?limit=10001")
    assert (answer.status, answer.body["limit"], answer.body["actual"]) == (413, 10_000, 10_001)


async def test_a_page_of_10000_events_is_whole_in_both_encodings(node: Node):
    for _ in range(10):
        await node.append("s", 1_000)
    for headers in ({}, CBOR):
        answer = await node.ask("GET", "/v1/stores/main/events?limit=10000", headers=headers)
        assert positions(answer) == list(range(1, 10_001))


async def test_streams_are_listed_by_name_page_by_page(node: Node):
    for name in ("b", "a", "%C3%A9", "ab", "c"):
        await node.append(name)
    await node.append("ab")
    answer = await node.ask("GET", "/v1/stores/main/streams?limit=2")
    assert answer.body == {
        "streams": [
            {"stream": "a", "version": 0, "count": 1},
            {"stream": "ab", "version": 1, "count": 2},
        ],
        "next": "ab",
    }
    answer = await node.ask("GET", "/v1/stores/main/streams?after=ab")
    assert [one["stream"] for one in answer.body["streams"]] == ["b", "c", "é"]
    assert answer.body["next"] is None
    answer = await node.ask("GET", "/v1/stores/main/streams?prefix=a&limit=2")
    assert [one["stream"] for one in answer.body["streams"]] == ["a", "ab"]
    assert answer.body["next"] is None


async def test_looking_at_a_stream_tells_its_size(node: Node):
    await node.append("s", 3)
    answer = await node.ask("GET", "/v1/stores/main/streams/s")
    assert answer.body == {
        "stream": "s",
        "version": 2,
        "count": 3,
        "first_event_number": 0,
        "metadata": {},
    }
    answer = await node.ask("GET", "/v1/stores/main/streams/none")
    assert (answer.status, answer.code) == (404, "stream_not_found")


async def test_names_are_percent_decoded_once(node: Node):
    await node.append("a%2Fb%20%25%C3%A9")
    answer = await node.ask("GET", "/v1/stores/main/streams?prefix=a/b+%25")
    assert [one["stream"] for one in answer.body["streams"]] == ["a/b %é"]


@pytest.mark.parametrize("level", ["leader", "linearizable"])
async def test_a_read_level_is_a_barrier_before_the_read(node: Node, level):
    def arrives() -> None:
        frame = node.state.stores["main"].frame(1)
        node.replica.apply(
            commands.append("main", 1, "late", -2, [frame[:3] + b"\x09" * 16 + frame[19:]])
        )

    await node.append("s")
    node.replica.before_barrier = arrives
    answer = await node.ask("GET", f"/v1/stores/main/events?consistency={level}")
    assert node.replica.barriers == [level]
    assert answer.body["head"] == 2


async def test_a_local_read_asks_nobody(node: Node):
    await node.ask("GET", "/v1/stores/main/events")
    assert node.replica.barriers == []


@pytest.mark.parametrize("error", [NoLeader("none"), ReadBarrierTimeout("late")])
async def test_a_level_that_cannot_be_reached_is_told(node: Node, error):
    node.replica.barrier_error = error
    answer = await node.ask("GET", "/v1/stores/main/events?consistency=leader")
    assert (answer.status, answer.code) == (error.status, error.code)


@pytest.mark.parametrize("bound", ["min_index=99", "min_position=99"])
async def test_a_bound_that_is_not_reached_in_time_is_504(node: Node, bound):
    answer = await node.ask("GET", f"/v1/stores/main/events?{bound}&timeout_ms=20")
    assert (answer.status, answer.code) == (504, "read_barrier_timeout")


async def test_a_bound_waits_until_this_node_has_come_so_far(node: Node):
    for bound in ("min_index=2", "min_position=1"):
        reading = asyncio.create_task(
            node.ask("GET", f"/v1/stores/main/streams/s/events?{bound}&timeout_ms=5000")
        )
        await node.append("s")
        assert (await reading).body["version"] >= 0


async def test_a_store_made_elsewhere_a_moment_ago_is_found_by_asking_the_leader(node: Node):
    node.replica.before_barrier = lambda: node.replica.apply(commands.create_store("fresh", 1))
    answer = await node.ask("GET", "/v1/stores/fresh/events")
    assert (answer.status, node.replica.barriers) == (200, ["leader"])


async def test_a_store_that_is_nowhere_is_404_after_asking_once(node: Node):
    answer = await node.ask("GET", "/v1/stores/none/events")
    assert (answer.status, answer.code, answer.body["store"]) == (404, "store_not_found", "none")
    assert node.replica.barriers == ["leader"]
    assert "X-Position" not in answer.headers


@pytest.mark.parametrize("path", ["/events", "/streams", "/streams/s/events", "/checkpoints/c", ""])
async def test_a_recovering_node_serves_no_reads(node: Node, path: str):
    await node.append("s")
    node.replica.recovering = True
    node.replica.reasons = ["recovering: waits for a leader"]
    answer = await node.ask("GET", f"/v1/stores/main{path}")
    assert (answer.status, answer.body["code"]) == (503, "not_ready")
    assert answer.body["reasons"] == ["recovering: waits for a leader"]
    assert "Retry-After" in answer.headers


@pytest.mark.parametrize("headers", [{}, CBOR])
async def test_a_long_page_leaves_the_loop_to_others_again_and_again(node: Node, headers):
    for _ in range(10):
        await node.append("s", 1_000)
    async with Turns() as turns:
        pages = await node.ask(
            "GET", "/v1/stores/main/events?limit=10000&type=Happened", headers=headers
        )
    assert len(pages.body["events"]) == 10_000
    assert turns.count > 10
