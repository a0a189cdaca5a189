"""The tail's files: `LIFE-SEQUENCE.tail`, one a segment (see `tail_format`).

A life is an incarnation of the node, and the state file says whose tail counts. So each start
writes what it found anew, as the first segment of its own life, and the tail before stays whole
until the state file names the new one: a process may be killed at any moment of its start, too.

Two kinds of segments. `write` makes one that is complete and never grows: at a start, and at a
clean stop (then fsynced). `create` makes one that grows while the node runs: it is written full of
zeros, so that a full disk shows here and not later, mapped, and every page of the mapping is
touched. Whoever writes records into it then only copies memory. All that may wait for the disk
does so inside system calls that let other threads run; a page fault in Python code would not.

They stand in `DIR/tail`, or, while the node runs, in another directory, which is meant to be in
memory (tmpfs). In a file system on a disk a store to memory may still have to wait: the kernel
makes a page that it has written out read-only, and while the file system is frozen nobody gets it
back. Pages of a tmpfs are never written out. The state file says where the tail of a life stands;
what a clean stop leaves is always in `DIR/tail`, and `load` looks there too.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from node.persistence.directory import DataDirectory, naming, replace_durably, sync_directory
from node.persistence.faults import FilesUnreadable, OtherFormat
from node.persistence.tail_format import (
    CLOSED,
    GAP,
    OPEN,
    Damage,
    Entry,
    Kind,
    Record,
    Replay,
    Segment,
    TooNew,
    header,
    read_segment,
    whole_segment,
)

_SUFFIX = ".tail"
_ZEROS = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class LoadedTail:
    """The log behind the cut. `flaw` says why it may be less than this node has acknowledged."""

    entries: list[Entry]
    flaw: str | None = None
    damaged: Path | None = None


@dataclass(slots=True)
class LiveSegment:
    """A segment that may grow, mapped. `top` is the greatest index in it, once it is closed."""

    path: Path
    sequence: int
    size: int
    map: mmap.mmap
    top: int = 0

    def unmap(self) -> None:
        """Let go of the memory. The file stays."""
        self.map.close()


class TailFiles:
    """The tail's segments. Every method blocks and may raise `OSError`.

    `live` is where segments grow; None is the data directory. `before` is where those of the last
    life did, if that was elsewhere.
    """

    def __init__(
        self, directory: DataDirectory, live: Path | None = None, before: Path | None = None
    ) -> None:
        self.path = directory.tail_path
        self.live = live or self.path
        self._places = list(dict.fromkeys([self.path, self.live, before or self.live]))
        self._directory = directory
        if self.path.is_file():
            directory.set_aside(self.path, "unused")
        self.path.mkdir(exist_ok=True)

    # --- reading -----------------------------------------------------------------------------

    def load(self, life: int, cut: int) -> LoadedTail:
        """What the tail of a life holds from the cut on.

        Raises OtherFormat and FilesUnreadable. Damage is no exception: what stands before it is
        read, and `flaw` names it.
        """
        replay = Replay()
        flaw, damaged = self._replay(life, replay)
        entries, reaches_cut = replay.behind(cut)
        if flaw is None and not reaches_cut:
            flaw = f"the tail begins behind index {cut}, up to which the disk reaches"
        return LoadedTail(entries, flaw, damaged)

    def _replay(self, life: int, replay: Replay) -> tuple[str | None, Path | None]:
        """Read the chain; returns what is wrong with it, and the file that is damaged."""
        before: Segment | None = None
        for path in self._paths(life):
            try:
                segment = self._read(path)
                _check_place(segment, before, path, life)
                for record in segment.records:
                    replay.take(record)
                if segment.damage:
                    raise Damage(segment.damage)
            except Damage as damage:
                return f"{path} {damage}", path
            if segment.records or segment.state != OPEN or before is None:
                last = segment
            before = segment
        if before is None:
            return "there is no tail of an earlier life", None
        if last.state == GAP:
            return "the disk was too slow for the tail", None
        if last.state == CLOSED and last is before:
            return f"{self.path} lacks its last file", None
        return None, None

    def _read(self, path: Path) -> Segment:
        try:
            return read_segment(path.read_bytes())
        except OSError as error:
            raise FilesUnreadable(path, f"cannot be read: {error}") from error
        except TooNew as error:
            raise OtherFormat(path, str(error)) from error

    def _paths(self, life: int) -> list[Path]:
        found = (path for place in self._places for path in place.glob(f"{life}-*{_SUFFIX}"))
        return sorted(found, key=_sequence)

    # --- writing -----------------------------------------------------------------------------

    def write(self, life: int, start: int, entries: Iterable[Entry], last: bool = False) -> Path:
        """Write a whole segment: the log behind `start` is these entries, whatever came before.

        It is the first of a life, and others follow; or (`last`) it ends one, fsynced.
        """
        taken = self._paths(life)
        sequence = _sequence(taken[-1]) + 1 if last and taken else 1
        records = [Record(Kind.START, start, 0)]
        records += [Record(Kind.ENTRY, *entry) for entry in entries]
        content = whole_segment(life, sequence, records, OPEN if last else CLOSED)
        if last:
            path = self.path / _name(life, sequence)
            replace_durably(path, content)
        else:
            path = self.live / _name(life, sequence)
            draft = path.with_suffix(".new")
            with naming(draft):
                draft.write_bytes(content)
            draft.rename(path)
        return path

    def create(self, life: int, sequence: int, size: int) -> LiveSegment:
        """A segment of `size` bytes that can be written without waiting for anything."""
        path = self.live / _name(life, sequence)
        draft = path.with_suffix(".new")
        file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            with naming(draft):
                _write_zeros(file, size)
                mapped = mmap.mmap(file, size)
        finally:
            os.close(file)
        _touch(mapped)
        beginning = header(life, sequence)
        mapped[: len(beginning)] = beginning
        draft.rename(path)
        return LiveSegment(path, sequence, size, mapped)

    def free_bytes(self) -> int:
        """What the disk, or the memory, has left for segments that grow."""
        stat = os.statvfs(self.live)
        return stat.f_bavail * stat.f_frsize

    # --- removing ----------------------------------------------------------------------------

    def remove(self, path: Path) -> None:
        """Remove one segment."""
        path.unlink(missing_ok=True)

    def keep_only(self, life: int, damaged: Path | None = None) -> None:
        """Remove the segments of all other lives; a damaged one is only renamed.

        Drafts of this life are let be: the thread that makes its segments is at work.
        """
        if damaged is not None and damaged.exists():
            if damaged.parent != self.path:
                damaged = Path(shutil.copyfile(damaged, self.path / damaged.name))
            self._directory.set_aside(damaged, "damaged")
        for path in self._files():
            if not path.name.startswith(f"{life}-"):
                path.unlink(missing_ok=True)

    def keep_only_file(self, kept: Path) -> None:
        """Remove all segments but one, durably."""
        for path in self._files():
            if path != kept:
                path.unlink(missing_ok=True)
        sync_directory(self.path)

    def bring_home(self) -> None:
        """Copy what stands elsewhere into the data directory, with which it is to be moved."""
        for path in self._files():
            if path.parent != self.path:
                shutil.copyfile(path, self.path / path.name)

    def _files(self) -> list[Path]:
        found = (path for place in self._places if place.is_dir() for path in place.iterdir())
        return [path for path in found if path.suffix in (_SUFFIX, ".new")]


def _check_place(segment: Segment, before: Segment | None, path: Path, life: int) -> None:
    """Raise `Damage` unless the segment can stand where it does."""
    if (segment.life, segment.sequence) != (life, _sequence(path)):
        raise Damage("has another file's content")
    if before is None:
        return
    if segment.sequence != before.sequence + 1:
        raise Damage("does not follow the file before it")
    goes_on = bool(segment.records) and segment.records[0].kind != Kind.START
    if goes_on and before.state != CLOSED:
        raise Damage("goes on where the file before it was not full")


def _name(life: int, sequence: int) -> str:
    return f"{life}-{sequence:06d}{_SUFFIX}"


def _sequence(path: Path) -> int:
    """The sequence number in a segment's name; 0 if there is none."""
    number = path.stem.partition("-")[2]
    return int(number) if number.isdecimal() else 0


def _write_zeros(file: int, size: int) -> None:
    at = 0
    while at < size:
        at += os.pwrite(file, memoryview(_ZEROS)[: size - at], at)


def _touch(mapped: mmap.mmap) -> None:
    """Make every page of a mapping writable at once, without holding up the other threads.

    Reading zeros into it does that inside one system call.
    """
    zeros = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with memoryview(mapped) as view:
            at = 0
            while at < len(view):
                with view[at:] as rest:
                    at += os.readv(zeros, [rest])
    finally:
        os.close(zeros)
