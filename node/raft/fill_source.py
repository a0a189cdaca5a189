"""The side of a fill that has what another node lacks.

A node that is further behind than the leader's log reaches is brought up from the leader's live
stores. It asks (see `requests`), and the source answers:

    fill_begin                       an offer: its number, what the state is at this moment (index,
                                     term, and of each store name, uid, time of creation,
                                     settings, position, how many checkpoints it has, and
                                     what its snapshots, subscriptions and lives are), and a SHA-256
                                     of all this
    fill_digest (offer, store, at)   the digest of a store at a position, against which the asking
                                     node compares what it holds already
    fill_rows (offer, store, after, until)
                                     events that follow position `after`: as many as fit a chunk, at
                                     least one; and the digest of the store behind the last of them

How snapshots are brought stands in `fill_snapshots`, how subscriptions in `fill_subscriptions`, how
deletions and limits of streams in `fill_lives`, how checkpoints in `fill_checkpoints`.

An offer is the id of the transfer, a position is an offset in it, and the digest behind a chunk
vouches for the chunk and for all before it (see `core.portion`). Stream and type ordinals are
functions of the history and therefore alike on all nodes. Positions never change what they hold, so
the source needs no copy and appends go on. Of events that were removed by then it may send husks;
what is removed later keeps its frames until the offer is withdrawn (`log_needed_from`).

Bounds: an offer is withdrawn when nobody asked for anything of it in `_OFFER_IDLE_S`, when its node
asks for a new one, or when `_OFFERS_MAX` newer ones exist; only so long does it keep a deleted
store alive. A chunk has at most `CHUNK_BYTES_MAX` of frames (or one event), so that nothing else on
the connection waits long behind it. Chunks are made one at a time, whoever asks, with a rest after
each: half a millisecond of work in three.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter, OrderedDict
from typing import Any

import cbor2

from node.core import portion
from node.core.snapshots import Snapshot
from node.core.state import State
from node.core.store import Store
from node.raft import fill_checkpoints, fill_lives, fill_snapshots, fill_subscriptions
from node.raft.fill_digests import REST_S, SLICE_EVENTS, Digests
from node.raft.library import now

log = logging.getLogger(__name__)

CHUNK_BYTES_MAX = 256 * 1024

_OFFERS_MAX = 4
_OFFER_IDLE_S = 15.0


class OfferGone(Exception):
    """The offer was withdrawn, or was made to somebody else."""


class _Offer:
    """The state at the moment at which a node asked for it."""

    def __init__(self, peer: str, state: State) -> None:
        self.peer = peer
        self.raft_index, self.term = state.applied_index, state.applied_term
        self.stores = [(store, store.position) for store in state.stores.values()]
        self.snapshots = [store.snapshots.all() for store in state.stores.values()]
        self.checkpoints = list(map(fill_checkpoints.taken_of, state.stores.values()))
        self.lives = [store.lives.all() for store in state.stores.values()]
        self.subscriptions = [fill_subscriptions.taken_of(store) for store in state.stores.values()]
        self.asked_at = now()


class FillSource:
    """Answers the questions of nodes that are being filled."""

    def __init__(self, state: State, digests: Digests) -> None:
        self.counters: Counter[str] = Counter(fills_begun=0, fill_chunks_sent=0, fill_bytes_sent=0)
        self._state = state
        self._digests = digests
        self._offers: OrderedDict[int, _Offer] = OrderedDict()
        self._number = 0
        self._one_at_a_time = asyncio.Lock()

    # --- questions ---------------------------------------------------------------------------

    async def begin(self, peer: str, _: Any) -> Any:
        """Answer `fill_begin`: `[offer, description, SHA-256 of the description]`."""
        for number in [number for number, one in self._offers.items() if one.peer == peer]:
            del self._offers[number]
        self._number += 1
        offer = self._offers[self._number] = _Offer(peer, self._state)
        while len(self._offers) > _OFFERS_MAX:
            self._offers.popitem(last=False)
        self.counters["fills_begun"] += 1
        log.info("filling %s up to index %d", peer, offer.raft_index)
        description = cbor2.dumps(
            [offer.raft_index, offer.term, [_described(*one) for one in offer.stores]]
        )
        return [self._number, description, hashlib.sha256(description).digest()]

    async def digest(self, peer: str, body: Any) -> Any:
        """Answer `fill_digest`."""
        number, at, position = body
        store, end = self._offer(peer, number).stores[at]
        _need(0 <= position <= end)
        async with self._one_at_a_time:
            return (await self._digests.at(store, position)).value()

    async def rows(self, peer: str, body: Any) -> Any:
        """Answer `fill_rows`: a portion, and the digest behind it."""
        number, at, after, until = body
        store, end = self._offer(peer, number).stores[at]
        _need(0 <= after < until <= end)
        async with self._one_at_a_time:
            digest = await self._digests.at(store, after)
            taken = portion.take(store, digest, min(until, after + SLICE_EVENTS), CHUNK_BYTES_MAX)
            digest.add(taken)
            self._digests.keep(store.uid, digest)
            await asyncio.sleep(REST_S)
        self.counters["fill_chunks_sent"] += 1
        self.counters["fill_bytes_sent"] += sum(map(len, taken[3:]))
        return [*taken, digest.value()]

    async def places(self, peer: str, body: Any) -> Any:
        """Answer `fill_places`."""
        number, at, first = body
        offered = self._offer(peer, number).snapshots[at]
        _need(0 <= first < len(offered))
        return fill_snapshots.places(offered, first)

    async def snapshots(self, peer: str, body: Any) -> Any:
        """Answer `fill_snapshots`."""
        number, at, first, until = body
        offered: list[Snapshot] = self._offer(peer, number).snapshots[at]
        _need(0 <= first < until <= len(offered))
        async with self._one_at_a_time:
            taken = fill_snapshots.chunk(offered, first, until, CHUNK_BYTES_MAX)
            await asyncio.sleep(REST_S)
        self.counters["fill_chunks_sent"] += 1
        self.counters["fill_bytes_sent"] += sum(len(fields[-1]) for fields in taken)
        return taken

    async def subscriptions(self, peer: str, body: Any) -> Any:
        """Answer `fill_subscriptions`."""
        number, at, places = body
        offered = self._offer(peer, number).subscriptions[at]
        async with self._one_at_a_time:
            answer = fill_subscriptions.chunk(offered, places, CHUNK_BYTES_MAX)
            await asyncio.sleep(REST_S)
        return answer

    async def lives(self, peer: str, body: Any) -> Any:
        """Answer `fill_lives`."""
        number, at, first = body
        offered = self._offer(peer, number).lives[at]
        _need(0 <= first < len(offered))
        async with self._one_at_a_time:
            answer = fill_lives.chunk(offered, first)
            await asyncio.sleep(REST_S)
        return answer

    async def checkpoints(self, peer: str, body: Any) -> Any:
        """Answer `fill_checkpoints`."""
        number, at, first = body
        offered = self._offer(peer, number).checkpoints[at]
        _need(0 <= first < len(offered.names))
        async with self._one_at_a_time:
            answer = fill_checkpoints.chunk(offered, first)
            await asyncio.sleep(REST_S)
        return answer

    # --- what the replica asks ---------------------------------------------------------------

    def expire(self) -> None:
        """Withdraw the offers that nobody asks for any more."""
        oldest = now() - _OFFER_IDLE_S
        for number in [number for number, one in self._offers.items() if one.asked_at < oldest]:
            del self._offers[number]
        self._digests.forget_all_but({store.uid for store in self._state.stores.values()})

    @property
    def log_needed_from(self) -> int | None:
        """The index behind which nodes that are being filled will want the log; None if none is."""
        return min((offer.raft_index for offer in self._offers.values()), default=None)

    def _offer(self, peer: str, number: Any) -> _Offer:
        offer = self._offers.get(number) if type(number) is int else None
        if offer is None or offer.peer != peer:
            raise OfferGone("this fill is over")
        offer.asked_at = now()
        return offer


def _described(store: Store, position: int) -> list[Any]:
    facts = [store.name, store.uid, store.created_us, store.durability]
    snapshots = fill_snapshots.described(store.snapshots)
    settled = snapshots, fill_subscriptions.described(store), fill_lives.described(store.lives)
    return [*facts, position, len(store.checkpoints), *settled]


def _need(condition: bool) -> None:
    if not condition:
        raise ValueError("not a range of this store")
