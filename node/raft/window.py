"""How much may be under way to each peer.

The leader sends on without waiting for acks, but no more than `bytes_max` of entries that are not
acknowledged: a slow or dead peer must not make the leader's memory grow, and what is lost with a
connection is sent again at the cost of one window at most.
"""

from __future__ import annotations

from collections import deque


class Window:
    """The entries under way to one peer, as (last index, bytes) of each message."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._under_way: deque[tuple[int, int]] = deque()
        self._bytes = 0
        self._rewound_to = 0
        self._rewound_at = 0.0

    @property
    def open(self) -> bool:
        """Whether more may be sent."""
        return self._bytes < self._bytes_max

    def sent(self, last_index: int, size: int) -> None:
        """A message with entries up to `last_index` left."""
        self._under_way.append((last_index, size))
        self._bytes += size

    def acknowledged(self, index: int) -> None:
        """The peer has verified everything up to `index`."""
        while self._under_way and self._under_way[0][0] <= index:
            self._bytes -= self._under_way.popleft()[1]

    def clear(self) -> None:
        """Nothing that is under way can be counted on any more."""
        self._under_way.clear()
        self._bytes = 0

    def rewind(self, to: int, moment: float, pause_s: float) -> bool:
        """Clear to go on from index `to`; False if that was done less than `pause_s` ago.

        Every message behind the first that did not fit is answered by a reset, too; only the first
        counts, or each would make the leader send everything again.
        """
        if to == self._rewound_to and moment - self._rewound_at < pause_s:
            return False
        self._rewound_to, self._rewound_at = to, moment
        self.clear()
        return True
