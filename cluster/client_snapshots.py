"""Snapshots of aggregates, for the client: begin where you were, and read only what came since.

    latest = await client.latest_snapshot("order-7", "payments-7")
    total, version = (latest.data, latest.version) if latest else (0, -1)
    async for event in client.read_stream("payments-7", version + 1):
        total, version = total + event.data["amount"], event.number
    await client.record_snapshot("order-7", "payments-7", version, "Order", total)

A snapshot belongs to a source (the id of the aggregate) and the stream that was folded; its version
is the number of the last event that is in it. How many a store keeps of them is the store's setting
`snapshots_kept`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.client_asking import Asking
from cluster.client_errors import NotFound
from cluster.client_values import plain_values, quoted, value_of

_PAGE = 100


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot as it is stored; `created_us` is in microseconds since 1970."""

    source: str
    stream: str
    version: int
    source_type: str
    data: Any
    metadata: Any
    created_us: int

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Snapshot:
        """From the API's form."""
        return cls(
            plain["source_uuid"],
            plain["stream_uuid"],
            plain["source_version"],
            plain["source_type"],
            value_of(plain, "data"),
            value_of(plain, "metadata"),
            plain["created_epoch"],
        )


class SnapshotCalls(Asking):
    """What a client can do with snapshots. Every method raises `ClientError`."""

    async def record_snapshot(
        self,
        source: str,
        stream: str,
        version: int,
        source_type: str,
        data: Any,
        metadata: Any = None,
    ) -> bool:
        """Record a snapshot; True if it stands in place of an earlier one, or of an earlier try.

        Raises `ClientError` with the code `snapshot_too_old` if all that are kept are newer.
        """
        body = {"source_type": source_type, **plain_values(data=data, metadata=metadata)}
        answer = await self._ask("PUT", _path(source, stream, version), [], body)
        return bool(answer["replaced"])

    async def latest_snapshot(
        self, source: str, stream: str, max_version: int | None = None
    ) -> Snapshot | None:
        """The one with the greatest version (not above `max_version`); None if there is none."""
        query = [] if max_version is None else [("max_version", str(max_version))]
        page = await self._read(_path(source, stream), query)
        return Snapshot.of(page["snapshots"][0]) if page["snapshots"] else None

    async def snapshots(
        self, source: str, stream: str, min_version: int = 0
    ) -> AsyncIterator[Snapshot]:
        """All of a source and stream from a version on, the smallest first."""
        following: int | None = min_version
        while following is not None:
            query = [("direction", "forward"), ("limit", str(_PAGE))]
            page = await self._read(
                _path(source, stream), [*query, ("min_version", str(following))]
            )
            for plain in page["snapshots"]:
                yield Snapshot.of(plain)
            following = page["next"]

    async def delete_snapshot(self, source: str, stream: str, version: int) -> bool:
        """Delete a snapshot; False if there was none, or an earlier try had deleted it."""
        try:
            await self._ask("DELETE", _path(source, stream, version), [])
        except NotFound as error:
            if error.code == "snapshot_not_found":
                return False
            raise
        return True


def _path(source: str, stream: str, version: int | None = None) -> str:
    series = f"/snapshots/{quoted(source)}/{quoted(stream)}"
    return series if version is None else f"{series}/{version}"
