"""The filter language, at every door that takes it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import quote, urlencode

import pytest

from node.api.filters import Scan
from node.api.limits import ApiLimits
from node.api.pacing import Pacer
from node.core import commands
from node.core.filters import Filter
from node.core.frames import ABSENT, encode_frame
from tests.api.fakes import NOW_US, Node, serving
from tests.api.test_conversation import talking
from tests.api.test_following import NDJSON, follow

EVENTS = "/v1/stores/main/events"
ONE = "/v1/stores/main/subscriptions/one"

ORDER = {"customer": {"country": "DE", "vip": True}, "total": 12, "tags": ["new", "big"]}
STORED: list[dict[str, Any]] = [
    {"data": ORDER, "metadata": {"a.b": {"c": 1.0}, "user": "ops-1"}},
    {"data": {"customer": {"country": "AT"}, "total": 12.0, "coupon": None}},
    {"data": {"customer": "DE", "total": "12"}, "metadata": {"user": "web-1"}},
    {"data": "plain text"},
    {"data_base64": "AAEC"},
    {},
]
FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({"where": [{"path": "data.customer.country", "equals": "DE"}]}, [1]),
    ({"where": [{"path": "data.customer.country", "any_of": ["DE", "AT"]}]}, [1, 2]),
    ({"where": [{"path": "data.total", "equals": 12}]}, [1, 2]),
    ({"where": [{"path": "data.total", "any_of": ["12", 13]}]}, [3]),
    ({"where": [{"path": "data.customer.vip", "equals": True}]}, [1]),
    ({"where": [{"path": "data.tags.1", "prefix": "b"}]}, [1]),
    ({"where": [{"path": ["data", "tags", 1], "exists": True}]}, [1]),
    ({"where": [{"path": ["metadata", "a.b", "c"], "equals": 1}]}, [1]),
    ({"where": [{"path": "metadata.a.b.c", "equals": 1}]}, []),
    ({"where": [{"path": "data.coupon", "exists": True}]}, [2]),
    ({"where": [{"path": "metadata", "exists": False}]}, [2, 4, 5, 6]),
    ({"where": [{"path": "data", "equals": None}]}, [6]),
    ({"where": [{"path": "data", "prefix": "plain"}]}, [4]),
    ({"where": [{"path": "data", "prefix_base64": "AAE="}]}, [5]),
    ({"where": [{"path": "data", "any_of": ["plain text"], "any_of_base64": ["AAEC"]}]}, [4, 5]),
    (
        {
            "where": [
                {"path": "data.total", "equals": 12},
                {"path": "metadata.user", "prefix": "ops-"},
            ]
        },
        [1],
    ),
    ({"types": ["T2", "T3"], "where": [{"path": "data.total", "exists": True}]}, [2, 3]),
    ({"stream": "s-1", "where": [{"path": "data.customer", "exists": True}]}, [1, 3]),
    ({"stream_prefix": "s-2", "where": [{"path": "data", "exists": True}]}, [2, 4]),
    ({"stream": "s-2"}, [2, 4, 6]),
]
each_filter = pytest.mark.parametrize(("wanted", "expected"), FILTERS)


async def fill(node: Node) -> None:
    """Each of `STORED`, of its own type, in the streams s-1 and s-2 by turns."""
    for at, event in enumerate(STORED, 1):
        body = {"events": [{"event_type": f"T{at}", **event}]}
        target = f"/v1/stores/main/streams/s-{2 - at % 2}/events"
        assert (await node.ask("POST", target, json=body)).status == 201


def options(wanted: dict[str, Any]) -> dict[str, Any]:
    """A filter as the query has it."""
    given = {name: value for name, value in wanted.items() if name != "types"}
    if "types" in wanted:
        given["type"] = wanted["types"]
    if "where" in wanted:
        given["where"] = json.dumps(wanted["where"])
    return given


def positions(answer: Any) -> list[int]:
    return [event["position"] for event in answer.body["events"]]


@each_filter
async def test_every_door_understands_a_filter_alike(node: Node, wanted, expected):
    await fill(node)
    query = urlencode(options(wanted), doseq=True)
    assert positions(await node.ask("GET", f"{EVENTS}?{query}")) == expected
    backward = await node.ask("GET", f"{EVENTS}?direction=backward&{query}")
    assert positions(backward) == expected[::-1] and backward.body["is_end"]
    async with follow(node, f"?{query}", NDJSON) as stream:
        said = await stream.until("caught_up")
        assert [one.id for one in said if one.event == "event"] == expected
        assert said[-1].id == len(STORED)
    async with talking(node) as client:
        status, page = await client.ask("read", None, options(wanted))
        assert [event["position"] for event in page["events"]] == expected, status
        await client.send(["subscribe", 1, options(wanted)])
        said = await client.until(1, "caught_up")
        assert [one[0] for kind, many in said if kind == "events" for one in many] == expected
    made = await node.ask("PUT", ONE, json={"filter": wanted})
    assert made.status == 201, made.body
    assert await _fetched(node, len(expected)) == expected


async def _fetched(node: Node, count: int) -> list[int]:
    """All that a persistent subscription hands out, each acknowledged."""
    found: list[int] = []
    for _ in range(count + 1):
        answer = await node.ask("POST", ONE + "/fetch", json={"consumer": "c"})
        found += positions(answer)
        ids = [event["delivery_id"] for event in answer.body["events"]]
        await node.ask("POST", ONE + "/ack", json={"delivery_ids": ids})
    return sorted(found)


@each_filter
async def test_a_definition_shows_a_filter_that_makes_the_same_again(node: Node, wanted, expected):
    assert (await node.ask("PUT", ONE, json={"filter": wanted})).status == 201
    for headers in ({}, {"Accept": "application/cbor"}):
        shown = (await node.ask("GET", ONE, headers=headers)).body["filter"]
        assert (await node.ask("PUT", ONE, json={"filter": shown})).status == 200, shown
    other = {"filter": {**wanted, "where": [{"path": "data.other", "exists": True}]}}
    assert (await node.ask("PUT", ONE, json=other)).code == "subscription_exists"


async def test_the_order_of_conditions_and_values_makes_no_other_filter(node: Node):
    one, two = {"path": "data.a", "any_of": [1, "x"]}, {"path": ["data", "b"], "exists": True}
    assert (await node.ask("PUT", ONE, json={"filter": {"where": [one, two]}})).status == 201
    again = {"path": "data.b", "exists": True}, {"path": "data.a", "any_of": ["x", 1.0, "x"]}
    assert (await node.ask("PUT", ONE, json={"filter": {"where": again}})).status == 200
    truth = {"path": "data.a", "any_of": [True, "x"]}
    assert (await node.ask("PUT", ONE, json={"filter": {"where": [truth, two]}})).status == 409


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("stream", ["", "&stream=a"])
async def test_a_reader_with_conditions_that_follows_next_sees_each_match_once(direction, stream):
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    async with serving(decoded_bytes_per_scan_max=chance.randint(1, 400)) as node:
        for at in range(1, 41):
            await node.append("ab"[at % 2], data={"third": at % 3 == 0})
        where = quote(json.dumps([{"path": "data.third", "equals": True}]))
        seen, after = [], ""
        for _ in range(100):
            limit = chance.randint(1, 4)
            query = f"?where={where}&limit={limit}&direction={direction}{stream}{after}"
            answer = await node.ask("GET", EVENTS + query)
            seen += positions(answer)
            after = f"&after={answer.body['next']}"
            if answer.body["is_end"]:
                break
        expected = [at for at in range(3, 41, 3) if not stream or at % 2 == 0]
        assert seen == (expected if direction == "forward" else expected[::-1])


class Between:
    """Breathes by letting something happen, once."""

    def __init__(self, happen: Callable[[], None]) -> None:
        self.happen: Callable[[], None] | None = happen

    async def breathe(self) -> None:
        happen, self.happen = self.happen, None
        if happen is not None:
            happen()


async def test_a_type_that_comes_up_during_a_scan_is_not_missed(node: Node):
    await node.append("s", 600)

    def append() -> None:
        frame = encode_frame(b"x" * 16, "New", ABSENT, ABSENT, "", "")
        node.replica.apply(commands.append("main", NOW_US, "s", commands.ANY, [frame]))

    store = node.state.stores["main"]
    scan, pacer = Scan(Filter(types=("New",)), False, 10, 0, None, []), cast(Pacer, Between(append))
    while not scan.is_end(store.position):
        await scan.run(store, ApiLimits(), pacer, 10_000)
    assert [row[0] for row in scan.rows] == [601]


CONDITION = {"path": "data.k", "equals": 1}
BAD: list[tuple[Any, str, str]] = [
    ({}, "where", "invalid_request"),
    ([1], "where", "invalid_request"),
    ([{}], "where", "invalid_request"),
    ([{"equals": 1}], "where", "invalid_request"),
    ([{"path": 1, "equals": 1}], "path", "invalid_request"),
    ([{"path": "data.k"}], "where[0]", "invalid_request"),
    ([{**CONDITION, "prefix": "a"}], "where[0]", "invalid_request"),
    ([{**CONDITION, "equals_base64": "AA=="}], "where[0]", "invalid_request"),
    ([{**CONDITION, "equal": 1}], "equal", "invalid_request"),
    ([CONDITION, {"path": "k", "equals": 1}], "where[1].path", "invalid_request"),
    ([{"path": [], "equals": 1}], "where[0].path", "invalid_request"),
    ([{"path": [0], "equals": 1}], "where[0].path", "invalid_request"),
    ([{"path": ["data", None], "equals": 1}], "path", "invalid_request"),
    ([{"path": "data", "equals": {}}], "where[0].equals", "invalid_request"),
    ([{"path": "data", "any_of": 1}], "any_of", "invalid_request"),
    ([{"path": "data", "any_of": []}], "where[0].any_of", "invalid_request"),
    ([{"path": "data", "any_of": [1, [2]]}], "where[0].any_of", "invalid_request"),
    ([{"path": "data", "prefix": 1}], "where[0].prefix", "invalid_request"),
    ([{"path": "data", "exists": "yes"}], "exists", "invalid_request"),
    ([{"path": "data", "equals_base64": "?"}], "base64", "invalid_request"),
    ([CONDITION] * 17, "where", "payload_too_large"),
    ([{"path": "data" + ".k" * 17, "equals": 1}], "where[0].path", "payload_too_large"),
    ([{"path": ["data", "é" * 128], "equals": 1}], "where[0].path", "payload_too_large"),
    ([{"path": "data", "any_of": [*range(65)]}], "where[0].any_of", "payload_too_large"),
    ([{"path": "data", "equals": "x" * 1_022}], "where[0].equals", "payload_too_large"),
]


@pytest.mark.parametrize(("where", "named", "code"), BAD)
async def test_a_bad_filter_is_refused_with_its_place(node: Node, where, named, code):
    query = urlencode({"where": json.dumps(where)})
    body = {"filter": {"where": where}}
    for answer in (
        await node.ask("GET", f"{EVENTS}?{query}"),
        await node.ask("GET", f"/v1/stores/main/subscribe?{query}"),
        await node.ask("PUT", ONE, json=body),
    ):
        assert answer.code == code and answer.body["stored"] == "no", answer.body
        assert named in answer.body["detail"] and "where" in answer.body["detail"], answer.body
        assert code != "payload_too_large" or answer.body["actual"] > answer.body["limit"]
    assert (await node.ask("GET", ONE)).status == 404


@pytest.mark.parametrize(
    "where", ["", "[", "[" * 4_000, '[{"path":"data","equals":1e999}]', "\ud800"]
)
async def test_a_where_that_is_no_json_is_refused(node: Node, where):
    answer = await node.ask("GET", f"{EVENTS}?where={quote(where, errors='surrogatepass')}")
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert "where" in answer.body["detail"]
    surrogate = quote('[{"path":"data","equals":"\\ud800"}]')
    assert (await node.ask("GET", f"{EVENTS}?where={surrogate}")).status == 400


async def test_the_conditions_of_a_body_are_bounded_together(node: Node):
    where = [
        {"path": "data", "any_of": [f"{at}{n}" + "x" * 900 for n in range(4)]} for at in "abcde"
    ]
    answer = await node.ask("PUT", ONE, json={"filter": {"where": where}})
    assert (answer.code, answer.body["limit"]) == ("payload_too_large", 16 * 1024)
