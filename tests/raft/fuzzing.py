"""What a hostile or broken neighbour may send: noise before the handshake, nonsense after it.

A `Fuzzer` makes frames from a seed. What it says after the handshake is a message of ours of which
some fields are replaced: by numbers that make no sense, or by CBOR that is a trap (`TRAPS`). It
puts the bytes together by hand, because an encoder would not write most of it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_type_hints

import cbor2

from node.raft import entries, messages
from tests.raft.harness import event
from tests.raft.wire import CLUSTER, STANDING

HELLO = ["exesdb-raft", 1, CLUSTER, "n3", "n1", 7, b"n" * 32, [STANDING.lineage, [], True]]


def laughs(levels: int) -> bytes:
    """A list of two, the second the same as the first, and so on: 2^levels items in 7 bytes each.

    References count shared items from the outside in.
    """
    item = b"\x00"
    for level in range(levels, 0, -1):
        item = b"\xd8\x1c\x82" + (b"\xd8\x1c" if level == levels else b"") + item
        item += b"\xd8\x1d" + cbor2.dumps(level)
    return item


TRAPS = [
    b"\x81" * 5000 + b"\x00",  # nested far too deep
    b"\x81" * 20 + b"\x00",
    b"\xa1\x61a" * 300 + b"\x00",
    b"\xd8\x1c\x81\xd8\x1d\x00",  # a list that holds itself
    laughs(60),
    b"\xd8\x1d\x00",  # a reference to nothing
    b"\xc2\x58\xff" + b"\xff" * 255,  # big integers, beyond what Python shows as text, too
    b"\xc2\x59\x10\x00" + b"\xff" * 4096,
    b"\xc4\x82\x1a\x3b\x9a\xca\x00\x01",  # a decimal of a thousand million digits
    b"\xc5\x82\x1a\x00\x0f\x42\x40\x01",
    b"\xd8\x1e\x82\x01\x00",  # one divided by nothing
    b"\xc0\x78\x1e" + b"2" * 30,  # dates
    b"\xc1\x1b\x0d\xe0\xb6\xb3\xa7\x64\x00\x00",
    b"\xd8\x23\x67(a+)+$(",  # a regular expression
    b"\xd8\x24\x64a: b",  # an e-mail
    b"\xd8\x25\x41x",  # a UUID of one byte
    b"\xd9\x01\x02\x81\x80",  # a set of lists
    b"\xd9\x01\x00\x83\x43abc\xd8\x19\x00\xd8\x19\x09",  # references to texts
    b"\xd9\xd9\xf7\x00",
    b"\x9f\x00\x00\xff",  # lengths that are not said in advance
    b"\x5f\x41a\x41b\xff",
    b"\x9b\x40" + b"\x00" * 7,  # an array of 2^62 items, a text of 2^40 bytes
    b"\x7b\x00\x00\x01" + b"\x00" * 5,
    b"\x62\xc3\x28",  # no UTF-8
    b"\xfb\x7f\xf8" + b"\x00" * 6,  # not a number, infinity, undefined, a simple value
    b"\xf9\x7c\x00",
    b"\xf7",
    b"\xf8\xff",
    b"\xff",
    b"",
    *(cbor2.dumps(number) for number in (-1, 2**62 + 1, 2**63, 2**64 - 1, -(2**64))),
    b"\xa2\x61a\x00\x61a\x01",  # a key twice, a key that is a list
    b"\xa1\x80\x00",
    cbor2.dumps("x" * 5000),
    cbor2.dumps([b""] * 3000),
    cbor2.dumps({f"{number}": number for number in range(500)}),
]

NUMBERS = [0, 1, 2, 2**31, 2**32, 2**53, 2**61, 2**62]  # beyond these a message is malformed
TEXTS = ["", "n1", "n2", "nobody", "leader", "not leading", "full", "fill_begin", "fill_rows"]
TEXTS += ["hand_over", "read_index", "flush", "\0", "é" * 300, "x" * 1024]


class Fuzzer:
    """Frames without sense, and the same ones again for the same seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def noise(self) -> bytes:
        """What a stranger sends: one frame or what is none, and perhaps more behind it."""
        chance = self.chance
        kind = chance.randrange(6)
        if kind == 0:
            return chance.randbytes(chance.randint(1, 3000))
        if kind == 1:
            return struct.pack(">I", chance.choice([1025, 2**31, 2**32 - 1])) + b"x" * 10
        if kind == 2:
            return framed(self._greeting())[: chance.randint(1, 90)]
        if kind == 3:
            return framed(chance.choice(TRAPS)[:1024])
        if kind == 4:
            return framed(self._damaged(self._greeting()))
        return framed(self._greeting()) + framed(chance.choice([b"", b"\x81", *TRAPS])[:1024])

    def _greeting(self) -> bytes:
        fields = [cbor2.dumps(field) for field in HELLO]
        if self.chance.random() < 0.8:
            fields[self.chance.randrange(len(fields))] = self.chance.choice(TRAPS)[:900]
        return b"\x88" + b"".join(fields)

    def message(self, term: int, index: int, term_max: int) -> bytes:
        """A message of a proven peer, of no term beyond `term_max`; one in ten is malformed."""
        number = self.chance.randrange(len(messages._KINDS))
        kind = messages._KINDS[number]
        near = [term, term, index - 1, index, index + 1]
        fields = [
            self._term(term, term_max) if name == "term" else self._field(name, hint, near)
            for name, hint in get_type_hints(kind).items()
        ]
        malformed = self.chance.randrange(20)
        if malformed == 0:
            fields[self.chance.randrange(len(fields))] = self.chance.choice(TRAPS)
        content = bytes((0x80 | (len(fields) + 2), messages.GROUP, number)) + b"".join(fields)
        if malformed == 1:
            content = self._damaged(content)
        if _understood_term(content) > term_max:  # it was damaged into that
            return self.message(term, index, term_max)
        return content

    def _term(self, term: int, term_max: int) -> bytes:
        wild = [at for at in (*NUMBERS, term + 1) if at <= term_max]
        return cbor2.dumps(self.chance.choice([term, term, term, *wild]))

    def _field(self, name: str, hint: Any, near: list[int]) -> bytes:
        chance = self.chance
        if name == "entries":
            value: Any = [self._entry(near[0]) for _ in range(chance.choice([0, 0, 1, 3]))]
        elif name == "sequences":
            value = [chance.choice(NUMBERS) for _ in range(2)]
        elif name == "commands":
            value = [chance.choice([b"", b"\x87\x01\x00", event(1)]) for _ in range(2)]
        elif hint is int:
            value = chance.choice([*near, *near, *NUMBERS])
        elif hint is bool:
            value = chance.random() < 0.5
        elif hint is str:
            value = chance.choice(TEXTS)
        else:
            parts = [chance.choice([None, -5, 0, 1, 2**63, 0.5, "x", [], {}]) for _ in range(6)]
            value = chance.choice([*parts, parts[:3], parts[:5], parts])
        return cbor2.dumps(value)

    def _entry(self, term: int) -> list[Any]:
        group = entries.Group("n1", 1, [1, 2**61], [b"x", b"\x87\x01\x00"])
        wrong = cbor2.dumps([1, [["n1", 1, [[], {}], [b"x", b"y"]]]])
        content = [b"\x01", b"x", entries.encode([group]), wrong, *TRAPS[:5]]
        return [term, self.chance.choice(content)]

    def _damaged(self, content: bytes) -> bytes:
        damaged = bytearray(content)
        for _ in range(self.chance.randint(1, 4)):
            damaged[self.chance.randrange(len(damaged))] ^= 1 << self.chance.randrange(8)
        return bytes(damaged)


