"""What an operator may force upon a node when members are gone for good.

Without a majority nobody leads, and after a crash of all nobody leads without all: that is what
keeps acknowledged events. Where members will never return, an operator can give up what only they
knew, and have the survivors go on: as the only members, in a new lineage (see `raft/lineage.py`).
`scripts/recover` makes the plan and sends each survivor its order; a node is asked directly because
it sees best whether the order is wrong: it knows the leader, hears the missing, and holds what is
not on disk yet. A file that is read at the next start knows nothing of that, and acts again at
every later start if it is left there.

An order is carried out in this sequence, so that a crash anywhere leaves either the old node or the
new one: everything applied goes to disk, the replica falls silent, lineage and membership become
durable together, and the process starts anew. It comes back recovering: the new members make a cold
start, which takes all of them and goes on with the furthest log among theirs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from node.api.ports import RecoveryOrder
from node.core.state import State
from node.errors import RecoveryRefused
from node.identity import Identity
from node.persistence.worker import Worker
from node.raft.members import Outlook
from node.raft.membership import Membership, founding
from node.raft.replica import Replica

log = logging.getLogger(__name__)

_FLUSH_MS = 60_000


class Override:
    """Carries out an operator's order on this node. `again` has the process start anew."""

    def __init__(
        self,
        replica: Replica,
        worker: Worker,
        state: State,
        identity: Identity,
        again: Callable[[], None],
    ) -> None:
        self._replica = replica
        self._worker = worker
        self._state = state
        self._identity = identity
        self._again = again
        self._one_at_a_time = asyncio.Lock()

    def report(self) -> Mapping[str, Any]:
        """What the plan is made of; see `Report` in `cluster/recover_plan.py`."""
        standing, outlook = self._identity.standing, self._replica.outlook()
        return {
            "node_id": self._replica.settings.node_id,
            "cluster": self._identity.cluster,
            **standing._asdict(),
            "quarantined": self._identity.quarantined,
            "recovering": self._replica.recovering,
            "persistent": self._worker.enabled,
            **outlook._asdict(),
            "positions": {name: store.position for name, store in self._state.stores.items()},
        }

    async def carry_out(self, order: RecoveryOrder) -> bool:
        """Carry out an order; False if this node follows that lineage already.

        Raises `RecoveryRefused`, `PersistenceDisabled`, `PersistenceTimeout`, `PersistenceFailed`.
        """
        async with self._one_at_a_time:
            if order.lineage == self._identity.standing.lineage:
                return False
            self._check(order)
            await self._worker.force(None, self._replica.applied_index, _FLUSH_MS)
            self._check(order)
            await self._replica.stop()
            membership = Membership(order.membership_version, founding(order.voters).voters)
            self._identity.rebuild(order.lineage, membership)
            log.critical(
                "by an operator's order: lineage %s is given up for %s, members are %s, without %s",
                *(order.parent, order.lineage, ", ".join(order.voters), ", ".join(order.missing)),
            )
            self._again()
            return True

    def _check(self, order: RecoveryOrder) -> None:
        reason = self._identity.quarantined or objection(
            order,
            self._replica.settings.node_id,
            self._identity.standing.lineage,
            self._replica.outlook(),
        )
        if reason is not None:
            raise RecoveryRefused(reason)


def objection(order: RecoveryOrder, node_id: str, lineage: str, outlook: Outlook) -> str | None:
    """Why a node must not carry out an order, as far as it can see by itself; None if it may."""
    members = outlook.voters.keys() | outlook.learners.keys()
    unaccounted = members - order.voters.keys() - set(order.missing)
    reached = set(outlook.reaches) & set(order.missing)
    if lineage != order.parent:
        return f"this node follows lineage {lineage}, the order gives up {order.parent}"
    if node_id not in order.voters:
        return f"the order leaves out this node, {node_id}"
    if set(order.voters) & set(order.missing):
        return "the order names a member both as a survivor and as missing"
    if unaccounted:
        return f"the order says nothing of the member {', '.join(sorted(unaccounted))}"
    if order.membership_version <= outlook.membership_version:
        return f"the order does not know of membership {outlook.membership_version}"
    if outlook.leader is not None:
        return f"{outlook.leader} leads"
    if reached:
        return f"{', '.join(sorted(reached))} is connected with this node"
    return None
