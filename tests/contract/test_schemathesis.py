"""Requests made from openapi.json, right and wrong ones, against a real node.

Schemathesis reads the document that the node gives, draws requests for every operation in it, and
holds each answer against it: no 500, no status, media type, header or body that is not documented,
and no wrong data accepted. A failure prints the request as a `curl` command, and the seed.

    CONTRACT_SEED      repeat a run (default: drawn)
    CONTRACT_EXAMPLES  requests an operation beside those for each bound (default: 5)
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest

from cluster import topology
from cluster.bench.ports import free_ports
from cluster.supervisor import PROJECT, Supervisor

pytest.importorskip("schemathesis")

HERE = Path(__file__).parent
STORE = "contract"
RUN_S = 900.0  # 2,200 requests; a busy machine takes some minutes

# Streams never end. A plan of recovery restarts the node, and so may one that was drawn.
NOT_CALLED = (
    "GET /v1/stores/{store}/subscribe",
    "GET /v1/stores/{store}/ws",
    "POST /v1/cluster/recovery",
)

# No document can tell what the state will refuse: a version that is not the stream's, an id that
# was used. And nobody has to say who he is.
NOT_CHECKED = ("positive_data_acceptance", "ignored_auth")


@pytest.mark.e2e
async def test_a_node_answers_as_its_document_says(tmp_path: Path):
    seed = int(os.environ.get("CONTRACT_SEED") or random.randrange(2**31))
    print(f"CONTRACT_SEED={seed}")
    ports = free_ports(2)
    layout = topology.local(
        1, tmp_path, http_port=ports[0], raft_port=ports[1], options=(f"--store-id={STORE}",)
    )
    async with Supervisor(layout, log_dir=tmp_path / "logs"):
        code, words = await _schemathesis(layout.urls[0], seed, tmp_path)
    assert code == 0, words


async def _schemathesis(url: str, seed: int, directory: Path) -> tuple[int, str]:
    """Its exit code, and all that it printed. Raises TimeoutError past the bound."""
    excluded = [word for name in NOT_CALLED for word in ("--exclude-name", name)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli"),
        *("--config-file", str(HERE / "schemathesis.toml"), "--no-color"),
        *("run", f"{url}/openapi.json", "--seed", str(seed), *excluded),
        *("--max-examples", os.environ.get("CONTRACT_EXAMPLES") or "5"),
        *("--phases", "coverage,fuzzing", "--warnings", "off"),
        *("--checks", "all", "--exclude-checks", ",".join(NOT_CHECKED)),
        *("--no-shrink", "--continue-on-failure", "--generation-database", "none"),
        *("--request-timeout", "10"),
        cwd=directory,
        env=os.environ
        | {"SCHEMATHESIS_HOOKS": "tests.contract.hooks", "CONTRACT_STORE": STORE}
        | {"PYTHONPATH": str(PROJECT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(RUN_S):
            words, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, words.decode(errors="replace")
