"""When to stop trying for a while.

A disk that failed several times in a row will most likely fail again, and each try costs IO and a
line in the log. The breaker is `closed` while things go well, `open` for a pause after too many
failures in a row, and `half_open` once the pause is over: then one try decides.
"""

from __future__ import annotations

from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]
_SEVERITY: tuple[BreakerState, ...] = ("closed", "half_open", "open")


class Breaker:
    """Counts failures in a row. Times are seconds of one monotonic clock, given by the caller."""

    def __init__(self, failures_max: int, pause_s: float) -> None:
        self._failures_max = failures_max
        self._pause_s = pause_s
        self._failures = 0
        self._opened_at: float | None = None

    def state(self, now: float) -> BreakerState:
        """Where the breaker stands."""
        if self._opened_at is None:
            return "closed"
        return "open" if now - self._opened_at < self._pause_s else "half_open"

    def allows(self, now: float) -> bool:
        """Whether a try is due."""
        return self.state(now) != "open"

    def succeeded(self) -> None:
        """A try went well: everything is forgotten."""
        self._failures = 0
        self._opened_at = None

    def failed(self, now: float) -> None:
        """A try failed. From `half_open` (or when forced while open) the pause begins anew."""
        self._failures += 1
        if self._failures >= self._failures_max:
            self._opened_at = now


def worst(states: list[BreakerState]) -> BreakerState:
    """The state to show for many breakers: open before half_open before closed."""
    return max(states, key=_SEVERITY.index, default="closed")
