"""`exesdb append`: one event from the command line, or any number of them as JSON lines.

Lines are appended as they come, `BATCH_EVENTS` at most in a request, each request as a whole or
not at all, one after the other. Where input pauses, what has come is appended. So a program's
output can be piped in, and a file of any length takes no more memory than a request.

If a run breaks off, repeat it with the same lines: lines that carry their `event_id` are not stored
twice. Where they carry none, go on behind what was stored: it is told which lines are
not, and which perhaps are.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import msgspec

from cluster import client_asking
from cluster.cli import incoming
from cluster.cli import options as shared
from cluster.cli.ending import INTERRUPTED, WRONG_USAGE, Failure, complain, end_by_sigterm, run
from cluster.cli.showing import say, say_json
from cluster.client import ANY, Client, Event
from cluster.client_errors import ClientError

BATCH_EVENTS = 500
LINE_BYTES_MAX = 8 * 1024 * 1024
_BATCH_BYTES_MAX = 4 * 1024 * 1024

_EXAMPLES = """\
  exesdb append order-7 OrderPlaced '{"total": 12}' --expect no_stream
  exesdb append order-7 PhotoTaken @photo.jpg --bytes
  exesdb append order-7 NoteAdded @- < note.json
  exesdb append order-7 --lines events.jsonl
  tail -f app.log.jsonl | exesdb append --lines -

A line of --lines is an object: event_type, data or data_base64, metadata or metadata_base64,
event_id, and stream, unless one is named.
"""


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """An event of `--lines`."""

    event_type: str
    stream: str | None = None
    event_id: uuid.UUID | None = None
    data: Any = None
    metadata: Any = None
    data_base64: bytes | None = None
    metadata_base64: bytes | None = None

    def event(self) -> Event:
        """As the client wants it. An id is made where there is none."""
        data = self.data if self.data_base64 is None else self.data_base64
        metadata = self.metadata if self.metadata_base64 is None else self.metadata_base64
        return Event(self.event_type, data, metadata, str(self.event_id or uuid.uuid4()))


class _WrongLine(Failure):
    """A line that cannot be appended."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"line {number}{what}", WRONG_USAGE, "wrong_input")
        self._number = number

    def tell(self, stored: int, as_json: bool) -> None:
        """What holds of it and of those before it, of which so many lines are dealt with."""
        first = stored + 1
        self.fields |= {"stored": False, "lines": [first, self._number]}
        if not as_json:
            self.detail += f"; not stored from line {first} on"


class Numbered(NamedTuple):
    """A line of the input with its number, from 1."""

    number: int
    text: bytes


def main(argv: list[str], prog: str = "exesdb append") -> int:
    """The exit code."""
    options = _parse(argv, prog)
    work = _lines(options) if options.lines else _one(options)
    return run(prog, work, options.json)


def _parse(argv: list[str], prog: str) -> argparse.Namespace:
    made = shared.store_parser(prog, "Append events to a stream.", _EXAMPLES)
    add = made.add_argument
    add("stream", nargs="?", help="where to; not needed if the lines say it")
    add("event_type", nargs="?", metavar="type", help="the event's type")
    add("data", nargs="?", help="JSON, or @FILE, or @- for stdin; none by default")
    add("--bytes", action="store_true", help="the data are bytes, not JSON")
    add("--metadata", metavar="JSON", help="JSON, or @FILE")
    add("--id", type=uuid.UUID, metavar="UUID", help="the event's id: makes it safe to repeat")
    add("--lines", metavar="FILE", help="append the events of a file of JSON lines, - for stdin")
    add("--expect", type=shared.expected, default=ANY, metavar="VERSION",
        help="the stream's version: a number, any (default), no_stream, stream_exists")  # fmt: skip
    add("--durability", choices=("replicated", "persisted"),
        help="once a majority has it in memory, or on disk; default: the store's")  # fmt: skip
    options = made.parse_args(argv)
    if options.lines:
        if options.event_type or options.bytes or options.metadata or options.id:
            made.error("--lines brings types, data and ids itself")
        if options.stream is None and options.expect != ANY:
            made.error("--expect needs the stream that it is about")
    elif options.event_type is None:
        made.error("name a stream and a type, or give --lines")
    return options


async def _one(options: argparse.Namespace) -> None:
    event = Event(
        options.event_type,
        await shared.value(options.data, options.bytes, "data"),
        await shared.value(options.metadata, False, "metadata"),
        str(options.id or uuid.uuid4()),
    )
    end_by_sigterm()
    wire = client_asking.Line()
    wire.use()
    async with shared.client(options) as client:
        try:
            done = await client.append(options.stream, [event], options.expect, options.durability)
        except ClientError as error:
            if error.stored:  # nobody else knows the id, without which it is stored twice
                error.detail += "" if options.json else f"; to repeat it safely: --id {event.id}"
                error.fields["event_id"] = event.id
            raise
        except asyncio.CancelledError:
            again = f"perhaps stored; to repeat it safely: --id {event.id}"
            fields = {"stored": wire.perhaps_stored, "event_id": event.id}
            _interrupted(options, again if wire.perhaps_stored else "not stored", fields)
            raise
    if options.json:
        say_json(dataclasses.asdict(done))
        return
    before = " already, by an earlier try" if done.idempotent else ""
    version = done.streams[options.stream]
    say(f"stored{before}: event {version} of {options.stream}, position {done.positions[0]}")


