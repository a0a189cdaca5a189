"""How a node that is further behind than the leader's log reaches is brought up.

Histories of committed entries are prefixes of one another, so such a node lacks, of every store,
just the events behind its own last position. The leader tells it so (`Behind`), and the node then
asks, one question after the other, which is all the flow control there is:

    fill_begin                       what the leader's state is at this moment: index, term, and
                                     of each store its name, uid, position and checkpoints
    fill_rows (fill, store, after)   the next rows of a store, up to its position at that moment,
                                     with the stream and type names they are the first to use

Stream and type ordinals are functions of the history and therefore alike on all nodes. Positions
never change what they hold, so the leader serves a fill from its live stores while appends go on.

Nothing of it is visible before all of it is there: rows are kept aside, then installed in one step
together with the index they reach, and the log begins anew behind it. A fill that breaks off leaves
nothing behind and is begun again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any, NamedTuple

from node.core.state import State
from node.core.store import Row, Store
from node.raft.library import now
from node.raft.requests import Requests

log = logging.getLogger(__name__)

_OFFERS_MAX = 4
_ROWS_MAX = 5000
_CHUNK_BYTES_MAX = 4 * 1024 * 1024
_ANSWER_S = 10.0
_PROGRESS_S = 2.0


class FillRefused(Exception):
    """The two histories do not fit together, or the other side gave up."""


class _Offer(NamedTuple):
    """The leader's side of one fill: its state at the moment it was asked."""

    raft_index: int
    term: int
    stores: list[tuple[Store, int]]


class Filled(NamedTuple):
    """What a fill brought for a state as of `since`, not yet part of it."""

    since: int
    raft_index: int
    term: int
    stores: list[FilledStore]


class FilledStore(NamedTuple):
    """One store of a fill: what to add to it, in order."""

    name: str
    uid: int
    created_us: int
    position: int
    checkpoints: dict[str, tuple[int, int]]
    chunks: list[tuple[list[str], list[str], list[Row]]]


class FillSource:
    """The side that has what others lack."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._offers: OrderedDict[int, _Offer] = OrderedDict()
        self._number = 0

    async def begin(self, peer: str, _: Any) -> Any:
        """Answer `fill_begin`. At `_OFFERS_MAX` the oldest offer is withdrawn."""
        state = self._state
        stores = [(store, store.position) for store in state.stores.values()]
        self._number += 1
        self._offers[self._number] = _Offer(state.applied_index, state.applied_term, stores)
        while len(self._offers) > _OFFERS_MAX:
            self._offers.popitem(last=False)
        log.info("filling %s up to index %d", peer, state.applied_index)
        described = [
            [
                store.name,
                store.uid,
                store.created_us,
                position,
                [
                    [name, at, store.checkpoint_index[name]]
                    for name, at in store.checkpoints.items()
                ],
            ]
            for store, position in stores
        ]
        return [self._number, state.applied_index, state.applied_term, described]

    async def rows(self, _: str, body: Any) -> Any:
        """Answer `fill_rows`: `[offer, store, after, streams known, types known]`."""
        number, at, after, streams, types = body
        if number not in self._offers:
            raise FillRefused("this fill is over")
        store, position = self._offers[number].stores[at]
        until = min(position, after + _ROWS_MAX)
        rows: list[Row] = []
        size = 0
        for row in store.rows(after, until):
            rows.append(row)
            size += len(row[5])
            if size >= _CHUNK_BYTES_MAX:
                break
        stream_end = max((row[1] for row in rows), default=-1) + 1
        type_end = max((row[4] for row in rows), default=-1) + 1
        new_streams = [stream.name for stream in store.stream_list[streams:stream_end]]
        return [new_streams, store.type_names[types:type_end], rows]


class FillReceiver:
    """The side that lacks something."""

    def __init__(self, state: State, requests: Requests) -> None:
        self._state = state
        self._requests = requests

    async def fetch(self, leader: str) -> Filled:
        """Bring what this node lacks. Raises `FillRefused` or `requests.NoAnswer`."""
        since = self._state.applied_index
        number, index, term, described = await self._ask(leader, "fill_begin", None)
        if index <= self._state.applied_index:
            raise FillRefused(f"{leader} is at {index}, this node at {self._state.applied_index}")
        stores = []
        for at, (name, uid, created_us, position, checkpoints) in enumerate(described):
            chunks = await self._store(leader, number, at, name, uid, position)
            moved = {checkpoint: (where, when) for checkpoint, where, when in checkpoints}
            stores.append(FilledStore(name, uid, created_us, position, moved, chunks))
        return Filled(since, index, term, stores)

    def install(self, filled: Filled) -> None:
        """Make it part of the state, in one step. Raises `FillRefused` where it does not fit."""
        state = self._state
        # Everything is compared before the first change, so that a refusal changes nothing.
        if state.applied_index != filled.since:
            raise FillRefused("entries came through the log as well")
        for one in filled.stores:
            known = self._known(one.name, one.uid)
            if known is not None and known.position > one.position:
                raise FillRefused(f"store {one.name} is longer here than at the leader")
        before = dict(state.stores)
        state.stores = {one.name: self._completed(one) for one in filled.stores}
        state.applied_index, state.applied_term = filled.raft_index, filled.term
        for name in {*before, *state.stores}:
            state.on_change(name)

    async def _store(
        self, leader: str, number: int, at: int, name: str, uid: int, position: int
    ) -> list[tuple[list[str], list[str], list[Row]]]:
        known = self._known(name, uid)
        after = known.position if known else 0
        streams = len(known.stream_list) if known else 0
        types = len(known.type_names) if known else 0
        chunks = []
        told_at = now()
        while after < position:
            body = [number, at, after, streams, types]
            new_streams, new_types, raw = await self._ask(leader, "fill_rows", body)
            rows = [_row(item) for item in raw]
            if not rows:
                raise FillRefused(f"{leader} has no rows of {name} after {after}")
            chunks.append((new_streams, new_types, rows))
            after += len(rows)
            streams += len(new_streams)
            types += len(new_types)
            if now() - told_at > _PROGRESS_S:
                told_at = now()
                log.info("filling store %s: %d of %d events", name, after, position)
        return chunks

    def _known(self, name: str, uid: int) -> Store | None:
        store = self._state.stores.get(name)
        return store if store is not None and store.uid == uid else None

    def _completed(self, one: FilledStore) -> Store:
        store = self._known(one.name, one.uid) or Store(one.name, one.uid, one.created_us)
        for streams, types, rows in one.chunks:
            store.load_streams(streams)
            store.load_types(types)
            store.load_rows(rows)
        store.load_checkpoints(one.checkpoints)
        store.loaded()
        return store

    async def _ask(self, leader: str, topic: str, body: Any) -> Any:
        return await self._requests.ask(leader, topic, body, _ANSWER_S)


def _row(item: Any) -> Row:
    position, ordinal, number, created_us, type_ordinal, frame = item
    if not isinstance(frame, bytes):
        raise FillRefused("a row without a frame")
    return position, ordinal, number, created_us, type_ordinal, frame
