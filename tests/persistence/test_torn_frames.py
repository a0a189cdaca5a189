"""A process that is killed within a frame of a WAL, where a reader had kept older frames in it.

A frame that is half written over an older one cannot be told from one that is damaged. So none is.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from node.persistence import schema
from node.persistence.directory import DataDirectory
from node.persistence.loader import load_state
from node.persistence.schema import PAGE_BYTES
from node.persistence.wal import wal_path
from node.persistence.worker import Worker
from tests.persistence.histories import History, contents
from tests.persistence.workers import flush, working

HEADER_BYTES, FRAME_BYTES = 32, 24 + PAGE_BYTES


class _Watched(sqlite3.Connection):
    """Notes what the WAL was as the last transaction began."""

    began: dict[str, bytes]
    path: Path

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        if sql.startswith("BEGIN"):
            wal = wal_path(self.path)
            self.began[self.path.name] = wal.read_bytes() if wal.exists() else b""
        return super().execute(sql, parameters)


def fold(worker: Worker, history: History, path: Path) -> None:
    """What comes after cycles: this file's WAL is folded, as far as readers allow."""
    database = worker._database
    if path.name == "node.db":
        assert database._node is not None
        database._fold_node(database._node)
    else:
        database.give_back(history.state.stores["alpha"])


@pytest.mark.parametrize("torn_bytes", [24, 24 + PAGE_BYTES // 2], ids=["its header", "half of it"])
@pytest.mark.parametrize("which", [0, -1], ids=["first frame", "frame that commits"])
@pytest.mark.parametrize("commits", [0, 1], ids=["first commit", "second commit"])
@pytest.mark.parametrize("name", ["store", "node.db"])
async def test_a_frame_that_was_being_written_is_no_damage(
    directory: DataDirectory, tmp_path: Path, name: str, commits: int, which: int, torn_bytes: int
) -> None:
    began: dict[str, bytes] = {}

    def connect(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, factory=_Watched)
        connection.began, connection.path = began, path
        return schema.configured(connection)

    history = History()
    history.create("alpha")
    async with working(history, directory, connect=connect) as worker:
        await flush(worker, history)
        alpha = history.state.stores["alpha"]
        path = directory.store_path(alpha.name, alpha.uid)
        if name == "node.db":
            path = directory.node_path
        for number in range(10):
            history.append("alpha", f"s{number}", count=100, size=300)
            await flush(worker, history)
        await worker._in_thread(int)  # what follows that cycle is over
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            await worker._in_thread(fold, worker, history, path)
            reader.execute("COMMIT")  # it is idle from here on
            for _ in range(commits):
                history.append("alpha")
                await flush(worker, history)
            expected, cut = contents(history.state), worker.persisted_index
            shutil.copytree(directory.path, tmp_path / "killed")
            history.append("alpha", "s0")
            await flush(worker, history)
            before, after = began[path.name], wal_path(path).read_bytes()
    new = [
        at
        for at in range(HEADER_BYTES, len(after), FRAME_BYTES)
        if after[at : at + FRAME_BYTES] != before[at : at + FRAME_BYTES]
    ]
    torn = new[which] + torn_bytes
    killed = tmp_path / "killed" / path.relative_to(directory.path)
    wal_path(killed).write_bytes(after[:torn] + before[torn:])
    with DataDirectory(tmp_path / "killed") as found:
        loaded = load_state(found)
    assert (loaded.lost, loaded.set_aside) == (False, [])
    assert loaded.cut_index == cut
    assert contents(loaded.state) == expected
