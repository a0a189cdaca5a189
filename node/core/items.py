"""CBOR items as `apply` takes them apart: commands, and what is in events that a filter looks into.

CBOR has tags that build values, and the library builds them. Then what comes of some bytes is no
function of the bytes any more: a regular expression is compiled by calls within calls, which fails
where the stack is deep already, and not where the same one was compiled before. And with shared
references a hundred bytes describe the key of a map that has 2^30 items, all of which are hashed.

No node makes any tag but those of big integers (2 and 3). An item with another one is refused, on
all nodes alike.
"""

from __future__ import annotations

from typing import Any, NoReturn

import cbor2


def _refuse_tag(*_: object) -> NoReturn:
    raise ValueError("a tag that no node makes")


# Those that cbor2 gives a meaning of its own; the hook has the rest.
_TAGS_OF_CBOR2 = (
    *(0, 1, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54),
    *(100, 256, 258, 260, 261, 1004, 43000, 55799),
)
_REFUSED_TAGS = {tag: _refuse_tag for tag in _TAGS_OF_CBOR2}


def loads(encoded: bytes, nesting_max: int) -> Any:
    """The item that `encoded` begins with. Raises whatever the library lets through."""
    return cbor2.loads(
        encoded, tag_hook=_refuse_tag, semantic_decoders=_REFUSED_TAGS, max_depth=nesting_max
    )
