"""Why there is no session: logged when it changes, and now and then while it lasts.

A peer that cannot be reached is dialled about once a second, and one that is refused dials as
often. The log would be full of one sentence; with nothing, an operator whose names do not resolve,
or whose certificates are of another authority, would see two nodes that are silent.

Bound: `_KEPT_MAX` sentences in `_AGAIN_S`; more are not logged. Whoever can reach the port can say
something else each time, and under another name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_AGAIN_S = 60.0
_KEPT_MAX = 100


class Grievances:
    """What was said of whom, and when."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], float] = {}

    def tell(self, say: Callable[[str], None], whom: str, words: str) -> None:
        """Log a sentence about somebody, with the method of a logger, unless it was lately."""
        moment = asyncio.get_running_loop().time()
        if moment < self._said.get((whom, words), float("-inf")) + _AGAIN_S:
            return
        if len(self._said) >= _KEPT_MAX:
            self._said = {key: at for key, at in self._said.items() if moment < at + _AGAIN_S}
            if len(self._said) >= _KEPT_MAX:
                return
        self._said[whom, words] = moment
        say(words)

    def forget(self, whom: str) -> None:
        """All is well with this one: what comes next is new."""
        for key in [key for key in self._said if key[0] == whom]:
            del self._said[key]
