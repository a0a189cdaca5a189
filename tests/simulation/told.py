"""Clients that are judged by what they were told: each answer has to stand in the history.

I17  what a client was told of a command is what the history answers to it
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from node.core.outcomes import Outcome
from node.errors import ExesdbError
from tests.simulation.clients import TIMEOUT_MS, TRIES_MAX, Client, Gone
from tests.simulation.doors import WALL_S
from tests.simulation.nodes import Life
from tests.simulation.watch import Entry, comparable


class Told(NamedTuple):
    """The outcome of a command, and where it stands."""

    raft_index: int
    command: bytes
    outcome: Outcome


class ToldClient(Client):
    """One that repeats what got no answer at another node, as a new command."""

    def __init__(self, name: str, *others: Any) -> None:
        super().__init__(*others)
        self._name = name
        self._told: list[Told] = []

    def forget(self, position: int, certain: int) -> None:
        """All power was lost: what was told of later entries may be otherwise."""
        super().forget(position, certain)
        self._told = [told for told in self._told if told.raft_index <= certain]

    def judge(self, entries: Mapping[int, Entry]) -> None:
        """Compare what this client was told with the history."""
        for index, command, outcome in self._told:
            entry = entries[index]
            if (command, outcome) not in zip(entry.batch, entry.outcomes, strict=True):
                self._fail(f"I17: {self._name} was told {outcome}, entry {index} answers otherwise")

    async def _ask(self, make: Callable[[int], bytes]) -> Outcome | None:
        """What some node answers to a command, which carries the time of its clock."""
        for _ in range(TRIES_MAX):
            forgets, sent = self.forgets, list[bytes]()

            def propose(life: Life, sent: list[bytes] = sent) -> Any:
                sent.append(make(int((WALL_S + self._loop.time() + life.skew_s) * 1e6)))
                return life.replica.propose(sent[0], TIMEOUT_MS)

            node = self._chance.choice(self._nodes)
            try:
                outcome, index = await self._asked(node, propose, TIMEOUT_MS)
            except (ExesdbError, Gone):
                await asyncio.sleep(self._chance.choice([0.01, 0.1, 0.5]))
                continue
            told = Told(index, sent[0], comparable(outcome))
            if forgets == self.forgets:
                self._told.append(told)
            return told.outcome
        return None
