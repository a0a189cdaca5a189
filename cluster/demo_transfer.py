"""Moving the demo's events: into a cluster through every node at once, and out again to compare.

Rule: order within a stream is never left to chance. A stream belongs to one lane, a lane is one
connection to one node, and a lane sends its next batch only after the answer to the one before.
Lanes run side by side, so the streams interleave differently in each run; that is why histories
are compared by stream (`HistoryDigest`) and not by position.

Every batch is encoded before the clock starts, so what is timed is the cluster and not the reading
of a table. A batch that got no answer, or 503 or 504, is sent again as it is: the event ids make
that safe. Every answer must tell the stream versions that the source expects.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import aiohttp
import cbor2

from cluster.demo_flights import FlightEvent

EVENTS_IN_BATCH = 1_000
LANES_PER_NODE = 2
PAGE_EVENTS = 5_000

ATTEMPTS_MAX = 40
ATTEMPT_PAUSE_S = 0.25
REQUEST_TIMEOUT_S = 60.0

_CBOR = {"Content-Type": "application/cbor", "Accept": "application/cbor"}
_DONE = frozenset({200, 201})
_TRY_AGAIN = frozenset({207, 503, 504})
"""207 is a flush that not every node managed; flushing again does no harm."""


class TransferFailed(Exception):
    """A node refused, stayed silent for too long, or answered what cannot be."""


class HistoryDigest:
    """One value for what happened in every stream, however the streams were interleaved.

    It covers stream name, event number, event type and the encoded data of each event. Events of
    one stream must be added in order; a gap or a repetition raises TransferFailed.
    """

    def __init__(self) -> None:
        self.events = 0
        self._streams: dict[str, Any] = {}
        self._next_number: dict[str, int] = {}

    @property
    def streams(self) -> int:
        return len(self._streams)

    def version(self, stream: str) -> int:
        """Return the number of the last event of the stream, -1 if it has none."""
        return self._next_number.get(stream, 0) - 1

    def add(self, stream: str, number: int, event_type: str, data: bytes) -> None:
        expected = self._next_number.get(stream, 0)
        if number != expected:
            raise TransferFailed(f"stream {stream} has event {number} where {expected} is due")
        if number == 0:
            self._streams[stream] = hashlib.sha256()
        self._next_number[stream] = number + 1
        self._streams[stream].update(cbor2.dumps((number, event_type, data)))
        self.events += 1

    def hexdigest(self) -> str:
        whole = hashlib.sha256()
        for stream in sorted(self._streams):
            whole.update(cbor2.dumps((stream, self._streams[stream].digest())))
        return whole.hexdigest()


class Batch(NamedTuple):
    """One request, ready to send."""

    body: bytes
    events: int
    versions: dict[str, int]
    """What the answer must say: the last version of each stream that the batch touches."""


def prepare(events: Iterable[FlightEvent], lanes: int) -> tuple[list[list[Batch]], HistoryDigest]:
    """Deal the streams to `lanes` lanes and encode their batches; also digest the source."""
    digest = HistoryDigest()
    batches: list[list[Batch]] = [[] for _ in range(lanes)]
    waiting: list[list[bytes]] = [[] for _ in range(lanes)]
    versions: list[dict[str, int]] = [{} for _ in range(lanes)]

    def close(lane: int) -> None:
        batches[lane].append(Batch(_body(waiting[lane]), len(waiting[lane]), versions[lane]))
        waiting[lane], versions[lane] = [], {}

    for event in events:
        number = digest.version(event.stream) + 1
        digest.add(event.stream, number, event.event_type, event.data)
        lane = zlib.crc32(event.stream.encode()) % lanes
        waiting[lane].append(_new_event(event))
        versions[lane][event.stream] = number
        if len(waiting[lane]) == EVENTS_IN_BATCH:
            close(lane)
    for lane in range(lanes):
        if waiting[lane]:
            close(lane)
    return batches, digest


def _new_event(event: FlightEvent) -> bytes:
    """Encode one item of the request's `events`; the data is already encoded and goes in as is."""
    head = {"stream": event.stream, "event_id": event.event_id, "event_type": event.event_type}
    encoded = cbor2.dumps(head)
    # The same map with one more pair: its first byte says how many pairs follow.
    return bytes([encoded[0] + 1]) + encoded[1:] + _DATA_KEY + event.data


_DATA_KEY = cbor2.dumps("data")
_EVENTS_KEY = cbor2.dumps("events")


def _body(items: Sequence[bytes]) -> bytes:
    return b"\xa1" + _EVENTS_KEY + _array_head(len(items)) + b"".join(items)


def _array_head(length: int) -> bytes:
    return b"\x99" + length.to_bytes(2, "big")


async def append_all(
    session: aiohttp.ClientSession,
    addresses: Sequence[str],
    store: str,
    lanes: Iterable[Iterable[Batch]],
    on_appended: Callable[[int], None],
) -> None:
    """Append every lane's batches, in order within a lane; the lanes are dealt to the nodes.

    `on_appended` gets the number of events of each batch once it is acknowledged.
    Raises TransferFailed for the first lane that fails, and cancels the others.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for number, batches in enumerate(lanes):
                url = f"{addresses[number % len(addresses)]}/v1/stores/{store}/append"
                group.create_task(_append_lane(session, url, batches, on_appended))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _append_lane(
    session: aiohttp.ClientSession,
    url: str,
    batches: Iterable[Batch],
    on_appended: Callable[[int], None],
) -> None:
    for batch in batches:
        answer = await ask(session, "POST", url, batch.body)
        if answer["streams"] != batch.versions:
            raise TransferFailed(f"{url} answers other stream versions than the source has")
        on_appended(batch.events)


async def read_back(
    session: aiohttp.ClientSession, address: str, store: str, events: int
) -> HistoryDigest:
    """Read the whole store from one node, once it has applied position `events`, and digest it."""
    digest = HistoryDigest()
    page = await _page(session, address, store, 0, events)
    while page["events"]:
        following, _ = await asyncio.gather(
            _page(session, address, store, page["next"], events),
            asyncio.to_thread(_add_page, digest, page["events"]),
        )
        page = following
    return digest


async def _page(
    session: aiohttp.ClientSession, address: str, store: str, after: int, min_position: int
) -> dict[str, Any]:
    query = f"after={after}&limit={PAGE_EVENTS}&min_position={min_position}"
    return await ask(session, "GET", f"{address}/v1/stores/{store}/events?{query}")


def _add_page(digest: HistoryDigest, events: Sequence[dict[str, Any]]) -> None:
    for event in events:
        digest.add(
            event["event_stream_id"],
            event["event_number"],
            event["event_type"],
            cbor2.dumps(event["data"]),
        )


async def ask(
    session: aiohttp.ClientSession, method: str, url: str, body: bytes | None = None
) -> dict[str, Any]:
    """Return the decoded answer; try again, boundedly, what a node says may be tried again.

    Raises TransferFailed with the last refusal or fault.
    """
    trouble = ""
    for _ in range(ATTEMPTS_MAX):
        try:
            async with session.request(method, url, data=body, headers=_CBOR) as response:
                answer: dict[str, Any] = cbor2.loads(await response.read())
                if response.status in _DONE:
                    return answer
                trouble = f"{response.status} {answer.get('code')}: {answer.get('detail')}"
                if response.status not in _TRY_AGAIN:
                    break
        except (aiohttp.ClientError, TimeoutError) as error:
            trouble = f"{type(error).__name__} {error}"
        await asyncio.sleep(ATTEMPT_PAUSE_S)
    raise TransferFailed(f"{method} {url}: {trouble}")
