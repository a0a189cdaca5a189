"""How values and names travel between the client and the API.

Values are JSON, or bytes as a whole. What JSON cannot hold would be changed without a word where it
is written (nan into null, bytes into text, the key 1 into "1"), and nobody would know what it was:
it is refused before anything is sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from yarl import URL

_BYTES = (bytes, bytearray, memoryview)
_SEVERAL = (list, tuple, set, frozenset)


def plain_values(**values: Any) -> dict[str, Any]:
    """Values as members of a body; bytes under a name of their own, None not at all.

    Raises `ValueError` or `TypeError` for what is no JSON value.
    """
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, _BYTES):
            plain[f"{name}_base64"] = value  # written as base64
        elif value is not None:
            _check(name, value)
            plain[name] = value
    return plain


def _check(where: str, value: Any) -> None:
    """Refuse what would be written as something else; most values are of the first kinds."""
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where}: the key {key!r} is no text")
            _check(where, inner)
    elif isinstance(value, _SEVERAL):
        for inner in value:
            _check(where, inner)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} is no JSON value")
    elif isinstance(value, _BYTES):
        raise TypeError(f"{where}: bytes within a value; `data` as a whole may be bytes")


def value_of(plain: Mapping[str, Any], name: str) -> Any:
    """The inverse, of one of them."""
    encoded = plain.get(f"{name}_base64")
    if encoded is None:
        return plain.get(name)
    return msgspec.convert(encoded, bytes)


def quoted(name: str) -> str:
    """A name as a segment of a path. Two that mean a place in the path elsewhere are escaped."""
    return quote(name, safe="").replace(".", "%2E") if name in (".", "..") else quote(name, safe="")


def exact(url: str) -> URL:
    """A URL whose path is escaped already, to be sent as it is: escaped dots stay names."""
    return URL(url, encoded=True)
