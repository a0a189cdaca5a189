"""A consumer of the subscription: it handles events, refuses some, and writes down what it sees.

It runs as a task (`consumers_beside`), or as a process of its own that can be killed
(`consumers_killed`):

    python -m cluster.chaos.consumers NAME FILE SEED ACK_TIMEOUT_S URL...

Of all events it refuses one in five: most are to be tried again, some parked or skipped. Those that
say so themselves (`POISON`) are refused each time. A record is in the file before what it tells of
goes on, so that nothing is forgotten with the process.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.chaos.deliveries import End, ParkedEvent, Wanted
from cluster.client import Client, Filter
from cluster.client_consumer import Action, Delivery
from cluster.client_errors import ClientError

SUBSCRIPTION = "shared"
POISON = "poison"
MAX_IN_FLIGHT = 10
CALL_S = 30.0
"""How long a client asks on while nodes die, which is far from any election's time."""

_RETRY, _PARK, _SKIP = 0.14, 0.17, 0.20  # each up to the next: one in five is refused
_HANDLING_S = 0.08  # at most
_CLOCK_SLACK_S = 0.1


class Notebook:
    """A file of records, each written at once."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(self, op: str, **fields: Any) -> None:
        """Write a record, with the time."""
        line = json.dumps({"op": op, "at": time.monotonic(), **fields}, separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")

    def __enter__(self) -> Notebook:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)


async def consume(
    client: Client, name: str, notes: Notebook, chance: random.Random, ack_timeout_s: float
) -> None:
    """Handle events until this is cancelled."""
    async with client.consume(SUBSCRIPTION, name, MAX_IN_FLIGHT) as consumer:
        async for delivery in consumer:
            event = delivery.event
            about = {"position": event.position, "attempt": delivery.attempt}
            notes.note("got", **about, consumer=name, received=delivery.until - ack_timeout_s,
                       stream=event.stream, number=event.number, id=event.id)  # fmt: skip
            await asyncio.sleep(_HANDLING_S * chance.random())
            action = _decide(delivery, chance)
            notes.note("said", **about, action=action or "ack")
            settled = delivery.ack() if action is None else delivery.nack(action)
            settled.add_done_callback(partial(_told, notes, about))


async def the_end(client: Client, wanted: Filter) -> End:
    """What there is once nothing is left to do; `wanted` is the subscription's filter."""
    events = [
        Wanted(one.position, one.stream, one.number, one.id) async for one in client.read(0, wanted)
    ]
    zero = time.time() - time.monotonic() + _CLOCK_SLACK_S
    parked = [
        ParkedEvent(one.event.position, one.attempts, one.why, one.parked_us / 1e6 - zero)
        async for one in client.parked(SUBSCRIPTION)
    ]
    found = await client.subscription(SUBSCRIPTION)
    assert found is not None
    return End(events, parked, found.totals)


def _decide(delivery: Delivery, chance: random.Random) -> Action | None:
    drawn = chance.random()
    if delivery.event.data == POISON or drawn < _RETRY:
        return "retry"
    if drawn < _PARK:
        return "park"
    return "skip" if drawn < _SKIP else None


def _told(notes: Notebook, about: dict[str, int], settled: asyncio.Future[bool]) -> None:
    if settled.cancelled():
        return
    error = settled.exception()
    if error is not None and not isinstance(error, ClientError):
        notes.note("failed", **about, error=repr(error))
        return
    notes.note("told", **about, counted=None if error else settled.result())


async def _process(name: str, file: str, seed: str, ack_timeout_s: str, *urls: str) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with Notebook(Path(file)) as notes:
        async with Client(*urls, timeout_s=CALL_S) as client:
            await consume(client, name, notes, random.Random(seed), float(ack_timeout_s))


if __name__ == "__main__":
    try:
        asyncio.run(_process(*sys.argv[1:]))
    except asyncio.CancelledError:
        sys.exit(0)
