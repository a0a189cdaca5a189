"""Removers at work on the API of one node that loses answers, and the judge of what they saw."""

from __future__ import annotations

import asyncio
import random
import uuid
from pathlib import Path

import pytest

from cluster.chaos import final, removers
from cluster.chaos.checker import Findings, Stored, check
from cluster.chaos.clients import Ends
from cluster.chaos.history import History, read_history
from cluster.chaos.removers import Remover
from node.core import life_commands
from node.core.frames import frame_id
from node.core.outcomes import Outcome
from node.errors import OutcomeUnknown
from tests.api.fakes import NOW_US, FakeReplica, Node, serving

RUN_S = 1.5
LATER_US = 60_000_000


class Losing:
    """A replica that gives no certain answer to one request in ten.

    It has carried that out, or does so later, at last in `ends`, or never.
    """

    def __init__(self, replica: FakeReplica, chance: random.Random) -> None:
        self._propose = replica.propose
        self._chance = chance
        self._owed: list[bytes] = []

    async def propose(self, command: bytes, timeout_ms: int) -> tuple[Outcome, int]:
        drawn = self._chance.random()
        if self._owed and drawn < 0.3:
            await self._propose(self._owed.pop(), timeout_ms)
        if drawn < 0.9:
            return await self._propose(command, timeout_ms)
        if drawn < 0.94:
            await self._propose(command, timeout_ms)
        elif drawn < 0.98:
            self._owed.append(command)
        raise OutcomeUnknown("perhaps")

    async def ends(self) -> None:
        while self._owed:
            await self._propose(self._owed.pop(), 1_000)


async def worked_and_judged(node: Node, directory: Path, chance: random.Random) -> Findings:
    """Let removers work for a while, read the node, and judge."""
    urls = {"n1": f"http://127.0.0.1:{node.port}"}
    path, stop = directory / "history", asyncio.Event()
    losing = Losing(node.replica, chance)
    with History(path) as history, pytest.MonkeyPatch.context() as patch:
        patch.setattr(removers, "_EVERY_S", 0.002)
        patch.setattr(removers, "PAUSE_AFTER_REFUSAL_S", 0.0)
        patch.setattr(node.replica, "propose", losing.propose)
        ends = Ends(node.session, urls, "main", history, stop)
        async with asyncio.TaskGroup() as tasks:
            for number in range(removers.REMOVERS):
                own = random.Random(chance.getrandbits(64))
                tasks.create_task(Remover(ends, own, number).run())
            await asyncio.sleep(RUN_S)
            stop.set()
    await losing.ends()
    node.replica.apply(life_commands.expire("main", NOW_US + LATER_US))
    await final.save_events(node.session, urls["n1"], "main", directory / "rows")
    records = list(read_history(path))
    streams = {record["stream"]: None for record in records}
    lives = await final.lives(node.session, urls["n1"], "main", streams)
    store = node.state.stores["main"]
    file = []
    for stream in store.stream_list:
        for number, position in enumerate(stream.positions):
            event = uuid.UUID(bytes=frame_id(store.record(position).frame))
            file.append(Stored(position, str(event), stream.name, number))
    file.sort(key=lambda row: row.position)
    shown = final.saved_events(directory / "rows")
    return check(records, {"n1": shown}, {"file": file}, None, {"n1": lives})


async def test_an_honest_node_is_believed_whatever_answers_are_lost(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    async with serving() as node:
        findings = await worked_and_judged(node, tmp_path, random.Random(seed))
    print(findings.removals, findings.events)
    assert not findings.violations, findings.examples
    seen = findings.removals
    assert seen["removed events"] > 0 and seen["streams"] > 0 and seen["read"] > 0
    assert seen["limit acknowledged"] > 0 and seen["delete acknowledged"] > 0
