"""Bodies: reading them within bounds, and decoding them into typed values.

A body is never buffered beyond `body_bytes_max`, whatever `Content-Length` says or chunked
encoding leaves open; the parts of all incomplete bodies together stay within `arriving_bytes_max`;
and a body must be complete within `body_s`. Nearly every body arrives whole with its head, and
then none of this costs anything.

JSON is decoded by msgspec straight into the structs below, which refuse unknown fields and wrong
types. CBOR is decoded first and then converted into the same structs.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestPayloadError

from node.api.limits import ApiLimits
from node.api.media import JSON, Media
from node.api.not_plain import NotPlain, refusal, too_deep
from node.api.values import decode_cbor
from node.api.wire import Request
from node.core.life_commands import MAX_AGE_MS_MAX, MAX_COUNT_MAX, TRUNCATE_BEFORE_MAX
from node.core.snapshots import KEPT_MAX
from node.errors import InvalidEvent, InvalidRequest, Overloaded, PayloadTooLarge, RequestError

UNSET = msgspec.UNSET

_ENVELOPE_NESTING = 3  # the body, its list of events, the event
_IN_EVENTS = re.compile(r"at `(?:key` in `)?\$\.events\[")
_UNKNOWN_FIELD = "Object contains unknown field"


class NewEvent(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An event of an append. Absent and null are told apart only for `data` and `metadata`."""

    event_type: str
    event_id: Any = None  # text in both encodings, or 16 bytes in CBOR: judged in `frames`
    data: Any = UNSET
    metadata: Any = UNSET
    data_content_type: str | None = None
    data_base64: bytes | None = None
    metadata_base64: bytes | None = None


class NewEventIn(NewEvent, forbid_unknown_fields=True, gc=False, kw_only=True):
    """An event of an append to several streams."""

    stream: str


class AppendBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST .../streams/{stream}/events`. The expected version is judged in `appends`."""

    events: list[NewEvent]
    expected_version: Any = UNSET


class Check(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream must look like for an append to several streams."""

    stream: str
    expected_version: Any = UNSET


class CheckpointMove(msgspec.Struct, forbid_unknown_fields=True):
    """The checkpoint that moves together with an append."""

    name: str
    position: int


class AppendManyBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST .../append`."""

    events: list[NewEventIn]
    checks: list[Check] = []
    checkpoint: CheckpointMove | None = None


class CheckpointBody(msgspec.Struct, forbid_unknown_fields=True):
    """`PUT .../checkpoints/{name}`."""

    position: int


class SnapshotBody(msgspec.Struct, forbid_unknown_fields=True):
    """`PUT .../snapshots/{source}/{stream}/{version}`. Judged in `framing`, like an event."""

    source_type: str
    data: Any = UNSET
    metadata: Any = UNSET
    data_base64: bytes | None = None
    metadata_base64: bytes | None = None


class NothingBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request that takes none: what would be passed over is refused."""


class IntervalBody(msgspec.Struct, forbid_unknown_fields=True):
    """`PUT /v1/persistence`."""

    interval_ms: int


class LeaderBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /v1/cluster/leader`."""

    to: str | None = None


class RecoveryBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /v1/cluster/recovery`."""

    lineage: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    parent: str
    membership_version: int
    voters: Annotated[dict[str, str], msgspec.Meta(min_length=1)]
    missing: list[str]


class StoreBody(msgspec.Struct, forbid_unknown_fields=True):
    """`PUT /v1/stores/{store}`. Null gives the store back to the default of each node, or lets it
    keep as many snapshots as may be kept; what is not given stays.
    """

    durability: Literal["replicated", "persisted"] | msgspec.UnsetType | None = UNSET
    snapshots_kept: Annotated[int, msgspec.Meta(ge=1, le=KEPT_MAX)] | msgspec.UnsetType | None = (
        UNSET
    )


class StreamMetadataBody(msgspec.Struct, forbid_unknown_fields=True):
    """`PUT .../streams/{stream}/metadata`. Null, or nothing, is no limit."""

    max_count: Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNT_MAX)] | None = None
    max_age_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_AGE_MS_MAX)] | None = None
    truncate_before: Annotated[int, msgspec.Meta(ge=0, le=TRUNCATE_BEFORE_MAX)] | None = None


class MemberBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /v1/cluster/members`."""

    id: str
    raft_address: str


class ConditionBody(msgspec.Struct, forbid_unknown_fields=True):
    """A condition of a filter. What its fields may be to one another is judged in `wanted`."""

    path: str | list[str | Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]]
    equals: Any = UNSET
    any_of: list[Any] | msgspec.UnsetType = UNSET
    prefix: Any = UNSET
    exists: bool | msgspec.UnsetType = UNSET
    equals_base64: bytes | msgspec.UnsetType = UNSET
    any_of_base64: list[bytes] | msgspec.UnsetType = UNSET
    prefix_base64: bytes | msgspec.UnsetType = UNSET


class FilterBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which events a subscription delivers. Judged in `wanted`."""

    types: list[str] = []
    stream_prefix: str = ""
    stream: str | None = None
    where: list[ConditionBody] = []


class SubscriptionBody(msgspec.Struct, forbid_unknown_fields=True):
    """`PUT .../subscriptions/{name}`."""

    filter: FilterBody = msgspec.field(default_factory=FilterBody)
    start_after: Annotated[int, msgspec.Meta(ge=0, le=2**62)] | Literal["end"] = 0
    ack_timeout_ms: Annotated[int, msgspec.Meta(ge=100, le=86_400_000)] = 30_000
    max_retries: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 10
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1_000


class FetchBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST .../subscriptions/{name}/fetch`."""

    consumer: str
    max: Annotated[int, msgspec.Meta(ge=1, le=2**62)] = 10
    wait_ms: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0


class AckBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST .../subscriptions/{name}/ack`."""

    delivery_ids: list[str]


class NackBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST .../subscriptions/{name}/nack`."""

    delivery_ids: list[str]
    action: Literal["retry", "park", "skip", "give_back"] = "retry"


class ReplayBody(msgspec.Struct, forbid_unknown_fields=True):
    """`POST .../subscriptions/{name}/parked/replay`. Without positions: all."""

    positions: list[int] | None = None


T = TypeVar("T")


class Decoder(Generic[T]):
    """Decodes bodies of one shape. `optional` lets nothing at all stand for an empty map."""

    def __init__(self, shape: type[T], limits: ApiLimits, optional: bool = False) -> None:
        self._shape = shape
        self._json = msgspec.json.Decoder(shape)
        self._limits = limits
        self._optional = optional

    async def __call__(self, body: bytes, media: Media) -> T:
        """Raises `InvalidRequest`, `InvalidEvent` where the fault is inside an event, or
        `PayloadTooLarge` where values nest too deeply or maps have many integers for keys.
        """
        if self._optional and not body:
            return self._shape()
        try:
            if media is JSON:
                return self._json.decode(body)
            nesting_max = self._limits.nesting_max + _ENVELOPE_NESTING
            return msgspec.convert(await decode_cbor(body, nesting_max), self._shape)
        except msgspec.ValidationError as error:
            words = str(error)
            raise misfit(words, _IN_EVENTS.search(words) is not None) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"malformed JSON: {error}") from None
        except RecursionError:
            raise too_deep("the body", self._limits.nesting_max) from None
        except NotPlain as error:
            raise refusal(error, "the body", self._limits.nesting_max) from None


def misfit(words: str, in_event: bool) -> RequestError:
    """The error that the words of msgspec stand for. A field that there is not is the request's
    fault wherever it stands.
    """
    text = words.replace("`", "'")
    if in_event and not words.startswith(_UNKNOWN_FIELD):
        return InvalidEvent(text)
    return InvalidRequest(text)


class BodyReader:
    """Reads the bodies of all requests, and knows how much of incomplete ones is held."""

    def __init__(self, limits: ApiLimits) -> None:
        self._limits = limits
        self.arriving_bytes = 0

    def arrived(self, change: int) -> bool:
        """Count what a WebSocket has of a message that is not complete; whether there is room."""
        self.arriving_bytes += change
        return self.arriving_bytes <= self._limits.arriving_bytes_max

    async def read(self, request: Request) -> bytes:
        """The whole body; empty where there is none.

        Raises `PayloadTooLarge`, `Overloaded`, `InvalidRequest` (too slow, or broken off). After
        any of them the connection cannot be used again.
        """
        payload = request.payload
        if isinstance(payload, StreamReader) and not payload.is_eof():
            return await self._read_in_parts(request, payload)
        body: bytes = payload.read_nowait()
        if len(body) > self._limits.body_bytes_max:
            raise self._too_large(len(body))
        return body

    async def _read_in_parts(self, request: Request, payload: StreamReader) -> bytes:
        announced = request.message.headers.get("Content-Length", "0")
        if int(announced) > self._limits.body_bytes_max:  # the parser let only digits through
            raise self._too_large(int(announced))
        request.say_continue()
        held = 0
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._limits.body_s):
                while part := await payload.readany():
                    parts.append(part)
                    held += len(part)
                    self.arriving_bytes += len(part)
                    self._check(held)
        except TimeoutError:
            raise InvalidRequest(
                f"the body was not complete after {self._limits.body_s:g} seconds"
            ) from None
        except RequestPayloadError as error:
            raise InvalidRequest(f"the body is broken: {error}") from None
        finally:
            self.arriving_bytes -= held
        return b"".join(parts)

    def _check(self, held: int) -> None:
        if held > self._limits.body_bytes_max:
            raise self._too_large(held)
        if self.arriving_bytes > self._limits.arriving_bytes_max:
            raise Overloaded("too many large bodies at once", limit="arriving_bytes_max")

    def _too_large(self, actual: int) -> PayloadTooLarge:
        limit = self._limits.body_bytes_max
        return PayloadTooLarge(
            f"the body has {actual} bytes or more, at most {limit} are allowed",
            limit=limit,
            actual=actual,
        )
