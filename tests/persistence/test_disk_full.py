"""A disk without room, for real: a small tmpfs that is filled and emptied again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.errors import PersistenceFailed
from node.persistence.directory import DataDirectory
from node.persistence.state_file import NodeIdentity, StateFile
from tests.persistence.histories import History, contents
from tests.persistence.workers import flush, reloaded, settings, store_status, until, working

ROOM_BYTES = 4 * 1024 * 1024


class SmallDisk:
    """A mounted tmpfs; `fill` takes all its room, `empty` gives it back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        with open(self._ballast, "ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def empty(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small tmpfs")
    path = tmp_path / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "small", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", str(path)], check=True)


async def test_on_a_full_disk_appends_go_on_and_all_is_persisted_once_there_is_room(
    small_disk: SmallDisk,
) -> None:
    history = History()
    options = settings(interval_ms=10, breaker_failures=1000)
    with DataDirectory(small_disk.path / "data") as directory:
        async with working(history, directory, settings=options) as worker:
            for name in ("alpha", "beta"):
                history.create(name)
                history.append(name, count=100)
            await flush(worker, history)
            cut = worker.persisted_index
            small_disk.fill()
            history.append("alpha", count=500, size=200)
            await until(lambda: store_status(worker, "alpha")["totals"]["failures"] > 2)
            history.append("beta", count=500, size=200)
            history.create("gamma")
            with pytest.raises(PersistenceFailed, match="disk"):
                await flush(worker, history)
            assert worker.persisted_index == cut
            assert "full" in store_status(worker, "alpha")["last_error"]
            small_disk.empty()
            await until(lambda: worker.persisted_index == history.index)
            assert store_status(worker, "alpha")["last_error"] is None
        assert reloaded(directory) == contents(history.state)


def test_a_full_disk_takes_promises(small_disk: SmallDisk) -> None:
    """An election cannot wait for room: who cannot keep its vote has to end."""
    with DataDirectory(small_disk.path / "data") as directory:
        for term in range(1, 100):
            if term > 2:
                small_disk.fill()
            StateFile(directory).save(
                NodeIdentity("cluster", "n1", 3, term, "n2", "boot", False, "lineage")
            )
            found = StateFile(directory).load()
            assert found is not None and found.term == term


async def test_a_process_that_ends_on_a_full_disk_comes_back_at_the_cut(
    small_disk: SmallDisk,
) -> None:
    history = History()
    with DataDirectory(small_disk.path / "data") as directory:
        async with working(history, directory) as worker:
            history.create("alpha")
            history.append("alpha", count=100)
            await flush(worker, history)
            before = contents(history.state)
            small_disk.fill()
            history.append("alpha", count=500, size=200)
            assert not await worker.stop()
        small_disk.empty()
        assert reloaded(directory) == before
