"""One run: start, torment, heal, read everything, stop, judge.

    1  start all nodes with empty directories; wait until they serve
    2  writers, readers, consumers, keepers of snapshots, removers of events and faults, for the
       time that was asked for; progress every `PROGRESS_S`
    3  no more faults, while clients go on: every node must come back, and then there is some time
       in which nothing is in the clients' way; then consumers alone, until nothing is owed to them,
       and until what is kept for a time only is gone
    4  read every node to the end; stop them all with SIGTERM, which must give 0; start them all
       once more and ask again which streams there are, and which ended; stop them; read their files
    5  the checker's judgement over the history and both kinds of rows, and what the logs tell

With a violation, or if asked to, the history, the logs and the nodes' files are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import aiohttp

from cluster.chaos import final, history, watch
from cluster.chaos.checker import Findings, check
from cluster.chaos.clients import Ends, Reader, Writer
from cluster.chaos.consumers_beside import consuming
from cluster.chaos.deliveries import Judgement
from cluster.chaos.faults import Faults
from cluster.chaos.ground import STORE, Ground, open_ground
from cluster.chaos.history import (
    EVENT_TYPE,
    MORTAL_PREFIX,
    SHARED_TYPE,
    History,
    read_history,
)
from cluster.chaos.keepers import KEEPERS, Keeper, Kept
from cluster.chaos.removals import Life
from cluster.chaos.removers import AGE_MAX_MS, REMOVERS, Remover
from cluster.chaos.rules import Losses
from cluster.chaos.watch import Memory, Pulse

PROGRESS_S = 15.0
WRITERS = 10
STALL_LIMIT_S = 60.0
"""With a majority connected; longer than this is a violation. The target is far below."""

CALM_S = 6.0
"""How long clients work after all is mended: a short run may have left them hardly any time."""

AGED_S = 30.0
"""How long it may take until events that are too old are gone, an election included."""

MEMORY_FIXED_BYTES = 128 << 20
MEMORY_EVENT_BYTES = 1_024
"""What a node may grow by: its Raft log and caches, and for each event that it stores."""


class Plan(NamedTuple):
    """What is to be done."""

    minutes: float
    seed: int
    nodes: int = 3
    events_per_s: float = 200.0
    kills_forget: bool = False
    options: tuple[str, ...] = ()
    disks: bool = True

    @property
    def node_options(self) -> tuple[str, ...]:
        """The options of every node."""
        return (*(["--tail-enabled=false"] if self.kills_forget else []), *self.options)


_AGAIN_S = 0.5


@dataclass
class Result:
    """What came out. `violations` is empty if nothing was broken."""

    plan: Plan
    seconds: float = 0.0
    findings: Findings = field(default_factory=Findings)
    shared: Judgement = field(default_factory=Judgement)
    snapshots: dict[str, Kept] = field(default_factory=dict)
    lives: dict[str, dict[str, Life]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    processes: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    longest_pause_s: float = 0.0
    longest_pause_at_s: float = 0.0
    longest_silence_s: float = 0.0
    memory: Memory = field(default_factory=Memory)
    disks: bool = True

    @property
    def kills(self) -> int:
        """Processes that were ended with -9."""
        return self.processes["kill -9"]

    @property
    def partitions(self) -> int:
        """Times that nodes could not hear each other, one way or both."""
        return self.faults["cut off"] + self.faults["one way"]


async def run(plan: Plan, directory: Path, say: Callable[[str], None]) -> Result:
    """Carry out a plan in an empty directory."""
    result = Result(plan)
    began = time.monotonic()
    async with open_ground(plan.nodes, directory, plan.node_options, plan.disks) as ground:
        result.disks = ground.disks
        try:
            await _carry_out(plan, ground, directory, result, say)
        except BaseException:
            _keep_files(ground, directory)
            raise
        result.processes = ground.counts
        result.violations += ground.violations
        _judge(ground, directory, result)
        result.seconds = time.monotonic() - began
        if result.violations:
            _keep_files(ground, directory)
    return result


async def _carry_out(
    plan: Plan, ground: Ground, directory: Path, result: Result, say: Callable[[str], None]
) -> None:
    await asyncio.gather(*(ground.start(node_id) for node_id in ground.nodes))
    await asyncio.gather(*(ground.wait_ready(node_id) for node_id in ground.nodes))
    chance = random.Random(f"{plan.seed} consumers")
    async with consuming(ground, directory, chance) as shared:
        with History(directory / "history.jsonl") as kept:
            await _torment(plan, ground, kept, result, say)
        shared.calm.set()
        say("healed; waiting until nothing is owed to consumers")
        await shared.drain()
    result.shared = shared.judgement
    say("reading every node")
    await _read_all(ground, directory, result)
    result.memory.take(ground.pids)
    say("starting every node anew")
    await asyncio.gather(*map(ground.terminate, ground.nodes))
    await asyncio.gather(*map(ground.start, ground.nodes))
    await asyncio.gather(*map(ground.wait_ready, ground.nodes))
    await _read_lives(ground, directory, result, " anew")
    await ground.stop_all()


async def _torment(
    plan: Plan, ground: Ground, kept: History, result: Result, say: Callable[[str], None]
) -> None:
    stop_faults, stop_clients = asyncio.Event(), asyncio.Event()
    chance = random.Random(plan.seed)
    faults = Faults(ground, Losses(plan.nodes, plan.kills_forget), chance)
    pulse = Pulse()
    ends = Ends(ground.http, ground.urls, STORE, kept, stop_clients)
    tally = Counter[str]()

    def acknowledged(count: int) -> None:
        pulse.acknowledged()
        tally["events"] += count

    async with asyncio.TaskGroup() as tasks:
        for client in _clients(ends, chance, plan, acknowledged):
            tasks.create_task(client.run())
        tasks.create_task(pulse.watch(ground, stop_clients))
        tasks.create_task(_look(ground, result.memory, tally, faults, kept, stop_clients, say))
        tormenting = tasks.create_task(faults.run(stop_faults))
        await asyncio.sleep(plan.minutes * 60)
        stop_faults.set()
        say("no more faults; waiting until all is mended")
        await tormenting
        await _settle(ground, pulse)
        await asyncio.sleep(CALM_S)
        stop_clients.set()
    result.faults = faults.counts
    result.longest_pause_s = pulse.longest_s
    result.longest_pause_at_s = pulse.longest_at_s
    result.longest_silence_s = pulse.silence_s


def _clients(
    ends: Ends, chance: random.Random, plan: Plan, acknowledged: Callable[[int], None]
) -> list[Writer | Reader | Keeper | Remover]:
    writers = [
        Writer(
            ends,
            random.Random(chance.getrandbits(64)),
            plan.events_per_s / WRITERS,
            number == 0,
            SHARED_TYPE if number == 1 else EVENT_TYPE,
            acknowledged,
        )
        for number in range(WRITERS)
    ]
    levels: list[tuple[str, str | None]] = [
        *((history.LOCAL, node_id) for node_id in ends.urls),
        *((history.LINEARIZABLE, None) for _ in range(2)),
        *((history.SESSION, None) for _ in range(2)),
    ]
    readers = [
        Reader(ends, random.Random(chance.getrandbits(64)), level, node) for level, node in levels
    ]
    keepers = [
        Keeper(ends, random.Random(chance.getrandbits(64)), number) for number in range(KEEPERS)
    ]
    removers = [
        Remover(ends, random.Random(chance.getrandbits(64)), number) for number in range(REMOVERS)
    ]
    return [*writers, *readers, *keepers, *removers]


async def _look(
    ground: Ground,
    memory: Memory,
    tally: Counter[str],
    faults: Faults,
    kept: History,
    stop: asyncio.Event,
    say: Callable[[str], None],
) -> None:
    """Take memory samples, and say from time to time how it goes."""
    began = said = time.monotonic()
    while not stop.is_set():
        memory.events = tally["events"]
        memory.take(ground.pids)
        kept.flush()
        now = time.monotonic()
        if now - said >= PROGRESS_S:
            said = now
            say(
                f"{now - began:6.0f} s  {tally['events']:>8,} events acknowledged  "
                f"{faults.counts.total():>4} faults  {ground.counts['kill -9']:>4} kills  "
                f"leader {await ground.leader() or '-'}"
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), watch.MEMORY_S)


async def _settle(ground: Ground, pulse: Pulse) -> None:
    """Without faults every node must serve."""
    for node_id in ground.nodes:
        await ground.start(node_id)
        await ground.wait_ready(node_id)
    if pulse.longest_s > STALL_LIMIT_S:
        ground.violations.append(
            f"nothing was acknowledged for {pulse.longest_s:.1f} s with a majority connected"
        )


async def _read_all(ground: Ground, directory: Path, result: Result) -> None:
    await _let_age(ground, directory, result)
    for node_id, url in ground.urls.items():
        with _read_in_the_end(node_id, result):
            await final.save_events(ground.http, url, STORE, _rows(directory, node_id))
            result.snapshots[node_id] = await final.snapshots(ground.http, url, STORE)
    await _read_lives(ground, directory, result)


async def _let_age(ground: Ground, directory: Path, result: Result) -> None:
    """Wait until what is too old is gone, else nodes that are read one by one differ.

    That nothing is left of it after `AGED_S` is judged with all else (`removals`).
    """
    streams, url = _mortal_streams(directory), next(iter(ground.urls.values()))
    end = time.monotonic() + AGED_S
    await asyncio.sleep(AGE_MAX_MS / 1_000)
    with _read_in_the_end("a node", result):
        while time.monotonic() < end:
            said = await final.lives(ground.http, url, STORE, streams)
            if not any(life.kept and "max_age_ms" in life.metadata for life in said.values()):
                return
            await asyncio.sleep(_AGAIN_S)


async def _read_lives(ground: Ground, directory: Path, result: Result, when: str = "") -> None:
    streams = _mortal_streams(directory)
    for node_id, url in ground.urls.items():
        with _read_in_the_end(node_id, result):
            said = await final.lives(ground.http, url, STORE, streams)
            result.lives[node_id + when] = said


def _mortal_streams(directory: Path) -> set[str]:
    records = read_history(directory / "history.jsonl")
    names: set[str] = {record.get("stream", "") for record in records}
    return {name for name in names if name.startswith(MORTAL_PREFIX)}


@contextlib.contextmanager
def _read_in_the_end(node_id: str, result: Result) -> Iterator[None]:
    """That a node cannot be read is a violation."""
    try:
        yield
    except (final.NodeUnread, aiohttp.ClientError, OSError, TimeoutError) as error:
        result.violations.append(f"{node_id} could not be read in the end: {error!r}")


def _rows(directory: Path, node_id: str) -> Path:
    return directory / f"final-{node_id}.jsonl"


def _judge(ground: Ground, directory: Path, result: Result) -> None:
    """The checker's word, with the files as further nodes, and the logs'."""
    result.told = watch.logs_tell(sorted((directory / "logs").glob("*.log")))
    for kind in ("alarms", "unexpected exceptions"):
        if result.told[kind]:
            result.violations.append(f"the logs tell of {result.told[kind]} {kind}")
    finals = {
        node_id: final.saved_events(_rows(directory, node_id))
        for node_id in ground.nodes
        if _rows(directory, node_id).exists()
    }
    if len(finals) < len(ground.nodes):
        return
    files = {
        f"{node_id}'s file": final.events_in_files(ground.directory(node_id), STORE)
        for node_id in ground.nodes
    }
    try:
        records = read_history(directory / "history.jsonl")
        result.findings = check(records, finals, files, result.snapshots, result.lives)
    except final.NodeUnread as error:
        result.violations.append(str(error))
    for found in (result.findings, result.shared):
        for kind, count in found.violations.items():
            result.violations.append(f"{kind}: {count}, such as {found.examples[kind][0]}")


def _keep_files(ground: Ground, directory: Path) -> None:
    """The nodes' disks go away with them; whoever looks for the cause needs what was on them."""
    if ground.disks:
        for node_id in ground.nodes:
            shutil.copytree(ground.directory(node_id), directory / "kept" / node_id)
