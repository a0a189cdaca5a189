"""A locked data directory for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.persistence.directory import DataDirectory
from tests.persistence.failing_disk import FailingDisk


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DataDirectory]:
    with DataDirectory(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def disk() -> FailingDisk:
    return FailingDisk()
