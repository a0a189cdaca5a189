from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.persistence import tail as tail_module
from node.persistence.directory import DataDirectory
from node.persistence.faults import FilesUnreadable
from node.persistence.tail import Tail
from node.persistence.tail_files import LiveSegment, TailFiles
from node.persistence.tail_format import Entry
from tests.persistence.waiting import wait_until

LIFE = 3
SEGMENT = 4096
BYTES_MAX = 16 * SEGMENT


class SlowFiles(TailFiles):
    """Files whose segments are made only while the disk is well."""

    def __init__(self, directory: DataDirectory) -> None:
        super().__init__(directory)
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.error: OSError | None = None
        self.free = 1 << 40

    def free_bytes(self) -> int:
        return self.free

    def create(self, life: int, sequence: int, size: int) -> LiveSegment:
        self.goes_on.wait(10)
        if self.error is not None:
            raise self.error
        return super().create(life, sequence, size)


class Log:
    """A log whose tail is under test, and what a process killed now would find."""

    def __init__(self, files: SlowFiles, bytes_max: int = BYTES_MAX) -> None:
        self.files = files
        self.pressed = 0
        self.tail = Tail(files, LIFE, bytes_max, self._press)
        self.entries: list[Entry] = []

    def _press(self) -> None:
        self.pressed += 1

    def begin(self, index: int = 0) -> Log:
        self.tail.begin(index, [])
        return self

    def add(self, count: int = 1, size: int = 100, ahead: bool = True) -> None:
        for _ in range(count):
            if ahead:
                self.wait_ahead()
            index = self.entries[-1][0] + 1 if self.entries else 1
            entry = (index, 5, bytes([index % 251]) * size)
            self.entries.append(entry)
            self.tail.append(*entry)

    def truncate(self, index: int) -> None:
        self.entries = [entry for entry in self.entries if entry[0] < index]
        self.tail.truncated(index)

    def wait_ahead(self) -> None:
        """Until segments are ready, or none can be made."""
        pool = self.tail._pool
        wait_until(
            lambda: (
                len(pool._ready) == 2
                or pool.bytes + SEGMENT > pool._bytes_max
                or pool._error
                or not self.files.goes_on.is_set()
            )
        )

    def killed(self, cut: int = 0) -> tuple[list[Entry], str | None]:
        while True:
            try:
                loaded = self.files.load(LIFE, cut)
                break
            except FilesUnreadable:  # the thread has removed a file since it was listed
                time.sleep(0.001)
        return [entry for entry in loaded.entries if entry[0] > cut], loaded.flaw

    def assert_forgets_nothing(self, cut: int = 0) -> None:
        expected = [entry for entry in self.entries if entry[0] > cut]
        assert self.killed(cut) == (expected, None)
        assert self.tail.whole


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "SEGMENT_BYTES", SEGMENT)
    monkeypatch.setattr(tail_module, "_RETRY_S", 0.01)


@pytest.fixture
def files(directory: DataDirectory) -> SlowFiles:
    return SlowFiles(directory)


@pytest.fixture
def log(files: SlowFiles) -> Iterator[Log]:
    one = Log(files)
    yield one
    files.goes_on.set()
    assert one.tail.close()


def test_every_entry_is_there_as_soon_as_append_returns(log: Log) -> None:
    log.begin()
    for _ in range(100):
        log.add()
        log.assert_forgets_nothing()
    assert len(list(log.files.path.glob("*.tail"))) > 3


def test_what_the_log_holds_at_its_start_is_kept_first(log: Log) -> None:
    log.tail.begin(7, [(8, 2, b"eight"), (9, 3, b"nine")])
    assert log.killed(7) == ([(8, 2, b"eight"), (9, 3, b"nine")], None)
    log.tail.append(10, 3, b"ten")
    assert log.killed(8) == ([(9, 3, b"nine"), (10, 3, b"ten")], None)


def test_truncations_and_restarts_are_kept_like_entries(log: Log) -> None:
    log.begin()
    log.add(5)
    log.truncate(3)
    log.assert_forgets_nothing()
    log.add(2)
    log.assert_forgets_nothing()
    log.tail.restarted(50)
    log.tail.append(51, 6, b"x")
    assert not log.tail.whole
    assert log.killed(cut=0)[1] is not None
    log.tail.persisted(50)
    assert log.tail.whole
    assert log.killed(cut=50) == ([(51, 6, b"x")], None)
    assert log.pressed == 1


def test_segments_that_the_disk_has_passed_are_removed(log: Log) -> None:
    log.begin()
    for _ in range(20):
        log.add(30)
        log.tail.persisted(log.entries[-1][0])
        log.assert_forgets_nothing(cut=log.entries[-1][0])
    pool = log.tail._pool
    wait_until(lambda: not pool._dropped and len(pool._ready) == 2)
    there = list(log.files.path.glob("*.tail"))
    assert len(there) <= 4
    assert sum(path.stat().st_size for path in there) == log.tail.counters["tail_bytes"]
    assert log.tail.counters["tail_gaps"] == 0


