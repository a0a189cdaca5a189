"""The tail while the node runs: what the log takes in is in a file before anyone hears of it.

The log calls `append` before it sends, acknowledges or counts an entry, so what this module does
inside that call is done in time. It copies the record into a mapped file and moves the file's end:
about a microsecond and no system call, and it outlives the process, because the pages are the
kernel's. It does not outlive the machine; there is no fsync.

It must not wait for the disk. Where the file is in memory (see `tail_files`) it never does; else
all that could wait is done ahead, as far as it can be, in a thread of its own. The thread
keeps `_AHEAD` further segments ready, and removes those that the disk has passed (`persisted`). If
the next segment is not ready when it is needed (the disk stalls, or is full, or the tail is at
`bytes_max`), the entry is left out, and the segment says so: the tail has a *gap*. The node goes
on, but if it is killed now it starts as one that has forgotten. As soon as a segment is ready the
tail begins anew behind the last entry, and it is whole when the disk reaches that.

Two things make a gap unlikely. Above half of `bytes_max` each further segment asks for a
persistence cycle (`pressed`). And an entry larger than a segment gets one of its own size: for
that, which is rare and costs the loop more elsewhere, `append` waits, at most `_LARGE_WAIT_S`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from zlib import crc32

from node.persistence.tail_files import LiveSegment, TailFiles
from node.persistence.tail_format import (
    CLOSED,
    END_AT,
    GAP,
    RECORD,
    RECORD_SEALED,
    RECORDS_AT,
    STATE_AT,
    WORD,
    Entry,
    Kind,
    seed,
)

log = logging.getLogger(__name__)

SEGMENT_BYTES = 4 * 1024 * 1024
# At 30 MB/s two segments are a quarter of a second.
_AHEAD = 2
# What the tail leaves free on the disk, for the databases.
_SPARE_BYTES = 2 * 1024 * 1024
_LARGE_WAIT_S = 0.1
_RETRY_S = 1.0
_CLOSE_WAIT_S = 5.0

_END = slice(END_AT, END_AT + WORD.size)
_STATE = slice(STATE_AT, STATE_AT + WORD.size)
_KIND_ENTRY = int(Kind.ENTRY)


class Tail:
    """The tail of one node in one life. All methods belong to the event loop.

    `pressed` is called when the disk should get on with it.
    """

    def __init__(
        self, files: TailFiles, life: int, bytes_max: int, pressed: Callable[[], None]
    ) -> None:
        self._files = files
        self._life = life
        self._pressed = pressed
        self._pool = _Pool(files, life, bytes_max)
        self._full: deque[LiveSegment | _Written] = deque()
        self._current: LiveSegment | None = None
        self._base = 0  # the log up to here is on the disk or nowhere
        self._persisted = 0
        self._last = 0  # the log's last index
        self._top = 0  # the greatest index that was ever in it
        self._gap = False
        self._gaps = 0
        self._at = self._size = RECORDS_AT
        self._seed = 0

    # --- what the log tells ------------------------------------------------------------------

    def begin(self, index: int, entries: Sequence[Entry]) -> None:
        """The log behind `index` is `entries`, whatever was here before.

        Called once, before anything else. Blocks. Raises `OSError`.
        """
        path = self._files.write(self._life, index, entries)
        self._base = self._persisted = index
        self._last = self._top = entries[-1][0] if entries else index
        self._full.append(_Written(path, path.stat().st_size, self._top))
        self._use(self._pool.first(path.stat().st_size))

    def append(self, index: int, term: int, entry: bytes) -> None:
        """The log has taken in an entry. Never waits, but see above for large ones."""
        if self._gap and not self._resume():
            self._last = index
            return
        self._last = index
        if index > self._top:
            self._top = index
        self._record(_KIND_ENTRY, index, term, entry)

    def truncated(self, index: int) -> None:
        """The log has dropped what it had from `index` on."""
        self._last = index - 1
        self._base = min(self._base, index - 1)
        if not self._gap:
            self._record(Kind.TRUNCATED, index, 0)

    def restarted(self, index: int) -> None:
        """The log begins anew behind `index`, with nothing; what is before it came another way."""
        self._last = self._base = index
        self._top = max(self._top, index)
        if not self._gap:
            self._record(Kind.START, index, 0)
        self._pressed()

    def persisted(self, index: int) -> None:
        """This node's disk reaches up to `index`: what stands before it need not be here."""
        was_whole, self._persisted = self.whole, max(self._persisted, index)
        # The last one with records stays until the next has some: they tell where the tail begins.
        while self._at > RECORDS_AT and self._full and self._full[0].top <= index:
            self._pool.drop(self._full.popleft())
        if self._gap:
            self._resume()
        if self.whole and not was_whole:
            log.info("the tail is whole again")

    # --- looking -----------------------------------------------------------------------------

    @property
    def whole(self) -> bool:
        """Whether the node, were it killed now, would find all of its log again."""
        return not self._gap and self._persisted >= self._base

    @property
    def counters(self) -> Mapping[str, int]:
        """Numbers for the metrics; `tail_whole` is 0 or 1."""
        return {
            "tail_whole": int(self.whole),
            "tail_bytes": self._pool.bytes,
            "tail_gaps": self._gaps,
            "tail_errors": self._pool.errors,
        }

    def close(self) -> bool:
        """End the thread; False if the disk holds it up. The files stay as they are.

        May also be called where `begin` has failed.
        """
        ended = self._pool.close()
        for segment in (*self._full, *filter(None, [self._current])):
            segment.unmap()
        return ended

    # --- writing -----------------------------------------------------------------------------

    def _record(self, kind: int, index: int, term: int, entry: bytes = b"") -> None:
        end = self._at + RECORD.size + len(entry)
        if end > self._size:
            if not self._advance(RECORD.size + len(entry)):
                self._leave_gap(index)
                return
            end = self._at + RECORD.size + len(entry)
        sealed = RECORD_SEALED.pack(len(entry), kind, index, term)
        checksum = crc32(entry, crc32(sealed, self._seed))
        body = self._at + RECORD.size
        self._map[self._at : body] = RECORD.pack(len(entry), checksum, kind, index, term)
        self._map[body:end] = entry
        # The record counts from here on: eight aligned bytes change at once.
        self._map[_END] = WORD.pack(end)
        self._at = end

    def _advance(self, needed: int) -> bool:
        """Go on in the next segment that has room; False if none is ready."""
        large = RECORDS_AT + needed > SEGMENT_BYTES
        if large:
            self._pool.want(RECORDS_AT + needed)
        while (segment := self._pool.take()) is not None:
            self._map[_STATE] = WORD.pack(CLOSED)
            self._put_by()
            self._use(segment)
            if RECORDS_AT + needed <= segment.size:
                return True
        return False

    def _leave_gap(self, index: int) -> None:
        self._map[_STATE] = WORD.pack(GAP)
        self._gap = True
        self._gaps += 1
        log.warning(
            "the tail has a gap from index %d on (%s): if this process is killed before the disk "
            "has caught up, it comes back as one that has forgotten",
            index,
            self._pool.trouble(),
        )

    def _resume(self) -> bool:
        """Begin the tail anew behind the log's last entry, if there is a segment for it."""
        segment = self._pool.take()
        if segment is None:
            return False
        self._put_by()
        self._use(segment)
        self._gap = False
        self._base, self._top = self._last, max(self._top, self._last)
        self._record(Kind.START, self._last, 0)
        self._pressed()
        return True

    def _put_by(self) -> None:
        assert self._current is not None
        self._current.top = self._top
        self._full.append(self._current)

    def _use(self, segment: LiveSegment) -> None:
        self._current = segment
        self._map, self._size = segment.map, segment.size
        self._at = RECORDS_AT
        self._seed = seed(self._life, segment.sequence)
        if self._pool.is_filling_up:
            self._pressed()


