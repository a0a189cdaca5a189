"""Values of `data` and `metadata` in a column of the file: readable where that is exact.

JSON text where JSON says exactly what was stored, and otherwise a blob that holds a CBOR item
(bytes, NaN, whole numbers as keys); NULL is null or nothing.
"""

from __future__ import annotations

from typing import Any

import cbor2
import msgspec


def column_of(value: Any) -> str | bytes | None:
    """A value in the file."""
    if value is None:
        return None
    if type(value) is not bytes:
        try:
            text = msgspec.json.encode(value)
            if msgspec.json.decode(text) == value:
                return text.decode()
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError):
            pass
    return cbor2.dumps(value)


def value_of(column: str | bytes | None) -> Any:
    """What a column of the file stands for."""
    if column is None:
        return None
    return msgspec.json.decode(column) if isinstance(column, str) else cbor2.loads(column)
