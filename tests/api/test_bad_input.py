"""Whatever a client sends, it gets a clear 4xx problem, nothing is stored, and the node goes on."""

from __future__ import annotations

import random
from typing import Any

import cbor2
import msgspec
import pytest

from node.api import values
from node.core.items import INTEGER_BITS_MAX
from node.errors import Overloaded
from tests.api.fakes import Node, serving

EVENTS = "/v1/stores/main/streams/s/events"
APPEND = "/v1/stores/main/append"
JSON = {"Content-Type": "application/json"}
CBOR = {"Content-Type": "application/cbor"}

WRONG = [0, -1, 1.5, True, None, "x", [], {}, [1], {"a": 1}]


def wrong_values(*right: type) -> list:
    return [value for value in WRONG if type(value) not in right]


async def refused(node: Node, answer, code: str = "") -> None:
    assert 400 <= answer.status < 500, answer
    assert answer.headers["Content-Type"] in (
        "application/problem+json",
        "application/problem+cbor",
    )
    assert answer.body["status"] == answer.status
    assert answer.body["stored"] == "no"
    assert answer.body["detail"]
    assert not code or answer.code == code, answer.body
    assert node.state.stores["main"].position == 0
    assert (await node.ask("GET", "/health/live")).status == 200


EVENT_FIELDS = {
    "event_type": wrong_values(str),
    "event_id": [value for value in WRONG if value is not None] + ["0" * 32, "é" * 36],
    "data_content_type": [value for value in wrong_values(str) if value is not None] + ["", "a\n"],
    "data_base64": [value for value in WRONG if value is not None] + ["e*==", "eHg"],
    "metadata_base64": [value for value in WRONG if value is not None],
}


@pytest.mark.parametrize("media", ["json", "cbor"])
@pytest.mark.parametrize("field", EVENT_FIELDS)
async def test_every_field_of_an_event_with_a_wrong_value_is_an_invalid_event(node, field, media):
    for value in EVENT_FIELDS[field]:
        body = {"events": [{"event_type": "A"}, {"event_type": "B", field: value}]}
        await refused(node, await _send(node, EVENTS, body, media), "invalid_event")


@pytest.mark.parametrize("media", ["json", "cbor"])
@pytest.mark.parametrize("field", ["event_id ", "stream", "metadata_content_type", "Data"])
async def test_a_field_that_no_event_has_makes_an_invalid_request(node, field, media):
    body = {"events": [{"event_type": "A"}, {"event_type": "B", field: "x"}]}
    await refused(node, await _send(node, EVENTS, body, media), "invalid_request")


@pytest.mark.parametrize("event_type", ["", "x" * 256, "é" * 128, "a\x00", "a\x7f", "a\x85"])
async def test_an_event_type_has_1_to_255_bytes_without_control_characters(node, event_type):
    body = {"events": [{"event_type": event_type}]}
    answer = await _send(node, EVENTS, body, "json")
    await refused(node, answer, "invalid_event")
    assert answer.body["event"] == 0


@pytest.mark.parametrize("media", ["json", "cbor"])
@pytest.mark.parametrize(
    ("target", "field"),
    [(EVENTS, "events"), (APPEND, "events"), (APPEND, "checks"), (APPEND, "checkpoint")],
)
async def test_every_field_of_a_body_with_a_wrong_type_is_refused(node, target, field, media):
    for value in wrong_values(list):
        if (field, value) == ("checkpoint", None):
            continue
        body = {"events": [{"event_type": "A", "stream": "s"}], field: value}
        if target == EVENTS:
            del body["events"]
            body[field] = value
        await refused(node, await _send(node, target, body, media))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"events": [{"event_type": "A"}], "extra": 1},
        {"events": [{}]},
        {"events": [5]},
        {"events": [[]]},
        {"events": [{"event_type": "A", "data": 1, "data_base64": "AA=="}]},
        {"events": [{"event_type": "A", "metadata": None, "metadata_base64": "AA=="}]},
    ],
)
async def test_bodies_of_the_wrong_shape_are_refused(node: Node, body):
    for media in ("json", "cbor"):
        await refused(node, await _send(node, EVENTS, body, media))


