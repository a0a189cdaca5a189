"""A node of a simulated cluster: its disk, and one life of the whole service after the other.

A life is a `node.service.Service`, wired as in a process, in a simulated world: `Port` for its
sessions, no HTTP port, virtual time. It ends by a clean stop, by `kill` (the memory is gone), or by
`lose_power` (so is what was not synced). A life that is over can do nothing any more: it is off
the network, its disk has moved on, its tasks are cancelled.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.config.options import Config
from node.config.values import Address, Peer
from node.identity import EXIT_PROMISE_LOST
from node.override import Override
from node.persistence.faults import FileFault
from node.raft.membership import Membership
from node.raft.ports import RaftSettings
from node.raft.replica import Replica
from node.raft.session import Identity as SessionIdentity
from node.service import Service, World
from tests.simulation import threads
from tests.simulation.disk import Disk
from tests.simulation.ends import Api, SimulatedPort
from tests.simulation.loop import CURRENT, Died, SimulatedLoop
from tests.simulation.wires import Wires

if TYPE_CHECKING:
    from tests.simulation.watch import Chronicle

STORE = "main"


class Life:
    """One start of a node, up to its end."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.node_id = node.node_id
        self.chronicle = node.chronicle
        self.override: Override
        self.disk = node.disk
        self.chance = random.Random(node.chance.random())
        self.alive = True
        self.stalled = False
        self.serving = False
        self.damaged = False
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.commit_index = 0
        self.acknowledged = 0, 0  # the term and index of its last acknowledgement
        self.context = copy_context()
        self.context.run(CURRENT.set, self)
        self.port: SimulatedPort | None = None
        self.tail_thread: threads.Thread | None = None
        self._threads: dict[int, float] = {}
        self.service = Service(
            node.config(),
            World(
                network=self._network,
                api=Api,  # type: ignore[arg-type]
                clock=node.loop.time,
                chance=lambda: random.Random(self.chance.random()),
            ),
        )

    def __repr__(self) -> str:
        return self.node_id

    @property
    def skew_s(self) -> float:
        """How far the wall clock of the node is off."""
        return self.node.skew_s

    @property
    def boot_id(self) -> str:
        """The machine's; another after it lost power."""
        return f"{self.node_id}-boot-{self.node.boots}"

    @property
    def replica(self) -> Replica:
        """The replica, once it is built."""
        return self.service._replica

    def job_times_s(self, thread: object) -> tuple[float, float]:
        """See `loop.Life`; a thread does one job after the other."""
        now = self.node.loop.time()
        takes_s = self.chance.choice([0.001, 0.002, 0.01]) * self.disk.faults.slowness
        before_s = takes_s * self.chance.random()
        free_at = max(now, self._threads.get(id(thread), now))
        self._threads[id(thread)] = free_at + takes_s
        return free_at + before_s - now, takes_s - before_s

    def tail_pass_s(self) -> float:
        """In how long the tail's thread has done what it was woken for."""
        return self.chance.choice([0.0005, 0.002]) * self.disk.faults.slowness

    @property
    def lineage(self) -> str:
        """The lineage that the node followed when this life began, or has come to follow."""
        return self.service._identity.standing.lineage

    @property
    def tail_whole(self) -> bool:
        """Whether a kill would make the node forget nothing, by its own word."""
        tail = getattr(self.service, "_tail", None)
        return tail is not None and tail.whole and not self.replica.recovering

    def exited(self, code: int) -> None:
        """The node ended its process itself."""
        if self.alive:
            faults = self.disk.faults
            if code != EXIT_PROMISE_LOST or not faults.failing:  # a full disk takes promises
                self.node.fail(f"{self} ends its process with {code}")
            self.node.end("kill")
        raise Died

    def _network(self, settings: RaftSettings, me: SessionIdentity) -> SimulatedPort:
        self.port = SimulatedPort(self.node.links, self, me)
        return self.port

    def built(self) -> None:
        """All parts are there, none has begun: watch them."""
        chronicle = self.chronicle = self.node.chronicle.of(self.lineage)
        replica, state = self.replica, self.replica.state
        self.commit_index = replica._engine.commit_index
        chronicle.check_state(self, state)
        self.node.found_again(self)
        if self.service._identity.quarantined:
            self.node.reported_cut = 0  # what it held stands aside
        apply, seen = state.apply, state.applied_index

        def watched(index: int, term: int, encoded: Sequence[bytes]) -> Any:
            nonlocal seen
            if index != seen + 1 and state.applied_index == index - 1 and index > seen:
                chronicle.check_state(self, state)  # it was filled
            elif index != seen + 1 and self.alive:  # else it ended in an entry, and a turn was due
                self.node.fail(f"I10: {self} applies {index} after {seen}")
            seen = index
            outcomes = apply(index, term, encoded)
            if self.alive:
                chronicle.applied(self, index, term, encoded, outcomes)
            return outcomes

        state.apply = watched  # type: ignore[method-assign]
        self._watch_cuts(chronicle)
        self._watch_members(chronicle)

    def _watch_members(self, chronicle: Chronicle) -> None:
        memberships = self.replica._journal.memberships
        learn = memberships.learned
        chronicle.members_are(self, memberships.committed)

        def watched(committed: Membership) -> None:
            learn(committed)
            chronicle.members_are(self, memberships.committed)

        memberships.learned = watched  # type: ignore[method-assign]

    def memberships(self) -> tuple[Membership, ...]:
        """The memberships that the node knows to be committed, or to have stood in a log."""
        if not hasattr(self.service, "_replica"):
            return ()
        known = self.replica._journal.memberships
        return known.committed, known.heard, known.current

    def _watch_cuts(self, chronicle: Chronicle) -> None:
        journal = self.replica._journal
        delete = journal.deleteEntriesFrom

        def watched(at: int) -> None:
            chronicle.cuts(self, journal.base_index + at)
            delete(at)

        journal.deleteEntriesFrom = watched  # type: ignore[method-assign]


