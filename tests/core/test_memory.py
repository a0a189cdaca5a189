"""What an event costs in memory, all indexes included: a budget of the design, and no benchmark's.

It is half as much again as the event's frame, and 100 bytes. What is counted is what Python gives
out, in a state as full as after a long time: the ids that are remembered, else those of the last
100,000 to 200,000 events, are of one event in ten.
"""

from __future__ import annotations

import gc
import random
import tracemalloc

import pytest

from node.core import commands, recent
from node.core.frames import ABSENT, encode_frame
from tests.core.observed import started

EVENTS, BATCH, STREAMS = 20_000, 10, 100


@pytest.mark.parametrize("data_bytes", [32, 256])
def test_an_event_costs_no_more_than_its_frame_and_a_half_and_100_bytes(
    monkeypatch: pytest.MonkeyPatch, data_bytes: int
) -> None:
    monkeypatch.setattr(recent, "REMEMBERED_MIN", EVENTS // 20)
    chance, state, frame_bytes = random.Random(1), started(), 0
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(EVENTS // BATCH):
            frames = [
                encode_frame(
                    chance.randbytes(16),
                    "OrderPlaced",
                    b"\x59" + data_bytes.to_bytes(2, "big") + chance.randbytes(data_bytes),
                    ABSENT,
                    "application/cbor",
                    "",
                )
                for _ in range(BATCH)
            ]
            frame_bytes += sum(map(len, frames))
            stream = f"order-{number % STREAMS}"
            command = commands.append("main", number, stream, commands.ANY, frames)
            state.apply(2 + number, 1, [command])
        del frames, command
        gc.collect()
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert state.stores["main"].position == EVENTS
    print(f"{used / EVENTS:.0f} bytes an event, {frame_bytes / EVENTS:.0f} of them its frame")
    assert used <= 1.5 * frame_bytes + 100 * EVENTS
