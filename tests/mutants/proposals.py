"""Defects in outcomes, reads and durability on request (A14, A18, h, I1, I2, I8)."""

from __future__ import annotations

from tests.mutants.defect import Defect

_CERTAIN = "raft/test_proposals.py::TestCertainty"
_STEPS = "raft/test_handing_on.py"
_READS = "raft/test_reads.py"

DEFECTS = (
    Defect(
        "unknown-outcome-called-definite",
        "A14: what was handed on and not heard of is unknown",
        "raft/proposals.py",
        'self._end(sequence, OutcomeUnknown("the outcome was not learned in time"))',
        'self._end(sequence, NoLeader("the outcome was not learned in time"))',
        (_CERTAIN,),
    ),
    Defect(
        "stop-calls-the-unknown-definite",
        "A14: a stopping node tells what it does not know",
        "raft/proposals.py",
        "            if pending.handed_term != _WAITING:\n                self._end(\n",
        "            if pending.handed_term < _WAITING:\n                self._end(\n",
        (_CERTAIN,),
    ),
    Defect(
        "forwarded-command-waits-for-ever",
        "A18: every submission ends within its time",
        "raft/proposals.py",
        "                if moment >= pending.deadline:\n",
        "                if moment < 0:\n",
        (_STEPS,),
    ),
    Defect(
        "cancelled-submission-is-kept-for-ever",
        "A22: what waits is bounded, also where its client went away",
        "raft/proposals.py",
        "            if pending.handed_term != _WAITING:\n                if moment",
        "            if pending.handed_term != _WAITING and not pending.future.done():\n"
        "                if moment",
        (_STEPS,),
    ),
    Defect(
        "handed-on-again-in-its-own-term",
        "A18: a command is handed on again only when an entry of a later term is applied",
        "raft/proposals.py",
        "_WAITING < pending.handed_term < term and",
        "_WAITING < pending.handed_term <= term and",
        (_STEPS,),
    ),
    Defect(
        "never-handed-on-again",
        "A18: a change of leader is a pause for the client, not an error",
        "raft/proposals.py",
        "            self._take_back_before(term)\n",
        "            pass\n",
        (_CERTAIN,),
    ),
    Defect(
        "command-of-another-term-is-proposed",
        "A14: a command enters the log only in the term in which it was handed on",
        "raft/proposals.py",
        "        if not self._engine.leads or term != self._engine.term:\n",
        "        if not self._engine.leads:\n",
        (_CERTAIN,),
    ),
    Defect(
        "command-of-an-earlier-reign-is-proposed",
        "A14: who leads again proposes nothing that waited in its earlier reign",
        "raft/proposals.py",
        "            if one.term != self._engine.term:\n",
        "            if one.term < 0:\n",
        (_STEPS,),
    ),
    Defect(
        "refusal-of-an-earlier-life",
        "incarnation: a refusal of an earlier life is not taken for one of this life",
        "raft/proposals.py",
        "        if message.incarnation != self._incarnation:\n",
        "        if message.incarnation < 0:\n",
        (_CERTAIN,),
    ),
    Defect(
        "refusal-of-an-earlier-hand-on",
        "A14: a refusal counts for the term in which it was asked",
        "raft/proposals.py",
        "            if pending is None or pending.handed_term != message.term:\n",
        "            if pending is None:\n",
        (_STEPS,),
    ),
    Defect(
        "outcome-of-an-earlier-life",
        "incarnation: an entry of an earlier life resolves nothing of this life",
        "raft/proposals.py",
        "group.origin == self._settings.node_id and group.incarnation == self._incarnation:",
        "group.origin == self._settings.node_id:",
        (_STEPS,),
    ),
    Defect(
        "outcomes-of-other-groups",
        "A14: a submission gets the outcome of its own command",
        "raft/proposals.py",
        "            at += len(group.commands)\n",
        "            at += 0\n",
        (_STEPS,),
    ),
    Defect(
        "passed-over-by-a-fill-and-tried-again",
        "A14: of what a fill passed over nothing is known",
        "raft/proposals.py",
        "                pending.handed_term = _OUT_OF_SIGHT\n",
        "                pass\n",
        (_CERTAIN,),
    ),
    Defect(
        "submissions-without-bound",
        "A22: submissions that wait are bounded",
        "raft/proposals.py",
        "        if len(self._pending) >= settings.proposals_max:\n",
        "        if len(self._pending) < 0:\n",
        ("raft/test_proposals.py::TestBounds",),
    ),
    Defect(
        "reign-blocked-by-an-earlier-one",
        "what was in flight in an earlier reign does not hold up this one",
        "raft/proposals.py",
        "        self._in_flight.clear()\n        for command in self.opening():\n",
        "        for command in self.opening():\n",
        (_STEPS,),
    ),
    Defect(
        "linearizable-read-asks-the-leader-only",
        "h, I8: a linearizable read goes through the log",
        "raft/reads.py",
        '        if level == "linearizable":\n',
        '        if level == "none":\n',
        (_READS,),
    ),
    Defect(
        "new-leader-answers-before-it-knows",
        "h: a new leader answers only when it is sure of the past",
        "raft/library.py",
        "        return self.leads and self.journal.term_at(self.applied_index) == self.term\n",
        "        return self.leads\n",
        (_READS,),
    ),
    Defect(
        "leader-read-does-not-wait",
        "I8: a read waits until this node has applied what the leader had",
        "raft/reads.py",
        "            await self.applied(await self._leader_index(deadline), _left_ms(deadline))\n",
        "            await self._leader_index(deadline)\n",
        (_READS,),
    ),
    Defect(
        "read-shares-a-question-that-was-sent",
        "I8: the leader is asked after the read came",
        "raft/reads.py",
        "        del self._questions[leader]\n        return int(",
        "        return int(",
        (_READS,),
    ),
    Defect(
        "min-index-is-not-awaited",
        "I8: a session with a token never goes back",
        "raft/replica.py",
        "        await self._reads.applied(index, timeout_ms)\n",
        "",
        (_READS,),
    ),
    Defect(
        "one-disk-is-enough",
        "durability=persisted: a majority has it on disk",
        "raft/durability.py",
        "                if 2 * done > len(flushes):\n",
        "                if done:\n",
        ("raft/test_durability.py",),
    ),
    Defect(
        "failed-flush-counts",
        "durability=persisted: only a disk that has it counts",
        "raft/durability.py",
        "                    continue\n",
        "                    pass\n",
        ("raft/test_durability.py",),
    ),
    Defect(
        "round-releases-later-waits",
        "durability=persisted: a round releases only what it covers",
        "raft/durability.py",
        "            if wanted <= index:\n",
        "            if wanted:\n",
        ("raft/test_durability.py",),
    ),
    Defect(
        "round-flushes-too-little",
        "durability=persisted: a round goes as far as the furthest wait",
        "raft/durability.py",
        "target = max(self._waits.values(), default=0)\n"
        "                if await self._majority_has(target):\n"
        "                    self._release(target)\n",
        "target = max(self._waits.values(), default=0)\n"
        "                if await self._majority_has(min(self._waits.values(), default=0)):\n"
        "                    self._release(target)\n",
        ("raft/test_durability.py",),
    ),
)
