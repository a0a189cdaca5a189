"""When followers are told that the commit index has moved.

Usually the next entry tells them for nothing. If there is none, they are told at once when one of
them waits for it (it answers for commands of its own), and else a moment later. The moment is that
of one commit index: under load the newest one is never told yet, and always soon will be.
"""

from __future__ import annotations

import asyncio

from node.raft.library import Engine

_LATER_S = 0.004  # the next entry, under load, comes sooner


class Announcement:
    """The leader's word on the commit index; `awaited`: a follower waits for the next one."""

    def __init__(self, engine: Engine, node_id: str) -> None:
        self.awaited = False
        self._engine = engine
        self._node_id = node_id
        self._noted: int | None = None  # the commit index that is looked at again later

    def due(self) -> bool:
        """After each turn of a leader: say it if no message did.

        True where nobody else is counted and something is left to commit, at once.
        """
        engine = self._engine
        if not engine.membership.other_voters(self._node_id):
            return engine.journal.last_index > engine.commit_index
        if engine.announced_commit < engine.commit_index:
            if self.awaited:
                engine.announce_commit()
            elif self._noted is None:
                self._look_again()
        self.awaited = False
        return False

    def _look_again(self) -> None:
        self._noted = self._engine.commit_index
        asyncio.get_running_loop().call_later(_LATER_S, self._now, self._noted)

    def _now(self, noted: int) -> None:
        engine = self._engine
        self._noted = None
        if not engine.leads:
            return
        if engine.announced_commit < noted:
            engine.announce_commit()
        elif engine.announced_commit < engine.commit_index:
            self._look_again()
