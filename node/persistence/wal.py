"""Write-ahead logs (SQLite's `…-wal`) from outside: is one on the disk, and is it whole?

**On the disk.** The kernel calls pages clean whose fsync has failed. They are in its cache, where
everybody finds them, and no later fsync writes them. SQLite cannot know: it appends behind the hole
that the disk has there, or folds the WAL into the database, and a loss of power in the midst of it
leaves a part of the one and not all of the other. So `write_wal_again` puts the same bytes into the
same places, which makes the pages dirty, and syncs them. It comes before SQLite opens a file of
which an fsync may have failed, in this process or in one before it.

**Whole.** SQLite reads a WAL up to the first frame whose checksum is wrong, and takes that for its
end: right after a crash in the middle of a write, and a silently shorter history after a flipped
bit. What stands behind that end tells them apart. A process that is killed, or a disk that is full,
leaves whole frames of a transaction that has no commit yet, and perhaps a piece of the next one. If
it is killed while its commit is synced, and another process has the file open, the transaction
stands there whole, and alone: it counts only once it was synced. Any other frame that commits,
behind the end, is a transaction that was complete and can no longer be read; so is a last frame
whose checksum is wrong, whose mark of a commit may be what is damaged. (After a loss of power both
can also be a commit that nobody was told of, because the disk wrote it in another order. That
cannot be told apart, so it is believed to be damage; a node without power has forgotten things
anyway.)

A file that merely ends too early cannot be noticed here. Then the disk has lost what it said was on
it; where the node itself was only killed, its log's tail shows what is missing.

The layout is SQLite's (https://www.sqlite.org/fileformat2.html#walformat): a header of 32 bytes,
then frames of 24 bytes and a page. All frames of one generation carry the header's two salts;
behind them may be frames of an older one, of which both salts are others.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from node.persistence.directory import naming
from node.persistence.faults import StoreDamaged

_HEADER = struct.Struct(">8I")  # magic, version, page bytes, sequence, two salts, two checksums
_FRAME = struct.Struct(">6I")  # page, pages at a commit or 0, two salts, two checksums
_MAGIC_LITTLE, _MAGIC_BIG = 0x377F0682, 0x377F0683  # by the byte order of the checksums
_SEALED_HEADER, _SEALED_FRAME = 24, 8  # bytes of each that its checksum covers
_INDEX_FRAMES = slice(16, 20)  # where the index of a WAL says how many of its frames count
# Of a WAL that is written again this much is in memory at a time.
_PIECE_BYTES = 1024 * 1024


class _Wal(NamedTuple):
    """An open WAL, and what its header says."""

    file: BinaryIO
    order: str
    page_bytes: int
    salts: tuple[int, int]
    seal: tuple[int, int]


def wal_path(path: Path) -> Path:
    """Where the WAL of a database stands, if it has one."""
    return path.with_name(path.name + "-wal")


def wal_bytes(path: Path) -> int:
    """How long the WAL of the database at `path` is; 0 if it has none, or cannot be looked at."""
    try:
        return wal_path(path).stat().st_size
    except OSError:
        return 0


def is_emptied(path: Path) -> bool:
    """Whether the database at `path` is an empty file, and has a WAL that is not. No connection may
    be made to it then: SQLite deletes the WAL.
    """
    return _size(path) == 0 and _size(wal_path(path)) > 0


def write_wal_again(path: Path) -> None:
    """Have the disk take all of the WAL of the database at `path`, if it has one.

    Nobody may write to the database meanwhile, so this process must not have it open. Raises
    OSError, which names the WAL.
    """
    wal = wal_path(path)
    try:
        descriptor = os.open(wal, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        with naming(wal):
            _write_again(descriptor)
    finally:
        os.close(descriptor)


def sync_half_a_fold(path: Path) -> None:
    """Have the disk take what a fold wrote to the database at `path` before it was stopped, by
    whatever process. One that was not stopped, and synced, leaves no WAL.

    This process must not have it open: its locks would be given back. Raises OSError, and
    StoreDamaged where the disk refuses: the kernel then calls clean what may be on no disk.
    """
    if not _has_wal(path):
        return
    with open(path, "rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            raise StoreDamaged(path, f"may lack a part of what was folded: {error}") from error


def kept_if_damaged(path: Path, keep: Callable[[Path], Path]) -> Path | None:
    """Look whether the WAL of the database at `path` has lost commits; where `keep` has put it.

    Where no other process has the database open, what can be read of the WAL is then folded into
    it, and the file goes: `keep` is called before that. None where nothing is wrong, or there is no
    WAL, and where the database itself is missing, empty or cannot be opened: whoever loads it will
    say why.
    """
    try:
        if is_emptied(path) or not _has_wal(path):
            return None
        # In this order: until the connection has read, the last one of another process may fold the
        # WAL and remove it as it closes.
        with _frames_believed(path) as believed, open(wal_path(path), "rb") as file:
            return keep(wal_path(path)) if _is_damaged(file, believed) else None
    except (OSError, sqlite3.Error, ValueError):  # the last where SQLite's words are no UTF-8
        return None


def cut_off_unpublished(path: Path) -> None:
    """Have the WAL of the database at `path` end where SQLite believes it does: a commit behind
    that counts again when nobody has the index any more by which it does not.

    Others may read the database meanwhile, and only they. Raises OSError, sqlite3.Error.
    """
    if is_emptied(path) or not _has_wal(path):
        return
    with (
        suppress(FileNotFoundError),  # no index: by a damaged header this is no database with a WAL
        _frames_believed(path) as believed,
        open(wal_path(path), "r+b") as file,
    ):
        wal = _open(file)
        if wal is None:
            return
        end = _HEADER.size + believed * (_FRAME.size + wal.page_bytes)
        if file.seek(0, os.SEEK_END) > end:
            file.truncate(end)
            os.fsync(file.fileno())


def _has_wal(path: Path) -> bool:
    """Whether there is a database, and a WAL beside it."""
    return path.exists() and wal_path(path).exists()


def _size(path: Path) -> int:
    """-1 where there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _write_again(descriptor: int) -> None:
    at = 0
    while piece := os.pread(descriptor, _PIECE_BYTES, at):
        at += os.pwrite(descriptor, piece, at)
    os.fsync(descriptor)


