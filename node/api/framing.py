"""New events become frames, and snapshots contents: here they are judged and encoded.

This is the hottest loop of a node: about 4 us for an event alone, most of it CBOR encoding, and 2.5
for one among many. What is checked on the way is in the order of what is cheap, and what only a few
events need (a deep value, a long name) is asked for only where a cheap sign of it is seen. Events
that come together are first taken as if all were well and of one form, each step for all of them at
once (`Framer.frames_of_items`); where one is not, each is framed by itself, and that says which and
why. Both ways make the same frames.

An append of many events gives the event loop back every few hundred, and where each value has to be
looked at after milliseconds, so that heartbeats and other clients are not kept waiting by one large
request.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import add, itemgetter
from typing import Any

import cbor2

from node.api.bodies import UNSET, NewEvent, SnapshotBody
from node.api.event_ids import EventIds, given_id, given_ids
from node.api.limits import ApiLimits
from node.api.media import CBOR, JSON, OCTETS, Media
from node.api.names import fits_name_bytes, has_control_character
from node.api.not_plain import NotPlain, too_deep
from node.api.pacing import Pacer
from node.api.values import are_plain_values, check_plain, nests_too_deeply
from node.core.frames import ABSENT, encode_frame, encode_frames
from node.core.items import INTEGER_BITS_MAX
from node.core.snapshots import encode_content
from node.errors import InvalidEvent, InvalidRequest, PayloadTooLarge

SLICE_EVENTS = 250  # about 1.5 ms between two turns of the event loop

# Stands between values that are encoded in one call, so that the result can be split. Nobody
# outside knows it, so nobody can send it.
_SEAM = os.urandom(16)
_ENCODED_SEAM = cbor2.dumps(_SEAM)

_head: Callable[[bytes], int] = itemgetter(0)

# All bytes but the brackets of JSON, and how many rounds of looking at those are worth it.
_NOT_BRACKETS = bytes(octet for octet in range(256) if octet not in b"[]{}")
_ROUNDS = 12
# In a shorter body, counting them is worth a try: it is most likely one event.
_SHORT_BYTES = 4 * 1024

# What has more than `INTEGER_BITS_MAX` bits has so many digits in JSON, or more; and then half as
# many stand between two multiples of that.
_LARGE_DIGITS = len(str(1 << INTEGER_BITS_MAX))
_HALF_DIGITS = (_LARGE_DIGITS + 1) // 2


class Framer:
    """Makes frames of the events of one node's requests."""

    def __init__(self, limits: ApiLimits) -> None:
        self._limits = limits
        self._ids = EventIds()
        self._pacer = Pacer()

    async def frames(
        self, events: Sequence[NewEvent], body: bytes, media: Media, now_us: int
    ) -> list[bytes]:
        """One frame an event, in order. `body` is what they were decoded from.

        Raises `InvalidEvent` (field `event`: which one, from 0) or `PayloadTooLarge`.
        """
        self.check_count(len(events))
        # CBOR was decoded down to that depth, and no further.
        may_nest = media is JSON and self._may_nest(body, media)
        plain = _is_plain_json(body, media)
        now_ms = now_us // 1000
        frames: list[bytes] = []
        for start in range(0, len(events), SLICE_EVENTS):
            if start:
                await asyncio.sleep(0)
            some = events[start : start + SLICE_EVENTS]
            if plain or _are_plain(some):
                self._add(frames, some, media, may_nest, now_ms)
            else:
                await self._judge_and_add(frames, some, media, may_nest, now_ms)
        return frames

    def snapshot(self, body: SnapshotBody, raw: bytes, media: Media) -> bytes:
        """The content of a snapshot. `raw` is what `body` was decoded from.

        Raises `InvalidRequest` or `PayloadTooLarge`.
        """
        try:
            _check_label(body.source_type, "source_type")
            plain = _is_plain_json(raw, media)
            data, _ = self._item(body.data, body.data_base64, media, plain, "data")
            metadata, _ = self._item(body.metadata, body.metadata_base64, media, plain, "metadata")
            if len(data) + len(metadata) > self._limits.event_bytes_max:
                raise self._too_large(len(data) + len(metadata))
            if self._may_nest(raw, media):
                self._check_nesting(data, "data")
                self._check_nesting(metadata, "metadata")
        except InvalidEvent as error:
            raise InvalidRequest(error.detail) from None
        return encode_content(body.source_type, data, metadata)

    def _add(
        self,
        frames: list[bytes],
        events: Sequence[NewEvent],
        media: Media,
        may_nest: bool,
        now_ms: int,
    ) -> None:
        if not may_nest and len(events) > 1:
            together = self._together(events, media, now_ms)
            if together is not None:
                frames += together
                return
        try:
            for event in events:
                frames.append(self.frame(event, media, True, may_nest, now_ms))
        except InvalidEvent as error:
            raise of_event(len(frames), error) from None

    async def _judge_and_add(
        self,
        frames: list[bytes],
        events: Sequence[NewEvent],
        media: Media,
        may_nest: bool,
        now_ms: int,
    ) -> None:
        """The same where each value has to be looked at, which takes long."""
        try:
            for event in events:
                frames.append(self.frame(event, media, False, may_nest, now_ms))
                await self._pacer.breathe()
        except InvalidEvent as error:
            raise of_event(len(frames), error) from None

    def _together(
        self, events: Sequence[NewEvent], media: Media, now_ms: int
    ) -> list[bytes] | None:
        """The frames of events with plain values; None where one of them is wrong or unusual."""
        for event in events:
            if event.data_base64 is not None or event.metadata_base64 is not None:
                return None
            if event.data_content_type is not None:
                return None
        data = _items([event.data for event in events])
        metadata = _items([event.metadata for event in events])
        if data is None or metadata is None:
            return None
        ids = [event.event_id for event in events]
        types = [event.event_type for event in events]
        return self.frames_of_items(types, ids, data, metadata, media, now_ms)

    def frames_of_items(
        self,
        types: Sequence[str],
        given: Sequence[Any],
        data: Sequence[bytes],
        metadata: Sequence[bytes],
        media: Media,
        now_ms: int,
    ) -> list[bytes] | None:
        """The frames of events whose data and metadata are encoded, and known to be plain.

        None where one of them is wrong, or they differ in form: only some have ids, or only some
        have data that is bytes. `given` are the ids as they came.
        """
        ids = self._ids_of(given, media, now_ms)
        data_type, metadata_type = _types_of(data, media), _types_of(metadata, media)
        if ids is None or data_type is None or metadata_type is None:
            return None
        if not all(map(_is_label, set(types))):
            return None
        if max(map(add, map(len, data), map(len, metadata))) > self._limits.event_bytes_max:
            return None
        return encode_frames(ids, types, data, metadata, data_type, metadata_type)

    def _ids_of(self, given: Sequence[Any], media: Media, now_ms: int) -> Sequence[bytes] | None:
        """The ids of all: given, or fresh; None for anything else."""
        if given.count(None) == len(given):
            return self._ids.fresh_many(len(given), now_ms)
        return given_ids(given, media)

    def check_count(self, count: int) -> None:
        """Raise `PayloadTooLarge` if one append must not have so many events."""
        limit = self._limits.events_per_append_max
        if count > limit:
            raise PayloadTooLarge(
                f"{count} events, at most {limit} are allowed in one append",
                limit=limit,
                actual=count,
            )

    def _may_nest(self, body: bytes, media: Media) -> bool:
        """False where no value in the body can nest too deeply, for certain.

        Of JSON, only the brackets are kept, and taken away in pairs that hold nothing. A round
        takes two levels at most: what is gone after half as many rounds as may nest was not deeper.
        What is left may be, or has brackets inside its texts.
        """
        if media is CBOR:
            return True
        if (
            len(body) < _SHORT_BYTES
            and body.count(b"{") + body.count(b"[") <= self._limits.nesting_max
        ):
            return False
        brackets = body.translate(None, _NOT_BRACKETS)
        for _ in range(min(_ROUNDS, self._limits.nesting_max // 2)):
            brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
        return bool(brackets)

    def frame_of_items(
        self, event_type: str, given: Any, data: bytes, metadata: bytes, now_ms: int
    ) -> bytes:
        """The frame of an event whose data and metadata are encoded, and known to be plain.

        Raises `InvalidEvent`, `PayloadTooLarge`.
        """
        _check_label(event_type, "event_type")
        event_id = self._ids.fresh(now_ms) if given is None else given_id(given, CBOR)
        if len(data) + len(metadata) > self._limits.event_bytes_max:
            raise self._too_large(len(data) + len(metadata))
        return encode_frame(event_id, event_type, data, metadata, _type(data), _type(metadata))

    def frame(
        self, event: NewEvent, media: Media, plain: bool, may_nest: bool, now_ms: int
    ) -> bytes:
        """The frame of one event. `plain`: its values are known to be. Raises `InvalidEvent`,
        `PayloadTooLarge`.
        """
        _check_label(event.event_type, "event_type")
        given = event.event_id
        event_id = self._ids.fresh(now_ms) if given is None else given_id(given, media)
        if plain and media is JSON and event.data_base64 is None and event.data is not UNSET:
            data, data_type = cbor2.dumps(event.data), JSON.type  # most events
        else:
            data, data_type = self._item(event.data, event.data_base64, media, plain, "data")
        metadata, metadata_type = ABSENT, media.type
        if event.metadata is not UNSET or event.metadata_base64 is not None:
            metadata, metadata_type = self._item(
                event.metadata, event.metadata_base64, media, plain, "metadata"
            )
        if event.data_content_type is not None:
            data_type = event.data_content_type
            _check_label(data_type, "data_content_type")
        if len(data) + len(metadata) > self._limits.event_bytes_max:
            raise self._too_large(len(data) + len(metadata))
        if may_nest:
            self._check_nesting(data, "data")
            self._check_nesting(metadata, "metadata")
        return encode_frame(event_id, event.event_type, data, metadata, data_type, metadata_type)

    def _item(
        self, value: Any, octets: bytes | None, media: Media, plain: bool, what: str
    ) -> tuple[bytes, str]:
        """One encoded CBOR item for `data` or `metadata`, and its content type by encoding."""
        if octets is not None:
            if value is not UNSET:
                raise InvalidEvent(f"{what} and {what}_base64 exclude one another")
            return cbor2.dumps(octets), OCTETS
        if value is UNSET:
            return ABSENT, media.type
        if not plain:
            try:
                check_plain(value)
            except NotPlain as error:
                raise InvalidEvent(f"{what}: {error}") from None
            except RecursionError:  # only JSON is decoded as deep
                raise too_deep(what, self._limits.nesting_max) from None
        return cbor2.dumps(value), OCTETS if type(value) is bytes else media.type

    def _check_nesting(self, item: bytes, what: str) -> None:
        if nests_too_deeply(item, self._limits.nesting_max):
            raise too_deep(what, self._limits.nesting_max)

    def _too_large(self, actual: int) -> PayloadTooLarge:
        limit = self._limits.event_bytes_max
        return PayloadTooLarge(
            f"data and metadata have {actual} bytes, at most {limit} are allowed",
            limit=limit,
            actual=actual,
        )


def of_event(at: int, error: InvalidEvent) -> InvalidEvent:
    """The same error, which names the event whose fault it is."""
    return InvalidEvent(f"event {at}: {error.detail}", event=at)


def _are_plain(events: Sequence[NewEvent]) -> bool:
    """Whether the values of all are plain, for certain."""
    values = [event.data for event in events if event.data is not UNSET]
    values += [event.metadata for event in events if event.metadata is not UNSET]
    return are_plain_values(values)


def _items(values: list[Any]) -> list[bytes] | None:
    """The encoded items of plain values, `ABSENT` for those that are not set.

    One call for all values costs 0.4 us a value less than one each. None if the result does not
    split into as many as there are.
    """
    unset = values.count(UNSET)
    if unset == len(values):
        return [ABSENT] * unset
    joined: list[Any] = [_SEAM] * (2 * len(values))
    joined[1::2] = [None if value is UNSET else value for value in values] if unset else values
    items = cbor2.dumps(joined).split(_ENCODED_SEAM)
    return items[1:] if len(items) == len(values) + 1 else None


def _is_plain_json(body: bytes, media: Media) -> bool:
    """Whether a body is JSON, and holds no integer beyond `INTEGER_BITS_MAX`, for certain.

    Everything else that JSON can say is plain. Digits may also stand in a text, or in a fraction.
    """
    if media is not JSON or len(body) < _LARGE_DIGITS:
        return media is JSON
    starts = range(0, len(body), _HALF_DIGITS)
    return not any(body[start : start + _HALF_DIGITS].isdigit() for start in starts)


def _type(item: bytes) -> str:
    """The content type of an encoded item: a byte string's head is 0x40 to 0x5f."""
    return OCTETS if item[0] >> 5 == 2 else CBOR.type


def _types_of(items: Sequence[bytes], media: Media) -> str | None:
    """The content type of all these items; None if they have several."""
    if media is JSON:
        return JSON.type
    kinds = {OCTETS if head >> 5 == 2 else CBOR.type for head in set(map(_head, items))}
    return kinds.pop() if len(kinds) == 1 else None


@lru_cache(maxsize=1_024)  # there are few event types and content types, and they come again
def _is_label(text: str) -> bool:
    return fits_name_bytes(text) and not has_control_character(text)


@lru_cache(maxsize=1_024)
def _check_label(text: str, what: str) -> None:
    if not fits_name_bytes(text):
        raise InvalidEvent(f"{what}: must be 1 to 255 bytes of UTF-8")
    if has_control_character(text):
        raise InvalidEvent(f"{what}: control characters are not allowed")
