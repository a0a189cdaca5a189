"""The network of a simulated cluster, and the digest by which two runs are compared."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path

from tests.raft.links import Links

DIAL_AGAIN_S = 1.0


class Wires(Links):
    """Links that keep a digest of all that they deliver.

    `refusing` is the share of messages that find the queue to their peer full. A pair has a session
    if one of the two dials the other, and neither refuses; it is tried again and again.
    """

    def __init__(self, members: list[str], seed: int, now: Callable[[], float], root: Path) -> None:
        super().__init__(members, seed)
        self.everyone = list(members)
        self.refusing = 0.0
        self._context = copy_context()
        self._dials = False
        self._now = now
        self._root = str(root).encode()  # stands in the reasons why something cannot be written
        self._traces = {
            (one, other): hashlib.sha256() for one in members for other in members if one != other
        }  # by link: in which order a node speaks to its peers at one moment says nothing

    def dial(self, after_s: float) -> None:
        """Connect, after a while, whoever is not connected and wants to be."""
        if not self._dials:
            self._dials = True
            asyncio.get_running_loop().call_later(after_s, self._dial, context=self._context)

    def _dial(self) -> None:
        self._dials = False
        self._connect_all()

    def _connect(self, pair: tuple[str, str], one: str, other: str) -> None:
        if other in self._ports[one].wanted or one in self._ports[other].wanted:
            super()._connect(pair, one, other)
            if pair not in self._sessions:
                self.dial(DIAL_AGAIN_S)

    def _deliver(self, session: int, sender: str, receiver: str, encoded: bytes) -> None:
        trace = self._traces[sender, receiver]
        trace.update(b"%d %.9f " % (session, self._now()))
        trace.update(encoded.replace(self._root, b""))
        super()._deliver(session, sender, receiver, encoded)

    def digest(self) -> bytes:
        """Of everything, in an order of its own."""
        return b"".join(trace.digest() for _, trace in sorted(self._traces.items()))
