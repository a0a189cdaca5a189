"""Digests of stores at any position, for both sides of a fill.

A digest goes over every event, so the first one of a large store takes a second for a million
events. It is made in slices, with a rest after each, because the node that makes it may be a leader
in full work. Every `_MILESTONE` events a copy is kept, and so are the `_RECENT_MAX` last ones, so
that none is made twice: what a store holds at a position never changes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection

from node.core import portion
from node.core.portion import Digest
from node.core.store import Store

SLICE_EVENTS = 2_048
SLICE_BYTES = 512 * 1024
REST_S = 0.002

_STEP_EVENTS = 50  # what a step costs beside its events
_MILESTONE = 64 * 1024
_RECENT_MAX = 64


class Digests:
    """What is known of the digests of one node's stores, by uid."""

    def __init__(self) -> None:
        self._milestones: dict[int, list[Digest]] = {}
        self._recent: OrderedDict[tuple[int, int], Digest] = OrderedDict()
        self._worked = 0

    async def at(self, store: Store, position: int) -> Digest:
        """A digest of the store up to `position`, for the caller to go on with."""
        digest = self._nearest(store.uid, position).copy()
        while digest.position < position:
            milestone = (digest.position // _MILESTONE + 1) * _MILESTONE
            until = min(position, milestone, digest.position + SLICE_EVENTS)
            self._worked += until - digest.position + _STEP_EVENTS
            digest.add(portion.take(store, digest, until, SLICE_BYTES))
            if digest.position == milestone:
                self._keep_milestone(store.uid, digest)
            if self._worked >= SLICE_EVENTS:
                self._worked = 0
                await asyncio.sleep(REST_S)
        return digest

    def keep(self, uid: int, digest: Digest) -> None:
        """Remember a digest for a while: somebody will go on from there."""
        self._recent[uid, digest.position] = digest.copy()
        if len(self._recent) > _RECENT_MAX:
            self._recent.popitem(last=False)

    def forget(self, uid: int) -> None:
        """What was known of a store is no longer true of it."""
        self._milestones.pop(uid, None)
        for key in [key for key in self._recent if key[0] == uid]:
            del self._recent[key]

    def forget_all_but(self, uids: Collection[int]) -> None:
        """Of stores that are gone nothing need be known."""
        for uid in {*self._milestones, *(uid for uid, _ in self._recent)}.difference(uids):
            self.forget(uid)

    def _nearest(self, uid: int, position: int) -> Digest:
        at = position // _MILESTONE
        milestones = self._milestones.get(uid, [])[:at]
        recent = [
            digest
            for (of, where), digest in self._recent.items()
            if of == uid and where <= position
        ]
        return max([Digest(), *milestones[-1:], *recent], key=lambda digest: digest.position)

    def _keep_milestone(self, uid: int, digest: Digest) -> None:
        """They are kept without a gap: the nth is that of position n x `_MILESTONE`."""
        milestones = self._milestones.setdefault(uid, [])
        if len(milestones) + 1 == digest.position // _MILESTONE:
            milestones.append(digest.copy())
