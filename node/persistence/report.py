"""What a force reached, as its caller and its peers are told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForceReport:
    """What a force reached.

    `persisted_index` is the raft index up to which the files of the asked stores are complete, and
    `persisted_position` the sum of their positions on disk. `node_index` is the node's cut, up to
    which a restart gets back to: it is less than `persisted_index` as long as another store's file
    fails. `bytes` counts frames written while the force waited.
    """

    persisted_index: int
    persisted_position: int
    bytes: int
    duration_ms: float
    node_index: int

    def entry(self) -> dict[str, object]:
        """This node's entry in the answer to a flush, also when a peer asked for it."""
        return {
            "persisted_index": self.persisted_index,
            "persisted_position": self.persisted_position,
            "bytes": self.bytes,
            "duration_ms": self.duration_ms,
        }
