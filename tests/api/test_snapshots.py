"""Snapshots of aggregates over HTTP."""

from __future__ import annotations

import cbor2
import msgspec
import pytest

from node.api import snapshots
from node.core import commands
from node.errors import NoLeader, OutcomeUnknown
from tests.api.fakes import NOW_US, Node, serving

ALL = "/v1/stores/main/snapshots"
SERIES = ALL + "/o-1/s"
CBOR = {"Content-Type": "application/cbor", "Accept": "application/cbor"}


async def put(node: Node, version: int, series: str = SERIES, **body):
    return await node.ask("PUT", f"{series}/{version}", json={"source_type": "Order", **body})


def versions(answer) -> list[int]:
    assert answer.status == 200, answer.body
    return [one["source_version"] for one in answer.body["snapshots"]]


async def test_a_snapshot_is_recorded_read_replaced_and_deleted(node: Node):
    named = {
        "source_uuid": "o-1",
        "stream_uuid": "s",
        "source_version": 7,
        "source_type": "Order",
        "created_at": "2026-11-23T20:00:00.123456Z",
        "created_epoch": NOW_US,
    }
    answer = await put(node, 7, data={"total": 3}, metadata=[1])
    at = {"raft_index": node.state.applied_index, "replaced": False}
    assert (answer.status, answer.body) == (201, named | at)
    assert answer.headers["X-Applied-Index"] == str(node.state.applied_index)
    answer = await node.ask("GET", SERIES + "/7")
    assert (answer.status, answer.body) == (200, {**named, "data": {"total": 3}, "metadata": [1]})
    assert (await put(node, 7)).status == 200
    answer = await node.ask("GET", SERIES + "/7")
    assert answer.body == {**named, "data": None, "metadata": None}
    answer = await node.ask("DELETE", SERIES + "/7")
    assert (answer.status, answer.raw) == (204, b"")
    for method in ("GET", "DELETE"):
        answer = await node.ask(method, SERIES + "/7")
        assert (answer.status, answer.code) == (404, "snapshot_not_found")
        assert (answer.body["source"], answer.body["version"]) == ("o-1", 7)


async def test_snapshots_take_no_position_and_stand_in_no_read_of_events(node: Node):
    await node.append("s")
    await put(node, 0)
    answer = await node.ask("GET", "/v1/stores/main/events")
    assert len(answer.body["events"]) == 1 and answer.headers["X-Position"] == "1"
    answer = await node.ask("GET", "/v1/stores/main")
    assert (answer.body["events"], answer.body["snapshots"]) == (1, 1)


async def test_bytes_stay_bytes_in_both_encodings(node: Node):
    octets = bytes(range(256))
    body = cbor2.dumps({"source_type": "Order", "data": octets, "metadata": {"a": octets}})
    answer = await node.ask("PUT", SERIES + "/1", data=body, headers=CBOR)
    assert answer.status == 201 and answer.body["source_version"] == 1
    answer = await node.ask("GET", SERIES + "/1", headers={"Accept": "application/cbor"})
    assert (answer.body["data"], answer.body["metadata"]) == (octets, {"a": octets})
    answer = await node.ask("GET", SERIES)
    (record,) = answer.body["snapshots"]
    assert msgspec.convert(record["data_base64"], bytes, strict=False) == octets
    assert "data" not in record
    await put(node, 2, data_base64="AAE=", metadata_base64="Ag==")
    answer = await node.ask("GET", SERIES, headers={"Accept": "application/cbor"})
    (record,) = answer.body["snapshots"]
    assert (record["data"], record["metadata"]) == (b"\x00\x01", b"\x02")
    assert answer.body["next"] == 1


async def test_the_newest_comes_first_and_versions_may_have_gaps(node: Node):
    for version in (90, 5, 40, 2**62, 0):
        assert (await put(node, version)).status == 201
    assert versions(await node.ask("GET", SERIES)) == [2**62]
    assert versions(await node.ask("GET", SERIES + "?max_version=89")) == [40]
    assert versions(await node.ask("GET", SERIES + "?limit=3")) == [2**62, 90, 40]
    answer = await node.ask("GET", SERIES + "?direction=forward&min_version=1&limit=2")
    assert versions(answer) == [5, 40] and answer.body["next"] == 90
    answer = await node.ask("GET", SERIES + "?direction=forward&min_version=90&limit=2")
    assert versions(answer) == [90, 2**62] and answer.body["next"] is None
    answer = await node.ask("GET", ALL + "/o-2/s")
    assert answer.body == {"snapshots": [], "next": None}


