from __future__ import annotations

import pytest

from node.persistence.directory import DataDirectory
from node.persistence.faults import FormatTooNew, TailFileDamaged
from node.persistence.tail_file import LoadedTail, TailEntry, TailFile

ENTRIES = [TailEntry(10 + at, 1 + at // 2, bytes([at]) * (at * 3)) for at in range(5)]
HEADER_BYTES = 24


def test_entries_come_back_as_they_were_saved(directory: DataDirectory) -> None:
    file = TailFile(directory)
    assert file.load() is None
    file.save(ENTRIES)
    assert TailFile(directory).load() == LoadedTail(ENTRIES, torn=False)
    file.save([])
    assert TailFile(directory).load() == LoadedTail([], torn=False)


def test_a_dropped_tail_is_gone_and_may_be_dropped_again(directory: DataDirectory) -> None:
    file = TailFile(directory)
    file.save(ENTRIES)
    file.drop()
    file.drop()
    assert file.load() is None


def test_wherever_the_file_ends_the_entries_before_are_read_and_the_end_is_told(
    directory: DataDirectory,
) -> None:
    TailFile(directory).save(ENTRIES)
    whole = directory.tail_path.read_bytes()
    for size in range(HEADER_BYTES, len(whole), 3):
        directory.tail_path.write_bytes(whole[:size])
        loaded = TailFile(directory).load()
        assert loaded is not None
        assert loaded.torn
        assert loaded.entries == ENTRIES[: len(loaded.entries)]
        assert len(loaded.entries) < len(ENTRIES)


def test_a_flipped_bit_anywhere_is_an_error_and_never_a_shorter_history(
    directory: DataDirectory,
) -> None:
    TailFile(directory).save(ENTRIES)
    whole = directory.tail_path.read_bytes()
    for at in range(len(whole)):
        flipped = bytes([whole[at] ^ (1 << at % 8)])
        directory.tail_path.write_bytes(whole[:at] + flipped + whole[at + 1 :])
        with pytest.raises(TailFileDamaged, match="tail"):
            TailFile(directory).load()


def test_bytes_behind_the_last_record_are_an_error(directory: DataDirectory) -> None:
    TailFile(directory).save(ENTRIES)
    directory.tail_path.write_bytes(directory.tail_path.read_bytes() + b"x")
    with pytest.raises(TailFileDamaged):
        TailFile(directory).load()


def test_a_gap_in_the_indexes_is_an_error(directory: DataDirectory) -> None:
    TailFile(directory).save([ENTRIES[0], ENTRIES[2]])
    with pytest.raises(TailFileDamaged, match="index 12 follows 10"):
        TailFile(directory).load()


def test_the_format_of_a_newer_version_is_refused(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.persistence.tail_file.FORMAT", 2)
    TailFile(directory).save(ENTRIES)
    monkeypatch.undo()
    with pytest.raises(FormatTooNew, match="format 2"):
        TailFile(directory).load()
