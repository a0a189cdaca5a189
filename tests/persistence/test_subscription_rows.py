"""Rows of subscriptions against a model: at every mark that is needed they are what they were."""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from node.persistence import subscription_rows
from node.persistence.subscription_rows import SubscriptionRows

States = dict[str, tuple[int, bytes]]  # by name: the raft index of the last change, and the state


class Changed(NamedTuple):
    """In the place of `Taken`."""

    name: str
    changed_index: int
    state: bytes


@dataclass
class Model:
    """A file, what is in memory, and what was there at each mark."""

    path: Path
    chance: random.Random
    memory: States = field(default_factory=dict)
    index: int = 0
    at: int = 0  # the last mark that is certain
    safe: int = 0
    taken_after: int = 0
    marks: dict[int, States] = field(default_factory=lambda: {0: {}})

    def open(self) -> None:
        self.connection = sqlite3.connect(self.path, isolation_level=None)
        self.connection.execute("PRAGMA synchronous = OFF")
        self.rows = SubscriptionRows(self.connection, self.path)
        self.connection.execute("BEGIN")
        self.rows.roll_back(self.at)
        self.connection.execute("COMMIT")

    def change(self) -> None:
        self.index += self.chance.choice([1, 1, 3])
        name = self.chance.choice("abcd")
        removed = self.chance.random() < 0.35 and self.memory.pop(name, None)
        if not removed or self.chance.random() < 0.4:  # removed and made again by one entry
            self.memory[name] = self.index, b"%d" % self.chance.randrange(1 << 30)

    def write(self) -> None:
        """A cycle, which may fail before its COMMIT, or behind it."""
        chance, to = self.chance, max(self.index, self.at + 1)
        self.index = to
        changed: list[Any] = [
            Changed(name, index, state)
            for name, (index, state) in self.memory.items()
            if index > self.taken_after
        ]
        self.connection.execute("BEGIN")
        self.rows.write(changed, frozenset(self.memory), to, self.safe)
        end = chance.choice(["COMMIT", "COMMIT", "COMMIT", "unknown", "ROLLBACK"])
        self.connection.execute("ROLLBACK" if end == "ROLLBACK" else "COMMIT")
        if end != "COMMIT":
            self.open_again()
            return
        self.at = to
        self.marks[to] = dict(self.memory)
        if chance.random() < 0.85:  # else it is not booked, and taken again
            self.taken_after = to
        if chance.random() < 0.5:
            self.safe = to

    def needed(self) -> list[int]:
        """The marks at which a start may find the cut."""
        oldest = max(mark for mark in self.marks if mark <= self.safe)
        return [mark for mark in self.marks if mark >= oldest]

    def open_again(self) -> None:
        self.connection.close()
        self.open()

    def start(self) -> None:
        """A process that was killed: the next one goes on from the cut."""
        self.at = self.chance.choice(self.needed())
        self.open_again()
        self.marks = {mark: states for mark, states in self.marks.items() if mark <= self.at}
        self.memory, self.taken_after = dict(self.marks[self.at]), self.at
        self.safe = min(self.safe, self.at)

    def judge(self) -> None:
        states = {name: (index, state) for name, index, state in self.rows.states()}
        assert states == self.marks[self.at]
        checksums = (subscription_rows._checksum(name, *one) for name, one in states.items())
        assert self.rows.total == sum(checksums)


@pytest.mark.parametrize("seed", range(12))
def test_rows_are_what_they_were_at_every_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(subscription_rows, "encode", lambda changed: changed.state)
    model = Model(tmp_path / "rows.db", random.Random(seed))
    model.open()
    for _ in range(200):
        for _ in range(model.chance.randrange(4)):
            model.change()
        step = model.chance.choice([model.write] * 7 + [model.open_again, model.start])
        step()
        if step != model.write or model.at == model.index:
            model.judge()
    for mark in sorted(model.needed(), reverse=True):
        model.at = mark
        model.open_again()
        model.judge()
    model.connection.close()
