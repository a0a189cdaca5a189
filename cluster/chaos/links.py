"""The connections between nodes, each through a proxy of ours that can fail like a network.

Of two nodes the one with the greater id dials (see `node/raft/transport.py`), so there is one proxy
a pair, and it stands in the dialler's `--peer` address. A connection has two directions, and each
can be silenced by itself: bytes that are on the way then wait, as a network's retransmissions do,
and are delivered when it is over, unless a side gave up meanwhile. While one direction is silent no
new connection comes about, because a TCP handshake needs both.

Bounds: a silenced direction holds one chunk and what the stream's and the kernel's buffers take;
then the sender's own queue fills, which is what is to be tested.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from cluster.topology import HOST

_CHUNK_BYTES = 1 << 16


class Way:
    """One direction between two nodes."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self._silences = 0
        self._open = asyncio.Event()
        self._open.set()

    @property
    def silent(self) -> bool:
        """Whether nothing goes this way now."""
        return self._silences > 0

    def silence(self) -> None:
        """Let nothing pass. Several may ask for it; the last one to end it opens the way."""
        self._silences += 1
        self._open.clear()

    def end_silence(self) -> None:
        """Take one `silence` back."""
        self._silences -= 1
        if not self._silences:
            self._open.set()

    async def wait_open(self) -> None:
        """Return when bytes may pass. Has no bound: a partition may last."""
        await self._open.wait()


class Link:
    """The proxy of one pair of nodes."""

    def __init__(self, dialler: str, acceptor: str, port: int) -> None:
        self.dialler = dialler
        self.acceptor = acceptor
        self.ways = {(dialler, acceptor): Way(), (acceptor, dialler): Way()}
        self._target_port = port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Listen on a port that the system chooses; the address for the dialler."""
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return f"{HOST}:{port}"

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        self.reset()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def reset(self) -> None:
        """Break the connections that are there; both sides may dial again."""
        for connection in self._connections:
            connection.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._carry(reader, writer)
        except asyncio.CancelledError:
            # Only `reset` and `stop` cancel, and both want just the end of this connection.
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for way in self.ways.values():
            await way.wait_open()
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self._target_port)
        except OSError:
            return
        there, back = self.ways.values()
        pumps = [
            asyncio.create_task(_pump(reader, far_writer, there)),
            asyncio.create_task(_pump(far_reader, writer, back)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            far_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
    """Carry bytes one way until either side is gone; the news of that is carried like bytes."""
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            if way.delay_s:
                await asyncio.sleep(way.delay_s)
            await way.wait_open()
            writer.write(data)
            await writer.drain()
    await way.wait_open()


class Links:
    """All pairs of a cluster."""

    def __init__(self, raft_ports: dict[str, int]) -> None:
        ids = sorted(raft_ports)
        self._links = [
            Link(dialler, acceptor, raft_ports[acceptor])
            for dialler in ids
            for acceptor in ids
            if dialler > acceptor
        ]
        self._ways = {pair: way for link in self._links for pair, way in link.ways.items()}

    async def start(self) -> dict[tuple[str, str], str]:
        """Listen; the address at which a dialler reaches an acceptor, by (dialler, acceptor)."""
        return {(link.dialler, link.acceptor): await link.start() for link in self._links}

    async def stop(self) -> None:
        """Close everything."""
        await asyncio.gather(*(link.stop() for link in self._links))

    def ways(self, senders: Iterable[str], receivers: Iterable[str]) -> list[Way]:
        """The directions from each sender to each receiver."""
        return [self._ways[one, other] for one in senders for other in receivers if one != other]

    def reset(self, nodes: Iterable[str]) -> None:
        """Break all connections of these nodes."""
        chosen = set(nodes)
        for link in self._links:
            if chosen & {link.dialler, link.acceptor}:
                link.reset()

    def connected(self, one: str, other: str) -> bool:
        """Whether both directions between two nodes are open."""
        return not (self._ways[one, other].silent or self._ways[other, one].silent)
