"""How a database is opened: what a COMMIT that has returned is worth."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from node.persistence.schema import connect


def test_what_was_committed_is_on_the_disk_and_no_checkpoint_runs_inside_a_commit(
    tmp_path: Path,
) -> None:
    with closing(connect(tmp_path / "x.db")) as connection:
        settings = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "wal_autocheckpoint")
        }
    full = 2
    assert settings == {"journal_mode": "wal", "synchronous": full, "wal_autocheckpoint": 0}
