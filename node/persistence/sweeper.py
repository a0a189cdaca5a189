"""Giving memory and disk back once events were removed (see `core.lives`).

Each node does so by itself, and nobody can tell whether it has: a husk takes the place of a frame,
first in memory, then in the store's file (see `core.husks`). It may happen as soon as the node's
cut on disk has passed the removal, because a restart begins at the cut and must have all that was
there to be read. Where nothing is persisted it may happen at once. And it waits while another node
is being filled with a state from before the removal, for the same reason.

    memory   slices of a millisecond at most on the event loop, with a rest after each
    disk     a transaction for some blocks (see `blocks`), in the persistence thread: what a forced
             cycle may have to wait for is one of them
    space    free pages go from the file in steps, at the end of each store's work, and then its WAL
             is folded: only that makes the file shorter

Frames are let go together, up to `_HELD_BYTES`, and not one by one as husks take their places.
Python keeps small objects in arenas of 1 MiB, which go back to the system only when they are empty;
one by one, husks would settle down in each of them. What the C library keeps of larger ones is
given back by `malloc_trim` at the end.

Nothing of it has to be remembered. A start finds in its files which events were removed, and whose
frames are there all the same. A disk that fails is tried again, every `_AGAIN_S`, and meanwhile
nothing further is swept. A file that is found damaged is left to the next cycle to write anew.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
from collections.abc import Awaitable, Callable, Collection

from node.core.state import State
from node.core.store import Store
from node.persistence.database import Database
from node.persistence.faults import FileFault, StoreDamaged
from node.persistence.ledger import Ledger, Removal

log = logging.getLogger(__name__)

_PAUSE_S = 0.5
_REST_S = 0.004
_AGAIN_S = 5.0
_EVENTS = 500  # of a slice in memory; a stream counts as one more
_BYTES = 512 * 1024
_POSITIONS = 1_000
_HELD_BYTES = 16 * 1024 * 1024

InThread = Callable[..., Awaitable[int]]


class Sweeper:
    """Sweeps the stores of one state, and their files in `database`, if there is one.

    `held_from` gives the index behind which nothing may be swept for the time being, or None.
    `complain` is told what could not be written, and why.
    """

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        database: Database | None,
        in_thread: InThread,
        held_from: Callable[[], int | None],
        complain: Callable[[str, str], None],
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._database = database
        self._in_thread = in_thread
        self._held_from = held_from
        self._complain = complain
        self._held: list[bytes] = []
        self._held_bytes = 0

    async def run(self) -> None:
        """Sweep whatever may be swept, until cancelled."""
        while True:
            await asyncio.sleep(_PAUSE_S)
            if self._database is None:
                self._ledger.release_all()
            for removal in self._ledger.sweepable(self._held_from()):
                try:
                    await self._sweep(removal)
                except Exception:
                    # A defect of ours. What it left is swept by the next start.
                    log.exception("sweeping store %s failed", removal.name)

    async def _sweep(self, removal: Removal) -> None:
        store = self._state.stores.get(removal.name)
        if store is None or store.origin is not removal.origin:
            return
        began_at = store.swept_bytes
        swept = await self._sweep_memory(store, removal)
        if store.swept_bytes - began_at >= _HELD_BYTES:
            await asyncio.get_running_loop().run_in_executor(None, _trim)
        await self._sweep_disk(store, swept)
        await self._give_back(store)

    async def _sweep_memory(self, store: Store, removal: Removal) -> bytearray:
        """Put husks in the places of all frames; a 1 at each position where that was done."""
        swept = bytearray(store.position + 1)
        events, freed_at = _EVENTS, store.swept_bytes + _BYTES
        for ordinal, until in removal.until.items():
            stream = store.stream_list[ordinal]
            while stream.swept < min(until, stream.first):
                before = stream.swept
                replaced = store.sweep(stream, until, events, freed_at - store.swept_bytes)
                for position in replaced:
                    swept[position] = 1
                self._let_go(replaced.values())
                events -= stream.swept - before + 1
                if events <= 0 or store.swept_bytes >= freed_at:
                    await asyncio.sleep(_REST_S)
                    events, freed_at = _EVENTS, store.swept_bytes + _BYTES
        self._held, self._held_bytes = [], 0
        return swept

    async def _sweep_disk(self, store: Store, swept: bytearray) -> None:
        """Write the husks in order of position, so that each block is written once."""
        positions: list[int] = []
        at = swept.find(1)
        while self._database is not None:
            while at > 0 and len(positions) < _POSITIONS:
                positions.append(at)
                at = swept.find(1, at + 1)
            written = await self._write(store, positions) if positions else 0
            if not written:
                return
            del positions[:written]

    def _let_go(self, frames: Collection[bytes]) -> None:
        self._held.extend(frames)
        self._held_bytes += sum(map(len, frames))
        if self._held_bytes >= _HELD_BYTES:
            self._held, self._held_bytes = [], 0

    async def _write(self, store: Store, positions: list[int]) -> int:
        """Bring husks to the disk, if it takes as long as it may; how many, 0 if no others need
        follow.
        """
        while self._database is not None and self._is_there(store):
            try:
                return await self._in_thread(self._database.sweep, store, positions)
            except FileFault as fault:
                self._complain(f"what is left of removed events of store {store.name}", str(fault))
                if isinstance(fault, StoreDamaged):
                    # It is written anew, from memory, where the husks are by now.
                    return 0
            await asyncio.sleep(_AGAIN_S)
        return 0

    async def _give_back(self, store: Store) -> None:
        while self._database is not None and self._is_there(store):
            if not await self._in_thread(self._database.give_back, store):
                return
            await asyncio.sleep(_REST_S)

    def _is_there(self, store: Store) -> bool:
        """Whether the store goes on from this very history: a fill may have brought another."""
        current = self._state.stores.get(store.name)
        return current is not None and current.origin is store.origin


def _trim() -> None:
    """Have the C library give back what it keeps; other ones than glibc do so by themselves."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
