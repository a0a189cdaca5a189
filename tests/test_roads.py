"""By whatever road a node came to a point of the log, it is like all others there.

Several nodes have the log of one `Chronicle`. At random moments one of them applies a part of it,
writes a cycle that may fail, dies and is loaded at its cut, loses a file or all it has, sweeps what
it may, or is filled by another one: which goes on meanwhile, as may the one that is filled, and
which may be gone before the end, so that the next fill goes on from another. Wherever a node stands
then, it must look like the state that never stopped at that index, and whatever it applies it must
answer alike.

Bounds are so small here that short histories reach all of them.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest

from node.core import columns, lives, recent, snapshots, subscription, subscription_state
from node.core.state import State
from node.persistence import blocks, schema, statements, store_file
from node.persistence.breaker import Breaker
from node.persistence.database import CyclePlan, Database
from node.persistence.directory import DataDirectory
from node.persistence.faults import StoreDamaged
from node.persistence.ledger import Ledger
from node.persistence.loader import load_state
from node.raft import (
    fill_checkpoints,
    fill_digests,
    fill_lives,
    fill_receiver,
    fill_snapshots,
    fill_source,
    plain,
)
from node.raft.fill_digests import Digests
from node.raft.fill_offer import FillRefused
from node.raft.fill_receiver import FillReceiver
from node.raft.fill_source import FillSource
from node.raft.requests import NoAnswer, Requests
from tests.chronicle import Chronicle, seen
from tests.persistence.failing_disk import Crash, FailingDisk

ENTRIES = 80
FEW, MANY = 8, 500

SMALL = {
    columns: {"_STREAMS_A_STEP": 2, "_EVENTS_A_STEP": 5},
    recent: {"REMEMBERED_MIN": 7},
    lives: {"EXPIRED_STREAMS_MAX": 2},
    snapshots: {"SERIES_BYTES_MAX": 150, "_GONE_MAX": 3, "DROPPED_MAX": 1},
    subscription: {
        "EVALUATED_MAX": 9,
        "DECODED_BYTES_MAX": 200,
        "FETCH_BYTES_MAX": 250,
        "MOVED_MAX": 2,
        "PARKED_MAX": 5,
        "_SLICE_POSITIONS": 4,
    },
    subscription_state: {"PARKED_MAX": 5},
    blocks: {"EVENTS_MAX": 4, "FRAMES_BYTES_MAX": 300},
    statements: {"_ROWS_A_STATEMENT": (4, 2, 1), "_BYTES_MAX": 100},
    store_file: {"_BLOCKS_A_SWEEP": 2, "_BLOCKS_A_FETCH": 3},
    fill_source: {"REST_S": 0.0, "SLICE_EVENTS": 3, "CHUNK_BYTES_MAX": 300},
    fill_receiver: {"SLICE_EVENTS": 3, "_WINDOW": 3, "_FIRST_EVENTS": 2, "_COMPARED_EVENTS": 10},
    fill_digests: {"REST_S": 0.0, "SLICE_EVENTS": 4, "_MILESTONE": 16, "_RECENT_MAX": 3},
    fill_checkpoints: {"CHECKPOINTS_A_CHUNK": 1},
    fill_lives: {"_LIVES_A_CHUNK": 2, "_LIVES_A_STEP": 2},
    fill_snapshots: {"PLACES_A_CHUNK": 3, "SNAPSHOTS_A_CHUNK": 2, "_LOADED_MAX": 2},
}


@pytest.fixture(autouse=True)
def _little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, bounds in SMALL.items():
        for name, value in bounds.items():
            monkeypatch.setattr(module, name, value)


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine goes down here, so nothing need be on a disk for certain."""
    configured = schema.configured

    def without_syncs(connection: sqlite3.Connection) -> sqlite3.Connection:
        connection = configured(connection)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    monkeypatch.setattr(schema, "configured", without_syncs)


class Link(Requests):
    """Questions that reach another node without a network; `before` may do anything before one."""

    def __init__(self) -> None:
        self.source: FillSource | None = None
        self.before: Callable[[], None] = lambda: None

    async def ask(self, peer: str, topic: str, body: Any, timeout_s: float) -> Any:
        self.before()
        answer = getattr(self.source, topic.removeprefix("fill_"))
        return plain.loads(cbor2.dumps(await answer("me", body)))


