"""Defects in who is heard after an operator has rebuilt a cluster: the rules around lineages."""

from __future__ import annotations

from tests.mutants.defect import Defect

_PAIRS = "raft/test_session.py::TestLineages"
_JOINING = "raft/test_session.py::TestHandshake"
_CLUSTERS = "raft/test_rebuilding.py"

DEFECTS = (
    Defect(
        "lineages-are-not-looked-at",
        "nodes of different lineages have no session",
        "raft/transport.py",
        "        if refusal is not None:\n",
        "        if refusal == self:\n",
        (_PAIRS,),
    ),
    Defect(
        "unfounded-lineage-quarantines",
        "only a lineage that has had a leader shows another to be given up",
        "raft/lineage.py",
        "    if other.founded and own.lineage in other.ancestry:\n",
        "    if own.lineage in other.ancestry:\n",
        (_PAIRS, f"{_CLUSTERS}::TestInterrupted"),
    ),
    Defect(
        "unfounded-lineage-is-joined",
        "a node that joins passes over a lineage that may have come to nothing",
        "raft/lineage.py",
        "        if not other.ancestry or other.founded:\n",
        "        if not self._refused:\n",
        (_PAIRS, _JOINING, f"{_CLUSTERS}::TestInterrupted"),
    ),
    Defect(
        "given-up-node-stays",
        "who learns that its lineage was given up is quarantined",
        "raft/lineage.py",
        "            self._given_up(other)\n",
        "            pass\n",
        (f"{_CLUSTERS}::TestRebuilt", _PAIRS),
    ),
    Defect(
        "given-up-node-speaks-before-it-restarts",
        "a life that was given up never speaks with the newer lineage",
        "raft/lineage.py",
        "            self._last = own\n",
        "            self._last = None\n",
        ("raft/test_lineage.py",),
    ),
    Defect(
        "old-life-takes-its-quarantine-back",
        "after a quarantine nothing that this life still does is kept",
        "identity.py",
        "        if self._over:\n",
        "        if self._over and not changes:\n",
        ("test_identity.py::TestQuarantine",),
    ),
    Defect(
        "quarantined-node-keeps-its-data",
        "a quarantined node's data are moved aside, never merged",
        "identity.py",
        "            self._set_aside(directory)\n",
        "            pass\n",
        ("test_identity.py::TestQuarantine",),
    ),
    Defect(
        "new-lineage-without-cold-start",
        "the members of a new lineage make a cold start, whatever they held",
        "identity.py",
        "            **standing._asdict(),\n            forgetful=True,\n",
        "            **standing._asdict(),\n            forgetful=False,\n",
        ("test_identity.py",),
    ),
    Defect(
        "order-obeyed-under-a-leader",
        "an order is refused where somebody leads",
        "override.py",
        "    if outlook.leader is not None:\n",
        "    if outlook.leader == node_id:\n",
        ("test_override.py",),
    ),
)
