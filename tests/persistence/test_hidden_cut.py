"""A cut that was written and not synced, while another process had `node.db` open.

The next process does not see it, by the index that the reader has, and rolls its stores back to the
cut before. It must never see it again.
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
