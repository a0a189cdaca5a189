"""Answers of one turn leave together, in order, and none is kept past its bound."""

from __future__ import annotations

import asyncio

from node.api.outbox import _BYTES_MAX, Outbox


class Transport(asyncio.Transport):
    """Remembers what was written."""

    def __init__(self, written: list[bytes]) -> None:
        super().__init__()
        self.written = written
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if self.closing:
            raise RuntimeError("the handler is closed")
        self.written.append(data)


async def test_answers_wait_for_the_end_of_the_turn_and_keep_their_order() -> None:
    written: list[bytes] = []
    outbox = Outbox(asyncio.get_running_loop())
    one, other = Transport(written), Transport(written)
    for number in range(4):
        outbox.add((one, other)[number % 2], b"%d" % number)
    assert written == []
    behind = asyncio.get_running_loop().create_future()
    behind.get_loop().call_soon(lambda: behind.set_result(list(written)))
    assert await behind == [b"0", b"1", b"2", b"3"], "what is scheduled later sees them written"


async def test_flush_writes_at_once_and_nothing_twice() -> None:
    written: list[bytes] = []
    outbox = Outbox(asyncio.get_running_loop())
    outbox.add(Transport(written), b"first")
    outbox.flush()
    assert written == [b"first"]
    outbox.add(Transport(written), b"second")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert written == [b"first", b"second"]


async def test_a_client_that_left_costs_the_others_nothing() -> None:
    written: list[bytes] = []
    outbox = Outbox(asyncio.get_running_loop())
    gone = Transport(written)
    outbox.add(gone, b"to nobody")
    outbox.add(Transport(written), b"to somebody")
    gone.closing = True
    outbox.flush()
    assert written == [b"to somebody"]


async def test_past_its_bound_it_does_not_wait() -> None:
    written: list[bytes] = []
    outbox = Outbox(asyncio.get_running_loop())
    part = b"x" * (_BYTES_MAX // 2)
    outbox.add(Transport(written), part)
    outbox.add(Transport(written), part)
    assert written == []
    outbox.add(Transport(written), b"y")
    assert written == [part, part, b"y"]