class _Progress:
    """What was stored so far."""

    def __init__(self, expected: int | str) -> None:
        self.events = self.requests = self.repeated = self.last_position = 0
        self.line = 0  # the last one of those that are stored
        self.expected = expected

    async def append(
        self, client: Client, batch: list[tuple[str, Event]], options: argparse.Namespace
    ) -> None:
        """Append a batch; the next one expects what this one left."""
        checks = {options.stream: self.expected} if self.expected != ANY else {}
        done = await client.append_many(batch, checks, durability=options.durability)
        if checks:
            self.expected = done.streams[options.stream]
        self.events += len(batch)
        self.requests += 1
        self.repeated += len(batch) if done.idempotent else 0
        self.last_position = max(self.last_position, *done.positions)

    def show(self, as_json: bool) -> None:
        """The sum."""
        if as_json:
            names = ("events", "requests", "repeated", "last_position")
            say_json({name: getattr(self, name) for name in names})
            return
        before = f", {self.repeated:,} of them already by an earlier try" if self.repeated else ""
        say(f"stored {self.events:,} events{before}, the last at position {self.last_position:,}")


async def _lines(options: argparse.Namespace) -> None:
    end_by_sigterm()
    wire = client_asking.Line()
    wire.use()
    done = _Progress(options.expect)
    async with shared.client(options) as client:
        try:
            async for lines in _batches(options.lines):
                batch = [_of_line(line, options.stream) for line in lines]
                try:
                    await done.append(client, batch, options)
                    done.line = lines[-1].number
                except ClientError as error:
                    _tell_of(error, lines, batch, options.json)
                    raise
                except asyncio.CancelledError:
                    stored = wire.perhaps_stored
                    _interrupted(options, _end(lines, stored), _fields(lines, batch, stored))
                    raise
        except BaseException as error:
            if isinstance(error, _WrongLine):
                error.tell(done.line, options.json)
            if done.events:
                done.show(options.json)
            raise
    done.show(options.json)


def _tell_of(
    error: ClientError, lines: list[Numbered], batch: list[tuple[str, Event]], as_json: bool
) -> None:
    """Which lines the error is about: nobody could go on behind what is stored without that."""
    error.fields |= _fields(lines, batch, error.stored)
    if not as_json:
        error.detail += f"; {_end(lines, error.stored)}"


def _fields(lines: list[Numbered], batch: list[tuple[str, Event]], stored: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"stored": stored, "lines": [lines[0].number, lines[-1].number]}
    if stored:
        fields["event_ids"] = [event.id for _, event in batch]
    return fields


def _end(lines: list[Numbered], stored: bool) -> str:
    """What holds of the lines of a request that did not go well, and of those behind it."""
    first, last = lines[0].number, lines[-1].number
    if not stored:
        return f"not stored from line {first} on"
    return f"lines {first} to {last} are perhaps stored, and nothing behind them"


def _interrupted(options: argparse.Namespace, what: str, fields: dict[str, Any]) -> None:
    """Ctrl-C or SIGTERM came while a request was under way: its outcome may be open."""
    complain(options.prog, Failure(what, INTERRUPTED, "interrupted", fields), options.json)


def _of_line(line: Numbered, stream: str | None) -> tuple[str, Event]:
    try:
        parsed = msgspec.json.decode(line.text, type=Line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _WrongLine(line.number, f": {error}") from None
    name = parsed.stream or stream
    if name is None or (stream is not None and name != stream):
        words = "names no stream" if name is None else f"names {name!r}, not {stream!r}"
        raise _WrongLine(line.number, f" {words}")
    return name, parsed.event()


async def _batches(file: str) -> AsyncIterator[list[Numbered]]:
    """Lines of a file in lists that fit a request; a list ends where the input pauses."""
    number, rest = 0, b""
    async for part in incoming.parts(file):
        *whole, rest = (rest + part).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise _WrongLine(number + len(whole) + 1, f" is longer than {LINE_BYTES_MAX:,} bytes")
        batch: list[Numbered] = []
        size = 0
        for text in whole:
            number += 1
            if not text.strip():
                continue
            if len(batch) == BATCH_EVENTS or (batch and size + len(text) > _BATCH_BYTES_MAX):
                yield batch
                batch, size = [], 0
            batch.append(Numbered(number, text))
            size += len(text)
        if batch:
            yield batch
    if rest.strip():
        yield [Numbered(number + 1, rest)]