async def test_the_list_goes_through_all_of_them_page_by_page(node: Node):
    expected = []
    for source in ("a", "b/ä", "c"):
        for stream in ("s", "t%&"):
            for version in (1, 2, 3):
                await put(node, version, f"{ALL}/{_quoted(source)}/{_quoted(stream)}")
                expected.append((source, stream, version))
    for limit in (1, 2, 5, 18, 100):
        assert await pages(node, f"limit={limit}") == expected
    assert await pages(node, "limit=2&source=b/%C3%A4") == expected[6:12]
    of_stream = [one for one in expected if one[1] == "s"]
    assert await pages(node, "limit=2&stream=s") == of_stream
    assert await pages(node, "source=c&stream=s") == expected[12:15]
    assert await pages(node, "source=none") == []
    assert await pages(node, "limit=2&source=c&stream=s&after=a/s/1") == expected[12:15]


async def test_a_list_that_finds_little_ends_early_and_says_where_to_go_on(node, monkeypatch):
    monkeypatch.setattr(snapshots, "_SERIES_A_PAGE", 3)
    for number in range(10):
        await put(node, 1, f"{ALL}/o-{number}/s{number % 5}")
    answer = await node.ask("GET", ALL + "?stream=s4")
    assert answer.body["snapshots"] == [] and answer.body["next"]
    assert await pages(node, "stream=s4") == [("o-4", "s4", 1), ("o-9", "s4", 1)]


async def test_a_page_ends_early_but_holds_one():
    async with serving(page_bytes_max=1_000) as node:
        for version in range(5):
            await put(node, version, data="x" * 600)
        answer = await node.ask("GET", SERIES + "?limit=5&direction=forward")
        assert versions(answer) == [0, 1] and answer.body["next"] == 2
        assert len(await pages(node, "limit=5")) == 5
        await put(node, 9, data="x" * 6_000)
        assert versions(await node.ask("GET", SERIES + "?limit=5")) == [9]


async def test_a_store_keeps_as_many_as_it_is_told(node: Node):
    for version in range(5):
        await put(node, version)
    answer = await node.ask("PUT", "/v1/stores/main", json={"snapshots_kept": 2})
    assert answer.status == 200
    assert (await node.ask("GET", "/v1/stores/main")).body["snapshots_kept"] == 2
    assert versions(await node.ask("GET", SERIES + "?limit=9")) == [4, 3]
    answer = await put(node, 1)
    assert (answer.status, answer.code) == (409, "snapshot_too_old")
    assert (answer.body["kept"], answer.body["stored"]) == (2, "no")
    await node.ask("PUT", "/v1/stores/main", json={"durability": "persisted"})
    answer = await node.ask("GET", "/v1/stores/main")
    assert (answer.body["durability"], answer.body["snapshots_kept"]) == ("persisted", 2)
    await node.ask("PUT", "/v1/stores/main", json={"snapshots_kept": None})
    answer = await node.ask("GET", "/v1/stores/main")
    assert (answer.body["durability"], answer.body["snapshots_kept"]) == ("persisted", None)
    assert (await put(node, 1)).status == 201


@pytest.mark.parametrize("kept", [0, -1, 10_001, "2", 1.5, True])
async def test_a_number_that_cannot_be_kept_is_refused(node: Node, kept):
    answer = await node.ask("PUT", "/v1/stores/main", json={"snapshots_kept": kept})
    assert (answer.status, answer.code) == (400, "invalid_request")


