"""`scripts/status`: whom it asks, what a person sees, and how it ends."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from cluster import status
from tests.cluster.fake_http import serving

PATH = ("GET", "/v1/cluster")


def member(name: str, role: str, **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "http_address": f"{name}:8101",
        "raft_address": f"{name}:7101",
        "role": role,
        "commit_index": 1200,
        "applied_index": 1200,
        "persisted_index": 1000,
        "last_contact_ms": 12,
    } | more


def cluster(node_id: str, leader: str | None, *members: dict[str, Any]) -> dict[str, Any]:
    return {"node_id": node_id, "leader": leader, "term": 7, "members": list(members)}


THREE = (
    member("n3", "unreachable", commit_index=None, applied_index=None, persisted_index=None,
           last_contact_ms=None),
    member("n1", "leader", last_contact_ms=None),
    member("n2", "follower", applied_index=1150),
)  # fmt: skip


async def looked(*argv: str) -> tuple[int, str]:
    """The exit code, and what a person sees."""
    screen = io.StringIO()
    console = Console(file=screen, width=120)
    code = await status.run(status.parse(list(argv)), console)
    return code, screen.getvalue()


async def test_a_script_can_ask_for_the_leader_only(capsys: pytest.CaptureFixture[str]) -> None:
    for leader, code, said in (("n1", 0, "n1\n"), (None, 1, "")):
        async with serving({PATH: (200, cluster("n1", leader, *THREE))}) as server:
            assert (await looked("--leader", "--url", server.url)) == (code, "")
        found = capsys.readouterr()
        assert found.out == said and ("knows no leader" in found.err) == (leader is None)


async def test_each_member_is_a_row_with_its_lags() -> None:
    async with serving({PATH: (200, cluster("n1", "n1", *THREE))}) as server:
        code, screen = await looked("--url", server.url)
    assert code == 1, "n3 cannot be reached"
    assert "leader n1, term 7, as n1 sees it" in screen
    first, second, third = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in screen.splitlines()
        if line.startswith("│")
    ]
    assert first == ["n1", "leader", "n1:8101", "1,200", "0", "200", "-"]
    assert second == ["n2", "follower", "n2:8101", "1,200", "50", "150", "12 ms"]
    assert third == ["n3", "unreachable", "n3:8101", "-", "-", "-", "-"]


async def test_an_address_in_brackets_is_shown_whole() -> None:
    members = [member("n1", "leader", http_address="[fd00::1]:8101")]
    async with serving({PATH: (200, cluster("n1", "n1", *members))}) as server:
        _, screen = await looked("--url", server.url)
    assert "[fd00::1]:8101" in screen


async def test_all_well_is_exit_0() -> None:
    async with serving({PATH: (200, cluster("n1", "n1", *THREE[1:]))}) as server:
        assert (await looked("--url", server.url))[0] == 0


async def test_the_leader_is_asked_because_it_knows_most() -> None:
    async with serving({}) as leader:
        at_leader = member("n2", "leader", http_address=leader.url.removeprefix("http://"))
        leader.answers[PATH] = (200, cluster("n2", "n2", at_leader))
        async with serving({PATH: (200, cluster("n1", "n2", THREE[1], at_leader))}) as other:
            _, screen = await looked("--url", other.url)
    assert "as n2 sees it" in screen


async def test_where_the_leader_cannot_be_asked_another_view_has_to_do() -> None:
    gone = member("n2", "leader", http_address="127.0.0.1:9")
    async with serving({PATH: (200, cluster("n1", "n2", THREE[1], gone))}) as server:
        _, screen = await looked("--url", server.url)
    assert "leader n2, term 7, as n1 sees it" in screen


async def test_a_node_that_knows_no_leader_is_not_believed_before_the_others_are_asked() -> None:
    removed = cluster("n1", None, member("n1", "follower"), member("n2", "unreachable"))
    async with serving({PATH: (200, removed)}) as outside, serving({}) as inside:
        leads = member("n2", "leader", http_address=inside.url.removeprefix("http://"))
        inside.answers[PATH] = (200, cluster("n2", "n2", leads))
        urls = ("--url", outside.url, "--url", "http://127.0.0.1:9", "--url", inside.url)
        code, screen = await looked(*urls)
    assert code == 0 and "as n2 sees it" in screen


async def test_no_leader_is_exit_1() -> None:
    body = cluster("n1", None, member("n1", "candidate"))
    async with serving({PATH: (200, body)}) as server:
        code, screen = await looked("--url", server.url)
    assert code == 1 and "leader none" in screen


async def test_a_refusal_is_exit_1_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving({PATH: (503, {"code": "not_ready", "detail": "still loading"})}) as server:
        assert (await looked("--url", server.url))[0] == 1
    assert "still loading" in capsys.readouterr().err


async def test_a_refusal_is_an_object_on_stderr_where_json_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serving({PATH: (503, {"code": "not_ready", "detail": "still loading"})}) as server:
        assert await looked("--json", "--url", server.url) == (1, "")
    said = json.loads(capsys.readouterr().err)
    assert said["error"] == "not_ready" and "still loading" in said["detail"]


async def test_no_node_at_all_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert (await looked("--url", "http://127.0.0.1:9"))[0] == 2
    assert "no node could be reached" in capsys.readouterr().err


async def test_a_node_that_is_not_ready_says_what_it_waits_for() -> None:
    body = cluster("n1", None, member("n1", "recovering")) | {"waits_for": ["recovering: waits"]}
    async with serving({PATH: (200, body)}) as server:
        _, screen = await looked("--url", server.url)
    assert "n1 is not ready: recovering: waits" in screen


async def test_a_peer_that_is_refused_for_its_lineage_is_named() -> None:
    body = cluster("n1", "n1", *THREE) | {"waits_for": [], "refused": {"n9": "[it] is old"}}
    async with serving({PATH: (200, body)}) as server:
        _, screen = await looked("--url", server.url)
    assert "n1 refuses n9: [it] is old" in screen


async def test_json_is_the_nodes_own_answer() -> None:
    body = cluster("n1", "n1", *THREE[1:])
    async with serving({PATH: (200, body)}) as server:
        _, screen = await looked("--url", server.url, "--json")
    assert json.loads(screen) == body


def test_watching_and_json_exclude_each_other() -> None:
    with pytest.raises(SystemExit, match="64"):
        status.parse(["--watch", "--json"])


@pytest.mark.parametrize(
    ("argv", "code"), [([], 130), (["--leader"], 130), (["--json"], 130), (["--watch"], 0)]
)
def test_who_interrupts_a_look_does_not_take_it_for_a_healthy_cluster(
    argv: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def interrupted(_: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "look", interrupted)
    assert status.main(argv) == code
    assert capsys.readouterr().err == ""
