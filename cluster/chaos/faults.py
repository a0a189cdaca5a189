"""What is done to the nodes, drawn from a seed.

A fault is drawn about every `PAUSE_S`, and up to `FAULTS_AT_ONCE` are under way together. Each
claims the nodes that it works on, so that two never start one process; partitions claim nothing
and coincide with everything but each other. A blow to all nodes waits until no other is under way.
`rules.Losses` says which may lose memory. About one in three aims at the leader.

The seed fixes what is drawn, not what the machine makes of it: processes run in real time.

    kill one, minority, all      -9; started again at once or a while later. Every third time the
                                 claim ends with the start, so that a recovery is killed, too
    stop one, all                SIGTERM: must exit with 0
    pause                        SIGSTOP, and SIGCONT after 0.2 to 6 s
    cut off                      a minority, often with the leader, hears nobody and reaches nobody
    one way                      a node reaches nobody, or hears nobody
    reset, slow                  connections break; every message takes 20 to 200 ms longer
    wipe                         -9, and the directory is empty at the next start
    damage                       -9, and bytes of a file are flipped, or its end is cut off
    full disk                    nothing more fits, for 1 to 6 s
    replace                      a member is removed, and added again with an empty disk
    hand over, flush             what operators do
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from cluster.chaos.ground import Ground
from cluster.chaos.rules import Losses

PAUSE_S = 1.5
FAULTS_AT_ONCE = 4
AIM_AT_LEADER = 0.35
_WHOLE_LIMIT_S = 180.0
_WHOLE_AGAIN_S = 0.25


class _Kind(NamedTuple):
    weight: float
    strike: Callable[[random.Random], Awaitable[None]]


class Faults:
    """Draws faults and carries them out until told to stop."""

    def __init__(self, ground: Ground, losses: Losses, chance: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self._ground = ground
        self._losses = losses
        self._chance = chance
        self._ids = sorted(ground.nodes)
        self._busy: set[str] = set()
        self._all_claimed = False
        self._partitioned = False
        self._freed = asyncio.Condition()
        self._under_way: set[asyncio.Task[None]] = set()
        self._healing: set[asyncio.Task[None]] = set()
        self._kinds = self._possible()

    def _possible(self) -> dict[str, _Kind]:
        kinds = {
            "kill one": _Kind(5, self._kill_one),
            "kill minority": _Kind(1.5, self._kill_minority),
            "kill all": _Kind(0.8, self._kill_all),
            "stop one": _Kind(1, self._stop_one),
            "stop all": _Kind(0.3, self._stop_all),
            "pause": _Kind(1.5, self._pause),
            "cut off": _Kind(3, self._cut_off),
            "one way": _Kind(1.5, self._one_way),
            "reset": _Kind(0.4, self._reset),
            "slow": _Kind(0.4, self._slow),
            "wipe": _Kind(0.7, self._wipe),
            "damage": _Kind(1.0, self._damage),
            "full disk": _Kind(1.0, self._full_disk),
            "replace": _Kind(0.5, self._replace),
            "hand over": _Kind(0.6, self._hand_over),
            "flush": _Kind(0.4, self._flush),
        }
        if self._losses.kills_forget:
            del kinds["kill all"]
        if not self._ground.disks:
            del kinds["full disk"]
        return kinds

    async def run(self, stop: asyncio.Event) -> None:
        """Draw and strike until `stop`; then wait until everything is mended."""
        names = list(self._kinds)
        weights = [kind.weight for kind in self._kinds.values()]
        while not stop.is_set():
            await _pause(stop, self._chance.expovariate(1 / PAUSE_S))
            (name,) = self._chance.choices(names, weights)
            chance = random.Random(self._chance.getrandbits(64))
            async with self._freed:
                await self._freed.wait_for(lambda: len(self._under_way) < FAULTS_AT_ONCE)
            if not stop.is_set():
                self._begin(self._kinds[name].strike(chance))
        while self._under_way or self._healing:
            await asyncio.gather(*self._under_way, *self._healing)

    def _begin(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(self._carry_out(work))
        self._under_way.add(task)

    async def _carry_out(self, work: Awaitable[None]) -> None:
        """One that fails is a violation: what it was to find out is not known, and nothing else
        would tell of it, for the run goes on.
        """
        try:
            await work
        except Exception as error:
            self._ground.violations.append(f"a fault could not be carried out: {error!r}")
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._under_way.discard(task)
            async with self._freed:
                self._freed.notify_all()

    # --- claims ------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _claimed(self, nodes: Iterable[str]) -> AsyncIterator[None]:
        claimed = set(nodes)
        self._busy |= claimed
        try:
            yield
        finally:
            self._busy -= claimed
            async with self._freed:
                self._freed.notify_all()

    @contextlib.asynccontextmanager
    async def _claimed_all(self) -> AsyncIterator[bool]:
        """All nodes, once nobody works on any; False if another blow waits for them already."""
        if self._all_claimed:
            yield False
            return
        self._all_claimed = True
        try:
            async with self._freed:
                await self._freed.wait_for(lambda: not self._busy)
            async with self._claimed(self._ids):
                yield True
        finally:
            self._all_claimed = False

    async def _victim(
        self, chance: random.Random, may: Callable[[str], bool] = lambda _: True
    ) -> str | None:
        """A free node that the rules allow, more often the leader than chance would have it."""
        leader = await self._ground.leader() if chance.random() < AIM_AT_LEADER else None
        free = [name for name in self._ids if name not in self._busy and may(name)]
        if self._all_claimed or not free:
            return None
        return leader if leader in free else chance.choice(free)

    # --- processes ---------------------------------------------------------------------------

    async def _kill_one(self, chance: random.Random) -> None:
        victim = await self._victim(chance, self._losses.may_kill)
        if victim is not None:
            self.counts["kill one"] += 1
            await self._kill_and_start([victim], chance)

    async def _kill_minority(self, chance: random.Random) -> None:
        """As many as a majority can do without, and now and then, where allowed, one more."""
        count = (len(self._ids) - 1) // 2
        if not self._losses.kills_forget:
            count += chance.random() < 0.5
        victims = [name for name in self._ids if name not in self._busy]
        chance.shuffle(victims)
        if self._losses.kills_forget:
            victims = [name for name in victims if not self._losses.lost]
        if self._all_claimed or len(victims) < count:
            return
        self.counts["kill several"] += 1
        await self._kill_and_start(victims[:count], chance)

    async def _kill_all(self, chance: random.Random) -> None:
        async with self._claimed_all() as claimed:
            if claimed:
                self.counts["kill all"] += 1
                await self._down_and_up(self._ids, self._ground.kill, chance)
                await self._ready(self._ids, chance)

    async def _kill_and_start(self, victims: list[str], chance: random.Random) -> None:
        async with self._claimed(victims):
            losses = self._forget(victims) if self._losses.kills_forget else {}
            await self._down_and_up(victims, self._ground.kill, chance)
            self._heal(losses)
            await self._ready(victims, chance)

    async def _stop_one(self, chance: random.Random) -> None:
        victim = await self._victim(chance)
        if victim is not None:
            self.counts["stop one"] += 1
            async with self._claimed([victim]):
                await self._down_and_up([victim], self._ground.terminate, chance)
                await self._ready([victim], chance)

    async def _stop_all(self, chance: random.Random) -> None:
        async with self._claimed_all() as claimed:
            if claimed:
                self.counts["stop all"] += 1
                await self._down_and_up(self._ids, self._ground.terminate, chance)
                await self._ready(self._ids, chance)

    async def _down_and_up(
        self,
        victims: list[str],
        down: Callable[[str], Awaitable[None]],
        chance: random.Random,
    ) -> None:
        """All down at the same time, then up in whatever order, at once or after a while."""
        await asyncio.gather(*(down(victim) for victim in victims))
        for victim in chance.sample(victims, len(victims)):
            if chance.random() < 0.5:
                await asyncio.sleep(chance.uniform(0, 2))
            await self._ground.start(victim)

    async def _ready(self, victims: list[str], chance: random.Random) -> None:
        if chance.random() < 0.67:
            await asyncio.gather(*(self._ground.wait_ready(victim) for victim in victims))

    async def _pause(self, chance: random.Random) -> None:
        victim = await self._victim(chance)
        if victim is not None:
            self.counts["pause"] += 1
            async with self._claimed([victim]):
                self._ground.pause(victim)
                await asyncio.sleep(chance.uniform(0.2, 6))
                self._ground.resume(victim)

    # --- the network -------------------------------------------------------------------------

    async def _cut_off(self, chance: random.Random) -> None:
        """Both ways between a minority and the rest."""
        inside = await self._some(chance, chance.randint(1, (len(self._ids) - 1) // 2))
        await self._silence("cut off", inside, (True, True), chance)

    async def _one_way(self, chance: random.Random) -> None:
        inside = await self._some(chance, 1)
        ways = chance.choice([(True, False), (False, True)])
        await self._silence("one way", inside, ways, chance)

    async def _some(self, chance: random.Random, count: int) -> list[str]:
        """So many nodes, the leader among them more often than chance would have it."""
        leader = await self._ground.leader() if chance.random() < 2 * AIM_AT_LEADER else None
        others = [name for name in self._ids if name != leader]
        chance.shuffle(others)
        return ([leader] if leader else [])[:count] + others[: count - bool(leader)]

    async def _silence(
        self, kind: str, inside: list[str], ways: tuple[bool, bool], chance: random.Random
    ) -> None:
        if self._partitioned:
            return
        outside = [name for name in self._ids if name not in inside]
        out, back = ways
        links = self._ground.links
        silenced = [
            *(links.ways(inside, outside) if out else ()),
            *(links.ways(outside, inside) if back else ()),
        ]
        self.counts[kind] += 1
        self._partitioned = True
        for way in silenced:
            way.silence()
        if chance.random() < 0.3:
            links.reset(inside)
        try:
            await asyncio.sleep(chance.choice([0.3, 1, 2, 4, 8]) * chance.uniform(0.7, 1.3))
        finally:
            for way in silenced:
                way.end_silence()
            self._partitioned = False

    async def _reset(self, chance: random.Random) -> None:
        self.counts["reset"] += 1
        self._ground.links.reset(await self._some(chance, 1))

    async def _slow(self, chance: random.Random) -> None:
        slowed = self._ground.links.ways(await self._some(chance, 1), self._ids)
        self.counts["slow"] += 1
        for way in slowed:
            way.delay_s = chance.uniform(0.02, 0.2)
        await asyncio.sleep(chance.uniform(1, 5))
        for way in slowed:
            way.delay_s = 0.0

    # --- memory and disks --------------------------------------------------------------------

    async def _wipe(self, chance: random.Random) -> None:
        victim = await self._victim(chance, self._losses.may_lose)
        if victim is None:
            return
        self.counts["wipe"] += 1
        async with self._claimed([victim]):
            losses = self._forget([victim])
            await self._ground.kill(victim)
            self._ground.wipe(victim)
            await self._ground.start(victim)
            self._heal(losses)
            await self._ready([victim], chance)

    async def _damage(self, chance: random.Random) -> None:
        victim = await self._victim(chance, self._losses.may_lose)
        if victim is None:
            return
        self.counts["damage"] += 1
        async with self._claimed([victim]):
            losses = self._forget([victim])
            await self._ground.kill(victim)
            damage(self._ground.directory(victim), chance)
            await self._ground.start(victim)
            self._heal(losses)
            await self._ready([victim], chance)

    async def _full_disk(self, chance: random.Random) -> None:
        """Now and then the node is killed while it cannot write."""
        victim = await self._victim(chance, self._losses.may_lose)
        if victim is None:
            return
        self.counts["full disk"] += 1
        async with self._claimed([victim]):
            losses = self._forget([victim])
            self._ground.fill_disk(victim)
            try:
                await asyncio.sleep(chance.uniform(1, 6))
                if chance.random() < 0.3:
                    await self._ground.kill(victim)
            finally:
                self._ground.empty_disk(victim)
            await self._ground.start(victim)
            self._heal(losses)

    def _forget(self, victims: list[str]) -> dict[str, int]:
        return {victim: self._losses.lose(victim) for victim in victims}

    def _heal(self, losses: dict[str, int]) -> None:
        """Wait, beside everything else, until the nodes are whole again."""
        for victim, loss in losses.items():
            task = asyncio.ensure_future(self._until_whole(victim, loss))
            self._healing.add(task)
            task.add_done_callback(self._healing.discard)

    async def _until_whole(self, victim: str, loss: int) -> None:
        """Whole is who serves, and then has everything on its disk."""
        path = "/v1/persistence/force?scope=node"
        try:
            async with asyncio.timeout(_WHOLE_LIMIT_S):
                while not (  # noqa: ASYNC110 - what is waited for is told over HTTP
                    await self._ground.ask("GET", victim, "/health/ready")
                    and await self._ground.ask("POST", victim, path)
                ):
                    await asyncio.sleep(_WHOLE_AGAIN_S)
        except TimeoutError:
            self._ground.violations.append(f"{victim} was not whole within {_WHOLE_LIMIT_S:g} s")
        except Exception as error:
            self._ground.violations.append(f"{victim} may never have been whole: {error!r}")
        else:
            self._losses.whole(victim, loss)

    # --- operators ---------------------------------------------------------------------------

    async def _replace(self, chance: random.Random) -> None:
        """While a member is away, it counts as one that has lost its memory."""
        victim = await self._victim(chance, self._losses.may_lose)
        if victim is None:
            return
        self.counts["replace"] += 1
        async with self._claimed([victim]):
            losses = self._forget([victim])
            await self._ground.replace(victim)
            self._heal(losses)
            await self._ready([victim], chance)

    async def _hand_over(self, chance: random.Random) -> None:
        victim = await self._victim(chance)
        if victim is not None:
            self.counts["hand over"] += 1
            to = {"to": chance.choice(self._ids)} if chance.random() < 0.5 else {}
            await self._ground.ask("POST", victim, "/v1/cluster/leader", to)

    async def _flush(self, chance: random.Random) -> None:
        victim = await self._victim(chance)
        if victim is not None:
            self.counts["flush"] += 1
            scope = chance.choice(["node", "cluster"])
            await self._ground.ask("POST", victim, f"/v1/persistence/force?scope={scope}")


def damage(directory: Path, chance: random.Random) -> Path | None:
    """Flip bytes of one file of a node that is down, or cut its end off; the file, or None.

    The state file exists in two copies, of which one is taken at most.
    """
    files = [
        *directory.glob("stores/*.db*"),
        *directory.glob("node.db*"),
        *directory.glob("tail/*.tail"),
        directory / "state.1",
    ]
    files = [file for file in files if file.is_file() and file.stat().st_size]
    if not files:
        return None
    file = chance.choice(sorted(files))
    size = file.stat().st_size
    with file.open("r+b") as content:
        if chance.random() < 0.3:
            content.truncate(chance.randrange(size))
            return file
        for _ in range(chance.randint(1, 5)):
            at = chance.randrange(size)
            content.seek(at)
            byte = content.read(1)[0] ^ (1 << chance.randrange(8))
            content.seek(at)
            content.write(bytes([byte]))
    return file


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Sleep, but not past `stop`."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
