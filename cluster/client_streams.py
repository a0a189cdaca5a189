"""The life of streams, for the client: deleting them, and saying what they keep.

    await client.append("visits", [Event("Visited", {"n": n}) for n in range(5)])
    first = await client.set_stream_metadata("visits", max_count=3)
    print(first, [event.number async for event in client.read_stream("visits")])
    await client.delete_stream("visits", expected_version=4)
    print(await client.stream("visits"))

What is removed is gone for all readers at once, and soon from memory and disk. It does not come
back, whatever the limits become. A stream that was deleted may be begun anew: its numbers go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.client_asking import Asking
from cluster.client_errors import Deleted, NotFound
from cluster.client_values import quoted

_LIMITS = ("max_count", "max_age_ms", "truncate_before")


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream that is there: its `count` events have the numbers `first` to `version`.

    It keeps the last `max_count` events, those younger than `max_age_ms`, those from number
    `truncate_before` on; None is no limit.
    """

    name: str
    version: int
    count: int
    first: int
    max_count: int | None
    max_age_ms: int | None
    truncate_before: int | None

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> StreamInfo:
        """From the API's form."""
        return cls(
            plain["stream"],
            plain["version"],
            plain["count"],
            plain["first_event_number"],
            **{name: plain["metadata"].get(name) for name in _LIMITS},
        )


class StreamCalls(Asking):
    """What a client can do with streams as a whole. Every method raises `ClientError`."""

    async def stream(self, name: str) -> StreamInfo | None:
        """How a stream is; None if there is none. Raises `Deleted` if there never will be."""
        try:
            return StreamInfo.of(await self._read(_path(name), []))
        except NotFound as error:
            if error.code == "stream_not_found":
                return None
            raise

    async def delete_stream(
        self, name: str, expected_version: int | str = "any", hard: bool = False
    ) -> bool:
        """Delete a stream if it is where the caller expects it; with `hard`, for ever.

        False if there was none, or an earlier try had deleted it. Raises `WrongExpectedVersion`,
        also where an earlier try of this call, whose answer was lost, has deleted it: then `stored`
        is true.
        """
        query = [("expected_version", str(expected_version)), ("hard", str(hard).lower())]
        try:
            await self._ask("DELETE", _path(name), query)
        except NotFound as error:
            if error.code == "stream_not_found":
                return False
            raise
        except Deleted:
            if hard:
                return False
            raise
        return True

    async def set_stream_metadata(
        self,
        name: str,
        max_count: int | None = None,
        max_age_ms: int | None = None,
        truncate_before: int | None = None,
    ) -> int:
        """Set all that limits a stream at once; the number of the first event that is kept."""
        body = dict(zip(_LIMITS, (max_count, max_age_ms, truncate_before), strict=True))
        done = await self._ask("PUT", _path(name) + "/metadata", [], body)
        return int(done["first_event_number"])


def _path(name: str) -> str:
    return f"/streams/{quoted(name)}"