@contextmanager
def _frames_believed(path: Path) -> Iterator[int]:
    """Up to where SQLite believes the WAL of the database at `path`, which is open meanwhile.

    That stands in its index, `…-shm` (https://www.sqlite.org/walformat.html). A checkpoint would
    say so too, but not while another process folds, nor where the disk refuses an fsync. The index
    is closed last, since that gives back the locks that the connection has on it.
    """
    with ExitStack() as last, closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()
        index = last.enter_context(open(f"{path}-shm", "rb"))
        yield int.from_bytes(index.read(_INDEX_FRAMES.stop)[_INDEX_FRAMES], sys.byteorder)


def _is_damaged(file: BinaryIO, believed: int) -> bool:
    wal = _open(file)
    if wal is None:
        return file.seek(0, os.SEEK_END) > 0
    return _ends_in_damage(wal, believed)


def _open(file: BinaryIO) -> _Wal | None:
    """The WAL behind its header; None if it has none that holds."""
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    magic, _, page_bytes, _, *salts_and_seal = _HEADER.unpack(header)
    order = "<" if magic == _MAGIC_LITTLE else ">"
    salts, seal = tuple(salts_and_seal[:2]), tuple(salts_and_seal[2:])
    if magic not in (_MAGIC_LITTLE, _MAGIC_BIG):
        return None
    if _checksum(header[:_SEALED_HEADER], (0, 0), order) != seal:
        return None
    return _Wal(file, order, page_bytes, salts, seal)


def _ends_in_damage(wal: _Wal, believed: int) -> bool:
    last = believed
    for number, commits in _frames_behind(wal, believed):
        if commits:
            return not _is_unpublished(wal, believed, number)
        last = number
    return last > believed and not _holds(wal, last)


def _frames_behind(wal: _Wal, believed: int) -> Iterator[tuple[int, int]]:
    """The whole frames of this generation: their numbers, and the mark of a commit or 0."""
    whole = (wal.file.seek(0, os.SEEK_END) - _HEADER.size) // (_FRAME.size + wal.page_bytes)
    for number in range(believed + 1, whole + 1):
        _, commits, *salts, _, _ = _head(wal, number)
        if salts[0] != wal.salts[0] and salts[1] != wal.salts[1]:
            break
        yield number, commits


def _is_unpublished(wal: _Wal, believed: int, commit: int) -> bool:
    """Whether the first commit behind the end is the last of all frames, and whole: while others
    have the file open, SQLite counts it only after it was synced.
    """
    if next(_frames_behind(wal, commit), None) is not None:
        return False
    return all(_holds(wal, number) for number in range(believed + 1, commit + 1))


def _holds(wal: _Wal, number: int) -> bool:
    """Whether a frame's salts and its checksum are right, given the one before it."""
    before = _head(wal, number - 1)[4:] if number > 1 else wal.seal
    head = _head(wal, number)
    sealed = _FRAME.pack(*head)[:_SEALED_FRAME] + wal.file.read(wal.page_bytes)
    seal = _checksum(sealed, (before[0], before[1]), wal.order)
    return head[2:] == (*wal.salts, *seal)


def _head(wal: _Wal, number: int) -> tuple[int, ...]:
    """What stands before the page of a frame, which is read next."""
    wal.file.seek(_HEADER.size + (number - 1) * (_FRAME.size + wal.page_bytes))
    return _FRAME.unpack(wal.file.read(_FRAME.size))


def _checksum(content: bytes, start: tuple[int, int], order: str) -> tuple[int, int]:
    first, second = start
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for at in range(0, len(words), 2):
        first = (first + words[at] + second) & 0xFFFFFFFF
        second = (second + words[at + 1] + first) & 0xFFFFFFFF
    return first, second
