"""Random faults on whole clusters: loss, delay, partitions, crashes that forget, restarts.

A run is a function of its seed, which is printed. At most a minority of the members lacks memory at
any time (down or recovering); then no acknowledged event may be lost. `RAFT_SEEDS` asks for more
runs than the few of the fast suite, `RAFT_FIRST_SEED` for others.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, field

import pytest

from node.core.commands import Append, decode
from node.core.outcomes import Appended
from node.errors import ExesdbError
from node.raft.messages import Ask, Message
from tests.raft.harness import Cluster
from tests.raft.virtual_time import simulate

SEEDS = int(os.environ.get("RAFT_SEEDS", "5"))
FIRST_SEED = int(os.environ.get("RAFT_FIRST_SEED", "1"))
FAULTS_S = 30.0  # virtual
CALM_S = 60.0


@dataclass
class Ledger:
    """What clients were told."""

    acknowledged: list[tuple[bytes, tuple[int, ...], int]] = field(default_factory=list)
    refused: list[bytes] = field(default_factory=list)
    unknown: list[bytes] = field(default_factory=list)


class Ordeal:
    """One cluster under faults."""

    def __init__(self, size: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.cluster = Cluster(
            size,
            seed,
            entries_in_flight_max=self.chance.choice([1, 2, 2, 8]),
            peer_window_bytes=self.chance.choice([200, 2000, 1 << 20]),
            entry_commands_max=self.chance.choice([5, 20, 1000]),
            log_tail_entries_max=self.chance.choice([5, 50, 10_000]),
        )
        self.ledger = Ledger()
        self.fills = 0
        self._clients: list[asyncio.Task[None]] = []
        self._minority = (size - 1) // 2

    async def run(self) -> None:
        """Faults, then calm, then the reckoning."""
        cluster = self.cluster
        cluster.links.watchers.append(self._count)
        await cluster.ready()
        cluster.links.loss = self.chance.choice([0.0, 0.0, 0.01, 0.05])
        cluster.links.delay_s = self._delay
        loop = asyncio.get_running_loop()
        end = loop.time() + FAULTS_S
        writing = asyncio.create_task(self._write(end))
        persisting = asyncio.create_task(self._persist(end))
        while loop.time() < end:
            await asyncio.sleep(self.chance.expovariate(1.2))
            await self._fault()
        await asyncio.gather(writing, persisting)
        await self._calm()
        await asyncio.gather(*self._clients)
        await cluster.settled()  # what clients still waited for was stored after the calm began
        self._reckon()

    def _count(self, _: str, __: str, message: Message) -> None:
        self.fills += isinstance(message, Ask) and message.topic == "fill_begin"

    @staticmethod
    def _delay(chance: random.Random) -> float:
        return chance.choice([0.0005, 0.001, 0.002, 0.02, 0.1 * chance.random()])

    async def _fault(self) -> None:
        cluster, chance = self.cluster, self.chance
        kind = chance.random()
        if kind < 0.35:
            await self._lose_a_memory()
        elif kind < 0.5:
            cluster.links.cut(*chance.sample(cluster.ids, chance.randint(1, len(cluster.ids) - 1)))
        elif kind < 0.6:
            one, other = chance.sample(cluster.ids, 2)
            cluster.links.blackholes.add((one, other))
        elif kind < 0.65 and cluster.replicas:
            await self._stop_cleanly()
        elif kind < 0.75:
            cluster.links.heal()
        elif kind < 0.9:
            await cluster.start()
        else:
            await self._squeeze()

    async def _squeeze(self) -> None:
        """Let a bare majority hold the newest entries, take the memory of one of them, and leave it
        with those that never had them: what an acknowledgement must survive, by the shortest way.
        """
        cluster, chance = self.cluster, self.chance
        cluster.links.heal()
        await cluster.start()
        await asyncio.sleep(chance.uniform(0.5, 2.0))
        leader = cluster.leader()
        if leader is None or any(self._lacks_memory(one) for one in cluster.ids):
            return
        others = chance.sample(cluster.followers(), len(cluster.ids) - 1)
        keepers, slow = others[: self._minority], others[self._minority :]
        cluster.links.cut(*slow)
        await asyncio.sleep(chance.uniform(0.1, 1.0))
        cluster.crash(keepers[0])
        await cluster.start(keepers[0])
        await asyncio.sleep(chance.choice([0.0, 0.003, 0.01, 0.05, 0.3]))
        cluster.links.heal()
        cluster.links.cut(leader, *keepers[1:])
        await asyncio.sleep(chance.uniform(1.5, 4.0))

    async def _lose_a_memory(self) -> None:
        cluster = self.cluster
        victim = self.chance.choice(cluster.ids)
        leader = cluster.leader()
        if leader is not None and self.chance.random() < 0.4:
            victim = leader
        lacking = {one for one in cluster.ids if self._lacks_memory(one)} | {victim}
        if victim in cluster.replicas and len(lacking) <= self._minority:
            cluster.crash(victim)

    def _lacks_memory(self, node_id: str) -> bool:
        replica = self.cluster.replicas.get(node_id)
        return replica.recovering if replica else not self.cluster.disks[node_id].clean

    async def _stop_cleanly(self) -> None:
        victim = self.chance.choice(sorted(self.cluster.replicas))
        if not self.cluster[victim].recovering:
            await self.cluster.stop(victim)

    async def _persist(self, end: float) -> None:
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(self.chance.uniform(0.2, 3.0))
            if self.cluster.replicas:
                self.cluster.persist(self.chance.choice(sorted(self.cluster.replicas)))

    async def _write(self, end: float) -> None:
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(self.chance.expovariate(40))
            if self.cluster.replicas:
                node_id = self.chance.choice(sorted(self.cluster.replicas))
                self._clients.append(asyncio.create_task(self._client(node_id)))

    async def _client(self, node_id: str) -> None:
        command = self.cluster.command(f"s{self.chance.randrange(5)}", self.chance.randint(1, 3))
        try:
            outcome, index = await self.cluster.append(node_id, command, 2000)
        except ExesdbError as error:
            (self.ledger.refused if error.stored == "no" else self.ledger.unknown).append(command)
            return
        assert isinstance(outcome, Appended)
        self.ledger.acknowledged.append((command, tuple(outcome.positions), index))

    async def _calm(self) -> None:
        cluster = self.cluster
        cluster.links.loss, cluster.links.delay_s = 0.0, lambda _: 0.001
        cluster.links.heal()
        await cluster.start()
        await asyncio.wait_for(cluster.settled(), CALM_S)
        await cluster.append(cluster.ids[0])
        await cluster.settled()

    def _reckon(self) -> None:
        cluster = self.cluster
        cluster.check()
        contents = {node_id: cluster.contents(node_id) for node_id in cluster.ids}
        final = contents[cluster.ids[0]]
        assert all(content == final for content in contents.values())
        at = {record.frame: record.position for record in final}
        assert len(at) == len(final), "an event is stored twice"
        for command, positions, _ in self.ledger.acknowledged:
            assert tuple(at.get(frame, 0) for frame in frames_of(command)) == positions
        for command in self.ledger.refused:
            assert not any(frame in at for frame in frames_of(command)), "refused, but stored"
        for command in self.ledger.unknown:
            assert len({frame in at for frame in frames_of(command)}) == 1, "half an append"


def frames_of(command: bytes) -> list[bytes]:
    """The frames of an encoded append."""
    decoded = decode(command)
    assert isinstance(decoded, Append)
    return list(decoded.frames)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_no_acknowledged_event_is_lost_while_a_majority_remembers(size: int, seed: int) -> None:
    print(f"size {size}, seed {seed}")
    ordeal = Ordeal(size, seed)
    simulate(ordeal.run)
    ledger = ordeal.ledger
    print(
        f"{len(ledger.acknowledged)} acknowledged, {len(ledger.refused)} refused, "
        f"{len(ledger.unknown)} unknown, {len(ordeal.cluster.chronicle.leaders)} terms, "
        f"{ordeal.fills} fills"
    )
    assert ledger.acknowledged
