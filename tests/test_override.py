"""Which orders of an operator a node refuses by what it sees itself."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from node.override import objection
from node.raft.members import Outlook

VOTERS = {"n1": "a:1", "n2": "b:1", "n3": "c:1"}
ALONE = Outlook(
    leader=None,
    term=4,
    last_term=4,
    last_index=9,
    membership_version=3,
    counted=list(VOTERS),
    voters=VOTERS,
    learners={},
    reaches=[],
)


class Order(NamedTuple):
    lineage: str = "one"
    parent: str = "zero"
    membership_version: int = 4
    voters: Mapping[str, str] = MappingProxyType({"n1": "a:1"})
    missing: tuple[str, ...] = ("n2", "n3")


def test_a_survivor_alone_carries_out_a_whole_order() -> None:
    assert objection(Order(), "n1", "zero", ALONE) is None


@pytest.mark.parametrize(
    ("order", "sees", "words"),
    [
        ({"parent": "other"}, {}, "follows lineage zero, the order gives up other"),
        ({"voters": {"n4": "d:1"}}, {}, "leaves out this node"),
        ({"missing": ("n1", "n2", "n3")}, {}, "both as a survivor and as missing"),
        ({"missing": ("n2",)}, {}, "says nothing of the member n3"),
        ({"membership_version": 3}, {}, "does not know of membership 3"),
        ({}, {"leader": "n2"}, "n2 leads"),
        ({}, {"reaches": ["n3"]}, "n3 is connected with this node"),
    ],
    ids=str,
)
def test_an_order_is_refused(order: dict[str, Any], sees: dict[str, Any], words: str) -> None:
    refusal = objection(Order()._replace(**order), "n1", "zero", ALONE._replace(**sees))
    assert refusal is not None and words in refusal


def test_a_survivor_that_is_connected_with_another_survivor_obeys() -> None:
    order = Order(voters={"n1": "a:1", "n2": "b:1"}, missing=("n3",))
    assert objection(order, "n1", "zero", ALONE._replace(reaches=["n2"])) is None
