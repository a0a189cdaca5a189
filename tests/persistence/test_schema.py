"""How a database is opened: what a COMMIT that has returned is worth."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from node.persistence.faults import FilesUnreadable, StoreDamaged
from node.persistence.schema import connect, fault_of


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


@pytest.mark.parametrize("code", ["BUSY", "PROTOCOL", "INTERRUPT", "FULL", "IOERR_FSYNC"])
def test_the_systems_trouble_is_no_damage_of_a_file(tmp_path: Path, code: str) -> None:
    """Damage sets files aside. A lock that somebody holds too long must not."""
    error = sqlite3.OperationalError("as SQLite says it")
    error.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{code}")
    assert isinstance(fault_of(tmp_path, error), FilesUnreadable)


@pytest.mark.parametrize("code", ["CORRUPT", "NOTADB", "ERROR", "IOERR_SHORT_READ"])
def test_what_tells_of_damage_is_damage(tmp_path: Path, code: str) -> None:
    error = sqlite3.DatabaseError("as SQLite says it")
    error.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{code}")
    assert isinstance(fault_of(tmp_path, error), StoreDamaged)
