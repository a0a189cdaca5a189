"""The node as a whole: the only place that names concrete classes and puts them together.

    start   lock the directory, take a new incarnation, load the files, open the raft port, start
            the persistence worker, open the HTTP port. Nothing is said before all is loaded.
    run     the parts drive themselves; a housekeeper refreshes what is too dear to ask each time.
    stop    take no more requests and finish the running ones, hand leadership over, close the raft
            port, write the last cycle and the log behind it, and only then the clean mark.

Stopping is never leaving: nothing is wiped, and the node is still a member when it comes back.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from node import __version__
from node.api.limits import ApiLimits
from node.api.server import ApiServer
from node.config.options import Config
from node.config.values import Address
from node.core import commands
from node.errors import ExesdbError
from node.identity import Identity
from node.override import Override
from node.persistence.directory import DataDirectory
from node.persistence.loader import LoadedState, load_state
from node.persistence.tail import Tail
from node.persistence.worker import Worker, WorkerSettings
from node.raft.durability import Durability, FlushUpTo
from node.raft.flush import Flushes
from node.raft.lineage import Lineage, Standing
from node.raft.ports import Network, RaftSettings
from node.raft.replica import Replica
from node.raft.retention import Retention
from node.raft.session import Identity as SessionIdentity
from node.raft.transport import Transport

log = logging.getLogger(__name__)

HAND_OVER_MS = 1000
FINISH_S = 2.0
HOUSEKEEPING_S = 0.05

# Most of what a node allocates are bytes, which the collector does not look at. What it does look
# at (streams, lists) only ever grows, so it is looked at rarely.
GC_THRESHOLDS = (50_000, 50, 100)
FREEZE_STREAMS = 10_000


@dataclass(frozen=True)
class World:
    """What a node meets outside of itself; a simulation puts others in these places.

    `network` makes the sessions with the peers, `api` the way in for clients. `clock` is monotonic,
    in seconds; `chance` spreads the elections.
    """

    network: Callable[[RaftSettings, SessionIdentity], Network] = Transport
    api: Callable[..., ApiServer] = ApiServer
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], random.Random] = random.Random


class Info:
    """What `GET /v1/info` tells of this node."""

    def __init__(
        self,
        config: Config,
        lineage: Callable[[], Mapping[str, Any]],
        persistence: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.lineage = lineage
        self._persistence = persistence
        self.node_id = config.node_id
        self.version = __version__
        self._config = config

    def config(self) -> Mapping[str, Any]:
        """Every setting with its value and source, as the node goes by it now."""
        described = self._config.described()
        interval, now = described["persistence_interval"], self._persistence()["interval_ms"]
        if interval["value"] != now:
            interval |= {"value": now, "source": "PUT /v1/persistence"}
        return described


class Service:
    """One node, from start to stop.

    `again` is set when the node has to stop and start anew, from what its disk then says.
    """

    def __init__(self, config: Config, world: World | None = None) -> None:
        self.again = asyncio.Event()
        self._config = config
        self._world = world or World()
        self._overloaded = False
        self._tail: Tail | None = None
        self._frozen_streams = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bring the node up. Raises `OSError` and the faults of persistence where it cannot."""
        config = self._config
        self._directory = DataDirectory(config.data_dir)
        try:
            self._identity = Identity(
                self._directory, config.node_id, config.members, config.join, config.tail_dir
            )
            loaded = await self._load()
            self._build(loaded)
            with _opening("raft_address", config.raft_address):
                await self._replica.start()
            await self._worker.start()
            with _opening("http_address", config.http_address):
                await self._api.start(config.http_address.host, config.http_address.port)
        except BaseException:
            if self._tail is not None:
                self._tail.close()
            self._directory.close()
            raise
        self._keep(self._housekeeping())
        self._keep(Retention(self._replica, self._state, _now_us).run())
        log.info("node %s serves http://%s", config.node_id, config.http_advertise_address)

    async def stop(self) -> bool:
        """Take the node down in the order above; True if all that it held is on disk."""
        await self._finish_requests()
        await self._give_up_leadership()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._durability.stop()
        await self._replica.stop()
        written = await self._write_everything()
        self._directory.close()
        log.info("node %s stopped", self._config.node_id)
        return written

    # --- putting together --------------------------------------------------------------------

    async def _load(self) -> LoadedState:
        load = partial(load_state, self._directory, only_copy=self._identity.is_alone)
        loaded = await asyncio.get_running_loop().run_in_executor(None, load)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        return loaded

    def _build(self, loaded: LoadedState) -> None:
        config = self._config
        self._state = loaded.state
        start = self._identity.starting_point(loaded.cut_index, loaded.cut_term, loaded.lost)
        settings = raft_settings(config)
        self._lineage = Lineage(lambda: self._identity.standing, self._given_up)
        me = SessionIdentity(
            config.node_id,
            self._identity.cluster,
            start.incarnation,
            settings.secret,
            self._lineage,
            self._identity.join,
        )
        self._worker = Worker(
            self._state,
            self._directory,
            worker_settings(config),
            self._world.clock,
            self._wait_applied,
            held_from=lambda: self._replica.filling.offered_from,
        )
        self._tail = self._new_tail()
        self._replica = Replica(
            settings,
            self._world.network(settings, me),
            start,
            self._state,
            self._identity,
            lambda: self._overloaded,
            lambda: self._worker.persisted_index,
            self._world.chance(),
            tail=self._tail,
        )
        self._identity.begun(with_tail=self._tail is not None)
        self._replica.open_reigns_with(self._opening)
        flushes = Flushes(self._replica.requests, self._flush_here)
        self._durability = Durability(
            lambda: [self._flush_on(flushes, voter) for voter in self._replica.voters]
        )
        self._api = self._world.api(
            self._replica,
            self._worker,
            flushes.on,
            self._durability.reach,
            self._state,
            Info(config, self._lineage_told, self._worker.status),
            _now_us,
            Override(self._replica, self._worker, self._state, self._identity, self.again.set),
            api_limits(config),
            config.default_durability,
        )
        self._state.on_change = self._changed

    def _new_tail(self) -> Tail | None:
        if not (self._config.persistence_enabled and self._config.tail_enabled):
            return None
        return self._identity.new_tail(self._config.tail_bytes_max, self._worker.hurry)

    def _changed(self, store: str) -> None:
        self._worker.changed(store)
        self._api.arrivals.arrived(store)

    def _given_up(self, newer: Standing) -> None:
        if not self.again.is_set():
            log.critical(
                "this node's lineage was given up for %s: it is quarantined", newer.lineage
            )
            self._identity.quarantine(newer)
            self.again.set()

    def _lineage_told(self) -> Mapping[str, Any]:
        return {
            **self._lineage.standing._asdict(),
            "quarantined": self._identity.quarantined,
            "refused": self._lineage.refused,
        }

    async def _wait_applied(self, index: int, timeout_ms: int) -> None:
        await self._replica.wait_applied(index, timeout_ms)

    async def _flush_here(
        self, stores: Collection[str] | None, index: int, timeout_ms: int
    ) -> Mapping[str, Any]:
        return (await self._worker.force(stores, index, timeout_ms)).entry()

    def _flush_on(self, flushes: Flushes, member: str) -> FlushUpTo:
        here = member == self._config.node_id
        return partial(self._flush_here, None) if here else partial(flushes.on, member, None)

    # --- running -----------------------------------------------------------------------------

    async def _housekeeping(self) -> None:
        while True:
            if self._overloaded != self._worker.overloaded:
                self._overloaded = not self._overloaded
                log.warning("appends are %s", "refused" if self._overloaded else "taken again")
            if self._config.strict_checks:
                self._state.check()
            self._freeze_growth()
            await asyncio.sleep(HOUSEKEEPING_S)

    def _freeze_growth(self) -> None:
        """Take new streams out of the collector's sight: none of them will ever be garbage.

        A full collection over a hundred thousand of them would stop the loop for 0.2 s.
        """
        streams = sum(len(store.stream_list) for store in self._state.stores.values())
        if streams - self._frozen_streams >= FREEZE_STREAMS:
            self._frozen_streams = streams
            gc.collect(1)
            gc.freeze()

    def _opening(self) -> Sequence[bytes]:
        """The default store exists from the start: every leader sees to it first."""
        name = self._config.store_id
        if name in self._state.stores:
            return ()
        return (commands.create_store(name, _now_us()),)

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- stopping ----------------------------------------------------------------------------

    async def _finish_requests(self) -> None:
        """Take no more requests; those that cannot end soon are told that their fate is unknown."""
        stopping = asyncio.ensure_future(self._api.stop())
        await asyncio.wait([stopping], timeout=FINISH_S)
        if not stopping.done():
            self._replica.end_submissions()
        await stopping

    async def _give_up_leadership(self) -> None:
        alone = len(self._replica.voters) < 2
        if self._replica.leads and not alone and not self.again.is_set():
            try:
                await self._replica.transfer_leadership(None, HAND_OVER_MS)
            except ExesdbError as error:
                log.warning("leadership could not be handed over: %s", error)

    async def _write_everything(self) -> bool:
        """The last cycle, the log behind it, and then the mark; True if nothing is missing."""
        written = await self._worker.stop()
        if not self._config.persistence_enabled:
            return True
        closed = self._tail is None or self._tail.close()
        if not (written and closed):
            log.error("not everything could be written: the next start will not trust this stop")
            return False
        try:
            cut = self._worker.persisted_index
            self._identity.leave(cut, self._replica.log_tail(cut))
        except OSError as error:
            log.error("the clean mark could not be written: %s", error)
            return False
        return True


