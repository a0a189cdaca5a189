"""Restoring: the events of a backup into a store, in order, with their own ids.

An empty store gets every event at the position that it had, as event number that it had; where one
was removed a filler takes its place (`history`), and goes when all are there (`lives.remove`). What
is there already must be the beginning of the backup, event by event (an interrupted restore): it is
read and compared, and the rest is appended. A store with anything else in it is refused; so is one
with the same events whose checkpoints or subscriptions are others, as where the backup was taken.

Each batch is one request that checks the versions of all its streams, and its answer must name the
positions that the events had. So nobody else can write in between unnoticed: such a restore ends
with an error, and its store has to be removed.

The content type of metadata is not a field of the API. It follows from how the request is written,
so a batch ends where that changes: what came as JSON goes back as JSON, all else as CBOR.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import cbor2
import msgspec

from cluster.backup import BackupFailed, carrying
from cluster.backup.digest import FIRST_LINK, StoredEvent, next_link
from cluster.backup.door import CBOR, JSON, Door
from cluster.backup.file import Advance, Finished
from cluster.backup.history import Filler
from cluster.backup.taking import decoded
from cluster.backup.threads import in_thread
from cluster.client_errors import NotFound

BATCH_EVENTS = 2_000
BATCH_BYTES_MAX = 4 * 1024 * 1024
"""A quarter of what a node takes; and an event has at most 1 MiB, some more in base64."""


_FILLER = "Removed"


class Begun(NamedTuple):
    """How much of a history is there and was compared: the position, and its link."""

    position: int
    link: bytes


NOTHING = Begun(0, FIRST_LINK)


class Batch(NamedTuple):
    """One request. `versions` are those of its streams when it is done."""

    body: bytes
    media: str
    first: int
    events: int
    versions: dict[str, int]


async def begin(door: Door, backup: Finished, advance: Advance) -> Begun:
    """Make the store if it is not there; see how much of the backup it has already.

    Raises BackupFailed if it holds anything else, and ClientError.
    """
    facts = await _facts(door)
    position = facts["position"]
    words = f"store {door.store!r} holds other events than the backup: restore into a new store"
    if position > backup.head.until:
        raise BackupFailed(words)
    if position:
        begun = await _compared(door, backup, position, advance)
        if begun is None:
            raise BackupFailed(words)
        other = await carrying.other_than(door, backup)
        if other is not None:
            raise BackupFailed(
                f"store {door.store!r} is not empty, and no restore of this backup left {other}:"
                " restore into a new store"
            )
        return begun
    if backup.head.until and (facts["snapshots"] or await _has_subscriptions(door, facts)):
        raise BackupFailed(
            f"store {door.store!r} has no events, but snapshots or subscriptions: restore into a"
            " new store"
        )
    settings = {name: value for name, value in backup.head.settings._asdict().items() if value}
    await door.ask("PUT", "", [], cbor2.dumps(settings) if settings else None)
    return NOTHING


async def _facts(door: Door) -> dict[str, Any]:
    """Of the store; of an empty one if there is none."""
    try:
        return await door.facts()
    except NotFound:
        return {"position": 0, "snapshots": 0, "store": None}


async def _compared(door: Door, backup: Finished, position: int, advance: Advance) -> Begun | None:
    """What a store has up to a position, if it is what the backup has there."""
    wanted, begun = backup.history(), NOTHING
    while begun.position < position:
        events, following, is_end = decoded(await door.page(begun.position, position))
        until = position if is_end else following
        expected = islice(wanted, until - begun.position)
        link = await in_thread(_link_of_same, expected, events, begun.link)
        if link is None:
            return None
        advance(until - begun.position)
        begun = Begun(until, link)
    return begun


def _link_of_same(
    expected: Iterator[StoredEvent | Filler], events: Sequence[StoredEvent], link: bytes
) -> bytes | None:
    """The link behind the expected events, if these are they; fillers may have gone."""
    there = {event.position: event for event in events}
    for one in expected:
        found = there.pop(one.position, None)
        if isinstance(one, Filler):
            if found is not None and not one.is_like(found):
                return None
        else:
            following = next_link(link, one)
            if found is None or next_link(link, found) != following:
                return None
            link = following
    return None if there else link


async def _has_subscriptions(door: Door, facts: dict[str, Any]) -> bool:
    if facts["store"] is None:
        return False
    return bool((await door.ask("GET", "/subscriptions", []))["subscriptions"])


async def restore(door: Door, backup: Finished, after: int, advance: Advance) -> None:
    """Append all events behind a position, and fillers. Raises BackupFailed and ClientError."""
    waiting = batches(backup.history(after))
    batch = await in_thread(next, waiting, None)
    while batch is not None:
        asking = asyncio.create_task(_append(door, batch))
        try:
            following = await in_thread(next, waiting, None)
            await asking
        finally:
            asking.cancel()
            await asyncio.wait((asking,))
        advance(batch.events)
        batch = following


async def _append(door: Door, batch: Batch) -> None:
    answer = await door.ask("POST", "/append", [], batch.body, batch.media)
    wanted = list(range(batch.first, batch.first + batch.events))
    if answer["positions"] != wanted or answer["streams"] != batch.versions:
        raise BackupFailed(
            f"store {door.store!r} put the event of position {batch.first} at"
            f" {answer['positions'][0]}: somebody else writes to it; remove it, and begin anew"
        )


async def digest(door: Door, begun: Begun, until: int, advance: Advance) -> bytes:
    """The link over what the store answers, up to a position; `begun` is known already."""
    position, link = begun
    while position < until:
        events, following, is_end = decoded(await door.page(position, until))
        link = await in_thread(_links, link, events)
        if is_end and following < until:
            raise BackupFailed(f"store {door.store!r} ends at {following}, before {until}")
        advance(following - position)
        position = following
    return link


def _links(link: bytes, events: Sequence[StoredEvent]) -> bytes:
    for event in events:
        link = next_link(link, event)
    return link


def batches(events: Iterator[StoredEvent | Filler]) -> Iterator[Batch]:
    """Requests of events in order; each of one media type, and within the bounds."""
    held: list[bytes] = []
    size, media, first = 0, CBOR, 0
    before: dict[str, int] = {}
    versions: dict[str, int] = {}
    for event in events:
        kind = _media_of(event, media)
        item = _item(event, kind)
        full = len(held) == BATCH_EVENTS or size + len(item) > BATCH_BYTES_MAX
        if held and (full or kind != media):
            yield Batch(_body(held, media, before), media, first, len(held), versions)
            held, size, before, versions = [], 0, {}, {}
        if not held:
            media, first = kind, event.position
        held.append(item)
        size += len(item)
        before.setdefault(event.stream, event.number - 1)
        versions[event.stream] = event.number
    if held:
        yield Batch(_body(held, media, before), media, first, len(held), versions)


def _media_of(event: StoredEvent | Filler, media: str) -> str:
    if isinstance(event, Filler):
        return media
    return JSON if event.metadata_content_type == JSON else CBOR


def _item(event: StoredEvent | Filler, media: str) -> bytes:
    if isinstance(event, Filler):
        filler = {"stream": event.stream, "event_id": event.event_id, "event_type": _FILLER}
        return msgspec.json.encode(filler) if media == JSON else cbor2.dumps(filler)
    plain: dict[str, Any] = {
        "stream": event.stream,
        "event_id": event.event_id,
        "event_type": event.event_type,
        "data_content_type": event.data_content_type,
    }
    for name, value in (("data", event.data), ("metadata", event.metadata)):
        if value is not None:
            octets = media == JSON and type(value) is bytes
            plain[f"{name}_base64" if octets else name] = value
    return msgspec.json.encode(plain) if media == JSON else cbor2.dumps(plain)


def _body(items: Sequence[bytes], media: str, before: dict[str, int]) -> bytes:
    checks = [{"stream": stream, "expected_version": version} for stream, version in before.items()]
    if media == JSON:
        return b'{"checks":%b,"events":[%b]}' % (msgspec.json.encode(checks), b",".join(items))
    head = cbor2.dumps({"checks": checks})
    # The same map with one more pair; its first byte says how many pairs follow.
    count = b"\x99" + len(items).to_bytes(2, "big")
    return b"".join((bytes((head[0] + 1,)), head[1:], _EVENTS_KEY, count, *items))


_EVENTS_KEY = cbor2.dumps("events")