def test_an_entry_larger_than_a_segment_gets_one_of_its_own(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How long the loop may wait for it is a promise about time; on a busy machine it is too short.
    monkeypatch.setattr(tail_module, "_LARGE_WAIT_S", 10)
    log.begin()
    log.add(3)
    log.add(size=3 * SEGMENT, ahead=False)
    log.add(3)
    log.assert_forgets_nothing()


def test_a_tail_that_could_not_begin_can_be_closed(files: SlowFiles) -> None:
    log = Log(files)
    files.error = OSError("full")
    with pytest.raises(OSError, match="full"):
        log.begin()
    assert log.tail.close()


class TestWhenTheDiskDoesNotKeepUp:
    def test_no_append_waits_and_the_gap_is_told(self, log: Log) -> None:
        log.begin()
        log.wait_ahead()
        log.files.goes_on.clear()
        started = time.monotonic()
        log.add(200)
        assert time.monotonic() - started < 0.5
        assert not log.tail.whole
        assert log.tail.counters["tail_gaps"] == 1
        entries, flaw = log.killed()
        assert flaw == "the disk was too slow for the tail"
        assert entries == log.entries[: len(entries)]

    def test_it_is_whole_again_when_the_disk_has_passed_the_gap(self, log: Log) -> None:
        log.begin()
        log.wait_ahead()
        log.files.goes_on.clear()
        log.add(200)
        log.files.goes_on.set()
        log.wait_ahead()
        log.add(3)
        assert not log.tail.whole, "what is in the gap is nowhere yet"
        assert log.killed(cut=0)[1] is not None
        log.tail.persisted(199)
        assert log.killed(cut=199)[1] is not None
        log.tail.persisted(200)
        log.assert_forgets_nothing(cut=200)
        assert log.pressed > 0

    def test_it_needs_no_further_append_to_become_whole(self, log: Log) -> None:
        log.begin()
        log.wait_ahead()
        log.files.goes_on.clear()
        log.add(200)
        log.truncate(190)
        log.files.goes_on.set()
        log.wait_ahead()
        log.tail.persisted(189)
        log.assert_forgets_nothing(cut=189)

    def test_a_full_disk_is_a_gap_too_and_is_tried_again(self, log: Log) -> None:
        log.begin()
        log.wait_ahead()
        log.files.error = OSError(28, "No space left on device")
        log.add(200)
        assert log.killed()[1] is not None
        assert log.tail.counters["tail_errors"] > 0
        log.files.error = None
        wait_until(lambda: log.tail._pool._ready)
        log.add()
        log.tail.persisted(200)
        log.assert_forgets_nothing(cut=200)

    def test_where_there_is_little_room_it_presses_before_that_is_gone(self, log: Log) -> None:
        log.begin()
        log.add(100)
        assert log.pressed == 0
        log.files.free = tail_module._SPARE_BYTES + 2 * SEGMENT
        log.add(60)
        assert log.pressed > 0
        assert log.tail.whole

    def test_the_bound_holds_and_presses_first(self, log: Log) -> None:
        log.begin()
        log.add(1000)
        assert log.pressed > 0
        assert not log.tail.whole
        sizes = sum(path.stat().st_size for path in log.files.path.glob("*.tail"))
        assert sizes <= BYTES_MAX
        log.tail.persisted(1000)
        wait_until(lambda: log.tail._pool._ready)
        log.add()
        log.tail.persisted(1001)
        log.assert_forgets_nothing(cut=1001)

    def test_a_log_that_restarts_within_a_gap_is_whole_when_the_disk_has_that(
        self, log: Log
    ) -> None:
        log.begin()
        log.wait_ahead()
        log.files.goes_on.clear()
        log.add(200)
        log.tail.restarted(300)
        log.files.goes_on.set()
        log.wait_ahead()
        log.tail.persisted(300)
        assert log.tail.whole
        assert log.killed(cut=300) == ([], None)


@pytest.mark.parametrize("_", range(5))
def test_whatever_happens_a_killed_node_knows_all_or_knows_that_it_does_not(
    directory: DataDirectory, _: int
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    files = SlowFiles(directory)
    log = Log(files).begin()
    cut = 0
    whole = 0
    for _ in range(400):
        step = chance.random()
        if step < 0.6:
            log.add(chance.randrange(1, 8), chance.choice([0, 10, 300, 900]), ahead=False)
        elif step < 0.75 and log.entries and log.entries[-1][0] > cut:
            log.truncate(chance.randint(cut + 1, log.entries[-1][0]))
            log.add()
        elif step < 0.85:
            cut = chance.randint(cut, max(cut, log.entries[-1][0] if log.entries else 0))
            log.tail.persisted(cut)
        elif step < 0.9:
            files.goes_on.clear()
        else:
            files.goes_on.set()
        entries, flaw = log.killed(cut)
        if flaw is None:
            whole += 1
            assert entries == [entry for entry in log.entries if entry[0] > cut]
        assert (flaw is None) == log.tail.whole
    files.goes_on.set()
    assert log.tail.close()
    assert whole > 20


KILLED = """
import sys
from node.persistence.directory import DataDirectory
from node.persistence.tail import Tail
from node.persistence.tail_files import TailFiles

tail = Tail(TailFiles(DataDirectory(sys.argv[1])), 3, 1 << 28, lambda: None)
tail.begin(0, [])
index = 0
while True:
    index += 1
    tail.append(index, 1, index.to_bytes(4, "big") * (index % 500))
    sys.stdout.buffer.raw.write(index.to_bytes(4, "big"))
    if index % 1000 == 0:
        tail.persisted(index - 500)
"""


def test_kill_9_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    for _ in range(5):
        path = tmp_path / "data"
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, cwd=os.getcwd()
        )
        assert process.stdout is not None
        told = process.stdout.read(4 * random.randrange(1, 20_000))
        process.send_signal(signal.SIGKILL)
        told += process.stdout.read()
        process.stdout.close()
        process.wait(10)
        last = int.from_bytes(told[-4:], "big")
        cut = max(0, last // 1000 * 1000 - 500)
        with DataDirectory(path) as directory:
            loaded = TailFiles(directory).load(3, max(cut, 0))
        assert loaded.flaw is None
        found = {index: entry for index, _, entry in loaded.entries}
        for index in range(cut + 1, last + 1):
            assert found[index] == index.to_bytes(4, "big") * (index % 500)
        assert len(loaded.entries) <= last - cut + 2
        for one in (path / "tail").iterdir():
            one.unlink()