@pytest.mark.parametrize(
    "changed",
    [
        {"events": [{"event_type": "A"}]},
        {"events": [{"event_type": "A", "stream": "$x"}]},
        {"events": [{"event_type": "A", "stream": ""}]},
        {"events": [{"event_type": "A", "stream": "a\n"}]},
        {"events": [{"event_type": "A", "stream": "é" * 128}]},
        {"checks": [{"expected_version": 1}]},
        {"checks": [{"stream": "$x"}]},
        {"checks": [{"stream": "a", "expected_version": "later"}]},
        {"checks": [{"stream": "a", "extra": 1}]},
        {"checkpoint": {"name": "c"}},
        {"checkpoint": {"name": "$c", "position": 1}},
        {"checkpoint": {"name": "c", "position": -1}},
        {"checkpoint": {"name": "c", "position": 2**63}},
        {"checkpoint": {"name": "c", "position": "1"}},
    ],
)
async def test_the_atomic_append_checks_its_parts(node: Node, changed):
    body = {"events": [{"event_type": "A", "stream": "s"}], **changed}
    await refused(node, await _send(node, APPEND, body, "json"))


async def test_every_prefix_of_a_body_is_refused_in_both_encodings(node: Node):
    body = {"expected_version": "any", "events": [{"event_type": "A", "data": {"a": [1, "é"]}}]}
    for media, encode in (("json", msgspec.json.encode), ("cbor", cbor2.dumps)):
        whole = encode(body)
        for length in range(len(whole)):
            await refused(node, await _raw(node, whole[:length], media), "invalid_request")
        await refused(node, await _raw(node, whole + b"\x01", media), "invalid_request")


async def test_random_bytes_are_refused(node: Node):
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(150):
        junk = chance.randbytes(chance.randint(1, 60))
        for media in ("json", "cbor"):
            await refused(node, await _raw(node, junk, media))


@pytest.mark.parametrize(
    "data",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999",
        "9" * 5000,
        '"\\ud800"',
        '"a\x00"',
        '"\\x"',
        "[1,]",
        "{'a':1}",
        "[" * 65 + "1" + "]" * 65,
        "[" * 5_000 + "]" * 5_000,
        '{"a":' * 65 + "1" + "}" * 65,
        "[" * 100_000,
    ],
)
async def test_json_values_that_cannot_be_kept_are_refused(node: Node, data):
    raw = b'{"events":[{"event_type":"A","data":%b}]}' % data.encode()
    await refused(node, await _raw(node, raw, "json"))


LARGEST = (1 << INTEGER_BITS_MAX) - 1
SNAPSHOT = "/v1/stores/main/snapshots/o-1/s/1"


@pytest.mark.parametrize(
    "integer", [LARGEST + 1, -LARGEST - 1, 10**4_299], ids=["above", "below", "longest"]
)
@pytest.mark.parametrize("field", ["data", "metadata"])
async def test_an_integer_is_as_long_in_json_as_in_cbor(node: Node, field: str, integer: int):
    """Of what JSON lets in, nothing may be beyond what a client can write back as CBOR."""
    event = {"event_type": "A", "stream": "s", field: {"a": [1.5, integer]}}
    body = {"events": [{"event_type": "A", "stream": "s"}] * 300 + [event]}
    one_stream = {"events": [{"event_type": "A"}, {"event_type": "A", field: integer}]}
    snapshot = {"source_type": "A", field: [integer]}
    for method, target, given in (
        ("POST", EVENTS, one_stream),
        ("POST", APPEND, body),
        ("PUT", SNAPSHOT, snapshot),
    ):
        told = []
        for headers, raw in ((JSON, msgspec.json.encode(given)), (CBOR, cbor2.dumps(given))):
            answer = await node.ask(method, target, data=raw, headers=headers)
            await refused(node, answer)
            told.append(answer.body)
        assert told[0] == told[1]
        assert f"{field}: an integer has more than 14000 bits" in told[0]["detail"]
    assert not len(node.state.stores["main"].snapshots)


