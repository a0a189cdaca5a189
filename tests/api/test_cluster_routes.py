"""The cluster, health, information and metrics."""

from __future__ import annotations

import pytest

from node.errors import (
    LastMember,
    MemberExists,
    MemberMissing,
    MemberRecovering,
    MembershipChangeOpen,
)
from tests.api.fakes import NOBODY, Node, serving


async def test_the_cluster_is_shown_as_this_node_sees_it(node: Node):
    node.replica.peers = ["n2"]
    answer = await node.ask("GET", "/v1/cluster")
    assert (answer.body["node_id"], answer.body["leader"], answer.body["term"]) == ("n1", "n1", 3)
    assert answer.body["members"][1] == {
        "id": "n2",
        "http_address": f"http://127.0.0.1:{NOBODY}",
        "raft_address": "127.0.0.1:7102",
        "role": "follower",
        "commit_index": 1,
        "applied_index": 1,
        "persisted_index": 0,
        "last_contact_ms": 7,
        "voter": True,
    }


@pytest.mark.parametrize(
    ("kwargs", "leader"), [({}, "n2"), ({"json": {}}, "n2"), ({"json": {"to": "n3"}}, "n3")]
)
async def test_leadership_is_handed_over(node: Node, kwargs, leader):
    answer = await node.ask("POST", "/v1/cluster/leader", **kwargs)
    assert (answer.status, answer.body) == (200, {"leader": leader})


async def test_a_member_is_added_and_removed(node: Node):
    body = {"id": "n4", "raft_address": "127.0.0.1:7104"}
    answer = await node.ask("POST", "/v1/cluster/members", json=body)
    assert answer.status == 201
    assert answer.body == {"version": 2, "voters": ["n1", "n4"], "learner": None}
    answer = await node.ask("DELETE", "/v1/cluster/members/n4")
    assert (answer.status, answer.body["voters"]) == (200, ["n1"])


async def test_a_member_that_still_learns_is_202(node: Node):
    node.replica.learns = True
    body = {"id": "n4", "raft_address": "127.0.0.1:7104"}
    answer = await node.ask("POST", "/v1/cluster/members", json=body)
    assert (answer.status, answer.body["learner"]) == (202, "n4")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (MembershipChangeOpen("another"), 409, "membership_change_open"),
        (MemberRecovering("n2"), 409, "member_recovering"),
        (MemberExists("n2"), 409, "member_exists"),
        (LastMember("n1"), 409, "last_member"),
        (MemberMissing("n9"), 404, "member_not_found"),
    ],
)
async def test_a_change_of_members_may_be_refused(node: Node, error, status, code):
    node.replica.member_error = error
    answer = await node.ask("DELETE", "/v1/cluster/members/n2")
    assert (answer.status, answer.code, answer.body["stored"]) == (status, code, "no")


@pytest.mark.parametrize(
    "body",
    [
        *({"id": id_, "raft_address": "h:1"} for id_ in ("", "n 4", "n4\n", "ä", "-", "n" * 33)),
        *({"id": "n4"}, {"id": "n4", "raft_address": ""}, [], {}),
    ],
)
async def test_a_new_member_needs_an_id_and_an_address(node: Node, body):
    answer = await node.ask("POST", "/v1/cluster/members", json=body)
    assert (answer.status, answer.code) == (400, "invalid_request")


@pytest.mark.parametrize(
    "address",
    [
        *("h", "h:", ":7104", "h:0", "h:65536", "h:-1", "h:+1", "h:1_0", "h:\u0661", "h: 1"),
        *("h h:1", "[]:1", "[::1:1", "::1:1", "h/x:1", "h:" + "1" * 5_000),
    ],
)
async def test_an_address_that_nobody_can_be_at_is_no_members(node: Node, address):
    """Such a node would be learning for ever, and keep all others from being added."""
    body = {"id": "n4", "raft_address": address}
    answer = await node.ask("POST", "/v1/cluster/members", json=body)
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert answer.body["parameter"] == "raft_address"


@pytest.mark.parametrize("address", ["h:1", "node-4.example:65535", "10.0.0.4:7101", "[::1]:7104"])
async def test_an_address_has_a_host_and_a_port(node: Node, address):
    body = {"id": "n4", "raft_address": address}
    assert (await node.ask("POST", "/v1/cluster/members", json=body)).status == 201


@pytest.mark.parametrize("body", [{"to": 5}, {"too": "n2"}, []])
async def test_a_hand_over_needs_a_good_body(node: Node, body):
    answer = await node.ask("POST", "/v1/cluster/leader", json=body)
    assert (answer.status, answer.code) == (400, "invalid_request")


async def test_information_shows_version_limits_and_settings(node: Node):
    body = (await node.ask("GET", "/v1/info")).body
    assert (body["node_id"], body["version"]) == ("n1", "0.1.0")
    assert body["limits"]["body_bytes_max"] == 16 * 1024 * 1024
    assert body["config"] == {"store_id": {"value": "main", "source": "default"}}


