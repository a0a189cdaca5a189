"""The network of a simulated cluster: sessions in order, with delay, loss, cuts and black holes."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context

from node.raft import messages
from node.raft.lineage import Lineage
from node.raft.messages import Message
from node.raft.ports import Listener


class Links:
    """All connections of a cluster. A pair has one session or none, as with the real transport.

    What is sent on a session arrives in order, after `delay_s`, unless it is lost (`loss`: the
    share of messages, which real sessions do not lose, but Raft must bear it). A cut ends the
    session, and with it all that is under way; `blackhole` swallows one direction silently.
    """

    def __init__(self, members: Sequence[str], seed: int) -> None:
        self.delay_s: Callable[[random.Random], float] = lambda _: 0.001
        self.loss = 0.0
        self.only_dialled = False  # else everybody has a session with everybody
        self.blackholes: set[tuple[str, str]] = set()
        self.watchers: list[Callable[[str, str, Message], bool | None]] = []
        self.sent: Counter[str] = Counter()
        self._members = list(members)
        self._seed = seed
        self._ports: dict[str, Port] = {}
        self._cut: set[tuple[str, str]] = set()
        self._sessions: dict[tuple[str, str], int] = {}
        self._number = 0
        self._last_arrival: dict[tuple[str, str], float] = {}
        self._chances: dict[tuple[str, str], random.Random] = {}

    def attach(self, port: Port) -> None:
        """A node has opened its port."""
        self._ports[port.node_id] = port
        self._connect_all()

    def detach(self, port: Port) -> None:
        """A node is gone, and its sessions with it."""
        if self._ports.get(port.node_id) is port:
            del self._ports[port.node_id]
            for pair in [pair for pair in self._sessions if port.node_id in pair]:
                self._disconnect(pair)

    def cut(self, *nodes: str) -> None:
        """Separate these nodes from all others (not from one another)."""
        for one in nodes:
            for other in self._members:
                if other not in nodes:
                    self.cut_pair(one, other)

    def cut_pair(self, one: str, other: str) -> None:
        """Separate two nodes."""
        self._cut.add(_pair(one, other))
        self._disconnect(_pair(one, other))

    def heal_pair(self, one: str, other: str) -> None:
        """Undo the cut between two nodes."""
        self._cut.discard(_pair(one, other))
        self._connect_all()

    def heal(self, *nodes: str) -> None:
        """Undo the cuts of these nodes; of all nodes if none is named."""
        self._cut = {pair for pair in self._cut if nodes and not set(pair) & set(nodes)}
        self.blackholes = {pair for pair in self.blackholes if nodes and not set(pair) & set(nodes)}
        self._connect_all()

    def connected(self, one: str, other: str) -> bool:
        """Whether the pair has a session."""
        return _pair(one, other) in self._sessions

    def send(self, sender: str, receiver: str, message: Message) -> bool:
        """Put a message on its way; False if there is no session."""
        session = self._sessions.get(_pair(sender, receiver))
        if session is None:
            return False
        self.sent[type(message).__name__] += 1
        link = sender, receiver
        chance = self._chance(link)
        swallowed = False
        for watch in self.watchers:
            swallowed = watch(sender, receiver, message) is False or swallowed
        if swallowed or link in self.blackholes or chance.random() < self.loss:
            return True
        loop = asyncio.get_running_loop()
        arrival = max(
            # No two links are alike to the last digit, so that order never hangs on a hash.
            loop.time() + self.delay_s(chance) + self._members.index(receiver) * 1e-8,
            self._last_arrival.get(link, 0.0) + 1e-7,
        )
        self._last_arrival[link] = arrival
        encoded = messages.encode(message)
        loop.call_at(
            arrival,
            self._deliver,
            session,
            sender,
            receiver,
            encoded,
            context=self._ports[receiver].context,
        )
        return True

    def _deliver(self, session: int, sender: str, receiver: str, encoded: bytes) -> None:
        port = self._ports.get(receiver)
        if port is not None and self._sessions.get(_pair(sender, receiver)) == session:
            port.deliver(sender, messages.decode(encoded))

    def _chance(self, link: tuple[str, str]) -> random.Random:
        if link not in self._chances:
            self._chances[link] = random.Random(f"{self._seed}/{link}")
        return self._chances[link]

    def dialled(self) -> None:
        """Somebody dials others than before."""
        if self.only_dialled:
            asyncio.get_running_loop().call_soon(self._connect_all)

    def _connect_all(self) -> None:
        for at, one in enumerate(self._members):
            for other in self._members[at + 1 :]:
                pair = _pair(one, other)
                up = one in self._ports and other in self._ports
                if up and pair not in self._cut and pair not in self._sessions:
                    self._connect(pair, one, other)

    def _connect(self, pair: tuple[str, str], one: str, other: str) -> None:
        ends = self._ports[one], self._ports[other]
        if self.only_dialled and not (other in ends[0].wanted or one in ends[1].wanted):
            return
        if any([here.refuses(there) for here, there in (ends, ends[::-1])]):
            return
        self._number += 1
        self._sessions[pair] = self._number
        self._ports[one].greet(self._ports[other])
        self._ports[other].greet(self._ports[one])

    def _disconnect(self, pair: tuple[str, str]) -> None:
        if self._sessions.pop(pair, None) is not None:
            one, other = pair
            for here, there in ((one, other), (other, one)):
                if here in self._ports:
                    self._ports[here].part(there)


def _pair(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)


class Port:
    """One node's end of the links: a `ports.Network`.

    What arrives is delivered in `context`, which a simulation of several nodes tells them apart by.
    """

    context: Context | None = None

    def __init__(
        self, links: Links, node_id: str, incarnation: int, lineage: Lineage | None = None
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.lineage = lineage
        self.node_id = node_id
        self.own_incarnation = incarnation
        self._links = links
        self._listener: Listener | None = None
        self._seen: dict[str, int] = {}
        self.wanted: dict[str, str] = {}

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self._links.attach(self)

    async def stop(self) -> None:
        self.cut_off()

    def cut_off(self) -> None:
        """Gone at once, without a word: what a crash does."""
        self._listener = None
        self._links.detach(self)

    def reach(self, addresses: Mapping[str, str]) -> None:
        """Sessions that are up stay, as with the real transport."""
        self.wanted = dict(addresses)
        self._links.dialled()

    def send(self, peer: str, message: Message) -> bool:
        return self._listener is not None and self._links.send(self.node_id, peer, message)

    def is_connected(self, peer: str) -> bool:
        return self._links.connected(self.node_id, peer)

    def incarnation(self, peer: str) -> int:
        return self._seen.get(peer, 0)

    def refuses(self, other: Port) -> bool:
        """Whether the peer's lineage allows no session."""
        if self.lineage is None or other.lineage is None:
            return False
        return self.lineage.met(other.node_id, other.lineage.standing) is not None

    def greet(self, other: Port) -> None:
        """A session is up."""
        self._seen[other.node_id] = other.own_incarnation
        loop = asyncio.get_running_loop()
        loop.call_soon(self._announce, other.node_id, other.own_incarnation, context=self.context)

    def _announce(self, peer: str, incarnation: int) -> None:
        if self._listener is not None and self.is_connected(peer):
            self._listener.connected(peer, incarnation)

    def part(self, peer: str) -> None:
        """The session is gone."""
        if self._listener is not None:
            self._listener.disconnected(peer)

    def deliver(self, peer: str, message: Message) -> None:
        """A message has arrived."""
        if self._listener is not None:
            self._listener.received(peer, message)
            self._listener.batch_done()
