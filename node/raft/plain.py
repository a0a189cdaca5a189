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

from typing import Any

import cbor2

from node.core import items

NESTING_MAX = 16  # the deepest of ours, an answer with rows, has 6


class NotPlain(ValueError):
    """The bytes are no item of plain data. The text is short, whatever the bytes are."""


_BIG_INTEGERS = (2, 3)  # the only tags in what nodes keep; here they are refused, too
_REFUSED_TAGS = items.REFUSED_TAGS | dict.fromkeys(_BIG_INTEGERS, items.refuse_tag)


def loads(encoded: bytes) -> Any:
    """The item that `encoded` begins with. Raises `NotPlain`, and nothing else."""
    try:
        return cbor2.loads(
            encoded,
            tag_hook=items.refuse_tag,
            semantic_decoders=_REFUSED_TAGS,
            max_depth=NESTING_MAX,
            allow_indefinite=False,
            strict_hashable_types=True,
        )
    except MemoryError:
        raise  # says nothing about the bytes, and the other nodes may have had enough
    except Exception as error:
        raise NotPlain(f"not plain CBOR: {type(error).__name__}") from error
