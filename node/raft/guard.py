"""What may reach the library, and what it is told.

PySyncObj trusts every message. This guard stands between the sessions and the engine and lets
through only what keeps Raft's rules (in brackets the defects, see ARCHITECTURE):

* a message of an old term is not obeyed; its sender learns the current term and steps down
  (A17, a);
* entries that are already in the log are taken out of a message before the library sees it, because
  it would cut everything behind them, also what this node has acknowledged (A1); a real conflict of
  terms cuts, but never at or below the commit index (I12): there this node holds another history,
  and says so, until a fill has replaced it or an operator its directory;
* an ack counts only for the term in which it was given, and never takes anything back (A15-16, a);
* one vote a voter a term (j); a second leader in one term is refused and reported (k);
* a node that is recovering gives no vote below its floor, and one that does not know what it has
  promised obeys no leader (see `recovery`);
* a term that no elections could have led to is not believed: a node that adopted it could never be
  led again, because terms only rise and a message's numbers end.

The guard keeps no state but the votes and the leader of the current term, and where the leader's
history differs. What must never happen is counted in `alarms` and logged; the tests demand that it
stays empty.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from node.raft.library import Engine
from node.raft.messages import (
    Ack,
    AppendEntries,
    Message,
    RequestVote,
    TermNotice,
    TimeoutNow,
    Vote,
)
from node.raft.recovery import Recovery

log = logging.getLogger(__name__)

_ALARMS_MAX = 100
_TERM_LEAP_MAX = 2**32  # at two elections a second, 68 years


class Guard:
    """Filters Raft's own messages. `heard` is called when the leader of the term has spoken."""

    def __init__(
        self,
        engine: Engine,
        recovery: Recovery,
        send: Callable[[str, Message], bool],
        heard: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._recovery = recovery
        self._send = send
        self._heard = heard
        self._voters: tuple[int, set[str]] = (0, set())
        self._obeyed: tuple[int, str] = (0, "")
        self._agrees = False  # something of this log was found to be the same in that leader's
        # A committed entry here, which is another one at the leader.
        self._differs_at: int | None = None
        self.alarms: list[str] = []

    def believes(self, peer: str, message: Message) -> bool:
        """Whether the message's term, if it has one, can be true."""
        term: int = getattr(message, "term", 0)
        if term <= self._engine.term + _TERM_LEAP_MAX:
            return True
        self.alarm(f"{peer} speaks of term {term}, this node is in {self._engine.term}")
        return False

    def receive(self, peer: str, message: Message) -> None:
        """Judge one message of a member, and pass it on if it may."""
        if isinstance(message, AppendEntries):
            self._append_entries(peer, message)
        elif isinstance(message, Ack):
            self._ack(peer, message)
        elif isinstance(message, RequestVote):
            self._request_vote(peer, message)
        elif isinstance(message, Vote):
            self._vote(peer, message)
        elif isinstance(message, TimeoutNow):
            self._timeout_now(peer, message)
        elif isinstance(message, TermNotice):
            self.notice_term(peer, message.term)

    def not_ready_reasons(self) -> list[str]:
        """Why this node should not be read from."""
        if self._engine.leads:
            return []
        if self._differs_at is not None:
            return [
                f"another history: entry {self._differs_at} is committed here, and is not that of "
                "the leader; stop this node, move its data directory away and start it again"
            ]
        if self._engine.leader is not None and not self._agrees:
            return ["the leader's log was not found to agree with this node's yet"]
        return []

    def notice_term(self, peer: str, term: int) -> None:
        """Someone is in a higher term: this one is over."""
        if term > self._engine.term:
            self._engine.step_down(peer, term)

    def _append_entries(self, peer: str, message: AppendEntries) -> None:
        engine = self._engine
        if message.term < engine.term:
            self._send(peer, TermNotice(engine.term))
            return
        if not self._recovery.may_obey():
            return
        known = engine.leader if message.term == engine.term else None
        if message.term == self._obeyed[0]:
            known = self._obeyed[1]
        if known not in (None, peer):
            self.alarm(f"{peer} leads term {message.term}, which {known} leads")
            return
        if self._obeyed != (message.term, peer):
            self._obeyed, self._agrees = (message.term, peer), False
        if message.term > engine.term or engine.leader != peer:
            # What an earlier leader had verified may not be in this one's log.
            engine.verified_index = engine.commit_index
        self._heard()
        reduced = self._without_known(message)
        if reduced is not None:
            engine.receive_append(peer, *reduced)

    def _without_known(self, message: AppendEntries) -> tuple[AppendEntries, int | None] | None:
        """The message without entries that the log holds, and how far it may be acked.

        None where the message must not be obeyed. Unchanged where the log does not reach up to it,
        or differs just before it: the library then answers with a reset.
        """
        journal = self._engine.journal
        term_before = journal.term_at(message.prev_index)
        if term_before != message.prev_term:
            is_committed = message.prev_index <= self._engine.commit_index
            if term_before is not None and is_committed:
                self._differs(message.term, message.prev_index)
            return self._before_base(message)
        known = 0
        for index, (term, _) in enumerate(message.entries, message.prev_index + 1):
            if journal.term_at(index) != term:
                break
            known += 1
        first_new = message.prev_index + known + 1
        if known < len(message.entries) and first_new <= self._engine.commit_index:
            self._differs(message.term, first_new)
            return None
        self._differs_at, self._agrees = None, True
        if known == len(message.entries):
            return self._nothing_new(message)
        return self._cut_front(message, known), None

    def _before_base(self, message: AppendEntries) -> tuple[AppendEntries, int | None]:
        """Everything up to the log's base is committed and need not be compared."""
        journal = self._engine.journal
        known = journal.base_index - message.prev_index
        if not 0 < known <= len(message.entries):
            return message, None
        if message.entries[known - 1][0] != journal.term_at(journal.base_index):
            self._differs(message.term, journal.base_index)
            return message._replace(entries=[]), None
        return self._without_known(self._cut_front(message, known)) or (
            message._replace(entries=[]),
            None,
        )

    def _differs(self, term: int, index: int) -> None:
        """The leader's history is another one. It goes on speaking: one word of it is enough."""
        if self._differs_at != index:
            self._differs_at = index
            self.alarm(f"the leader of term {term} differs at committed {index}")

    def _nothing_new(self, message: AppendEntries) -> tuple[AppendEntries, int | None]:
        """All of it is known: keep what stands behind it, ack and commit only what was compared."""
        journal = self._engine.journal
        end = message.prev_index + len(message.entries)
        return (
            message._replace(
                prev_index=journal.last_index,
                prev_term=journal.last_term,
                entries=[],
                commit_index=min(message.commit_index, end),
            ),
            end,
        )

    @staticmethod
    def _cut_front(message: AppendEntries, known: int) -> AppendEntries:
        if not known:
            return message
        return message._replace(
            prev_index=message.prev_index + known,
            prev_term=message.entries[known - 1][0],
            entries=message.entries[known:],
        )

    def _ack(self, peer: str, message: Ack) -> None:
        engine = self._engine
        if message.term != engine.term:
            self.notice_term(peer, message.term)
            return
        if not engine.leads or peer not in engine.membership.addresses:
            return
        if message.next_index > engine.journal.last_index + 1:
            self.alarm(f"{peer} acknowledged {message.next_index - 1}, which was never sent")
            return
        engine.receive_ack(peer, message)
        if message.reset:
            engine.rewind(peer, message.next_index)

    def _request_vote(self, peer: str, message: RequestVote) -> None:
        if message.term < self._engine.term:
            self._send(peer, TermNotice(self._engine.term))
        elif self._recovery.may_vote_for(message.last_term, message.last_index):
            self._engine.receive_vote_request(peer, message)
        else:
            self.notice_term(peer, message.term)

    def _vote(self, peer: str, message: Vote) -> None:
        if message.term != self._engine.term:
            return
        if self._voters[0] != message.term:
            self._voters = (message.term, set())
        if peer in self._engine.membership.voter_ids - self._voters[1]:
            self._voters[1].add(peer)
            self._engine.receive_vote(peer, message)

    def _timeout_now(self, peer: str, message: TimeoutNow) -> None:
        if message.term == self._engine.term and not self._recovery.active:
            self._engine.receive_timeout_now(peer, message)

    def alarm(self, text: str) -> None:
        """Something happened that never must; at most `_ALARMS_MAX` are kept, all are logged.

        The same at once again, as of a peer that says it with every heartbeat, is said once.
        """
        if self.alarms[-1:] == [text]:
            return
        if len(self.alarms) < _ALARMS_MAX:
            self.alarms.append(text)
        log.critical("raft alarm: %s", text)
