"""Heads of requests that were parsed before: a client says the same in nearly all of them.

Parsing a request costs about 7 us with the objects that come out of it, and a client on a kept
connection sends the same header lines again and again; only its first line differs. So the lines
of heads that the parser has accepted are remembered, byte for byte, with what it made of them. A
request that arrives whole, on a connection where nothing else is under way, whose lines are among
them and whose first line is of the plainest form, is taken without parsing. Everything else goes
the usual way.

Nothing is judged here that the parser has not judged: the same bytes mean the same. What makes the
meaning depend on anything but these bytes is never remembered (`_is_plain`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from aiohttp.http import HttpVersion, HttpVersion11, RawRequestMessage

KNOWN_MAX = 1_024
LINES_BYTES_MAX = 2_048

# Paths of the letters that need no thought; the parser may find more of them good.
_FIRST_LINE = re.compile(rb"(GET|POST|PUT|DELETE) (/[A-Za-z0-9/_.~?=&%:,+$-]*) HTTP/1\.1")
_END = b"\r\n\r\n"


class KnownHead(NamedTuple):
    """What is asked of a parsed head, by the names that the parser's own has for it."""

    method: str
    path: str
    version: HttpVersion
    headers: Mapping[str, str]
    should_close: bool


class WholeBody:
    """A body that has arrived, as a payload."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    def is_eof(self) -> bool:
        """Nothing more comes."""
        return True

    def read_nowait(self) -> bytes:
        """All of it."""
        return self._body

    def set_exception(self, error: BaseException) -> None:
        """The connection is lost; whoever reads the body has it already."""


class KnownHeads:
    """The header lines that were seen lately on all connections, and what they mean.

    At `KNOWN_MAX` all are forgotten and learned anew: clients whose lines never repeat cost a
    little, and no memory. Lines of more than `LINES_BYTES_MAX` are not remembered.
    """

    def __init__(self, line_bytes_max: int) -> None:
        self._line_bytes_max = line_bytes_max
        self._known: dict[bytes, tuple[Mapping[str, str], int]] = {}

    def take(self, data: bytes) -> tuple[KnownHead, WholeBody] | None:
        """The request that `data` is, if it is exactly one and its header lines are known."""
        line_end = data.find(b"\r\n")
        head_end = data.find(_END, line_end)
        if not 0 < line_end <= head_end:
            return None  # the rest of it is still to come
        known = self._known.get(data[line_end:head_end])
        if known is None or line_end > self._line_bytes_max:
            return None
        headers, length = known
        body_start = head_end + len(_END)
        first = _FIRST_LINE.fullmatch(data, 0, line_end)
        if first is None or len(data) - body_start != length:
            return None
        method, path = first.groups()
        head = KnownHead(method.decode(), path.decode(), HttpVersion11, headers, False)
        return head, WholeBody(data[body_start:])

    def learn(self, data: bytes, message: object) -> int | None:
        """Remember the lines of the message that the parser has just made of `data`, if possible.

        Gives the number of bytes of its body that are still to come, or None if that cannot be
        told from here: what follows on the connection may then begin in the middle of anything.
        """
        line_end = data.find(b"\r\n")
        head_end = data.find(_END, line_end)
        # The parser passes over empty lines before a request: then its lines begin elsewhere.
        if not 0 < line_end <= head_end:
            return None
        if not isinstance(message, RawRequestMessage) or not _is_plain(message):
            return None
        length = int(message.headers.get("Content-Length", "0"))
        if head_end - line_end <= LINES_BYTES_MAX:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[data[line_end:head_end]] = message.headers, length
        missing = length - (len(data) - head_end - len(_END))
        return missing if missing >= 0 else None


def _is_plain(message: RawRequestMessage) -> bool:
    """Whether its lines mean the same wherever they stand, and `Content-Length` bytes follow."""
    return (
        message.version == HttpVersion11
        and not message.should_close
        and not message.chunked
        and not message.upgrade
        and message.compression is None
        and "Expect" not in message.headers
        and "Transfer-Encoding" not in message.headers
    )
