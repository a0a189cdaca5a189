"""A stream folded on the server, from the latest snapshot of an aggregate and the events since.

What events do to the state stands in `core.folding`. A fold takes no more events than a page of a
read: at most `limit` of them, and no more than `page_bytes_max`. Where that is not the end of the
stream, `is_end` is false: record `state` as a snapshot at `version`, and fold again from there.
Events that were removed are not folded: take a snapshot before you truncate a stream. The keys of
`state` are text in both encodings. Where integers add up to more than a value may be, the fold is
refused; up to there the stream can be folded.
"""

from __future__ import annotations

from typing import Any

import cbor2

from node.api.answers import Answer
from node.api.levels import READ_PROBLEMS, Levels
from node.api.limits import ApiLimits
from node.api.names import source_name
from node.api.pacing import Pacer
from node.api.parameters import integer, page_limit, text
from node.api.reads import stream_of
from node.api.refusals import stream_missing
from node.api.routes import Reply, Route
from node.api.wire import Request
from node.core.fields import NUMBER_MAX
from node.core.folding import SumTooLong, begun, fold
from node.core.frames import decode_frame
from node.core.snapshots import decode_content
from node.core.store import Store
from node.core.stream import Stream
from node.errors import (
    InvalidCount,
    InvalidRequest,
    StreamDeleted,
    StreamMissing,
)


class Folds:
    """The route that folds a stream."""

    def __init__(self, levels: Levels, limits: ApiLimits) -> None:
        self._levels = levels
        self._limits = limits

    def routes(self) -> list[Route]:
        """What this family offers."""
        most = self._limits.events_per_page_max
        return [
            Route(
                "GET",
                "/v1/stores/{store}/streams/{stream}/fold",
                self.fold,
                "Fold a stream into one map, key by key.",
                (Reply(200, "The state, and up to where.", "Fold"),),
                (
                    text("source", "Begin at this aggregate's latest snapshot.", source_name),
                    integer("max_version", "The last event to fold.", default=NUMBER_MAX),
                    page_limit(self._limits, InvalidCount, most),
                    *self._levels.store_parameters,
                ),
                problems=(*READ_PROBLEMS, StreamMissing, StreamDeleted, InvalidRequest),
            )
        ]

    async def fold(self, request: Request, store_name: str, name: str) -> Answer:
        """`GET /v1/stores/{store}/streams/{stream}/fold`."""
        store = await self._levels.store(request, store_name)
        stream = stream_of(store, name)
        if stream is None:
            raise stream_missing(store_name, name)
        given = request.parameters
        last = min(stream.version, given["max_version"])
        state, began = _beginning(store, given["source"], name, last)
        numbers = range(max(began + 1, stream.first), last + 1)[: given["limit"]]
        frames = self._frames(store, stream, numbers)
        pacer, folded = Pacer(), 0
        for number, frame in zip(numbers, frames, strict=False):
            data = cbor2.loads(decode_frame(frame).data)
            if type(data) is dict:
                _fold(state, data, number)
                folded += 1
            await pacer.breathe()
        version = numbers[len(frames) - 1] if frames else last
        body = {
            "stream": name,
            "version": version,
            "state": state,
            "snapshot_version": None if began < 0 else began,
            "folded": folded,
            "skipped": len(frames) - folded,
            "is_end": version >= last,
        }
        media = request.wants
        return Answer(200, media.encode(body), media.type)

    def _frames(self, store: Store, stream: Stream, numbers: range) -> list[bytes]:
        taken: list[bytes] = []
        size = 0
        for number in numbers:
            taken.append(store.frame(stream.positions[number]))
            size += len(taken[-1])
            if size >= self._limits.page_bytes_max:
                break
        return taken


def _fold(state: dict[Any, Any], data: dict[Any, Any], number: int) -> None:
    try:
        fold(state, data)
    except SumTooLong as error:
        words = f"event {number}: {error}; what is before it can be folded, with max_version"
        raise InvalidRequest(words, parameter="max_version") from None


def _beginning(
    store: Store, source: str | None, stream: str, last: int
) -> tuple[dict[Any, Any], int]:
    """The state of the latest snapshot that is not beyond `last`, and its version; -1 for none."""
    if source is None:
        return {}, -1
    snapshot = next(store.snapshots.between(source, stream, 0, last, backward=True), None)
    if snapshot is None:
        return {}, -1
    state = cbor2.loads(decode_content(snapshot.content).data)
    if type(state) is not dict:
        raise InvalidRequest(
            f"the snapshot of {source!r} at version {snapshot.version} is no map",
            parameter="source",
        )
    return begun(state), snapshot.version
