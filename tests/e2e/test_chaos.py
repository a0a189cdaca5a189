"""A short run of the chaos trial: real nodes, real faults, everything judged."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from cluster.chaos import trial

pytestmark = pytest.mark.e2e


async def test_nothing_is_broken_in_a_short_run(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    plan = trial.Plan(minutes=0.3, seed=seed)
    async with asyncio.timeout(300):
        result = await trial.run(plan, tmp_path, print)
    assert result.violations == []
    assert result.findings.events["acknowledged"] > 100
    assert result.faults.total() > 0
    assert result.shared.figures["deliveries"] > 0
    assert result.findings.snapshots["acknowledged"] > 0
    assert result.findings.removals["removed events"] > 0