@pytest.mark.parametrize(
    "value",
    [LARGEST, -LARGEST, "9" * 9_000, 0.5, {"9" * 5_000: LARGEST}],
    ids=["greatest", "least", "text", "fraction", "key"],
)
async def test_what_only_looks_like_too_long_an_integer_is_kept(node: Node, value: object):
    for before in (0, 1, 2_107, 2_108):  # wherever it stands in the body
        body = {"events": [{"event_type": "A", "data": ["x" * before, value]}]}
        raw = msgspec.json.encode(body).replace(b"0.5", b"0." + b"3" * 5_000)
        answer = await node.ask("POST", EVENTS, data=raw, headers=JSON)
        assert answer.status == 201, answer.body
        found = (await node.ask("GET", EVENTS + "?from=end")).body["events"][0]["data"][1]
        assert found == (1 / 3 if value == 0.5 else value)
        snapshot = {"source_type": "A", "data": [found]}
        assert (await node.ask("PUT", SNAPSHOT, json=snapshot)).status in (200, 201)


async def test_too_long_an_integer_is_found_wherever_it_stands(node: Node):
    for before in range(0, 4_300, 43):
        body = _one(["x" * before, LARGEST + 1])
        await refused(node, await _send(node, EVENTS, body, "json"), "invalid_event")


async def test_too_long_an_integer_is_refused_however_deep_it_is(node: Node):
    """Looking at a value goes a little less deep than decoding JSON does."""
    raw = b'{"events":[{"event_type":"A","data":%b%d%b}]}'
    told = set()
    for deep in (64, *range(900, 1_000)):
        answer = await _raw(node, raw % (b"[" * deep, LARGEST + 1, b"]" * deep), "json")
        await refused(node, answer)
        told.add(answer.code)
    assert told == {"invalid_event", "payload_too_large"}


async def test_invalid_utf8_in_json_and_cbor_text_is_refused(node: Node):
    await refused(node, await _raw(node, b'{"events":[{"event_type":"\xff"}]}', "json"))
    await refused(node, await _raw(node, b'{"events":[{"event_type":"A","data":"\xc3("}]}', "json"))
    raw = cbor2.dumps({"events": [{"event_type": "AAAA"}]}).replace(b"AAAA", b"\xff" * 4)
    await refused(node, await _raw(node, raw, "cbor"))


@pytest.mark.parametrize(
    "item",
    [
        "c074323031332d30332d32315432303a30343a30305a",  # a date as text
        "c11a514b67b0",  # a date as a number
        "c4822003",  # a decimal fraction
        "d82363612e2a",  # a regular expression
        "d81c81d81d00",  # an array that holds itself
        "d8255000000000000000000000000000000000",  # a UUID
        "d9010281 01".replace(" ", ""),  # a set
        "d9d9f7 80".replace(" ", ""),  # self-described CBOR
        "da00010000 01".replace(" ", ""),  # an unknown tag
        "f7",  # undefined
        "f0",  # a simple value
        "a1 f5 01".replace(" ", ""),  # a key that is a boolean
        "a1 f6 01".replace(" ", ""),  # a key that is null
        "a1 fb3ff8000000000000 01".replace(" ", ""),  # a key that is a float
        "a1 41 61 01".replace(" ", ""),  # a key that is bytes
        "a1 80 01".replace(" ", ""),  # a key that is an array
        "a2 01 02 01 03".replace(" ", ""),  # the same key twice
        "a2 01 02 61 31 03".replace(" ", ""),  # 1 and "1": one key in JSON
        "c2 59 07d0".replace(" ", "") + "ff" * 2000,  # an integer of 16,000 bits
        "c2 59 06d7 01".replace(" ", "") + "ff" * 1750,  # of 14,001, which Python's JSON can write
        "d802 59 06d7 01".replace(" ", "") + "ff" * 1750,  # the same, with a longer head
        "81" * 65 + "01",  # nested too deeply
        "81" * 100_000 + "01",
        # 65 keys of more than 64 bits
        "b8 41".replace(" ", "") + "".join(f"c249{2**64 + at:018x}00" for at in range(65)),
        "5b7fffffffffffffff",  # a byte string that claims 8 EiB
        "9b7fffffffffffffff",  # an array that claims as many items
        "bb7fffffffffffffff",
        "1c",  # a reserved head
        "ff",  # a break of nothing
    ],
)
async def test_cbor_values_that_cannot_be_kept_are_refused(node: Node, item):
    head = cbor2.dumps({"events": [{"event_type": "A", "data": 0}]})
    raw = head[:-1] + bytes.fromhex(item)
    await refused(node, await _raw(node, raw, "cbor"))


