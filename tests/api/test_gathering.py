"""Appends of a turn share a command, and everyone gets the outcome of their own."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from node.api.gathering import Gathering
from node.api.limits import ApiLimits
from node.core import commands
from node.core.commands import ANY, NO_STREAM
from node.core.outcomes import Appended, StoreNotFound, WrongExpectedVersion
from node.core.state import State
from node.errors import NoLeader, NotReady, Overloaded
from tests.api.fakes import NOW_US, FakeReplica
from tests.core.observed import frame, started

PATIENCE_MS = 5_000


class Recorded(FakeReplica):
    """A replica that remembers what was proposed."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.proposed: list[Any] = []
        self.at_once: Exception | None = None

    def propose(self, command, timeout_ms):
        if self.at_once is not None:
            raise self.at_once
        self.proposed.append(commands.decode(command))
        return super().propose(command, timeout_ms)


def gathering(**limits: int) -> tuple[Gathering, Recorded]:
    replica = Recorded(started("main"))
    return Gathering(replica, lambda: NOW_US, ApiLimits(**limits)), replica


async def test_appends_of_a_turn_share_a_command_and_each_has_its_own_outcome():
    gathered, replica = gathering()
    waiting = [
        gathered.appended("main", "a", ANY, [frame(1), frame(2)], PATIENCE_MS),
        gathered.appended("main", "a", NO_STREAM, [frame(3)], PATIENCE_MS),
        gathered.appended("main", "b", NO_STREAM, [frame(4)], PATIENCE_MS),
    ]
    outcomes = await asyncio.gather(*waiting)
    index = replica.applied_index
    assert outcomes == [
        (Appended(0, 1, range(1, 3), {"a": 1}, False), index),
        (WrongExpectedVersion("a", NO_STREAM, 1), index),
        (Appended(0, 0, range(3, 4), {"b": 0}, False), index),
    ]
    assert [type(one) for one in replica.proposed] == [commands.AppendEach]


async def test_an_append_that_comes_alone_is_an_append():
    gathered, replica = gathering()
    for at in (1, 2):
        await gathered.appended("main", "a", ANY, [frame(at)], PATIENCE_MS)
    assert [type(one) for one in replica.proposed] == [commands.Append] * 2


async def test_what_comes_after_one_another_is_proposed_in_that_order():
    gathered, _ = gathering()
    told: list[Any] = []
    waiting = [
        gathered.appended("main", "a", ANY, [frame(1)], PATIENCE_MS),
        gathered.appended("other", "a", ANY, [frame(2)], PATIENCE_MS),
        gathered.appended("main", "a", ANY, [frame(3)], PATIENCE_MS),
        gathered.appended("main", "a", ANY, [frame(4)], PATIENCE_MS - 1),
    ]
    many = commands.append_many("main", 1, [("a", frame(5))], [], None)
    gathered.propose(many, PATIENCE_MS, lambda outcome, _: told.append(outcome))
    waiting.append(gathered.appended("main", "a", ANY, [frame(6)], PATIENCE_MS))
    outcomes = [outcome for outcome, _ in await asyncio.gather(*waiting)]
    assert outcomes.pop(1) == StoreNotFound("other")
    assert [one.first_version for one in outcomes] == [0, 1, 2, 4]
    assert [one.first_version for one in told] == [3]


@pytest.mark.parametrize(("count", "size"), [(1_000, 1), (20, 60_000)])
async def test_a_command_does_not_grow_without_end(count: int, size: int):
    gathered, replica = gathering()
    data = b"\x59" + size.to_bytes(2, "big") + bytes(size)
    frames = [frame(at, "T", data) for at in range(count)]
    await asyncio.gather(
        *(gathered.appended("main", "a", ANY, [one], PATIENCE_MS) for one in frames)
    )
    assert replica.state.stores["main"].position == count
    assert max(len(one.streams) for one in replica.proposed) <= 250
    assert max(sum(map(len, one.frames)) for one in replica.proposed) < 200_000


async def test_past_the_bound_an_append_is_refused_until_others_have_their_outcome():
    gathered, _ = gathering(appends_waiting_max=3)
    waiting = [gathered.appended("main", "a", ANY, [frame(at)], PATIENCE_MS) for at in range(3)]
    with pytest.raises(Overloaded) as raised:
        gathered.appended("main", "a", ANY, [frame(9)], PATIENCE_MS)
    assert raised.value.fields == {"limit": "proposals_max"}
    await asyncio.gather(*waiting)
    outcome, _ = await gathered.appended("main", "a", ANY, [frame(9)], PATIENCE_MS)
    assert outcome.first_version == 3


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_ends_the_command_ends_all_of_its_appends(at_once: bool):
    gathered, replica = gathering(appends_waiting_max=2)
    error = NotReady("recovering") if at_once else NoLeader("none")
    replica.at_once = error if at_once else None
    replica.propose_error = None if at_once else error
    for _ in range(2):  # none of them counts as waiting afterwards
        waiting = [gathered.appended("main", "a", ANY, [frame(at)], PATIENCE_MS) for at in (1, 2)]
        assert await asyncio.gather(*waiting, return_exceptions=True) == [error, error]


async def test_neither_one_who_left_nor_one_who_fails_keeps_it_from_the_others(caplog):
    gathered, _ = gathering()
    gone = asyncio.ensure_future(gathered.appended("main", "a", ANY, [frame(1)], PATIENCE_MS))
    gathered.append("main", "a", ANY, [frame(2)], PATIENCE_MS, partial(_fail))
    stays = gathered.appended("main", "a", ANY, [frame(3)], PATIENCE_MS)
    gone.cancel()
    outcome, _ = await stays
    assert outcome.first_version == 2
    assert "could not be told" in caplog.text


def _fail(*_: object) -> None:
    raise ValueError("a defect")
