"""Clients that record and delete snapshots of aggregates, each of an aggregate of its own.

    I16  what a client was told of its snapshots is what the cluster holds in the end; a request
         whose fate is unknown may have been carried out at any time since

That all nodes have the same snapshots at every cut and after every fill is part of I13.
"""

from __future__ import annotations

import asyncio
from typing import Any

from node.core import commands
from node.core.frames import ABSENT
from node.core.outcomes import (
    SnapshotDeleted,
    SnapshotNotFound,
    SnapshotRecorded,
)
from node.core.snapshots import encode_content
from node.core.store import Store
from node.errors import ExesdbError
from tests.simulation.clients import TIMEOUT_MS, Client, Gone
from tests.simulation.nodes import STORE

VERSIONS = 6
STREAM = "folded"


class SnapshotClient(Client):
    """One that only records and deletes."""

    def __init__(self, source: str, *others: Any) -> None:
        super().__init__(*others)
        self._source = source
        self._certain: dict[int, bytes | None] = {}  # what was last acknowledged
        self._unknown: dict[int, set[bytes | None]] = {}  # what else may be there

    async def run(self, until: float, pause_s: float) -> None:
        """Requests, one after the other."""
        while self._loop.time() < until:
            await asyncio.sleep(self._chance.expovariate(1 / pause_s))
            await self._change()

    async def _change(self) -> None:
        chance, version, content = self._chance, self._chance.randrange(VERSIONS), None
        if chance.random() < 0.3:
            command = commands.delete_snapshot(STORE, self._source, STREAM, version)
        else:
            content = encode_content("T", chance.randbytes(chance.choice([9, 300])), ABSENT)
            created_us = int(self._loop.time() * 1e6)
            command = commands.put_snapshot(
                STORE, created_us, self._source, STREAM, version, content
            )
        forgets = self.forgets
        try:
            outcome, _ = await self._asked(
                chance.choice(self._nodes),
                lambda life: life.replica.propose(command, TIMEOUT_MS),
                TIMEOUT_MS,
            )
        except ExesdbError as error:
            known = error.stored == "no"
        except Gone as error:
            known = not error.args
        else:
            if not isinstance(outcome, SnapshotRecorded | SnapshotDeleted | SnapshotNotFound):
                self._fail(f"I16: a snapshot was answered {outcome}")
            if forgets == self.forgets:
                self._certain[version] = content
                return
            known = False
        if not known:
            self._unknown.setdefault(version, set()).add(content)

    def forget(self, position: int, certain: int) -> None:
        """All power was lost: nothing is certain of what was told before."""
        super().forget(position, certain)
        for version, content in self._certain.items():
            self._unknown.setdefault(version, set()).update({content, None})
        self._certain.clear()

    def judge(self, store: Store) -> None:
        """Compare what this client was told with what the cluster holds in the end."""
        for version, content in self._certain.items():
            found = store.snapshots.get(self._source, STREAM, version)
            held = None if found is None else found.content
            if held not in {content, *self._unknown.get(version, ())}:
                self._fail(f"I16: snapshot {version} of {self._source} is {held!r}, not what "
                           f"was acknowledged: {content!r}")  # fmt: skip
