"""Who has forgotten nothing, and who must recover: what a start makes of the last life."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.identity import Identity
from node.persistence.directory import DataDirectory
from node.persistence.tail import Tail
from node.persistence.tail_files import TailFiles
from node.raft.ports import LogEntry, StartingPoint

MEMBERS = ("n1", "n2", "n3")
BYTES_MAX = 64 << 20


class Life:
    """One life of a node: its identity, from where it started, and its tail, if it keeps one."""

    def __init__(self, path: Path, cut: int = 0, damaged: bool = False, tail: bool = True) -> None:
        self.directory = DataDirectory(path)
        self.identity = Identity(self.directory, "n1", MEMBERS)
        self.start: StartingPoint = self.identity.starting_point(cut, 1 if cut else 0, damaged)
        self.tail: Tail | None = None
        if tail:
            self.tail = self.identity.new_tail(BYTES_MAX, lambda: None)
            base = max(cut, 1)
            self.tail.begin(base, self.held)

    @property
    def held(self) -> list[LogEntry]:
        return [entry for entry in self.start.tail if entry[0] > max(self.start.index, 1)]

    def killed(self) -> None:
        """The process is gone: files stay as they are."""
        if self.tail is not None:
            assert self.tail.close()
        self.directory.close()


@contextmanager
def life(path: Path, cut: int = 0, damaged: bool = False, tail: bool = True) -> Iterator[Life]:
    one = Life(path, cut, damaged, tail)
    one.identity.begun(with_tail=tail)
    yield one
    one.killed()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The directory of a node that has recovered at entry 1 and then taken entries 2, 3, 4."""
    with life(tmp_path / "data") as first:
        assert first.start.forgetful, "a first start cannot be told from a lost directory"
        first.identity.recovered()
        assert first.tail is not None
        for entry in ENTRIES:
            first.tail.append(*entry)
    return tmp_path / "data"


ENTRIES: list[LogEntry] = [(index, 1, b"entry %d" % index) for index in (2, 3, 4)]


def test_a_killed_node_forgets_nothing_on_the_same_boot(path: Path) -> None:
    for _ in range(3):
        with life(path) as found:
            assert not found.start.forgetful
            assert found.held == ENTRIES
    with life(path, cut=3) as found:
        assert not found.start.forgetful
        assert found.held == ENTRIES[2:]


def test_an_earlier_clean_stop_is_not_believed_after_a_reboot(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark spoke for the life that ended with it, and not for the next one."""
    with life(path) as stopped:
        stopped.identity.leave(1, ENTRIES)
    with life(path) as found:
        assert not found.start.forgetful
    monkeypatch.setattr("node.identity.kernel_boot_id", lambda: "another boot")
    with life(path) as after:
        assert after.start.forgetful


def test_a_tail_of_another_history_than_the_disk_is_not_believed(path: Path) -> None:
    """The log would drop it; the node must not pass for one that has it."""
    with DataDirectory(path) as directory:
        found = Identity(directory, "n1", MEMBERS).starting_point(3, 2, damaged=False)
    assert found.forgetful


def test_after_a_reboot_the_tail_is_read_and_not_believed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.identity.kernel_boot_id", lambda: "another boot")
    with life(path) as found:
        assert found.start.forgetful
        assert found.held == ENTRIES
    with life(path) as found:
        assert found.start.forgetful, "it has not recovered yet"
        found.identity.recovered()
    with life(path) as found:
        assert not found.start.forgetful


def test_where_boots_cannot_be_told_apart_a_killed_node_has_forgotten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.identity.kernel_boot_id", lambda: "")
    with life(path):
        pass
    with life(path) as found:
        assert found.start.forgetful


@pytest.mark.parametrize("with_tail", [True, False])
def test_a_clean_stop_is_believed_after_a_reboot_too(
    path: Path, with_tail: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with life(path, cut=2, tail=with_tail) as stopped:
        if stopped.tail is not None:
            assert stopped.tail.close()
        stopped.identity.leave(3, ENTRIES[2:])
    monkeypatch.setattr("node.identity.kernel_boot_id", lambda: "a third boot")
    with life(path, cut=3) as found:
        assert not found.start.forgetful
        assert found.held == ENTRIES[2:]


def test_a_stop_that_could_not_keep_its_log_is_no_clean_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space")

    with life(path) as stopped, monkeypatch.context() as failing:
        failing.setattr(TailFiles, "write", fail)
        with pytest.raises(OSError, match="no space"):
            stopped.identity.leave(1, ENTRIES)
    monkeypatch.setattr("node.identity.kernel_boot_id", lambda: "another boot")
    with life(path) as found:
        assert found.start.forgetful


def test_damage_is_remembered_by_a_node_that_is_killed_before_it_says_a_word(path: Path) -> None:
    Life(path, damaged=True).killed()
    with life(path) as found:
        assert found.start.forgetful


def test_a_tail_from_before_a_life_without_one_does_not_count(path: Path) -> None:
    with life(path, tail=False) as without:
        assert not without.start.forgetful
    assert list((path / "tail").iterdir()) == []
    with life(path) as found:
        assert found.start.forgetful


def test_killed_in_the_middle_of_a_start_it_finds_the_tail_before(path: Path) -> None:
    Life(path).killed()  # the new tail was begun, and the state file did not name it yet
    Life(path, tail=False).killed()
    with life(path) as found:
        assert not found.start.forgetful
        assert found.held == ENTRIES


def test_a_damaged_database_or_a_cut_before_the_tail_means_forgotten(path: Path) -> None:
    with life(path, damaged=True) as found:
        assert found.start.forgetful


def test_a_damaged_tail_means_forgotten_and_is_kept_aside(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (file,) = sorted((path / "tail").glob("*-000002.tail"))
    content = file.read_bytes()
    at = content.index(b"entry 3")
    file.write_bytes(content[:at] + b"E" + content[at + 1 :])
    with life(path) as found:
        assert found.start.forgetful
        assert found.held == ENTRIES[:1]
    assert file.name in caplog.text
    assert [one.name for one in (path / "tail").glob("*.damaged-*")]


def test_a_missing_tail_means_forgotten(path: Path) -> None:
    for file in (path / "tail").iterdir():
        file.unlink()
    with life(path) as found:
        assert found.start.forgetful
        assert found.held == []
