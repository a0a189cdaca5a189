"""Filters: which events of a store somebody wants.

Matching compares ordinals: the store numbers its event types and streams, so a filter looks up each
type once, and each stream's name at most once a scan. A filter that names one stream is not matched
against events: the stream knows the positions of its own. What is in an event is looked at last,
where everything else fits: that needs it decoded (`conditions`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from node.core.conditions import Condition, Inspector

if TYPE_CHECKING:  # a store holds its subscriptions, which hold filters
    from node.core.store import Row, Store


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events a reader wants: of one of these types (all, if none is named), of streams whose
    names begin so, of this stream, if it is named, and where all these conditions hold."""

    types: tuple[str, ...] = ()
    stream_prefix: str = ""
    stream: str | None = None
    where: tuple[Condition, ...] = ()

    @property
    def takes_all(self) -> bool:
        """Whether every event matches."""
        return not (self.types or self.stream_prefix or self.where) and self.stream is None


class Matcher:
    """A filter in the ordinals of one store, as of now: for one scan. No removed event matches.

    `takes_all` says that there is no need to ask.
    """

    __slots__ = (
        "_inspector",
        "_prefix",
        "_store",
        "_streams",
        "_types",
        "_types_matter",
        "takes_all",
    )

    def __init__(self, store: Store, wanted: Filter) -> None:
        found = (store.find_type(name) for name in wanted.types)
        self._types = {ordinal for ordinal in found if ordinal is not None}
        self._types_matter = bool(wanted.types)
        self._prefix = wanted.stream_prefix
        self._inspector = Inspector(wanted.where) if wanted.where else None
        self._streams: dict[int, bool] = {}
        self._store = store
        self.takes_all = wanted.takes_all and not store.lives.removed

    @property
    def decoded_bytes(self) -> int:
        """How many bytes of frames were decoded to judge them."""
        return 0 if self._inspector is None else self._inspector.decoded_bytes

    def matches(self, row: Row) -> bool:
        """Whether an event is wanted; a stream that the filter names is not looked at."""
        if row[2] < self._store.stream_list[row[1]].first:
            return False
        if self._types_matter and row[4] not in self._types:
            return False
        if self._prefix and not self._takes_stream(row[1]):
            return False
        return self._inspector is None or self._inspector.holds(row[5])

    def _takes_stream(self, ordinal: int) -> bool:
        known = self._streams.get(ordinal)
        if known is None:
            name = self._store.stream_name(ordinal)
            known = self._streams[ordinal] = name.startswith(self._prefix)
        return known
