"""Another question: what becomes of a persistent subscription when everybody dies?

Three real nodes, four consumers of one subscription that refuse one event in five (`consumers`),
two of them as processes; a writer goes on all the time. Consumers are cancelled, killed with -9, or
frozen for longer than their deadlines; nodes are killed with -9 or stopped in order, the leader as
often as not, and come back. In the end everybody is left alone until nothing is left to do, and
what consumers wrote down is judged (`deliveries`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from cluster import topology
from cluster.access import Unreachable, request
from cluster.bench.ports import free_ports
from cluster.chaos.consumers import CALL_S, POISON, SUBSCRIPTION, Notebook, consume, the_end
from cluster.chaos.deliveries import Judgement, Terms, judge
from cluster.client import Client, Event, Filter
from cluster.supervisor import Supervisor, environment, tied_to_us

NODES = 3
TASKS, PROCESSES = 2, 2
TERMS = Terms(ack_timeout_s=8.0, max_retries=3)
DRAIN_S = 90.0
"""How long it may take until nothing is left to do: an election, deadlines, and then the rest."""

_IN_FLIGHT = 100
_STREAMS = 12
_EVENTS_MAX = 3  # an append
_PAUSE_S = 0.02  # between appends, about
_TYPE, _PREFIX = "Wanted", "wanted-"
_WANTED = Filter((_TYPE,), _PREFIX)
_STOP_S = 2 * CALL_S  # a consumer that leaves may try that long to say its last words


class Plan(NamedTuple):
    """How long faults go on, and the seed of what is drawn."""

    seconds: float
    seed: int


class Result(NamedTuple):
    """What came out, and which faults there were."""

    judgement: Judgement
    faults: Counter[str]
    drained_s: float


def as_json(result: Result) -> dict[str, Any]:
    """What came out, in terms of JSON."""
    found = result.judgement
    return {
        "violations": dict(found.violations),
        "examples": found.examples,
        "figures": dict(found.figures),
        "faults": dict(result.faults),
        "drained_s": result.drained_s,
    }


def show(result: Result, console: Console) -> None:
    """The same, for people."""
    table = Table("what", "how many")
    for name, count in (*result.judgement.figures.items(), *sorted(result.faults.items())):
        table.add_row(name, f"{count:,}")
    console.print(table)
    console.print(f"nothing was left to do {result.drained_s:.1f} s after the last fault")
    for kind, count in result.judgement.violations.items():
        console.print(f"[red]{kind}[/]: {count}")
        for words in result.judgement.examples[kind]:
            console.print(f"  {words}")
    if not result.judgement.violations:
        console.print("[green]nothing was broken[/]")


class _Run:
    """One run: who writes, who consumes, and who torments them."""

    def __init__(
        self, plan: Plan, directory: Path, supervisor: Supervisor, client: Client, notes: Notebook
    ) -> None:
        self.plan = plan
        self.directory = directory
        self.supervisor = supervisor
        self.client = client
        self.notes = notes
        self.faults: Counter[str] = Counter()
        self._chance = random.Random(plan.seed)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._starts = 0

    # --- who takes part ----------------------------------------------------------------------

    async def write(self) -> None:
        """Append to random streams, most of it wanted, until this is cancelled."""
        chance = random.Random(f"{self.plan.seed} writer")
        while True:
            prefix = _PREFIX if chance.random() < 0.8 else "other-"
            stream = f"{prefix}{chance.randrange(_STREAMS)}"
            count = chance.randint(1, _EVENTS_MAX)
            await self.client.append(stream, [_drawn(chance) for _ in range(count)])
            await asyncio.sleep(_PAUSE_S * 2 * chance.random())

    @contextlib.asynccontextmanager
    async def consumers(self) -> AsyncIterator[None]:
        """Consumers, until the end of the block; then they leave in order."""
        names = [f"c{number}" for number in range(TASKS + PROCESSES)]
        try:
            for name in names[:TASKS]:
                self._begin_task(name)
            for name in names[TASKS:]:
                await self._begin_process(name)
            yield
            for task in self._tasks.values():
                if task.done():
                    await task  # it failed
            for name in self._processes:
                self._living(name).terminate()
            async with asyncio.timeout(_STOP_S):
                codes = [await process.wait() for process in self._processes.values()]
            # One that had not begun to listen to signals was ended by it.
            assert {*codes} <= {0, -signal.SIGTERM}, "a consumer did not leave in order"
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.wait(self._tasks.values())
            for process in self._processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    def _begin_task(self, name: str) -> None:
        chance = random.Random(self._next_seed(name))
        work = consume(self.client, name, self.notes, chance, TERMS.ack_timeout_s)
        self._tasks[name] = asyncio.create_task(work)

    async def _begin_process(self, name: str) -> None:
        words = (name, self.directory / f"{name}.jsonl", self._next_seed(name))
        self._processes[name] = await asyncio.create_subprocess_exec(
            *tied_to_us(), sys.executable, "-m", "cluster.chaos.consumers", *map(str, words),
            str(TERMS.ack_timeout_s), *self.supervisor.topology.urls,
            stdin=asyncio.subprocess.DEVNULL, stdout=2, env=environment(),
        )  # fmt: skip

    def _next_seed(self, name: str) -> str:
        self._starts += 1
        return f"{self.plan.seed} {name} {self._starts}"

    # --- what is done to them ----------------------------------------------------------------

    async def torment(self) -> None:
        """Faults, for as long as was planned."""
        until = time.monotonic() + self.plan.seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(self._torment_consumers(until))
            group.create_task(self._torment_nodes(until))

    async def _torment_consumers(self, until: float) -> None:
        chance = random.Random(f"{self.plan.seed} consumers")
        while time.monotonic() < until:
            await asyncio.sleep(0.5 + chance.random())
            fault = chance.choice(("cancel", "cancel", "kill", "kill", "freeze"))
            self.faults[f"{fault} a consumer"] += 1
            if fault == "cancel":
                await self._cancel(chance.choice(sorted(self._tasks)))
            elif fault == "kill":
                await self._kill(chance.choice(sorted(self._processes)))
            else:
                await self._freeze(chance.choice(sorted(self._processes)))

    async def _cancel(self, name: str) -> None:
        task = self._tasks[name]
        if task.done():
            await task  # it failed
        self.notes.note("left", consumer=name)
        task.cancel()
        await asyncio.wait({task})
        self._begin_task(name)

    async def _kill(self, name: str) -> None:
        self._signal(name, signal.SIGKILL)
        await self._processes[name].wait()
        self.notes.note("left", consumer=name)
        await self._begin_process(name)

    async def _freeze(self, name: str) -> None:
        self._signal(name, signal.SIGSTOP)
        await asyncio.sleep(TERMS.ack_timeout_s + 1.0)
        self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> None:
        process = self._living(name)
        self.notes.note("left", consumer=name)
        process.send_signal(number)

    def _living(self, name: str) -> asyncio.subprocess.Process:
        process = self._processes[name]
        assert process.returncode is None, f"{name} ended by itself with {process.returncode}"
        return process

    async def _torment_nodes(self, until: float) -> None:
        chance = random.Random(f"{self.plan.seed} nodes")
        while time.monotonic() < until:
            await asyncio.sleep(1.0 + 2.0 * chance.random())
            leader = await self._leader() if chance.random() < 0.5 else None
            node = self.supervisor[leader or chance.choice(list(self.supervisor.nodes))]
            fault, end = ("stop", node.stop) if chance.random() < 0.3 else ("kill", node.kill)
            self.faults[f"{fault} {'the leader' if leader else 'a node'}"] += 1
            self.notes.note("fault")
            await end()
            await asyncio.sleep(chance.random())
            await node.start()
            await node.wait_ready()
            self.notes.note("fault")  # until then words may have been lost

    async def _leader(self) -> str | None:
        leader: str | None = None
        with contextlib.suppress(Unreachable):
            reply = await request("GET", self.supervisor.topology.urls, "/v1/cluster")
            leader = reply.body["leader"]
        return leader

    # --- the end -----------------------------------------------------------------------------

    async def drain(self) -> float:
        """Wait until nothing is left to do; how long that took, in seconds, at most `DRAIN_S`."""
        began = time.monotonic()
        while time.monotonic() < began + DRAIN_S:
            found = await self.client.subscription(SUBSCRIPTION)
            if found is not None and found.done:
                break
            await asyncio.sleep(0.1)
        return time.monotonic() - began


async def run(plan: Plan, directory: Path, say: Callable[[str], Any]) -> Result:
    """One run, in an empty directory. Raises `NodeFailed`."""
    ports = free_ports(2 * NODES)
    layout = topology.local(NODES, directory / "nodes", ports[0], ports[NODES])
    with Notebook(directory / "trial.jsonl") as notes:
        async with (
            Supervisor(layout, directory / "logs") as supervisor,
            Client(*layout.urls, timeout_s=CALL_S) as client,
        ):
            await client.create_subscription(
                SUBSCRIPTION,
                _WANTED,
                ack_timeout_ms=int(TERMS.ack_timeout_s * 1000),
                max_retries=TERMS.max_retries,
                max_in_flight=_IN_FLIGHT,
            )
            trial = _Run(plan, directory, supervisor, client, notes)
            async with trial.consumers():
                writing = asyncio.create_task(trial.write())
                try:
                    await trial.torment()
                    assert not writing.done(), f"the writer failed: {writing}"
                finally:
                    writing.cancel()
                    await asyncio.wait({writing})
                say("faults are over; waiting until nothing is left to do")
                drained_s = await trial.drain()
            end = await the_end(client, _WANTED)
    judgement = judge(_records(directory), end, TERMS)
    if drained_s >= DRAIN_S:
        judgement.add("stuck", f"something is left to do {DRAIN_S:g} s after the last fault")
    return Result(judgement, trial.faults, drained_s)


def _records(directory: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(directory.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def _drawn(chance: random.Random) -> Event:
    kind = _TYPE if chance.random() < 0.8 else "Other"
    return Event(kind, POISON if chance.random() < 0.01 else chance.random())
