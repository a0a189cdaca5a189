"""Persistent subscriptions on the disk: as they were at the cut, whatever came of them later."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from node.core import subscription_commands as asked
from node.core.subscription import Subscription
from node.core.subscription_commands import Delivery
from node.errors import PersistenceFailed
from node.persistence.directory import DataDirectory
from node.persistence.loader import load_state
from node.persistence.schema import PAGE_BYTES
from tests.persistence.failing_disk import FailingDisk
from tests.persistence.histories import CREATED_US, History, contents
from tests.persistence.test_crash import crashed_between_stores_and_cut
from tests.persistence.workers import flush, reloaded, restarted, working


def begun(*names: str) -> History:
    history = History()
    history.create("alpha")
    for stream in range(20):
        history.append("alpha", f"s{stream}", count=2)
    for name in names:
        history.subscribe("alpha", name)
    return history


def subscription(history: History, name: str) -> Subscription:
    return history.state.stores["alpha"].subscriptions.by_name[name]


async def test_a_crash_before_the_cut_moves_rolls_subscriptions_back_to_it(
    directory: DataDirectory, disk: FailingDisk, tmp_path: Path
) -> None:
    history = begun("consumed", "removed")
    for name in ("consumed", "removed"):
        history.consume("alpha", name)
    async with working(history, directory) as worker:
        await flush(worker, history)
    at_the_cut = contents(history.state)
    history.consume("alpha", "consumed")
    history.unsubscribe("alpha", "removed")
    history.subscribe("alpha", "new")

    with await crashed_between_stores_and_cut(directory, disk, history, tmp_path / "c") as found:
        assert reloaded(found) == at_the_cut
        again = History(load_state(found).state)
        again.consume("alpha", "removed")
        again.unsubscribe("alpha", "consumed")
        async with working(again, found) as worker:
            await flush(worker, again)
        assert reloaded(found) == contents(again.state)


async def test_what_one_cycle_wrote_the_next_one_changes(directory: DataDirectory) -> None:
    history = begun("s", "t")
    async with working(history, directory) as worker:
        history.apply(asked.fetch("alpha", CREATED_US, "s", "c", 1))
        await flush(worker, history)
        ((position, handed),) = subscription(history, "s").in_flight.items()
        delivery = Delivery(subscription(history, "s").uid, position, handed.attempt)
        history.apply(asked.settle("alpha", CREATED_US, "s", [(delivery, asked.PARK)]))
        history.unsubscribe("alpha", "t")
        await flush(worker, history)
        assert reloaded(directory) == contents(history.state)
        history.apply(asked.replay("alpha", CREATED_US, "s", []))
        history.subscribe("alpha", "t", max_in_flight=7)
        await flush(worker, history)
    assert reloaded(directory) == contents(history.state)


Page = bytearray  # of the index of subscriptions, which has three rows


def _fewer(rows: int) -> Callable[[Page], None]:
    def damage(page: Page) -> None:
        assert page[4] == 3
        page[4] = rows

    return damage


def _another_name(page: Page) -> None:
    page[page.index(b"sub-b")] ^= 1


def _another_index(page: Page) -> None:
    page[page.index(b"sub-b") + 5] ^= 0x40


@pytest.mark.parametrize("damage", [_fewer(0), _fewer(1), _fewer(2), _another_name, _another_index])
async def test_a_subscription_that_was_removed_does_not_come_back_with_a_damaged_index(
    directory: DataDirectory, tmp_path: Path, damage: Callable[[Page], None]
) -> None:
    """The mark does not count them, and a statement finds only what the index names."""
    names = ("sub-a", "sub-b", "sub-c")
    history = begun(*names)
    async with working(history, directory, final_cycle=True) as worker:
        await flush(worker, history)
    path = directory.store_path("alpha", history.state.stores["alpha"].uid)
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_subscriptions_1'"
        ).fetchone()
    content = bytearray(path.read_bytes())
    place = slice((root - 1) * PAGE_BYTES, root * PAGE_BYTES)
    page = content[place]
    damage(page)
    content[place] = page
    path.write_bytes(content)
    loaded = load_state(directory)
    assert not loaded.lost, "all its rows are read without the index"
    history = History(loaded.state)
    async with working(history, directory) as worker:
        for name in names:
            history.unsubscribe("alpha", name)
        for _ in range(4):  # the second one passes the removal, and forgets it
            history.append("alpha")
            with suppress(PersistenceFailed):
                await flush(worker, history)
        found = restarted(directory, tmp_path / "found")
    assert not found.lost
    assert contents(found.state) == contents(history.state)
