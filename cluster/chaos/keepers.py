"""Who records, deletes and reads snapshots of aggregates; and the judge of what they were told.

Each keeper has an aggregate of its own and does one thing after the other, at any node, so that
what it was told last is certain; a request without a certain end may be carried out at any later
time. Reads are linearizable.

    snapshot lost   in the end, or in a read, a version is not what was acknowledged last, nor what
                    a request of unknown fate would have made of it
    differing       two nodes with other snapshots
"""

from __future__ import annotations

import random
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import aiohttp

from cluster.chaos.clients import PERHAPS, REQUEST, TIMEOUT_MS, Ends, wait
from cluster.chaos.history import ACKNOWLEDGED, REFUSED, UNKNOWN, content_of

if TYPE_CHECKING:  # the checker hands it in
    from cluster.chaos.checker import Findings

KEEPERS = 2
VERSIONS = 20
STREAM = "folded"

_EVERY_S = 0.3
_READS = 0.3
_DELETES = 0.2

Kept = Mapping[tuple[str, int], str]
"""Of each source and version the id in its data."""


class Keeper:
    """Keeps the snapshots of one aggregate."""

    def __init__(self, ends: Ends, chance: random.Random, number: int) -> None:
        self._ends = ends
        self._chance = chance
        self._source = f"aggregate-{number}"

    async def run(self) -> None:
        """One request after the other until told to stop."""
        while not self._ends.stop.is_set():
            version = self._chance.randrange(VERSIONS)
            await (self._read if self._chance.random() < _READS else self._change)(version)
            await wait(self._ends.stop, self._chance.expovariate(1 / _EVERY_S))

    async def _change(self, version: int) -> None:
        made = str(uuid.UUID(int=self._chance.getrandbits(128), version=4))
        deletes = self._chance.random() < _DELETES
        record = {"op": "snapshot", "source": self._source, "version": version,
                  "id": None if deletes else made, "sent": time.monotonic(),
                  "outcome": UNKNOWN, "strange": None}  # fmt: skip
        body = None if deletes else {"source_type": "Chaos", "data": content_of(made)}
        method = "DELETE" if deletes else "PUT"
        try:
            async with self._ends.http.request(
                method, self._url(version, f"timeout_ms={TIMEOUT_MS}"), json=body, timeout=REQUEST
            ) as answer:
                status = answer.status
            if status in (200, 201, 204) or (deletes and status == 404):
                record["outcome"] = ACKNOWLEDGED
            elif status == 503:
                record["outcome"] = REFUSED
            elif status != PERHAPS:
                record["strange"] = str(status)
        except (aiohttp.ClientError, TimeoutError):
            pass  # also without a connection: aiohttp sends PUT and DELETE twice by itself
        self._ends.history.record(record)

    async def _read(self, version: int) -> None:
        url = self._url(version, f"consistency=linearizable&timeout_ms={TIMEOUT_MS}")
        try:
            async with self._ends.http.get(url, timeout=REQUEST) as answer:
                if answer.status not in (200, 404):
                    return
                told = await answer.json(content_type=None)
                found = told["data"]["id"] if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return
        self._ends.history.record(
            {"op": "snapshot_read", "source": self._source, "version": version, "id": found}
        )

    def _url(self, version: int, query: str) -> str:
        node = self._chance.choice(list(self._ends.urls.values()))
        return f"{node}{self._ends.path}/snapshots/{self._source}/{STREAM}/{version}?{query}"


class Aggregates:
    """The judge; takes the records in the order in which each keeper wrote them."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._certain: dict[tuple[str, int], str | None] = defaultdict(lambda: None)
        self._possible: dict[tuple[str, int], set[str | None]] = defaultdict(set)

    def change(self, record: Mapping[str, Any]) -> None:
        """One record or removal."""
        key = record["source"], record["version"]
        self._findings.snapshots[record["outcome"]] += 1
        if record["strange"]:
            self._findings.add("strange", f"{record['strange']} for snapshot {key}")
        if record["outcome"] == ACKNOWLEDGED:
            self._certain[key] = record["id"]
        elif record["outcome"] == UNKNOWN:
            self._possible[key].add(record["id"])

    def read(self, record: Mapping[str, Any]) -> None:
        """One linearizable read."""
        self._findings.snapshots["read"] += 1
        self._look((record["source"], record["version"]), record["id"], "a read")

    def finish(self, kept: Mapping[str, Kept]) -> None:
        """Compare with what each node has in the end."""
        first = next(iter(kept.values()), {})
        for node, theirs in kept.items():
            if theirs != first:
                self._findings.add("differing", f"{node} has other snapshots")
        for key in self._certain.keys() | first.keys():
            self._look(key, first.get(key), "the end")

    def _look(self, key: tuple[str, int], found: str | None, when: str) -> None:
        if found not in {self._certain[key], *self._possible[key]}:
            self._findings.add(
                "snapshot lost", f"{key} is {found} in {when}, not {self._certain[key]}"
            )
