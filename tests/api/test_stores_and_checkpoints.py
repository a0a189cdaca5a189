"""Stores and checkpoints."""

from __future__ import annotations

from urllib.parse import quote

import cbor2
import pytest

from node.errors import OutcomeUnknown
from tests.api.fakes import Node

CHECKPOINTS = "/v1/stores/main/checkpoints"


async def test_a_store_is_made_once_and_can_be_used_at_once(node: Node):
    first = await node.ask("PUT", "/v1/stores/orders.2026")
    again = await node.ask("PUT", "/v1/stores/orders.2026", json={})
    assert (first.status, again.status) == (201, 200)
    assert first.body == {"store": "orders.2026", "streams": 0, "events": 0, "position": 0}
    assert first.headers["X-Position"] == "0"
    answer = await node.ask("GET", "/v1/stores/orders.2026/events")
    assert answer.status == 200


async def test_stores_are_listed_by_name_with_their_sizes(node: Node):
    await node.append("s", 2)
    await node.ask("PUT", "/v1/stores/a")
    answer = await node.ask("GET", "/v1/stores?consistency=leader")
    assert answer.body == {
        "stores": [
            {"store": "a", "streams": 0, "events": 0, "position": 0},
            {"store": "main", "streams": 1, "events": 2, "position": 2},
        ]
    }
    assert node.replica.barriers == ["leader"]


async def test_looking_at_a_store_tells_about_its_persistence(node: Node):
    answer = await node.ask("GET", "/v1/stores/main")
    assert answer.body["persistence"]["persisted_index"] == 0


async def test_a_store_s_durability_is_set_when_it_is_made_and_later(node: Node):
    async def durability(name: str):
        return (await node.ask("GET", f"/v1/stores/{name}")).body["durability"]

    assert await durability("main") is None
    for body in ({"durability": "persisted"}, {}, None):
        answer = await node.ask("PUT", "/v1/stores/safe", json=body)
        assert answer.status in (200, 201)
        assert await durability("safe") == "persisted", "what is not said stays as it was"
    for wanted in ("replicated", None):
        await node.ask("PUT", "/v1/stores/safe", json={"durability": wanted})
        assert await durability("safe") == wanted


@pytest.mark.parametrize("body", [{"durability": "disk"}, {"durability": 1}, {"durable": True}])
async def test_a_durability_that_there_is_not_is_refused(node: Node, body):
    answer = await node.ask("PUT", "/v1/stores/main", json=body)
    assert (answer.status, answer.code) == (400, "invalid_request")


async def test_a_deleted_store_is_gone(node: Node):
    answer = await node.ask("DELETE", "/v1/stores/main")
    assert (answer.status, answer.raw) == (204, b"")
    assert "Content-Length" not in answer.headers
    assert (await node.ask("DELETE", "/v1/stores/main")).code == "store_not_found"
    assert (await node.ask("GET", "/v1/stores/main")).code == "store_not_found"
    assert (await node.append("s")).code == "store_not_found"


@pytest.mark.parametrize("name", ["A", "a b", "-a", ".a", "a" * 65, "%C3%A9", "a%2Fb", ""])
async def test_a_store_needs_a_good_name(node: Node, name):
    answer = await node.ask("PUT", f"/v1/stores/{name.replace(' ', '%20')}")
    assert (answer.status, answer.code) == (400, "invalid_request")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"x": 1}', b"null"])
async def test_a_store_takes_no_body_but_an_empty_one(node: Node, body):
    assert (await node.ask("PUT", "/v1/stores/x", data=body)).status in (400, 415)
    answer = await node.ask(
        "PUT", "/v1/stores/x", data=body, headers={"Content-Type": "application/json"}
    )
    assert (answer.status, answer.code) == (400, "invalid_request")


async def test_a_checkpoint_only_moves_forward(node: Node):
    target = "/v1/stores/main/checkpoints/reader%201"
    missing = await node.ask("GET", target)
    assert (missing.status, missing.code) == (404, "checkpoint_not_found")
    put = await node.ask("PUT", target, json={"position": 5})
    assert (put.status, put.body) == (200, {"name": "reader 1", "position": 5})
    again = await node.ask("PUT", target, json={"position": 5})
    assert (again.status, again.code) == (409, "checkpoint_not_increasing")
    assert (again.body["current"], again.body["position"]) == (5, 5)
    raw = cbor2.dumps({"position": 6})
    put = await node.ask("PUT", target, data=raw, headers={"Content-Type": "application/cbor"})
    assert put.status == 200
    assert (await node.ask("GET", target)).body["position"] == 6


@pytest.mark.parametrize("position", [-1, 2**63, 2**80, 1.5, "1", None, True, [1]])
async def test_a_checkpoint_needs_a_position(node: Node, position):
    answer = await node.ask("PUT", "/v1/stores/main/checkpoints/c", json={"position": position})
    assert (answer.status, answer.code) == (400, "invalid_request")


async def test_a_change_whose_fate_is_unknown_says_so(node: Node):
    node.replica.propose_error = OutcomeUnknown("late")
    for method, target, body in (
        ("PUT", "/v1/stores/x", None),
        ("DELETE", "/v1/stores/main", None),
        ("PUT", "/v1/stores/main/checkpoints/c", {"position": 1}),
    ):
        answer = await node.ask(method, target, json=body)
        assert (answer.status, answer.body["stored"]) == (504, "perhaps")


async def test_checkpoints_are_listed_by_name_in_pages(node: Node):
    names = ["b", "a/1", "c", "ü", "a"]
    for position, name in enumerate(names):
        await node.ask("PUT", f"{CHECKPOINTS}/{quote(name, safe='')}", json={"position": position})
    seen: list[tuple[str, int]] = []
    after: str | None = ""
    while after is not None:
        page = (await node.ask("GET", f"{CHECKPOINTS}?limit=2{after}")).body
        assert len(page["checkpoints"]) <= 2
        seen += [(one["name"], one["position"]) for one in page["checkpoints"]]
        after = page["next"] and f"&after={quote(page['next'], safe='')}"
    assert seen == [("a", 4), ("a/1", 1), ("b", 0), ("c", 2), ("ü", 3)]
    assert (await node.ask("GET", "/v1/stores/new/checkpoints")).status == 404
