"""CBOR items walked over head by head, where decoding them as a whole will not do.

**Keys that are integers** must be few, before anything is built (`check_keys`). Where an integer
goes in a map of Python is known to everybody, and so it is of arrays. Who chooses them well makes
each key be looked for in thousands of places, and decoding 256 KiB of such keys takes seconds, on
every node that decodes the event later, too. Texts and bytes are mixed with a secret of the
process, so nobody can choose them. They are nearly all keys that there are; only an item that has
others is walked over.

**The requests of a message** are judged each for itself where one of them cannot be decoded
(`parts_of`): a decoder says no to the message, and not where the next request begins.

A head takes half a microsecond, twenty times what decoding it takes. So others get turns on the
way, and a long item keeps nobody waiting but the client whose it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import cbor2

from node.api.limits import INTEGER_KEYS_MAX
from node.api.not_plain import NotPlain, TooManyIntegerKeys, UnusualKeys
from node.api.pacing import Pacer

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG = range(7)  # kinds of heads
_UNSAID, _BREAK = 0x1F, 0xFF  # a length that is not said in advance, and what ends it
_ENDLESS_ARRAY = 0x9F
_ENDLESS = -2
_NUMBER_BYTES_MAX = 9

# A map with too many integers for keys is longer: each key has a byte, and so has each value.
_SHORT_BYTES = 2 * INTEGER_KEYS_MAX
_DEPTH_MAX = 1_000  # no decoder is told to go as deep
_TURN_HEADS = 500

# One for all, so that many short items, one behind the other, give turns as a long one does.
_pacer = Pacer()

_NO_REQUESTS = "a message must be an array of requests, whole and with nothing behind it"


class _Walk:
    """The way over the heads of an item. What is malformed ends it, and is left to the decoder.

    `is_whole`, at its end: there was exactly one item, and nothing behind it.
    """

    def __init__(self, encoded: bytes) -> None:
        self.is_whole = False
        self._encoded = encoded
        # Of all arrays, maps and strings in pieces that are open, the outermost first: the kind,
        # and how many items are to come. Where that is not said they are counted below zero. So at
        # an even number a map has a key next.
        self._kinds = bytearray()
        self._left: list[int] = []

    def heads(self) -> Iterator[tuple[int, int, int, bool]]:
        """Of each head: where it starts, its kind, in how many others it stands, and whether as a
        key. What a tag is for stands in the tag's place.
        """
        encoded, kinds, left, at = self._encoded, self._kinds, self._left, 0
        while at < len(encoded):
            start, head = at, encoded[at]
            kind, length = head >> 5, head & 0x1F
            at += 1
            if head == _BREAK:
                if not self._may_end():
                    return
                left.pop()
                kinds.pop()
            else:
                yield start, kind, len(left), bool(left) and kinds[-1] == _MAP and not left[-1] & 1
                is_unsaid = length == _UNSAID
                if 24 <= length < 28:
                    wide = 1 << (length - 24)
                    length = int.from_bytes(encoded[at : at + wide], "big")
                    at += wide
                elif length >= 28 and not (is_unsaid and _BYTES <= kind <= _MAP):
                    return
                if kind == _TAG:
                    continue
                if is_unsaid or (length and kind in (_ARRAY, _MAP)):
                    kinds.append(kind)
                    left.append(_ENDLESS if is_unsaid else length << (kind == _MAP))
                    continue
                if kind in (_BYTES, _TEXT):
                    at += length
            self._complete()
            if not left:
                self.is_whole = at == len(encoded)
                return

    def _may_end(self) -> bool:
        """Whether the innermost one may: its end was not said, and no key is without a value."""
        left = self._left
        return bool(left) and left[-1] < 0 and not (self._kinds[-1] == _MAP and left[-1] & 1)

    def _complete(self) -> None:
        """An item is whole; with it may be those that it is the last one of."""
        left = self._left
        while left:
            left[-1] -= 1
            if left[-1]:
                return
            left.pop()
            self._kinds.pop()


async def check_keys(encoded: bytes) -> None:
    """Raise `UnusualKeys` unless all maps of an item have texts, bytes or integers for keys, and
    `TooManyIntegerKeys` where one has too many integers.

    What is malformed is left to the decoder, which meets it at the same place. So is a short item:
    its keys are too few to be slow, and `values.check_plain` knows which may be.
    """
    if len(encoded) <= _SHORT_BYTES:
        return
    integers: dict[int, int] = {}  # among the keys of the map that is open at a depth
    for number, (_, kind, depth, is_key) in enumerate(_Walk(encoded).heads()):
        if number % _TURN_HEADS == 0:
            await _pacer.breathe()
        if is_key and kind not in (_BYTES, _TEXT):
            if kind not in (_UNSIGNED, _NEGATIVE, _TAG):
                raise UnusualKeys("the keys of a map must be text or integers")
            integers[depth] += 1
            if integers[depth] > INTEGER_KEYS_MAX:
                raise TooManyIntegerKeys("a map has too many integers for keys")
        if kind == _MAP:
            integers[depth + 1] = 0
        if depth > _DEPTH_MAX:
            return


async def parts_of(message: bytes) -> list[bytes]:
    """The encoded requests of a message: the arrays in the array that it is.

    Raises `NotPlain` for everything else, at the first item that is no array.
    """
    parts: list[bytes] = []
    begin = 0
    walk = _Walk(message)
    for number, (start, kind, depth, _) in enumerate(walk.heads()):
        if number % _TURN_HEADS == 0:
            await _pacer.breathe()
        if depth < 2 and kind != _ARRAY:
            raise NotPlain(_NO_REQUESTS)
        if depth == 1:
            if begin:
                parts.append(message[begin:start])
            begin = start
    if not walk.is_whole:
        raise NotPlain(_NO_REQUESTS)
    if begin:
        parts.append(message[begin : len(message) - (message[0] == _ENDLESS_ARRAY)])
    return parts


def id_of(request: bytes) -> int | None:
    """The number that stands behind the kind of an encoded request, if one does."""
    begins = list(islice(_Walk(request).heads(), 3))
    if [kind for _, kind, _, _ in begins] != [_ARRAY, _TEXT, _UNSIGNED]:
        return None
    start = begins[2][0]
    number: int = cbor2.loads(request[start : start + _NUMBER_BYTES_MAX])
    return number
