"""Events that are kept for a time only go when the leader's clock says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from node.core import commands, life_commands, lives, snapshots
from node.core.outcomes import Outcome
from node.core.state import State
from node.core.stream import Limits
from node.errors import NoLeader
from node.raft import retention
from node.raft.retention import Retention
from tests.core.observed import frame, started

BOUND_S = 10


class Log:
    """A log of one node."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.leads = True
        self.refuses = False
        self.proposed = 0

    def propose(self, command: bytes, timeout_ms: int) -> Awaitable[tuple[Outcome, int]]:
        return self._propose(command)

    async def _propose(self, command: bytes) -> tuple[Outcome, int]:
        self.proposed += 1
        if self.refuses:
            raise NoLeader("nobody leads")
        index = self.state.applied_index + 1
        return self.state.apply(index, 1, [command])[0], index


@pytest.fixture
def aging(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Ten streams of one event each, taken at 1,000 us, to be kept for 5 ms."""
    monkeypatch.setattr(retention, "_PAUSE_S", 0.001)
    monkeypatch.setattr(lives, "EXPIRED_STREAMS_MAX", 3)
    state = started()
    for number in range(10):
        name = f"s{number}"
        state.apply(
            state.applied_index + 1,
            1,
            [
                commands.append("main", 1_000, name, commands.ANY, [frame(number)]),
                life_commands.set_metadata("main", name, Limits(None, 5, None)),
            ],
        )
    return Log(state)


async def turns(log: Log, now_us: int, until: Callable[[], bool] | None = None) -> None:
    """Let it run until something holds, or for a few rounds."""
    task = asyncio.ensure_future(Retention(log, log.state, lambda: now_us).run())
    async with asyncio.timeout(BOUND_S):
        for _ in range(20) if until is None else iter(int, 1):
            if until is not None and until():
                break
            await asyncio.sleep(0.002)
    task.cancel()


async def test_nothing_is_sent_before_an_event_is_due(aging: Log) -> None:
    await turns(aging, 5_999)
    assert aging.proposed == 0


async def test_what_is_due_goes_command_after_command(aging: Log) -> None:
    await turns(aging, 6_000, until=lambda: not aging.state.stores["main"].kept_events)
    assert aging.proposed == 4
    assert aging.state.stores["main"].version("s3") == 0


async def test_snapshots_beyond_what_is_kept_go_command_after_command(monkeypatch) -> None:
    monkeypatch.setattr(retention, "_PAUSE_S", 0.001)
    monkeypatch.setattr(snapshots, "DROPPED_MAX", 2)
    log = Log(started())
    content = snapshots.encode_content("Order", b"\x01", b"\xf6")
    puts = [commands.put_snapshot("main", 1, "o", "s", version, content) for version in range(8)]
    log.state.apply(2, 1, [*puts, commands.put_store("main", 1, None, 1)])
    held = log.state.stores["main"].snapshots
    await turns(log, 1_000, until=lambda: len(held) == 1)
    assert log.proposed == 3 and held.get("o", "s", 7) is not None
    await turns(log, 1_000)
    assert log.proposed == 3


async def test_only_the_leader_sends_and_goes_on_after_a_refusal(aging: Log) -> None:
    aging.leads = False
    await turns(aging, 6_000)
    assert aging.proposed == 0
    aging.leads = aging.refuses = True
    await turns(aging, 6_000)
    assert aging.proposed > 1
    aging.refuses = False
    await turns(aging, 6_000, until=lambda: not aging.state.stores["main"].kept_events)
