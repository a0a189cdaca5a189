"""Which node a client asks next.

A client knows the addresses that it was given, and learns the others, and who leads, from the nodes
themselves. Appends go to the leader, which saves a hop; reads and everything else go round all
nodes. A node that could not be reached, or said that it cannot serve, is passed over for
`_AVOIDED_S`, unless no other is left. One that is frozen, or down with its machine, costs whoever
asks it a time-out: it is passed over so long that this takes a tenth of the time, at most
`_AVOIDED_S_MAX`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.access import url_of

_AVOIDED_S, _AVOIDED_S_MAX = 2.0, 60.0
_FRESH_S = 30.0
_NODES_MAX = 64


class Routing:
    """The nodes of one cluster, as one client sees them."""

    def __init__(self, urls: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `ValueError` or `TypeError` where an address is none."""
        if not urls:
            raise ValueError("a client needs the address of at least one node")
        self._given = [_given(url) for url in urls]
        self._learned: list[str] = []
        self._leader: str | None = None
        self._avoided: dict[str, float] = {}
        self._next = 0
        self._clock = clock
        self._learned_at = float("-inf")

    @property
    def urls(self) -> list[str]:
        """All nodes that are known, those that were given first."""
        return list(dict.fromkeys([*self._given, *self._learned]))

    @property
    def stale(self) -> bool:
        """Whether it is time to ask a node again who belongs to the cluster and leads it."""
        return self._leader is None or self._clock() - self._learned_at > _FRESH_S

    def pick(self, for_append: bool) -> str:
        """The node to ask now."""
        moment = self._clock()
        good = [url for url in self.urls if self._avoided.get(url, 0.0) <= moment]
        if for_append and self._leader in good:
            return str(self._leader)
        choices = good or self.urls
        self._next += 1
        return choices[self._next % len(choices)]

    def failed(self, url: str, lost_s: float = 0.0) -> None:
        """The node could not be reached, or cannot serve now; it took so long to learn that."""
        avoided_s = max(_AVOIDED_S, min(10 * lost_s, _AVOIDED_S_MAX))
        self._avoided[url] = max(self._avoided.get(url, 0.0), self._clock() + avoided_s)
        if url == self._leader:
            self._leader = None

    def learned(self, cluster: Mapping[str, Any]) -> None:
        """What a node said of the cluster (`GET /v1/cluster`)."""
        members = {
            str(member["id"]): url_of(str(member["http_address"]))
            for member in cluster["members"][:_NODES_MAX]
            if member.get("http_address")
        }
        self._learned = list(members.values())
        self._leader = members.get(cluster["leader"])
        self._learned_at = self._clock()


def _given(address: object) -> str:
    if not isinstance(address, str):
        raise TypeError(f"{address!r} is no address: addresses are text, and given one by one")
    return url_of(address)
