"""How values and names travel between the client and the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from yarl import URL


def plain_values(**values: Any) -> dict[str, Any]:
    """Values as members of a body; bytes under a name of their own, None not at all."""
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, bytes):
            plain[f"{name}_base64"] = value  # written as base64
        elif value is not None:
            plain[name] = value
    return plain


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
