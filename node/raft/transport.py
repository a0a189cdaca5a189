"""One live session with every peer.

Of two nodes the one with the greater id dials; the other one does only after a while without a
session, because it may be the only one that knows the other's address. A new session takes the
place of an older one, unless it is of an older incarnation. Whoever proves to know the secret of
this cluster is heard: a node whose membership is out of date must be, to learn the newer one. What
is sent to a peer without a session, or whose queue is full, is dropped and `send` says so: Raft
says everything again that matters.

Bounds: connections that have not yet proven who they are (`strangers_max`, each for `handshake_ms`
and a kilobyte a frame), bytes queued to a peer (`peer_queue_bytes_max`), frame size
(`frame_bytes_max`), silence (`silence_ms`, then the session is closed and dialled again).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Mapping

from node.raft.door import Door
from node.raft.grievances import Grievances
from node.raft.messages import Message, encode
from node.raft.ports import Listener, RaftSettings
from node.raft.session import JOINING, OTHER_CLUSTER, Identity, Session

log = logging.getLogger(__name__)

_DIAL_AGAIN_S = 0.1
_DIAL_AGAIN_MAX_S = 1.0
_PATIENCE_S = 2.0
_WATCH_S = 0.5


class Transport:
    """Sessions with all peers of one node."""

    def __init__(self, settings: RaftSettings, identity: Identity) -> None:
        self.counters: Counter[str] = Counter()
        self._settings = settings
        self._identity = identity
        self._listener: Listener | None = None
        self._sessions: dict[str, Session] = {}
        self._strangers: dict[Session, asyncio.TimerHandle] = {}  # each until its time is up
        self._incarnations: dict[str, int] = {}
        self._addresses: dict[str, str] = {}
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None
        self._door: Door | None = None
        self._last_encoded: tuple[Message, bytes] | None = None
        self._grievances = Grievances()
        self._about_strangers = Grievances()  # what they can fill, peers do not need

    async def start(self, listener: Listener) -> None:
        """Bind the raft address and begin to dial. Raises `OSError` if the address is taken."""
        self._listener = listener
        host, port = split_address(self._settings.raft_address)
        loop = asyncio.get_running_loop()
        tls = self._settings.server_tls
        if tls is None:
            self._server = await loop.create_server(self._accept, host, port)
        else:
            limit_s = self._settings.handshake_ms / 1000
            self._door = Door(tls, limit_s, self._admit, self._never_came)
            await self._door.open(host, port)
        self._watching = asyncio.create_task(self._watch())
        self.reach(self._settings.peers)

    async def stop(self) -> None:
        """Close everything. What was sent before has been handed to the kernel."""
        self._listener = None
        tasks = [*self._dialling.values(), *([self._watching] if self._watching else [])]
        self._dialling = {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        if self._door is not None:
            await self._door.close()
        for session in [*self._sessions.values(), *self._strangers]:
            if session.transport is not None:
                session.transport.close()

    def reach(self, addresses: Mapping[str, str]) -> None:
        """From now on dial these nodes (raft addresses by id) and no others.

        Sessions that are up stay: a node that is no member any more falls silent by itself.
        """
        wanted = {one: at for one, at in addresses.items() if one != self._identity.node_id}
        for peer in [one for one in self._dialling if wanted.get(one) != self._addresses.get(one)]:
            self._dialling.pop(peer).cancel()
        self._addresses = wanted
        for peer in wanted.keys() - self._dialling.keys():
            self._dialling[peer] = asyncio.create_task(self._dial(peer))

    def send(self, peer: str, message: Message) -> bool:
        """Queue a message; False if there is no session or its queue is full."""
        session = self._sessions.get(peer)
        if session is None:
            return False
        encoded = self._encode(message)
        if session.queued_bytes + len(encoded) > self._settings.peer_queue_bytes_max:
            self.counters["messages_dropped"] += 1
            return False
        session.write(encoded)
        self.counters["messages_sent"] += 1
        self.counters["bytes_sent"] += len(encoded)
        self.counters[session.bytes_counter] += len(encoded)
        return True

    def is_connected(self, peer: str) -> bool:
        """Whether there is a session with the peer."""
        return peer in self._sessions

    def incarnation(self, peer: str) -> int:
        """The latest incarnation in which the peer has been seen; 0 if never."""
        return self._incarnations.get(peer, 0)

    def _encode(self, message: Message) -> bytes:
        # The leader sends one and the same object to every follower that is up to date.
        if self._last_encoded is None or self._last_encoded[0] is not message:
            self._last_encoded = message, encode(message)
        return self._last_encoded[1]

    # --- what sessions tell ------------------------------------------------------------------

    def established(self, session: Session) -> str | None:
        """Let a proven session take its place, or say why it must not."""
        peer = session.peer
        if self._listener is None:
            return "this node is stopping"
        if session.peer_incarnation < self.incarnation(peer):
            return (
                "it has been seen in a later incarnation: another process runs under its id, or "
                "its clock went back when its data directory was lost"
            )
        if session.peer_has_seen > self._identity.incarnation:
            words = (
                "it has seen this node in a later incarnation, and refuses it: another process "
                "runs under its id, or the clock went back when the data directory was lost"
            )
            return self._identity.lineage.refuses(peer, words)
        refusal = self._of_one_history(session)
        if refusal is not None:
            self.counters["lineages_refused"] += 1
            return refusal
        self._no_stranger(session)
        older = self._sessions.pop(peer, None)
        if older is not None:
            self._listener.disconnected(peer)
            older.close()
        self._sessions[peer] = session
        self._incarnations[peer] = session.peer_incarnation
        return None

    def _of_one_history(self, session: Session) -> str | None:
        """Why the peer's cluster or lineage keeps it out. A node that joins takes over both."""
        if session.peer_cluster == JOINING:
            return None
        me = self._identity
        if me.joins and me.join is not None:
            if why := me.lineage.not_to_be_joined(session.peer, session.peer_standing):
                return why
            me.join(session.peer_cluster, session.peer_standing)
            self._identity = me = me._replace(cluster=session.peer_cluster)
        if session.peer_cluster != me.cluster:
            return OTHER_CLUSTER
        return me.lineage.met(session.peer, session.peer_standing)

    def came_up(self, session: Session) -> None:
        """Let the listener speak through a session that is in its place."""
        log.info("connected with %s, incarnation %d", session.peer, session.peer_incarnation)
        for grievances in (self._grievances, self._about_strangers):
            grievances.forget(session.peer)
        if self._listener is not None:
            self._listener.connected(session.peer, session.peer_incarnation)

    def received(self, session: Session, message: Message) -> None:
        """Pass on a message of a session that is in its place."""
        self.counters["messages_received"] += 1
        if self._listener is not None and self._sessions.get(session.peer) is session:
            self._listener.received(session.peer, message)

    def refuses(self, session: Session, why: str) -> None:
        """Say so, but not each time."""
        if session.up:
            self.counters["connections_refused"] += 1  # `lost` counts those that never were
        whom = session.peer or session.address
        expected = session.up or session.dialled
        grievances = self._grievances if expected else self._about_strangers
        grievances.tell(log.warning, whom, f"closing the connection with {whom}: {why}")

    def batch_done(self) -> None:
        """Pass on."""
        if self._listener is not None:
            self._listener.batch_done()

    def lost(self, session: Session) -> None:
        """Take a session out of its place."""
        self._no_stranger(session)
        if not session.up:
            self.counters["connections_refused"] += 1
        if self._sessions.get(session.peer) is session:
            del self._sessions[session.peer]
            if self._listener is not None:
                log.info("lost the connection with %s", session.peer)
                self._listener.disconnected(session.peer)

    # --- making connections ------------------------------------------------------------------

    def _accept(self) -> Session:
        session = self._admit()
        if session is None:
            session = self._session(None)
            session.close()
        return session

    def _admit(self) -> Session | None:
        """The session of a new connection; None if there are too many strangers."""
        if len(self._strangers) >= self._settings.strangers_max:
            return None
        session = self._session(None)
        self._watch_stranger(session)
        return session

    def _never_came(self, session: Session, host: str, why: str | None) -> None:
        """TLS let nobody through."""
        self.counters["connections_refused"] += 1
        if why is not None:
            words = f"closing the connection with {host}: {why}"
            self._about_strangers.tell(log.warning, host, words)
        self._close_stranger(session)

    def _watch_stranger(self, session: Session) -> None:
        """Give a connection until the end of `handshake_ms` to become a session."""
        self._strangers[session] = asyncio.get_running_loop().call_later(
            self._settings.handshake_ms / 1000, self._close_stranger, session
        )

    def _close_stranger(self, session: Session) -> None:
        if self._no_stranger(session):
            session.close()

    def _no_stranger(self, session: Session) -> bool:
        """Strike a connection off the strangers, and keep nothing of it; whether it was one."""
        timer = self._strangers.pop(session, None)
        if timer is not None:
            timer.cancel()  # which would keep the session until its time
        return timer is not None

    def _session(self, peer: str | None) -> Session:
        return Session(self, self._identity, peer, self._settings.frame_bytes_max)

    async def _dial(self, peer: str) -> None:
        begins = self._identity.node_id > peer
        pause_s = shortest_s = _DIAL_AGAIN_S if begins else _PATIENCE_S
        dialled: Session | None = None
        while True:
            if peer in self._sessions:
                pause_s = shortest_s
            elif begins and dialled not in self._strangers:
                # One that is still in its handshake becomes the session; another would displace it.
                dialled = await self._dial_once(peer)
                pause_s = min(pause_s * 1.5, max(shortest_s, _DIAL_AGAIN_MAX_S))
            begins = True
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))

    async def _dial_once(self, peer: str) -> Session:
        host, port = split_address(self._addresses[peer])
        session = self._session(peer)
        self._watch_stranger(session)
        try:
            # Not `wait_for`: in Python 3.11 it forgets a cancellation that comes together with a
            # result, and this goes on for ever when it is to stop.
            async with asyncio.timeout(self._settings.handshake_ms / 1000):
                await asyncio.get_running_loop().create_connection(
                    lambda: session, host, port, ssl=self._settings.client_tls
                )
        except (OSError, TimeoutError, ValueError, OverflowError) as error:  # or no such name, port
            late = isinstance(error, TimeoutError)
            why = str(error) or ("no answer in time" if late else "it hangs up where TLS begins")
            words = f"cannot reach {peer} at {self._addresses.get(peer)}: {why}"
            self._grievances.tell(log.info, peer, words)
        finally:
            if session.transport is None:
                self._close_stranger(session)  # it became none, and keeps no place of others
        return session

    async def _watch(self) -> None:
        """Close sessions that have gone silent: a dead machine closes nothing by itself."""
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(_WATCH_S)
            if loop.time() - before > 2 * _WATCH_S:
                continue  # it is this node that was not run: what they said is yet to be read
            for session in list(self._sessions.values()):
                if (loop.time() - session.heard_at) * 1000 > self._settings.silence_ms:
                    log.warning("%s is silent; closing the connection", session.peer)
                    session.close()


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 host stands in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
