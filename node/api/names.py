"""Names: what may stand in a path, a query or a body to name a store, a stream, a checkpoint.

    store                                  [a-z0-9_][a-z0-9_.-]{0,63}
    stream, checkpoint, subscription, ...  1 to 255 bytes of UTF-8, no control characters, not
                                           beginning with `$` (reserved)

Names are percent-encoded in paths. The decoding is strict: a `%` that is not followed by two
hexadecimal digits, and bytes that are not UTF-8, are refused, because a guess would let two names
mean one stream, or one name two.

Almost every name is short plain ASCII, so each check asks the cheap question first; and the names
asked for lately are remembered, because the same streams come again and again.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from node.errors import InvalidRequest

NAME_BYTES_MAX = 255
NUMBER_MAX = 2**62

_REMEMBERED = 4_096

_STORE = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,63}").fullmatch
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]").search
_VERSION = re.compile(r"[0-9]{1,19}", re.ASCII).fullmatch
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})").search


def decoded(raw: str, what: str) -> str:
    """Percent-decode one segment of a path or one part of a query.

    Raises `InvalidRequest`, naming `what`, for a broken escape or bytes that are not UTF-8.
    """
    if "%" not in raw:
        if raw.isascii():
            return raw
        octets = raw.encode("utf-8", "surrogateescape")
    elif _BAD_PERCENT(raw):
        raise InvalidRequest(f"{what}: '%' must be followed by two hexadecimal digits")
    else:
        octets = unquote_to_bytes(raw.encode("utf-8", "surrogateescape"))
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{what}: not valid UTF-8 when percent-decoded") from None


@lru_cache(_REMEMBERED)
def store_name(segment: str) -> str:
    """The store that a path segment names. Raises `InvalidRequest`."""
    name = decoded(segment, "store")
    if _STORE(name) is None:
        raise InvalidRequest("store: must match [a-z0-9_][a-z0-9_.-]{0,63}", parameter="store")
    return name


@lru_cache(_REMEMBERED)
def stream_name(segment: str) -> str:
    """The stream that a path segment names. Raises `InvalidRequest`."""
    return checked_name(decoded(segment, "stream"), "stream")


def source_name(segment: str) -> str:
    """The aggregate that a path segment names. Raises `InvalidRequest`."""
    return checked_name(decoded(segment, "source"), "source")


def snapshot_version(segment: str) -> int:
    """The version of a snapshot that a path segment names. Raises `InvalidRequest`."""
    given = decoded(segment, "version")
    if _VERSION(given) is None or int(given) > NUMBER_MAX:
        raise InvalidRequest("version: must be an event number", parameter="version")
    return int(given)


def plain_name(segment: str) -> str:
    """The checkpoint or subscription that a path segment names. Raises `InvalidRequest`."""
    return checked_name(decoded(segment, "name"), "name")


def member_id(segment: str) -> str:
    """The member that a path segment names. Raises `InvalidRequest`."""
    return checked_name(decoded(segment, "id"), "id")


def checked_name(name: str, what: str) -> str:
    """`name` itself, if it may name a stream or a checkpoint. Raises `InvalidRequest`."""
    if not fits_name_bytes(name):
        raise InvalidRequest(
            f"{what}: must be 1 to {NAME_BYTES_MAX} bytes of UTF-8", parameter=what
        )
    if name[0] == "$":
        raise InvalidRequest(f"{what}: names that begin with '$' are reserved", parameter=what)
    if has_control_character(name):
        raise InvalidRequest(f"{what}: control characters are not allowed", parameter=what)
    return name


def fits_name_bytes(text: str) -> bool:
    """Whether `text` has 1 to 255 bytes as UTF-8."""
    length = len(text)
    if length * 4 <= NAME_BYTES_MAX or length > NAME_BYTES_MAX:
        return 0 < length <= NAME_BYTES_MAX
    return len(text.encode()) <= NAME_BYTES_MAX


def has_control_character(text: str) -> bool:
    """Whether a C0 or C1 control character, or DEL, stands in `text`."""
    return _CONTROL(text) is not None
