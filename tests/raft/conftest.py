"""What every test of replication needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _quiet_library() -> Iterator[None]:
    """The library logs every oddity that these tests provoke."""
    logger = logging.getLogger("pysyncobj")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(before)


@pytest.fixture(autouse=True)
def _divergence(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A node that applies another entry than the others ends the process; here, only the test."""
    ended: list[int] = []
    monkeypatch.setattr("node.raft.replica.os._exit", ended.append)
    yield
    assert ended == []
