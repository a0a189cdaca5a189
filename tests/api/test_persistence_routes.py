"""Persistence, as clients and operators ask for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from node.core import commands
from node.errors import (
    NoLeader,
    PersistenceDisabled,
    PersistenceFailed,
    PersistenceTimeout,
    ReadBarrierTimeout,
)
from tests.api.fakes import Node

ENTRY = {"persisted_index": 9, "persisted_position": 3, "bytes": 10, "duration_ms": 2.5}
FORCE = "/v1/stores/main/persistence/force"


async def test_a_request_is_queued_at_once(node: Node):
    answer = await node.ask("POST", "/v1/stores/main/persistence/request")
    assert (answer.status, answer.body) == (202, {"store": "main", "queued": True})
    assert node.worker.requested == ["main"]
    answer = await node.ask("POST", "/v1/stores/none/persistence/request")
    assert (answer.status, answer.code) == (404, "store_not_found")


@pytest.mark.parametrize(
    "target", ["/v1/stores/main/persistence/request", FORCE, "/v1/persistence/force"]
)
async def test_a_scope_in_the_body_is_refused_rather_than_passed_over(node: Node, target):
    for body in ({"scope": "cluster"}, [], "x"):
        answer = await node.ask("POST", target, json=body)
        assert (answer.status, answer.code) == (400, "invalid_request")
    assert node.worker.requested == node.worker.forced == []
    for nothing in ({"json": {}}, {"data": b""}):
        assert (await node.ask("POST", target, **nothing)).status in (200, 202)


async def test_a_flush_of_this_node_covers_what_was_committed_when_it_came(node: Node):
    await node.append("s")
    answer = await node.ask("POST", FORCE)
    assert answer.status == 200
    assert answer.body["nodes"]["n1"]["persisted_index"] == 2
    assert node.replica.barriers == ["leader"]
    assert node.worker.forced == [(["main"], 2)]


async def test_a_flush_of_this_node_needs_no_leader_but_one_of_the_cluster_does(node: Node):
    node.replica.barrier_error = NoLeader("none")
    assert (await node.ask("POST", FORCE)).status == 200
    answer = await node.ask("POST", FORCE + "?scope=cluster")
    assert (answer.status, answer.code) == (503, "no_leader")


async def test_without_a_majority_a_flush_of_the_cluster_names_those_that_failed(node: Node):
    node.replica.barrier_error = NoLeader("none")
    node.replica.peers = ["n2", "n3"]
    node.peer_results.update(n2=NoLeader("unreachable"), n3=NoLeader("unreachable"))
    answer = await node.ask("POST", FORCE + "?scope=cluster")
    assert (answer.status, answer.code) == (207, "partial_success")
    assert (list(answer.body["nodes"]), sorted(answer.body["failed"])) == (["n1"], ["n2", "n3"])


@pytest.mark.parametrize("error", [NoLeader("none"), ReadBarrierTimeout("late")])
async def test_a_barrier_that_takes_all_its_time_leaves_enough_for_the_disks(node: Node, error):
    force = node.worker.force

    async def barrier(_: str, timeout_ms: int) -> None:
        await asyncio.sleep(timeout_ms / 1000)
        raise error

    async def slow(*given: Any) -> Any:
        await asyncio.sleep(0.02)
        return await force(*given)

    node.replica.barrier, node.worker.force = barrier, slow  # type: ignore[method-assign]
    target = FORCE + "?scope=cluster&timeout_ms=300"
    answer = await node.ask("POST", target)
    assert (answer.code, len(node.worker.forced)) == (error.code, 1), "perhaps not all of it"
    node.replica.peers = ["n2"]
    node.peer_results["n2"] = NoLeader("unreachable")
    answer = await node.ask("POST", target)
    assert (answer.status, answer.code) == (207, "partial_success")
    assert (list(answer.body["nodes"]), list(answer.body["failed"])) == (["n1"], ["n2"])


async def test_a_flush_of_a_node_that_lags_writes_what_it_has_and_says_so(node: Node):
    node.replica.barrier_error = ReadBarrierTimeout("late")
    answer = await node.ask("POST", FORCE)
    assert (answer.status, answer.code) == (504, "read_barrier_timeout")
    assert node.worker.forced == [(["main"], 1)]


async def test_a_flush_of_a_store_that_is_not_known_here_yet_ends_in_its_time(node: Node):
    given = []

    async def barrier(_: str, timeout_ms: int) -> None:
        given.append(timeout_ms)
        await asyncio.sleep(0.3)
        if len(given) == 1:
            node.replica.apply(commands.create_store("late", 1))

    node.replica.barrier = barrier  # type: ignore[method-assign]
    answer = await node.ask("POST", "/v1/stores/late/persistence/force?timeout_ms=1000")
    assert answer.status == 200
    assert given[0] <= 1000 and given[1] <= 700


async def test_a_flush_of_all_stores_names_none(node: Node):
    assert (await node.ask("POST", "/v1/persistence/force?scope=node")).status == 200
    assert node.worker.forced == [(None, 1)]


async def test_a_flush_of_the_cluster_has_an_entry_for_every_member(node: Node):
    node.replica.peers = ["n2", "n3"]
    node.peer_results.update(n2=ENTRY, n3=ENTRY)
    answer = await node.ask("POST", FORCE + "?scope=cluster")
    assert answer.status == 200
    assert sorted(answer.body["nodes"]) == ["n1", "n2", "n3"]
    assert answer.body["nodes"]["n3"] == ENTRY


async def test_members_that_failed_are_named_in_a_partial_success(node: Node):
    node.replica.peers = ["n2", "n3"]
    node.peer_results.update(n2=PersistenceFailed("disk full"), n3=NoLeader("unreachable"))
    answer = await node.ask("POST", FORCE + "?scope=cluster")
    assert (answer.status, answer.code) == (207, "partial_success")
    assert list(answer.body["nodes"]) == ["n1"]
    assert answer.body["failed"] == {
        "n2": {"code": "persistence_failed", "detail": "disk full"},
        "n3": {"code": "no_leader", "detail": "unreachable"},
    }


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PersistenceDisabled("off"), 409),
        (PersistenceTimeout("late"), 504),
        (PersistenceFailed("disk full"), 500),
    ],
)
@pytest.mark.parametrize("scope", ["node", "cluster"])
async def test_a_flush_that_failed_everywhere_is_the_error_that_they_share(
    node, error, status, scope
):
    node.worker.error = error
    answer = await node.ask("POST", f"{FORCE}?scope={scope}")
    assert (answer.status, answer.code) == (status, error.code)


async def test_a_flush_that_failed_in_different_ways_is_a_timeout(node: Node):
    node.replica.peers = ["n2"]
    node.worker.error = PersistenceFailed("disk full")
    node.peer_results["n2"] = NoLeader("unreachable")
    answer = await node.ask("POST", FORCE + "?scope=cluster")
    assert (answer.status, answer.code) == (504, "persistence_timeout")
    assert sorted(answer.body["failed"]) == ["n1", "n2"]


async def test_a_request_where_persistence_is_off_is_409(node: Node):
    node.worker.error = PersistenceDisabled("off")
    answer = await node.ask("POST", "/v1/stores/main/persistence/request")
    assert (answer.status, answer.code) == (409, "persistence_disabled")


async def test_the_worker_is_shown_and_its_interval_changed(node: Node):
    assert (await node.ask("GET", "/v1/persistence")).body == node.worker.status()
    answer = await node.ask("PUT", "/v1/persistence", json={"interval_ms": 250})
    assert (answer.status, answer.body["interval_ms"]) == (200, 250)


@pytest.mark.parametrize("interval", [0, -1, 1.5, "5", None, True, 10**12])
async def test_an_interval_must_be_a_sensible_number(node: Node, interval):
    answer = await node.ask("PUT", "/v1/persistence", json={"interval_ms": interval})
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert node.worker.interval_ms == 5_000
