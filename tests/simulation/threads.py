"""`threading`, for the thread that keeps the tail's segments ready (`node.persistence.tail`).

That thread works in passes, between which it waits to be woken. Here a pass is a callback on the
virtual time, some time after the wake, as slow as the node's disk is. Where the pass would wait,
it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.loop import CURRENT, Died, Life


class _Waits(BaseException):
    """A pass has come to where it waits for the next, at most so long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Event:
    """An event that wakes the thread of the node it belongs to."""

    def set(self) -> None:
        thread = _thread()
        if thread is not None and not thread.running:
            thread.soon()

    def clear(self) -> None:
        """The thread looks at everything in each pass."""

    def wait(self, timeout_s: float) -> bool:
        thread = _thread()
        assert thread is not None
        if thread.running:
            raise _Waits(timeout_s)
        return thread.served_within(timeout_s)


class Thread:
    """The thread of one life of a node."""

    def __init__(self, target: Callable[[], None], **_: Any) -> None:
        self.running = False
        self.ident: int | None = None
        self._target = target
        self._life: Any = CURRENT.get()
        self._due = False

    def start(self) -> None:
        self._life.tail_thread, self.ident = self, 1
        self.soon()

    def join(self, timeout_s: float) -> None:
        """It has ended as soon as nobody calls it any more."""

    def is_alive(self) -> bool:
        return False

    def soon(self) -> None:
        """Let it work as soon as the disk lets it."""
        if not self._due:
            self._due = True
            self._life.node.loop.call_later(self._life.tail_pass_s(), self._work)

    def served_within(self, timeout_s: float) -> bool:
        """Somebody waits for what it makes; without waiting, or not at all."""
        if self._life.tail_pass_s() > timeout_s:
            return False
        self._pass()
        return True

    def _work(self) -> None:
        if self._life.alive:
            self._pass()

    def _pass(self) -> None:
        self.running, self._due = True, False
        try:
            self._target()
        except _Waits as waits:
            self._life.node.loop.call_later(waits.seconds, self._work)
        except Died:
            pass
        finally:
            self.running = False


def _thread() -> Thread | None:
    life: Life | None = CURRENT.get()
    return getattr(life, "tail_thread", None)
