"""Taking a backup: the pages of a store, up to one position, into a file.

While a page is written to the file (in a thread) the next one is under way: two pages at most are
held. Each page begins with the last event of the one before (`file.Written.add`), and may come
from another node: one that dies in the middle is passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import cbor2

from cluster.backup import BackupFailed
from cluster.backup.digest import StoredEvent
from cluster.backup.door import Door
from cluster.backup.file import Advance, Head, Written, partial_of
from cluster.client_errors import NotFound


async def begin(door: Door, path: Path, checkpoints: Sequence[str]) -> Written:
    """A new backup of the store as it is now, or the one that was interrupted.

    Raises BackupFailed and ClientError.
    """
    if await asyncio.to_thread(path.exists):
        raise BackupFailed(f"{path} is there already: name another file")
    positions = [(name, await _checkpoint(door, name)) for name in dict.fromkeys(checkpoints)]
    facts = await door.facts()
    if not await asyncio.to_thread(partial_of(path).exists):
        head = Head(door.store, facts.get("durability"), facts["position"], tuple(positions))
        return await asyncio.to_thread(Written.begin, path, head)
    written = await asyncio.to_thread(Written.resume, path)
    if written.head.store != door.store or written.head.until > facts["position"]:
        with written:
            raise BackupFailed(
                f"{partial_of(path)} is of another store, or of one that had more events:"
                " remove it, or name another file"
            )
    return written


async def _checkpoint(door: Door, name: str) -> int:
    """Where it stands. It is read before the store's end, so it does not point behind that."""
    try:
        found = await door.ask("GET", f"/checkpoints/{quote(name, safe='')}", [])
    except NotFound as error:
        raise BackupFailed(f"checkpoint {name!r}: {error}") from error
    return int(found["position"])


async def take(door: Door, written: Written, advance: Advance) -> None:
    """Write all events that are missing. Raises BackupFailed and ClientError."""
    until = written.head.until
    if written.position == until:
        return
    page = await door.page(max(0, written.position - 1), until)
    while True:
        events, following, is_end = await asyncio.to_thread(decoded, page)
        if following >= until or is_end:
            advance(await asyncio.to_thread(written.add, events))
            break
        asking = asyncio.create_task(door.page(following - 1, until))
        try:
            advance(await asyncio.to_thread(written.add, events))
            page = await asking
        finally:
            asking.cancel()
            await asyncio.wait((asking,))
    if written.position != until:
        raise BackupFailed(f"the store ended at {written.position}, before position {until}")


def decoded(page: bytes) -> tuple[list[StoredEvent], int, bool]:
    """The events of a page, the last position that it covers, and whether the store ends there."""
    plain = cbor2.loads(page)
    return list(map(StoredEvent.of, plain["events"])), plain["next"], plain["is_end"]
