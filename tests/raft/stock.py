"""The library as it comes, over links in memory and on virtual time.

These tests demonstrate what we defend against: each asserts that the unmodified library does wrong.
If one of them fails after an upgrade, upstream has changed, and the defence may be reconsidered.
"""

from __future__ import annotations

import heapq
import pickle
import random
from collections.abc import Callable, Sequence
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from tests.raft.virtual_time import Clock, clock

STEP_S = 0.01


class StockNetwork:
    """FIFO links with one delay; `isolate` and `heal` as seen by both ends."""

    def __init__(self, delay_s: float = 0.001) -> None:
        self.clock = Clock()
        self.delay_s = delay_s
        self.bytes_per_s = 0.0
        self.watchers: list[Callable[[str, str, dict[str, Any]], bool | None]] = []
        self.ends: dict[str, _StockTransport] = {}
        self._queue: list[tuple[float, int, str, str, bytes]] = []
        self._number = 0
        self._busy_until: dict[tuple[str, str], float] = {}
        self._cut: set[frozenset[str]] = set()

    def send(self, sender: str, receiver: str, message: dict[str, Any]) -> bool:
        if frozenset((sender, receiver)) in self._cut:
            return False
        if any(watch(sender, receiver, message) is False for watch in self.watchers):
            return True
        encoded = pickle.dumps(message)
        link = sender, receiver
        arrival = max(self.clock() + self.delay_s, self._busy_until.get(link, 0.0))
        arrival += len(encoded) / self.bytes_per_s if self.bytes_per_s else 1e-9
        if self.bytes_per_s and arrival - self.clock() > 1.0:
            return False
        self._busy_until[link] = arrival
        self._number += 1
        heapq.heappush(self._queue, (arrival, self._number, sender, receiver, encoded))
        return True

    def deliver_due(self) -> None:
        while self._queue and self._queue[0][0] <= self.clock():
            _, _, sender, receiver, encoded = heapq.heappop(self._queue)
            if frozenset((sender, receiver)) not in self._cut and receiver in self.ends:
                self.ends[receiver].deliver(sender, pickle.loads(encoded))

    def forget(self) -> None:
        """Lose everything that is under way."""
        self._queue.clear()

    def isolate(self, one: str, others: Sequence[str]) -> None:
        for other in others:
            if other != one:
                self._cut.add(frozenset((one, other)))
                self._tell(one, other, "_onNodeDisconnected")

    def heal(self, one: str, others: Sequence[str]) -> None:
        for other in others:
            if other != one:
                self._cut.discard(frozenset((one, other)))
                self._tell(one, other, "_onNodeConnected")

    def _tell(self, one: str, other: str, what: str) -> None:
        for here, there in ((one, other), (other, one)):
            if here in self.ends:
                getattr(self.ends[here], what)(Node(there))


class _StockTransport(Transport):  # type: ignore[misc]
    def __init__(self, network: StockNetwork, node_id: str) -> None:
        super().__init__(None, None, None)
        self.errors: list[str] = []
        self._network, self._node_id = network, node_id
        network.ends[node_id] = self

    def send(self, node: Any, message: dict[str, Any]) -> bool:
        return self._network.send(self._node_id, node.id, message)

    def deliver(self, sender: str, message: dict[str, Any]) -> None:
        try:
            self._onMessageReceived(Node(sender), message)
        except Exception as error:
            self.errors.append(repr(error))


class StockNode(SyncObj):  # type: ignore[misc]
    """A list, replicated by the library as its README tells."""

    def __init__(
        self, network: StockNetwork, node_id: str, ids: Sequence[str], **conf: Any
    ) -> None:
        self.end = _StockTransport(network, node_id)
        super().__init__(
            Node(node_id),
            [Node(one) for one in ids if one != node_id],
            conf=SyncObjConf(autoTick=False, **conf),
            transport=self.end,
        )
        self.applied: list[Any] = []

    @replicated
    def put(self, item: Any) -> int:
        self.applied.append(item)
        return len(self.applied)

    @property
    def log(self) -> list[tuple[int, int]]:
        """The log as (index, term)."""
        return [(index, term) for _, index, term in self._SyncObj__raftLog[:]]

    @property
    def entries(self) -> list[bytes]:
        """The content of the log."""
        return [entry for entry, _, _ in self._SyncObj__raftLog[:]]

    @property
    def term(self) -> int:
        return int(self.raftCurrentTerm)

    @property
    def leads(self) -> bool:
        return bool(self._isLeader())


class StockCluster:
    """Nodes of the unmodified library. Use it inside `with`, which sets the clock."""

    def __init__(self, size: int = 3, seed: int = 3, delay_s: float = 0.001, **conf: Any) -> None:
        random.seed(seed)  # the library draws its timeouts from the global generator
        self.network = StockNetwork(delay_s)
        self.ids = [f"n{number}" for number in range(size)]
        self.conf = conf
        self.nodes: dict[str, StockNode] = {}
        self._clock = clock(self.network.clock)

    def __enter__(self) -> StockCluster:
        self._clock.__enter__()
        for node_id in self.ids:
            self.nodes[node_id] = self.make(node_id)
        for node_id in self.ids:
            self.network.heal(node_id, self.ids)
        return self

    def __exit__(self, *error: Any) -> None:
        self._clock.__exit__(*error)

    def make(self, node_id: str) -> StockNode:
        """A fresh node with that id."""
        return StockNode(self.network, node_id, self.ids, **self.conf)

    def restart(self, node_id: str) -> None:
        """The node again, with nothing in its memory."""
        self.nodes[node_id] = self.make(node_id)
        self.network.heal(node_id, self.ids)

    def leader(self, *without: str) -> str | None:
        leading = [
            (node.term, name)
            for name, node in self.nodes.items()
            if node.leads and name not in without
        ]
        return max(leading)[1] if leading else None

    def run(
        self,
        seconds: float,
        until: Callable[[], object] | None = None,
        each: Callable[[], object] | None = None,
        without: Sequence[str] = (),
        step_s: float = STEP_S,
    ) -> bool:
        """Let time pass; True if `until()` came to hold. Nodes in `without` stand still."""
        end = self.network.clock() + seconds
        while self.network.clock() < end:
            self.network.clock.advance(step_s)
            self.network.deliver_due()
            for name, node in self.nodes.items():
                if name not in without:
                    self._tick(node)
            if each is not None:
                each()
            if until is not None and until():
                return True
        return False

    def elect(self) -> str:
        """Wait for a leader whose first entry everyone has."""
        assert self.run(20, until=self.leader)
        self.run(0.5)
        leader = self.leader()
        assert leader is not None
        return leader

    @staticmethod
    def _tick(node: StockNode) -> None:
        try:
            node.doTick(0.0)
        except Exception as error:
            node.end.errors.append(repr(error))