class Node:
    """A member of the cluster, up or down."""

    def __init__(
        self,
        node_id: str,
        members: Sequence[str],
        root: Path,
        loop: SimulatedLoop,
        links: Wires,
        chronicle: Chronicle,
        seed: str,
        fail: Any,
        joins: bool = False,
        **options: Any,
    ) -> None:
        self.node_id = node_id
        self.members = list(members)
        self.loop = loop
        self.links = links
        self.chronicle = chronicle
        self.chance = random.Random(seed)
        self.fail = fail
        self.disk = Disk(root / node_id, random.Random(self.chance.random()), self._died)
        self.life: Life | None = None
        self.skew_s = 0.0
        self.boots = 1
        self.forgetful = True
        self.log_end: tuple[int, int] | None = None  # of a life whose log must be found again
        self.reported_cut = 0
        self.came_up_at = 0.0
        self.alarms: list[str] = []
        self.starts = 0
        self.stopped_cleanly = False
        self.damage_expected = False
        self.refusal: BaseException | None = None
        self.joins = joins
        self._context = copy_context()
        self._watching: asyncio.Task[None] | None = None
        self._known: tuple[Membership, ...] = ()
        self._options = options

    def config(self) -> Config:
        """The settings of the node."""
        peers = [Peer(one, Address(one, 1)) for one in self.members if one != self.node_id]
        return Config(
            node_id=self.node_id,
            store_id=STORE,
            raft_address=Address(self.node_id, 1),
            http_address=Address(self.node_id, 2),
            peers=tuple(peers),
            cluster_secret="simulated-secret",
            data_dir=self.disk.path,
            join=self.joins,
            **self._options,
        )

    @property
    def lineage(self) -> str | None:
        """The lineage that the node follows; None if it is down."""
        return self.life.lineage if self.life is not None and self.life.serving else None

    @property
    def quarantined(self) -> bool:
        """Whether the node knows that what it held was given up."""
        return self.up and bool(self.life and self.life.service._identity.quarantined)

    @property
    def up(self) -> bool:
        """Whether a life of the node has come up."""
        return self.life is not None and self.life.serving

    def memberships(self) -> tuple[Membership, ...]:
        """The memberships that the node knows of, in its memory or on its disk."""
        return (self.life.memberships() if self.life else ()) or self._known

    @property
    def lacks_memory(self) -> bool:
        """Whether the node may not know all that it has acknowledged, or may end by itself, and
        then would not.
        """
        life = self.life
        if life is None or not life.serving:
            return self.forgetful
        return life.replica.recovering or (self.disk.faults.failing > 0 and not life.tail_whole)

    def forgets(self, how: str) -> bool:
        """Whether the node would lack memory if it ended so now."""
        if self.life is None or not self.life.serving:
            return self.forgetful or how != "kill"
        return how != "kill" or not self.life.tail_whole

    async def start(self) -> bool:
        """Begin a life; False if it did not come up."""
        if self.life is not None:
            return False
        life = self.life = Life(self)
        self.starts += 1
        starting = self.loop.create_task(life.service.start(), context=life.context)
        await asyncio.wait([starting])
        if not life.alive:
            return False
        error = None if starting.cancelled() else starting.exception()
        if error is None:
            life.serving = True
            self.came_up_at = self.loop.time()
            self._loaded(life)
            self._watching = self.loop.create_task(
                self._start_again(life), context=self._context.copy()
            )
            return True
        if not isinstance(error, FileFault | OSError):
            self.fail(f"{self.node_id} does not start: {error!r}")
        self.end("kill")
        self.refusal = error
        return False

    async def _start_again(self, life: Life) -> None:
        """A node that follows another lineage now stops by itself, and starts anew."""
        await life.service.again.wait()
        if self.life is life:
            await self.stop()
        if self.life is None and life.alive is False:
            await self.start()

    def _loaded(self, life: Life) -> None:
        cut = life.service._worker.persisted_index
        if cut < self.reported_cut and not self.damage_expected:
            self.fail(f"I13: {self} restarts at {cut}, and had reported {self.reported_cut}")
        self.damage_expected = False
        self.reported_cut = cut
        self.forgetful, self.log_end = True, None

    def found_again(self, life: Life) -> None:
        """What was killed with a whole tail, or stopped, comes back as if nothing had been."""
        journal = life.replica._journal
        if self.log_end is None or self.damage_expected:
            return
        index, term = self.log_end
        if life.replica.recovering:
            self.fail(f"{self} has forgotten nothing, and starts recovering")
        elif journal.last_index < index or journal.term_at(index) not in (term, None):
            self.fail(f"{self} starts at {journal.last_index}, its log reached {index} ({term})")

    async def stop(self) -> None:
        """Stop in order; the next start begins from the same files."""
        life = self.life
        if life is None or not life.serving:
            return
        self._note_cut()
        life.serving = False
        stopping = self.loop.create_task(life.service.stop(), context=life.context)
        await asyncio.wait([stopping])
        if not life.alive:
            return
        clean = not stopping.cancelled() and stopping.exception() is None and stopping.result()
        clean = clean and not life.replica.recovering and not life.service.again.is_set()
        self._note_cut()
        journal = life.replica._journal
        self.log_end = (journal.last_index, journal.last_term) if clean else None
        self._over(life)
        self.disk.kill()
        self.forgetful, self.stopped_cleanly = not clean, clean

    def end(self, how: str) -> None:
        """Kill the process, or take the power (`how` is "power"), at this moment."""
        life = self.life
        if life is not None:
            remembers = life.serving and how == "kill" and life.tail_whole
            remembers = remembers and not life.service.again.is_set()
            if life.serving:
                self._note_cut()
            self.log_end = _log_end(life) if remembers else None
            self._over(life)
            self.forgetful, self.stopped_cleanly = not remembers, False
        if how == "power":
            if not self.stopped_cleanly:
                self.forgetful, self.log_end = True, None
            self.boots += 1
            self.disk.lose_power()
        elif life is not None:
            self.disk.kill()
        self.loop.call_soon(self.disk.let_go)

    def wipe(self) -> None:
        """Give the node, which is down, an empty disk; setting it up takes an operator a while."""
        self.disk.wipe()
        self._known = ()
        self.forgetful, self.log_end, self.stopped_cleanly = True, None, False
        self.reported_cut = 0
        self.skew_s += 100.0
        self.chronicle.forgets_votes(self.node_id)

    def _note_cut(self) -> None:
        if self.life is not None:
            cut = self.life.service._worker.persisted_index
            self.reported_cut = max(self.reported_cut, cut)

    def _over(self, life: Life) -> None:
        self._known = life.memberships() or self._known
        if self._watching is not None and not life.service.again.is_set():
            self._watching.cancel()
        self.life = None
        life.alive = False
        life.serving = False
        self.loop.resume(life)
        if life.port is not None:
            life.port.cut_off()
        if hasattr(life.service, "_replica"):
            self.alarms += life.replica.alarms
        for task in list(life.tasks):
            task.cancel()
        if hasattr(life.service, "_directory"):
            life.service._directory.close()

    def _died(self, how: str) -> None:
        """The disk has come to the point at which the process was to end."""
        self.end(how)
        raise Died

    def __repr__(self) -> str:
        return self.node_id


def _log_end(life: Life) -> tuple[int, int]:
    """Index and term of the last entry of a log that is whole in its tail.

    A process that ends while it makes a change of members durable has not written its entry yet.
    """
    journal, tail = life.replica._journal, life.service._tail
    assert tail is not None
    index = min(journal.last_index, tail._last)
    return index, journal.term_at(index) or 0
