"""Clients that append to streams of their own, and remove what is in them.

They delete softly and for ever, truncate, and limit the number and the age of events; the product
removes what is too old by itself. In a share of the seeds only. What has to hold: everything that
they were told (I17); every node has removed the same at the same index (I13), where a removed event
may have left no more than its print; and nobody is handed what was removed before (I18).
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from node.core import commands, life_commands
from node.core.commands import ANY
from node.core.outcomes import (
    Appended,
    MetadataSet,
    StreamDeleted,
    StreamNotFound,
    StreamRemoved,
)
from node.core.stream import Limits
from tests.simulation.nodes import STORE
from tests.simulation.told import ToldClient

SHARE = 0.3  # of the seeds
STREAMS = ("d0", "d1", "d2")
STEPS_MAX = 24
PAUSE_S = 0.4


class Remover(ToldClient):
    """One of those that share a few streams."""

    def __init__(self, *others: Any) -> None:
        super().__init__(*others)
        self._steps_left = STEPS_MAX
        self.removed = 0

    async def run(self, until: float, pause_s: float) -> None:
        """Requests, one after the other."""
        while self._loop.time() < until and self._steps_left:
            await asyncio.sleep(self._chance.expovariate(1 / PAUSE_S))
            self._steps_left -= 1
            kinds = [self._append, self._limit, self._delete]
            (step,) = self._chance.choices(kinds, [6, 3, 1.5])
            await step(self._chance.choice(STREAMS))

    async def _append(self, stream: str) -> None:
        frames = [self._event() for _ in range(self._chance.randint(1, 4))]
        outcome = await self._ask(
            lambda now_us: commands.append(STORE, now_us, stream, ANY, frames)
        )
        if not isinstance(outcome, Appended | StreamDeleted | None):
            self._fail(f"I17: an append to a stream with limits was answered {outcome}")

    async def _limit(self, stream: str) -> None:
        limits = Limits(
            self._chance.choice([None, None, 1, 3]),
            self._chance.choice([None, None, 500, 3_000]),
            self._chance.choice([None, 2, 5, 2**40]),
        )
        outcome = await self._ask(lambda _: life_commands.set_metadata(STORE, stream, limits))
        if not isinstance(outcome, MetadataSet | StreamNotFound | StreamDeleted | None):
            self._fail(f"I17: limits of a stream were answered {outcome}")

    async def _delete(self, stream: str) -> None:
        hard = self._chance.random() < 0.15
        outcome = await self._ask(lambda _: life_commands.delete_stream(STORE, stream, ANY, hard))
        if isinstance(outcome, StreamRemoved):
            self.removed += 1
        elif not isinstance(outcome, StreamNotFound | StreamDeleted | None):
            self._fail(f"I17: a deletion was answered {outcome}")


def made(chance: random.Random, *others: Any) -> list[Remover]:
    """The removers of a seed, which may be none."""
    if chance.random() >= SHARE:
        return []
    *asking, fail = others
    return [Remover(name, *asking, random.Random(chance.random()), fail) for name in ("r0", "r1")]
