"""Events as a program knows them, and which of them it wants."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cluster.client_values import plain_values, value_of


@dataclass(frozen=True, slots=True)
class Event:
    """An event to be appended. `data` and `metadata` are JSON values, or bytes.

    What is in neither form is refused where it is appended, with a `ValueError` or `TypeError`.
    """

    type: str
    data: Any = None
    metadata: Any = None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def plain(self) -> dict[str, Any]:
        """As the API wants it."""
        values = plain_values(data=self.data, metadata=self.metadata)
        return {"event_id": self.id, "event_type": self.type, **values}


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event as it is stored. `number` counts in its stream from 0, `position` in the store
    from 1; `created_us` is in microseconds since 1970."""

    stream: str
    number: int
    position: int
    id: str
    type: str
    data: Any
    metadata: Any
    created_us: int

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Recorded:
        """From the API's form."""
        return cls(
            plain["event_stream_id"],
            plain["event_number"],
            plain["position"],
            plain["event_id"],
            plain["event_type"],
            value_of(plain, "data"),
            value_of(plain, "metadata"),
            plain["created_epoch"],
        )


@dataclass(frozen=True, slots=True)
class Appended:
    """Where events were stored. `idempotent` says that an earlier try had stored them."""

    positions: list[int]
    streams: dict[str, int]
    raft_index: int
    idempotent: bool


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events a reader or a follower wants; all of them by default.

    `where` are conditions on what is in an event, all of which hold, as the API has them:

        Filter(("OrderPlaced",), where=({"path": "data.country", "any_of": ["DE", "AT"]},))
    """

    types: tuple[str, ...] = ()
    stream_prefix: str = ""
    where: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if isinstance(self.types, str):  # it would be taken for the types of its letters
            raise TypeError(f"types are several: Filter(({self.types!r},))")

    def query(self) -> list[tuple[str, str]]:
        """As parameters of the API."""
        query = [("type", one) for one in self.types]
        if self.stream_prefix:
            query.append(("stream_prefix", self.stream_prefix))
        if self.where:
            query.append(("where", msgspec.json.encode(self.where).decode()))
        return query

    def plain(self) -> dict[str, Any]:
        """As a member of a body."""
        return {
            "types": list(self.types),
            "stream_prefix": self.stream_prefix,
            "where": list(self.where),
        }
