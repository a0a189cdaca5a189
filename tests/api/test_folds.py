"""A stream folded on the server."""

from __future__ import annotations

import cbor2

from tests.api.fakes import Node, serving

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


async def test_keys_that_are_the_same_in_json_are_one_key(node: Node):
    for key in (1, "1", -7, "-7", "01"):
        body = {"events": [{"event_type": "A", "data": {key: {"$sum": 2}}}]}
        await node.ask(
            *("POST", "/v1/stores/main/streams/s/events"),
            data=cbor2.dumps(body),
            headers={"Content-Type": "application/cbor"},
        )
    answer = await node.ask("GET", FOLD)
    assert answer.raw.count(b'"1":') == 1
    assert answer.body["state"] == {"1": 4, "-7": 4, "01": 2}
    for media in ("json", "cbor"):  # so it can be recorded, to go on from there
        accept = {"Accept": f"application/{media}"}
        folded = (await node.ask("GET", FOLD, headers=accept)).body
        recorded = await node.ask(
            *("PUT", "/v1/stores/main/snapshots/o-1/s/4"),
            data=cbor2.dumps({"source_type": "O", "data": folded["state"]}),
            headers={"Content-Type": "application/cbor"},
        )
        assert recorded.status in (200, 201), recorded.body
