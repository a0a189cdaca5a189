"""Event ids: those that clients bring, and fresh ones for events that come without.

A client names an event with a UUID: as text in both encodings, or as 16 bytes in CBOR. What a fresh
one looks like is the core's affair (`core.ids`); here is where its randomness comes from.

Each is done for one event and for many at once, where every step is one call into C for all of
them. The latter knows only good ids of one form, and says None to everything else: then each is
looked at by itself, and that says which of them is wrong.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

from node.api.media import CBOR, Media
from node.core.ids import RANDOM_BYTES, new_event_id
from node.errors import InvalidEvent

_IDS_PER_DRAW = 400
_TEXT_LENGTH = 36
_DASHES = (8, 13, 18, 23)

_id = struct.Struct("16s")

# Which bits of an id are random, told from two ids that differ in nothing else.
_NO_CHANCE, _ALL_CHANCE = (new_event_id(0, octet * RANDOM_BYTES) for octet in (b"\x00", b"\xff"))
_CHANCE = bytes(one ^ other for one, other in zip(_NO_CHANCE, _ALL_CHANCE, strict=True))


class EventIds:
    """Fresh UUIDv7s. Randomness is drawn from the system for some hundred ids at a time."""

    def __init__(self) -> None:
        self._random = b""
        self._at = 0

    def fresh(self, unix_ms: int) -> bytes:
        """A new id, 16 bytes."""
        at = self._at
        if at == len(self._random):
            self._random = os.urandom(RANDOM_BYTES * _IDS_PER_DRAW)
            at = 0
        self._at = at + RANDOM_BYTES
        return new_event_id(unix_ms, self._random[at : at + RANDOM_BYTES])

    def fresh_many(self, count: int, unix_ms: int) -> list[bytes]:
        """So many new ids. They are made as one long number, for a third of the cost."""
        octets = os.urandom(len(_CHANCE) * count)
        chance = int.from_bytes(octets, "big") & int.from_bytes(_CHANCE * count, "big")
        fixed = int.from_bytes(new_event_id(unix_ms, bytes(RANDOM_BYTES)) * count, "big")
        return _cut((fixed | chance).to_bytes(len(octets), "big"))


def given_id(given: Any, media: Media) -> bytes:
    """The 16 bytes of an id that came with an event. Raises `InvalidEvent`."""
    # The form is judged by its dashes and its length; `fromhex` knows what a digit is, but lets
    # white space through, which then is missing from the result.
    if type(given) is str and len(given) == _TEXT_LENGTH and given[8:24:5] == "----":
        try:
            event_id = bytes.fromhex(given.replace("-", ""))
        except ValueError:
            event_id = b""
        if len(event_id) == 16:
            return event_id
    if type(given) is bytes and len(given) == 16 and media is CBOR:
        return given
    raise InvalidEvent("event_id: must be a UUID, such as 01890a5d-ac96-774b-bcce-b302099a8057")


def given_ids(given: Sequence[Any], media: Media) -> Sequence[bytes] | None:
    """What `given_id` makes of each, if all of them are of one form and good; else None."""
    kinds = set(map(type, given))
    if kinds == {bytes}:
        return given if media is CBOR and set(map(len, given)) == {16} else None
    if kinds != {str} or set(map(len, given)) != {_TEXT_LENGTH}:
        return None
    return ids_of_text("".join(given))


def ids_of_text(text: str) -> list[bytes] | None:
    """The ids in texts of the right length, one behind the other; None if one of them is none."""
    count = len(text) // _TEXT_LENGTH
    if any(text[at::_TEXT_LENGTH] != "-" * count for at in _DASHES):
        return None
    try:
        octets = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        return None
    return _cut(octets) if len(octets) == 16 * count else None


def _cut(octets: bytes) -> list[bytes]:
    return list(chain.from_iterable(_id.iter_unpack(octets)))
