"""An event as a backup holds it, and the chain of digests over events in order.

    link 0 = 32 zero bytes;  link n = SHA-256(link n-1 + CBOR of the event at position n)

So one link stands for a whole history, and two histories can be compared at any position that both
have. Everything that a client can read of an event counts, except its time: a restore cannot choose
it. `data` and `metadata` count as the values that they are: 1, 1.0 and "1" are three values, text
and bytes are two.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import cbor2

FIRST_LINK = bytes(32)


class StoredEvent(NamedTuple):
    """Everything that the API tells of an event."""

    position: int
    stream: str
    number: int
    event_id: str
    event_type: str
    data_content_type: str
    metadata_content_type: str
    data: Any
    metadata: Any
    created_us: int

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> StoredEvent:
        """From a CBOR answer."""
        return cls(
            plain["position"],
            plain["event_stream_id"],
            plain["event_number"],
            plain["event_id"],
            plain["event_type"],
            plain["data_content_type"],
            plain["metadata_content_type"],
            plain["data"],
            plain["metadata"],
            plain["created_epoch"],
        )


def next_link(link: bytes, event: StoredEvent) -> bytes:
    """The link for this event, after that of the one before it."""
    return sha256(link + cbor2.dumps(event[:-1])).digest()
