"""Maps of a CBOR body whose keys are integers: few enough, before anything is decoded.

Where an integer goes in a map of Python is known to everybody, and so it is of arrays. Who chooses
them well makes each key be looked for in thousands of places, and decoding 256 KiB of such keys
takes seconds, on every node that decodes the event later, too. Texts and bytes are mixed with a
secret of the process, so nobody can choose them. They are nearly all keys that there are; an item
that has others is walked over first, head by head, and nothing is built.

Bounds: `INTEGER_KEYS_MAX` integers as keys of one map, and `VALUES_MAX` values in an item with such
keys, which walking takes 0.1 s for.
"""

from __future__ import annotations

INTEGER_KEYS_MAX = 256
VALUES_MAX = 100_000

_BYTES, _TEXT, _ARRAY, _MAP, _TAG = range(2, 7)  # kinds of heads; 0 and 1 are integers
_UNSAID, _BREAK = 0x1F, 0xFF  # a length that is not said in advance, and what ends it
_ENDLESS = -1


class UnusualKeys(ValueError):
    """Keys are what they must not be, or too many of them integers; the text says which."""


class _Container:
    """An array or a map that is open, or a string in pieces: how many items are still to come."""

    __slots__ = ("integer_keys", "is_at_key", "is_map", "left")

    def __init__(self, left: int, is_map: bool) -> None:
        self.left = left
        self.is_map = self.is_at_key = is_map
        self.integer_keys = 0


def check_keys(encoded: bytes) -> None:
    """Raise `UnusualKeys` unless all maps of an item have texts or few integers for keys.

    What is malformed is left to the decoder.
    """
    containers: list[_Container] = []
    at = 0
    for _ in range(VALUES_MAX):
        if at >= len(encoded):
            return
        head = encoded[at]
        kind, length = head >> 5, head & 0x1F
        at += 1
        if head == _BREAK:
            if not containers or containers.pop().left != _ENDLESS:
                return
        else:
            if containers and containers[-1].is_at_key:
                _check_key(containers[-1], kind)
            is_unsaid = length == _UNSAID
            if 24 <= length < 28:
                wide = 1 << (length - 24)
                length = int.from_bytes(encoded[at : at + wide], "big")
                at += wide
            if kind == _TAG:
                continue  # what it is a tag of stands in the same place
            if is_unsaid or (kind in (_ARRAY, _MAP) and length):
                count = length * (1 + (kind == _MAP))
                containers.append(_Container(_ENDLESS if is_unsaid else count, kind == _MAP))
                continue
            if kind in (_BYTES, _TEXT):
                at += length
        _complete(containers)
        if not containers:
            return
    raise UnusualKeys(f"an item with integers as keys has more than {VALUES_MAX} values")


def _check_key(inside: _Container, kind: int) -> None:
    if kind in (_BYTES, _TEXT):
        return
    if kind not in (0, 1, _TAG):
        raise UnusualKeys("the keys of a map must be text or integers")
    inside.integer_keys += 1
    if inside.integer_keys > INTEGER_KEYS_MAX:
        raise UnusualKeys(f"a map has more than {INTEGER_KEYS_MAX} integers for keys")


def _complete(containers: list[_Container]) -> None:
    """An item is whole; with it may be those that it is the last one of."""
    while containers:
        inside = containers[-1]
        inside.is_at_key = inside.is_map and not inside.is_at_key
        if inside.left == _ENDLESS:
            return
        inside.left -= 1
        if inside.left:
            return
        containers.pop()
