"""What is looked at from outside while nodes are tormented, and what their logs tell afterwards.

`Pulse` measures the longest time in which nothing was acknowledged although a majority was
connected. `Memory` keeps what each process holds, next to how much is stored. `logs_tell` counts
elections and recoveries, which no metric can: metrics die with the process that counts them.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from cluster.bench.machine import resident_bytes
from cluster.chaos.ground import Ground

PULSE_S = 0.1
MEMORY_S = 5.0

_LEADS = re.compile(r"term (\d+), leader (n\d+)$")
_TOLD = {
    "recovered at index": "recoveries",
    "filled by": "fills",
    "starts empty and is filled": "damaged files noticed",
    "raft alarm": "alarms",
}
_MUST_NOT_RAISE = ("node.raft.replica", "node.api.server", "asyncio", "node.api.wire", "node")
"""Loggers whose tracebacks are defects; those of persistence may come from a full disk."""


class Pulse:
    """How long the cluster could have acknowledged and did not; and, as `silence_s`, how long it
    did not at all, be it that nobody could have.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.longest_at_s = 0.0
        self.silence_s = 0.0
        self._began = time.monotonic()
        self._acknowledged_at = self._began
        self._able_since: float | None = None

    def acknowledged(self) -> None:
        """An append was acknowledged now."""
        self._acknowledged_at = time.monotonic()

    def look(self, able: bool) -> None:
        """Whether a majority is connected now. To be called often."""
        now = time.monotonic()
        self.silence_s = max(self.silence_s, now - self._acknowledged_at)
        if not able:
            self._able_since = None
            return
        if self._able_since is None:
            self._able_since = now
        quiet_s = now - max(self._able_since, self._acknowledged_at)
        if quiet_s > self.longest_s:
            self.longest_s, self.longest_at_s = quiet_s, now - self._began

    async def watch(self, ground: Ground, stop: asyncio.Event) -> None:
        """Look until told to stop."""
        while not stop.is_set():
            self.look(ground.majority_connected())
            await asyncio.sleep(PULSE_S)


class Sample(NamedTuple):
    """One node's memory at one moment."""

    at_s: float
    events: int
    resident_bytes: int


class Memory:
    """Resident memory of each node over time, beside how many events are stored about then."""

    def __init__(self) -> None:
        self.events = 0
        self.samples: dict[str, list[Sample]] = {}
        self._began = time.monotonic()

    def take(self, pids: Mapping[str, int | None]) -> None:
        """One sample of each process that runs."""
        for node_id, pid in pids.items():
            if pid is None:
                continue
            try:
                resident = resident_bytes(pid)
            except (OSError, StopIteration):
                continue  # It ended between the two looks.
            sample = Sample(time.monotonic() - self._began, self.events, resident)
            self.samples.setdefault(node_id, []).append(sample)


def logs_tell(files: Iterable[Path]) -> Counter[str]:
    """Count what the nodes' logs say: elections (terms that got a leader), recoveries, alarms."""
    told: Counter[str] = Counter()
    terms: set[int] = set()
    for file in files:
        with file.open(errors="replace") as lines:
            for line in lines:
                _take_line(line, told, terms)
    told["elections"] = len(terms)
    return told


def _take_line(line: str, told: Counter[str], terms: set[int]) -> None:
    try:
        entry = json.loads(line)
        message = entry["message"]
    except (ValueError, KeyError, TypeError):
        told["lines that are no log"] += bool(line.strip())
        return
    led = _LEADS.search(message)
    if led:
        terms.add(int(led[1]))
    for words, kind in _TOLD.items():
        told[kind] += words in message
    told["unexpected exceptions"] += "exception" in entry and entry["logger"] in _MUST_NOT_RAISE
