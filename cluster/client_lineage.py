"""Which history a client follows, and what it makes of a node that follows another.

When members are gone for good, an operator may have the others go on without them
(`scripts/recover`). The cluster then follows a new *lineage*: what only the missing had is lost,
and its positions and Raft indexes are given to other events. So what was remembered of the old
lineage means nothing in the new one: no index to wait for, and no position to go on behind.

Nodes tell their lineage in `GET /v1/cluster`. A client asks for that where it looks for the leader,
where a node did not get as far as the client had seen, and where a subscription connects; a read
costs no request more. A node restarts to follow a new lineage, which ends all connections with it:
a subscription that is connected is of the lineage that it was told when it connected.

Two nodes are not believed. One that has had no leader of its lineage may be about to leave it. And
one whose lineage was given up for the present one, which its ancestry names, is a member that was
given up and has not noticed yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.client_errors import Unavailable


class Lineage:
    """The lineage that a client follows; `name` is None until a node has told it."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._ancestry: Sequence[str] = ()

    def met(self, cluster: Mapping[str, Any]) -> bool:
        """Whether what a node says of the cluster is of another lineage than was followed so far.

        Raises `Unavailable` for a node that is not believed.
        """
        told = cluster.get("lineage")
        if told is None:
            return False  # a proxy's answer, or that of another program: it tells nothing
        if not cluster.get("founded"):
            raise Unavailable(f"it has had no leader of its lineage {told} yet")
        if told in self._ancestry:
            raise Unavailable(f"it follows lineage {told}, which was given up for {self.name}")
        before, self.name = self.name, str(told)
        self._ancestry = cluster.get("ancestry", ())
        return before not in (None, told)
