"""Damage to every kind of file, byte by byte: what is served is true, or the damage has a name.

A directory is copied while its worker runs, as a crash would leave it, with its WALs. Then each
damage is done to a fresh copy, and the copy is loaded. Loading may give the state at the last cut,
or an earlier one if that is said, or nothing at all with the files set aside; and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from node.persistence.directory import DataDirectory
from node.persistence.faults import FileFault
from node.persistence.loader import load_state
from node.persistence.wal import kept_if_damaged
from tests.persistence.histories import History, contents
from tests.persistence.test_lost_files import HOLDS
from tests.persistence.test_worker import FOLDS_FOR_EVER
from tests.persistence.workers import beside, flush, settings, working

CYCLES = 6
PAGE = 16 * 1024
LAST_RECORDS_BYTES = 3 * (24 + PAGE)  # of a WAL: three frames

Damage = Callable[[bytes], bytes]


class Image(NamedTuple):
    """A directory as a crash left it, and what was true at each cut."""

    path: Path
    truth: dict[int, dict[str, Any]]

    @property
    def last(self) -> int:
        return max(self.truth)

    def last_frames(self, store: str, count: int) -> list[bytes]:
        """The last events of a store."""
        rows = self.truth[self.last][store][3]
        return [row[5] for row in rows[-count:]]

    def file(self, kind: str) -> Path:
        """The file of a kind: `node.db`, `node.db-wal`, `store`, `store-wal`."""
        if kind.startswith("node"):
            return self.path / kind
        (file,) = (self.path / "stores").glob(f"alpha.*.{kind.replace('store', 'db')}")
        return file


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Two stores and several cycles, some of them already folded into the databases."""
    return asyncio.run(_crashed(tmp_path_factory.mktemp("crashed")))


async def _crashed(place: Path) -> Image:
    history, truth = History(), {0: {}}
    with DataDirectory(place / "data") as directory:
        async with working(history, directory, settings=settings()) as worker:
            for cycle in range(CYCLES):
                if cycle == 0:
                    history.create("alpha")
                    history.create("beta")
                history.append("alpha", f"stream-{cycle}", count=3)
                history.checkpoint("alpha", "reader", cycle + 1)
                if cycle % 2:
                    history.append("beta", "b", count=2)
                await flush(worker, history)
                truth[history.index] = contents(history.state)
                if cycle == 2:
                    await worker._in_thread(_fold, worker)
            shutil.copytree(directory.path, place / "image")
    return Image(place / "image", truth)


def _fold(worker: Any) -> None:
    for file in (worker._database._node, *worker._database._files.values()):
        file.checkpoint_wal()


