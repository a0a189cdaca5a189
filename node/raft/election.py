"""When to stand for election: only after a majority would agree.

Stock Raft raises its term and asks for votes whenever it has not heard of a leader for a while. A
node that was cut off then returns with a higher term and deposes a healthy leader. With PreVote it
first asks, without changing anything: would you vote for me? A peer says yes only if it has itself
not heard of a leader for `election_min_ms`, and the asking log is at least as complete as its own.
A majority of yes, its own included, and the node stands.

Elected are voters. Only where they have been without a leader for so long that none of them seems
able to win, a learner stands, too, without counting itself: after all power was lost its log may
be the longest, and then no voter can reach the floor of a cold start (see `recovery`). What it
leads for is one entry of its own; when a majority of the voters has that, they hold its log.

A voter that lost its disk asks all voters which term is the latest (see `recovery`), and has then
heard of every vote that it may have given, because who asked for it is among them or known to them.
Of one that is no voter they may know nothing. So whoever would vote for such a one is in that term,
durably, from then on: a majority is, before it asks for votes.

The library's own election timer is switched off (see `library`); this is the only one.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from node.raft.library import Engine, now
from node.raft.messages import Message, PreVote, PreVoteRequest
from node.raft.ports import RaftSettings
from node.raft.recovery import Recovery

# So many election timeouts without a leader before a learner stands.
_LEARNER_PATIENCE = 5


class Election:
    """The election timer of one node."""

    def __init__(
        self,
        engine: Engine,
        recovery: Recovery,
        settings: RaftSettings,
        send: Callable[[str, Message], bool],
        chance: random.Random,
    ) -> None:
        self._engine = engine
        self._recovery = recovery
        self._settings = settings
        self._send = send
        self._chance = chance
        self._nonce = 0
        self._agreed: set[str] = set()
        self._heard_at = 0.0
        self._deadline = now() + self._timeout_s()
        self._silences = 0  # timeouts that passed since a leader has spoken
        self.rounds = 0

    def heard(self) -> None:
        """The leader of the current term has spoken."""
        self._heard_at = now()
        self._silences = 0
        self._deadline = self._heard_at + self._timeout_s()
        if self._agreed:
            self._end_round()

    def excuse(self, seconds: float) -> None:
        """This node was not run for so long: the leader may have spoken (see `attention`)."""
        self._heard_at = min(self._heard_at + seconds, now())
        latest = now() + self._settings.election_max_ms / 1000
        self._deadline = min(self._deadline + seconds, latest)

    def tick(self) -> None:
        """Ask for pre-votes when the leader has been silent for too long."""
        if now() < self._deadline:
            return
        self._deadline = now() + self._timeout_s()
        if self._engine.leads:
            return
        self._engine.forget_leader()
        self._silences += 1
        if not self._may_stand():
            return
        self.rounds += 1
        self._nonce += 1
        self._agreed = {self._settings.node_id}
        if self._decided():
            return
        journal = self._engine.journal
        request = PreVoteRequest(
            self._engine.term + 1, journal.last_index, journal.last_term, self._nonce
        )
        for peer in self._engine.membership.other_voters(self._settings.node_id):
            self._send(peer, request)

    def request(self, peer: str, message: PreVoteRequest) -> None:
        """A peer asks whether this node would vote for it."""
        engine, journal = self._engine, self._engine.journal
        complete = (message.last_term, message.last_index) >= (
            journal.last_term,
            journal.last_index,
        )
        silent_s = now() - self._heard_at
        leaderless = not engine.leads and silent_s * 1000 >= self._settings.election_min_ms
        granted = (
            message.term > engine.term
            and complete
            and leaderless
            and self._recovery.may_vote_for(message.last_term, message.last_index)
        )
        answer = PreVote(engine.term, message.nonce, granted)
        if granted and peer not in engine.membership.voter_ids:
            engine.step_down(peer, message.term)
        self._send(peer, answer)

    def answer(self, peer: str, message: PreVote) -> None:
        """A peer's word on the round that it names."""
        if message.term > self._engine.term:
            self._engine.step_down(peer, message.term)
            return
        if message.granted and message.nonce == self._nonce and not self._engine.leads:
            self._agreed.add(peer)
            self._decided()

    def _decided(self) -> bool:
        if not self._engine.membership.is_majority(self._agreed) or not self._may_stand():
            return False
        self._end_round()
        self._engine.stand()
        return True

    def _may_stand(self) -> bool:
        memberships, own = self._engine.journal.memberships, self._settings.node_id
        last_resort = own == memberships.current.learner_id and self._silences > _LEARNER_PATIENCE
        return (memberships.may_stand(own) or last_resort) and self._recovery.may_stand()

    def _end_round(self) -> None:
        self._nonce += 1  # late answers count no more
        self._agreed = set()

    def _timeout_s(self) -> float:
        shortest, longest = self._settings.election_min_ms, self._settings.election_max_ms
        return self._chance.uniform(shortest, longest) / 1000
