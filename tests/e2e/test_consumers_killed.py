"""Four consumers of one subscription, killed with the nodes under them: everything is judged."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from cluster.chaos import consumers_killed

pytestmark = pytest.mark.e2e


async def test_nothing_is_lost_doubled_or_out_of_order_when_consumers_and_nodes_die(
    tmp_path: Path,
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    async with asyncio.timeout(420):
        result = await consumers_killed.run(consumers_killed.Plan(30.0, seed), tmp_path, print)
    assert not result.judgement.violations, result.judgement.examples
    figures = result.judgement.figures
    assert figures["events"] > 100 and figures["parked"] > 0 and figures["retry"] > 0
    assert result.faults.total() > 5
