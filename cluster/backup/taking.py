"""Taking a backup: what stands beside the events (`carrying`), then these, up to one position, then
the lives of streams (`lives`).

While a page is written to the file (`threads`) the next one is under way: two pages at most are
held. Each page begins at the last position of the one before (`file.Written.add`), and may come
from another node: one that dies in the middle is passed over. Events that are removed meanwhile are
left out in the end, whether they had been read or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import cbor2

from cluster.backup import BackupFailed, carrying, lives
from cluster.backup.digest import StoredEvent
from cluster.backup.door import Door
from cluster.backup.file import NO_END, Advance, partial_of
from cluster.backup.threads import in_thread
from cluster.backup.writing import Written

Watch = Callable[[int], AbstractContextManager[Advance]]
"""Makes a progress bar of so many snapshots."""


async def begin(door: Door, path: Path, watch: Watch) -> Written:
    """A new backup of the store as it is now, or the one that was interrupted.

    All that stands beside the events is in it, and where these end. One that was interrupted before
    it had come to the events is begun anew. Raises BackupFailed and ClientError.
    """
    if await in_thread(path.exists):
        raise BackupFailed(f"{path} is there already: name another file")
    facts = await door.facts()
    if await in_thread(partial_of(path).exists):
        written = await in_thread(Written.resume, path)
        if written.head.store != door.store or written.head.until > facts["position"]:
            with written:
                raise BackupFailed(
                    f"{partial_of(path)} is of another store, or of one that had more events:"
                    " remove it, or name another file"
                )
        if written.head.until != NO_END:
            return written
        with written:
            await in_thread(partial_of(path).unlink)
    settings = carrying.settings_of(facts)
    written = await in_thread(Written.begin, path, door.store, settings)
    try:
        with watch(facts.get("snapshots", 0)) as advance:
            await carrying.take(door, written, advance)
        await in_thread(written.end_at, (await door.facts())["position"])
    except BaseException:
        with written:
            raise
    return written


async def take(door: Door, written: Written, advance: Advance) -> None:
    """Write all events that are missing, and the lives of streams; `advance` is told of positions.

    Raises BackupFailed and ClientError.
    """
    if written.position < written.head.until:
        await _events(door, written, advance)
    await lives.take(door, written)
    await in_thread(written.leave_out_removed)


async def _events(door: Door, written: Written, advance: Advance) -> None:
    until = written.head.until
    page = await door.page(max(0, written.position - 1), until)
    while True:
        events, following, is_end = await in_thread(decoded, page)
        if following >= until or is_end:
            advance(await in_thread(written.add, events, following))
            break
        asking = asyncio.create_task(door.page(following - 1, until))
        try:
            advance(await in_thread(written.add, events, following))
            page = await asking
        finally:
            asking.cancel()
            await asyncio.wait((asking,))
    if written.position != until:
        raise BackupFailed(
            f"the store has nothing behind position {written.position}, though it ended at {until}:"
            " it is another one, begin anew"
        )


def decoded(page: bytes) -> tuple[list[StoredEvent], int, bool]:
    """The events of a page, the last position that it covers, and whether the store ends there."""
    plain = cbor2.loads(page)
    return list(map(StoredEvent.of, plain["events"])), plain["next"], plain["is_end"]
