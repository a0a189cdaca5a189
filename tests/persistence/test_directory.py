from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from node.persistence.directory import DataDirectory, replace_durably, sync_directory
from node.persistence.faults import DirectoryInUse, FilesUnreadable

HOLD = """
import sys, time
from node.persistence.directory import DataDirectory
held = DataDirectory(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DirectoryInUse, match=f"in use by another process .id {holder.pid}"):
            DataDirectory(tmp_path)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(10)
    DataDirectory(tmp_path).close()


def test_the_lock_is_given_back_when_it_is_closed(tmp_path: Path) -> None:
    DataDirectory(tmp_path).close()
    with DataDirectory(tmp_path), pytest.raises(DirectoryInUse):
        DataDirectory(tmp_path)


def test_an_annex_is_locked_as_long_as_the_directory_and_for_this_user_alone(
    tmp_path: Path,
) -> None:
    with DataDirectory(tmp_path / "data") as directory:
        annex = directory.annex(tmp_path, "n1")
        assert stat.S_IMODE(annex.stat().st_mode) == 0o700
        with pytest.raises(DirectoryInUse, match="exesdb-n1"):
            directory.annex(tmp_path, "n1")
    with DataDirectory(tmp_path / "data") as again:
        assert again.annex(tmp_path, "n1") == annex


@pytest.mark.parametrize("kind", ["a link", "a file"])
def test_what_somebody_else_may_have_put_in_the_place_of_an_annex_is_refused(
    tmp_path: Path, kind: str
) -> None:
    with DataDirectory(tmp_path / "data") as directory:
        annex = directory.annex(tmp_path, "n1")
    shutil.rmtree(annex)
    (tmp_path / "elsewhere").mkdir()
    if kind == "a link":
        annex.symlink_to(tmp_path / "elsewhere")
    else:
        annex.write_text("")
    with (
        DataDirectory(tmp_path / "data") as directory,
        pytest.raises(FilesUnreadable, match="exesdb-n1"),
    ):
        directory.annex(tmp_path, "n1")


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a directory")
    with pytest.raises(FilesUnreadable, match="data"):
        DataDirectory(tmp_path / "data")


def test_the_names_of_all_directories_that_are_made_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("node.persistence.directory.sync_directory", synced.append)
    path = tmp_path / "srv" / "exesdb" / "n1"
    with DataDirectory(path):
        assert sorted(synced) == [tmp_path, path.parent.parent, path.parent, path]
    synced.clear()
    with DataDirectory(path):
        assert synced == [path]


def test_setting_aside_keeps_the_companions_and_never_overwrites(tmp_path: Path) -> None:
    with DataDirectory(tmp_path, now_s=lambda: 0.0) as directory:
        targets = []
        for content in ("first", "second"):
            path = directory.store_path("s", 7)
            path.write_text(content)
            path.with_name(path.name + "-wal").write_text(content + " log")
            targets.append(directory.set_aside(path, "damaged"))
        assert [target.name for target in targets] == [
            "s.7.db.damaged-19700101T000000Z",
            "s.7.db.damaged-19700101T000000Z-2",
        ]
        assert [target.read_text() for target in targets] == ["first", "second"]
        logs = [target.with_name(target.name + "-wal").read_text() for target in targets]
        assert logs == ["first log", "second log"]
        assert list(directory.store_files()) == []


def test_a_wal_alone_is_set_aside_like_its_database(tmp_path: Path) -> None:
    with DataDirectory(tmp_path, now_s=lambda: 0.0) as directory:
        path = directory.store_path("s", 7)
        for content in ("first", "second"):
            path.with_name(path.name + "-wal").write_text(content)
            assert list(directory.store_files()) == [path]
            directory.set_aside(path, "damaged")
        named = directory.aside
    assert named == [
        "stores/s.7.db.damaged-19700101T000000Z",
        "stores/s.7.db.damaged-19700101T000000Z-2",
    ]
    assert [(tmp_path / f"{name}-wal").read_text() for name in named] == ["first", "second"]


def test_a_file_is_replaced_in_an_order_that_bears_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    synced: list[tuple[str, int, bytes]] = []
    real = os.fsync

    def watch(descriptor: int) -> None:
        found = os.fstat(descriptor)
        kind = "directory" if stat.S_ISDIR(found.st_mode) else "file"
        synced.append((kind, found.st_size if kind == "file" else 0, path.read_bytes()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    replace_durably(path, b"new bytes")
    # The whole of it is on disk before the name points at it, and the name before the return.
    assert synced == [("file", len(b"new bytes"), b"old"), ("directory", 0, b"new bytes")]


def test_what_was_set_aside_is_named_also_after_a_restart_until_it_is_removed(
    tmp_path: Path,
) -> None:
    with DataDirectory(tmp_path, now_s=lambda: 0.0) as directory:
        kept = directory.store_path("s", 7)
        for path, why in ((directory.node_path, "damaged"), (kept, "unused"), (kept, "unused")):
            path.write_text("content")
            path.with_name(path.name + "-wal").write_text("its log")
            directory.set_aside(path, why)
        kept.write_text("in use")
        directory.tail_path.mkdir()
        (segment := directory.tail_path / "3-000001.tail").write_text("damaged")
        directory.set_aside(segment, "damaged")
        named = directory.aside
    assert named == [
        "node.db.damaged-19700101T000000Z",
        "stores/s.7.db.unused-19700101T000000Z",
        "stores/s.7.db.unused-19700101T000000Z-2",
        "tail/3-000001.tail.damaged-19700101T000000Z",
    ]
    with DataDirectory(tmp_path) as again:
        assert again.aside == named
    (tmp_path / named[0]).unlink()
    with DataDirectory(tmp_path, now_s=lambda: 0.0) as again:
        assert again.aside == named[1:]
        again.quarantine()
        assert again.aside == ["quarantined-19700101T000000Z"]


def test_a_directory_that_finds_no_room_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("node.persistence.directory.os.fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        sync_directory(tmp_path)
