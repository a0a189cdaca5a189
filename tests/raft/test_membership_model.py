"""All interleavings of small clusters whose members change: is a committed entry ever lost?

The model is Raft without time. A step elects a node by a majority of the membership in its own
log, or lets a leader append an entry, change the membership, or bring one follower's log to its
own; it remembers how far, whatever becomes of the follower's log. Or a node is told who the members
are by then. What is committed must be in the log of every later leader, and nobody may commit
anything else. What changes the membership is the product's own: `membership.changes` for the
steps, `is_majority` for who decides.

The search is breadth first and complete up to its bounds. That it can find anything is shown by
leaving out the rules of `membership_change`, one at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import pytest

from node.raft.membership import Membership, changes, founding

TERMS_MAX = 3

Entry = tuple[int, Membership | None]  # its term, and the membership that it makes
Log = tuple[Entry, ...]


class Node(NamedTuple):
    """One node: the latest term it has voted in, the term it leads or 0, its log, what it was told
    ahead of that; and as a leader how much of its log each other node has acknowledged.
    """

    term: int = 0
    leads: int = 0
    log: Log = ()
    told: Membership | None = None
    acknowledged: tuple[int, ...] = ()


class World(NamedTuple):
    """All nodes by their place in the alphabet, and the longest log that was ever committed."""

    nodes: tuple[Node, ...]
    committed: Log = ()


class Rules(NamedTuple):
    """What the leader waits for before it changes the membership; and how long a log may get."""

    one_at_a_time: bool = True
    own_entry_first: bool = True
    one_node_a_step: bool = True
    ends_when_told: bool = True
    entries_max: int = 3
    plain_entries: bool = True
    terms_max: int = TERMS_MAX


class Lost(AssertionError):
    """A leader lacks what was committed, or commits something else."""


class Search:
    """One start, and everything that can come of it."""

    def __init__(self, founders: str, wanted: tuple[str, ...], rules: Rules) -> None:
        self.first = founding({one: one for one in founders})
        self.names = sorted({*founders, *"".join(wanted)})
        self.wanted = wanted
        self.rules = rules
        self.seen = 0

    def run(self) -> None:
        """Walk through all worlds. Raises `Lost`."""
        start = World((Node(),) * len(self.names))
        known, todo = {start}, deque([start])
        while todo:
            for world in self.next_of(todo.popleft()):
                if world not in known:
                    known.add(world)
                    todo.append(world)
        self.seen = len(known)

    def next_of(self, world: World) -> Iterator[World]:
        for at in range(len(world.nodes)):
            yield from self.elections(world, at)
            yield from self.tellings(world, at)
            if world.nodes[at].leads:
                yield from self.appends(world, at)
                yield from self.copies(world, at)

    def membership(self, log: Log, told: Membership | None = None) -> Membership:
        found = [membership for _, membership in log if membership is not None]
        newest = found[-1] if found else self.first
        return newest if told is None or told.version < newest.version else told

    def elections(self, world: World, at: int) -> Iterator[World]:
        """It is elected in a later term by each of the smallest majorities that would."""
        node = world.nodes[at]
        for term in range(node.term + 1, self.rules.terms_max + 1):
            yield from self.elections_of(world, at, term)

    def elections_of(self, world: World, at: int, term: int) -> Iterator[World]:
        node = world.nodes[at]
        membership = self.membership(node.log, node.told)
        if self.names[at] not in membership.voter_ids:
            return
        willing = [
            one
            for one, other in enumerate(world.nodes)
            if one != at
            and self.names[one] in membership.voter_ids
            and other.term < term
            and (_last(other.log), len(other.log)) <= (_last(node.log), len(node.log))
        ]
        # A larger majority would only have more nodes promise the term.
        for voters in combinations(willing, len(membership.voters) // 2):
            yield self.elected(world, at, voters, term)

    def elected(self, world: World, at: int, voters: tuple[int, ...], term: int) -> World:
        nodes = list(world.nodes)
        if nodes[at].log[: len(world.committed)] != world.committed:
            raise Lost(f"{self.names[at]} leads term {term} without {world.committed}")
        for one in voters:
            nodes[one] = Node(term, 0, nodes[one].log, nodes[one].told)
        nobody = (0,) * len(nodes)
        nodes[at] = Node(term, term, nodes[at].log, nodes[at].told, nobody)
        return World(tuple(nodes), world.committed)

    def tellings(self, world: World, at: int) -> Iterator[World]:
        """It is told who the members are, unless it knows."""
        node, newest = world.nodes[at], self.membership(world.committed)
        if newest.version <= self.membership(node.log, node.told).version:
            return
        nodes = list(world.nodes)
        nodes[at] = node._replace(told=newest)
        if self.rules.ends_when_told:
            nodes[at] = Node(node.term, 0, node.log, newest)
        told = World(tuple(nodes), world.committed)
        yield self.counted(told, at) if nodes[at].leads else told

    def appends(self, world: World, at: int) -> Iterator[World]:
        node = world.nodes[at]
        if len(node.log) >= self.rules.entries_max:
            return
        if self.rules.plain_entries:
            yield self.logged(world, at, (*node.log, (node.leads, None)))
        now = self.membership(node.log, node.told)
        certain = world.committed
        open_ = now != self.membership(certain) or node.log[: len(certain)] != certain
        sure = any(term == node.leads for term, _ in certain)
        if (open_ and self.rules.one_at_a_time) or (not sure and self.rules.own_entry_first):
            return
        for wanted in self.wanted:
            steps = list(changes(now, {one: one for one in wanted}))
            if self.rules.one_node_a_step:
                # A learner changes nothing that is counted: model the step that promotes it.
                steps = [step for step in steps if step.voter_ids != now.voter_ids][:1]
            for step in steps[-1:]:
                yield self.logged(world, at, (*node.log, (node.leads, step)))

    def copies(self, world: World, at: int) -> Iterator[World]:
        """A follower's log becomes the leader's."""
        node = world.nodes[at]
        for one, other in enumerate(world.nodes):
            if one != at and other.term <= node.leads and other.log != node.log:
                nodes = list(world.nodes)
                nodes[one] = Node(node.leads, 0, node.log, other.told)
                known = list(node.acknowledged)
                known[one] = len(node.log)
                nodes[at] = node._replace(acknowledged=tuple(known))
                yield self.counted(World(tuple(nodes), world.committed), at)

    def logged(self, world: World, at: int, log: Log) -> World:
        nodes = list(world.nodes)
        nodes[at] = nodes[at]._replace(log=log)
        return self.counted(World(tuple(nodes), world.committed), at)

    def counted(self, world: World, at: int) -> World:
        """What the leader's membership has acknowledged, up to an entry of its own term."""
        node = world.nodes[at]
        membership = self.membership(node.log, node.told)
        known = [*node.acknowledged[:at], len(node.log), *node.acknowledged[at + 1 :]]
        for end in range(len(node.log), 0, -1):
            holders = [name for name, its in zip(self.names, known, strict=True) if its >= end]
            if node.log[end - 1][0] == node.leads and membership.is_majority(holders):
                return World(world.nodes, self.joined(world.committed, node.log[:end]))
        return world

    def joined(self, committed: Log, more: Log) -> Log:
        both = min(len(committed), len(more))
        if committed[:both] != more[:both]:
            raise Lost(f"{more} is committed beside {committed}")
        return max(committed, more, key=len)


