"""Who changes the members of the cluster, while everything else goes wrong.

An `Operator` asks any member, as over HTTP, and goes on meanwhile: what it asked for runs beside
the other faults. Some seeds have an operator, and each of those has its own kinds of changes. What
it was told is remembered, and judged at the end: a change that was acknowledged is in force.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import TYPE_CHECKING

from node.errors import ExesdbError
from node.raft.membership import Membership
from node.raft.replica import Replica
from tests.simulation.nodes import Node

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

SHARE = 0.4  # of the seeds
VOTERS_MIN = 2
TRIES_MAX = 4

Change = Callable[[Replica, int], Awaitable[Membership]]


class Operator:
    """The changes of members of one run."""

    def __init__(self, simulation: Simulation, chance: random.Random) -> None:
        self.acknowledged: list[Membership] = []
        self._simulation = simulation
        self._chance = chance
        self._loop = simulation.loop
        self._context = copy_context()
        self._removing = 0
        self._adding: Counter[str] = Counter()
        self._works: list[asyncio.Task[None]] = []
        self._busy = chance.random() < SHARE
        self._voters_min = 1 if simulation.shrinks else VOTERS_MIN

    def kinds(self, others: int) -> list[Callable[[], Awaitable[None]]]:
        """The changes that happen among so many other faults."""
        if not self._busy or self._simulation.rescue.due:
            return []
        kinds = [self.add, self._remove, self._remove, self._replace, self._two_at_once]
        drawn = self._chance.sample(kinds, self._chance.randint(1, len(kinds)))
        return drawn * max(1, others // (2 * len(drawn)))

    async def change(self) -> None:
        """Begin a change of some kind."""
        await self._chance.choice([self.add, self.add, self._remove, self._replace])()

    async def make_even(self) -> None:
        """Remove a voter if they are odd in number, so that one more makes them odd."""
        if len(self._simulation.chronicle.membership.voters) % 2:
            await self._remove()
            await asyncio.wait(self._works, timeout=3.0)

    async def add(self) -> None:
        """Begin to add a member."""
        node = self._newcomer()
        if node is not None:
            self._begin(self._add_it(node))

    async def add_by(self, asked: Node, node: Node) -> None:
        """Ask one member, once, to add a node, unless it was taken away meanwhile."""
        if self._simulation.nodes.get(node.node_id) is not node:
            return
        self._adding[node.node_id] += 1
        await self._remembered(asked, _adding(node))
        self._adding[node.node_id] -= 1

    async def remove_by(self, asked: Node, node: Node) -> None:
        """Ask one member, once, to remove another one."""
        self._removing += 1
        await self._remembered(asked, _removing(node))
        self._removing -= 1

    async def done(self) -> None:
        """Wait until everything that was begun is answered, or given up."""
        for work in self._works:
            await work

    def judge(self) -> None:
        """What was acknowledged is what was committed."""
        committed = self._simulation.chronicle.memberships
        for told in self.acknowledged:
            if committed.get(told.version, told) != told or told.version > max(committed):
                self._simulation.fail(f"M: {told} was acknowledged, {committed} are committed")

    def forget(self) -> None:
        """All power was lost, and with it what was acknowledged."""
        self.acknowledged.clear()

    # --- changes -----------------------------------------------------------------------------

    async def _remove(self) -> None:
        node = self._leaving()
        if node is not None:
            self._begin(self._remove_it(node))

    async def _replace(self) -> None:
        """A member in the place of another, in one order or the other."""
        leaving, newcomer = self._leaving(), self._newcomer()
        if leaving is not None and newcomer is not None:
            works = [self._remove_it(leaving), self._add_it(newcomer)]
            self._begin(*self._chance.choice([works, works[::-1]]))

    async def _two_at_once(self) -> None:
        for change in self._chance.choices([self.add, self._remove], k=2):
            await change()

    def _begin(self, *works: Awaitable[None]) -> None:
        async def work() -> None:
            for one in works:
                await one

        # It must not end with whoever happens to be at work now.
        self._works.append(self._loop.create_task(work(), context=self._context.copy()))

    async def _add_it(self, node: Node) -> None:
        if self._simulation.nodes.get(node.node_id) is not node:
            return  # taken away since it was chosen
        self._adding[node.node_id] += 1
        if node.life is None and self._chance.random() < 0.8:
            await node.start()
        self._simulation.report.counts["adds"] += 1
        await self._ask(_adding(node))
        self._adding[node.node_id] -= 1

    async def _remove_it(self, node: Node) -> None:
        self._simulation.report.counts["removes"] += 1
        self._removing += 1
        done = await self._ask(_removing(node))
        self._removing -= 1
        await asyncio.sleep(self._chance.uniform(0.5, 1.5))
        simulation = self._simulation
        known = any(node.node_id in one.addresses for one in simulation.electorates())
        needed = known or self._adding[node.node_id] or node.node_id not in simulation.nodes
        if done and not needed and self._chance.random() < 0.6:
            simulation.retire(node)

    async def _ask(self, change: Change) -> bool:
        """Ask one member after the other, until one says that it is done."""
        for _ in range(TRIES_MAX):
            if await self._remembered(self._chance.choice(self._simulation.asked), change):
                return True
            await asyncio.sleep(self._chance.choice([0.05, 0.3, 1.0]))
        return False

    async def _remembered(self, node: Node, change: Change) -> bool:
        """Ask one member, once; whether it says that it is done."""
        told = await self._asked(node, change)
        if told is not None:
            self.acknowledged.append(told)
        return told is not None

    async def _asked(self, node: Node, change: Change) -> Membership | None:
        life, timeout_ms = node.life, self._chance.choice([500, 2000])
        if life is None or not life.serving:
            return None

        async def ask() -> Membership | None:
            try:
                return await change(life.replica, timeout_ms)
            except ExesdbError:
                return None

        asking = self._loop.create_task(ask(), context=life.context)
        await asyncio.wait([asking], timeout=timeout_ms / 1000 + 1.0)
        if asking.done() and not asking.cancelled() and life.alive:
            return asking.result()
        asking.cancel()
        return None

    # --- whom --------------------------------------------------------------------------------

    def _newcomer(self) -> Node | None:
        """Somebody who is no member: who was one once, or a node that has never run."""
        nodes = self._simulation.nodes.values()
        outside = [node for node in nodes if not self._simulation.is_member(node)]
        if outside and self._chance.random() < 0.5:
            return self._chance.choice(outside)
        return self._simulation.spare()

    def _leaving(self) -> Node | None:
        """A voter: the leader, or one that is down, or any."""
        simulation = self._simulation
        membership, nodes = simulation.chronicle.membership, simulation.nodes
        voters = [nodes[voter] for voter in sorted(membership.voter_ids) if voter in nodes]
        if len(voters) - self._removing <= self._voters_min:
            return None
        leader, down = simulation.leader(), [node for node in voters if not node.up]
        if down and self._chance.random() < 0.5:
            return self._chance.choice(down)
        if leader is not None and self._chance.random() < 0.5:
            return nodes[leader]
        return self._chance.choice(voters)


def _adding(node: Node) -> Change:
    return lambda replica, ms: replica.add_member(node.node_id, f"{node.node_id}:1", ms)


def _removing(node: Node) -> Change:
    return lambda replica, ms: replica.remove_member(node.node_id, ms)
