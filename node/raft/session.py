"""One connection to a peer: framing, and proof of who is at the other end.

A frame is a length of four bytes, most significant first, and so many bytes. The first three frames
are the handshake, all CBOR arrays of at most `HELLO_BYTES_MAX` bytes:

    dialler  -> acceptor   greeting
    acceptor -> dialler    [*greeting, proof]
    dialler  -> acceptor   [proof]
    greeting               [magic, version, cluster, from, to, incarnation, nonce, standing, seen]

A proof is an HMAC-SHA256, keyed with the cluster secret, over the prover's side of the connection
and both greetings: it binds both ids, incarnations, nonces and standings (see `lineage`), so it can
be neither replayed nor used for another pair of nodes. `seen` is the latest incarnation in which
the other end has been seen: a process that is not the newest under its id learns it by that.
Neither side looks at anything else before it has seen the other's proof. Who is refused after that
(an old incarnation, another lineage) is refused by both sides: the dialler's proof is sent before
it hangs up. After the handshake every frame is a message (see `messages`). Without TLS the messages
themselves are neither secret nor signed: the raft port belongs on a private network.

A node that joins does not know its cluster and lineage yet. It says so by an empty name, and takes
both over from the first member that proves to know the secret. Two such nodes refuse one another.

A frame that is too long or no message closes the connection, and with it nothing else.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import cbor2

from node.raft import plain
from node.raft.lineage import Lineage, Standing, decoded
from node.raft.messages import MalformedMessage, Message, decode

MAGIC = "exesdb-raft"
VERSION = 4
HELLO_BYTES_MAX = 1024
NONCE_BYTES = 32
JOINING = ""
INCARNATION_BITS = 42  # milliseconds until the year 2109
_LENGTH = struct.Struct(">I")
_TLS_BEGINS = b"\x16\x03"  # as the length of a frame it is over the limit
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}").fullmatch


class Identity(NamedTuple):
    """Who this node is to its peers.

    A node that joins has no `cluster` yet. It calls itself `JOINING` in its greeting, and `join`
    makes durable what the first member that has proven itself says of the cluster and its lineage.
    """

    node_id: str
    cluster: str
    incarnation: int
    secret: bytes
    lineage: Lineage
    join: Callable[[str, Standing], None] | None = None

    @property
    def joins(self) -> bool:
        """Whether this node does not know its cluster yet, and takes it over from a member."""
        return self.cluster == JOINING


class SessionOwner(Protocol):
    """The transport, as a session sees it."""

    def incarnation(self, peer: str) -> int:
        """The latest incarnation in which the peer has been seen; 0 if never."""

    def established(self, session: Session) -> str | None:
        """The peer is proven; a text refuses it, and says why."""

    def came_up(self, session: Session) -> None:
        """An established session can be written to; before its first message is received."""

    def received(self, session: Session, message: Message) -> None:
        """A message of an established session."""

    def batch_done(self) -> None:
        """All messages that arrived together have been given to `received`."""

    def lost(self, session: Session) -> None:
        """The connection is gone, established or not."""

    def refuses(self, session: Session, why: str) -> None:
        """The session is about to close the connection, because of the other end."""


OTHER_CLUSTER = "it is of another cluster: it was started with other peers, or under another id"


class HandshakeRefused(ValueError):
    """The other end did not prove to be the peer that it should be."""


class _Unwelcome(Exception):
    """The peer is who it says, and yet there must be no session with it."""


def _is_name(value: object) -> bool:
    """Whether it may be a node's id: nothing else of a stranger's ever stands in a log line."""
    return isinstance(value, str) and _NAME(value) is not None


def _is_incarnation(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**INCARNATION_BITS


class Session(asyncio.Protocol):
    """One connection, dialled by us (`expected_peer` is given) or accepted (None)."""

    def __init__(
        self,
        owner: SessionOwner,
        identity: Identity,
        expected_peer: str | None,
        frame_bytes_max: int,
    ) -> None:
        self.peer = expected_peer or ""
        self.peer_incarnation = 0
        self.peer_has_seen = 0  # of this node, the latest incarnation
        self.peer_cluster = JOINING
        self.peer_standing = Standing("", (), founded=False)
        self.up = False
        self.bytes_counter = ""
        self.heard_at = 0.0
        self.transport: asyncio.Transport | None = None
        self._unwanted = False
        self._owner = owner
        self._identity = identity
        self.dialled = expected_peer is not None
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._own_greeting: list[Any] = []
        self._peer_greeting: list[Any] = []

    # --- the connection ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake if we dialled."""
        # uvloop's transports are no subclasses of asyncio.Transport, only like it.
        self.transport = cast(asyncio.Transport, transport)
        self.heard_at = asyncio.get_running_loop().time()
        if self._unwanted:
            self.close()
        elif self.dialled:
            self._own_greeting = self._greeting(self.peer)
            self.write(cbor2.dumps(self._own_greeting))

    def data_received(self, data: bytes) -> None:
        """Take the frames that are complete."""
        self.heard_at = asyncio.get_running_loop().time()
        self._buffer += data
        try:
            self._take_frames()
        except (MalformedMessage, HandshakeRefused) as error:
            self._owner.refuses(self, str(error))
            self.close()
        except _Unwelcome as error:
            self._owner.refuses(self, str(error))
            self._hang_up()
        if self.up:
            self._owner.batch_done()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner."""
        self.transport = None
        self._owner.lost(self)

    def write(self, payload: bytes) -> None:
        """Queue one frame."""
        if self.transport is not None:
            self.transport.writelines((_LENGTH.pack(len(payload)), payload))

    @property
    def queued_bytes(self) -> int:
        """How much waits to be sent."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    @property
    def address(self) -> str:
        """The other end's host, for the log: its port is another one each time."""
        peer = self.transport.get_extra_info("peername") if self.transport else None
        return str(peer[0]) if peer else "an unknown address"

    def close(self) -> None:
        """Drop the connection and what is queued; before it is made, drop it when it is."""
        self._unwanted = True
        if self.transport is not None:
            self.transport.abort()

    def _hang_up(self) -> None:
        """Close once our proof, which tells the peer why, is on its way."""
        if self.transport is not None:
            self.transport.close()

    def _take_frames(self) -> None:
        buffer, at = self._buffer, 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > (self._frame_bytes_max if self.up else HELLO_BYTES_MAX):
                if not self.up and buffer.startswith(_TLS_BEGINS):
                    raise HandshakeRefused("it speaks TLS, and this node does not")
                raise MalformedMessage(f"a frame of {length} bytes is over the limit")
            end = at + _LENGTH.size + length
            if len(buffer) < end:
                break
            frame = bytes(memoryview(buffer)[at + _LENGTH.size : end])
            at = end
            if self.up:
                self._owner.received(self, decode(frame))
            else:
                self._handshake(frame)
            if self.transport is None or self.transport.is_closing():
                break
        if at:
            del buffer[:at]

    # --- the handshake -----------------------------------------------------------------------

    def _handshake(self, frame: bytes) -> None:
        try:
            fields = plain.loads(frame)
        except plain.NotPlain as error:
            raise HandshakeRefused(str(error)) from error
        if not isinstance(fields, list):
            raise HandshakeRefused("not a greeting")
        if self.dialled:
            self._finish_as_dialler(fields)
        elif not self._peer_greeting:
            self._answer_as_acceptor(fields)
        else:
            self._finish_as_acceptor(fields)

    def _answer_as_acceptor(self, fields: list[Any]) -> None:
        self._check_greeting(fields)
        self.peer, self.peer_incarnation = fields[3], fields[5]
        if self.peer == self._identity.node_id:
            raise HandshakeRefused("a node of the same name as this one")
        self._peer_greeting = fields
        self._own_greeting = self._greeting(self.peer)
        self.write(cbor2.dumps([*self._own_greeting, self._proof("acceptor")]))

    def _finish_as_dialler(self, fields: list[Any]) -> None:
        greeting, proof = fields[:-1], fields[-1] if fields else b""
        self._check_greeting(greeting)
        if greeting[3] != self.peer:
            raise HandshakeRefused(f"{greeting[3]!r} answers where {self.peer!r} should")
        self._peer_greeting, self.peer_incarnation = greeting, greeting[5]
        self._check_proof("acceptor", proof)
        self.write(cbor2.dumps([self._proof("dialler")]))
        self._establish()

    def _finish_as_acceptor(self, fields: list[Any]) -> None:
        self._check_proof("dialler", fields[0] if len(fields) == 1 else b"")
        self._establish()

    def _establish(self) -> None:
        self.peer_cluster = self._peer_greeting[2]
        self.peer_standing = decoded(self._peer_greeting[7])
        self.peer_has_seen = self._peer_greeting[8]
        refusal = self._owner.established(self)
        if refusal is not None:
            raise _Unwelcome(refusal)
        self.up = True
        self.bytes_counter = f"bytes_sent_to_{self.peer}"
        self._owner.came_up(self)

    def _greeting(self, peer: str) -> list[Any]:
        me, standing = self._identity, self._identity.lineage.standing
        return [
            MAGIC,
            VERSION,
            me.cluster,
            me.node_id,
            peer,
            me.incarnation,
            secrets.token_bytes(NONCE_BYTES),
            [standing.lineage, list(standing.ancestry), standing.founded],
            self._owner.incarnation(peer),
        ]

    def _check_greeting(self, fields: list[Any]) -> None:
        if len(fields) != 9 or fields[:2] != [MAGIC, VERSION]:
            raise HandshakeRefused("not a greeting of this version")
        _, _, cluster, sender, receiver, incarnation, nonce, standing, seen = fields
        joining = [self._identity.joins, cluster == JOINING].count(True)
        if joining == 2 or (not joining and cluster != self._identity.cluster):
            raise HandshakeRefused(OTHER_CLUSTER)
        if not _is_name(sender):
            raise HandshakeRefused("a greeting of nobody")
        if receiver != self._identity.node_id:
            raise HandshakeRefused(f"a greeting for {receiver if _is_name(receiver) else 'nobody'}")
        if not (_is_incarnation(incarnation) and _is_incarnation(seen)):
            raise HandshakeRefused("no incarnation")
        if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
            raise HandshakeRefused("no nonce")
        try:
            decoded(standing)
        except ValueError as error:
            raise HandshakeRefused(str(error)) from error

    def _proof(self, side: str) -> bytes:
        mine, theirs = self._own_greeting, self._peer_greeting
        greetings = [mine, theirs] if self.dialled else [theirs, mine]
        return hmac.digest(self._identity.secret, cbor2.dumps([side, *greetings]), "sha256")

    def _check_proof(self, side: str, proof: object) -> None:
        if not isinstance(proof, bytes) or not hmac.compare_digest(proof, self._proof(side)):
            raise HandshakeRefused(f"{self.peer} does not know the cluster secret")
