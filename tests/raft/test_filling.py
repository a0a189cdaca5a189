"""When a node is filled, and what it keeps then: the door between a fill and the log."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from node.core.state import State
from node.raft.fill_receiver import Filled
from node.raft.filling import Filling
from node.raft.messages import AppendEntries, Behind
from node.raft.requests import Requests
from tests.raft.solo import Solo
from tests.raft.virtual_time import Clock, clock

EVERYTHING = 10**9


@pytest.fixture(autouse=True)
def hands() -> Iterator[Clock]:
    """The nodes live on a clock that the test turns."""
    hands = Clock()
    with clock(hands):
        yield hands


class Desk:
    """The filling of one node of three, whose source is at entry 10 and answers on demand."""

    def __init__(self, **changes: int) -> None:
        self.solo = Solo(**changes)
        self.state = State()
        self.ended: list[bool] = []
        self.answer = asyncio.Event()
        self.members = self.solo.settings.founding
        requests = Requests(self.solo.send, 1)
        self.filling = Filling(
            self.solo.engine, self.solo.settings, self.state, requests, print, self.ended.append
        )
        self.filling.receiver.fetch = self._fetch  # type: ignore[method-assign]
        requests.ask = self._ask  # type: ignore[method-assign]

    async def _fetch(self, _: str) -> Filled:
        await self.answer.wait()
        return Filled(10, 1, [])

    async def _ask(self, *_: object) -> object:
        return self.members.plain()

    def follow(self, leader: str, term: int, entries: int = 0) -> None:
        """Hear of a leader, and of so many entries, all of them committed."""
        self.solo.hear(leader, AppendEntries(term, 1, 0, entries + 1, [[term, b"x"]] * entries))

    async def finish(self) -> None:
        """Let the source answer, and the fill end."""
        self.answer.set()
        async with asyncio.timeout(5):
            while self.filling.active:  # noqa: ASYNC110 - its task is its own
                await asyncio.sleep(0)


async def test_a_fill_moves_the_log_to_what_it_brought() -> None:
    desk = Desk()
    desk.follow("n2", 1)
    desk.filling.behind("n2", Behind(1, 8))
    await desk.finish()
    assert desk.ended == [True]
    assert (desk.state.applied_index, desk.solo.engine.commit_index) == (10, 10)
    assert desk.solo.log() == [(10, 1)]


async def test_a_fill_brings_the_membership_that_its_entries_would_have_brought() -> None:
    desk = Desk()
    desk.members = desk.members.without("n3")
    desk.follow("n2", 1)
    desk.filling.behind("n2", Behind(1, 8))
    await desk.finish()
    assert desk.solo.engine.membership == desk.members


async def test_nothing_is_installed_behind_what_the_log_has_brought_meanwhile() -> None:
    """The commit index would go back, and with it what this node has answered for."""
    desk = Desk()
    desk.follow("n2", 1)
    desk.filling.behind("n2", Behind(1, 8))
    await asyncio.sleep(0)
    desk.follow("n2", 1, entries=20)  # committed, and not applied yet
    await desk.finish()
    assert desk.ended == [False]
    assert (desk.solo.engine.commit_index, desk.solo.journal.last_index) == (21, 21)


async def test_who_leads_by_the_time_takes_no_membership_from_a_fill() -> None:
    """A leader counts by its own log only."""
    desk = Desk()
    before, desk.members = desk.members, desk.members.without("n3")
    desk.follow("n2", 1)
    desk.filling.behind("n2", Behind(1, 8))
    desk.solo.elect()
    await desk.finish()
    assert desk.ended == [False]
    assert desk.solo.engine.membership == before


@pytest.mark.parametrize(
    ("peer", "term", "why"),
    [("n3", 1, "it does not lead"), ("n2", 0, "its term is over"), ("n3", 2, "nobody knows it")],
)
async def test_only_the_leader_of_the_term_can_say_that_a_node_is_behind(
    peer: str, term: int, why: str
) -> None:
    desk = Desk()
    desk.follow("n2", 1)
    desk.filling.behind(peer, Behind(term, 8))
    assert not desk.filling.active, why


async def test_who_reaches_the_leader_s_log_needs_no_fill() -> None:
    desk = Desk()
    desk.follow("n2", 1, entries=20)
    desk.filling.behind("n2", Behind(1, 8))
    assert not desk.filling.active


async def test_one_that_broke_off_is_not_begun_again_at_once(hands: Clock) -> None:
    desk = Desk()
    desk.follow("n2", 1)
    desk.state.applied_index = 10  # there is nothing to be installed
    desk.filling.behind("n2", Behind(1, 8))
    await desk.finish()
    assert desk.ended == [False]
    desk.filling.behind("n2", Behind(1, 8))
    assert not desk.filling.active
    hands.advance(1)
    desk.filling.behind("n2", Behind(1, 8))
    assert desk.filling.active
    await desk.finish()


async def test_a_source_keeps_the_log_that_its_offer_will_need_but_not_any_length_of_it() -> None:
    desk = Desk(log_tail_bytes_max=1000)
    assert desk.filling.cut_at_most(100, log_bytes=500) == 100
    desk.state.applied_index = 50
    await desk.filling.source.begin("n2", None)
    assert desk.filling.cut_at_most(100, log_bytes=500) == 50
    assert desk.filling.cut_at_most(40, log_bytes=500) == 40
    assert desk.filling.cut_at_most(100, log_bytes=EVERYTHING) == 100
