"""Waiting until a majority has something on disk."""

from __future__ import annotations

import asyncio

import pytest

from node.errors import NotReady, OutcomeUnknown, PersistenceFailed, PersistenceTimeout
from node.raft import durability as durability_module
from node.raft.durability import Durability
from tests.raft.virtual_time import simulate


class Disk:
    """A member whose flushes end when the test says so."""

    def __init__(self, *, open: bool = True, error: Exception | None = None) -> None:
        self.asked: list[int] = []
        self.error = error
        self.gate = asyncio.Event()
        self.busy = asyncio.Event()
        if open:
            self.gate.set()

    async def __call__(self, index: int, timeout_ms: int) -> None:
        self.asked.append(index)
        self.busy.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error


async def test_two_of_three_disks_are_enough():
    slow = Disk(open=False)
    await Durability(lambda: [Disk(), slow, Disk()]).reach(7, 5000)
    assert slow.asked == [7]


async def test_one_of_three_disks_is_not_enough():
    members = [Disk(), Disk(error=PersistenceFailed("full")), Disk(error=NotReady("gone"))]
    durability = Durability(lambda: members)
    with pytest.raises(OutcomeUnknown):
        await durability.reach(7, 150)
    members[1].error = None
    await durability.reach(7, 5000)


async def test_waits_that_come_while_a_round_runs_share_the_next_one():
    disk = Disk(open=False)
    durability = Durability(lambda: [disk])
    first = asyncio.create_task(durability.reach(1, 5000))
    await asyncio.wait_for(disk.busy.wait(), 5)
    later = [asyncio.create_task(durability.reach(index, 5000)) for index in range(2, 50)]
    await asyncio.sleep(0)
    disk.gate.set()
    await asyncio.wait_for(asyncio.gather(first, *later), 5)
    assert disk.asked == [1, 49]


async def test_a_round_releases_only_what_it_covers():
    disk = Disk(open=False)
    durability = Durability(lambda: [disk])
    first = asyncio.create_task(durability.reach(5, 5000))
    await asyncio.wait_for(disk.busy.wait(), 5)
    later = asyncio.create_task(durability.reach(9, 5000))
    await asyncio.sleep(0)
    disk.gate.set()
    await asyncio.wait_for(first, 5)
    await asyncio.wait_for(later, 5)
    assert disk.asked == [5, 9]


async def test_one_wait_too_many_does_not_say_that_nothing_is_stored(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(durability_module, "WAITS_MAX", 1)
    disk = Disk(open=False)
    durability = Durability(lambda: [disk])
    first = asyncio.create_task(durability.reach(1, 5000))
    await asyncio.wait_for(disk.busy.wait(), 5)
    with pytest.raises(OutcomeUnknown):
        await durability.reach(2, 5000)
    disk.gate.set()
    await asyncio.wait_for(first, 5)


async def test_a_stop_ends_the_rounds():
    durability = Durability(lambda: [Disk(open=False)])
    wait = asyncio.create_task(durability.reach(1, 100))
    await asyncio.sleep(0)
    await asyncio.wait_for(durability.stop(), 5)
    with pytest.raises(OutcomeUnknown):
        await wait


class SlowDisk:
    """A disk on which each cycle takes long, and whoever asks meanwhile waits for the next one."""

    def __init__(self, cycle_s: float) -> None:
        self.written = 0
        self._cycle_s = cycle_s
        self._wanted = 0

    async def run(self) -> None:
        while True:
            cut = self._wanted
            await asyncio.sleep(self._cycle_s)
            self.written = cut

    async def flush(self, index: int, timeout_ms: int) -> None:
        self._wanted = max(self._wanted, index)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while self.written < index:  # noqa: ASYNC110 - a disk has no event to give
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise PersistenceTimeout("slow") from error


@pytest.mark.parametrize("cycle_s", [1, 4, 6, 11])
def test_a_disk_that_takes_longer_than_a_round_is_waited_for(cycle_s):
    """Each round asked for more than the one before, and none of them ended."""

    async def scenario() -> None:
        disk = SlowDisk(cycle_s)
        running = asyncio.create_task(disk.run())
        durability = Durability(lambda: [disk.flush])
        appends = []
        for index in range(1, 150):
            appends.append(asyncio.create_task(durability.reach(index, 60_000)))
            await asyncio.sleep(0.5)
        await asyncio.gather(*appends)
        running.cancel()

    simulate(scenario)
