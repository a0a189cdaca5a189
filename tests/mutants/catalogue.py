"""All planted defects, in the order in which they are judged."""

from __future__ import annotations

from tests.mutants import (
    contract,
    core,
    elections,
    filling,
    filters,
    lineages,
    lives,
    membership,
    persistence,
    proposals,
    recovery,
    replication,
    sessions,
    snapshots,
    subscriptions,
    websockets,
)
from tests.mutants.defect import Defect

DEFECTS: tuple[Defect, ...] = (
    *replication.DEFECTS,
    *elections.DEFECTS,
    *filling.DEFECTS,
    *filters.DEFECTS,
    *recovery.DEFECTS,
    *lineages.DEFECTS,
    *membership.DEFECTS,
    *sessions.DEFECTS,
    *proposals.DEFECTS,
    *persistence.DEFECTS,
    *core.DEFECTS,
    *snapshots.DEFECTS,
    *lives.DEFECTS,
    *subscriptions.DEFECTS,
    *websockets.DEFECTS,
    *contract.DEFECTS,
)
