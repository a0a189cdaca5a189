"""`python -m node`: one node of the event store, until SIGTERM or SIGINT."""

# ruff: noqa: E402   (signals come first: to import the rest takes a second)
from __future__ import annotations

import os
import signal

STOPS = (signal.SIGTERM, signal.SIGINT)

if __name__ == "__main__":
    # Until the node runs there is nothing to stop: a signal ends the process. Without a handler the
    # first process of a container would not even hear it, and be killed when its time is over.
    for number in STOPS:
        signal.signal(number, lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)

import asyncio
import logging
import sys

import uvloop

from node import __version__, logs
from node.config import load_or_exit
from node.config.options import Config
from node.identity import WrongDirectory
from node.persistence.faults import FileFault
from node.service import Service

log = logging.getLogger(__name__)

EXIT_NOT_WRITTEN = 3
START_AGAIN = -1


async def run(config: Config) -> int:
    """Run a node to its end; the exit code of the process."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOPS:
        loop.add_signal_handler(number, stopped.set)
    service = Service(config)
    try:
        await service.start()
    except (OSError, FileFault, WrongDirectory) as error:
        log.error("node %s cannot start: %s", config.node_id, error)
        return 1
    ends = [asyncio.ensure_future(event.wait()) for event in (stopped, service.again)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    written = await service.stop()
    if not written:
        return EXIT_NOT_WRITTEN
    return 0 if stopped.is_set() else START_AGAIN


def main() -> None:
    """Read the configuration, start the logs, run."""
    config = load_or_exit(__version__)
    started = logs.start(config.node_id, config.log_level, config.log_format)
    code = uvloop.run(run(config))
    started.stop()
    if code == EXIT_NOT_WRITTEN:
        # A thread may wait for a disk that does not answer, and would keep the process alive.
        os._exit(code)
    if code == START_AGAIN:
        # The same process, so that whoever supervises it need not know; nothing of it is left over.
        # A signal that comes meanwhile waits until it has a handler again.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        os.execv(sys.executable, sys.orig_argv)
    sys.exit(code)


if __name__ == "__main__":
    main()
