"""What docker-compose.yml promises beside the nodes' own bounds."""

from __future__ import annotations

import re
from pathlib import Path

from node.api.limits import ApiLimits
from node.persistence.worker import STOP_TIMEOUT_MS
from node.service import HAND_OVER_MS

PROJECT = Path(__file__).resolve().parents[1]


def test_a_container_is_not_killed_before_its_node_gives_up_writing() -> None:
    """A kill in the last cycle leaves what a stop would have written to the tail."""
    text = (PROJECT / "docker-compose.yml").read_text("utf-8")
    [grace_s] = re.findall(r"^  stop_grace_period: (\d+)s$", text, re.MULTILINE)
    longest_s = ApiLimits().stop_s + (HAND_OVER_MS + STOP_TIMEOUT_MS) / 1000 + 5
    assert int(grace_s) > longest_s
