"""`scripts/member`: what it asks, what a person sees, and how it ends."""

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console

from cluster import member
from tests.cluster.fake_http import hanging_up, serving

MEMBERS = "/v1/cluster/members"
COUNTED = {"version": 2, "voters": ["n1", "n2", "n4"], "learner": None}
BUSY = {"code": "membership_change_open", "detail": "n5 is being added"}
WRONG = ([], ["add"], ["list", "--nonsense"], ["list", "--url", "x://"])
GONE = {"code": "member_not_found", "detail": "that is no member"}


async def ran(*argv: str) -> tuple[int, str]:
    """The exit code, and what a person sees."""
    screen = io.StringIO()
    code = await member.run(member.parse(list(argv)), Console(file=screen, width=120))
    return code, screen.getvalue()


async def test_a_node_is_added_and_the_voters_are_shown() -> None:
    async with serving({("POST", MEMBERS): (201, COUNTED)}) as server:
        code, screen = await ran("add", "n4", "127.0.0.1:7104", "--url", server.url)
    assert (code, screen) == (0, "n4: done; counted are n1, n2, n4\n")


async def test_a_node_is_removed() -> None:
    async with serving({("DELETE", f"{MEMBERS}/n3"): (200, COUNTED)}) as server:
        code, screen = await ran("remove", "n3", "--url", server.url)
    assert code == 0 and "counted are" in screen


@pytest.mark.parametrize(
    ("status", "body"),
    [(409, {"code": "last_member", "detail": "the last member cannot be removed"}), (404, GONE)],
)
async def test_a_refusal_is_shown_and_exit_1(
    status: int, body: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving({("DELETE", f"{MEMBERS}/n1"): (status, body)}) as server:
        code, _ = await ran("remove", "n1", "--url", server.url)
    assert code == 1
    assert body["detail"] in capsys.readouterr().err


@pytest.mark.parametrize(("status", "body"), [(409, BUSY), (202, COUNTED | {"learner": "n4"})])
async def test_it_asks_again_until_its_time_is_over(status: int, body: dict[str, Any]) -> None:
    async with serving({("POST", MEMBERS): (status, body)}) as server:
        code, screen = await ran("add", "n4", "h:1", "--url", server.url, "--timeout", "0.2")
    assert code == 1
    assert len(server.asked) == 2
    assert screen.startswith("n4: ")


async def test_it_says_once_what_it_waits_for_and_in_the_end_how_to_take_it_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serving({("POST", MEMBERS): (202, COUNTED | {"learner": "n4"})}) as server:
        code, screen = await ran("add", "n4", "h:1", "--url", server.url, "--timeout", "0.7")
    assert code == 1 and len(server.asked) == 3
    assert screen == "n4: is learning\n"
    assert "scripts/member remove n4" in capsys.readouterr().err


async def test_what_was_only_refused_is_neither_done_nor_done_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    exists = {"code": "member_exists", "detail": "there is a member with that id or address"}
    async with serving({("POST", MEMBERS): (409, BUSY)}) as server:
        words = ("add", "n1", "h:1", "--url", server.url, "--timeout")
        assert (await ran(*words, "0.2"))[0] == 1
        assert capsys.readouterr().err == (
            "scripts/member: not done in time; refused: n5 is being added\n"
        )
        adding = asyncio.create_task(ran(*words, "60"))
        await asyncio.sleep(0.3)
        server.answers["POST", MEMBERS] = (409, exists)
        code, screen = await adding
    assert code == 1 and "done" not in screen
    assert "there is a member" in capsys.readouterr().err


async def test_a_change_whose_answer_was_lost_is_asked_for_again_and_may_be_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    removed = {("DELETE", f"{MEMBERS}/n3"): (404, GONE)}
    async with hanging_up() as lost, serving(removed) as server:
        code, screen = await ran("remove", "n3", "--url", lost, "--url", server.url)
        assert (code, screen) == (0, "n3: done; counted are as before\n")
        code, screen = await ran("remove", "n3", "--url", lost, "--timeout", "0.2")
    assert code == 1 and lost in screen
    assert capsys.readouterr().err == (
        "scripts/member: not done in time; it may still be done later\n"
    )


async def test_a_cluster_that_is_away_after_a_lost_answer_may_have_done_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with hanging_up() as lost:
        adding = asyncio.create_task(ran("add", "n4", "h:1", "--url", lost, "--timeout", "2"))
        await asyncio.sleep(0.3)
    assert (await adding)[0] == 1
    assert "it may still be done later; to take it back" in capsys.readouterr().err


async def test_who_interrupts_it_is_told_that_it_may_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serving({("POST", MEMBERS): (202, COUNTED | {"learner": "n4"})}) as server:
        adding = asyncio.create_task(ran("add", "n4", "h:1", "--url", server.url))
        await asyncio.sleep(0.3)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
    assert capsys.readouterr().err == (
        "scripts/member: interrupted; it may still be done later;"
        " to take it back: scripts/member remove n4\n"
    )


async def test_no_request_waits_much_longer_than_all_of_them_may() -> None:
    async with serving({("POST", MEMBERS): (201, COUNTED)}) as server:
        await ran("add", "n4", "h:1", "--url", server.url, "--timeout", "4")
        await ran("add", "n4", "h:1", "--url", server.url)
    short, long = (int(query["timeout_ms"]) for _, query in server.asked)
    assert 3000 <= short <= 4000 and long == 10_000


@pytest.mark.parametrize(
    "words",
    [*WRONG, *(["remove", "n4", "--timeout", text] for text in ("inf", "nan", "0", "-1", "x"))],
)
def test_wrong_options_are_exit_64(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        member.parse(words)
    assert left.value.code == 64
    assert capsys.readouterr().err.startswith("scripts/member")


async def test_no_node_is_exit_2() -> None:
    code, _ = await ran("list", "--url", "http://127.0.0.1:9")
    assert code == 2


async def test_the_members_are_listed_and_who_is_counted() -> None:
    row = {"raft_address": "127.0.0.1:7101", "role": "leader", "voter": True}
    learner = {"id": "n4", "raft_address": "127.0.0.1:7104", "role": "follower", "voter": False}
    body = {"node_id": "n1", "leader": "n1", "members": [{"id": "n1", **row}, learner]}
    async with serving({("GET", "/v1/cluster"): (200, body)}) as server:
        code, screen = await ran("list", "--url", server.url)
    assert code == 0
    (line,) = [line for line in screen.splitlines() if "n4" in line]
    assert line.split()[-2] == "no"


async def test_an_address_in_brackets_is_shown_whole() -> None:
    row = {"id": "n1", "raft_address": "[fd00::1]:7101", "role": "leader", "voter": True}
    body = {"node_id": "n1", "leader": "n1", "members": [row]}
    async with serving({("GET", "/v1/cluster"): (200, body)}) as server:
        _, screen = await ran("list", "--url", server.url)
    assert "[fd00::1]:7101" in screen
    busy = {"code": "membership_change_open", "detail": "n5 at [fd00::5]:7101 is being added"}
    async with serving({("POST", MEMBERS): (409, busy)}) as server:
        _, screen = await ran("add", "n4", "h:1", "--url", server.url, "--timeout", "0.2")
    assert "[fd00::5]:7101" in screen
