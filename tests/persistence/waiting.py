"""Waits, in real time and bounded, for what a thread does that has no event to give."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], object], within_s: float = 10) -> None:
    """Return as soon as `holds()`; fail if that takes longer than `within_s`."""
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.001)
