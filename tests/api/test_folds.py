"""A stream folded on the server."""

from __future__ import annotations

import struct
import time

import cbor2

from node.core.items import INTEGER_BITS_MAX
from tests.api.fakes import Node, serving
from tests.api.test_walking import colliding_integers

CBOR = {"Content-Type": "application/cbor"}
FOLD = "/v1/stores/main/streams/s/fold"


async def append(node: Node, *data) -> None:
    events = [{"event_type": "A", "data": one} for one in data]
    answer = await node.ask("POST", "/v1/stores/main/streams/s/events", json={"events": events})
    assert answer.status == 201


async def record(node: Node, version: int, data) -> None:
    target = f"/v1/stores/main/snapshots/o-1/s/{version}"
    assert (await node.ask("PUT", target, json={"source_type": "O", "data": data})).status == 201


async def test_a_stream_is_folded_from_its_first_event(node: Node):
    await append(node, {"total": {"$sum": 3}, "who": "a"}, 7, {"total": {"$sum": 4}, "who": "b"})
    answer = await node.ask("GET", FOLD)
    assert (answer.status, answer.body) == (
        200,
        {
            **{"stream": "s", "version": 2, "state": {"total": 7, "who": "b"}, "is_end": True},
            **{"snapshot_version": None, "folded": 2, "skipped": 1},
        },
    )
    answer = await node.ask("GET", FOLD, headers={"Accept": "application/cbor"})
    assert cbor2.loads(answer.raw)["state"] == {"total": 7, "who": "b"}
    await append(node, {"total": {"$sum": 10**4000}, "octets": "x"})
    answer = await node.ask("GET", FOLD)
    assert answer.raw.count(b"1" + b"0" * 3999 + b"7") == 1, "integers are never rounded"
    answer = await node.ask("GET", "/v1/stores/main/streams/none/fold")
    assert (answer.status, answer.code) == (404, "stream_not_found")


async def test_a_sum_that_no_value_may_be_is_refused_and_what_is_before_it_is_folded(node: Node):
    most = (1 << INTEGER_BITS_MAX) - 1
    for sign in (1, -1):
        await append(node, {"total": 0, "who": "a"}, {"total": {"$sum": sign * most}})
        await append(node, {"total": {"$sum": sign}}, {"total": {"$sum": -sign}})
    await record(node, 3, {})
    for accept in ("application/json", "application/cbor"):
        for query, number, before in (("?", 2, most), ("?source=o-1", 6, -most)):
            answer = await node.ask("GET", FOLD + query, headers={"Accept": accept})
            assert (answer.status, answer.code) == (400, "invalid_request")
            assert f"event {number}: the sum under 'total'" in answer.body["detail"]
            assert answer.body["parameter"] == "max_version"
            query += f"&max_version={number - 1}"
            answer = await node.ask("GET", FOLD + query, headers={"Accept": accept})
            assert answer.body["state"] == {"total": before, "who": "a"}


async def test_it_begins_at_the_latest_snapshot_that_is_not_too_new(node: Node):
    await append(node, *[{"total": {"$sum": 1}} for _ in range(10)])
    await record(node, 3, {"total": 100})
    await record(node, 6, {"total": 200})
    await record(node, 77, {"total": 300})
    for query, version, total, snapshot in (
        ("", 9, 10, None),
        ("?source=o-1", 9, 203, 6),
        ("?source=o-1&max_version=6", 6, 200, 6),
        ("?source=o-1&max_version=5", 5, 102, 3),
        ("?source=o-1&max_version=2", 2, 3, None),
        ("?source=o-2", 9, 10, None),
    ):
        found = (await node.ask("GET", FOLD + query)).body
        assert (found["version"], found["state"]["total"]) == (version, total), query
        assert found["snapshot_version"] == snapshot and found["is_end"]
    await record(node, 8, [1])
    answer = await node.ask("GET", FOLD + "?source=o-1")
    assert (answer.status, answer.code) == (400, "invalid_request")


async def test_a_long_fold_goes_on_from_what_was_recorded():
    async with serving(page_bytes_max=300) as node:
        await append(node, *[{"total": {"$sum": 1}} for _ in range(30)])
        rounds = 0
        while True:
            found = (await node.ask("GET", FOLD + "?source=o-1")).body
            if found["is_end"]:
                break
            await record(node, found["version"], found["state"])
            rounds += 1
        assert (found["version"], found["state"]) == (29, {"total": 30})
        assert rounds == 3
        found = (await node.ask("GET", FOLD + "?limit=2")).body
        assert (found["version"], found["folded"], found["is_end"]) == (1, 2, False)


async def append_cbor(node: Node, stream: str, *data) -> None:
    events = [{"event_type": "A", "data": one} for one in data]
    body = cbor2.dumps({"events": events})
    target = f"/v1/stores/main/streams/{stream}/events"
    assert (await node.ask("POST", target, data=body, headers=CBOR)).status == 201


async def test_the_keys_of_a_state_are_text_and_it_may_be_recorded_as_it_is(node: Node):
    for key in (1, "1", -7, "-7", "01"):
        await append_cbor(node, "s", {key: {"$sum": 2}})
    for start in (1_000, 2_000):  # 400 integers, and no map may have more than 256
        await append_cbor(node, "s", dict.fromkeys(range(start, start + 200), 0))
    for accept in ("application/json", "application/cbor"):
        folded = (await node.ask("GET", FOLD, headers={"Accept": accept})).body
        assert {"1": 4, "-7": 4, "01": 2}.items() <= folded["state"].items()
        assert len(folded["state"]) == 403 and {type(key) for key in folded["state"]} == {str}
        recorded = await node.ask(
            *("PUT", "/v1/stores/main/snapshots/o-1/s/6"),
            data=cbor2.dumps({"source_type": "O", "data": folded["state"]}),
            headers=CBOR,
        )
        assert recorded.status in (200, 201), recorded.body


async def test_a_snapshot_with_integers_for_keys_is_folded_on_by_their_digits(node: Node):
    await append_cbor(node, "s", {"1": {"$sum": 2}}, {1: {"$sum": 3}})
    body = cbor2.dumps({"source_type": "O", "data": {1: 100}})
    target = "/v1/stores/main/snapshots/o-1/s/0"
    assert (await node.ask("PUT", target, data=body, headers=CBOR)).status == 201
    assert (await node.ask("GET", FOLD + "?source=o-1")).body["state"] == {"1": 103}


async def test_integer_keys_that_were_chosen_to_be_slow_cost_what_others_cost(node: Node):
    """No event has too many of them, but all together have."""
    chosen = [key for _, key, _ in struct.iter_unpack(">BIB", colliding_integers(15)[5:])]
    seconds = {}
    for stream, keys in (("others", range(len(chosen))), ("chosen", chosen)):
        events = [dict.fromkeys(keys[at : at + 256], 0) for at in range(0, len(keys), 256)]
        await append_cbor(node, stream, *events)
        for accept in ("application/json", "application/cbor"):
            began = time.process_time()
            target = f"/v1/stores/main/streams/{stream}/fold"
            answer = await node.ask("GET", target, headers={"Accept": accept})
            seconds[stream, accept] = time.process_time() - began
            assert len(answer.body["state"]) == len(keys)
    for (stream, accept), took in seconds.items():
        assert took < 5 * seconds["others", accept] + 0.1, (stream, accept, seconds)
