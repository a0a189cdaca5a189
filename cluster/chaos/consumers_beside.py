"""Consumers of one persistent subscription, beside all else that a trial does.

They are tasks and never killed, other than in `consumers_killed`: they refuse one event in five,
and now and then one leaves. One writer in ten appends what they want. While the nodes are
tormented, a record of a fault is written all the time, since any answer may be lost then; so that
an event comes again early is not judged, but all else is (`deliveries`). In the end the members
must agree on what became of each event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cluster.chaos.consumers import CALL_S, SUBSCRIPTION, Notebook, consume, the_end
from cluster.chaos.deliveries import FAULT_S, Judgement, Terms, judge
from cluster.chaos.ground import STORE, Ground
from cluster.chaos.history import SHARED_TYPE
from cluster.client import Client, Filter

CONSUMERS = 4
TERMS = Terms(ack_timeout_s=8.0, max_retries=3)
IN_FLIGHT = 100
DRAIN_S = 120.0

_WANTED = Filter((SHARED_TYPE,))
_LEAVES_EVERY_S = 5.0
_FAULT_EVERY_S = FAULT_S * 0.8
_AGAIN_S = 0.2


class Shared:
    """The subscription of a trial. Made by `consuming`."""

    def __init__(self, ground: Ground, client: Client, notes: Notebook, file: Path) -> None:
        self.calm = asyncio.Event()
        self.judgement = Judgement()
        self._ground = ground
        self._client = client
        self._notes = notes
        self._file = file
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self) -> None:
        """Make it."""
        await self._client.create_subscription(
            SUBSCRIPTION,
            _WANTED,
            ack_timeout_ms=int(TERMS.ack_timeout_s * 1000),
            max_retries=TERMS.max_retries,
            max_in_flight=IN_FLIGHT,
        )

    async def consume(self, chance: random.Random) -> None:
        """Keep consumers at work, whoever leaves, until this is cancelled."""
        names = [f"c{number}" for number in range(CONSUMERS)]
        try:
            for name in names:
                self._work(name, chance)
            while True:
                await asyncio.sleep(chance.expovariate(1 / _LEAVES_EVERY_S))
                name = chance.choice(names)
                await self._leave(name)
                self._work(name, chance)
        finally:
            await asyncio.gather(*map(self._leave, self._tasks))

    async def note_faults(self) -> None:
        """Any answer may be lost, until `calm`."""
        while not self.calm.is_set():
            self._notes.note("fault")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.calm.wait(), _FAULT_EVERY_S)
        self._notes.note("fault")

    async def drain(self) -> None:
        """Wait until no member owes anything, and judge. Nobody appends any more."""
        path = f"/v1/stores/{STORE}/subscriptions/{SUBSCRIPTION}?consistency=linearizable"
        end = time.monotonic() + DRAIN_S
        while True:
            seen = {name: await self._ground.ask("GET", name, path) for name in self._ground.nodes}
            if all(map(_is_done, seen.values())):
                break
            if time.monotonic() > end:
                self.judgement.add("stuck", f"not done within {DRAIN_S:g} s: {seen}")
                return
            await asyncio.sleep(_AGAIN_S)
        self.judgement = judge(self._records(), await the_end(self._client, _WANTED), TERMS)
        if len({json.dumps([one["totals"], one["parked"]]) for one in seen.values()}) > 1:
            self.judgement.add("differing", f"members say {seen}")

    def _work(self, name: str, chance: random.Random) -> None:
        own = random.Random(chance.getrandbits(64))
        work = consume(self._client, name, self._notes, own, TERMS.ack_timeout_s)
        self._tasks[name] = asyncio.create_task(work)

    async def _leave(self, name: str) -> None:
        """Let a consumer end. Raises what ended it before, if something did."""
        task = self._tasks[name]
        if task.done():
            await task
        self._notes.note("left", consumer=name)
        task.cancel()
        await asyncio.wait({task})

    def _records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._file.read_text().splitlines()]


@contextlib.asynccontextmanager
async def consuming(
    ground: Ground, directory: Path, chance: random.Random
) -> AsyncIterator[Shared]:
    """Consumers at work, until the end of the block."""
    file = directory / "consumers.jsonl"
    with Notebook(file) as notes:
        async with Client(*ground.urls.values(), timeout_s=CALL_S) as client:
            shared = Shared(ground, client, notes, file)
            await shared.begin()
            async with asyncio.TaskGroup() as tasks:
                working = tasks.create_task(shared.consume(chance))
                noting = tasks.create_task(shared.note_faults())
                try:
                    yield shared
                finally:
                    working.cancel()
                    noting.cancel()


def _is_done(status: Any) -> bool:
    owed = ("lag", "streams_behind", "in_flight", "waiting")
    return status is not None and not any(status[one] for one in owed)
