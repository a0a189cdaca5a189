"""The CBOR that nodes say to one another: plain data, and nothing that has to be understood first.

CBOR has tags that build values: dates, regular expressions, whole e-mails, and references to what
stood before. With references a kilobyte can describe a list of 2^100 items, which costs nothing
until somebody shows or compares it, and a value that holds itself. None of it is ever needed here,
and a greeting is read before its sender has proven anything. So all that is taken from a peer is
decoded here: numbers, texts, bytes, lists, maps with texts as keys. Tags, lengths that are not said
in advance, and nesting deeper than `NESTING_MAX` are refused.

What remains costs time and memory in proportion to its bytes, and those have their own limits.
"""

from __future__ import annotations

from typing import Any, NoReturn

import cbor2

NESTING_MAX = 16  # the deepest of ours, an answer with rows, has 6


class NotPlain(ValueError):
    """The bytes are no item of plain data. The text is short, whatever the bytes are."""


def _refuse_tag(*_: object) -> NoReturn:
    raise NotPlain("tags are not spoken here")


# cbor2 gives these a meaning of its own, and each gets the refusal in its place; the hook has the
# rest. A number of its that is missing here is found by a test.
_TAGS_OF_CBOR2 = (
    *(0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54),
    *(100, 256, 258, 260, 261, 1004, 43000, 55799),
)
_REFUSED_TAGS = {tag: _refuse_tag for tag in _TAGS_OF_CBOR2}


def loads(encoded: bytes) -> Any:
    """The item that `encoded` begins with. Raises `NotPlain`, and nothing else."""
    try:
        return cbor2.loads(
            encoded,
            tag_hook=_refuse_tag,
            semantic_decoders=_REFUSED_TAGS,
            max_depth=NESTING_MAX,
            allow_indefinite=False,
            strict_hashable_types=True,
        )
    except Exception as error:
        raise NotPlain(f"not plain CBOR: {type(error).__name__}") from error
