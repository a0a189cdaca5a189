"""Time in which this node was not run counts against nobody.

A process may stand still for a while: the machine has no time for it, it is stopped, its virtual
machine moves. When it goes on, its timers are due at once, and what the others have said meanwhile
has yet to be read. By the clock they were silent, and yet it is this node that did not listen. If
it then doubted its leader, or as a leader its followers, every such pause would cost an election,
in which nobody serves: of all times when the machine has no time to spare.

So silence is measured in the time that this node has lived through. It is looked at every 20 ms;
of what passes between two looks at most `_COUNTED_S` counts, and the rest is excused. Some of it
always counts, so that nodes which are seldom run still replace a leader that is gone, only later.
Nobody is excused beyond the present: something of theirs may have been read before this is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from node.raft.library import now

_COUNTED_S = 0.1


class Attention:
    """Notices that this node was not run, and tells each of `excuses` for how many seconds."""

    def __init__(self, *excuses: Callable[[float], None]) -> None:
        self._excuses = excuses
        self._looked_at = now()

    def look(self) -> None:
        """To be called often, and before anybody's silence is judged."""
        moment = now()
        missed_s = moment - self._looked_at - _COUNTED_S
        self._looked_at = moment
        if missed_s > 0:
            for excuse in self._excuses:
                excuse(missed_s)

    def first(self, listen: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
        """The same way to take a message, but look first."""

        def looking(peer: str, message: Any) -> None:
            self.look()
            listen(peer, message)

        return looking
