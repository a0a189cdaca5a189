"""The load over a WebSocket, against a served API; NATS where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.bench import nats, pipelining
from tests.api.fakes import serving


async def test_the_load_counts_what_was_stored_after_its_warm_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipelining, "WARM_UP_S", 0.05)
    async with serving() as node:
        url = f"http://127.0.0.1:{node.port}"
        found = await pipelining.append(url, "main", under_way=8, batch=3, seconds=0.2)
        stored = node.state.stores["main"].position
        assert 0 < found["events"] < stored and found["events"] % 3 == 0
        assert found["failed"] == 0 and 0 < found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]
        node.state.check()
        caught_up = await pipelining.catch_up(url, "main")
        assert stored <= caught_up["events"] <= node.state.stores["main"].position


def test_without_nats_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(nats.NatsMissing, match="apt-get install nats-server"):
        nats.find_generator(None)
    server = tmp_path / "nats-server"
    server.touch(mode=0o755)
    with pytest.raises(nats.NatsMissing, match="is not a program"):
        nats.find_generator(tmp_path / "none")
    assert nats.find_generator(server) == server
