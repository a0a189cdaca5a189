"""One node's submissions, step by step: in which term they are handed on, and whose word counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from node.core.outcomes import BarrierPassed, StoreCreated
from node.errors import NoLeader, OutcomeUnknown
from node.raft.entries import Group, decode
from node.raft.messages import AppendEntries, Propose, Refused, TermNotice
from node.raft.proposals import Proposals
from tests.raft.solo import Solo
from tests.raft.virtual_time import Clock, clock

INCARNATION = 4


@pytest.fixture(autouse=True)
def hands() -> Iterator[Clock]:
    """The nodes live on a clock that the test turns."""
    hands = Clock()
    with clock(hands):
        yield hands


class Desk:
    """The proposals of one node of three, and what it says."""

    def __init__(self, **changes: Any) -> None:
        self.solo = Solo(**changes)
        self.proposals = Proposals(
            self.solo.engine, self.solo.settings, INCARNATION, self.solo.send, lambda: False
        )

    def follow(self, leader: str, term: int) -> None:
        """Hear of a leader."""
        self.solo.hear(leader, AppendEntries(term, 1, 0, 1, []))

    def pump(self) -> list[Any]:
        """Move what waits, and take what was said about it."""
        self.solo.take()
        self.proposals.pump()
        said = self.solo.take()
        return [one for one in said if isinstance(one[1], (Propose, Refused))]

    def proposed(self) -> list[tuple[str, list[int]]]:
        """Whose commands stand in the log."""
        journal = self.solo.journal
        entries = [entry for _, _, entry in journal.tail_after(journal.base_index)]
        groups = [group for entry in entries if len(entry) > 1 for group in decode(entry)]
        return [(group.origin, group.sequences) for group in groups]


async def test_what_is_refused_is_handed_on_once_to_whoever_leads_next() -> None:
    desk = Desk()
    desk.follow("n2", 1)
    desk.proposals.submit(b"c", 5000)
    assert desk.pump() == [("n2", Propose(1, [1], [b"c"]))]
    refusal = Refused(INCARNATION, 1, [1], "not leading")
    desk.proposals.refused("n2", refusal)
    desk.follow("n3", 2)
    assert desk.pump() == [("n3", Propose(2, [1], [b"c"]))]
    desk.proposals.refused("n2", refusal)  # once more, and late: it speaks of the first time
    assert desk.pump() == []


async def test_a_command_of_an_earlier_reign_is_not_proposed_in_the_next() -> None:
    desk = Desk()
    desk.solo.elect()
    desk.proposals.proposed("n2", 7, Propose(1, [5], [b"c"]))
    desk.solo.hear("n2", TermNotice(2))
    desk.solo.elect()
    assert desk.pump() == [("n2", Refused(7, 1, [5], "not leading"))]
    assert desk.proposed() == []


async def test_what_an_earlier_reign_left_in_flight_does_not_hold_up_the_next() -> None:
    desk = Desk(entries_in_flight_max=1)
    desk.solo.elect()
    for _ in range(10):
        desk.solo.engine.append(b"x")
    desk.proposals.submit(b"lost", 5000)
    desk.pump()
    desk.solo.hear("n2", AppendEntries(2, 1, 0, 1, [[2, b"y"]]))  # it takes the place of all those
    desk.solo.elect()
    desk.proposals.submit(b"new", 5000)
    desk.pump()
    assert desk.proposed() == [("n1", [2])]


async def test_an_entry_resolves_each_submission_with_the_outcome_of_its_own_command() -> None:
    desk = Desk()
    desk.solo.elect()
    first, second = desk.proposals.submit(b"a", 5000), desk.proposals.submit(b"b", 5000)
    desk.pump()
    foreign = Group("n2", 1, [1, 2], [b"x", b"y"])
    own = Group("n1", INCARNATION, [1, 2], [b"a", b"b"])
    outcomes = [StoreCreated(False), StoreCreated(False), StoreCreated(True), BarrierPassed()]
    assert desk.proposals.applied(3, 1, [foreign, own], outcomes)
    assert (await first, await second) == ((StoreCreated(True), 3), (BarrierPassed(), 3))


async def test_an_entry_of_an_earlier_life_resolves_nothing_of_this_one() -> None:
    desk = Desk()
    desk.solo.elect()
    submission = desk.proposals.submit(b"a", 5000)
    desk.pump()
    earlier = Group("n1", INCARNATION - 1, [1], [b"old"])
    desk.proposals.applied(3, 1, [earlier], [BarrierPassed()])
    assert not submission.done()


async def test_an_entry_of_the_term_of_the_hand_on_takes_nothing_back() -> None:
    """The first entry that is applied of a term may stand before what was handed on in it."""
    desk = Desk()
    desk.follow("n2", 3)
    desk.proposals.submit(b"c", 5000)
    assert desk.pump() == [("n2", Propose(3, [1], [b"c"]))]
    desk.proposals.applied(2, 3, [], [])
    assert desk.pump() == []
    desk.proposals.applied(9, 4, [], [])
    desk.follow("n3", 4)
    assert desk.pump() == [("n3", Propose(4, [1], [b"c"]))]


async def test_what_was_handed_on_and_whose_client_went_away_is_kept_no_longer_than_its_time(
    hands: Clock,
) -> None:
    desk = Desk()
    desk.follow("n2", 1)
    submission = desk.proposals.submit(b"c", 1000)
    assert desk.pump()
    submission.cancel()
    await asyncio.sleep(0)
    desk.proposals.sweep()
    assert desk.proposals.waiting == 1, "its entry may still come"
    hands.advance(1.1)
    desk.proposals.sweep()
    assert desk.proposals.waiting == 0


async def test_what_was_handed_on_ends_as_unknown_when_its_time_is_over(hands: Clock) -> None:
    desk = Desk()
    desk.follow("n2", 1)
    submission = desk.proposals.submit(b"c", 1000)
    desk.pump()
    hands.advance(1.1)
    desk.proposals.sweep()
    assert submission.done()
    assert isinstance(submission.exception(), OutcomeUnknown)


async def test_without_a_leader_nothing_is_left_of_what_has_ended(hands: Clock) -> None:
    """Clients that try again for a day, in a cluster that has lost its majority."""
    desk = Desk(proposals_max=3)
    for _ in range(20):
        futures = [desk.proposals.submit(b"c", 5000) for _ in range(3)]
        hands.advance(desk.solo.settings.leader_wait_ms / 1000 + 0.1)
        desk.proposals.sweep()
        for future in futures:
            with pytest.raises(NoLeader):
                await future
    assert len(desk.proposals._unsent) == 0
    last = desk.proposals.submit(b"last", 5000)
    desk.proposals.sweep()
    desk.follow("n2", 1)
    assert desk.pump() == [("n2", Propose(1, [61], [b"last"]))]
    assert not last.done()
