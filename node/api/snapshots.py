"""Snapshots of aggregates: recording, reading and deleting them.

A snapshot is recorded under a source, a stream and a version, and replaces one that stands there.
Which of a series are kept is decided in `core.snapshots`; one that is older than all that may be
kept is refused with `snapshot_too_old` rather than acknowledged and thrown away.

A page ends at the reader's `limit` or at `page_bytes_max`, but holds one snapshot if there is one;
its `next` says where to go on: the next version of a series, or, in the list of all, an `after`.
A list that picks by stream looks at `_SERIES_A_PAGE` series at most, and may so be empty before it
is at its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from node.api.answers import Answer
from node.api.bodies import BodyReader, Decoder, SnapshotBody
from node.api.framing import Framer
from node.api.levels import READ_PROBLEMS, Levels
from node.api.limits import ApiLimits
from node.api.media import sent
from node.api.names import snapshot_version, source_name, stream_name
from node.api.pacing import Pacer
from node.api.parameters import Parameter, choice, integer, page_limit, text, timeout
from node.api.ports import Clock, Replica
from node.api.refusals import refusal
from node.api.routes import Reply, Route
from node.api.snapshot_records import summary, written, written_page
from node.api.stores import CHANGE_PROBLEMS
from node.api.wire import Request
from node.core import commands
from node.core.fields import NUMBER_MAX
from node.core.outcomes import SnapshotDeleted, SnapshotRecorded
from node.core.snapshots import Snapshot, Snapshots
from node.errors import (
    InvalidCount,
    InvalidRequest,
    PayloadTooLarge,
    SnapshotMissing,
    SnapshotTooOld,
    StoreMissing,
)

_SERIES_A_PAGE = 10_000

_ALL = "/v1/stores/{store}/snapshots"
_SERIES = _ALL + "/{source}/{stream}"
_ONE = _SERIES + "/{version}"


class SnapshotRoutes:
    """The routes about snapshots."""

    def __init__(
        self,
        replica: Replica,
        clock: Clock,
        levels: Levels,
        bodies: BodyReader,
        limits: ApiLimits,
    ) -> None:
        self._replica = replica
        self._clock = clock
        self._levels = levels
        self._bodies = bodies
        self._limits = limits
        self._framer = Framer(limits)
        self._timeout = timeout(limits)
        self._decode = Decoder(SnapshotBody, limits)

    def routes(self) -> list[Route]:
        """What this family offers."""
        levels = self._levels.store_parameters
        changes = (*CHANGE_PROBLEMS, StoreMissing)
        return [
            Route(
                "GET",
                _ALL,
                self.all,
                "List the snapshots of a store, by source, stream and version.",
                (Reply(200, "A page of snapshots.", "SnapshotList"),),
                (*_list_parameters(), page_limit(self._limits, InvalidCount), *levels),
                problems=READ_PROBLEMS,
            ),
            Route(
                "GET",
                _SERIES,
                self.series,
                "Read the snapshots of an aggregate and stream, by default the newest.",
                (Reply(200, "The snapshots.", "SnapshotSeries"),),
                (*_series_parameters(), page_limit(self._limits, InvalidCount, 1), *levels),
                problems=READ_PROBLEMS,
            ),
            Route(
                "GET",
                _ONE,
                self.one,
                "Read a snapshot.",
                (Reply(200, "The snapshot.", "RecordedSnapshot"),),
                levels,
                problems=(*READ_PROBLEMS, SnapshotMissing),
            ),
            Route(
                "PUT",
                _ONE,
                self.put,
                "Record a snapshot, in place of one of the same version.",
                (
                    Reply(201, "It is recorded.", "SnapshotRecorded"),
                    Reply(200, "It is recorded in place of another.", "SnapshotRecorded"),
                ),
                (self._timeout,),
                body="SnapshotBody",
                problems=(*changes, SnapshotTooOld, PayloadTooLarge),
            ),
            Route(
                "DELETE",
                _ONE,
                self.delete,
                "Delete a snapshot.",
                (Reply(204, "It is gone."),),
                (self._timeout,),
                problems=(*changes, SnapshotMissing),
            ),
        ]

    # --- changing ----------------------------------------------------------------------------

    async def put(
        self, request: Request, store: str, source: str, stream: str, version: int
    ) -> Answer:
        """`PUT /v1/stores/{store}/snapshots/{source}/{stream}/{version}`."""
        media = sent(request.message.headers)
        raw = await self._bodies.read(request)
        content = self._framer.snapshot(await self._decode(raw, media), raw, media)
        now_us = self._clock()
        command = commands.put_snapshot(store, now_us, source, stream, version, content)
        outcome, index = await self._replica.propose(command, request.parameters["timeout_ms"])
        if not isinstance(outcome, SnapshotRecorded):
            raise refusal(outcome)
        recorded = summary(Snapshot(source, stream, version, now_us, 0, content))
        body = {**recorded, "raft_index": index, "replaced": outcome.replaced}
        wants = request.wants
        return Answer(200 if outcome.replaced else 201, wants.encode(body), wants.type)

    async def delete(
        self, request: Request, store: str, source: str, stream: str, version: int
    ) -> Answer:
        """`DELETE /v1/stores/{store}/snapshots/{source}/{stream}/{version}`."""
        command = commands.delete_snapshot(store, source, stream, version)
        outcome, _ = await self._replica.propose(command, request.parameters["timeout_ms"])
        if not isinstance(outcome, SnapshotDeleted):
            raise refusal(outcome)
        return Answer(204)

    # --- reading -----------------------------------------------------------------------------

    async def one(
        self, request: Request, store_name: str, source: str, stream: str, version: int
    ) -> Answer:
        """`GET /v1/stores/{store}/snapshots/{source}/{stream}/{version}`."""
        store = await self._levels.store(request, store_name)
        found = store.snapshots.get(source, stream, version)
        if found is None:
            raise SnapshotMissing(
                f"no snapshot of {source!r} and stream {stream!r} at version {version}",
                **{"store": store_name, "source": source, "stream": stream, "version": version},
            )
        return Answer(200, written(found, request.wants), request.wants.type)

    async def series(self, request: Request, store_name: str, source: str, stream: str) -> Answer:
        """`GET /v1/stores/{store}/snapshots/{source}/{stream}`."""
        store = await self._levels.store(request, store_name)
        given = request.parameters
        found = store.snapshots.between(
            source,
            stream,
            given["min_version"],
            given["max_version"],
            backward=given["direction"] == "backward",
        )
        taken = self._page(found, given["limit"])
        following = next(found, None)
        after = None if following is None else following.version
        media = request.wants
        return Answer(200, await written_page(taken, after, media, Pacer()), media.type)

    async def all(self, request: Request, store_name: str) -> Answer:
        """`GET /v1/stores/{store}/snapshots`."""
        store = await self._levels.store(request, store_name)
        given = request.parameters
        scan = _Scan(store.snapshots, given["source"], given["stream"], given["after"])
        found = iter(scan)
        taken = self._page(found, given["limit"])
        # What was taken last, or looked at last in vain, is what to go on behind.
        last = scan.last
        if next(found, None) is None:
            last = scan.last
        following = None if scan.is_end else _cursor(*last)
        media = request.wants
        return Answer(200, await written_page(taken, following, media, Pacer()), media.type)

    def _page(self, found: Iterator[Snapshot], limit: int) -> list[Snapshot]:
        taken: list[Snapshot] = []
        size = 0
        while len(taken) < limit and size < self._limits.page_bytes_max:
            snapshot = next(found, None)
            if snapshot is None:
                break
            taken.append(snapshot)
            size += len(snapshot.content)
        return taken


class _Scan:
    """Snapshots in order of source, stream and version, behind a place, within bounds."""

    def __init__(
        self,
        snapshots: Snapshots,
        source: str | None,
        stream: str | None,
        after: tuple[str, str, int] | None,
    ) -> None:
        self._snapshots = snapshots
        self._source = source
        self._stream = stream
        self.last = after or ("", "", -1)
        self.is_end = False

    def __iter__(self) -> Iterator[Snapshot]:
        began = self.last[:2]
        if self._source is not None:
            began = max(began, (self._source, self._stream or ""))
        for looked_at, (source, stream) in enumerate(self._snapshots.keys(began)):
            if self._source is not None and source != self._source:
                break
            if looked_at == _SERIES_A_PAGE:
                return
            first = self.last[2] + 1 if (source, stream) == self.last[:2] else 0
            if self._stream is None or stream == self._stream:
                yield from self._series(source, stream, first)
            self.last = source, stream, NUMBER_MAX
        self.is_end = True

    def _series(self, source: str, stream: str, first: int) -> Iterator[Snapshot]:
        for snapshot in self._snapshots.between(source, stream, first, NUMBER_MAX, backward=False):
            self.last = source, stream, snapshot.version
            yield snapshot


def _cursor(source: str, stream: str, version: int) -> str:
    return f"{quote(source, safe='')}/{quote(stream, safe='')}/{version}"


def _after(given: str) -> Any:
    parts = given.split("/")
    if len(parts) != 3:
        raise InvalidRequest("after: must be the `next` of an earlier page", parameter="after")
    return source_name(parts[0]), stream_name(parts[1]), snapshot_version(parts[2])


def _list_parameters() -> tuple[Parameter, ...]:
    return (
        text("source", "Only those of this aggregate.", source_name),
        text("stream", "Only those of this stream.", stream_name),
        text("after", "Begin behind this place: the `next` of an earlier page.", _after),
    )


def _series_parameters() -> tuple[Parameter, ...]:
    return (
        integer("min_version", "The smallest version to read.", default=0),
        integer("max_version", "The greatest version to read.", default=NUMBER_MAX),
        choice("direction", "Which way to read.", ("backward", "forward")),
    )
