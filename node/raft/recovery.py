"""How a node that may have forgotten promises comes back.

An acknowledgement means: in the memory of a majority. A node that lost its memory may have
forgotten what it promised, and if it went on voting as if nothing had happened, acknowledged events
could be lost. So whoever is not certain to have forgotten nothing starts RECOVERING: it gives no
vote, stands for no election, serves no client, and takes entries from a leader.

It asks all members, again and again, each time with a fresh nonce: who leads, in which term, how
far is your log? (Rounds get longer where answers come late, or none would ever count.) It leaves
when the answering leader's term is at least its own durable term, that node still leads in that
term as far as it knows, and its own log, as verified by that leader, has reached the index in the
answer.

If every other member answered one nonce and none leads, then so many have forgotten that nobody can
be elected the ordinary way (a cold start). Then the greatest (last term, last index) among all is
the floor: a recovering node may vote for, and be, a candidate that reaches it. It stays recovering
until somebody leads. That needs all members, because one that is missing might remember more: the
one that is being added, too, although nobody counts it. Where all power was lost, its disk may be
ahead of the voters', and what it has applied it cannot take back.

Who "all" are may itself have been forgotten. So a report says which membership is the newest that
its sender knows to be committed, and which is the newest it ever had in its log, which is kept on
disk before it is acknowledged. Asked and needed are the voters of the newest committed membership
among the reports, with its learner, and those of every newer one that was heard of, in a round that
began when that was known already: who was removed may have been elected by those that answered a
moment before, and have led. A membership that came into force was heard of by a majority of its own
voters, one of whom was a voter before, too. (The learner of one that nobody knows to be committed
may never have been there.) Where that one may be the node itself, which has forgotten, it is not
enough that it was: so of two voters both hear of the change that leaves one of them (see
`membership_log`), and of the one that adds a third as its learner.

Only their logs make the floor, too. One that was removed may have a longer log, which nobody that
is counted can reach.

A node without a state file is *blank*: it cannot know whether it is new or has lost everything, its
term and vote included. It may have helped to elect a leader, and have acknowledged its entries, in
a term later than that of whoever speaks to it first: a leader that was deposed meanwhile and does
not know. So a blank voter obeys nobody, and acknowledges nothing, until all other members have
answered one nonce. The greatest of their terms is its own from then on, and it votes for nobody in
that term. It is late enough: whatever this node took part in, a majority did, and one of that
majority is among those that answered, and keeps its term on disk. And nobody still counts a vote of
its earlier life in a later term, because every candidate has answered, too. What it goes on with is
an ordinary recovery, of a node that knows its term.

A blank node that was once the only voter, or may have been as far as anybody has heard, has nobody
to ask: whom it added since, it decided with them alone. (Who went last heard of that, but perhaps
not that it was committed. A learner that it had then may have been dropped, unheard, and others
added.) So it waits until one of them speaks to it. (That nobody was ever added cannot be told from
here; what was only on that disk is gone then, and an operator has to know.) Only the founder of a
cluster of one begins by itself.

That holds, too, for a node which is only being added as far as those know whom it meets first: it
may have been counted later, and have lost its disk since. It is spared the question only if it was
this state file that was added, in a life of which it knows: all since then it knows, and a vote
that it gave before it was added is counted in no later term than that of the leader who added it,
because who is elected later knows of its removal. That term, which the membership names, is its own
from then on. (A leader that was deposed before, and does not know of the removal either, would
count what a node of no term acknowledges.) And the one that is being added is asked like a voter:
it may stand (see `election`), and have the vote of the earlier life; and it may be the only one
left who knows that it is counted (of two, one decided with it, and is the one that asks).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from node.raft.library import Engine, now
from node.raft.membership import MalformedMembership, Membership
from node.raft.messages import Message, RecoveryReport, RecoveryRequest
from node.raft.ports import Promises, RaftSettings, StartingPoint

log = logging.getLogger(__name__)

_NONCE_BITS = 20  # incarnations have 42, and a message's numbers 62
_ASK_AGAIN_S = 0.25  # where somebody leads, one exchange is enough
_ROUND_S_MAX = 4.0  # where answers take longer than that; each counts in its own round only
_TELL_AGAIN_S = 5.0
_COLD_AGAIN_S = 0.6  # long enough for an election under the floor of the last round


class Recovery:
    """The recovering state of one node. `active` is True while it lasts; `was_needed` for ever."""

    def __init__(
        self,
        engine: Engine,
        settings: RaftSettings,
        start: StartingPoint,
        promises: Promises,
        send: Callable[[str, Message], bool],
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._send = send
        self._promises = promises
        self._nonce = start.incarnation << _NONCE_BITS
        self._reports: dict[str, RecoveryReport] = {}
        self._previous: dict[str, RecoveryReport] = {}  # of the round before, for `waits_for` only
        self._heard: dict[str, Membership] = {}
        self._floor: tuple[int, int] | None = None
        self._target: tuple[int, str, int] | None = None
        self._asked: set[str] = set()  # who was reached in this round
        self._asked_in = -1  # the version of the committed membership in which it began
        self._round_s = _ASK_AGAIN_S
        self._next_round = 0.0
        self._asked_under: str | None = None
        self._blank = start.blank
        self._lives = start.lives
        self.was_needed = start.forgetful
        self._told = ""
        self._tell_at = 0.0
        self.active = start.forgetful

    def waits_for(self) -> str:
        """What a recovering node is waiting for, in words for an operator."""
        engine, said = self._engine, self._previous | self._reports
        leads = [peer for peer, report in said.items() if report.leads]
        if not engine.membership.voters:
            own = self._settings
            return f"the members to take it in (`member add {own.node_id} {own.raft_address}`)"
        if self._was_alone():
            return (
                "a member that was added when this node was the only one (it had all data, and has "
                "lost its disk: if none was added, have one that has data go on without it, by "
                "scripts/recover, or begin a new cluster and restore a backup)"
            )
        silent = sorted(self._needed() - said.keys())
        if silent and not self.may_obey():
            return f"an answer of {', '.join(silent)} (without a state file it needs all members)"
        if self._target is not None and engine.leader == self._target[1]:
            _, leader, index = self._target
            return f"entries of leader {leader}: {engine.verified_index:,} of {index:,} are here"
        if leads:
            return f"entries of {leads[0]}, which leads"
        if silent:
            return f"an answer of {', '.join(silent)} (a cold start needs all members), or a leader"
        return "an election: all members have answered, and nobody leads"

    def addresses(self) -> dict[str, str]:
        """Where those are reached who may be needed, as far as anybody has heard."""
        heard = (self._engine.journal.memberships.heard, *self._heard.values())
        return {one: at for membership in heard for one, at in membership.addresses.items()}

    def may_vote_for(self, last_term: int, last_index: int) -> bool:
        """Whether a candidate with such a log may have this node's vote."""
        return not self.active or (
            self._floor is not None and (last_term, last_index) >= self._floor
        )

    def may_obey(self) -> bool:
        """Whether this node may take a leader's word: not while it may have promised more.

        One that may not has to ask even where it is certain to be no member: that it is one by now
        stands in a log which it does not take.
        """
        return not self._blank

    def may_stand(self) -> bool:
        """Whether this node may be a candidate."""
        journal = self._engine.journal
        return self.may_vote_for(journal.last_term, journal.last_index)

    def tick(self) -> None:
        """Leave if it may; else ask again when it is time."""
        if not self.active:
            return
        if self._blank and self._is_new():
            self._learn_term(self._engine.journal.memberships.committed.term)
        if self._blank and self._complete():
            self._learn_term(max((report.term for report in self._reports.values()), default=0))
        leader = self._engine.leader
        if self._engine.leads or self._caught_up():
            self._leave()
        elif now() >= self._next_round or (leader is not None and leader != self._asked_under):
            self._asked_under = leader
            self._set_floor()
            self._tell()
            self._ask()

    def request(self, peer: str, message: RecoveryRequest) -> None:
        """Another node asks: answer, and step down if it knows a higher term."""
        engine = self._engine
        member = peer in engine.membership.addresses
        if message.term > engine.term and member and not self.active:
            engine.step_down(peer, message.term)
        journal = engine.journal
        self._send(
            peer,
            RecoveryReport(
                message.nonce,
                engine.term,
                engine.leads,
                self.active,
                journal.last_term,
                journal.last_index,
                journal.memberships.committed.plain(),
                journal.memberships.heard.plain(),
            ),
        )

    def report(self, peer: str, message: RecoveryReport) -> None:
        """An answer; one to an older nonce may be from before a crash and is not looked at.

        Who was elected meanwhile needs none, and must count by nothing but its own log.
        """
        if not self.active or self._engine.leads or message.nonce != self._nonce:
            return
        try:
            # Both are read before either is believed.
            committed, heard = map(Membership.from_plain, (message.committed, message.heard))
        except MalformedMembership:
            log.warning("%s named members that are none", peer)
            return
        self._engine.journal.memberships.learned(committed)
        self._reports[peer], self._heard[peer] = message, heard
        if message.leads and not message.recovering and message.term >= self._engine.term:
            self._target = (message.term, peer, message.last_index)

    def _is_new(self) -> bool:
        """Whether this node has kept its state file since it was added, and is not counted yet."""
        committed = self._engine.journal.memberships.committed
        added = committed.learner_id == self._settings.node_id
        return added and committed.since in self._lives

    def _learn_term(self, term: int) -> None:
        """No promise of an earlier life is of a later term that still counts it."""
        self._engine.abstain(term)
        self._blank = False

    def _caught_up(self) -> bool:
        if self._target is None:
            return False
        term, leader, index = self._target
        engine = self._engine
        return term == engine.term and engine.leader == leader and engine.verified_index >= index

    def _leave(self) -> None:
        # On disk first: a crash after this must find a node that has kept its word since.
        self._promises.recovered()
        self._engine.journal.memberships.whole()
        self.active = self._blank = False
        log.info("recovered at index %d in term %d", self._engine.verified_index, self._engine.term)

    def _set_floor(self) -> None:
        """A cold start: all answered the last nonce and none leads."""
        reports = self._reports
        if not self._complete() or any(report.leads for report in reports.values()):
            return
        journal, needed = self._engine.journal, self._needed()
        logs = [(one.last_term, one.last_index) for peer, one in reports.items() if peer in needed]
        self._floor = max([*logs, (journal.last_term, journal.last_index)])

    def _tell(self) -> None:
        """Log what it waits for when that changes, but not at every step of a long way."""
        words = self.waits_for()
        if words != self._told and now() >= self._tell_at:
            self._told, self._tell_at = words, now() + _TELL_AGAIN_S
            log.info("recovering: waits for %s", words)

    def _complete(self) -> bool:
        known = bool(self._engine.membership.voters) and not self._was_alone()
        # A removal makes nothing of what was answered before it: the others may have voted since,
        # for the one that was removed, and it had a log that no answer tells of.
        in_time = self._asked_in == self._engine.journal.memberships.committed.version
        return known and in_time and self._needed() <= self._reports.keys()

    def _was_alone(self) -> bool:
        """Whether a blank node may have been the only voter in the newest membership known."""
        own = self._engine.journal.memberships
        known = (own.committed, own.heard, *self._heard.values())
        newest = max(membership.version for membership in known)
        alone = {self._settings.node_id}
        return (
            self._blank
            and newest > 0
            and any(one.version == newest and one.voter_ids == alone for one in known)
        )

    def _needed(self) -> set[str]:
        """Whose answers a cold start needs, and a blank node: those of the members of the newest
        membership known to be committed, and of the voters of all newer ones that somebody has
        heard of. A blank node needs the learners of those, too.
        """
        own = self._engine.journal.memberships
        needed = set(own.committed.addresses)
        for heard in (own.heard, *self._heard.values()):
            if heard.version > own.committed.version:
                needed.update(heard.addresses if self._blank else heard.voter_ids)
        return needed - {self._settings.node_id}

    def _ask(self) -> None:
        cold = self._floor is not None and self._complete()
        if self._asked - self._reports.keys():  # the way there and back may take longer
            self._round_s = min(2 * self._round_s, _ROUND_S_MAX)
        self._next_round = now() + max(self._round_s, _COLD_AGAIN_S if cold else 0.0)
        self._nonce += 1
        asked = self._needed() | set(self._settings.peers)
        self._asked_in = self._engine.journal.memberships.committed.version
        self._previous = self._reports
        self._reports = {}
        question = RecoveryRequest(self._nonce, self._engine.term)
        self._asked = {peer for peer in sorted(asked) if self._send(peer, question)}