@pytest.mark.parametrize(
    "words",
    ["maximum container nesting depth", "map key must be a text string or byte string"],
)
async def test_a_repeated_key_is_told_of_whatever_words_are_in_it(node: Node, words):
    key = cbor2.dumps(words)
    answer = await _raw(node, b"\xa2" + (key + b"\x01") * 2, "cbor")
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert f"Duplicate map key: {words!r}" in answer.body["detail"]


def nested(depth: int) -> list[Any]:
    value: list[Any] = [1]
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize("media", ["json", "cbor"])
async def test_values_may_nest_as_deeply_as_the_limit_says(node: Node, media):
    value: object = 1
    for _ in range(64):
        value = [value]
    assert (await _send(node, EVENTS, _one(value), media)).status == 201
    assert (await node.ask("GET", EVENTS)).body["events"][0]["data"] == value
    deeper = [await _send(node, EVENTS, _one(one), media) for one in ([value], nested(300))]
    if media == "json":
        item = "[" * 100_000 + "]" * 100_000
        raw = f'{{"events": [{{"event_type": "A", "data": {item}}}]}}'
        deeper.append(await _raw(node, raw.encode(), media))
    for answer in deeper:
        assert (answer.status, answer.code) == (413, "payload_too_large")
        assert (answer.body["limit"], answer.body["actual"]) == (64, 65)
    many = {"events": [{"event_type": "A", "data": [[1], [2]]}] * 50}
    assert (await _send(node, EVENTS, many, media)).status == 201


