"""What is said over a WebSocket: `GET /v1/stores/{store}/ws`.

Every message, both ways, is one binary frame message that holds one CBOR array: of requests, or of
answers. So both sides batch: a client puts all it has to ask into one message, and the node sends
all answers of one turn of its event loop as one. A request is an array of its kind, an id, and
fields; those at its end may be left out. The id is an integer of the client's choice, from 0 to
2^63 - 1, that is not under way on this connection; answers carry it and come in any order.

    request                                                    final answer
    ["append", id, stream, [event, ...], expected_version,     [id, 201 or 200, [first version,
        durability, timeout_ms]                                    last version, [position, ...],
                                                                   raft index]]
    ["append_many", id, [event with "stream", ...], checks,    [id, 201 or 200, as over HTTP]
        checkpoint, durability, timeout_ms]
    ["read", id, stream or null, {option: value}]              [id, 200, a page as over HTTP]
    ["subscribe", id, {option: value}, credit]                 [id, 200, {"position"}] if cancelled
    ["credit", id of a subscription or a consume, events]      none
    ["consume", id, name, consumer, credit]                    [id, 200, null] if cancelled
    ["ack", id, name, [delivery id, ...]]                      [id, 200, {"settled", "stale"}]
    ["nack", id, name, [delivery id, ...], action]             the same
    ["cancel", id of a subscription or a consume]              that one's
    ["ping", id]                                               [id, 200, null]

Any request may end in [id, status, problem] with a status from 400 on: the same problems as over
HTTP, which say whether anything was stored. The other requests of its message are taken, also where
it holds a value that cannot be decoded. An answer whose second item is a number is the last one
with its id. 200 for an append says that an earlier try had stored it. Before its last answer a
subscription sends any number of

    [id, "events", [record, ...]]      record: [position, number, created, stream, event]
    [id, "caught_up", position]        event: [1, event id, event type, content type of data, and
    [id, "checkpoint", position]           of metadata, data, metadata]

in the order of the store; its last answer's problem names the `position` to go on behind. An event
is what the store holds (`core.frames`): data and metadata are byte strings with one CBOR item each,
the content types 0, 1, 2 (JSON, CBOR, octets) or text; `created` is in microseconds since 1970.

**Events to be appended** are maps as over HTTP. Instead of `data` and `metadata` they may have
`data_cbor` and `metadata_cbor`: a byte string that holds the value as one encoded CBOR item, which
is judged and then stored as it is. That costs the node half of what values in their place cost.
An `expected_version` of null or left out is "any".

**Options** are the query parameters of `GET .../events`, `GET .../streams/{stream}/events` and
`GET .../subscribe`: text, numbers, true, false, lists where they may be repeated; `where` is JSON
as text. `wait_ms` is not offered: subscribe.

**Persistent subscriptions.** `consume` has the events of the one called `name` delivered to this
`consumer`, in order per stream, as they become available:

    [id, "deliveries", [[position, number, created, stream, event, delivery id, attempt], ...]]

until it is cancelled, the subscription is deleted, the node stops, or it has not been ready for ten
seconds; the death of a leader does not end it. Its `credit`, 1 to 1,000 (left out: 100), is how
many of its deliveries may be in flight: sent, not settled, and their time not over. `ack` and
`nack` (`action`: "retry", if left out, "park", "skip", "give_back") settle up to 1,000 deliveries,
of any connection, with the ids and outcomes of HTTP. They are answered when they are committed, and
carried out in the order in which they came, also where the connection ends behind them. What is in
flight when a `consume` is cancelled, or its node stops, is given back untried; where the connection
ends without that, each delivery counts as a failure. Others get it at once in both cases. Where a
delivery's time is over, and no `ack` or `nack` came on this connection since it was sent, the
`consume` ends with 503 `slow_consumer`; ask again to go on.

**Flow control.** `credit` of a subscription is how many events it may send (null: any number); a
request `credit` adds to it. Whoever does not read is sent no more than `stream_buffer_bytes_max`
and is not read from either, and no event is fetched for its consumers; with `socket_requests_max`
requests under way nothing more is read until half of them are answered. All of this waits; nothing
of it is an error.

**The end.** After `ping_s` of silence the node pings; after two pings without a sign of life it
cuts the connection. Close codes: 1001 the node stops (subscriptions got their last answer, 503
`not_ready`); 1003 a text frame; 1007 a message that is no CBOR array of requests, each with its
kind and its id at its beginning; 1009 a message above `body_bytes_max`; 1011 a defect of the node;
1013 too many large messages at once.
What was under way when a connection is lost may have happened: repeat it with the same event ids.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import cbor2
import msgspec

from node.api.bodies import Check, CheckpointMove, NewEvent, misfit
from node.api.not_plain import NotPlain, refusal
from node.api.pacing import Pacer
from node.api.values import decode_cbor
from node.api.walking import id_of, parts_of
from node.core.outcomes import Appended
from node.core.subscription_commands import FETCHED_MAX
from node.errors import RequestError

Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**62)]
Durability = Literal["replicated", "persisted"] | None

# How msgspec names a place in the list of events of a request.
_IN_EVENTS = {"append": "$[3][", "append_many": "$[2]["}

CREDIT_MAX = FETCHED_MAX
"""How many deliveries of a `consume` may be in flight."""

# The answer to an append of one event: heads, and numbers of eight bytes but for the status.
_pack_one = struct.Struct(">2sQ1sB2sQ1sQ2sQ1sQ").pack

_NO_REQUEST = "a request must be an array of a kind and an id"
_ENVELOPE_NESTING = 5  # the message, a request, its list of events, the event, and the value


class SocketEvent(NewEvent, forbid_unknown_fields=True, gc=False, kw_only=True):
    """An event of an append over a WebSocket."""

    data_cbor: bytes | None = None
    metadata_cbor: bytes | None = None


class PlacedEvent(SocketEvent, forbid_unknown_fields=True, gc=False, kw_only=True):
    """An event of an append to several streams."""

    stream: str


class _Request(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    id: Id


class Append(_Request, tag="append"):
    """Append to one stream."""

    stream: str
    events: list[SocketEvent]
    expected_version: Any = None
    durability: Durability = None
    timeout_ms: Count | None = None


class AppendMany(_Request, tag="append_many"):
    """Append to several streams, and move a checkpoint, in one step."""

    events: list[PlacedEvent]
    checks: list[Check] = []
    checkpoint: CheckpointMove | None = None
    durability: Durability = None
    timeout_ms: Count | None = None


class Read(_Request, tag="read"):
    """Read a page of a stream, or of the store."""

    stream: str | None = None
    options: dict[str, Any] = {}


class Subscribe(_Request, tag="subscribe"):
    """Follow the store."""

    options: dict[str, Any] = {}
    credit: Annotated[int, msgspec.Meta(ge=0, le=2**62)] | None = None


class Credit(_Request, tag="credit"):
    """Let a subscription send more events, or a consume have more in flight."""

    events: Count


class Consume(_Request, tag="consume"):
    """Be one of the consumers of a persistent subscription."""

    name: str
    consumer: str
    credit: Annotated[int, msgspec.Meta(ge=1, le=CREDIT_MAX)] = 100


class Ack(_Request, tag="ack"):
    """Acknowledge deliveries."""

    name: str
    delivery_ids: list[str]


class Nack(_Request, tag="nack"):
    """Refuse deliveries."""

    name: str
    delivery_ids: list[str]
    action: Literal["retry", "park", "skip", "give_back"] = "retry"


class Cancel(_Request, tag="cancel"):
    """End a subscription or a consume."""


class Ping(_Request, tag="ping"):
    """Ask for a sign of life."""


Request = Append | AppendMany | Read | Subscribe | Consume | Ack | Nack | Credit | Cancel | Ping


class Misfit:
    """A request that is none, but has an id to answer to."""

    def __init__(self, request_id: int, error: RequestError) -> None:
        self.id = request_id
        self.error = error


def append_answer(request_id: int, outcome: Appended, index: int) -> bytes:
    """The encoded answer to an append to one stream that is stored.

    Of one event, as most are, it is put together in one call: its numbers have a place of eight
    bytes each, whatever they are. An encoder costs seven times as much.
    """
    status = 200 if outcome.idempotent else 201
    first, last, positions, _, _ = outcome
    if len(positions) == 1:
        return _pack_one(
            *(b"\x83\x1b", request_id, b"\x18", status, b"\x84\x1b", first, b"\x1b", last),
            *(b"\x81\x1b", positions[0], b"\x1b", index),
        )
    return cbor2.dumps((request_id, status, (first, last, list(positions), index)))


def message_of(answers: Sequence[bytes]) -> bytes:
    """One message that holds these encoded answers."""
    count = len(answers)
    head = bytes((0x80 + count,)) if count < 24 else b"\x9a" + count.to_bytes(4, "big")
    return head + b"".join(answers)


async def requests(message: bytes, nesting_max: int) -> Sequence[Request | Misfit]:
    """The requests of a message, in order. Raises `NotPlain` if it is no array of them with ids."""
    try:
        items = await decode_cbor(message, nesting_max + _ENVELOPE_NESTING)
    except NotPlain:  # one of them, at least: who is told?
        return await _decoded_apart(message, nesting_max)
    try:
        return msgspec.convert(items, list[Request])
    except msgspec.ValidationError:  # the same
        if type(items) is not list:
            raise NotPlain("a message must be an array of requests") from None
        return await _converted_apart(items)


async def _decoded_apart(message: bytes, nesting_max: int) -> Sequence[Request | Misfit]:
    pacer = Pacer()
    found: list[Request | Misfit] = []
    for part in await parts_of(message):
        try:
            item = await decode_cbor(part, nesting_max + _ENVELOPE_NESTING - 1)
        except NotPlain as error:
            found.append(_undecodable(part, error, nesting_max))
        else:
            found.append(_request(item))
        await pacer.breathe()
    return found


async def _converted_apart(items: Sequence[Any]) -> Sequence[Request | Misfit]:
    pacer = Pacer()
    found: list[Request | Misfit] = []
    for item in items:
        found.append(_request(item))
        await pacer.breathe()
    return found


def _undecodable(part: bytes, error: NotPlain, nesting_max: int) -> Misfit:
    request_id = id_of(part)
    if request_id is None:
        raise NotPlain(f"{_NO_REQUEST}: {error}")
    return Misfit(request_id, refusal(error, "the request", nesting_max))


def _request(item: Any) -> Request | Misfit:
    try:
        return msgspec.convert(item, Request)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        words = str(error).replace("`", "'")
        if type(item) is list and len(item) > 1 and type(item[1]) is int and item[1] >= 0:
            kind = item[0] if type(item[0]) is str else ""
            in_event = _IN_EVENTS.get(kind, "no path") in words
            return Misfit(item[1], misfit(words, in_event))
        raise NotPlain(f"{_NO_REQUEST}: {words}") from None
