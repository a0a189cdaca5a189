"""Persistent subscriptions on the disk: as they were at the cut, whatever came of them later."""

from __future__ import annotations

from pathlib import Path

from node.core import subscription_commands as asked
from node.core.subscription import Subscription
from node.core.subscription_commands import Delivery
from node.persistence.directory import DataDirectory
from node.persistence.loader import load_state
from tests.persistence.failing_disk import FailingDisk
from tests.persistence.histories import CREATED_US, History, contents
from tests.persistence.test_crash import crashed_between_stores_and_cut
from tests.persistence.workers import flush, reloaded, working


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