class Node:
    """What of a node there is beside Raft. Without a path it has no disk."""

    def __init__(self, chronicle: Chronicle, path: Path | None, chance: random.Random) -> None:
        self.chronicle, self.chance = chronicle, chance
        self.disk = FailingDisk()
        self.directory = DataDirectory(path) if path is not None else None
        self.database: Database | None = None
        self.may_have_lost = self.is_writing = False
        self.link = Link()
        self.start()

    @property
    def index(self) -> int:
        return self.state.applied_index

    def start(self) -> None:
        """Begin with what is on the disk."""
        self.state = State()
        if self.directory is not None:
            loaded = load_state(self.directory)
            assert self.may_have_lost or not loaded.lost
            self.state, self.may_have_lost = loaded.state, False
            self.database = Database(self.directory, self.disk.connect)
        self.ledger = Ledger(self.state, lambda: Breaker(10**9, 0), lambda: 0.0)
        if self.database is not None:
            self.ledger.open(*self.database.open())
        self.state.on_change = self.ledger.changed
        digests = Digests()
        self.source = FillSource(self.state, digests)
        self.receiver = FillReceiver(self.state, self.link, digests, pytest.fail)
        self.look()

    def look(self) -> None:
        assert seen(self.state) == self.chronicle.seen[self.index]
        assert self.state.applied_term == self.chronicle.terms[self.index]

    # --- roads -------------------------------------------------------------------------------

    def walk(self, entries: int = 4) -> None:
        """Apply what follows."""
        until = min(self.chronicle.index, self.index + entries)
        for index in range(self.index + 1, until + 1):
            term, entry = self.chronicle.terms[index], self.chronicle.entries[index - 1]
            outcomes = [repr(one) for one in self.state.apply(index, term, entry)]
            assert outcomes == self.chronicle.outcomes[index - 1]

    async def cycle(self, others: list[Node]) -> None:
        """Write what is new, of which the node may hear more while that goes on.

        The disk may fail at any commit, before or behind it.
        """
        if self.database is None:
            return
        plan = self.ledger.take(forced=True)
        if self.chance.random() < 0.3:
            self.is_writing = True
            self.chance.choice([self.walk, self.sweep])()
            await self.be_filled(others)
            self.is_writing = False
        if self.chance.random() < 0.3:
            error = Crash() if self.chance.random() < 0.4 else None
            where = self.chance.choice(["a.", "b.", "node.db"])
            self.disk.fail(where, "COMMIT", self.chance.random() < 0.5, error)
        try:
            self.write(plan)
        except Crash:
            self.die()
        self.disk.repair()

    def write(self, plan: CyclePlan) -> None:
        # Such a file takes the place of one that counts until the cut moves: a crash loses both.
        assert self.may_have_lost or not any(one.anew for one in plan.stores), "one history"
        self.ledger.settle(plan, self.database.run(plan))

    def die(self) -> None:
        """What is in memory is gone; what was filled and not written, too."""
        self.disk.repair()
        if self.database is not None:
            self.database.close()
        self.start()

    def lose_a_file(self) -> None:
        """While the node runs: it is written anew. Until that is done nothing can be loaded."""
        if self.directory is None or self.chance.random() < 0.5:
            return
        for path in list(self.directory.store_files())[:1]:
            path.unlink(missing_ok=True)  # of one that was lost before, the WAL may be there
            self.may_have_lost = True

    def lose_all(self) -> None:
        if self.directory is not None:
            self.database.close()
            self.directory.quarantine()
        self.start()

    def sweep(self) -> None:
        """Sweep all that may be, or a part; what the disk does not get to know it sweeps later."""
        if self.database is None:
            self.ledger.release_all()
        for removal in self.ledger.sweepable(self.source.log_needed_from):
            store = self.state.stores.get(removal.name)
            if store is None or store.origin is not removal.origin:
                continue
            swept: list[int] = []
            for ordinal, until in removal.until.items():
                stream, events_max = store.stream_list[ordinal], self.chance.choice([1, 3, 100])
                swept += store.sweep(stream, until, events_max, 1 << 40)
            if not self.is_writing and self.database is not None and self.chance.random() < 0.8:
                try:
                    self.database.sweep(store, sorted(swept))
                except StoreDamaged as damage:  # as the sweeper does
                    self.ledger.doubted(store.uid, str(damage))

    async def be_filled(self, others: list[Node]) -> None:
        """Until it succeeds, perhaps, from one or another that is ahead."""
        for _ in range(3):
            ahead = [one for one in others if one.index > self.index]
            if ahead and not await self.was_filled(self.chance.choice(ahead)):
                break
        self.look()

    async def was_filled(self, other: Node) -> bool:
        """Bring what another node has; it may break off, and both may do other things meanwhile.

        Whether it may be tried again.
        """
        # What was begun with a source that was further may lack frames that the next one keeps.
        began_at, goes_on = self.index, bool(self.receiver._staged)
        breaks, meanwhile = self.chance.choice([0.0, 0.1]), self.chance.choice([0.0, 0.1])

        def interfere() -> None:
            if self.chance.random() < breaks:
                raise NoAnswer("gone")
            if self.chance.random() < meanwhile:
                one = self.chance.choice([self, other])
                self.chance.choice([one.walk, one.sweep, one.cycle_in_peace])()

        self.link.source, self.link.before = other.source, interfere
        try:
            filled = await self.receiver.fetch("other")
            if meanwhile and self.chance.random() < 0.5:
                self.walk(1)
            self.receiver.install(filled)
        except NoAnswer:
            return True
        except FillRefused:
            assert goes_on or self.index > began_at, "refused, though nothing has changed"
            return True
        finally:
            if self.chance.random() < 0.7:
                other.source._offers.clear()
        return False

    def cycle_in_peace(self) -> None:
        if self.database is not None and not self.is_writing:
            self.write(self.ledger.take(forced=True))

    async def go_some_way(self, others: list[Node]) -> None:
        steps = [self.walk, self.die, self.sweep, self.lose_a_file, self.lose_all]
        roads = [*steps, self.cycle, self.be_filled]
        road = self.chance.choices(roads, [8, 1, 4, 0.2, 0.3, 4, 4])[0]
        if road in steps:
            road()
        else:
            await road(others)


async def travelled(seed: int, path: Path) -> None:
    """One history, and nodes that come through it by all roads."""
    chronicle, chance = Chronicle(seed), random.Random(seed + 1)
    places = [None, None, path / "one", path / "two"]
    nodes = [Node(chronicle, place, chance) for place in places]
    for _ in range(ENTRIES):
        chronicle.go_on()
        for node in chance.sample(nodes, 2):
            await node.go_some_way([one for one in nodes if one is not node])
    for node in nodes:
        node.walk(ENTRIES)
        node.cycle_in_peace()
        node.look()
        node.state.check()
        if node.directory is not None:
            node.database.close()
            node.directory.close()


@pytest.mark.parametrize("histories", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
async def test_all_roads_lead_to_the_same_state(histories: int, tmp_path: Path) -> None:
    for number in range(histories):
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        await travelled(seed, tmp_path / str(number))
        await asyncio.sleep(0)
