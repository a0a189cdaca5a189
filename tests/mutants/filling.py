"""Defects in how a node that is far behind is brought up (A2, A3, A8)."""

from __future__ import annotations

from tests.mutants.defect import Defect

_TRANSFER = "raft/test_fill_transfer.py"

DEFECTS = (
    Defect(
        "offer-of-an-older-state-is-taken",
        "A8: nothing older is laid over something newer",
        "raft/fill_receiver.py",
        "        if index <= self._state.applied_index:\n",
        "        if index < 0:\n",
        (_TRANSFER, "raft/test_fill.py::TestOlderState"),
    ),
    Defect(
        "fill-over-a-newer-state",
        "A8: a fill is installed only where it is ahead",
        "raft/fill_receiver.py",
        "        if filled.raft_index <= state.applied_index:\n",
        "        if filled.raft_index < 0:\n",
        (_TRANSFER,),
    ),
    Defect(
        "chunk-not-verified",
        "A3: what arrives is compared with its digest",
        "raft/fill_receiver.py",
        "                    if digest.value() != value:\n",
        "                    if not value:\n",
        (_TRANSFER,),
    ),
    Defect(
        "offer-not-verified",
        "A3: what is offered is compared with its digest",
        "raft/fill_offer.py",
        "type(description) is bytes and hashlib.sha256(description).digest() == value",
        "type(description) is bytes",
        (_TRANSFER,),
    ),
    Defect(
        "prefix-not-compared",
        "fill: what a node holds is compared before it is extended",
        "raft/fill_receiver.py",
        "            if own.value() != theirs:\n",
        "            if not theirs:\n",
        (_TRANSFER,),
    ),
    Defect(
        "resumed-without-comparing",
        "fill: what an earlier one left is compared before it is extended",
        "raft/fill_receiver.py",
        "        return position > 0 and await link.digest(position) == staged.digest.value()\n",
        "        return position > 0\n",
        (_TRANSFER,),
    ),
    Defect(
        "longer-store-is-replaced",
        "fill: a store that is longer here is an alarm and left alone",
        "raft/fill_receiver.py",
        "        if position > one.position:\n            self._alarm",
        "        if position < 0:\n            self._alarm",
        (_TRANSFER,),
    ),
    Defect(
        "half-a-fill-is-visible",
        "A3: nothing of the state is touched before everything is there",
        "raft/fill_receiver.py",
        "        copied = Store(live.name, live.uid, live.created_us)\n"
        "        for _ in copied.copying(live):\n"
        "            await asyncio.sleep(0)\n",
        "        copied = live\n",
        (_TRANSFER,),
    ),
    Defect(
        "answers-to-another-s-offer",
        "fill: an offer is for the node that asked",
        "raft/fill_source.py",
        "        if offer is None or offer.peer != peer:\n",
        "        if offer is None:\n",
        (_TRANSFER,),
    ),
    Defect(
        "frames-of-another-type",
        "A3: a store holds its own rules, whatever a source says",
        "core/portion.py",
        "    if sorted(created) != list(created) or created[0] < before",
        "    if created[0] < 0",
        ("core/test_portions.py",),
    ),
    Defect(
        "filled-over-what-is-committed",
        "A8: nothing is installed that is not ahead of what is known to be committed",
        "raft/filling.py",
        "            if filled.raft_index <= engine.commit_index:\n",
        "            if filled.raft_index < 0:\n",
        ("raft/test_filling.py",),
    ),
    Defect(
        "filled-at-the-word-of-anybody",
        "fill: only the leader of the term says who is behind",
        "raft/filling.py",
        "        current = message.term == engine.term and peer == engine.leader\n",
        "        current = bool(message)\n",
        ("raft/test_filling.py",),
    ),
    Defect(
        "log-is-cut-during-a-fill",
        "fill: the source keeps the log that its offers will need",
        "raft/filling.py",
        "        return min(index, needed)\n",
        "        return index\n",
        ("raft/test_filling.py",),
    ),
)
