"""A load in a process of its own, and the processor time that it and the system spent meanwhile.

A load shares the machine with what it loads, so its own time is told beside that of the system. It
is a module of this package that prints one line of JSON as its last.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.bench.machine import processor_s

LIMIT_S = 300


class Done(NamedTuple):
    """What a load saw, and the processor seconds of the system and of the load with its start."""

    found: dict[str, Any]
    system_s: float
    load_s: float


async def run(pids: Sequence[int], module: str, *words: object) -> Done:
    """Run `module` with these arguments; `pids` are the system's. Raises RuntimeError."""
    command = (sys.executable, "-m", f"cluster.bench.{module}", *map(str, words))
    system_s, load_s = sum(map(processor_s, pids)), children_s()
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    async with asyncio.timeout(LIMIT_S):
        said, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{module} {words[0]} failed with {process.returncode}")
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return Done(found, sum(map(processor_s, pids)) - system_s, children_s() - load_s)


def children_s() -> float:
    """Processor seconds of this process's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
