"""The history: what clients did and were told, one JSON object a line.

It is written while the nodes are tormented and judged afterwards (`checker`), so it holds what a
client saw and nothing that it concluded. Times are seconds of one monotonic clock, that of the
process in which all clients run, so "before" means before.

    {"op": "append", "ids": [..], "stream", "expected", "sent", "done", "outcome",
     "first", "positions", "over", "strange"}
        outcome   acknowledged | refused | unknown. Refused: every attempt was refused with the
                  promise that nothing was stored. Unknown: some attempt had no certain end, and
                  none was acknowledged.
        sent      of the first attempt; done: of the last one.
        over      whether it was refused because the stream was deleted for ever.
        strange   an answer that no client may ever get, such as 500 or a reused id; else null.
    {"op": "read", "reader", "level", "node", "sent", "done", "after", "head", "token", "events"}
        level     local | linearizable | session: a session brings the greatest head that it has
                  seen as `token` (min_position).
        events    [position, id] each.
    {"op": "snapshot", "source", "version", "id", "sent", "outcome", "strange"}
        id        what its data follow from; null where it was deleted.
    {"op": "snapshot_read", "source", "version", "id"}
        linearizable; id is null where there was none.
    {"op": "removal", "stream", "what", "expected", "limits", "outcome", "floats", "status",
     "first", "strange"}
        what      delete | end | limit: softly, for ever, or by metadata, which is `limits`.
        floats    some try had no certain end: it may be carried out at any later time.
        status    of the last answer, null if there was none; first: the first number that is kept.
    {"op": "stream_read", "stream", "status", "version", "events"}
        linearizable and complete; events are [number, id] each.

The data of an event follows from its id (`content_of`), so that the checker knows it unrecorded.

Bounds: lines wait in memory until there are `LINES_MAX` or `flush` is called.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

ACKNOWLEDGED, REFUSED, UNKNOWN = "acknowledged", "refused", "unknown"
LOCAL, LINEARIZABLE, SESSION = "local", "linearizable", "session"
EVENT_TYPE = "ChaosHappened"
SHARED_TYPE = "ChaosShared"
"""Of the events that the consumers of `consumers_beside` want."""
MORTAL_PREFIX = "mortal-"
"""Of the streams from which events are removed: those of `removers`, and no others."""
LINES_MAX = 1_000

_PADDING_BYTES_MAX = 400


class History:
    """Appends records to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")
        self._lines: list[str] = []

    def record(self, entry: Mapping[str, Any]) -> None:
        """Write one record down, sooner or later."""
        self._lines.append(json.dumps(entry, separators=(",", ":")))
        if len(self._lines) >= LINES_MAX:
            self.flush()

    def flush(self) -> None:
        """Hand all that waits to the system."""
        self._file.writelines(line + "\n" for line in self._lines)
        self._lines.clear()
        self._file.flush()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flush()
        self._file.close()


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, in the order in which they were written."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def content_of(event_id: str) -> dict[str, Any]:
    """The data of the event with this id: sizes differ, and any byte that changes shows."""
    length = zlib.crc32(event_id.encode()) % _PADDING_BYTES_MAX
    return {"id": event_id, "padding": (event_id * (length // len(event_id) + 1))[:length]}
