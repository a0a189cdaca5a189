"""`scripts/flush`: what it asks, what a person sees, and how it ends."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from cluster import flush
from tests.cluster.fake_http import hanging_up, serving

ALL = ("POST", "/v1/persistence/force")
ONE = ("POST", "/v1/stores/my_store/persistence/force")
DONE = {"persisted_index": 1234567, "persisted_position": 89, "bytes": 4096, "duration_ms": 3.25}
PROBLEM = {"code": "persistence_timeout", "detail": "n3 did not answer in 100 ms"}


async def flushed(*argv: str) -> tuple[int, str]:
    """The exit code, and what a person sees."""
    screen = io.StringIO()
    console = Console(file=screen, width=120)
    code = await flush.run(flush.parse(list(argv)), console)
    return code, screen.getvalue()


async def test_all_nodes_on_disk_is_a_row_each_and_exit_0() -> None:
    nodes = {"n2": DONE, "n1": DONE, "n3": DONE}
    async with serving({ALL: (200, {"nodes": nodes})}) as server:
        code, screen = await flushed("--url", server.url, "--timeout-ms", "1500")
    assert code == 0
    assert server.asked == [
        ("POST /v1/persistence/force", {"scope": "cluster", "timeout_ms": "1500"})
    ]
    rows = [line for line in screen.splitlines() if "on disk" in line]
    assert [row.split()[1] for row in rows] == ["n1", "n2", "n3"]
    assert "1,234,567" in rows[0] and "89" in rows[0] and "4,096" in rows[0] and "3.2" in rows[0]


async def test_one_store_can_be_named() -> None:
    async with serving({ONE: (200, {"nodes": {"n1": DONE}})}) as server:
        code, screen = await flushed("--url", server.url, "--store", "my_store")
    assert code == 0 and "flush of my_store" in screen


async def test_a_node_that_failed_is_named_with_its_reason_and_exit_1() -> None:
    body = {"code": "partial_success", "nodes": {"n1": DONE}, "failed": {"n3": PROBLEM}}
    async with serving({ALL: (207, body)}) as server:
        code, screen = await flushed("--url", server.url)
    assert code == 1
    (row,) = [line for line in screen.splitlines() if "n3" in line]
    assert "n3 did not answer in 100 ms" in row


async def test_what_stands_in_brackets_is_part_of_the_reason() -> None:
    problem = PROBLEM | {"detail": "no answer of n3 at [fd00::3]:7101, nor [/run/n3]"}
    body = {"code": "partial_success", "nodes": {"n1": DONE}, "failed": {"n3": problem}}
    async with serving({ALL: (207, body)}) as server:
        _, screen = await flushed("--url", server.url)
    assert problem["detail"] in screen


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (409, {"code": "persistence_disabled", "detail": "persistence is disabled"}),
        (504, {"code": "persistence_timeout", "detail": "too slow", "failed": {"n1": PROBLEM}}),
        (404, {"code": "store_not_found"}),
        (503, {"code": "no_leader"}),
        (500, {}),
    ],
)
async def test_a_refusal_is_exit_1_and_says_why(
    status: int, body: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving({ALL: (status, body)}) as server:
        code, screen = await flushed("--url", server.url)
    assert code == 1
    failed = body.get("failed", {}).get("n1", {}).get("detail")
    reason = failed or body.get("detail") or body.get("code") or "500"
    assert reason in screen + capsys.readouterr().err


async def test_a_refusal_is_an_object_on_stderr_where_json_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = {"code": "store_not_found", "detail": "there is no such store", "store": "x"}
    async with serving({ALL: (404, body)}) as server:
        code, screen = await flushed("--url", server.url, "--json")
    said = json.loads(capsys.readouterr().err)
    assert (code, screen, said["error"], said["store"]) == (1, "", "store_not_found", "x")
    assert said["detail"] == f"{server.url} says: there is no such store"


async def test_any_node_will_do() -> None:
    async with serving({ALL: (200, {"nodes": {"n1": DONE}})}) as server:
        code, _ = await flushed("--url", "http://127.0.0.1:9", "--url", server.url)
    assert code == 0


async def test_no_node_at_all_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = await flushed("--url", "http://127.0.0.1:9")
    assert code == 2
    assert "no node could be reached (http://127.0.0.1:9: " in capsys.readouterr().err


async def test_an_answer_that_is_lost_is_exit_2_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    async with hanging_up() as lost:
        assert (await flushed("--url", lost))[0] == 2
    assert f"outcome_unknown: {lost}: " in capsys.readouterr().err


async def test_json_is_the_nodes_own_answer() -> None:
    body = {"nodes": {"n1": DONE}}
    async with serving({ALL: (200, body)}) as server:
        code, screen = await flushed("--url", server.url, "--json")
    assert code == 0 and json.loads(screen) == body


@pytest.mark.parametrize("argv", [["--timeout-ms", "0"], ["--nonsense"], ["--timeout-ms", "x"]])
def test_wrong_options_are_exit_64(argv: list[str]) -> None:
    with pytest.raises(SystemExit, match="64"):
        flush.parse(argv)


def test_who_interrupts_it_sees_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(flush, "flush", interrupted)
    assert flush.main([]) == 130
