"""Filters: which events of a store somebody wants.

Matching compares ordinals: the store numbers its event types and streams, so a filter looks up each
type once, and each stream's name at most once a scan. A filter that names one stream is not matched
against events: the stream knows the positions of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a store holds its subscriptions, which hold filters
    from node.core.store import Row, Store


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events a reader wants: of one of these types (all, if none is named), of streams whose
    names begin so, and of this stream, if it is named."""

    types: tuple[str, ...] = ()
    stream_prefix: str = ""
    stream: str | None = None

    @property
    def takes_all(self) -> bool:
        """Whether every event matches."""
        return not self.types and not self.stream_prefix and self.stream is None


class Matcher:
    """A filter in the ordinals of one store, as of now: for one scan."""

    __slots__ = ("_prefix", "_store", "_streams", "_types", "_types_matter")

    def __init__(self, store: Store, wanted: Filter) -> None:
        found = (store.find_type(name) for name in wanted.types)
        self._types = {ordinal for ordinal in found if ordinal is not None}
        self._types_matter = bool(wanted.types)
        self._prefix = wanted.stream_prefix
        self._streams: dict[int, bool] = {}
        self._store = store

    def matches(self, row: Row) -> bool:
        """Whether an event is of a wanted type, and of a stream whose name begins as wanted."""
        if self._types_matter and row[4] not in self._types:
            return False
        if not self._prefix:
            return True
        known = self._streams.get(row[1])
        if known is None:
            name = self._store.stream_name(row[1])
            known = self._streams[row[1]] = name.startswith(self._prefix)
        return known

    def takes_type(self, ordinal: int) -> bool:
        """The same for an event of a stream whose name is known to begin as wanted."""
        return not self._types_matter or ordinal in self._types
