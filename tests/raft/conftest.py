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
