"""The connections between nodes, each through a proxy of ours that can fail like a network.

Every node has a door: a port of ours that stands for its Raft port in everybody's settings, so that
it does not matter who dials whom, or from where a node knows the address. Who dials is read from
the greeting, the first frame of a connection (see `node/raft/session.py`).

A pair of nodes has two directions, and each can be silenced by itself: bytes that are on the way
then wait, as a network's retransmissions do, and are delivered when it is over, unless a side gave
up meanwhile. While one direction is silent no new connection comes about, because a TCP handshake
needs both.

Bounds: a greeting has `GREETING_S` to arrive and `_GREETING_BYTES_MAX`. A silenced direction holds
one chunk and what the stream's and the kernel's buffers take; then the sender's own queue fills,
which is what is to be tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Iterable, Mapping
from itertools import permutations

import cbor2

from cluster.topology import HOST

GREETING_S = 3.0

_GREETING_BYTES_MAX = 1024
_LENGTH = struct.Struct(">I")
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


class Door:
    """The proxy in front of one node. `ways` are all directions of the cluster."""

    def __init__(self, node_id: str, port: int, ways: Mapping[tuple[str, str], Way]) -> None:
        self._node_id = node_id
        self._port = port
        self._ways = ways
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], str] = {}

    async def open(self) -> str:
        """Listen on a port that the system chooses; the node's address for everybody."""
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return f"{HOST}:{port}"

    async def close(self) -> None:
        """Let nobody in any more, and break what is there."""
        if self._server is not None:
            self._server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def reset(self, nodes: set[str]) -> None:
        """Break the connections that begin or end at one of these nodes."""
        for connection, dialler in self._connections.items():
            if self._node_id in nodes or dialler in nodes:
                connection.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = ""
        # Only `reset` and `close` cancel, and both want just the end of this connection.
        ends = (asyncio.CancelledError, OSError, TimeoutError, ValueError, cbor2.CBORError)
        with contextlib.suppress(*ends):
            async with asyncio.timeout(GREETING_S):
                greeting = await _greeting(reader)
            dialler = self._dialler(greeting)
            self._connections[task] = dialler
            await self._carry(dialler, greeting, reader, writer)
        del self._connections[task]
        writer.transport.abort()

    def _dialler(self, greeting: bytes) -> str:
        """The node that greets. Raises ValueError for a stranger."""
        fields = cbor2.loads(greeting[_LENGTH.size :])
        for field in fields if isinstance(fields, list) else ():
            if isinstance(field, str) and (field, self._node_id) in self._ways:
                return field
        raise ValueError("nobody that we know")

    async def _carry(
        self,
        dialler: str,
        greeting: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        there, back = self._ways[dialler, self._node_id], self._ways[self._node_id, dialler]
        for way in (there, back):
            await way.wait_open()
        far_reader, far_writer = await asyncio.open_connection(HOST, self._port)
        far_writer.write(greeting)
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


async def _greeting(reader: asyncio.StreamReader) -> bytes:
    """The first frame, with its length. Raises ValueError if it is none, or too long."""
    try:
        head = await reader.readexactly(_LENGTH.size)
        (length,) = _LENGTH.unpack(head)
        if length > _GREETING_BYTES_MAX:
            raise ValueError("too long for a greeting")
        return head + await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise ValueError("no greeting") from error


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
    """All doors and directions of a cluster, given the nodes' own Raft ports."""

    def __init__(self, raft_ports: Mapping[str, int]) -> None:
        self._ways = {pair: Way() for pair in permutations(raft_ports, 2)}
        self._doors = {name: Door(name, port, self._ways) for name, port in raft_ports.items()}

    async def start(self) -> dict[str, str]:
        """Listen; the address at which each node is reached."""
        return {name: await door.open() for name, door in self._doors.items()}

    async def stop(self) -> None:
        """Close everything."""
        await asyncio.gather(*(door.close() for door in self._doors.values()))

    def ways(self, senders: Iterable[str], receivers: Iterable[str]) -> list[Way]:
        """The directions from each sender to each receiver."""
        return [self._ways[one, other] for one in senders for other in receivers if one != other]

    def reset(self, nodes: Iterable[str]) -> None:
        """Break all connections of these nodes."""
        chosen = set(nodes)
        for door in self._doors.values():
            door.reset(chosen)

    def connected(self, one: str, other: str) -> bool:
        """Whether both directions between two nodes are open."""
        return not (self._ways[one, other].silent or self._ways[other, one].silent)
