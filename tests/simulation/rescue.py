"""A majority is lost for good, and an operator has the survivors go on without it.

The plan is that of `scripts/recover` (`cluster.recover_plan`), and each survivor is given its order
by the door that the HTTP route leads to. Some end in the midst of it; the plan is made anew then,
until there is nothing left to do. Some of the lost come back later after all, and for a while may
be a majority of their own, which clients that do not know better write to.

    R1   what stood in the furthest survivor's log is what the new lineage begins with
    R2   nothing that only the given-up lineage acknowledged ever comes into the new one
    R3   whoever comes back is quarantined, and a member again only when it is added
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from cluster.recover_plan import NoPlan, Plan, Report, make
from node.api.bodies import RecoveryBody
from node.errors import ExesdbError
from node.raft.membership import Membership, founding
from tests.simulation.clients import Client, History
from tests.simulation.nodes import STORE, Life, Node

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

SHARE = 0.08  # of the seeds
TRIES_MAX = 60
OTHER_EVENTS = 1_000_000  # no event of the given-up lineage has the number of another


class Rescue:
    """The override of one run."""

    def __init__(self, simulation: Simulation, chance: random.Random) -> None:
        self.due = chance.random() < SHARE
        self._simulation = simulation
        self._chance = chance
        self._loop = simulation.loop
        self._held: dict[int, int] = {}
        self._plan: Plan | None = None
        self._given_up = History(events=OTHER_EVENTS)

    async def run(self) -> None:
        """All of it."""
        simulation, chance = self._simulation, self._chance
        simulation.links.heal()
        await simulation.all_up()
        nodes = list(simulation.nodes.values())
        lost = chance.sample(nodes, chance.randint(len(nodes) // 2 + 1, len(nodes) - 1))
        survivors = [node for node in nodes if node not in lost]
        await self._write_on(survivors)
        for node in lost:
            node.end(chance.choice(["kill", "power"]))
        simulation.asked[:] = survivors
        simulation.links.heal()
        await self._rebuild(survivors, [node.node_id for node in lost])
        if not simulation.sound:
            return
        back = [node for node in lost if chance.random() < 0.7]
        for node in lost:
            if node not in back:
                simulation.retire(node)
        if chance.random() < 0.5:
            await self._led(survivors)
        await self._come_back(back)
        await self._led(survivors)
        await self._take_in(back)

    def judge(self) -> None:
        """In the end."""
        if self._plan is None:
            return
        chronicle, fail = self._simulation.chronicle, self._simulation.fail
        for index, term in self._held.items():
            entry = chronicle.entries.get(index)
            if entry is None or entry.term != term:
                fail(f"R1: the furthest survivor held {index} of term {term}, now it is {entry}")
        store = chronicle.state.stores[STORE]
        stands = {store.record(at).frame for at in range(1, store.position + 1)}
        for operation in self._given_up.operations:
            if stands & {frame for _, frame in operation.events}:
                fail("R2: an event of the lineage that was given up stands in the new one")

    # --- the loss ----------------------------------------------------------------------------

    async def _write_on(self, survivors: list[Node]) -> None:
        """Clients write, and some survivors may be behind when the others are lost."""
        simulation, chance = self._simulation, self._chance
        if chance.random() < 0.6:
            behind = chance.sample(survivors, chance.randint(1, len(survivors)))
            simulation.links.cut(*(node.node_id for node in behind))
        end = self._loop.time() + chance.uniform(0.2, 1.5)
        clients = [self._loop.create_task(client.run(end, 0.03)) for client in simulation.clients]
        await asyncio.sleep(end - self._loop.time())
        for client in clients:
            await client

    # --- the order ---------------------------------------------------------------------------

    async def _rebuild(self, survivors: list[Node], missing: list[str]) -> None:
        """Make the plan and carry it out, again and again, until all survivors follow it."""
        reason = ""
        for _ in range(TRIES_MAX):
            await self._start(survivors)
            if self._plan is not None and self._done(survivors):
                return
            try:
                plan = make([self._report(node) for node in survivors], [], missing)
            except NoPlan as refusal:
                reason = str(refusal)
            else:
                self._note(plan, survivors)
                for node_id in plan.todo:
                    reason = await self._order(self._simulation.nodes[node_id], plan) or reason
                    if self._chance.random() < 0.3:
                        break
            await asyncio.sleep(0.5)
        self._simulation.fail(f"R1: the survivors cannot go on: {reason}")

    async def _start(self, survivors: list[Node]) -> None:
        for node in survivors:
            node.disk.faults.mend()
            while not node.up and self._simulation.sound:
                if node.life is None and not await node.start():
                    await self._simulation.operator_looks_after(node)
                await asyncio.sleep(0.1)

    def _done(self, survivors: list[Node]) -> bool:
        assert self._plan is not None
        return {node.lineage for node in survivors} == {self._plan.lineage}

    def _report(self, node: Node) -> Report:
        assert node.life is not None
        said: dict[str, Any] = dict(node.life.override.report())
        lists = {name: tuple(said[name]) for name in ("ancestry", "counted", "reaches")}
        return Report(url=node.node_id, **(said | lists))

    def _note(self, plan: Plan, survivors: list[Node]) -> None:
        """The first order is about to be given: what the new lineage has to begin with."""
        if self._plan is not None:
            if self._plan.lineage != plan.lineage:
                self._simulation.fail(f"R1: a second plan differs: {plan}, {self._plan}")
            return
        self._plan = plan
        life = self._simulation.nodes[plan.furthest].life
        assert life is not None
        journal, known = life.replica._journal, self._simulation.chronicle.entries
        logs = range(journal.base_index + 1, journal.last_index + 1)
        self._held = {index: journal.term_at(index) or 0 for index in logs}
        certain = journal.last_index
        while certain in self._held and (
            certain not in known or known[certain].term != self._held[certain]
        ):
            certain -= 1
        membership = Membership(plan.version, founding(plan.voters).voters)
        self._simulation.begins_anew(plan.lineage, certain, membership)

    async def _order(self, node: Node, plan: Plan) -> str | None:
        life, faults, chance = node.life, node.disk.faults, self._chance
        if life is None or not life.serving:
            return None
        if life.tail_whole and chance.random() < 0.5:
            # Nobody else is left to hold it, so it must not forget: no loss of power.
            faults.dies_at, faults.dies_by = chance.randint(1, 12), "kill"
        self._simulation.report.counts["orders"] += 1
        reason = None

        async def work() -> None:
            nonlocal reason
            try:
                await life.override.carry_out(RecoveryBody(**plan.order()))
            except ExesdbError as error:
                reason = str(error)

        order = self._loop.create_task(work(), context=life.context)
        await asyncio.wait([order], timeout=5.0)
        order.cancel()
        faults.dies_at = None
        if node.life is not life:
            node.log_end = None  # it may have come so far that it is to recover
        return reason

    # --- the new lineage, and the old one ----------------------------------------------------

    async def _led(self, survivors: list[Node]) -> None:
        ids = {node.node_id for node in survivors}
        await self._simulation.until(
            lambda: self._simulation.leader() in ids, "R1: the survivors elect no leader"
        )

    async def _come_back(self, back: list[Node]) -> None:
        """They come up apart from the others first, or right among them; some with empty disks."""
        simulation, chance = self._simulation, self._chance
        if not back:
            return
        simulation.report.counts["come back"] += len(back)
        simulation.links.cut(*(node.node_id for node in back))
        for node in back:
            if chance.random() < 0.2:
                node.wipe()
            await node.start()
        apart_s = chance.choice([0.0, 0.3, 3.0])
        client = Client(back, self._loop, self._given_up, chance, lambda _: None)
        await client.run(self._loop.time() + apart_s, 0.05)
        simulation.links.heal()

    async def _take_in(self, back: list[Node]) -> None:
        simulation = self._simulation
        await simulation.until(
            lambda: all(node.up and node.quarantined for node in back),
            f"R3: {back} are not quarantined",
        )
        for node in back:
            for _ in range(TRIES_MAX):
                if node.node_id in simulation.chronicle.membership.voter_ids:
                    break
                await self._add(node)
                await asyncio.sleep(0.2)
        simulation.asked[:] = simulation.nodes.values()

    async def _add(self, node: Node) -> None:
        leader = self._simulation.leader()
        life: Life | None = self._simulation.nodes[leader].life if leader else None
        if life is None:
            return

        async def work() -> None:
            try:
                await life.replica.add_member(node.node_id, f"{node.node_id}:1", 2000)
            except ExesdbError:
                return

        await asyncio.wait([self._loop.create_task(work(), context=life.context)], timeout=3.0)
