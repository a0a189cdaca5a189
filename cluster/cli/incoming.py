"""What comes in: a file, or stdin, in parts as they come.

A pipe or a terminal may have nothing to say for long, and a named pipe nobody who writes. It is
waited for on the event loop, and only then read, so that Ctrl-C ends the wait.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator

from cluster.cli.ending import WRONG_USAGE, Failure

STDIN = "-"
WHOLE_BYTES_MAX = 16 * 1024 * 1024
"""Of what is held whole: a node takes no more in a request."""

_READ_BYTES = 256 * 1024


async def whole(file: str) -> bytes:
    """All that a file has. Raises Failure, also where that is too much or has no end."""
    content = bytearray()
    async for part in parts(file):
        content += part
        if len(content) > WHOLE_BYTES_MAX:
            words = f"{file} is longer than {WHOLE_BYTES_MAX:,} bytes"
            raise Failure(words, WRONG_USAGE, "wrong_usage")
    return bytes(content)


async def parts(file: str) -> AsyncIterator[bytes]:
    """What a file has, or stdin. Raises Failure."""
    try:
        number = os.dup(0) if file == STDIN else os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise Failure(str(error), WRONG_USAGE, "wrong_usage") from None
    try:
        regular = stat.S_ISREG(os.fstat(number).st_mode)
        while True:
            if not regular:
                await _readable(number)
            try:
                part = os.read(number, _READ_BYTES)
            except BlockingIOError:  # somebody else has read it
                continue
            except OSError as error:
                words = f"{file}: {error.strerror}"
                raise Failure(words, WRONG_USAGE, "wrong_usage") from None
            if not part:
                return
            yield part
    finally:
        os.close(number)


async def _readable(number: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(number, ready.set)
    except PermissionError:  # what nobody ever waits for, such as /dev/null
        return
    try:
        await ready.wait()
    finally:
        loop.remove_reader(number)
