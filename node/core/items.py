"""CBOR items as `apply` takes them apart: commands, and what is in events that a filter looks into.

CBOR has tags that build values, and the library builds them. Then what comes of some bytes is no
function of the bytes any more: a regular expression is compiled by calls within calls, which fails
where the stack is deep already, and not where the same one was compiled before. And with shared
references a hundred bytes describe the key of a map that has 2^30 items, all of which are hashed.

No node makes any tag but those of big integers (2 and 3). An item with another one is refused, on
all nodes alike. What nodes say to one another has none at all (`raft/plain`, by the same table).

Big integers as keys of maps are few, or refused, too: integers are what they hash to, modulo
2^61 - 1, so who wants can choose keys that are all alike to a map. Each is then compared with all
before it, and 100 KiB of them take seconds. Smaller integers can be chosen so that each is looked
for in many places of the map, and arrays so that all of them are alike. So the API takes no map
with many integers for keys, none with arrays, and sees to that before it decodes anything that has
room for many (`api.walking`). Texts and bytes are mixed with a secret of the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import cbor2


def refuse_tag(*_: object) -> NoReturn:
    """What stands in the place of a tag's meaning."""
    raise ValueError("a tag that no node makes")


# cbor2 gives these a meaning of its own, and each gets the refusal in its place; the hook has the
# rest. A number of its that is missing here is found by a test.
_TAGS_OF_CBOR2 = (
    *(0, 1, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54),
    *(100, 256, 258, 260, 261, 1004, 43000, 55799),
)
REFUSED_TAGS = {tag: refuse_tag for tag in _TAGS_OF_CBOR2}

BIG_KEYS_MAX = 64  # of all maps of an item
# 4,215 digits: beyond 4,300 Python writes none, and JSON readers stop, Python's among them.
INTEGER_BITS_MAX = 14_000

Decoders = dict[int, Callable[..., Any]]


class TooManyBigKeys(ValueError):
    """More keys of maps than may be are integers beyond 64 bits."""


def big_integers(keys_max: int) -> Decoders:
    """What the tags of big integers mean in one item, with so many of them in keys of maps."""
    left = keys_max

    def positive(value: Any, in_key: bool) -> int:
        nonlocal left
        if type(value) is not bytes:
            raise ValueError("a big integer of something else than bytes")
        if in_key:
            left -= 1
            if left < 0:
                raise TooManyBigKeys(f"more than {keys_max} keys of maps have more than 64 bits")
        return int.from_bytes(value, "big")

    def negative(value: Any, in_key: bool) -> int:
        return -1 - positive(value, in_key)

    return {2: positive, 3: negative}


# Most items have none, and need no count of their own.
WITHOUT_BIG_KEYS: Decoders = REFUSED_TAGS | big_integers(0)


def loads(encoded: bytes, nesting_max: int) -> Any:
    """The item that `encoded` begins with. Raises whatever the library lets through."""
    try:
        return _loads(encoded, nesting_max, WITHOUT_BIG_KEYS)
    except cbor2.CBORDecodeError as error:
        if not isinstance(error.__cause__, TooManyBigKeys):
            raise
    return _loads(encoded, nesting_max, REFUSED_TAGS | big_integers(BIG_KEYS_MAX))


def _loads(encoded: bytes, nesting_max: int, decoders: Decoders) -> Any:
    return cbor2.loads(
        encoded, tag_hook=refuse_tag, semantic_decoders=decoders, max_depth=nesting_max
    )