@pytest.mark.parametrize(
    "stream",
    [
        *("$s", "%24s", "a%00", "a%0a", "a%7F", "a%C2%85", "%zz", "a%", "a%2", "%ff", "%C3", ""),
        *("%ED%A0%80", "x" * 256, "é" * 128),
    ],
)
async def test_bad_stream_names_are_refused(node: Node, stream):
    target = f"/v1/stores/main/streams/{stream}/events"
    await refused(node, await node.ask("GET", target), "invalid_request")
    body = {"events": [{"event_type": "A"}]}
    await refused(node, await node.ask("POST", target, json=body), "invalid_request")
    await refused(
        node,
        await node.ask("PUT", f"/v1/stores/main/checkpoints/{stream}", json={"position": 1}),
        "invalid_request",
    )


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "invalid_count"),
        ("limit=-1", "invalid_count"),
        ("limit=x", "invalid_count"),
        ("limit=", "invalid_count"),
        ("limit=1.0", "invalid_count"),
        ("limit=%D9%A1", "invalid_count"),  # an Arabic digit
        ("limit=1&limit=2", "invalid_request"),
        ("after=-1", "invalid_start_version"),
        ("after=x", "invalid_start_version"),
        ("after=99999999999999999999", "invalid_start_version"),
        ("until=x", "invalid_request"),
        ("direction=up", "invalid_request"),
        ("direction=forward&direction=forward", "invalid_request"),
        ("consistency=quorum", "invalid_request"),
        ("min_index=x", "invalid_request"),
        ("min_position=-1", "invalid_request"),
        ("min_postion=1", "invalid_request"),
        ("timeout_ms=0", "invalid_request"),
        ("timeout_ms=300001", "payload_too_large"),
        ("wait_ms=60001", "payload_too_large"),
        ("wait_ms=x", "invalid_request"),
        ("stream_prefix=" + "x" * 256, "invalid_request"),
        ("type=%zz", "invalid_request"),
        ("type=%ff", "invalid_request"),
        ("%ff=1", "invalid_request"),
        ("from=1", "invalid_request"),
        ("&".join(f"type=t{n}" for n in range(65)), "payload_too_large"),
    ],
)
async def test_bad_queries_are_refused(node: Node, query, code):
    await refused(node, await node.ask("GET", f"/v1/stores/main/events?{query}"), code)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("from=-1", "invalid_start_version"),
        ("from=start", "invalid_start_version"),
        ("from=", "invalid_start_version"),
        ("must_exist=1", "invalid_request"),
        ("after=1", "invalid_request"),
    ],
)
async def test_bad_queries_on_a_stream_are_refused(node: Node, query, code):
    await refused(node, await node.ask("GET", f"{EVENTS}?{query}"), code)


@pytest.mark.parametrize("query", ["durability=disk", "durabilty=persisted", "timeout_ms=x", "x=1"])
async def test_bad_queries_on_an_append_store_nothing(node: Node, query):
    await refused(
        node, await node.ask("POST", f"{EVENTS}?{query}", json=_one(1)), "invalid_request"
    )


@pytest.mark.parametrize(
    "target", ["/", "/v1", "/v1/", "/v2/stores", "/v1/stores/", "/v1/stores/main/", "//v1/stores"]
)
async def test_unknown_routes_are_404_problems(node: Node, target):
    answer = await node.ask("GET", target)
    if target != "/v1/stores/":  # an empty store name
        assert (answer.status, answer.code) == (404, "route_not_found")
    await refused(node, answer)


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("PUT", EVENTS, "GET, POST, HEAD"),
        ("GET", APPEND, "POST"),
        ("OPTIONS", "/v1/stores", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("PATCH", "/v1/stores/main", "DELETE, GET, PUT, HEAD"),
    ],
)
async def test_a_wrong_method_is_405_with_what_is_allowed(node: Node, method, target, allow):
    answer = await node.ask(method, target)
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == allow
    await refused(node, answer)


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "", "json", "application/jsonp"],
)
async def test_other_media_types_are_415(node: Node, content_type):
    answer = await node.ask("POST", EVENTS, data=b"{}", headers={"Content-Type": content_type})
    await refused(node, answer, "unsupported_media_type")
    answer = await node.ask(
        "POST", EVENTS, data=b"{}", headers={**JSON, "Content-Encoding": "gzip"}
    )
    await refused(node, answer, "unsupported_media_type")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "json"),
        ("application/*", "json"),
        ("application/json; charset=utf-8", "json"),
        ("application/cbor", "cbor"),
        ("text/html, application/cbor;q=0.5, */*;q=0.1", "cbor"),
        ("application/json;q=0.5, application/cbor", "cbor"),
        ("application/cbor;q=0, */*", "json"),
        ("application/problem+json", "json"),
        ("", "json"),  # names nothing, so it asks for nothing
        ("text/html", None),
        ("application/json;q=0", None),
        ("application/json;q=x", None),
    ],
)
async def test_accept_chooses_the_answer(node: Node, accept, kind):
    answer = await node.ask("GET", "/v1/stores", headers={"Accept": accept})
    if kind is None:
        await refused(node, answer, "not_acceptable")
        assert answer.status == 406
    else:
        assert answer.headers["Content-Type"] == f"application/{kind}"


