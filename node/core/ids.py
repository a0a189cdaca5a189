"""Event ids: UUIDs, 16 bytes inside, text outside.

A node makes ids of version 7 (RFC 9562) for events that came without: the first 48 bits are the
time, so ids made one after the other stand near one another. Time and randomness are arguments,
because nothing in this package may read a clock or a source of chance.
"""

from __future__ import annotations

RANDOM_BYTES = 10


def new_event_id(unix_ms: int, random: bytes) -> bytes:
    """A UUIDv7 from milliseconds since 1970 and `RANDOM_BYTES` random bytes."""
    return b"%b%c%b%c%b" % (
        unix_ms.to_bytes(6, "big"),
        0x70 | (random[0] & 0x0F),
        random[1:2],
        0x80 | (random[2] & 0x3F),
        random[3:10],
    )


def format_id(event_id: bytes) -> str:
    """The canonical text form: 8-4-4-4-12 lower-case hexadecimal digits."""
    text = event_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