async def test_a_snapshot_that_nests_too_deeply_is_too_large(node: Node):
    body = {"source_type": "A", "data": msgspec.json.decode("[" * 66 + "]" * 66)}
    for media, encode in (("json", msgspec.json.encode), ("cbor", cbor2.dumps)):
        headers = {"Content-Type": f"application/{media}"}
        answer = await node.ask("PUT", SERIES + "/1", data=encode(body), headers=headers)
        assert (answer.status, answer.code) == (413, "payload_too_large")
        assert (answer.body["limit"], answer.body["actual"]) == (64, 65)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"source_type": ""},
        {"source_type": "x" * 256},
        {"source_type": "a\n"},
        {"source_type": 7},
        {"source_type": "A", "data": 1, "data_base64": "AA=="},
        {"source_type": "A", "metadata": None, "metadata_base64": "AA=="},
        {"source_type": "A", "data_base64": "e*=="},
        {"source_type": "A", "version": 3},
        [],
    ],
)
async def test_a_body_that_is_no_snapshot_is_refused(node: Node, body):
    for media, encode in (("json", msgspec.json.encode), ("cbor", cbor2.dumps)):
        headers = {"Content-Type": f"application/{media}"}
        answer = await node.ask("PUT", SERIES + "/1", data=encode(body), headers=headers)
        assert (answer.status, answer.code) == (400, "invalid_request"), answer.body
    assert not len(node.state.stores["main"].snapshots)


@pytest.mark.parametrize(
    "target",
    [
        *(f"{SERIES}/{version}" for version in ("-1", "x", "1.0", str(2**62 + 1), "%D9%A1", "1e3")),
        *(ALL + "/$o/s/1", ALL + "/o/%24s/1", ALL + "/o%00/s/1", ALL + "//s/1"),
        *(ALL + "/" + "x" * 256 + "/s/1",),
    ],
)
async def test_bad_names_and_versions_are_refused(node: Node, target):
    for method in ("PUT", "GET", "DELETE"):
        answer = await node.ask(method, target, json={"source_type": "A"})
        assert (answer.status, answer.code) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (SERIES + "?limit=0", "invalid_count"),
        (SERIES + "?limit=10001", "payload_too_large"),
        (SERIES + "?min_version=-1", "invalid_request"),
        (SERIES + "?direction=up", "invalid_request"),
        (SERIES + "?version=1", "invalid_request"),
        (ALL + "?after=x", "invalid_request"),
        (ALL + "?after=a/b/c", "invalid_request"),
        (ALL + "?source=$x", "invalid_request"),
        (ALL + "?min_version=1", "invalid_request"),
        ("/v1/stores/none/snapshots", "store_not_found"),
    ],
)
async def test_bad_queries_are_refused(node: Node, target, code):
    assert (await node.ask("GET", target)).code == code


async def test_more_than_an_event_may_hold_is_too_large():
    async with serving(event_bytes_max=1_000) as node:
        answer = await put(node, 1, data="x" * 600, metadata="x" * 600)
        assert (answer.status, answer.code) == (413, "payload_too_large")
        assert (answer.body["limit"], answer.body["actual"]) == (1_000, 1_206)
        assert (await put(node, 1, data="x" * 600)).status == 201


async def test_what_the_cluster_cannot_do_is_told(node: Node):
    for error in (NoLeader("nobody leads"), OutcomeUnknown("no word")):
        node.replica.propose_error = error
        for answer in (await put(node, 1), await node.ask("DELETE", SERIES + "/1")):
            assert (answer.status, answer.code) == (error.status, error.code)


async def test_reads_have_the_levels_of_all_reads(node: Node):
    content = commands.put_snapshot("main", 1, "o-1", "s", 3, b"\x84\x01aA\x41\x01\x41\x02")
    node.replica.before_barrier = lambda: node.replica.apply(content)
    answer = await node.ask("GET", SERIES + "/3?consistency=linearizable")
    assert (answer.status, answer.body["data"]) == (200, 1)
    assert node.replica.barriers == ["linearizable"]
    answer = await node.ask("GET", SERIES + "?min_index=999&timeout_ms=1")
    assert (answer.status, answer.code) == (504, "read_barrier_timeout")


async def pages(node: Node, query: str) -> list[tuple[str, str, int]]:
    """All that a list gives, following `next`."""
    found: list[tuple[str, str, int]] = []
    after = ""
    for _ in range(50):
        answer = await node.ask("GET", f"{ALL}?{query}{after}")
        assert answer.status == 200, answer.body
        found += [
            (one["source_uuid"], one["stream_uuid"], one["source_version"])
            for one in answer.body["snapshots"]
        ]
        if answer.body["next"] is None:
            return found
        query = query.split("&after=")[0]
        after = "&after=" + _quoted(answer.body["next"])
    raise AssertionError("the list has no end")


def _quoted(name: str) -> str:
    return "".join(f"%{octet:02X}" for octet in name.encode())
