"""A cluster in one process, on virtual time, with links that can be cut, slowed and made to lose.

What runs is the product: whole replicas over real states, encoded messages, real group commit. What
is replaced is what a replica asks of the world, through the doors that it offers for that:

* time       `VirtualLoop`, an event loop on which waiting takes no time, and `library.use_clock`;
* network    `Links` and one `Port` a node (`ports.Network`): sessions, FIFO, delay, loss, cuts;
* disk       `Disk`, what a node finds again when it starts (`ports.Promises`, `StartingPoint`).

`Cluster` is the director: it starts, stops and crashes nodes. `Chronicle` watches what all of them
apply and who leads, and fails at once where two nodes differ. One seed gives one run.

`Solo` is smaller: one node's engine, guard, recovery and election, to which a test gives single
messages, and whose answers it reads from a list. It has no event loop; its time is a `Clock`.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from node.core import commands
from node.core.frames import ABSENT, encode_frame
from node.core.outcomes import Appended, Outcome
from node.core.state import State
from node.errors import ExesdbError
from node.raft import library, messages
from node.raft.election import Election
from node.raft.guard import Guard
from node.raft.journal import Journal
from node.raft.library import Engine
from node.raft.messages import Message
from node.raft.ports import Listener, RaftSettings, StartingPoint
from node.raft.recovery import Recovery
from node.raft.replica import Replica

EPOCH_S = 1000.0  # virtual time starts here: some code takes 0 to mean "never"
STORE = "main"

# --- time -----------------------------------------------------------------------------------------


class Stuck(Exception):
    """Nothing is scheduled any more: the scenario waits for something that cannot happen."""


class _Skipper(selectors.SelectSelector):
    """Instead of waiting for a timer, moves the clock to it."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck("nothing is scheduled")
        self._loop.moment += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer."""

    def __init__(self) -> None:
        self.moment = EPOCH_S
        super().__init__(_Skipper(self))

    def time(self) -> float:
        """The virtual time, in seconds."""
        return self.moment


@contextmanager
def clock(read: Callable[[], float]) -> Iterator[None]:
    """Let the library read this clock, and its own again afterwards."""
    before = library.upstream.monotonicTime
    library.use_clock(read)
    try:
        yield
    finally:
        library.use_clock(before)


def simulate(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario to its end, on virtual time."""
    loop = VirtualLoop()
    with clock(loop.time):
        try:
            loop.run_until_complete(scenario())
        finally:
            _cancel_the_rest(loop)
            loop.close()