@contextmanager
def _opening(option: str, address: Address) -> Iterator[None]:
    """What goes wrong meanwhile names the option: the system's words may not even name a port."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{option} {address}: {error}") from error


def _now_us() -> int:
    return time.time_ns() // 1000


def raft_settings(config: Config) -> RaftSettings:
    """The replica's settings out of the node's."""
    server_tls, client_tls = _tls(config)
    return RaftSettings(
        node_id=config.node_id,
        raft_address=str(config.raft_address),
        raft_advertise_address=str(config.raft_advertise_address),
        http_address=str(config.http_advertise_address),
        peers={peer.node_id: str(peer.address) for peer in config.peers},
        secret=config.cluster_secret.encode(),
        joins=config.join,
        heartbeat_ms=config.heartbeat_ms,
        election_min_ms=config.election_min_ms,
        election_max_ms=config.election_max_ms,
        leader_fallback_ms=config.leader_fallback_ms,
        proposals_max=config.proposals_max,
        proposal_bytes_max=config.proposal_bytes_max,
        log_tail_entries_max=config.log_tail_entries_max,
        log_tail_bytes_max=config.log_tail_bytes_max,
        memory_only=not config.persistence_enabled,
        peer_queue_bytes_max=config.peer_queue_bytes_max,
        frame_bytes_max=config.frame_bytes_max,
        server_tls=server_tls,
        client_tls=client_tls,
    )


def worker_settings(config: Config) -> WorkerSettings:
    """The persistence worker's settings out of the node's."""
    return WorkerSettings(
        name=config.store_id,
        enabled=config.persistence_enabled,
        interval_ms=config.persistence_interval,
        unpersisted_bytes_max=config.unpersisted_bytes_max,
    )


def api_limits(config: Config) -> ApiLimits:
    """The API's limits out of the node's settings."""
    return ApiLimits(
        body_bytes_max=config.body_bytes_max,
        event_bytes_max=config.event_bytes_max,
        events_per_append_max=config.append_events_max,
        appends_waiting_max=config.proposals_max,
        events_per_page_max=config.page_events_max,
    )


def _tls(config: Config) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """Both sides' contexts: each node shows its certificate, and wants to see the other's."""
    if config.tls_cert is None:
        return None, None
    contexts = []
    for purpose in (ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH):
        context = ssl.create_default_context(purpose, cafile=str(config.tls_ca))
        context.load_cert_chain(str(config.tls_cert), str(config.tls_key or config.tls_cert))
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        contexts.append(context)
    return contexts[0], contexts[1]
