"""Appends over a WebSocket: from a request to what is proposed, at as little cost as can be.

What is judged, and how, is the same as over HTTP (`appends`, `framing`), in another order: the
encoded items of all events of a message are judged together in one go (`are_plain_items`), and the
events of a request are framed together. Only where one of these says no is each looked at for
itself, to find whose fault it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import cbor2

from node.api.appends import Appends, appended_body, checked_streams, checkpoint_of, expected_code
from node.api.bodies import UNSET
from node.api.framing import SLICE_EVENTS, Framer, of_event
from node.api.gathering import Gathering, Then
from node.api.limits import ApiLimits
from node.api.media import CBOR
from node.api.names import checked_name
from node.api.not_plain import NotPlain, TooDeep, TooManyIntegerKeys, refusal
from node.api.pacing import Pacer
from node.api.ports import Clock
from node.api.socket_messages import Append, AppendMany, Misfit, Request, SocketEvent, append_answer
from node.api.values import are_plain_items, check_plain, decode_cbor
from node.core import commands
from node.core.commands import ANY
from node.core.frames import ABSENT
from node.core.outcomes import Appended
from node.errors import InvalidEvent, InvalidRequest, PayloadTooLarge

_TIMEOUT_MS = 5_000

Checks = Sequence[tuple[str, int, Any]]


class Prepared(NamedTuple):
    """An append to a stream, without its frames: what its answer needs is kept until then, and they
    are not. `given` is what its client expects, in its own words.
    """

    stream: str
    expected: int
    durable: bool
    timeout_ms: int
    given: Any

    @property
    def checks(self) -> Checks:
        """What must be true of streams, in the client's words."""
        return ((self.stream, self.expected, self.given),)

    def propose(
        self, gathering: Gathering, store: str, frames: Sequence[bytes], then: Then
    ) -> None:
        """Have it appended. Raises `Overloaded`."""
        stream, expected, _, timeout_ms, _ = self
        gathering.append(store, stream, expected, frames, timeout_ms, then)

    def answer(self, request_id: int, outcome: Appended, index: int) -> bytes:
        """What its client is told."""
        return append_answer(request_id, outcome, index)


class PreparedMany(NamedTuple):
    """An append to several streams, without its command; `checks` are in its client's words."""

    durable: bool
    timeout_ms: int
    checks: Checks

    def propose(self, gathering: Gathering, _: str, command: Sequence[bytes], then: Then) -> None:
        """Have it appended, behind what came before it."""
        gathering.propose(command[0], self.timeout_ms, then)

    def answer(self, request_id: int, outcome: Appended, index: int) -> bytes:
        """What its client is told."""
        status = 200 if outcome.idempotent else 201
        return cbor2.dumps((request_id, status, appended_body(outcome, index)))


