from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest

from node.persistence.directory import DataDirectory
from node.persistence.faults import OtherFormat, StateFileDamaged
from node.persistence.state_file import NodeIdentity, StateFile, kernel_boot_id

IDENTITY = NodeIdentity("cluster", "n1", 3, 7, "n2", "boot", False, "lineage")
NEWER = dataclasses.replace(IDENTITY, term=8, vote=None, clean=True)


def test_what_was_saved_last_comes_back(directory: DataDirectory) -> None:
    file = StateFile(directory)
    assert file.load() is None
    file.save(IDENTITY)
    file.save(NEWER)
    assert StateFile(directory).load() == NEWER


def test_a_new_process_goes_on_counting(directory: DataDirectory) -> None:
    for identity in (IDENTITY, NEWER, IDENTITY):
        StateFile(directory).save(identity)
    assert StateFile(directory).load() == IDENTITY


@pytest.mark.parametrize("damaged", [0, 1])
def test_each_copy_alone_holds_the_last_promise(
    directory: DataDirectory, damaged: int, caplog: pytest.LogCaptureFixture
) -> None:
    file = StateFile(directory)
    file.save(IDENTITY)
    file.save(NEWER)
    path = directory.state_paths[damaged]
    whole = path.read_bytes().rstrip()
    for at in range(len(whole)):
        for replaced in (b"", bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]):
            caplog.clear()
            path.write_bytes(whole[:at] + replaced)
            assert StateFile(directory).load() == NEWER, f"damaged at byte {at}"
            assert str(path) in caplog.text
    path.unlink()
    assert StateFile(directory).load() == NEWER


def test_after_a_crash_between_the_copies_the_newer_one_counts(directory: DataDirectory) -> None:
    file = StateFile(directory)
    file.save(IDENTITY)
    before = directory.state_paths[1].read_bytes()
    file.save(NEWER)
    directory.state_paths[1].write_bytes(before)
    assert StateFile(directory).load() == NEWER


def test_two_damaged_copies_are_an_error_that_names_them(directory: DataDirectory) -> None:
    StateFile(directory).save(IDENTITY)
    for path in directory.state_paths:
        path.write_bytes(path.read_bytes().rstrip()[:-5])
    with pytest.raises(StateFileDamaged) as caught:
        StateFile(directory).load()
    for path in directory.state_paths:
        assert str(path) in str(caught.value)
    with pytest.raises(StateFileDamaged):
        StateFile(directory).save(NEWER)


@pytest.mark.parametrize("format", [2, 4])
def test_the_format_of_another_version_is_refused(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch, format: int
) -> None:
    monkeypatch.setattr("node.persistence.state_file.FORMAT", format)
    StateFile(directory).save(IDENTITY)
    monkeypatch.undo()
    with pytest.raises(OtherFormat, match=f"format {format}; this version knows 3"):
        StateFile(directory).load()


def test_a_copy_can_be_read_by_a_person(directory: DataDirectory) -> None:
    StateFile(directory).save(IDENTITY)
    line = directory.state_paths[0].read_text().splitlines()[0]
    assert json.loads(line)["term"] == 7


def test_a_save_that_fails_leaves_what_was_there(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StateFile(directory)
    file.save(IDENTITY)

    def refuse(_: Path, __: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("node.persistence.state_file._replace", refuse)
    with pytest.raises(OSError, match="No space"):
        file.save(NEWER)
    assert StateFile(directory).load() == IDENTITY


def test_a_save_needs_no_room_after_the_second_one(directory: DataDirectory) -> None:
    file = StateFile(directory)
    inodes: set[int] = set()
    for term in range(7, 12):
        file.save(dataclasses.replace(IDENTITY, term=term))
        found = {path.stat().st_ino for path in directory.path.glob("state.*")}
        assert term < 8 or len(found) == 4
        assert term < 9 or found == inodes, "each file is used again"
        inodes = found
        assert len({path.stat().st_size for path in directory.path.glob("state.*")}) == 1


def test_a_save_that_was_cut_short_leaves_the_spare_of_the_next_one(
    directory: DataDirectory,
) -> None:
    file = StateFile(directory)
    for term in (7, 8, 9):
        file.save(dataclasses.replace(IDENTITY, term=term))
    spare = directory.path / "state.1.spare"
    inode = spare.stat().st_ino
    spare.rename(directory.path / "state.1.before")  # a kill came before the last rename
    file.save(NEWER)
    assert directory.state_paths[0].stat().st_ino == inode
    assert StateFile(directory).load() == NEWER


@pytest.mark.parametrize("left", ["state.1.spare", "state.1.before"])
def test_what_a_save_that_was_cut_short_left_is_never_written_over(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """A loss of power may leave any of the names of a copy."""
    file = StateFile(directory)
    file.save(IDENTITY)
    path = directory.state_paths[0]
    (directory.path / left).unlink(missing_ok=True)
    os.link(path, directory.path / left)

    def power_is_lost(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as lost:
        lost.setattr("node.persistence.state_file.os.fsync", power_is_lost)
        with pytest.raises(OSError, match="Input/output"):
            file.save(NEWER)
    directory.state_paths[1].unlink()
    assert StateFile(directory).load() == IDENTITY


def test_a_disk_without_room_is_told_with_the_name_of_the_file(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the last line of a node that cannot start, and an operator has several disks."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("node.persistence.directory.os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/state\.1\.spare'"):
        StateFile(directory).save(IDENTITY)


def test_the_boot_id_is_the_same_while_the_machine_is_up() -> None:
    assert kernel_boot_id() == kernel_boot_id()
