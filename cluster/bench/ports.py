"""Ports that nobody listens on: a measurement must never meet a cluster it did not start."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

from cluster.topology import HOST

_LOWEST, _HIGHEST = 20_000, 32_000
"""Below the range from which Linux takes the ports of outgoing connections."""
_TRIES = 100


def free_ports(count: int) -> list[int]:
    """Return neighbouring ports of loopback, all of them free a moment ago.

    Raises RuntimeError if none were found, which means that something is wrong with the machine.
    """
    for _ in range(_TRIES):
        first = random.randrange(_LOWEST, _HIGHEST)
        ports = list(range(first, first + count))
        if _all_free(ports):
            return ports
    raise RuntimeError(f"no {count} neighbouring free ports on {HOST}")


def _all_free(ports: list[int]) -> bool:
    with ExitStack() as stack:
        for port in ports:
            listener = stack.enter_context(socket.socket())
            try:
                listener.bind((HOST, port))
            except OSError:
                return False
    return True
