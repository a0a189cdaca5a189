"""Who has forgotten nothing, and who must recover: what a start makes of the last life."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.identity import Identity
from node.persistence.directory import DataDirectory
from node.persistence.tail import Tail
from node.persistence.tail_files import TailFiles
from node.raft.lineage import Standing
from node.raft.ports import LogEntry, StartingPoint
from tests.persistence.waiting import wait_until

MEMBERS = ("n1", "n2", "n3")
BYTES_MAX = 64 << 20
SEGMENTS = 4
"""In these tests no tail fills one: the first, the one that grows, and two that are made ahead."""


class Life:
    """One life of a node: its identity, from where it started, and its tail, if it keeps one."""

    tail_dir: Path | None = None

    def __init__(self, path: Path, cut: int = 0, damaged: bool = False, tail: bool = True) -> None:
        self.directory = DataDirectory(path)
        self.identity = Identity(self.directory, "n1", MEMBERS, tail_dir=self.tail_dir)
        self.start: StartingPoint = self.identity.starting_point(cut, 1 if cut else 0, damaged)
        self.tail: Tail | None = None
        if tail:
            self.tail = self.identity.new_tail(BYTES_MAX, lambda: None)
            base = max(cut, 1)
            self.tail.begin(base, self.held)

    @property
    def held(self) -> list[LogEntry]:
        return [entry for entry in self.start.tail if entry[0] > max(self.start.index, 1)]

    def leaves(self, cut: int, entries: list[LogEntry]) -> None:
        """A clean stop: the tail ends first, whose thread makes files."""
        if self.tail is not None:
            assert self.tail.close()
        self.identity.leave(cut, entries)

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


@pytest.fixture(params=["on the disk", "in memory"], autouse=True)
def memory(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path | None:
    """Where tails grow, if not in the data directory."""
    if request.param == "on the disk":
        return None
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(Life, "tail_dir", memory)
    return memory


def segments(path: Path) -> list[Path]:
    """The files in which the tail of a node grows."""
    found = [*(path / "tail").glob("*.tail"), *(path.parent / "memory").glob("*/*.tail")]
    return sorted(found, key=lambda file: file.name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The directory of a node that has recovered at entry 1 and then taken entries 2, 3, 4."""
    with life(tmp_path / "data") as first:
        assert first.start.forgetful, "a first start cannot be told from a lost directory"
        first.identity.recovered()
        assert first.tail is not None
        for entry in ENTRIES:
            first.tail.append(*entry)
        # A thread makes those ahead, and the end of this life would come before it is done.
        wait_until(lambda: len(segments(tmp_path / "data")) == SEGMENTS)
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
        stopped.leaves(1, ENTRIES)
    with life(path) as found:
        assert not found.start.forgetful
    monkeypatch.setattr("node.identity.kernel_boot_id", lambda: "another boot")
    with life(path) as after:
        assert after.start.forgetful


def test_a_tail_of_another_history_than_the_disk_is_not_believed(path: Path) -> None:
    """The log would drop it; the node must not pass for one that has it."""
    with DataDirectory(path) as directory:
        identity = Identity(directory, "n1", MEMBERS, tail_dir=Life.tail_dir)
        found = identity.starting_point(3, 2, damaged=False)
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
        stopped.leaves(3, ENTRIES[2:])
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
            stopped.leaves(1, ENTRIES)
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
    assert segments(path) == []
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
    (file,) = (file for file in segments(path) if file.name.endswith("-000002.tail"))
    content = file.read_bytes()
    at = content.index(b"entry 3")
    file.write_bytes(content[:at] + b"E" + content[at + 1 :])
    with life(path) as found:
        assert found.start.forgetful
        assert found.held == ENTRIES[:1]
    assert file.name in caplog.text
    assert [one.name for one in (path / "tail").glob("*.damaged-*")]


def test_a_missing_tail_means_forgotten(path: Path) -> None:
    for file in segments(path):
        file.unlink()
    with life(path) as found:
        assert found.start.forgetful
        assert found.held == []


@pytest.mark.parametrize("memory", ["in memory"], indirect=True)
class TestATailInMemory:
    """`tail_dir`: it grows outside of the data directory, and the state file says where."""

    def test_it_leaves_nothing_on_the_disk_but_what_a_clean_stop_keeps(self, path: Path) -> None:
        assert list((path / "tail").iterdir()) == []
        with life(path) as stopped:
            stopped.leaves(1, ENTRIES)
        (kept,) = segments(path)
        assert kept.parent == path / "tail"

    def test_one_that_went_with_its_container_means_forgotten(
        self, path: Path, memory: Path
    ) -> None:
        shutil.rmtree(memory)
        memory.mkdir()
        with life(path) as found:
            assert found.start.forgetful
            assert found.held == []

    @pytest.mark.parametrize("lost", range(SEGMENTS))
    def test_whichever_of_its_files_somebody_removed_it_knows_all_or_that_it_does_not(
        self, path: Path, lost: int
    ) -> None:
        segments(path)[lost].unlink()
        with life(path) as found:
            assert found.start.forgetful or found.held == ENTRIES

    def test_it_is_found_where_it_was_when_the_option_has_changed(
        self, path: Path, memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = tmp_path / "other"
        other.mkdir()
        for wanted in (None, other, memory):
            monkeypatch.setattr(Life, "tail_dir", wanted)
            with life(path) as found:
                assert not found.start.forgetful
                assert found.held == ENTRIES
            files = [*(path / "tail").glob("*.tail"), *tmp_path.glob("*/exesdb-*/*.tail")]
            (place,) = {file.parent for file in files}
            assert place == path / "tail" if wanted is None else place.parent == wanted

    def test_two_data_directories_never_share_one(self, path: Path, tmp_path: Path) -> None:
        with life(path), life(tmp_path / "of another node") as other:
            assert other.start.tail == ()
        with life(path) as found:
            assert found.held == ENTRIES

    def test_it_goes_where_the_data_go_when_the_lineage_is_given_up(self, path: Path) -> None:
        with life(path) as given_up:
            given_up.identity.quarantine(Standing("newer", (), founded=True))
        with life(path) as stranger:
            assert stranger.held == []
        (aside,) = path.glob("quarantined-*")
        moved = b"".join(file.read_bytes() for file in (aside / "tail").iterdir())
        assert all(entry in moved for _, _, entry in ENTRIES)
