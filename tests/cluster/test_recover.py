"""`scripts/recover`: what a person sees and is asked, what each survivor is sent, how it ends."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from cluster import recover
from tests.cluster.fake_http import answering
from tests.cluster.test_recover_plan import report


class FakeSurvivor:
    """Says of itself what it was given, obeys orders, and then sees the leader it was told of."""

    def __init__(self, node_id: str, **said: Any) -> None:
        self.said = report(node_id, **said)._asdict()
        self.orders: list[dict[str, Any]] = []
        self.refusal: str | None = None
        self.leader_afterwards: str | None = "n1"
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        assert request.path == "/v1/cluster/recovery"
        if request.method == "GET":
            return web.json_response(self.said)
        if self.refusal is not None:
            return web.json_response({"detail": self.refusal}, status=409)
        order = await request.json()
        self.orders.append(order)
        self.said |= {
            "lineage": order["lineage"],
            "ancestry": [order["parent"]],
            "voters": order["voters"],
            "membership_version": order["membership_version"],
            "founded": False,
            "recovering": True,
            "leader": self.leader_afterwards,
        }
        return web.json_response({"lineage": order["lineage"]}, status=202)


@asynccontextmanager
async def alive(*survivors: FakeSurvivor) -> AsyncIterator[list[str]]:
    """Their addresses, while they run."""
    async with AsyncExitStack() as stack:
        for survivor in survivors:
            survivor.url = await stack.enter_async_context(answering(survivor.answer))
        yield [survivor.url for survivor in survivors]


def never(question: str) -> str:
    raise AssertionError(f"asked: {question}")


async def recovered(
    urls: list[str], *argv: str, ask: Callable[[str], str] = never
) -> tuple[int, str]:
    """The exit code, and what a person sees on the screen."""
    screen = io.StringIO()
    options = recover.parse(["--nodes", ",".join(urls), *argv])
    code = await recover.run(options, Console(file=screen, width=140), ask)
    return code, screen.getvalue()


async def test_the_survivor_is_shown_and_ordered_and_leads(capsys: Any) -> None:
    survivor = FakeSurvivor("n1", last_index=1234, positions={"main": 1200, "other": 3})
    async with alive(survivor) as urls:
        code, screen = await recovered(urls, "--missing", "n2,n3", "--yes")
    assert code == 0
    [order] = survivor.orders
    assert order["voters"] == {"n1": "n1:1"} and order["missing"] == ["n2", "n3"]
    assert order["parent"] == "zero" and order["membership_version"] == 1
    [row] = [line for line in screen.splitlines() if "furthest log" in line]
    assert "n1" in row and "1,234" in row and "1,203" in row
    assert "up to entry 1,234 of term 4" in screen and "main 1,200, other 3" in screen
    assert "Lost: acknowledged events after that, which only n2, n3 had." in screen
    assert f"n1 leads lineage {order['lineage']}" in screen


@pytest.mark.parametrize(("typed", "code"), [("recover", 0), ("yes", 1), ("", 1)])
async def test_the_word_must_be_typed(typed: str, code: int) -> None:
    survivor = FakeSurvivor("n1")
    async with alive(survivor) as urls:
        found, _ = await recovered(urls, "--missing", "n2,n3", ask=lambda _: typed)
    assert found == code
    assert len(survivor.orders) == (1 if code == 0 else 0)


@pytest.mark.parametrize("ends", [EOFError, KeyboardInterrupt])
async def test_nobody_who_could_type_it_is_a_no(
    ends: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(_: str) -> str:
        raise ends

    survivor = FakeSurvivor("n1")
    async with alive(survivor) as urls:
        code, _ = await recovered(urls, "--missing", "n2,n3", ask=ask)
    assert (code, survivor.orders) == (1, [])
    assert "nothing was done" in capsys.readouterr().err


async def test_a_survivor_may_be_named_by_host_and_port_as_everywhere() -> None:
    survivor = FakeSurvivor("n1")
    async with alive(survivor) as urls:
        bare = [url.removeprefix("http://") for url in urls]
        code, _ = await recovered(bare, "--missing", "n2,n3", "--yes")
    assert code == 0 and len(survivor.orders) == 1


@pytest.mark.parametrize("words", [[], ["--nodes", "x://y"], ["--nodes", "a:1", "--nonsense"]])
def test_wrong_options_are_exit_64(words: list[str]) -> None:
    """2 says that no node could be reached, which is another matter."""
    with pytest.raises(SystemExit) as left:
        recover.parse(words)
    assert left.value.code == 64


async def test_what_is_not_needed_is_said_and_not_done(capsys: Any) -> None:
    survivor = FakeSurvivor("n1", leader="n2")
    async with alive(survivor) as urls:
        code, screen = await recovered(urls, "--missing", "n2,n3", "--yes")
    assert (code, screen, survivor.orders) == (3, "", [])
    assert "not needed: n2 leads" in capsys.readouterr().err


async def test_a_survivor_that_is_down_stops_everything(capsys: Any) -> None:
    survivor = FakeSurvivor("n1")
    async with alive(survivor) as urls:
        code, _ = await recovered([*urls, "http://127.0.0.1:9"], "--missing", "n3", "--yes")
    assert (code, survivor.orders) == (1, [])
    assert "no answer from http://127.0.0.1:9" in capsys.readouterr().err


async def test_without_any_answer_nothing_can_be_said(capsys: Any) -> None:
    code, _ = await recovered(["http://127.0.0.1:9"], "--missing", "n3", "--yes")
    assert code == 2


async def test_interrupted_between_two_survivors_it_is_finished_by_another_run(
    capsys: Any,
) -> None:
    first, second = (FakeSurvivor(one, recovering=True) for one in ("n1", "n2"))
    first.leader_afterwards = None
    second.refusal = "n3 is connected with this node"
    async with alive(first, second) as urls:
        code, _ = await recovered(urls, "--missing", "n3", "--yes")
        assert (code, len(first.orders)) == (1, 1)
        assert "n2: n3 is connected with this node" in capsys.readouterr().err
        second.refusal = None
        code, screen = await recovered(urls, "--missing", "n3", "--yes")
    assert code == 0
    assert second.orders == first.orders, "the same plan, once to each"
    assert "has the plan " in screen


async def test_where_a_survivor_is_lost_that_has_the_plan_it_is_said_how_to_go_on(
    capsys: Any,
) -> None:
    members = ("n1", "n2", "n3", "n4", "n5")
    survivors = [FakeSurvivor(one, members=members, recovering=True) for one in members[:3]]
    first, _, third = survivors
    first.leader_afterwards = survivors[1].leader_afterwards = third.leader_afterwards = None
    third.refusal = "n4 is connected with this node"
    async with alive(*survivors) as urls:
        assert (await recovered(urls, "--missing", "n4,n5", "--yes"))[0] == 1
        third.refusal = None
        capsys.readouterr()
        code, _ = await recovered(urls[1:], "--missing", "n1,n4,n5", "--yes")
        assert (code, third.orders) == (1, first.orders)
        assert "run it again with --missing n1" in capsys.readouterr().err
        survivors[1].leader_afterwards = third.leader_afterwards = "n2"
        code, _ = await recovered(urls[1:], "--missing", "n1", "--yes")
    assert code == 0
    assert third.orders[-1]["voters"].keys() == {"n2", "n3"}


async def test_a_server_that_is_no_node_is_no_answer(capsys: Any) -> None:
    stranger = FakeSurvivor("n1")
    stranger.said = {"hello": "world"}
    async with alive(stranger) as urls:
        code, _ = await recovered(urls, "--missing", "n2,n3", "--yes")
    assert code == 2
