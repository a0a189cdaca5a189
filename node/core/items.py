"""CBOR items as `apply` takes them apart: commands, and what is in events that a filter looks into.

CBOR has tags that build values, and the library builds them. Then what comes of some bytes is no
function of the bytes any more: a regular expression is compiled by calls within calls, which fails
where the stack is deep already, and not where the same one was compiled before. And with shared
references a hundred bytes describe the key of a map that has 2^30 items, all of which are hashed.

No node makes any tag but those of big integers (2 and 3). An item with another one is refused, on
all nodes alike. What nodes say to one another has none at all (`raft/plain`, by the same table).
"""

from __future__ import annotations

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


def loads(encoded: bytes, nesting_max: int) -> Any:
    """The item that `encoded` begins with. Raises whatever the library lets through."""
    return cbor2.loads(
        encoded, tag_hook=refuse_tag, semantic_decoders=REFUSED_TAGS, max_depth=nesting_max
    )