class Judge:
    """Loads damaged copies of an image, and counts what comes of it."""

    def __init__(self, image: Image, place: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.verdicts: Counter[str] = Counter()
        self._image = image
        self._place = place / "copy"
        self._caplog = caplog

    def judge(self, kind: str, damage: Damage) -> str:
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(self._image.path, self._place)
        target = Image(self._place, {}).file(kind)
        target.write_bytes(damage(target.read_bytes()))
        self._caplog.clear()
        verdict = self._load(target)
        self.verdicts[verdict] += 1
        return verdict

    def _load(self, target: Path) -> str:
        with DataDirectory(self._place) as directory:
            try:
                loaded = load_state(directory)
            except FileFault as fault:
                assert fault.path.parent == target.parent
                return "refused"
        if loaded.lost:
            assert loaded.set_aside
            assert self._place.name in self._caplog.text, "the log names a file"
        if loaded.lost and not loaded.state.stores:
            return "set aside"
        loaded.state.check()
        assert contents(loaded.state) == self._image.truth[loaded.cut_index]
        if loaded.cut_index == self._image.last:
            return "whole, and doubted" if loaded.lost else "whole"
        return "older, and doubted" if loaded.lost else "older"


@pytest.fixture
def judge(image: Image, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Judge]:
    judge = Judge(image, tmp_path, caplog)
    with caplog.at_level(logging.WARNING):
        yield judge
    print(dict(judge.verdicts))


def seeded() -> random.Random:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


def flipped(at: int, bit: int) -> Damage:
    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[at] ^= 1 << bit
        return bytes(changed)

    return damage


KINDS = ["node.db", "node.db-wal", "store", "store-wal"]


def test_without_damage_the_image_is_whole(judge: Judge) -> None:
    assert {judge.judge(kind, bytes) for kind in KINDS} == {"whole"}


@pytest.mark.parametrize("places", [1, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_harmless_or_found(judge: Judge, kind: str, places: int) -> None:
    chance = seeded()
    for at in chance.sample(range(judge._image.file(kind).stat().st_size), places):
        for bit in range(8):
            judge.judge(kind, flipped(at, bit))
    assert judge.verdicts.keys() <= {"whole", "refused", "set aside", "older, and doubted"}


@pytest.mark.parametrize("kind", ["node.db", "store"])
def test_a_schema_that_is_no_text_any_more_is_found(judge: Judge, kind: str) -> None:
    """What SQLite says of it quotes it, and cannot be decoded either."""
    content = judge._image.file(kind).read_bytes()
    at = content.rindex(b"CREATE TABLE")
    for place in (at, at + 7, at + 14):
        assert judge.judge(kind, flipped(place, 7)) == "set aside"


@pytest.mark.parametrize(
    ("in_header", "in_page", "bits"), [(5, 5, 1), pytest.param(24, 100, 8, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", ["node.db-wal", "store-wal"])
def test_a_flipped_bit_in_the_last_commit_of_a_wal_is_never_taken_for_its_end(
    judge: Judge, kind: str, in_header: int, in_page: int, bits: int
) -> None:
    chance = seeded()
    last_frame = judge._image.file(kind).stat().st_size - PAGE - 24
    header, page = range(24), range(24, 24 + PAGE)
    for at in chance.sample(header, in_header) + chance.sample(page, in_page):
        for bit in chance.sample(range(8), bits):
            verdict = judge.judge(kind, flipped(last_frame + at, bit))
            assert verdict in ("older, and doubted", "set aside"), (at, bit)


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_no_bit_of_the_last_three_events_can_flip_unnoticed(judge: Judge, bits: int) -> None:
    chance = seeded()
    content = judge._image.file("store-wal").read_bytes()
    for frame in judge._image.last_frames("alpha", 3):
        begin = content.rindex(frame)
        places = range(begin, begin + len(frame))
        for at in places if bits == 8 else chance.sample(places, 2):
            for bit in chance.sample(range(8), bits):
                verdict = judge.judge("store-wal", flipped(at, bit))
                assert verdict in ("older, and doubted", "set aside"), (at, bit)


@pytest.mark.parametrize("step", [9_973, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_ends_early_is_a_true_prefix_or_found(
    judge: Judge, kind: str, step: int
) -> None:
    """A WAL that ends early is an earlier cut, which only the log's tail can tell."""
    size = judge._image.file(kind).stat().st_size
    frames = [size - frame * (24 + PAGE) for frame in range(4)]
    ends = {*range(max(0, size - LAST_RECORDS_BYTES), size, step), *frames, 0, 1, 32}
    for end in sorted(one for one in ends if 0 <= one < size):
        judge.judge(kind, lambda content, end=end: content[:end])
    allowed = {"whole", "refused", "set aside", "older, and doubted"}
    assert judge.verdicts.keys() <= allowed | ({"older"} if "wal" in kind else set())


@pytest.fixture
def folded(image: Image, tmp_path: Path) -> Image:
    """The same without WALs, as a start leaves it."""
    shutil.copytree(image.path, tmp_path / "folded")
    with DataDirectory(tmp_path / "folded") as directory:
        assert not load_state(directory).lost
    return Image(tmp_path / "folded", image.truth)


def count_of_rows(path: Path, table: str) -> int:
    """Where a table's root page says how many rows are on it, if none are elsewhere."""
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)
        ).fetchone()
    return (int(root) - 1) * PAGE + 4


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        *[("node.db", table) for table in ("cut", "stores")],
        *[("store", table) for table in ("cuts", "blocks", "streams", "types", "checkpoints")],
    ],
)
def test_a_page_that_has_lost_rows_is_found(
    folded: Image, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, table: str
) -> None:
    """A bit of the count is enough, and SQLite reads what the count says."""
    judge = Judge(folded, tmp_path, caplog)
    at = count_of_rows(folded.file(kind), table)
    held = folded.file(kind).read_bytes()[at]
    fewer = [bit for bit in range(8) if held & (1 << bit)]
    assert fewer
    for bit in fewer:
        assert judge.judge(kind, flipped(at, bit)) in ("set aside", "older, and doubted"), bit


async def test_a_good_wal_is_not_called_damaged_while_another_process_folds_it(
    image: Image, tmp_path: Path
) -> None:
    shutil.copytree(image.path, tmp_path / "read")
    path = Image(tmp_path / "read", {}).file("store")
    with closing(sqlite3.connect(path)) as reader, DataDirectory(tmp_path / "read") as directory:
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        async with beside(FOLDS_FOR_EVER, f"{path}-shm"):
            loaded = load_state(directory)
    assert (loaded.cut_index, loaded.lost, loaded.set_aside) == (image.last, False, [])


@pytest.mark.parametrize("kind", ["node.db", "store"])
def test_a_wal_is_looked_at_without_folding_it(image: Image, tmp_path: Path, kind: str) -> None:
    """Folding can fail, and takes away what was not looked at: the one that is damaged, too."""
    shutil.copytree(image.path, tmp_path / "read")
    path = Image(tmp_path / "read", {}).file(kind)
    before = path.read_bytes()
    with closing(sqlite3.connect(path)) as reader:
        # So the WAL outlives a closing.
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        assert kept_if_damaged(path, Path) is None
        assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["node.db-wal", "store-wal"])
@pytest.mark.parametrize("page_bytes", [0, PAGE // 2])
def test_a_commit_that_was_being_written_is_no_damage(
    judge: Judge, kind: str, page_bytes: int
) -> None:
    """The process was killed behind the header of the frame that commits, or its disk was full."""

    def begun(wal: bytes) -> bytes:
        head = struct.pack(">6I", 1, 9, *struct.unpack_from(">2I", wal, 16), 0, 0)
        return wal + head + b"x" * page_bytes

    assert judge.judge(kind, begun) == "whole"


@pytest.mark.parametrize("kind", ["node.db-wal", "store-wal"])
async def test_a_commit_that_was_being_synced_is_no_damage_while_another_process_reads(
    tmp_path: Path, kind: str
) -> None:
    """The reader's index, which outlives the killed process, does not count it yet."""
    history = History()
    with DataDirectory(tmp_path / "data") as directory:
        async with working(history, directory, settings=settings()) as worker:
            history.create("alpha")
            history.append("alpha")
            await flush(worker, history)
            image = Image(tmp_path / "image", {})
            shutil.copytree(directory.path, image.path)
            expected = contents(history.state)
            history.append("alpha")
            await flush(worker, history)
            later = Image(directory.path, {}).file(kind).read_bytes()
    read = image.file(kind.removesuffix("-wal"))
    async with beside(HOLDS, str(read)):
        assert later.startswith(image.file(kind).read_bytes())
        image.file(kind).write_bytes(later)
        with DataDirectory(image.path) as directory:
            loaded = await asyncio.to_thread(load_state, directory)
    assert (loaded.lost, loaded.set_aside) == (False, [])
    assert contents(loaded.state) == expected


@pytest.mark.parametrize("kind", ["node.db", "store"])
def test_a_wal_that_its_last_reader_folds_during_the_look_is_not_called_damaged(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """SQLite folds it as the reader closes, and removes it: who wrote it was killed."""
    place = Image(tmp_path / "copy", {})
    shutil.copytree(image.path, place.path)
    read, pipes = place.file(kind), {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    program = [sys.executable, "-c", HOLDS + "other.close()\n", read]
    with subprocess.Popen(program, text=True, **pipes) as reader:  # type: ignore[call-overload]
        assert reader.stdout.readline() == "ready\n"

        def connects(path: Path) -> sqlite3.Connection:
            if path == read and reader.poll() is None:
                reader.stdin.close()
                reader.wait(30)
            return sqlite3.connect(path)

        monkeypatch.setattr(
            "node.persistence.wal.sqlite3", SimpleNamespace(connect=connects, Error=sqlite3.Error)
        )
        with DataDirectory(place.path) as directory:
            loaded = load_state(directory)
    assert (loaded.lost, loaded.set_aside) == (False, [])
    assert contents(loaded.state) == image.truth[image.last]