@pytest.mark.parametrize(
    ("method", "target", "code"),
    [
        ("GET", "/v1/stores/none", "store_not_found"),
        ("GET", "/v1/stores/None", "invalid_request"),
        ("GET", "/v1/none", "route_not_found"),
        ("PATCH", "/v1/stores", "method_not_allowed"),
    ],
)
async def test_problems_come_in_the_encoding_that_was_asked_for(node: Node, method, target, code):
    answer = await node.ask(method, target, headers={"Accept": "application/cbor"})
    assert answer.headers["Content-Type"] == "application/problem+cbor"
    assert answer.code == code


@pytest.mark.parametrize(
    ("method", "target", "accept", "status"),
    [
        ("GET", "/v1/stores/main/streams/$s", "*/*", 400),
        ("GET", "/v1/stores/main/streams/s?no=1", "*/*", 400),
        ("GET", "/v1/stores/main/streams/s", "text/html", 406),
        ("GET", "/v1/stores/main/none", "*/*", 404),
        ("GET", "/v1/stores/m%61in/none", "*/*", 404),
        ("PATCH", "/v1/stores/main", "*/*", 405),
    ],
)
async def test_refusals_of_a_store_tell_its_position(node: Node, method, target, accept, status):
    await node.append("s")
    answer = await node.ask(method, target, headers={"Accept": accept})
    assert answer.status == status
    assert answer.headers["X-Position"] == "1"
    assert answer.headers["X-Applied-Index"] == str(node.state.applied_index)


async def test_a_defect_of_ours_is_a_500_that_says_nothing_of_the_inside(node, caplog):
    node.replica.propose_error = ZeroDivisionError("secret")  # type: ignore[assignment]
    answer = await node.append("s")
    assert (answer.status, answer.code) == (500, "internal_error")
    assert answer.body["stored"] == "perhaps"
    assert b"secret" not in answer.raw
    assert "secret" in caplog.text
    node.replica.propose_error = None
    assert (await node.append("s")).status == 201


async def test_a_refusal_that_cannot_be_written_is_a_500_too(node, caplog):
    node.replica.propose_error = Overloaded("full", limit=object())
    answer = await node.append("s")
    assert (answer.status, answer.code) == (500, "internal_error")
    assert "Traceback" in caplog.text
    node.replica.propose_error = None
    assert (await node.append("s")).status == 201


async def test_a_body_limit_counts_what_arrives_not_what_is_announced():
    async with serving(body_bytes_max=1_000, event_bytes_max=500) as node:
        whole = b"[" * 1_001
        answer = await node.ask("POST", EVENTS, data=whole, headers=JSON)
        assert (answer.status, answer.body["limit"], answer.body["actual"]) == (413, 1_000, 1_001)
        answer = await node.ask("POST", EVENTS, data=b"[" * 1_000, headers=JSON)
        assert answer.status == 400


def _one(value: object) -> dict:
    return {"events": [{"event_type": "A", "data": value}]}


async def _send(node: Node, target: str, body: object, media: str):
    raw = msgspec.json.encode(body) if media == "json" else cbor2.dumps(body)
    headers = JSON if media == "json" else CBOR
    return await node.ask("POST", target, data=raw, headers=headers)


async def _raw(node: Node, raw: bytes, media: str):
    return await node.ask("POST", EVENTS, data=raw, headers=JSON if media == "json" else CBOR)


async def test_only_a_body_with_a_key_of_more_than_64_bits_pays_for_a_count_of_them(monkeypatch):
    few = {2**64 + at: 0 for at in range(64)}
    assert await values.decode_cbor(cbor2.dumps(few), 64) == few
    monkeypatch.delattr(values, "big_integers")
    body = {"events": [{"event_type": "A", "data": {"n": 2**64, "m": -(2**65), 1: 2}}]}
    assert await values.decode_cbor(cbor2.dumps(body), 64) == body