def _last(log: Log) -> int:
    return log[-1][0] if log else 0


@pytest.mark.parametrize(
    ("founders", "wanted", "rules"),
    [
        ("a", ("ab",), Rules()),
        ("ab", ("abc",), Rules()),
        ("ab", ("a", "abc"), Rules()),
        ("abc", ("a",), Rules()),
        ("abc", ("abcd",), Rules(entries_max=2)),
        ("abc", ("abcd", "abd"), Rules(terms_max=2)),
    ],
)
def test_whatever_happens_no_committed_entry_is_lost(
    founders: str, wanted: tuple[str, ...], rules: Rules
) -> None:
    search = Search(founders, wanted, rules)
    search.run()
    assert search.seen > 50


@pytest.mark.parametrize(
    ("founders", "wanted", "rules"),
    [
        ("abc", ("abcde",), Rules(one_node_a_step=False)),
        ("abc", ("a",), Rules(one_at_a_time=False)),
        (
            "abcd",
            ("abcde", "bcd"),
            Rules(own_entry_first=False, entries_max=1, plain_entries=False),
        ),
        ("abc", ("abcd", "abd"), Rules(ends_when_told=False, terms_max=2)),
    ],
)
def test_without_one_of_the_rules_an_entry_is_lost(
    founders: str, wanted: tuple[str, ...], rules: Rules
) -> None:
    with pytest.raises(Lost):
        Search(founders, wanted, rules).run()
