"""What must hold at every moment, and who sees to it.

`Chronicle` is told of every entry that any node applies, of every message, and of every state that
a node comes up with or is filled with. It keeps the one history that there may be, and the state
that follows from it; whoever differs breaks a rule. A broken rule is kept in `violations` and ends
the run; the node that broke it is not stopped, so that nothing but the check depends on it.

    I4   an entry is the same on all nodes, across restarts; so is what it answers
    I10  one leader a term, one vote a node and term; commit and applied never go back
    I11  nobody acknowledges what it does not hold, or what the leader does not have there
    I12  no entry at or below the commit index is ever cut off
    I1   what a leader calls committed, a majority of the voters has said it holds
    I13  what a node comes up with is the history up to its cut, and so is what it is filled with;
         and the cut is not before what it had reported
    M    all know the same committed memberships, each one step from the one before; a leader has
         at most one change under way; nobody votes for a candidate that lacks a committed entry
         which the voter has acknowledged
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from node.core.husks import husk_of
from node.core.outcomes import Appended, Outcome
from node.core.state import State
from node.core.store import Store
from node.core.subscription import Subscription
from node.core.subscription_state import encode, take
from node.raft.membership import NOBODY, Membership
from node.raft.messages import Ack, AppendEntries, Message, RequestVote, Vote

if TYPE_CHECKING:
    from tests.simulation.nodes import Life

ACKS_KEPT = 20


class StoreThen(NamedTuple):
    """What there is of a store beside its events: digests where all of it would be much."""

    position: int
    checkpoints: dict[str, int]
    snapshots: int
    subscriptions: dict[str, str]
    lives: int
    firsts: dict[str, int]  # of each stream of which something was removed


Snapshot = dict[str, StoreThen]


class Entry(NamedTuple):
    """An entry of the one history; `after` is how far each store was behind it."""

    term: int
    batch: tuple[bytes, ...]
    outcomes: list[Any]
    after: Snapshot


class AckedEntry(NamedTuple):
    """What a node has acknowledged: the entry, and its term."""

    index: int
    term: int | None


class Chronicle:
    """The one history, and the rules."""

    def __init__(self, fail: Callable[[str], None], founding: Membership = NOBODY) -> None:
        self.memberships: dict[int, Membership] = {founding.version: founding}
        self._lineages: dict[str, Chronicle] = {}
        self.entries: dict[int, Entry] = {}
        self.end = 1
        self.leaders: dict[int, str] = {}
        self.state = State()
        self.digest = hashlib.sha256()
        self._digests: dict[str, tuple[int, int, str]] = {}
        self._fail = fail
        self._certain: int | None = None
        self._votes: dict[tuple[str, int], str] = {}
        self._reigns: dict[int, int] = {}  # term -> the leader's commit index as it began
        self._acks: dict[str, deque[AckedEntry]] = {}
        self._held: dict[int, dict[str, int]] = {}  # term -> voter -> the last it has acknowledged

    # --- lineages ----------------------------------------------------------------------------

    def of(self, lineage: str) -> Chronicle:
        """The history of a lineage."""
        return self._lineages.get(lineage, self)

    def branch(self, lineage: str, certain: int, membership: Membership) -> Chronicle:
        """The history of a lineage that goes on from this one; all of it is certain up to there,
        and what its first leader finds behind it may be as here, or not.
        """
        branch = self._lineages[lineage] = Chronicle(self._fail, membership)
        for index, entry in sorted(self.entries.items()):
            if index <= certain:
                branch._write(index, entry.term, entry.batch)
        return branch

    # --- applying ----------------------------------------------------------------------------

    def applied(
        self, life: Life, index: int, term: int, batch: Sequence[bytes], outcomes: Sequence[Outcome]
    ) -> None:
        """A node has applied an entry."""
        known = self.entries.get(index)
        if known is not None and (known.term, known.batch) != (term, tuple(batch)):
            if self._certain is None or index <= self._certain:
                self._fail(f"I4: {life} applied another entry at {index} (term {term}) than before")
                return
            self._forget_from(index)
            known = None
        if known is None:
            known = self._write(index, term, batch)
        if self._certain is not None:
            self._certain = max(self._certain, index)
        if list(map(comparable, outcomes)) != known.outcomes:
            self._fail(f"I4: {life} answers entry {index} by {outcomes}, not {known.outcomes}")

    def nothing_is_certain_after(self, index: int) -> None:
        """All power was lost: what was not known to be on a disk may come back, or not."""
        self._certain = min(index, self.end)

    def _write(self, index: int, term: int, batch: Sequence[bytes]) -> Entry:
        if index != self.end + 1:
            self._fail(f"I4: entry {index} is applied before {self.end + 1}")
        outcomes = list(map(comparable, self.state.apply(index, term, batch)))
        after = _snapshot(self.state, self._digests)
        entry = self.entries[index] = Entry(term, tuple(batch), outcomes, after)
        self.end = index
        self.digest.update(b"%d/%d" % (index, term))
        for command in batch:
            self.digest.update(command)
        return entry

    def _forget_from(self, index: int) -> None:
        kept = [(at, entry) for at, entry in self.entries.items() if at < index]
        self.state, self.entries, self.end = State(), {}, 1
        self._digests.clear()
        for at, entry in sorted(kept):
            self._write(at, entry.term, entry.batch)

    # --- states ------------------------------------------------------------------------------

    def check_state(self, who: object, state: State) -> None:
        """A state that came from a disk or from another node is the history up to its index."""
        index = state.applied_index
        if index <= 1:
            if state.stores:
                self._fail(f"I13: {who} has stores at index {index}")
            return
        entry = self.entries.get(index)
        if entry is None:
            self._fail(f"I13: {who} has a state at {index}, which was never committed")
            return
        if self._certain is not None:
            self._certain = max(self._certain, index)
        if (now := _snapshot(state, {})) != entry.after:
            self._fail(f"I13: {who} at {index} is {now}, not {entry.after}")
            return
        for name, then in entry.after.items():
            position = then.position
            theirs, ours = state.stores[name], self.state.stores[name]
            if _differ(theirs, ours, position):
                self._fail(f"I13: store {name} of {who} differs from the history up to {index}")

    # --- messages ----------------------------------------------------------------------------

    def leads(self, node_id: str, term: int) -> None:
        """A node leads a term, by its own word."""
        known = self.leaders.setdefault(term, node_id)
        if known != node_id:
            self._fail(f"I10: {node_id} and {known} both lead term {term}")

    def said(self, sender: Life, receiver: Life | None, receiver_id: str, message: Message) -> None:
        """A node says something to another."""
        engine = sender.replica._engine
        if engine.commit_index < sender.commit_index:
            self._fail(f"I10: the commit index of {sender} went back to {engine.commit_index}")
        if engine.leads and engine.commit_index > sender.commit_index:
            self._committed(sender, engine.commit_index)
        sender.commit_index = engine.commit_index
        if isinstance(message, AppendEntries):
            self._entries_sent(sender, receiver, receiver_id, message)
        elif isinstance(message, Ack):
            self._acknowledged(sender, receiver, message)
        elif isinstance(message, Vote):
            self._voted(sender.node_id, receiver_id, message.term)
            self._elects(sender, receiver, message.term)
        elif isinstance(message, RequestVote):
            self._voted(sender.node_id, sender.node_id, message.term)

    def _entries_sent(
        self, sender: Life, receiver: Life | None, receiver_id: str, message: AppendEntries
    ) -> None:
        self.leads(sender.node_id, message.term)
        if receiver is not None and not receiver.replica.recovering:
            counted = sender.replica._engine.match_index(receiver_id)
            end = receiver.replica._journal.last_index
            if counted > end and receiver.replica._engine.term == message.term:
                self._fail(f"I11: {sender} counts {counted} at {receiver_id}, which ends at {end}")
        before = self._reigns.setdefault(message.term, message.commit_index)
        if message.commit_index > before:
            committed = sender.replica._journal.term_at(message.commit_index)
            if committed not in (message.term, None):
                self._fail(f"I10: {sender} counted an entry of term {committed} as committed")

    def _voted(self, voter: str, candidate: str, term: int) -> None:
        known = self._votes.setdefault((voter, term), candidate)
        if known != candidate:
            self._fail(f"I10: {voter} votes for {candidate} in term {term}, and did for {known}")

    def _acknowledged(self, sender: Life, receiver: Life | None, message: Ack) -> None:
        if not message.success:
            return
        index, journal = message.next_index - 1, sender.replica._journal
        sender.acknowledged = message.term, index
        said = self._acks.setdefault(sender.node_id, deque(maxlen=ACKS_KEPT))
        said.append(AckedEntry(index, journal.term_at(index)))
        held = self._held.setdefault(message.term, {})
        held[sender.node_id] = max(held.get(sender.node_id, 0), index)
        if journal.last_index < index:
            self._fail(f"I11: {sender} acknowledges {index}, and holds {journal.last_index}")
        if receiver is None or not receiver.replica.leads:
            return
        theirs, ours = journal.term_at(index), receiver.replica._journal.term_at(index)
        comparable = message.term == receiver.replica._engine.term and None not in (theirs, ours)
        if comparable and theirs != ours:
            self._fail(f"I11: {sender} acknowledges {index} of term {theirs}, not {ours}")

    # --- members -----------------------------------------------------------------------------

    @property
    def membership(self) -> Membership:
        """The newest that any node ever knew to be committed."""
        return self.memberships[max(self.memberships)]

    def members_are(self, life: Life, committed: Membership) -> None:
        """A node knows a membership to be committed."""
        if not committed.voters:
            return  # it has not joined yet
        known = self.memberships.setdefault(committed.version, committed)
        if known != committed:
            self._fail(f"M: {life} knows {committed}, others {known}")
        before = self.memberships.get(committed.version - 1)
        if before is not None and len(before.voter_ids ^ committed.voter_ids) > 1:
            self._fail(f"M: {committed} follows {before}")

    def forget_memberships_after(self, version: int) -> None:
        """All power was lost: what is on no disk was never committed."""
        self.memberships = {at: one for at, one in self.memberships.items() if at <= version}

    def _committed(self, leader: Life, index: int) -> None:
        """A leader says that an entry of its own term is committed."""
        engine, memberships = leader.replica._engine, leader.replica._journal.memberships
        if leader.replica._journal.term_at(index) != engine.term:
            return
        # However long ago it was said: a leader that stood still finds old words in its queue.
        hold = {voter for voter, last in self._held.get(engine.term, {}).items() if last >= index}
        hold.add(leader.node_id)
        possible = [memberships.current, memberships.committed]
        possible += [self.memberships.get(memberships.current.version - 1, NOBODY)]
        if not any(2 * len(one.voter_ids & hold) > len(one.voters) for one in possible):
            self._fail(f"I1: {leader} calls {index} committed, it is held by {sorted(hold)}")
        open_at = [at for at, _ in memberships._in_log if at > index]
        if len(open_at) > 1:
            self._fail(f"M: {leader} has the changes at {open_at} under way at once")

    def _elects(self, voter: Life, candidate: Life | None, term: int) -> None:
        if candidate is None or candidate.replica._engine.term != term:
            return
        journal = candidate.replica._journal
        log = journal.last_term, journal.last_index
        for said in self._acks.get(voter.node_id, ()):
            entry = self.entries.get(said.index)
            if entry is None or entry.term != said.term:
                continue
            certain = self._certain is None or said.index <= self._certain
            if certain and log < (entry.term, said.index):
                self._fail(f"M: {voter} has acknowledged {said.index}, and votes for {candidate}, "
                           f"whose log ends at {log[1]} of term {log[0]}")  # fmt: skip
                return

    def forgets_votes(self, node_id: str) -> None:
        """A node lost its state file: it may vote again, but must still elect no second leader."""
        self._votes = {key: vote for key, vote in self._votes.items() if key[0] != node_id}

    def cuts(self, life: Life, index: int) -> None:
        """A node cuts off its log from `index` on."""
        if index <= life.replica._engine.commit_index:
            self._fail(f"I12: {life} cuts off {index}, which is committed")
        term, acknowledged = life.acknowledged
        if term == life.replica._engine.term and index <= acknowledged:
            self._fail(f"I11: {life} cuts off {index}, and has acknowledged {acknowledged}")


def comparable(outcome: Outcome) -> Any:
    """An outcome that equals others alike; some have positions in a range, some in a list."""
    if isinstance(outcome, Appended):
        return outcome._replace(positions=tuple(outcome.positions))
    return outcome


def _snapshot(state: State, known: dict[str, tuple[int, int, str]]) -> Snapshot:
    return {
        name: StoreThen(
            store.position,
            dict(store.checkpoints),
            store.snapshots.digest,
            {
                subscription: _digest(one, known)
                for subscription, one in store.subscriptions.by_name.items()
            },
            store.lives.digest,
            {stream.name: stream.first for stream in store.stream_list if stream.first},
        )
        for name, store in state.stores.items()
    }


def _differ(theirs: Store, ours: Store, until: int) -> bool:
    """Whether events differ. Of a removed one a node may have kept no more than its print."""
    return any(
        one != other and (theirs.kept(one[0]) or one != (*other[:-1], husk_of(other[-1])))
        for one, other in zip(theirs.rows(0, until), ours.rows(0, until), strict=True)
    )


def _digest(one: Subscription, known: dict[str, tuple[int, int, str]]) -> str:
    """The digest of a subscription, made anew only where it changed; `known` is by its name."""
    uid, changed_index, digest = known.get(one.name, (-1, -1, ""))
    if (uid, changed_index) != (one.uid, one.changed_index):
        digest = hashlib.sha256(encode(take(one))).hexdigest()[:16]
        known[one.name] = one.uid, one.changed_index, digest
    return digest
