"""Appending through the door that clients use."""

from __future__ import annotations

import base64
import uuid

import cbor2
import pytest

from node.errors import NoLeader, NotReady, OutcomeUnknown, Overloaded
from tests.api.fakes import NOW_US, Node, serving

EVENTS = "/v1/stores/main/streams/s/events"
APPEND = "/v1/stores/main/append"
CBOR = {"Content-Type": "application/cbor"}


def event(**fields):
    return {"event_type": "Happened", **fields}


async def test_an_append_tells_where_its_events_stand(node: Node):
    await node.append("other")
    answer = await node.append("s", 3)
    assert answer.status == 201
    assert answer.body == {
        "first_version": 0,
        "last_version": 2,
        "count": 3,
        "positions": [2, 3, 4],
        "streams": {"s": 2},
        "raft_index": 3,
        "idempotent": False,
    }
    assert answer.headers["X-Position"] == "4"
    assert answer.headers["X-Applied-Index"] == "3"
    assert answer.headers["X-Served-By"] == "n1"


async def test_an_event_without_an_id_gets_a_uuid_of_version_7_with_the_time_in_it(node: Node):
    await node.append("s", 2)
    page = await node.ask("GET", EVENTS)
    ids = [uuid.UUID(one["event_id"]) for one in page.body["events"]]
    assert ids[0] != ids[1]
    assert all(one.version == 7 and one.int >> 80 == NOW_US // 1000 for one in ids)


async def test_the_same_events_again_are_answered_200_with_the_original_numbers(node: Node):
    body = {"expected_version": "no_stream", "events": [event(event_id=str(uuid.uuid4()))]}
    first = await node.ask("POST", EVENTS, json=body)
    again = await node.ask("POST", EVENTS, json=body)
    assert (first.status, again.status) == (201, 200)
    assert again.body == {**first.body, "raft_index": again.body["raft_index"], "idempotent": True}


async def test_an_event_id_with_other_content_is_refused(node: Node):
    event_id = str(uuid.uuid4())
    await node.append("s", event_id=event_id)
    answer = await node.append("s", event_id=event_id, data="other")
    assert (answer.status, answer.code) == (422, "event_id_reused")
    assert answer.body["event_id"] == event_id
    assert answer.body["stored"] == "no"


@pytest.mark.parametrize(
    ("expected", "absent", "at_0"),
    [
        ("any", 201, 201),
        ("no_stream", 201, 409),
        (-1, 201, 409),
        ("stream_exists", 409, 201),
        (0, 409, 201),
        (1, 409, 409),
        (2**62 + 1, 409, 409),
        (2**63 - 1, 409, 409),
        (2**80, 409, 409),
    ],
)
async def test_expected_version_is_judged_as_the_contract_says(node, expected, absent, at_0):
    body = {"expected_version": expected, "events": [event()]}
    answer = await node.ask("POST", EVENTS, json=body)
    assert answer.status == absent
    await node.append("t")
    answer = await node.ask("POST", EVENTS.replace("/s/", "/t/"), json=body)
    assert answer.status == at_0
    if at_0 == 409:
        assert answer.code == "wrong_expected_version"
        assert {name: answer.body[name] for name in ("stream", "expected", "current")} == {
            "stream": "t",
            "expected": expected,
            "current": 0,
        }
        wanted = "new" if expected in ("no_stream", -1) else f"at {min(expected, 2**62)}"
        assert answer.body["detail"] == f"stream 't' is at version 0, not {wanted}"


@pytest.mark.parametrize("expected", [-2, -4, None, True, 1.0, "1", "", [], {}])
async def test_any_other_expected_version_is_refused(node: Node, expected):
    answer = await node.ask(
        "POST", EVENTS, json={"expected_version": expected, "events": [event()]}
    )
    assert (answer.status, answer.code) == (400, "invalid_expected_version")


@pytest.mark.parametrize("route", [EVENTS, APPEND])
async def test_an_expected_version_too_long_to_be_written_is_refused(node: Node, route):
    body = {"events": [event()], "expected_version": 2**14_300}
    if route == APPEND:
        check = {"stream": "s", "expected_version": 2**14_300}
        body = {"events": [event(stream="s")], "checks": [check]}
    answer = await node.ask("POST", route, data=cbor2.dumps(body), headers=CBOR)
    assert (answer.status, answer.code) == (400, "invalid_expected_version")


async def test_cbor_may_bring_bytes_and_ids_of_16_bytes(node: Node):
    event_id = uuid.uuid4()
    body = {"events": [event(event_id=event_id.bytes, data=b"\x00\xff", metadata={1: b"in"})]}
    answer = await node.ask("POST", EVENTS, data=cbor2.dumps(body), headers=CBOR)
    assert answer.status == 201
    in_json = (await node.ask("GET", EVENTS)).body["events"][0]
    assert in_json["event_id"] == str(event_id)
    assert base64.b64decode(in_json["data_base64"]) == b"\x00\xff"
    assert "data" not in in_json
    assert in_json["metadata"] == {"1": base64.b64encode(b"in").decode()}
    assert in_json["data_content_type"] == "application/octet-stream"
    assert in_json["metadata_content_type"] == "application/cbor"
    in_cbor = await node.ask("GET", EVENTS, headers={"Accept": "application/cbor"})
    assert in_cbor.body["events"][0]["data"] == b"\x00\xff"
    assert in_cbor.body["events"][0]["metadata"] == {1: b"in"}


async def test_base64_fields_store_bytes(node: Node):
    text = base64.b64encode(b"\x00\xff").decode()
    answer = await node.append("s", data_base64=text)
    assert answer.code == "invalid_event"  # `append` sends data too: one or the other
    body = {"events": [event(data_base64=text, metadata_base64=text)]}
    assert (await node.ask("POST", EVENTS, json=body)).status == 201
    got = (await node.ask("GET", EVENTS, headers={"Accept": "application/cbor"})).body["events"][0]
    assert (got["data"], got["metadata"]) == (b"\x00\xff", b"\x00\xff")


@pytest.mark.parametrize("media", ["json", "cbor"])
@pytest.mark.parametrize("value", [2**64, -(2**70), 10**4000, 0.1, 1e308, "é\x00", [], {}, None])
async def test_values_come_back_as_they_were(node: Node, media, value):
    if media == "cbor":
        raw = cbor2.dumps({"events": [event(data=value)]})
        answer = await node.ask("POST", EVENTS, data=raw, headers=CBOR)
    else:
        answer = await node.ask("POST", EVENTS, json={"events": [event(data=value)]})
    assert answer.status == 201
    in_json = await node.ask("GET", EVENTS)
    in_cbor = await node.ask("GET", EVENTS, headers={"Accept": "application/cbor"})
    assert in_json.body["events"][0]["data"] == value
    assert in_cbor.body["events"][0]["data"] == value


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
async def test_numbers_that_json_lacks_are_kept_in_cbor_and_null_in_json(node: Node, number):
    raw = cbor2.dumps({"events": [event(data=[number])]})
    assert (await node.ask("POST", EVENTS, data=raw, headers=CBOR)).status == 201
    assert (await node.ask("GET", EVENTS)).body["events"][0]["data"] == [None]
    got = await node.ask("GET", EVENTS, headers={"Accept": "application/cbor"})
    assert str(got.body["events"][0]["data"][0]) == str(number)


async def test_streams_and_a_checkpoint_move_in_one_step(node: Node):
    await node.append("a")
    body = {
        "events": [event(stream="a"), event(stream="b"), event(stream="a")],
        "checks": [
            {"stream": "a", "expected_version": 0},
            {"stream": "b", "expected_version": "no_stream"},
        ],
        "checkpoint": {"name": "c", "position": 7},
    }
    answer = await node.ask("POST", APPEND, json=body)
    assert answer.status == 201
    assert answer.body["streams"] == {"a": 2, "b": 0}
    assert answer.body["positions"] == [2, 3, 4]
    assert "first_version" not in answer.body
    assert (await node.ask("GET", "/v1/stores/main/checkpoints/c")).body["position"] == 7


async def test_a_failed_check_or_checkpoint_writes_nothing(node: Node):
    body = {
        "events": [event(stream="a")],
        "checks": [{"stream": "b", "expected_version": "stream_exists"}],
        "checkpoint": {"name": "c", "position": 7},
    }
    answer = await node.ask("POST", APPEND, json=body)
    assert (answer.status, answer.code) == (409, "wrong_expected_version")
    assert answer.body["expected"] == "stream_exists"
    assert answer.body["detail"] == "stream 'b' does not exist"
    body["checks"] = []
    assert (await node.ask("POST", APPEND, json=body)).status == 201
    body["events"] = [event(stream="z")]
    answer = await node.ask("POST", APPEND, json=body)
    assert (answer.status, answer.code) == (409, "checkpoint_not_increasing")
    assert node.state.stores["main"].position == 1


async def test_an_append_may_be_a_checkpoint_alone_but_not_nothing(node: Node):
    answer = await node.ask(
        "POST", APPEND, json={"events": [], "checkpoint": {"name": "c", "position": 1}}
    )
    assert (answer.status, answer.body["count"]) == (201, 0)
    assert (await node.ask("POST", APPEND, json={"events": []})).code == "invalid_request"
    assert (await node.ask("POST", EVENTS, json={"events": []})).code == "invalid_request"


async def test_a_store_that_does_not_exist_is_404(node: Node):
    answer = await node.ask("POST", EVENTS.replace("main", "none"), json={"events": [event()]})
    assert (answer.status, answer.code) == (404, "store_not_found")


@pytest.mark.parametrize(
    ("error", "status", "stored"),
    [
        (NoLeader("none"), 503, "no"),
        (Overloaded("full", limit="queue"), 503, "no"),
        (NotReady("starting"), 503, "no"),
        (OutcomeUnknown("late"), 504, "perhaps"),
    ],
)
async def test_what_the_cluster_cannot_do_says_whether_it_is_stored(node, error, status, stored):
    node.replica.propose_error = error
    answer = await node.append("s")
    assert (answer.status, answer.code) == (status, error.code)
    assert answer.body["stored"] == stored
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize("path", [EVENTS, "/v1/stores/main/append"])
async def test_an_append_that_asks_for_the_disk_waits_for_a_majority_of_them(node: Node, path):
    body = {"events": [event(**({"stream": "s"} if path.endswith("append") else {}))]}
    answer = await node.ask("POST", path + "?durability=persisted", json=body)
    assert answer.status == 201
    assert node.worker.durable == [answer.body["raft_index"]]
    assert (await node.ask("POST", path + "?durability=replicated", json=body)).status == 201
    assert len(node.worker.durable) == 1


async def test_what_the_request_says_of_durability_counts_before_store_and_node():
    for by_node, by_store, asked, waits in (
        ("replicated", None, None, False),
        ("persisted", None, None, True),
        ("replicated", "persisted", None, True),
        ("persisted", "replicated", None, False),
        ("persisted", "persisted", "replicated", False),
        ("replicated", "replicated", "persisted", True),
    ):
        async with serving(by_node) as node:
            await node.ask("PUT", "/v1/stores/main", json={"durability": by_store})
            query = f"?durability={asked}" if asked else ""
            answer = await node.ask("POST", EVENTS + query, json={"events": [event()]})
            assert answer.status == 201
            assert bool(node.worker.durable) == waits, (by_node, by_store, asked)


async def test_events_that_are_not_known_to_be_on_disk_are_perhaps_stored(node: Node):
    node.worker.durable_error = OutcomeUnknown("not on the disks of a majority")
    answer = await node.ask("POST", EVENTS + "?durability=persisted", json={"events": [event()]})
    assert (answer.status, answer.code, answer.body["stored"]) == (
        504,
        "outcome_unknown",
        "perhaps",
    )


async def test_a_node_without_a_disk_promises_none_and_stores_nothing(node: Node):
    node.worker.enabled = False
    answer = await node.ask("POST", EVENTS + "?durability=persisted", json={"events": [event()]})
    assert (answer.status, answer.code) == (409, "persistence_disabled")
    assert node.state.stores["main"].position == 0


async def test_each_limit_of_an_append_is_413_with_limit_and_actual():
    async with serving(event_bytes_max=100, events_per_append_max=3, body_bytes_max=2_000) as node:
        answer = await node.append("s", 4)
        assert (answer.status, answer.body["limit"], answer.body["actual"]) == (413, 3, 4)
        answer = await node.append("s", data="x" * 99)
        assert (answer.status, answer.body["limit"], answer.body["actual"]) == (413, 100, 102)
        assert (await node.append("s", data="x" * 97)).status == 201
        answer = await node.append("s", data="x" * 3_000)
        assert (answer.status, answer.body["limit"]) == (413, 2_000)
        assert node.state.stores["main"].position == 1


async def test_many_events_in_one_append_leave_the_loop_to_others(node: Node):
    answer = await node.append("s", 2_000)
    assert answer.status == 201
    assert answer.body["positions"] == list(range(1, 2_001))
    node.state.check()
