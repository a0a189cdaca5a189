"""What was written and not synced while another process had the file open.

The next process does not see it, by the index that the reader has. It rolls its stores back to the
cut that it sees, and must never see the other one again; nor a part of a commit of a store, the
rest of which it has written over.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from node.persistence.directory import DataDirectory
from node.persistence.loader import load_state
from tests.persistence.test_power import carried_out_beside_a_reader

CUT_IS_NOT_SYNCED = """
async def is_read(directory, worker, history):
    await written(directory, worker, history)
    history.append("alpha")
    await flush(worker, history)
    await worker._in_thread(int)  # what follows that cycle is over
    (root / "persisted").write_text(str(history.index))
    reader = begins_to_be_read(directory.node_path)
    (root / "reader").write_text(str(reader.pid))
    history.append("alpha")
    failing.write_text("=node.db-wal")  # as if killed within the fsync of the cut's COMMIT
    await fails(worker, history)

carry_out(is_read)
"""

READER_ENDS = """
import signal

async def main():
    with DataDirectory(root / "data") as directory:
        loaded = load_state(directory)
        assert not loaded.lost and loaded.cut_index == int((root / "persisted").read_text())
        reader = int((root / "reader").read_text())
        if {before}:
            os.kill(reader, signal.SIGKILL)
            while os.path.exists(f"/proc/{{reader}}/fd/0"):
                pass
        history = History(loaded.state)
        async with working(history, directory) as worker:
            assert worker.persisted_index == loaded.cut_index
            if not {before}:
                os.kill(reader, signal.SIGKILL)
            os._exit(0)  # before its first cut

asyncio.run(main())
"""


@pytest.mark.parametrize("before", [False, True], ids=["while it runs", "before it starts"])
def test_a_cut_that_a_reader_hid_from_a_start_does_not_come_back(
    tmp_path: Path, before: bool
) -> None:
    carried_out_beside_a_reader(tmp_path, CUT_IS_NOT_SYNCED, READER_ENDS.format(before=before))
    with DataDirectory(tmp_path / "root" / "data") as directory:
        loaded = load_state(directory)
    assert (loaded.lost, loaded.set_aside) == (False, [])
    assert loaded.cut_index >= int((tmp_path / "root" / "persisted").read_text())


STORE_IS_AHEAD_AND_NOT_SYNCED = """
async def is_read(directory, worker, history):
    path = await written(directory, worker, history)
    history.create("beta")
    history.append("beta")
    await flush(worker, history)
    await worker._in_thread(int)  # what follows that cycle is over
    (root / "persisted").write_text(str(history.index))
    begins_to_be_read(path)
    history.append("alpha")
    history.append("beta")
    failing.write_text("beta")  # the cut stays where it is, and alpha is ahead of it
    await fails(worker, history)
    failing.unlink()
    for number in range(30):
        history.append("alpha", f"s{number}", count=100, size=300)
    failing.write_text("=" + path.name + "-wal")  # as if killed within the fsync of its COMMIT
    await fails(worker, history)

carry_out(is_read)
"""

ENDS_BEFORE_ITS_FIRST_CYCLE = """
with DataDirectory(root / "data") as directory:
    loaded = load_state(directory)
    assert not loaded.lost and not loaded.set_aside, loaded
    assert loaded.cut_index == int((root / "persisted").read_text())
    os._exit(0)
"""


def test_a_commit_of_a_store_that_a_reader_hid_is_no_damage_after_a_roll_back(
    tmp_path: Path,
) -> None:
    programs = [STORE_IS_AHEAD_AND_NOT_SYNCED] + [ENDS_BEFORE_ITS_FIRST_CYCLE] * 2
    carried_out_beside_a_reader(tmp_path, *programs)
