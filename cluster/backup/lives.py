"""The lives of streams: what they keep, what was removed of them, and which are deleted.

**Out of a store** they are read when all events have been, as of the same last position. What an
answer says of a stream's length there never changes. How many of its events are removed does, while
events are read; but it only grows. So the file lets go of events that had been removed by the time
at which their stream's life was read, and then it holds, of each stream, all that its life says and
nothing else. The lengths of all streams must come to the last position.

**Into a store** they come when it has all events and fillers (`history`): first what was removed is
removed again, then the events are compared, and behind all else but subscriptions the streams are
told what they keep: ages count from the restore, because times do.

A stream that was deleted and begun anew while it was backed up is in the file as one that exists
and has lost the events up to there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import cbor2

from cluster.backup import BackupFailed
from cluster.backup.beside import ALIVE, DELETED_FOR_EVER, Life
from cluster.backup.door import NOW, Door, each
from cluster.backup.file import Advance, Finished
from cluster.backup.threads import in_thread
from cluster.backup.writing import Written
from cluster.client_errors import Deleted, NotFound
from cluster.client_values import quoted

PAGE_STREAMS = 5_000


async def take(door: Door, written: Written) -> None:
    """All that there is to say of streams, into the file. Raises BackupFailed and ClientError."""
    until, events = written.head.until, 0
    async for page in _pages(door, until):
        events += sum(row["version"] + 1 for row in page)
        await in_thread(written.put, _lives(page))
    if events != until:
        raise BackupFailed(
            f"the streams of store {door.store!r} have had {events:,} events up to position"
            f" {until:,}: it is another store than it was, begin anew"
        )


async def read(door: Door, until: int) -> AsyncIterator[list[Life]]:
    """The lives as of a position, in pages; of streams about which there is nothing to say, none.

    Raises ClientError.
    """
    async for page in _pages(door, until):
        yield _lives(page)


async def _pages(door: Door, until: int) -> AsyncIterator[list[dict[str, Any]]]:
    query = [*NOW, ("deleted", "true"), ("until", str(until))]
    async for page in door.pages("/streams", PAGE_STREAMS, query):
        yield page["streams"]


def _lives(page: list[dict[str, Any]]) -> list[Life]:
    lives = map(_life, page)
    return [one for one in lives if one.version >= 0 and one.says_something]


def _life(row: dict[str, Any]) -> Life:
    metadata = dict(row["metadata"])
    if "truncate_before" in metadata:  # as it would be, had nothing come behind the position
        metadata["truncate_before"] = min(metadata["truncate_before"], row["version"] + 1)
    return Life(row["stream"], row["life"], row["version"], row["first_event_number"], metadata)


async def remove(door: Door, backup: Finished, advance: Advance) -> None:
    """Remove from a store what is removed: the fillers. It may be repeated.

    Raises BackupFailed and ClientError.
    """

    async def put(life: Life) -> None:
        if life.life != ALIVE:
            await _delete(door, life)
        elif life.first:
            answer = await _put(door, life, {"truncate_before": life.first})
            _compare(life, "first_event_number", life.first, answer)

    await each(backup.beside.lives(), put, advance)
    kept = (await door.facts())["events"]
    if kept != backup.count:
        raise BackupFailed(
            f"store {door.store!r} keeps {kept:,} events where the backup has {backup.count:,}:"
            " restore into a new store"
        )


async def _delete(door: Door, life: Life) -> None:
    query = [("hard", "true")] if life.life == DELETED_FOR_EVER else []
    try:
        await door.ask("DELETE", f"/streams/{quoted(life.stream)}", query)
    except Deleted:
        pass  # already, for ever
    except NotFound as error:
        if error.code != "stream_not_found":
            raise


async def limit(door: Door, backup: Finished, advance: Advance) -> None:
    """Tell streams what they keep. It may be repeated. Raises BackupFailed and ClientError."""

    async def put(life: Life) -> None:
        there = {"truncate_before": life.first} if life.first else {}
        if life.life == ALIVE and life.metadata != there:
            answer = await _put(door, life, life.metadata)
            _compare(life, "metadata", life.metadata, answer)

    await each(backup.beside.lives(), put, advance)


async def _put(door: Door, life: Life, metadata: Any) -> Any:
    path = f"/streams/{quoted(life.stream)}/metadata"
    return await door.ask("PUT", path, [], cbor2.dumps(metadata))


def _compare(life: Life, what: str, wanted: Any, answer: Any) -> None:
    if answer[what] != wanted:
        raise BackupFailed(
            f"stream {life.stream!r} has {what} {answer[what]}, where {wanted} should be"
        )
