"""The ends at which a simulated node meets the world: its raft port, and its way in for clients."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from node.override import Override
from node.raft.messages import Message
from node.raft.ports import Listener
from node.raft.session import Identity as SessionIdentity
from tests.raft.links import Port
from tests.simulation.loop import CURRENT, Died
from tests.simulation.wires import Wires

if TYPE_CHECKING:
    from tests.simulation.nodes import Life


class SimulatedPort(Port):
    """A node's end of the links; what happens on them it learns in its own time."""

    def __init__(self, links: Wires, life: Life, me: SessionIdentity) -> None:
        super().__init__(links, life.node_id, me.incarnation, me.lineage)
        self.context = life.context
        self.me = me
        self._life = life
        seed = life.chance.random()
        # One a peer: a node may speak to its peers in any order.
        self._chances = {peer: random.Random(f"{seed}/{peer}") for peer in links.everyone}
        self._wires = links
        self._loop = life.node.loop
        self._peers = life.node.members

    def reach(self, addresses: Mapping[str, str]) -> None:
        super().reach(addresses)
        self._wires.dial(0.1)

    def refuses(self, other: Port) -> bool:
        """As `Transport` does: a node that joins takes over the other's cluster and lineage."""
        assert isinstance(other, SimulatedPort)
        if other.me.joins:
            return self.me.joins
        try:
            # What follows from a meeting is made durable, by this node.
            return self._life.context.copy().run(self._refuses, other)
        except Died:
            return True

    def _refuses(self, other: SimulatedPort) -> bool:
        if self.me.joins and self.me.join is not None:
            standing = other.me.lineage.standing
            if self.me.lineage.not_to_be_joined(other.node_id, standing):
                return True
            self.me.join(other.me.cluster, standing)
            self.me = self.me._replace(cluster=other.me.cluster)
        return self.me.cluster != other.me.cluster or super().refuses(other)

    def send(self, peer: str, message: Message) -> bool:
        refusing = self._wires.refusing
        if refusing and self._chances[peer].random() < refusing:
            return False
        return super().send(peer, message)

    def part(self, peer: str) -> None:
        listener = self._listener
        if listener is not None:
            self._loop.call_soon(listener.disconnected, peer, context=self.context)

    async def start(self, listener: Listener) -> None:
        life = CURRENT.get()
        if life is not None and life.alive:
            self.wanted = {peer: peer for peer in self._peers}
            await super().start(listener)


class Api:
    """What stands in the place of the HTTP API: nobody calls."""

    def __init__(self, *parts: Any) -> None:
        life: Any = CURRENT.get()
        (life.override,) = (part for part in parts if isinstance(part, Override))
        life.built()
        self.arrivals = self

    def arrived(self, store: str) -> None:
        """A store has changed."""

    async def start(self, host: str, port: int) -> None:
        """Nothing to bind."""

    async def stop(self) -> None:
        """Nothing to close."""
