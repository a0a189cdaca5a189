"""The routes by which an operator rebuilds a cluster without members that are gone for good."""

from __future__ import annotations

from typing import Any

import pytest

from node.errors import RecoveryRefused
from tests.api.fakes import Node

ROUTE = "/v1/cluster/recovery"
ORDER: dict[str, Any] = {
    "lineage": "one",
    "parent": "zero",
    "membership_version": 1,
    "voters": {"n1": "127.0.0.1:7101"},
    "missing": ["n2", "n3"],
}


async def test_a_node_tells_what_a_plan_is_made_of(node: Node):
    answer = await node.ask("GET", ROUTE)
    assert answer.status == 200
    assert (answer.body["node_id"], answer.body["last_index"]) == ("n1", 9)


async def test_an_order_is_accepted_once_and_then_known(node: Node):
    first = await node.ask("POST", ROUTE, json=ORDER)
    again = await node.ask("POST", ROUTE, json=ORDER)
    assert (first.status, first.body) == (202, {"lineage": "one", "restarting": True})
    assert (again.status, again.body) == (200, {"lineage": "one", "restarting": False})
    assert dict(node.override.orders[0].voters) == ORDER["voters"]


async def test_a_refused_order_says_why(node: Node):
    node.override.error = RecoveryRefused("n2 leads")
    answer = await node.ask("POST", ROUTE, json=ORDER)
    assert (answer.status, answer.code) == (409, "recovery_refused")
    assert (answer.body["detail"], answer.body["stored"]) == ("n2 leads", "no")


@pytest.mark.parametrize(
    "change",
    [{"lineage": ""}, {"lineage": 7}, {"voters": {}}, {"voters": ["n1"]}, {"more": 1}],
    ids=str,
)
async def test_an_order_needs_a_good_body(node: Node, change: dict[str, Any]):
    answer = await node.ask("POST", ROUTE, json=ORDER | change)
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert node.override.orders == []
