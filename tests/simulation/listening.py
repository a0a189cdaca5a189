"""Listening to what the product logs while a simulation runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Listener(logging.Handler):
    """What is logged with an exception is a defect, wherever it was caught."""

    def __init__(self, fail: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._fail = fail

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self._fail(f"{record.name}: {record.getMessage()}: {record.exc_info[1]!r}")


@contextmanager
def listening(fail: Callable[[str], None]) -> Iterator[None]:
    """Count what is logged with an exception, until the end of the block."""
    ours, theirs, handler = (
        logging.getLogger("node"),
        logging.getLogger("pysyncobj"),
        _Listener(fail),
    )
    before = ours.level, ours.propagate, theirs.level
    ours.addHandler(handler)
    ours.setLevel(logging.ERROR)
    ours.propagate = False
    theirs.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before[0])
        ours.propagate = before[1]
        theirs.setLevel(before[2])
