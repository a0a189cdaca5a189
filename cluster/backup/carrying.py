"""Carrying what stands beside the events: from a store into a file, and into another store.

**Out of a store** it is read before the store is asked how far it is, so that nothing here is later
than the events: a snapshot holds no event that the file lacks, and a checkpoint or a subscription
is not ahead. Each subscription is read at one moment with what is parked in it. Snapshots are read
in pages; one that was recorded or deleted meanwhile may be in the file or not.

**A subscription** begins again behind its `settled_position`, and so hands out once more what was
in flight, waited, or was settled out of order behind that: at least once, nothing missed. What it
had parked is in the file and is not brought back, because the API has no way to park an event that
was not delivered.

**Into a store** it goes after the events, and after those that must not be there were removed
(`lives`). What streams keep is last but for subscriptions, whose consumers may be waiting.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import cbor2

from cluster.backup import BackupFailed, lives
from cluster.backup.beside import Checkpoint, Parked, Settings, Snapshot, Subscription, Tally
from cluster.backup.door import NOW, Door, each
from cluster.backup.file import Advance, Finished
from cluster.backup.threads import in_thread
from cluster.backup.writing import Written
from cluster.client_errors import ClientError, NotFound
from cluster.client_values import quoted

PAGE_SNAPSHOTS = 1_000
PAGE_CHECKPOINTS = 1_000
_PAGE_PARKED = 1_000
_TRIES = 10
_BOUNDS = ("ack_timeout_ms", "max_retries", "max_in_flight")


def settings_of(facts: dict[str, Any]) -> Settings:
    """From what a node tells of a store."""
    return Settings(facts.get("durability"), facts.get("snapshots_kept"))


async def take(door: Door, written: Written, advance: Advance) -> None:
    """Everything beside the events, into the file; `advance` is told of snapshots.

    Raises BackupFailed and ClientError.
    """
    async for checkpoints in _checkpoints(door):
        await in_thread(written.put, checkpoints)
    for status in (await door.ask("GET", "/subscriptions", NOW))["subscriptions"]:
        await in_thread(written.put, await _subscription(door, status["name"]))
    async for page in _snapshots(door):
        await in_thread(written.put, page)
        advance(len(page))


async def _checkpoints(door: Door) -> AsyncIterator[list[Checkpoint]]:
    """All of the store, by name, in pages."""
    async for page in door.pages("/checkpoints", PAGE_CHECKPOINTS):
        yield [Checkpoint(one["name"], one["position"]) for one in page["checkpoints"]]


async def _snapshots(door: Door) -> AsyncIterator[list[Snapshot]]:
    """All of the store, by source, stream and version, in pages."""
    async for page in door.pages("/snapshots", PAGE_SNAPSHOTS):
        yield list(map(_snapshot, page["snapshots"]))


def _snapshot(plain: dict[str, Any]) -> Snapshot:
    return Snapshot(
        *(plain["source_uuid"], plain["stream_uuid"], plain["source_version"]),
        *(plain["source_type"], plain["data"], plain["metadata"], plain["created_epoch"]),
    )


async def _subscription(door: Door, name: str) -> list[Subscription | Parked]:
    """A subscription and what is parked in it; nothing if it has gone.

    Everything up to `settled_position` was settled or parked then, and what was parked then is in
    the list that is read next, unless it was replayed meanwhile: then all is read again.
    """
    path = f"/subscriptions/{quoted(name)}"
    try:
        for _ in range(_TRIES):
            before = await door.ask("GET", path, NOW)
            parked = [one async for one in _parked(door, path, name)]
            if _replayed(await door.ask("GET", path, NOW)) == _replayed(before):
                return [_as_it_goes_on(before), *parked]
    except NotFound:
        return []
    raise BackupFailed(f"subscription {name!r}: its parked events are replayed all the time")


def _replayed(status: dict[str, Any]) -> int:
    """How many of all that were ever parked no longer are: no smaller later on."""
    return int(status["totals"]["parked"] - status["parked"])


async def _parked(door: Door, path: str, name: str) -> AsyncIterator[Parked]:
    async for page in door.pages(f"{path}/parked", _PAGE_PARKED):
        for one in page["events"]:
            yield Parked(
                *(name, one["position"], one["attempts"], one["why"]),
                *(one["consumer"], one["parked_epoch"]),
            )


def _as_it_goes_on(status: dict[str, Any]) -> Subscription:
    definition = {name: status[name] for name in _BOUNDS}
    definition |= {"filter": status["filter"], "start_after": status["settled_position"]}
    return Subscription(status["name"], definition)


def _as_it_was_made(status: dict[str, Any]) -> Subscription:
    """The same of one that was restored: what it was made with."""
    definition = {name: status[name] for name in (*_BOUNDS, "filter", "start_after")}
    return Subscription(status["name"], definition)


async def other_than(door: Door, backup: Finished) -> str | None:
    """A checkpoint or subscription that the store has and no restore made, in words; or None."""
    known = set(backup.beside.checkpoints())
    async for checkpoints in _checkpoints(door):
        for checkpoint in checkpoints:
            if checkpoint not in known:
                return f"checkpoint {checkpoint.name!r} at {checkpoint.position}"
    made = backup.beside.subscriptions()
    for status in (await door.ask("GET", "/subscriptions", NOW))["subscriptions"]:
        if _as_it_was_made(status) not in made:
            return f"subscription {status['name']!r} as it is"
    return None


async def restore(door: Door, backup: Finished, advance: Advance) -> None:
    """Checkpoints and snapshots, into a store that has the events; `advance` is told of snapshots.

    It may be repeated. Raises BackupFailed and ClientError.
    """
    await each(backup.beside.checkpoints(), partial(_put_checkpoint, door), lambda _: None)
    await each(backup.beside.snapshots(), partial(_put_snapshot, door), advance)


async def subscribe(door: Door, backup: Finished) -> None:
    """Subscriptions, into a store that has all else. It may be repeated. Raises ClientError."""
    for name, definition in backup.beside.subscriptions():
        path = f"/subscriptions/{quoted(name)}"
        await door.ask("PUT", path, [], cbor2.dumps(definition))


async def _put_checkpoint(door: Door, checkpoint: Checkpoint) -> None:
    name, position = checkpoint
    body = cbor2.dumps({"position": position})
    try:
        await door.ask("PUT", f"/checkpoints/{quoted(name)}", [], body)
    except ClientError as error:
        if error.code != "checkpoint_not_increasing" or error.fields["current"] != position:
            raise


async def _put_snapshot(door: Door, snapshot: Snapshot) -> None:
    source, stream, version, source_type, data, metadata, _ = snapshot
    body: dict[str, Any] = {"source_type": source_type}
    body |= {k: v for k, v in (("data", data), ("metadata", metadata)) if v is not None}
    path = f"/snapshots/{quoted(source)}/{quoted(stream)}/{version}"
    await door.ask("PUT", path, [], cbor2.dumps(body))


async def digest(door: Door, until: int, advance: Advance) -> str:
    """The digest of what the store has of all this; of streams as of its last position.

    `advance` is told of snapshots and of lives. Raises BackupFailed and ClientError.
    """
    tally = Tally()
    tally.add(settings_of(await door.facts()))
    async for checkpoints in _checkpoints(door):
        for checkpoint in checkpoints:
            tally.add(checkpoint)
    async for page in _snapshots(door):
        for snapshot in page:
            tally.add(snapshot)
        advance(len(page))
    for status in (await door.ask("GET", "/subscriptions", NOW))["subscriptions"]:
        tally.add(_as_it_was_made(status))
    async for page_of_lives in lives.read(door, until):
        for life in page_of_lives:
            tally.add(life)
        advance(len(page_of_lives))
    return tally.digest