def _cancel_the_rest(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


# --- network --------------------------------------------------------------------------------------


class Links:
    """All connections of a cluster. A pair has one session or none, as with the real transport.

    What is sent on a session arrives in order, after `delay_s`, unless it is lost (`loss`: the
    share of messages, which real sessions do not lose, but Raft must bear it). A cut ends the
    session, and with it all that is under way; `blackhole` swallows one direction silently.
    """

    def __init__(self, members: Sequence[str], seed: int) -> None:
        self.delay_s: Callable[[random.Random], float] = lambda _: 0.001
        self.loss = 0.0
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
        swallowed = any(watch(sender, receiver, message) is False for watch in self.watchers)
        if swallowed or link in self.blackholes or chance.random() < self.loss:
            return True
        loop = asyncio.get_running_loop()
        arrival = max(
            # No two links are alike to the last digit, so that order never hangs on a hash.
            loop.time() + self.delay_s(chance) + self._members.index(receiver) * 1e-8,
            self._last_arrival.get(link, 0.0) + 1e-7,
        )
        self._last_arrival[link] = arrival
        loop.call_at(arrival, self._deliver, session, sender, receiver, messages.encode(message))
        return True

    def _deliver(self, session: int, sender: str, receiver: str, encoded: bytes) -> None:
        port = self._ports.get(receiver)
        if port is not None and self._sessions.get(_pair(sender, receiver)) == session:
            port.deliver(sender, messages.decode(encoded))

    def _chance(self, link: tuple[str, str]) -> random.Random:
        if link not in self._chances:
            self._chances[link] = random.Random(f"{self._seed}/{link}")
        return self._chances[link]

    def _connect_all(self) -> None:
        for at, one in enumerate(self._members):
            for other in self._members[at + 1 :]:
                pair = _pair(one, other)
                up = one in self._ports and other in self._ports
                if up and pair not in self._cut and pair not in self._sessions:
                    self._connect(pair, one, other)

    def _connect(self, pair: tuple[str, str], one: str, other: str) -> None:
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
    """One node's end of the links: a `ports.Network`."""

    def __init__(self, links: Links, node_id: str, incarnation: int) -> None:
        self.counters: Counter[str] = Counter()
        self.node_id = node_id
        self.own_incarnation = incarnation
        self._links = links
        self._listener: Listener | None = None
        self._seen: dict[str, int] = {}

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self._links.attach(self)

    async def stop(self) -> None:
        self.cut_off()

    def cut_off(self) -> None:
        """Gone at once, without a word: what a crash does."""
        self._listener = None
        self._links.detach(self)

    def send(self, peer: str, message: Message) -> bool:
        return self._listener is not None and self._links.send(self.node_id, peer, message)

    def is_connected(self, peer: str) -> bool:
        return self._links.connected(self.node_id, peer)

    def incarnation(self, peer: str) -> int:
        return self._seen.get(peer, 0)

    def greet(self, other: Port) -> None:
        """A session is up."""
        self._seen[other.node_id] = other.own_incarnation
        loop = asyncio.get_running_loop()
        loop.call_soon(self._announce, other.node_id, other.own_incarnation)

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


# --- disk -----------------------------------------------------------------------------------------


@dataclass
class Disk:
    """What a node finds again when it starts: promises, the cut of its state, a tail of the log."""

    term: int = 0
    vote: str | None = None
    incarnation: int = 0
    cut: int = 0
    clean: bool = False
    tail: tuple[tuple[int, int, bytes], ...] = ()
    saves: list[tuple[int, str | None]] = field(default_factory=list)

    def save(self, term: int, vote: str | None) -> None:
        """`ports.Promises`: term and vote never go back."""
        assert term >= self.term, "a term went back"
        assert term > self.term or self.vote in (None, vote), "a second vote in one term"
        self.term, self.vote = term, vote
        self.saves.append((term, vote))


# --- what must hold -------------------------------------------------------------------------------


class Chronicle:
    """What the cluster has applied and who led, as told by every node; they may never differ."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[int, list[bytes]]] = {}
        self.leaders: dict[int, str] = {}
        self.violations: list[str] = []

    def applied(self, node_id: str, index: int, term: int, batch: Sequence[bytes]) -> None:
        """A node has applied an entry."""
        entry = term, list(batch)
        known = self.entries.setdefault(index, entry)
        if known != entry:
            self._violated(f"{node_id} applied another entry at {index}: {entry} not {known}")

    def leads(self, node_id: str, term: int) -> None:
        """A node has begun to lead."""
        known = self.leaders.setdefault(term, node_id)
        if known != node_id:
            self._violated(f"{node_id} and {known} both lead term {term}")

    def _violated(self, what: str) -> None:
        # A replica goes on after an exception, so it is also kept for whoever waits for the end.
        self.violations.append(what)
        raise AssertionError(what)


class WatchedState(State):
    """A state that tells the chronicle what is applied."""

    def __init__(self, node_id: str, chronicle: Chronicle) -> None:
        super().__init__()
        self._node_id = node_id
        self._chronicle = chronicle

    def apply(self, index: int, term: int, encoded: Sequence[bytes]) -> list[Outcome]:
        assert index == self.applied_index + 1, "entries are applied in order, each once"
        self._chronicle.applied(self._node_id, index, term, encoded)
        return super().apply(index, term, encoded)


# --- the cluster ----------------------------------------------------------------------------------


def settings_of(node_id: str, everyone: Sequence[str], **changes: Any) -> RaftSettings:
    """Settings for tests; addresses are names only."""
    peers = {peer: f"{peer}:1" for peer in everyone if peer != node_id}
    address = f"{node_id}:1"
    return RaftSettings(node_id, address, address, f"{node_id}:2", peers, b"secret", **changes)


def event(number: int, event_type: str = "happened") -> bytes:
    """A frame whose id is its number."""
    return encode_frame(
        number.to_bytes(16, "big"), event_type, b"\x01", ABSENT, "application/json", ""
    )


class Cluster:
    """Nodes n1, n2, … and the world around them."""

    def __init__(self, size: int, seed: int = 1, **changes: Any) -> None:
        self.ids = [f"n{number}" for number in range(1, size + 1)]
        self.links = Links(self.ids, seed)
        self.chance = random.Random(seed + 1)
        self.chronicle = Chronicle()
        self.disks = {node_id: Disk() for node_id in self.ids}
        self.replicas: dict[str, Replica] = {}
        self.ports: dict[str, Port] = {}
        self.alarms: list[str] = []
        self._changes = changes
        self._events = 0

    # --- life and death ---

    async def start(self, *node_ids: str) -> None:
        """Start these nodes, or all that are down, from their disks."""
        for node_id in node_ids or [one for one in self.ids if one not in self.replicas]:
            await self._start(node_id)

    async def _start(self, node_id: str) -> None:
        disk = self.disks[node_id]
        disk.incarnation += 1
        forgetful, disk.clean = not disk.clean, False
        state = self._load(node_id, disk)
        self.ports[node_id] = port = Port(self.links, node_id, disk.incarnation)
        replica = Replica(
            settings_of(node_id, self.ids, **self._changes),
            port,
            StartingPoint(
                disk.incarnation,
                disk.term,
                disk.vote,
                state.applied_index,
                state.applied_term,
                forgetful,
                disk.tail,
            ),
            state,
            disk,
            lambda: False,
            lambda: disk.cut,
            random.Random(self.chance.random()),
        )
        replica.on_elected = lambda: self.chronicle.leads(node_id, replica._engine.term)
        self.replicas[node_id] = replica
        await replica.start()

    def _load(self, node_id: str, disk: Disk) -> State:
        state = WatchedState(node_id, self.chronicle)
        state.applied_index = 1
        for index in range(2, disk.cut + 1):
            state.apply(index, *self.chronicle.entries[index])
        if disk.cut == 0:
            state.applied_index = 0
        return state

    def persist(self, *node_ids: str) -> None:
        """Let these nodes' disks (or all) reach what their states have applied."""
        for node_id in node_ids or self.replicas:
            self.disks[node_id].cut = max(
                self.disks[node_id].cut, self.replicas[node_id].applied_index
            )

    def crash(self, *node_ids: str) -> None:
        """Kill these nodes (or all): their memory is gone, their disks stay."""
        for node_id in node_ids or list(self.replicas):
            replica = self.replicas.pop(node_id)
            self.alarms += replica.alarms
            self.ports.pop(node_id).cut_off()
            for task in replica._timers:
                task.cancel()
            if replica._filling is not None:
                replica._filling.cancel()
            replica._proposals.stop()

    async def stop(self, *node_ids: str) -> None:
        """Stop these nodes (or all) in order: nothing is forgotten."""
        for node_id in node_ids or list(self.replicas):
            replica = self.replicas.pop(node_id)
            self.alarms += replica.alarms
            await replica.stop()
            disk = self.disks[node_id]
            disk.cut = max(disk.cut, replica.applied_index)
            disk.tail = tuple(replica.log_tail(disk.cut))
            disk.clean = True

    def wipe(self, node_id: str) -> None:
        """Give a node that is down a new, empty disk. (Its peers know it in a later life.)"""
        self.disks[node_id] = Disk(incarnation=self.disks[node_id].incarnation)

    # --- looking ---

    def __getitem__(self, node_id: str) -> Replica:
        return self.replicas[node_id]

    def leader(self) -> str | None:
        """The leader of the highest term, if one believes to lead."""
        leading = [(one._engine.term, name) for name, one in self.replicas.items() if one.leads]
        return max(leading)[1] if leading else None

    def followers(self) -> list[str]:
        """Everyone up who does not lead."""
        return [name for name, replica in self.replicas.items() if not replica.leads]

    async def until(self, holds: Callable[[], object], timeout_s: float = 20.0) -> None:
        """Wait (virtual time) until `holds()`; fails at the bound."""
        end = asyncio.get_running_loop().time() + timeout_s
        while not holds():
            assert self.chronicle.violations == []
            assert asyncio.get_running_loop().time() < end, "it did not happen in time"
            await asyncio.sleep(0.005)

    async def led(self, *among: str) -> str:
        """Wait until one of these (or of all that are up) leads and is sure of the past."""

        def ready() -> str | None:
            leader = self.leader()
            good = leader is not None and (not among or leader in among)
            if good and self[leader]._engine.leads_with_own_entry_applied():
                return leader
            return None

        await self.until(ready)
        leader = ready()
        assert leader is not None
        return leader

    async def settled(self) -> None:
        """Wait until all that are up have applied the same, and none recovers."""

        def same() -> bool:
            up = list(self.replicas.values())
            indexes = {replica.applied_index for replica in up}
            ends = {replica._journal.last_index for replica in up}
            return indexes == ends and len(ends) == 1 and not any(one.recovering for one in up)

        await self.led()
        await self.until(same)

    async def ready(self) -> str:
        """Start everyone, make the store, and give the leader's id."""
        await self.start()
        store_made = False
        while not store_made:
            await asyncio.sleep(0.01)
            with suppress(ExesdbError):  # the first leader need not be the one that stays
                await self[await self.led()].propose(commands.create_store(STORE, 1), 5000)
                store_made = True
        await self.settled()
        return await self.led()

    # --- using ---

    def command(self, stream: str = "s", events: int = 1) -> bytes:
        """An append of new events to a stream."""
        numbers = range(self._events, self._events + events)
        self._events += events
        return commands.append(STORE, 1, stream, commands.ANY, [event(one + 1) for one in numbers])

    def append(
        self, node_id: str, command: bytes | None = None, timeout_ms: int = 5000
    ) -> Awaitable[tuple[Outcome, int]]:
        """Submit an append at a node."""
        return self[node_id].propose(command or self.command(), timeout_ms)

    async def fill_log(self, node_id: str, appends: int) -> None:
        """Append so many events, one entry after the other."""
        for _ in range(appends):
            outcome, _ = await self.append(node_id)
            assert isinstance(outcome, Appended)

    def check(self) -> None:
        """No rule was broken, no alarm raised anywhere, and all states hold together."""
        assert self.chronicle.violations == []
        assert self.alarms == []
        for replica in self.replicas.values():
            assert replica.alarms == []
            replica.state.check()

    def contents(self, node_id: str) -> list[Any]:
        """Everything in the store of a node, in order."""
        store = self[node_id].state.stores[STORE]
        return [store.record(at) for at in range(1, store.position + 1)]

    def holds(self, node_id: str, command: bytes) -> bool:
        """Whether the events of an append are in the store of a node."""
        decoded = commands.decode(command)
        assert isinstance(decoded, commands.Append)
        frames = {record.frame for record in self.contents(node_id)}
        return all(frame in frames for frame in decoded.frames)


# --- one node alone -------------------------------------------------------------------------------


class Clock:
    """A clock that a test turns by hand."""

    def __init__(self) -> None:
        self.moment = EPOCH_S

    def __call__(self) -> float:
        return self.moment

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.moment += seconds


class Solo:
    """The inner parts of one node; what it says is in `said`, until it is taken from there."""

    def __init__(
        self,
        node_id: str = "n1",
        size: int = 3,
        start: StartingPoint | None = None,
        disk: Disk | None = None,
        **changes: Any,
    ) -> None:
        everyone = [f"n{number}" for number in range(1, size + 1)]
        self.settings = settings_of(node_id, everyone, **changes)
        self.disk = disk or Disk()
        start = start or StartingPoint(1, 0, None, 0, 0, forgetful=False)
        self.said: list[tuple[str, Message]] = []
        self.applied: list[tuple[int, int, bytes]] = []
        self.journal = Journal(start, self.disk)
        self.engine = Engine(self.settings, self.journal, self, self._apply)
        peers = list(self.settings.peers)
        self.recovery = Recovery(self.engine, peers, start.incarnation, start.forgetful, self.send)
        self.election = Election(
            self.engine, self.recovery, self.settings, self.send, random.Random(1)
        )
        self.guard = Guard(self.engine, self.recovery, self.send, self.election.heard)
        for peer in peers:
            self.engine.connected(peer)

    def send(self, peer: str, message: Message) -> bool:
        """Everything that the parts say ends here."""
        self.said.append((peer, message))
        return True

    def hear(self, peer: str, message: Message) -> list[tuple[str, Message]]:
        """Give the guard a message, and take what the node says to it."""
        self.guard.receive(peer, message)
        return self.take()

    def tick(self) -> list[tuple[str, Message]]:
        """One turn, as the replica does it."""
        self.recovery.tick()
        self.election.tick()
        self.engine.tick()
        return self.take()

    def take(self) -> list[tuple[str, Message]]:
        """What was said since the last time."""
        said, self.said = self.said, []
        return said

    def elect(self) -> None:
        """Make this node the leader of the next term, with everyone's vote."""
        self.engine.stand()
        self.engine.tick()
        for peer in self.settings.peers:
            self.guard.receive(peer, messages.Vote(self.engine.term))
        assert self.engine.leads
        self.take()

    def log(self) -> list[tuple[int, int]]:
        """The log as (index, term), with its base."""
        first, last = self.journal.base_index, self.journal.last_index
        return [(at, self.journal.term_at(at) or 0) for at in range(first, last + 1)]

    def _apply(self, index: int, term: int, entry: bytes) -> None:
        self.applied.append((index, term, entry))


def starting_at(index: int, index_term: int, **changes: Any) -> StartingPoint:
    """The start of a node whose state was loaded up to `index`, and which has forgotten nothing."""
    start = StartingPoint(1, index_term, None, index, index_term, forgetful=False)
    return replace(start, **changes)