async def test_health_is_live_while_it_runs_and_ready_only_without_reasons(node: Node):
    assert (await node.ask("GET", "/health/live")).status == 200
    for probe in ("live", "ready"):  # whatever who asks would like to read
        answer = await node.ask("GET", f"/health/{probe}", headers={"Accept": "text/plain"})
        assert (answer.status, answer.body) == (200, {"status": probe})
    node.replica.reasons = ["no leader is known"]
    assert (await node.ask("GET", "/health/live")).status == 200
    answer = await node.ask("GET", "/health/ready")
    assert (answer.status, answer.code) == (503, "not_ready")
    assert answer.body["reasons"] == ["no leader is known"]
    assert answer.headers["Retry-After"] == "1"


async def test_metrics_are_counted_by_route_and_looked_up_at_scrape_time(node: Node):
    await node.append("s", 2)
    await node.append("s", data_base64="!")
    await node.ask("GET", "/nowhere")
    answer = await node.ask("GET", "/metrics", headers={"Accept": "text/plain;version=0.0.4"})
    assert answer.headers["Content-Type"].startswith("text/plain")
    lines = answer.raw.decode().splitlines()
    route = 'method="POST",route="/v1/stores/{store}/streams/{stream}/events"'
    for line in (
        f'exesdb_http_requests_total{{{route},status="201"}} 1.0',
        f'exesdb_http_requests_total{{{route},status="400"}} 1.0',
        'exesdb_http_requests_total{method="unmatched",route="unmatched",status="404"} 1.0',
        f'exesdb_http_request_duration_seconds_bucket{{le="+Inf",{route}}} 2.0',
        'exesdb_store_position{store="main"} 2.0',
        "exesdb_applied_index 2.0",
        "exesdb_unpersisted_bytes 11.0",
        "exesdb_files_set_aside 1.0",
        'exesdb_persistence_breaker{state="closed"} 1.0',
        'exesdb_persistence_breaker{state="open"} 0.0',
        'exesdb_store_oldest_unpersisted_seconds{store="main"} 1.5',
        'exesdb_store_persistence_failures_total{store="main"} 3.0',
        "exesdb_raft_is_leader 1.0",
        "exesdb_raft_proposals 5.0",
        "exesdb_raft_bytes_sent 17.0",
        'exesdb_raft_bytes_sent_to{peer="n-2"} 8.0',
        'exesdb_raft_bytes_sent_to{peer="n.2"} 9.0',
    ):
        assert line in lines, line
    kinds = [line for line in lines if line.startswith("# TYPE ")]
    assert len(kinds) == len(set(kinds)), "a name is told once"
    assert "exesdb_raft_connections_refused 0.0" in lines, "an increase needs a beginning"
    assert "# HELP exesdb_raft_bytes_sent Bytes sent to peers." in lines
    parked = "exesdb_subscription_parked Events given up after their retries, or by a consumer."
    assert f"# HELP {parked}" in lines


async def test_limits_that_contradict_one_another_stop_the_start():
    with pytest.raises(ValueError, match="event_bytes_max"):
        async with serving(event_bytes_max=100, body_bytes_max=50):
            pass


async def test_a_node_without_a_leader_says_whom_it_misses_and_how_many_it_needs(node: Node):
    node.replica.reasons = ["no leader is known"]
    node.replica.silent = ["n2", "n3"]
    said = (await node.ask("GET", "/health/ready")).body["reasons"]
    assert said[0] == "no leader is known"
    assert said[1].startswith("no word of n2, n3: ")
    assert said[1].endswith("a leader needs 2 of 3 members")
    node.replica.recovering = True
    *_, last = (await node.ask("GET", "/v1/cluster")).body["waits_for"]
    assert "no word of n2, n3" in last and "needs" not in last


async def test_a_node_that_is_not_ready_says_what_it_waits_for_and_whom_it_refuses(node: Node):
    node.info.refused = {"n3": "it is of lineage one"}
    ready = await node.ask("GET", "/v1/cluster")
    assert ready.body["waits_for"] == [], "a stray peer is no reason not to serve"
    assert ready.body["refused"] == {"n3": "it is of lineage one"}
    assert (await node.ask("GET", "/health/ready")).status == 200
    node.replica.reasons = ["recovering: waits for an answer of n2"]
    waiting = ["recovering: waits for an answer of n2", "n3 is refused: it is of lineage one"]
    assert (await node.ask("GET", "/v1/cluster")).body["waits_for"] == waiting
    assert (await node.ask("GET", "/health/ready")).body["reasons"] == waiting


async def test_a_quarantined_node_is_not_ready_and_says_so_first(node: Node):
    node.info.quarantined = "quarantined: its lineage was given up"
    answer = await node.ask("GET", "/health/ready")
    assert (answer.status, answer.body["reasons"][0]) == (503, node.info.quarantined)


async def test_metrics_say_in_which_condition_a_node_is(node: Node):
    async def found() -> set[str]:
        scraped = (await node.ask("GET", "/metrics")).raw.decode()
        names = ("exesdb_ready", "exesdb_recovering", "exesdb_quarantined", "exesdb_lineage")
        return {line for line in scraped.splitlines() if line.startswith(names)}

    assert await found() == {
        *("exesdb_ready 1.0", "exesdb_recovering 0.0", "exesdb_quarantined 0.0"),
        'exesdb_lineage{lineage="zero"} 1.0',
    }
    node.replica.reasons, node.replica.recovering = ["recovering: waits for a leader"], True
    node.info.quarantined = "quarantined: its lineage was given up"
    assert {"exesdb_ready 0.0", "exesdb_recovering 1.0", "exesdb_quarantined 1.0"} < await found()
