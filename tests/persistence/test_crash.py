"""What a restart finds after the process died at the worst moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from node.errors import PersistenceFailed
from node.persistence.breaker import Breaker
from node.persistence.database import Database
from node.persistence.directory import DataDirectory
from node.persistence.ledger import Ledger
from node.persistence.loader import load_state
from node.raft.fill_digests import Digests
from node.raft.fill_receiver import FillReceiver
from node.raft.fill_source import FillSource
from node.raft.requests import Requests
from tests.persistence.failing_disk import Crash, FailingDisk
from tests.persistence.histories import History, contents
from tests.persistence.workers import flush, reloaded, restarted, until, working


async def crashed_between_stores_and_cut(
    directory: DataDirectory, disk: FailingDisk, history: History, target: Path
) -> DataDirectory:
    """Run a cycle whose store files are written and whose cut is not; the files as they were."""
    disk.fail("node.db", "REPLACE INTO cut")
    async with working(history, directory, connect=disk.connect) as worker:
        worker.request("alpha")
        await until(lambda: worker.status()["last_error"] is not None)
        shutil.copytree(directory.path, target)
    disk.repair()
    return DataDirectory(target)


async def test_a_crash_before_the_cut_moves_rolls_every_store_back_to_it(
    directory: DataDirectory, disk: FailingDisk, tmp_path: Path
) -> None:
    history = History()
    for name in ("alpha", "beta"):
        history.create(name)
        history.append(name, "one", count=10)
        history.checkpoint(name, "reader", 3)
        for version in (1, 2, 3):
            history.snapshot(name, "o", version)
    async with working(history, directory) as worker:
        await flush(worker, history)
    at_the_cut, index = contents(history.state), history.index
    history.append("alpha", "new stream", count=7)
    history.append("beta", "one", count=2)
    history.checkpoint("alpha", "reader", 9)
    history.checkpoint("alpha", "new reader", 1)
    history.snapshot("alpha", "o", 2)
    history.forget_snapshot("alpha", "o", 3)
    history.keep_snapshots("alpha", 1)
    history.snapshot("alpha", "new source", 9)
    history.delete("beta")
    history.create("gamma")

    with await crashed_between_stores_and_cut(directory, disk, history, tmp_path / "c") as found:
        loaded = load_state(found)
        assert contents(loaded.state) == at_the_cut
        assert loaded.cut_index == index
        assert [Path(path).name.split(".")[0] for path in loaded.set_aside] == ["gamma"]
        assert not loaded.lost


async def test_after_a_rollback_the_same_history_is_written_once_more(
    directory: DataDirectory, disk: FailingDisk, tmp_path: Path
) -> None:
    history = History()
    history.create("alpha")
    history.append("alpha", count=10)
    async with working(history, directory) as worker:
        await flush(worker, history)
    history.append("alpha", "b", count=300)

    with await crashed_between_stores_and_cut(directory, disk, history, tmp_path / "c") as found:
        again = History(load_state(found).state)
        again.append("alpha", "c", count=20)
        async with working(again, found) as worker:
            await flush(worker, again)
        assert reloaded(found) == contents(again.state)


async def test_a_cycle_that_failed_at_the_cut_is_completed_by_the_next(
    directory: DataDirectory, disk: FailingDisk
) -> None:
    history = History()
    history.create("alpha")
    history.append("alpha", count=10)
    async with working(history, directory, connect=disk.connect) as worker:
        await flush(worker, history)
        for after in (False, True):  # the second is in doubt: it may be on the disk or not
            disk.fail("node.db", "COMMIT", after=after)
            history.append("alpha", count=5)
            with pytest.raises(PersistenceFailed, match=r"node\.db"):
                await flush(worker, history)
            disk.repair()
        history.barrier()
        await flush(worker, history)
        assert worker.persisted_index == history.index
    assert reloaded(directory) == contents(history.state)


@pytest.mark.parametrize("statement", ["INSERT INTO streams", "INSERT INTO blocks", "COMMIT"])
@pytest.mark.parametrize("after", [False, True])
async def test_a_process_that_dies_inside_a_store_comes_back_at_the_cut(
    directory: DataDirectory, disk: FailingDisk, tmp_path: Path, statement: str, after: bool
) -> None:
    history = History()
    history.create("alpha")
    history.append("alpha", count=10)
    async with working(history, directory) as worker:
        await flush(worker, history)
    at_the_cut = contents(history.state)
    history.append("alpha", "b", count=300)
    disk.fail("alpha", statement, after=after, error=Crash())
    database = Database(directory, disk.connect)
    _die_inside_a_cycle(database, history)
    found = restarted(directory, tmp_path / "found")
    disk.repair()
    database.close()
    assert contents(found.state) == at_the_cut


def _die_inside_a_cycle(database: Database, history: History) -> None:
    ledger = Ledger(history.state, lambda: Breaker(5, 1), lambda: 0.0)
    ledger.open(*database.open())
    with pytest.raises(Crash):
        database.run(ledger.take(forced=False))


WRITE_FOR_EVER = """
import asyncio, sys
from node.persistence.directory import DataDirectory
from node.persistence.ledger import Ledger
from node.persistence.loader import load_state
from tests.persistence.histories import History
from tests.persistence.workers import settings, working