class SocketAppends:
    """Makes commands of the appends to one store over all WebSockets."""

    def __init__(self, appends: Appends, clock: Clock, limits: ApiLimits) -> None:
        self._appends = appends
        self._clock = clock
        self._limits = limits
        self._framer = Framer(limits)
        self._timeout_ms = min(_TIMEOUT_MS, limits.timeout_ms_max)
        self._pacer = Pacer()

    def are_plain(self, requests: Sequence[Request | Misfit]) -> bool:
        """Whether all encoded items of these requests are known to be plain."""
        found = list(_items(requests))
        return not found or are_plain_items(found, self._limits.nesting_max)

    def _one(
        self, store: str, request: Append, frames: Sequence[bytes]
    ) -> tuple[Prepared, Sequence[bytes]]:
        stream = _stream(request.stream)
        given = request.expected_version
        expected = ANY if given is None else expected_code(given)
        if not frames:
            raise InvalidRequest("events: must hold at least one event")
        durable = self._appends.durable(request.durability, store)
        timeout_ms = self._patience(request.timeout_ms)
        return Prepared(stream, expected, durable, timeout_ms, given), frames

    def _many(
        self, store: str, request: AppendMany, frames: Sequence[bytes], now_us: int
    ) -> tuple[PreparedMany, Sequence[bytes]]:
        checks = self._appends.checked(request.checks)
        checkpoint = checkpoint_of(request.checkpoint)
        if not frames and checkpoint is None:
            raise InvalidRequest("events: may be empty only together with a checkpoint")
        durable = self._appends.durable(request.durability, store)
        timeout_ms = self._patience(request.timeout_ms)
        streams = checked_streams([event.stream for event in request.events])
        events = list(zip(streams, frames, strict=True))
        pairs = [(stream, code) for stream, code, _ in checks]
        command = commands.append_many(store, now_us, events, pairs, checkpoint)
        return PreparedMany(durable, timeout_ms, checks), (command,)

    async def prepared(
        self, store: str, request: Append | AppendMany, plain: bool
    ) -> tuple[Prepared | PreparedMany, Sequence[bytes]]:
        """Any append, also a long one, and what is to be proposed for it: its frames, or a command.

        `plain`: its encoded items were judged.

        Raises `RequestError`, `PersistenceDisabled`.
        """
        now_us = self._clock()
        self._framer.check_count(len(request.events))
        framed = self._framed if plain else self._judged_and_framed
        frames = await framed(request.events, now_us // 1000)
        if type(request) is Append:
            return self._one(store, request, frames)
        assert type(request) is AppendMany
        return self._many(store, request, frames, now_us)

    def prepared_at_once(self, store: str, request: Append) -> tuple[Prepared, Sequence[bytes]]:
        """The same for an append of few events to one stream whose items are plain, at half of the
        cost.
        """
        frames: list[bytes] = []
        self._add(frames, request.events, self._clock() // 1000)
        return self._one(store, request, frames)

    def _patience(self, given: int | None) -> int:
        if given is None:
            return self._timeout_ms
        if given > self._limits.timeout_ms_max:
            limit = self._limits.timeout_ms_max
            raise PayloadTooLarge(f"timeout_ms: at most {limit}", limit=limit, actual=given)
        return given

    async def _framed(self, events: Sequence[SocketEvent], now_ms: int) -> list[bytes]:
        """The frames of any number of events whose items are plain."""
        frames: list[bytes] = []
        for at in range(0, len(events), SLICE_EVENTS):
            if at:
                await asyncio.sleep(0)
            self._add(frames, events[at : at + SLICE_EVENTS], now_ms)
        return frames

    def _add(self, frames: list[bytes], events: Sequence[SocketEvent], now_ms: int) -> None:
        if len(events) > 1:
            together = self._together(events, now_ms)
            if together is not None:
                frames += together
                return
        add = frames.append
        try:
            for event in events:
                add(self._frame(event, now_ms))
        except InvalidEvent as error:
            raise of_event(len(frames), error) from None

    async def _judged_and_framed(self, events: Sequence[SocketEvent], now_ms: int) -> list[bytes]:
        """The same of events whose items may be anything: one after the other, so that the first
        one that is wrong is told of.
        """
        frames: list[bytes] = []
        try:
            for event in events:
                await self._judge(event.data_cbor, "data_cbor")
                await self._judge(event.metadata_cbor, "metadata_cbor")
                frames.append(self._frame(event, now_ms))
                await self._pacer.breathe()
        except InvalidEvent as error:
            raise of_event(len(frames), error) from None
        return frames

    def _together(self, events: Sequence[SocketEvent], now_ms: int) -> list[bytes] | None:
        """The frames of events that bring their data encoded; None where one does not, or is wrong
        or unusual.
        """
        data = [event.data_cbor for event in events if event.data_cbor is not None]
        if len(data) < len(events) or any(map(_has_values, events)):
            return None
        metadata = [
            ABSENT if event.metadata_cbor is None else event.metadata_cbor for event in events
        ]
        types = [event.event_type for event in events]
        ids = [event.event_id for event in events]
        return self._framer.frames_of_items(types, ids, data, metadata, CBOR, now_ms)

    def _frame(self, event: SocketEvent, now_ms: int) -> bytes:
        data, metadata = event.data_cbor, event.metadata_cbor
        if data is None and metadata is None:
            return self._framer.frame(event, CBOR, False, True, now_ms)
        if _has_values(event):
            raise InvalidEvent("data_cbor and metadata_cbor stand alone: no data, no content type")
        return self._framer.frame_of_items(
            event.event_type,
            event.event_id,
            ABSENT if data is None else data,
            ABSENT if metadata is None else metadata,
            now_ms,
        )

    async def _judge(self, item: bytes | None, what: str) -> None:
        if item is None or len(item) > self._limits.event_bytes_max:
            return  # `frame_of_items` refuses it for its size
        try:
            check_plain(await decode_cbor(item, self._limits.nesting_max))
        except (TooDeep, TooManyIntegerKeys) as error:
            raise refusal(error, what, self._limits.nesting_max) from None
        except NotPlain as error:
            raise InvalidEvent(f"{what}: {error}") from None


def _has_values(event: SocketEvent) -> bool:
    """Whether something stands in an event that excludes encoded items."""
    return (
        event.data is not UNSET
        or event.metadata is not UNSET
        or event.data_content_type is not None
        or event.data_base64 is not None
        or event.metadata_base64 is not None
    )


@lru_cache(4_096)  # the same streams come again and again
def _stream(name: str) -> str:
    return checked_name(name, "stream")


def _items(requests: Sequence[Request | Misfit]) -> Iterator[bytes]:
    for request in requests:
        if type(request) is Append or type(request) is AppendMany:
            for event in request.events:
                if event.data_cbor is not None:
                    yield event.data_cbor
                if event.metadata_cbor is not None:
                    yield event.metadata_cbor
