"""The network of a simulated cluster, and the digest by which two runs are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from tests.raft.links import Links


class Wires(Links):
    """Links that keep a digest of all that they deliver.

    `refusing` is the share of messages that find the queue to their peer full.
    """

    def __init__(self, members: list[str], seed: int, now: Callable[[], float], root: Path) -> None:
        super().__init__(members, seed)
        self.refusing = 0.0
        self._now = now
        self._root = str(root).encode()  # stands in the reasons why something cannot be written
        self._traces = {
            (one, other): hashlib.sha256() for one in members for other in members if one != other
        }  # by link: in which order a node speaks to its peers at one moment says nothing

    def _deliver(self, session: int, sender: str, receiver: str, encoded: bytes) -> None:
        trace = self._traces[sender, receiver]
        trace.update(b"%d %.9f " % (session, self._now()))
        trace.update(encoded.replace(self._root, b""))
        super()._deliver(session, sender, receiver, encoded)

    def digest(self) -> bytes:
        """Of everything, in an order of its own."""
        return b"".join(trace.digest() for _, trace in sorted(self._traces.items()))
