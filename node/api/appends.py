"""Appending: a body becomes one command, the command's outcome becomes the answer.

    body -> events -> frames -> gathering -> command -> outcome -> 201, 200 or a refusal

Nothing is judged here that depends on the state: expected versions, event ids and the existence
of the store are judged where the command is applied, on every node alike. Time and ids are chosen
here, before replication, because `apply` may choose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from node.api.answers import Answer
from node.api.bodies import (
    UNSET,
    AppendBody,
    AppendManyBody,
    BodyReader,
    Check,
    CheckpointMove,
    Decoder,
)
from node.api.framing import Framer
from node.api.gathering import Gathering
from node.api.limits import ApiLimits
from node.api.media import sent
from node.api.names import NUMBER_MAX, checked_name
from node.api.parameters import choice, timeout
from node.api.ports import Clock, OnDisk, Replica, Worker
from node.api.refusals import refusal
from node.api.routes import Reply, Route
from node.api.wire import Request
from node.core import commands
from node.core.commands import ANY, NO_STREAM, STREAM_EXISTS
from node.core.items import INTEGER_BITS_MAX
from node.core.outcomes import Appended, Outcome, WrongExpectedVersion
from node.core.state import State
from node.errors import (
    CheckpointNotIncreasing,
    EventIdReused,
    ExesdbError,
    InvalidEvent,
    InvalidExpectedVersion,
    InvalidRequest,
    NoLeader,
    NotReady,
    OutcomeUnknown,
    Overloaded,
    PayloadTooLarge,
    PersistenceDisabled,
    StoreMissing,
    StreamDeleted,
    UnsupportedMediaType,
)
from node.errors import WrongExpectedVersion as WrongExpectedVersionError

_EXPECTED_WORDS = {"any": ANY, "no_stream": NO_STREAM, "stream_exists": STREAM_EXISTS}

_PROBLEMS: tuple[type[ExesdbError], ...] = (
    InvalidEvent,
    InvalidExpectedVersion,
    StoreMissing,
    WrongExpectedVersionError,
    StreamDeleted,
    EventIdReused,
    PayloadTooLarge,
    PersistenceDisabled,
    UnsupportedMediaType,
    NoLeader,
    Overloaded,
    NotReady,
    OutcomeUnknown,
)


def expected_code(given: Any) -> int:
    """What the state machine is told to expect. Raises `InvalidExpectedVersion`.

    A refusal repeats what was given, so it must be a number that can be written.
    """
    if given is UNSET:
        return ANY
    if type(given) is int and given >= NO_STREAM and given.bit_length() <= INTEGER_BITS_MAX:
        return min(given, NUMBER_MAX)  # no stream can be there either
    code = _EXPECTED_WORDS.get(given) if type(given) is str else None
    if code is None:
        raise InvalidExpectedVersion(
            "expected_version: must be a version from 0, -1 or 'no_stream', 'stream_exists', 'any'"
        )
    return code


class Appends:
    """The two routes that append."""

    def __init__(
        self,
        replica: Replica,
        gathering: Gathering,
        worker: Worker,
        on_disk: OnDisk,
        clock: Clock,
        bodies: BodyReader,
        limits: ApiLimits,
        state: State,
        default_durability: str,
    ) -> None:
        self._state = state
        self._default_durability = default_durability
        self._replica = replica
        self._gathering = gathering
        self._worker = worker
        self._on_disk = on_disk
        self._clock = clock
        self._bodies = bodies
        self._limits = limits
        self._framer = Framer(limits)
        self._decode = Decoder(AppendBody, limits)
        self._decode_many = Decoder(AppendManyBody, limits)

    def routes(self) -> list[Route]:
        """What this family offers."""
        parameters = (
            choice(
                "durability",
                "`replicated`: a majority holds the events in memory; `persisted`: on disk. "
                "Without it the store's own default counts, and without one the node's.",
                (commands.REPLICATED, commands.PERSISTED),
                has_default=False,
            ),
            timeout(self._limits),
        )
        replies = (
            Reply(201, "The events are stored.", "Appended"),
            Reply(200, "They were stored already, by an earlier try.", "Appended"),
        )
        return [
            Route(
                "POST",
                "/v1/stores/{store}/streams/{stream}/events",
                self.to_stream,
                "Append events to a stream.",
                replies,
                parameters,
                body="AppendBody",
                problems=_PROBLEMS,
            ),
            Route(
                "POST",
                "/v1/stores/{store}/append",
                self.to_streams,
                "Append events to several streams, and move a checkpoint, in one atomic step.",
                replies,
                parameters,
                body="AppendManyBody",
                problems=(*_PROBLEMS, CheckpointNotIncreasing),
            ),
        ]

    async def to_stream(self, request: Request, store: str, stream: str) -> Answer:
        """`POST /v1/stores/{store}/streams/{stream}/events`."""
        media = sent(request.message.headers)
        body = await self._bodies.read(request)
        parsed = await self._decode(body, media)
        given = parsed.expected_version
        expected = expected_code(given)
        if not parsed.events:
            raise InvalidRequest("events: must hold at least one event")
        durable = self.durable(request.parameters["durability"], store)
        frames = await self._framer.frames(parsed.events, body, media, self._clock())
        waiting = self._gathering.appended(
            store, stream, expected, frames, request.parameters["timeout_ms"]
        )
        # What was decoded is given back now, while the processor still has it at hand: behind the
        # wait that costs 1 us more an event.
        del body, parsed, frames
        outcome, index = await waiting
        if type(outcome) is Appended:
            if durable:
                await self._on_disk(index, request.parameters["timeout_ms"])
            return _appended(request, outcome, index)
        raise refused(outcome, [(stream, expected, given)])

    async def to_streams(self, request: Request, store: str) -> Answer:
        """`POST /v1/stores/{store}/append`."""
        media = sent(request.message.headers)
        body = await self._bodies.read(request)
        parsed = await self._decode_many(body, media)
        checks = self.checked(parsed.checks)
        checkpoint = checkpoint_of(parsed.checkpoint)
        if not parsed.events and checkpoint is None:
            raise InvalidRequest("events: may be empty only together with a checkpoint")
        durable = self.durable(request.parameters["durability"], store)
        now_us = self._clock()
        frames = await self._framer.frames(parsed.events, body, media, now_us)
        events = list(
            zip(checked_streams([event.stream for event in parsed.events]), frames, strict=True)
        )
        pairs = [(stream, code) for stream, code, _ in checks]
        command = commands.append_many(store, now_us, events, pairs, checkpoint)
        del body, parsed, frames, events  # as above
        outcome, index = await self._replica.propose(command, request.parameters["timeout_ms"])
        if type(outcome) is Appended:
            if durable:
                await self._on_disk(index, request.parameters["timeout_ms"])
            return _appended(request, outcome, index)
        raise refused(outcome, checks)

    def durable(self, wanted: str | None, name: str) -> bool:
        """Whether the events must be on disk before the answer. Raises `PersistenceDisabled`.

        What the request says (`wanted`) counts, else what the store says (as this node knows it),
        else this node's default.
        """
        if wanted is None:
            store = self._state.stores.get(name)
            wanted = (store.durability if store else "") or self._default_durability
        durable = wanted == commands.PERSISTED
        if durable and not self._worker.enabled:
            raise PersistenceDisabled("this node keeps its data in memory only; nothing was stored")
        return durable

    def checked(self, checks: Sequence[Check]) -> list[tuple[str, int, Any]]:
        """Of each check: the stream, what the state is to expect, and what the client said."""
        limit = self._limits.events_per_append_max
        if len(checks) > limit:
            raise PayloadTooLarge("too many checks", limit=limit, actual=len(checks))
        return [
            (
                checked_name(check.stream, "stream"),
                expected_code(check.expected_version),
                check.expected_version,
            )
            for check in checks
        ]


def checked_streams(names: list[str]) -> list[str]:
    """`names` themselves; each distinct one is checked once. Raises `InvalidRequest`."""
    for name in set(names):
        checked_name(name, "stream")
    return names


def checkpoint_of(move: CheckpointMove | None) -> tuple[str, int] | None:
    """The checkpoint that moves with an append. Raises `InvalidRequest`."""
    if move is None:
        return None
    return checked_name(move.name, "checkpoint"), checked_position(move.position)


def checked_position(position: int) -> int:
    """`position` itself, if a checkpoint may stand there. Raises `InvalidRequest`."""
    if not 0 <= position <= NUMBER_MAX:
        raise InvalidRequest(f"position: must be from 0 to {NUMBER_MAX}", parameter="position")
    return position


def _appended(request: Request, outcome: Appended, index: int) -> Answer:
    media = request.wants
    body = media.encode(appended_body(outcome, index))
    return Answer(200 if outcome.idempotent else 201, body, media.type)


def appended_body(outcome: Appended, index: int) -> dict[str, Any]:
    """What a client is told of its append."""
    count = len(outcome.positions)
    body: dict[str, Any] = {
        "count": count,
        "positions": list(outcome.positions),
        "streams": dict(outcome.streams),
        "raft_index": index,
        "idempotent": outcome.idempotent,
    }
    if len(outcome.streams) == 1:
        body["first_version"] = outcome.first_version
        body["last_version"] = outcome.last_version
    return body


def refused(outcome: Outcome, checks: Sequence[tuple[str, int, Any]]) -> ExesdbError:
    """The error for a refusal. `expected` is told in the words of the client's own request."""
    error = refusal(outcome)
    if type(outcome) is WrongExpectedVersion:
        for stream, code, given in checks:
            if (stream, code) == (outcome.stream, outcome.expected):
                error.fields["expected"] = given
    return error
