"""The raft port where TLS comes first: connections are let in one by one, as far as there is room.

asyncio's own server begins TLS with whoever connects, as many as they are, and tells of none before
it is through: the bound on strangers would hold for those only that have a certificate.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Coroutine
from ssl import SSLContext, SSLError
from typing import Any

from node.raft.session import Session

log = logging.getLogger(__name__)

_BACKLOG = 100
_TAKE_AGAIN_S = 0.5  # after the system gave no connection: it may have no descriptors left


class Door:
    """Listening sockets. `take` gives the session of a new connection, or None where it must go.

    `ended` is told of a session to which TLS let nobody through, of the host, and why where that is
    known.
    """

    def __init__(
        self,
        tls: SSLContext,
        handshake_s: float,
        take: Callable[[], Session | None],
        ended: Callable[[Session, str, str | None], None],
    ) -> None:
        self._tls = tls
        self._handshake_s = handshake_s
        self._take = take
        self._ended = ended
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, host: str, port: int) -> None:
        """Listen. Raises `OSError` if the address is taken, or none of this machine."""
        loop = asyncio.get_running_loop()
        kind, flags = socket.SOCK_STREAM, socket.AI_PASSIVE
        found = await loop.getaddrinfo(host, port, type=kind, flags=flags)
        try:
            for family, address in dict.fromkeys((one[0], one[4]) for one in found):
                try:
                    listening = socket.create_server(address, family=family, backlog=_BACKLOG)
                except OSError as error:
                    if error.errno != errno.EAFNOSUPPORT:
                        raise
                    continue  # localhost is ::1, too, even where the kernel has no IPv6
                listening.setblocking(False)
                self._sockets.append(listening)
            if not self._sockets:
                raise OSError(errno.EAFNOSUPPORT, f"this machine has no address like {host}")
        except BaseException:
            await self.close()
            raise
        for listening in self._sockets:
            self._keep(self._listen(listening))

    async def close(self) -> None:
        """Listen no more, and end what has not come through TLS yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listening in self._sockets:
            listening.close()
        self._sockets = []

    async def _listen(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:
                log.warning("no connection can be taken: %s", error)
                await asyncio.sleep(_TAKE_AGAIN_S)
                continue
            session = self._take()
            if session is None:
                connection.close()
                await asyncio.sleep(0)  # however many there are, others have their turn
            else:
                self._keep(self._let_in(connection, address[0], session))

    async def _let_in(self, connection: socket.socket, host: str, session: Session) -> None:
        why = None
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: session,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_s,
            )
        except (OSError, TimeoutError) as error:  # nothing, no TLS, or the wrong certificate
            if isinstance(error, SSLError) and error.reason == "WRONG_VERSION_NUMBER":
                why = "it speaks no TLS, and this node does"
        finally:
            if session.transport is None:
                self._ended(session, host, why)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
