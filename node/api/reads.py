"""Reading: one stream, the whole store in position order, and what streams there are.

A page is bounded by the reader's `limit`, by `page_bytes_max` (but it always holds one event if
there is one), and a filtered page by how many positions it evaluates; `next` says where to go on
and `is_end` whether there is anything left. What a page shows is one moment of the store or later
ones in order: events are only ever added at the end.

With `wait_ms` a read of the store that found nothing waits for arrivals and looks on from where it
was, until something matches or the time is over.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Any

from node.api.answers import Answer
from node.api.arrivals import Arrivals, canceller
from node.api.filters import Scan
from node.api.levels import READ_PROBLEMS, Levels
from node.api.limits import ApiLimits
from node.api.lives import ALIVE, DELETED, DELETED_FOR_EVER, metadata
from node.api.pacing import Pacer
from node.api.parameters import Parameter, choice, flag, integer, page_limit, text
from node.api.records import written_page
from node.api.refusals import stream_deleted, stream_missing
from node.api.routes import Reply, Route
from node.api.wanted import filter_parameters, name_prefix, wanted
from node.api.wire import Request
from node.core.state import State
from node.core.store import Record, Store
from node.core.stream import Stream
from node.errors import (
    InvalidCount,
    InvalidRequest,
    InvalidStartVersion,
    Overloaded,
    PayloadTooLarge,
    StoreMissing,
    StreamDeleted,
    StreamMissing,
)

END = "end"

_DIRECTION = choice("direction", "Which way to read.", ("forward", "backward"))


class Reads:
    """The routes that read events and streams."""

    def __init__(self, levels: Levels, state: State, arrivals: Arrivals, limits: ApiLimits) -> None:
        self._levels = levels
        self._state = state
        self._arrivals = arrivals
        self._limits = limits

    def routes(self) -> list[Route]:
        """What this family offers."""
        limit = page_limit(self._limits, InvalidCount)
        levels = self._levels.store_parameters
        return [
            Route(
                "GET",
                "/v1/stores/{store}/streams/{stream}/events",
                self.stream,
                "Read a stream.",
                (Reply(200, "A page of the stream.", "StreamPage"),),
                (_from(), limit, _DIRECTION, _must_exist(), *levels),
                problems=(*READ_PROBLEMS, StreamMissing, StreamDeleted),
            ),
            Route(
                "GET",
                "/v1/stores/{store}/events",
                self.store,
                "Read the store in position order.",
                (Reply(200, "A page of the store.", "StorePage"),),
                (*_scan_parameters(self._limits), limit, _DIRECTION, *levels),
                problems=(*READ_PROBLEMS, Overloaded),
            ),
            Route(
                "GET",
                "/v1/stores/{store}/streams",
                self.streams,
                "List the streams of a store, sorted by name.",
                (Reply(200, "A page of streams.", "StreamList"),),
                (
                    text("prefix", "Only streams whose names begin so.", name_prefix, default=""),
                    text("after", "Begin behind this name.", name_prefix, default=""),
                    *_life_parameters(),
                    limit,
                    *levels,
                ),
                problems=READ_PROBLEMS,
            ),
            Route(
                "GET",
                "/v1/stores/{store}/streams/{stream}",
                self.info,
                "Look at a stream.",
                (Reply(200, "The stream.", "StreamInfo"),),
                levels,
                problems=(*READ_PROBLEMS, StreamMissing, StreamDeleted),
            ),
        ]

    async def stream(self, request: Request, store_name: str, name: str) -> Answer:
        """`GET /v1/stores/{store}/streams/{stream}/events`."""
        store = await self._levels.store(request, store_name)
        parameters = request.parameters
        stream = stream_of(store, name)
        if stream is None and parameters["must_exist"]:
            raise stream_missing(store.name, name)
        numbers = _numbers(stream, parameters)
        records = list(self._stream_records(store, stream, numbers)) if stream else []
        taken = numbers[: len(records)]
        after = taken[-1] + numbers.step if taken else numbers.start
        fields = {
            "stream": name,
            "version": store.version(name),
            "next": after,
            "is_end": after < _first(stream) if numbers.step < 0 else after > store.version(name),
        }
        return await _page(request, records, fields, Pacer())

    def _stream_records(self, store: Store, stream: Stream, numbers: range) -> Iterator[Record]:
        size = 0
        for number in numbers:
            record = store.record(stream.positions[number])
            yield record
            size += len(record.frame)
            if size >= self._limits.page_bytes_max:
                return

    async def store(self, request: Request, name: str) -> Answer:
        """`GET /v1/stores/{store}/events`."""
        parameters = request.parameters
        wait_ms = parameters["wait_ms"]
        backward = parameters["direction"] == "backward"
        if wait_ms and backward:
            raise InvalidRequest("wait_ms: waiting makes sense only with direction=forward")
        store = await self._levels.store(request, name)
        scan = Scan(
            wanted=wanted(parameters),
            backward=backward,
            limit=parameters["limit"],
            next=_start(parameters["after"], backward, store.position),
            until=parameters["until"],
            rows=[],
        )
        pacer = Pacer()
        await scan.run(store, self._limits, pacer, self._limits.positions_per_scan_max)
        if wait_ms and not scan.rows:
            await self._wait(request, store, scan, pacer)
            store = self._as_it_is(store)
        head = store.position
        fields = {"head": head, "next": scan.next, "is_end": scan.is_end(head)}
        return await _page(request, scan.records(store), fields, pacer)

    async def _wait(self, request: Request, store: Store, scan: Scan, pacer: Pacer) -> None:
        """Go on with a scan that found nothing, until it finds something or time is over."""
        self._arrivals.enter()
        try:
            async with asyncio.timeout(request.parameters["wait_ms"] / 1000):
                await self._follow(request, store, scan, pacer)
        except TimeoutError:
            pass
        finally:
            self._arrivals.leave()

    async def _follow(self, request: Request, store: Store, scan: Scan, pacer: Pacer) -> None:
        while not scan.rows and not self._arrivals.stopped:
            change = self._arrivals.next(store.name)
            request.on_gone = canceller(change)
            try:
                await scan.run(store, self._limits, pacer, self._limits.positions_per_scan_max)
                if scan.rows or (scan.until is not None and scan.next >= scan.until):
                    return
                if scan.is_end(store.position):
                    await change
            finally:
                request.on_gone = None
                self._arrivals.forget(store.name, change)
            store = self._as_it_is(store)

    def _as_it_is(self, store: Store) -> Store:
        """The store as of now: a node that was filled has another object for it."""
        current = self._state.stores.get(store.name)
        if current is None or current.uid != store.uid:
            raise StoreMissing(f"store {store.name!r} was deleted", store=store.name)
        return current

    async def streams(self, request: Request, name: str) -> Answer:
        """`GET /v1/stores/{store}/streams`."""
        store = await self._levels.store(request, name)
        parameters = request.parameters
        prefix, after, limit = parameters["prefix"], parameters["after"], parameters["limit"]
        names: list[str] = []
        for found in _names(store, max(prefix, after), parameters["deleted"]):
            if not found.startswith(prefix):
                break
            if found != after:
                names.append(found)
            if len(names) > limit:
                break
        until = store.position if parameters["until"] is None else parameters["until"]
        streams = [_listed(store, found, until, parameters["deleted"]) for found in names[:limit]]
        last = names[limit - 1] if len(names) > limit else None
        media = request.wants
        return Answer(200, media.encode({"streams": streams, "next": last}), media.type)

    async def info(self, request: Request, store_name: str, name: str) -> Answer:
        """`GET /v1/stores/{store}/streams/{stream}`."""
        store = await self._levels.store(request, store_name)
        stream = stream_of(store, name)
        if stream is None:
            raise stream_missing(store.name, name)
        body = {
            "stream": name,
            "version": stream.version,
            "count": stream.count,
            "first_event_number": stream.first,
            "metadata": metadata(stream.limits),
        }
        media = request.wants
        return Answer(200, media.encode(body), media.type)


async def _page(
    request: Request, records: Iterable[Record], fields: dict[str, Any], pacer: Pacer
) -> Answer:
    media = request.wants
    return Answer(200, await written_page(records, fields, media, pacer), media.type)


def _numbers(stream: Stream | None, parameters: Any) -> range:
    """The event numbers that a page of a stream covers, in reading order: of those kept."""
    version = -1 if stream is None else stream.version
    first = _first(stream)
    backward = parameters["direction"] == "backward"
    start = parameters["from"]
    if start is None:
        start = END if backward else first
    if start == END:
        start = max(version, 0)
    limit = parameters["limit"]
    if backward:
        start = min(start, version)
        return range(start, max(start - limit, min(start, first - 1)), -1)
    start = max(start, first)
    return range(start, max(start, min(start + limit, version + 1)))


def _first(stream: Stream | None) -> int:
    return 0 if stream is None else stream.first


def _names(store: Store, start: str, deleted: bool) -> Iterator[str]:
    """Names of streams from `start` on, sorted; looked for as they are taken."""
    names: Iterator[str] = store.stream_names.irange(minimum=start)
    return merge(names, store.lives.departed.irange(minimum=start)) if deleted else names


def _listed(store: Store, name: str, until: int, life: bool) -> dict[str, Any]:
    """A stream as of a position: of its events up to there those that are kept now."""
    stream = store.streams.get(name) or store.lives.departed[name]
    size = bisect_right(stream.positions, until)
    first = min(stream.first, size)
    said: dict[str, Any] = {"stream": name, "version": size - 1, "count": size - first}
    if life:
        said |= {"first_event_number": first, "metadata": metadata(stream.limits)}
        said["life"] = _life(store, name)
    return said


def _life(store: Store, name: str) -> str:
    if name in store.streams:
        return ALIVE
    return DELETED_FOR_EVER if store.lives.is_over(name) else DELETED


def stream_of(store: Store, name: str) -> Stream | None:
    """The stream, or None where it is absent. Raises `StreamDeleted` where it always will be."""
    stream = store.streams.get(name)
    if stream is None and store.lives.is_over(name):
        raise stream_deleted(name)
    return stream


def _start(after: int | None, backward: bool, head: int) -> int:
    """The position beside which a scan begins."""
    if not backward:
        return after or 0
    return head + 1 if after is None else min(after, head + 1)


def _from() -> Parameter:
    number = integer("from", "", error=InvalidStartVersion)

    def parse(given: str) -> Any:
        return END if given == END else number.parse(given)

    return Parameter(
        "from",
        "The event number to begin with, or `end` for the last one. By default 0, or the last "
        "one when reading backward.",
        {"oneOf": [number.schema, {"const": END}]},
        parse,
    )


def _must_exist() -> Parameter:
    return flag("must_exist", "Answer 404 for a stream that does not exist, not an empty page.")


def _life_parameters() -> tuple[Parameter, ...]:
    return (
        flag(
            "deleted",
            "Deleted streams, too, with the last number that they had; and of each stream its life,"
            " metadata and first kept number.",
        ),
        integer(
            "until",
            "Of each stream its version as of this position, -1 where it began later, and of the "
            "events up to there those that are kept now. By default all.",
        ),
    )


def _scan_parameters(limits: ApiLimits) -> tuple[Parameter, ...]:
    return (
        integer(
            "after",
            "Begin behind this position; reading backward, before it. By default at the first, or "
            "the last.",
            error=InvalidStartVersion,
        ),
        integer("until", "The last position to evaluate."),
        *filter_parameters(limits),
        integer(
            "wait_ms",
            "Wait this long for a matching event if there is none, in milliseconds.",
            default=0,
            maximum=limits.wait_ms_max,
            too_large=PayloadTooLarge,
        ),
    )