class _Written:
    """The segment with which a life began; it is not mapped."""

    def __init__(self, path: Path, size: int, top: int) -> None:
        self.path, self.size, self.top = path, size, top

    def unmap(self) -> None:
        """There is nothing to let go of."""


class _Pool:
    """Segments made and removed ahead of need, by a thread.

    `bytes` is the size of all segments that are there; only the thread changes it.
    """

    def __init__(self, files: TailFiles, life: int, bytes_max: int) -> None:
        self._files = files
        self._life = life
        self._bytes_max = bytes_max
        self._room = bytes_max  # for all segments: the bound, or what there is
        self._ready: deque[LiveSegment] = deque()
        self._dropped: deque[LiveSegment | _Written] = deque()
        self._sequence = 2  # the first is the one with which the life began
        self._wanted = 0
        self._served = threading.Event()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="tail", daemon=True)
        self._error: str | None = None
        self.errors = 0
        self.bytes = 0

    # --- the loop's side ---------------------------------------------------------------------

    def first(self, bytes_before: int) -> LiveSegment:
        """Make the first segment here and now, and start the thread. Raises `OSError`."""
        self.bytes = bytes_before
        segment = self._create(SEGMENT_BYTES)
        self._thread.start()
        return segment

    def take(self) -> LiveSegment | None:
        """The next segment, if one is ready."""
        if not self._ready:
            return None
        self._wake.set()
        return self._ready.popleft()

    def want(self, size: int) -> None:
        """Ask for a segment of another size, and wait a little for it."""
        if any(segment.size >= size for segment in list(self._ready)):
            return
        self._served.clear()
        self._wanted = size
        self._wake.set()
        self._served.wait(_LARGE_WAIT_S)

    def drop(self, segment: LiveSegment | _Written) -> None:
        """A segment is no longer needed."""
        self._dropped.append(segment)
        self._wake.set()

    @property
    def is_filling_up(self) -> bool:
        """Whether more than half of the bound, or of what the disk has for it, is used."""
        return self.bytes > self._room // 2

    def trouble(self) -> str:
        """Why nothing is ready, as far as is known."""
        if self._error is not None:
            return self._error
        if self.bytes + SEGMENT_BYTES > self._bytes_max:
            return f"it holds {self.bytes} of at most {self._bytes_max} bytes"
        return "the disk does not keep up"

    def close(self) -> bool:
        """End the thread; False if it does not end in time."""
        self._closing = True
        self._wake.set()
        if self._thread.ident is None:
            return True  # it was never started
        self._thread.join(_CLOSE_WAIT_S)
        return not self._thread.is_alive()

    # --- the thread's side -------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            try:
                self._remove_dropped()
                self._prepare()
                self._error = None
            except OSError as error:
                self._failed(error)
            self._wake.wait(_RETRY_S)
            self._wake.clear()

    def _remove_dropped(self) -> None:
        while self._dropped:
            segment = self._dropped[0]
            # Unmapped first: the last to let go of a removed file waits for the disk, and that
            # must be the removal, which lets other threads run.
            segment.unmap()
            self._files.remove(segment.path)
            self.bytes -= segment.size
            self._dropped.popleft()

    def _prepare(self) -> None:
        wanted, self._wanted = self._wanted, 0
        try:
            if wanted:
                self._add(wanted)
        finally:
            self._served.set()
        while len(self._ready) < _AHEAD and not self._closing and self._add(SEGMENT_BYTES):
            pass

    def _add(self, size: int) -> bool:
        """Make one more segment, if it fits into the bound."""
        if self.bytes + size > self._bytes_max:
            return False
        free = self._files.free_bytes() - _SPARE_BYTES
        self._room = min(self._bytes_max, self.bytes + max(free, 0))
        if free < size:
            raise OSError("the disk is nearly full")
        self._ready.append(self._create(size))
        return True

    def _create(self, size: int) -> LiveSegment:
        segment = self._files.create(self._life, self._sequence, size)
        self._sequence += 1
        self.bytes += size
        return segment

    def _failed(self, error: OSError) -> None:
        self.errors += 1
        if self._error is None:
            log.warning("the tail cannot be written ahead, will try again: %s", error)
        self._error = str(error)
