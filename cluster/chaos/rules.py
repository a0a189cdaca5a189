"""Which faults may coincide: acknowledged events must survive whatever the rules allow.

Acknowledged means: in the memory of a majority. A fault that takes a node's memory (a wiped or
damaged directory, a full disk, and without a tail file every kill) may therefore hit a minority at
a time, and the node counts until it is whole again: ready, with everything on its disk. Whatever
keeps memory (a kill with a tail file, a stop, a pause, a partition) may hit anybody at any time.
"""

from __future__ import annotations


class Losses:
    """Who has lost memory and is not whole again."""

    def __init__(self, members: int, kills_forget: bool) -> None:
        self.kills_forget = kills_forget
        self._lost: dict[str, int] = {}
        self._lost_max = (members - 1) // 2
        self._count = 0

    @property
    def lost(self) -> frozenset[str]:
        """The nodes that count as having lost memory."""
        return frozenset(self._lost)

    def may_lose(self, node_id: str) -> bool:
        """Whether this node may lose its memory now."""
        return len(self._lost.keys() | {node_id}) <= self._lost_max

    def may_kill(self, node_id: str) -> bool:
        """Whether it may be killed with -9 now."""
        return not self.kills_forget or self.may_lose(node_id)

    def lose(self, node_id: str) -> int:
        """Count the node as lost; gives what `whole` wants to see. Ask `may_lose` before."""
        assert self.may_lose(node_id), f"{node_id} must not lose its memory beside {self.lost}"
        self._count += 1
        self._lost[node_id] = self._count
        return self._count

    def whole(self, node_id: str, loss: int) -> bool:
        """The node is whole again, unless it has lost its memory once more since that loss."""
        if self._lost.get(node_id) != loss:
            return False
        del self._lost[node_id]
        return True
