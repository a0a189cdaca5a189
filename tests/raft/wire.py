"""Real sockets for the tests of sessions: a transport on a free port, and a peer made by hand."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import cbor2

from cluster.bench.ports import free_ports
from node.raft.lineage import Lineage, Standing
from node.raft.messages import Message, encode
from node.raft.ports import RaftSettings
from node.raft.session import MAGIC, VERSION, Identity
from node.raft.transport import Transport

SECRET = b"a secret of the cluster"
CLUSTER = "c1"
STANDING = Standing("first", (), founded=True)

_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on at this moment, that no other worker takes (see `conftest`),
    and that was not given out before.
    """
    while (port := free_ports(1)[0]) in _given:
        pass
    _given.add(port)
    return port


async def until(holds: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Wait (real time, bounded) until `holds()`."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event to give
            await asyncio.sleep(0.005)


class Ears:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def connected(self, peer: str, incarnation: int) -> None:
        self.told.append(("connected", peer, incarnation))

    def disconnected(self, peer: str) -> None:
        self.told.append(("disconnected", peer))

    def received(self, peer: str, message: Message) -> None:
        self.told.append((peer, message))

    def batch_done(self) -> None:
        """Nothing to do."""


class Node:
    """A transport that listens, and its ears."""

    def __init__(self, node_id: str, port: int, peers: dict[str, str], **changes: Any) -> None:
        incarnation = changes.pop("incarnation", 1)
        secret = changes.pop("secret", SECRET)
        self.standing: Standing = changes.pop("standing", STANDING)
        self.given_up: list[Standing] = []
        self.port = port
        self.settings = RaftSettings(
            node_id=node_id,
            raft_address=f"127.0.0.1:{port}",
            raft_advertise_address=f"127.0.0.1:{port}",
            http_address="127.0.0.1:1",
            peers=peers,
            secret=secret,
            **changes,
        )
        self.ears = Ears()
        self.lineage = Lineage(lambda: self.standing, self.given_up.append)
        me = Identity(node_id, CLUSTER, incarnation, secret, self.lineage)
        self.transport = Transport(self.settings, me)

    async def __aenter__(self) -> Node:
        await self.transport.start(self.ears)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.transport.stop()
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def pair(**changes: Any) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes, n1 and n2, with a session."""
    ports = {"n1": free_port(), "n2": free_port()}
    nodes = [
        Node(one, ports[one], {other: f"127.0.0.1:{ports[other]}"}, **changes)
        for one, other in (("n1", "n2"), ("n2", "n1"))
    ]
    async with nodes[0] as first, nodes[1] as second:
        await until(lambda: first.ears.told and second.ears.told)
        yield first, second


class Hand:
    """The dialling side of a connection, made by hand; it can lie about everything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.mine: list[Any] = []
        self.theirs: list[Any] = []

    @classmethod
    async def dial(cls, port: int) -> Hand:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def greeting(self, **changes: Any) -> list[Any]:
        """What an honest n2 would say to n1, with these changes."""
        fields = {
            "magic": MAGIC,
            "version": VERSION,
            "cluster": CLUSTER,
            "sender": "n2",
            "receiver": "n1",
            "incarnation": 7,
            "nonce": b"n" * 32,
            "standing": [STANDING.lineage, [], True],
            "seen": 0,
        }
        return list((fields | changes).values())

    def frame(self, payload: bytes) -> None:
        self.raw(struct.pack(">I", len(payload)) + payload)

    def raw(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._writer.write(data)

    def say(self, value: Any) -> None:
        self.frame(cbor2.dumps(value))

    def message(self, message: Message) -> None:
        self.frame(encode(message))

    def together(self, value: Any, message: Message) -> None:
        """Say a value and a message in one piece."""
        payloads = (cbor2.dumps(value), encode(message))
        self.raw(b"".join(struct.pack(">I", len(one)) + one for one in payloads))

    async def hear(self) -> Any:
        """The next frame, decoded; None when the connection is closed."""
        try:
            async with asyncio.timeout(5):
                (length,) = struct.unpack(">I", await self._reader.readexactly(4))
                return cbor2.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def greet(self, **changes: Any) -> bool:
        """Say the greeting; True if the other end answered."""
        self.mine = self.greeting(**changes)
        self.say(self.mine)
        self.theirs = await self.hear() or []
        return bool(self.theirs)

    def prove(self, secret: bytes = SECRET, side: str = "dialler") -> bytes:
        """The proof over both greetings."""
        return hmac.digest(secret, cbor2.dumps([side, self.mine, self.theirs[:-1]]), "sha256")

    async def closed(self) -> bool:
        """Whether the other end closes the connection, within the bound."""
        try:
            async with asyncio.timeout(5):
                while await self._reader.read(65536):
                    pass
                return True
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def __aenter__(self) -> Hand:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