async def main():
    directory = DataDirectory(sys.argv[1])
    history = History(load_state(directory).state)
    if "alpha" not in history.state.stores:
        history.create("alpha")
        history.create("beta")
    async with working(history, directory, settings=settings(interval_ms=1)) as worker:
        print("acknowledged", worker.persisted_index, flush=True)
        while True:
            for at in range(20):
                history.append("alpha", f"s{at}", count=20)
                history.append("beta", f"s{at}", count=20)
                await asyncio.sleep(0)
            report = await worker.force(None, history.index, 10_000)
            print("acknowledged", report.persisted_index, flush=True)

asyncio.run(main())
"""


def test_kill_9_in_the_middle_of_cycles_loses_nothing_that_a_force_acknowledged(
    tmp_path: Path,
) -> None:
    for kills in (1, 2):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        ) as writer:
            assert writer.stdout is not None
            for _ in range(3 * kills):
                acknowledged = int(writer.stdout.readline().split()[1])
            os.kill(writer.pid, signal.SIGKILL)
            for line in writer.stdout:
                acknowledged = int(line.split()[1])
            writer.wait(10)
        with DataDirectory(tmp_path) as directory:
            loaded = load_state(directory)
            assert loaded.cut_index >= acknowledged
            assert not loaded.lost
            loaded.state.check()
            events = {name: store.position for name, store in loaded.state.stores.items()}
            appends = loaded.cut_index - 2
            assert events == {"alpha": (appends + 1) // 2 * 20, "beta": appends // 2 * 20}


class Direct(Requests):
    """A fill's questions, answered without a network."""

    def __init__(self, source: FillSource) -> None:
        self._topics = {
            "fill_begin": source.begin,
            "fill_digest": source.digest,
            "fill_rows": source.rows,
            "fill_checkpoints": source.checkpoints,
        }

    async def ask(self, peer: str, topic: str, body: Any, timeout_s: float) -> Any:
        return await self._topics[topic](peer, body)


async def fill(history: History, leader: History) -> list[str]:
    """Bring a history up to the leader's, as a node that was away is; the alarms."""
    alarms: list[str] = []
    link = Direct(FillSource(leader.state, Digests()))
    receiver = FillReceiver(history.state, link, Digests(), alarms.append)
    receiver.install(await receiver.fetch("leader"))
    assert contents(history.state) == contents(leader.state)
    return alarms


def grown(steps: int) -> History:
    """The same history, as far as it goes."""
    history = History()
    for name in ("alpha", "beta"):
        history.create(name)
    for step in range(steps):
        history.append("alpha", f"stream-{step}", count=40)
        history.append("beta", count=3)
        history.checkpoint("beta", "reader", step)
        if step == 5:
            history.delete("beta")
            history.create("beta")
            history.create("gamma")
    return history


@pytest.mark.parametrize("known", [0, 3, 8])
async def test_a_crash_while_a_filled_state_is_written_leaves_the_state_before_it(
    directory: DataDirectory, disk: FailingDisk, tmp_path: Path, known: int
) -> None:
    history, leader = grown(known), grown(12)
    async with working(history, directory) as worker:
        await flush(worker, history)
    before = contents(history.state)

    assert await fill(history, leader) == []
    with await crashed_between_stores_and_cut(directory, disk, history, tmp_path / "c") as found:
        loaded = load_state(found)
        assert contents(loaded.state) == before
        assert not loaded.lost
        again = History(loaded.state)
        await fill(again, leader)
        async with working(again, found) as worker:
            await flush(worker, again)
        assert reloaded(found) == contents(leader.state)
    async with working(history, directory) as worker:
        await flush(worker, history)
    assert reloaded(directory) == contents(leader.state)


async def test_a_crash_while_a_store_is_replaced_leaves_no_mixture(
    directory: DataDirectory, disk: FailingDisk, tmp_path: Path
) -> None:
    history, leader = grown(3), grown(12)
    history._ids.seed(99)
    history.append("alpha", count=2)  # of these the leader knows nothing
    async with working(history, directory) as worker:
        await flush(worker, history)
    disk.fail("node.db", "REPLACE INTO cut")
    async with working(history, directory, connect=disk.connect) as worker:
        assert len(await fill(history, leader)) == 1
        worker.request("alpha")
        await until(lambda: worker.status()["last_error"] is not None)
        shutil.copytree(directory.path, tmp_path / "c")
        disk.repair()
        await flush(worker, history)
    with DataDirectory(tmp_path / "c") as found:
        loaded = load_state(found)
        assert loaded.lost, "the file that the cut speaks of was set aside"
        assert loaded.state.stores == {}
    assert reloaded(directory) == contents(leader.state)
    assert len(list(directory.stores_path.glob("alpha.*.replaced-*Z"))) == 1