def _understood_term(content: bytes) -> int:
    """The term of a message as its receiver reads it; 0 where there is none."""
    try:
        return getattr(messages.decode(content), "term", 0)
    except messages.MalformedMessage:
        return 0


def framed(payload: bytes) -> bytes:
    """A payload behind its length."""
    return struct.pack(">I", len(payload)) + payload


class Pulse:
    """How long this thread computed, at most, before a task that was due had its turn.

    Processor time and not the clock: other processes share these processors.
    """

    def __init__(self) -> None:
        self.worst_ms = 0.0

    async def __aenter__(self) -> Pulse:
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            self.worst_ms = max(self.worst_ms, (time.thread_time() - before) * 1000)


class Complaints(logging.Handler):
    """Everything that was logged with an exception, and what the loop could not hand to anyone."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or (record.name == "asyncio" and record.levelno >= logging.ERROR):
            self.found.append(self.format(record))

    def from_loop(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.found.append(f"{context.get('message')}: {context.get('exception')!r}")


@contextmanager
def complaints() -> Iterator[Complaints]:
    """Collect complaints of the running loop and of all loggers."""
    handler, loop = Complaints(), asyncio.get_running_loop()
    logging.getLogger().addHandler(handler)
    loop.set_exception_handler(handler.from_loop)
    try:
        yield handler
    finally:
        logging.getLogger().removeHandler(handler)
        loop.set_exception_handler(None)
