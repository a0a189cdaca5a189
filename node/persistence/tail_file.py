"""The tail file: raft log entries that the database does not cover yet.

At a clean stop the whole tail of the log, also what is not committed, goes here, so that the next
start has forgotten nothing. The file is a header and then one record an entry:

    header   magic, format version, number of records, CRC-32 of those
    record   length, index, term, CRC-32 of the entry, CRC-32 of the four before it | the entry

The head of a record has a checksum of its own, so that a flipped bit in a length is told apart
from a file that simply ends. That distinction is the point of this format. An *end* (the file stops
inside its last record) means that the last writes never reached the disk: the prefix is good.
A *bad checksum with more behind it* is corruption, and reading it as a shorter history would
make the node forget entries that it had acknowledged: that is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from node.persistence.directory import DataDirectory, replace_durably, sync_directory
from node.persistence.faults import FilesUnreadable, FormatTooNew, TailFileDamaged

FORMAT = 1
_MAGIC = b"EXTAIL\r\n"  # the line end shows a file that went through a text conversion
_HEADER = struct.Struct("<8sIQI")
_HEADER_SEALED = struct.Struct("<8sIQ")
_RECORD = struct.Struct("<IQQII")
_RECORD_SEALED = struct.Struct("<IQQI")


@dataclass(frozen=True, slots=True)
class TailEntry:
    """One entry of the raft log, as bytes."""

    index: int
    term: int
    entry: bytes


@dataclass(frozen=True, slots=True)
class LoadedTail:
    """The entries whose checksums hold; `torn`: the file ends before its last record does."""

    entries: list[TailEntry]
    torn: bool


class TailFile:
    """The tail of one node's log. Not safe for two threads."""

    def __init__(self, directory: DataDirectory) -> None:
        self._path = directory.tail_path

    def save(self, entries: Iterable[TailEntry]) -> None:
        """Replace the file by these entries, atomically, fsynced. Blocks. Raises OSError.

        Their indexes must be contiguous. An entry may have up to 4 GiB.
        """
        records = [_encode(entry) for entry in entries]
        sealed = _HEADER_SEALED.pack(_MAGIC, FORMAT, len(records))
        header = sealed + crc32(sealed).to_bytes(4, "little")
        replace_durably(self._path, b"".join((header, *records)))

    def load(self) -> LoadedTail | None:
        """The longest verified prefix; None if there is no file.

        Raises TailFileDamaged for a corruption that is not an end, FormatTooNew, FilesUnreadable.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FilesUnreadable(self._path, f"cannot be read: {error}") from error
        return _Reader(self._path, content).read()

    def drop(self) -> None:
        """Remove the file, durably: from now on the database and the leader are all there is."""
        self._path.unlink(missing_ok=True)
        sync_directory(self._path.parent)


class _Reader:
    """Walks through one file's content."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path = path
        self._content = content
        self._at = _HEADER.size

    def read(self) -> LoadedTail:
        count = self._read_header()
        entries: list[TailEntry] = []
        while len(entries) < count:
            entry = self._read_record()
            if entry is None:
                return LoadedTail(entries, torn=True)
            if entries and entry.index != entries[-1].index + 1:
                raise TailFileDamaged(
                    self._path, f"index {entry.index} follows {entries[-1].index}"
                )
            entries.append(entry)
        if self._at != len(self._content):
            raise TailFileDamaged(self._path, f"has bytes behind its {count} records")
        return LoadedTail(entries, torn=False)

    def _read_header(self) -> int:
        if len(self._content) < _HEADER.size:
            raise TailFileDamaged(self._path, "is shorter than its header")
        magic, version, count, checksum = _HEADER.unpack_from(self._content)
        if crc32(self._content[: _HEADER_SEALED.size]) != checksum or magic != _MAGIC:
            raise TailFileDamaged(self._path, "has a damaged header")
        if version > FORMAT:
            raise FormatTooNew(self._path, f"has format {version}; this version knows {FORMAT}")
        return int(count)

    def _read_record(self) -> TailEntry | None:
        """The next entry, or None where the file ends inside it."""
        start = self._at
        if len(self._content) - start < _RECORD.size:
            return None
        length, index, term, entry_checksum, checksum = _RECORD.unpack_from(self._content, start)
        if crc32(self._content[start : start + _RECORD_SEALED.size]) != checksum:
            raise TailFileDamaged(self._path, f"has a damaged record at byte {start}")
        self._at = start + _RECORD.size + length
        entry = self._content[start + _RECORD.size : self._at]
        if len(entry) < length:
            return None
        if crc32(entry) != entry_checksum:
            raise TailFileDamaged(self._path, f"has a damaged entry {index} at byte {start}")
        return TailEntry(index, term, entry)


def _encode(entry: TailEntry) -> bytes:
    sealed = _RECORD_SEALED.pack(len(entry.entry), entry.index, entry.term, crc32(entry.entry))
    return sealed + crc32(sealed).to_bytes(4, "little") + entry.entry
