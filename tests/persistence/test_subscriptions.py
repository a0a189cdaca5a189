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
from tests.persistence.test_lost_files import closed_after_a_failure, writes_all_of_it_in_the_end
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


Page = bytearray  # of the table of subscriptions, or of its index


async def written(directory: DataDirectory, *names: str) -> tuple[History, Path]:
    """A history with these subscriptions that is all in its file, and folded; where that is."""
    history = begun(*names)
    async with working(history, directory, final_cycle=True) as worker:
        await flush(worker, history)
    return history, directory.store_path("alpha", history.state.stores["alpha"].uid)


def damaged(path: Path, table: str, damage: Callable[[Page], None]) -> None:
    """Change the page of a table, or of an index, that has but one."""
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        (root,) = connection.execute(query, (table,)).fetchone()
    content = bytearray(path.read_bytes())
    place = slice((root - 1) * PAGE_BYTES, root * PAGE_BYTES)
    page = content[place]
    damage(page)
    content[place] = page
    path.write_bytes(content)


def _fewer(rows: int) -> Callable[[Page], None]:
    def damage(page: Page) -> None:
        assert page[4] == 3
        page[4] = rows

    return damage


def _another_name(page: Page) -> None:
    page[page.index(b"sub-b")] ^= 1


def _the_last_one_s_name(page: Page) -> None:
    page[page.index(b"sub-b") + 4] ^= 1


def _another_index(page: Page) -> None:
    page[page.index(b"sub-b") + 5] ^= 0x40


NAMES = "sub-a", "sub-b", "sub-c"
INDEX = "sqlite_autoindex_subscriptions_1"


@pytest.mark.parametrize("rows", [0, 1, 2])
async def test_subscriptions_that_a_page_has_lost_are_missed(
    directory: DataDirectory, rows: int
) -> None:
    _, path = await written(directory, *NAMES)
    damaged(path, "subscriptions", _fewer(rows))
    loaded = load_state(directory)
    assert loaded.lost and not loaded.state.stores


async def test_they_are_missed_while_the_node_runs_too(
    directory: DataDirectory, disk: FailingDisk
) -> None:
    """Else the next mark would count what is left."""
    history, path = await written(directory, *NAMES)
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        await closed_after_a_failure(worker, history, disk, "alpha")
        damaged(path, "subscriptions", _fewer(1))
        await writes_all_of_it_in_the_end(worker, history)
    assert reloaded(directory) == contents(history.state)


async def test_a_removal_that_a_page_has_lost_is_missed(directory: DataDirectory) -> None:
    history, path = await written(directory, "sub-a", "sub-b")
    async with working(history, directory, final_cycle=True) as worker:
        history.unsubscribe("alpha", "sub-b")
        await flush(worker, history)
    damaged(path, "subscriptions", _fewer(2))
    assert load_state(directory).lost


@pytest.mark.parametrize("damage", [_another_name, _the_last_one_s_name, _another_index])
async def test_by_a_damaged_index_no_row_is_deleted_in_the_place_of_another(
    directory: DataDirectory, tmp_path: Path, damage: Callable[[Page], None]
) -> None:
    history, path = await written(directory, *NAMES)
    damaged(path, INDEX, damage)
    history = History(load_state(directory).state)
    async with working(history, directory) as worker:
        for _ in range(4):
            history.append("alpha")
            history.consume("alpha", "sub-c")
            with suppress(PersistenceFailed):
                await flush(worker, history)
        found = restarted(directory, tmp_path / "found")
    assert not found.lost
    assert contents(found.state) == contents(history.state)


@pytest.mark.parametrize("damage", [_fewer(0), _fewer(1), _fewer(2), _another_name, _another_index])
async def test_a_subscription_that_was_removed_does_not_come_back_with_a_damaged_index(
    directory: DataDirectory, tmp_path: Path, damage: Callable[[Page], None]
) -> None:
    history, path = await written(directory, *NAMES)
    damaged(path, INDEX, damage)
    loaded = load_state(directory)
    assert not loaded.lost, "all its rows are read without the index"
    history = History(loaded.state)
    async with working(history, directory) as worker:
        for name in NAMES:
            history.unsubscribe("alpha", name)
        for _ in range(4):  # the second one passes the removal, and forgets it
            history.append("alpha")
            with suppress(PersistenceFailed):
                await flush(worker, history)
        found = restarted(directory, tmp_path / "found")
    assert not found.lost
    assert contents(found.state) == contents(history.state)
