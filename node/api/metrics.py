"""Metrics: `GET /metrics` in the text format of Prometheus.

Nothing is computed on the way of a request but three additions: a count by route and status, the
sum of the durations, and a bucket of the histogram. Everything else (positions, indexes, backlog)
is looked up when somebody scrapes.

Names begin with `exesdb_`. The replica's numbers appear under their own names; some count, some are
levels, so they are untyped. `_COUNTED` and `_LEVELS` have the words for those that are known here.
A new one there appears without a change here. What counts is shown from the start, as 0: a series
that begins with its first event has no increase for whoever asks for one.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    UntypedMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from node.api.answers import Answer
from node.api.arrivals import Arrivals
from node.api.bodies import BodyReader
from node.api.following import Following
from node.api.ports import Clock, NodeInfo, Replica, Worker
from node.api.routes import Reply, Route
from node.api.subscriptions import status as subscription_status
from node.api.talks import Talks
from node.api.wire import Request
from node.core.state import State

UNMATCHED = "unmatched"

_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 60.0)
_SENT_TO = "bytes_sent_to_"  # and a peer's id, in the names of the replica's counters
_NOT_A_NAME = re.compile(r"[^a-zA-Z0-9_]")

_ENDED = "ended_"  # and an error's code: how submissions end that are not answered with an outcome
_COUNTED = {
    "messages_sent": "Messages sent to peers.",
    "bytes_sent": "Bytes sent to peers.",
    "messages_received": "Messages received from peers.",
    "messages_dropped": "Messages not sent, because a peer's queue was full.",
    "connections_refused": "Connections on the Raft port closed: no peer, or a message was wrong.",
    "lineages_refused": "Sessions refused because the peer follows another lineage.",
    "entries_proposed": "Log entries made here, as leader.",
    "commands_forwarded_here": "Commands that other nodes handed to this one, as leader.",
    "commands_handed_on_again": "Commands sent to the next leader after the one before was gone.",
    "fills_begun": "Fills of other nodes begun here, as leader.",
    "fill_chunks_sent": "Chunks of stores sent to nodes that are filled.",
    "fill_bytes_sent": "Bytes of stores sent to nodes that are filled.",
    "fill_events_received": "Events received by being filled.",
    "fill_bytes_received": "Bytes received by being filled.",
    "prevote_rounds": "Times that this node asked whether it could be elected.",
    "elections_won": "Times that this node became leader.",
}
_LEVELS = {
    "tail_whole": "1 if the tail has the whole log behind the cut; 0: a kill would forget some.",
    "tail_bytes": "What the tail takes.",
    "tail_gaps": "Times since the start that the tail got a gap.",
    "tail_errors": "Failures since the start to make or remove a segment of the tail.",
    "started_recovering": "1 if this life of the node began without its whole memory.",
    "proposals_waiting": "Submissions that wait for their outcome.",
    "log_entries": "Entries of the log in memory.",
    "log_bytes": "Bytes of the log in memory.",
    "alarms": "Messages since the start that no correct member sends: look at the log.",
}
_SUBSCRIPTION = {
    "lag": "Events of the store that the subscription has not looked at yet.",
    "in_flight": "Events that consumers have and have not settled.",
    "waiting": "Events to be handed out again.",
    "parked": "Events given up after their retries, or by a consumer.",
    "overdue": "Events in flight whose ack timeout is over.",
}


class Timings:
    """Counts and durations of the requests of one route."""

    __slots__ = ("buckets", "by_status", "sum_s")

    def __init__(self) -> None:
        self.by_status: dict[int, int] = {}
        self.buckets = [0] * (len(_BUCKETS_S) + 1)
        self.sum_s = 0.0

    def add(self, status: int, duration_s: float) -> None:
        """One request is answered."""
        self.by_status[status] = self.by_status.get(status, 0) + 1
        self.buckets[bisect_left(_BUCKETS_S, duration_s)] += 1
        self.sum_s += duration_s

    def cumulated(self) -> list[tuple[str, float]]:
        """The buckets as Prometheus wants them: each holds all below it."""
        total = 0
        pairs = []
        for bound, count in zip((*map(str, _BUCKETS_S), "+Inf"), self.buckets, strict=True):
            total += count
            pairs.append((bound, float(total)))
        return pairs


class Metrics(Collector):
    """Collects when asked, from everything that the API can see."""

    def __init__(
        self,
        replica: Replica,
        worker: Worker,
        state: State,
        arrivals: Arrivals,
        bodies: BodyReader,
        following: Following,
        talks: Talks,
        info: NodeInfo,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._info = info
        self._replica = replica
        self._worker = worker
        self._state = state
        self._arrivals = arrivals
        self._bodies = bodies
        self._following = following
        self._talks = talks
        self._timings: dict[tuple[str, str], Timings] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def timings(self, method: str, path: str) -> Timings:
        """Where the requests of a route are counted."""
        return self._timings.setdefault((method, path), Timings())

    def routes(self) -> list[Route]:
        """What this family offers."""
        reply = Reply(200, "All metrics, in Prometheus' text format.", None, ("text/plain",))
        return [Route("GET", "/metrics", self.scrape, "Metrics for Prometheus.", (reply,))]

    async def scrape(self, request: Request) -> Answer:
        """`GET /metrics`."""
        return Answer(200, generate_latest(self._registry), CONTENT_TYPE_LATEST)

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client at each scrape."""
        yield from self._requests()
        yield from self._stores()
        yield from self._subscriptions()
        yield from self._node()
        yield from self._persistence()
        yield from self._raft()

    def _requests(self) -> Iterator[Metric]:
        labels = ("method", "route")
        counts = CounterMetricFamily(
            "exesdb_http_requests", "Answered requests.", labels=(*labels, "status")
        )
        durations = HistogramMetricFamily(
            "exesdb_http_request_duration_seconds", "From head to answer.", labels=labels
        )
        for (method, path), timings in self._timings.items():
            for status, count in timings.by_status.items():
                counts.add_metric((method, path, str(status)), count)
            durations.add_metric((method, path), timings.cumulated(), timings.sum_s)
        yield counts
        yield durations

    def _stores(self) -> Iterator[Metric]:
        position = GaugeMetricFamily("exesdb_store_position", "Last position.", labels=("store",))
        streams = GaugeMetricFamily("exesdb_store_streams", "Streams.", labels=("store",))
        frame_bytes = GaugeMetricFamily(
            "exesdb_store_frame_bytes", "Bytes of all events in memory.", labels=("store",)
        )
        for name, store in self._state.stores.items():
            position.add_metric((name,), store.position)
            streams.add_metric((name,), len(store.streams))
            frame_bytes.add_metric((name,), store.frame_bytes - store.swept_bytes)
        yield from (position, streams, frame_bytes)

    def _subscriptions(self) -> Iterator[Metric]:
        labels = ("store", "subscription")
        gauges = {
            name: GaugeMetricFamily(f"exesdb_subscription_{name}", words, labels=labels)
            for name, words in _SUBSCRIPTION.items()
        }
        stalls = GaugeMetricFamily(
            "exesdb_subscription_stalled", "1 if nothing moves although it should.", labels=labels
        )
        progress = GaugeMetricFamily(
            "exesdb_subscription_progress_seconds",
            "When an event was last settled, in seconds since 1970.",
            labels=labels,
        )
        for store_name, store in self._state.stores.items():
            for name, one in store.subscriptions.by_name.items():
                found = subscription_status(one, store, self._clock())
                for gauge, family in gauges.items():
                    family.add_metric((store_name, name), found[gauge])
                stalls.add_metric((store_name, name), float(found["stalled"] is not None))
                progress.add_metric((store_name, name), found["last_progress_epoch"] / 1e6)
        yield from (*gauges.values(), stalls, progress)

    def _node(self) -> Iterator[Metric]:
        for name, words, value in (
            ("exesdb_applied_index", "Raft index applied here.", self._state.applied_index),
            ("exesdb_persisted_index", "Raft index on disk.", self._worker.persisted_index),
            ("exesdb_files_set_aside", "To be looked at.", len(self._worker.set_aside)),
            ("exesdb_unpersisted_bytes", "In memory only.", self._worker.backlog_bytes),
            ("exesdb_waiting_reads", "Long polls that wait.", self._arrivals.reads),
            ("exesdb_arriving_bytes", "Of incomplete bodies.", self._bodies.arriving_bytes),
        ):
            yield GaugeMetricFamily(name, words, value=value)
        following = self._following
        yield GaugeMetricFamily("exesdb_followers", "Clients that follow.", following.followers)
        yield CounterMetricFamily(
            "exesdb_events_followed", "Events sent to followers.", following.events_sent
        )
        yield CounterMetricFamily(
            "exesdb_slow_consumers", "Followers cut off.", following.slow_consumers
        )

        sockets = len(self._talks.conversations)
        yield GaugeMetricFamily("exesdb_sockets", "WebSockets that are open.", value=sockets)
        yield CounterMetricFamily(
            "exesdb_socket_requests", "Taken over WebSockets.", self._talks.requests_taken
        )

    def _persistence(self) -> Iterator[Metric]:
        """What tells a disk that stalls or fails from one that is only busy."""
        status = self._worker.status()
        breaker = GaugeMetricFamily(
            "exesdb_persistence_breaker", "1 for the state it is in.", labels=("state",)
        )
        for state in ("closed", "half_open", "open"):
            breaker.add_metric((state,), float(status["breaker"] == state))
        oldest = GaugeMetricFamily(
            "exesdb_store_oldest_unpersisted_seconds",
            "Age of the oldest change that is in memory only.",
            labels=("store",),
        )
        failures = CounterMetricFamily(
            "exesdb_store_persistence_failures", "Cycles that failed.", labels=("store",)
        )
        for name, store in status["stores"].items():
            oldest.add_metric((name,), store["oldest_unpersisted_ms"] / 1000)
            failures.add_metric((name,), store["totals"]["failures"])
        yield from (breaker, oldest, failures)

    def _raft(self) -> Iterator[Metric]:
        status = self._replica.status()
        yield GaugeMetricFamily("exesdb_raft_term", "Current term.", value=status.term)
        leads = float(status.leader == status.node_id)
        yield GaugeMetricFamily("exesdb_raft_is_leader", "1 on the leader.", value=leads)
        yield from self._condition()
        sent = UntypedMetricFamily(
            "exesdb_raft_bytes_sent_to", "Bytes sent, by peer.", labels=["peer"]
        )
        told: dict[str, int] = dict.fromkeys(_COUNTED, 0)
        for name, value in self._replica.counters().items():
            if name.startswith(_SENT_TO):
                sent.add_metric([name.removeprefix(_SENT_TO)], value)
            else:
                told[_NOT_A_NAME.sub("_", name).removeprefix("raft_")] = value
        for name, value in told.items():
            yield UntypedMetricFamily("exesdb_raft_" + name, _words_for(name), value=value)
        yield sent

    def _condition(self) -> Iterator[Metric]:
        """Whether clients are served here, and the two conditions that an operator must know of."""
        replica, lineage = self._replica, self._info.lineage()
        for name, words, holds in (
            ("exesdb_ready", "1 if clients are served here.", not replica.not_ready_reasons()),
            ("exesdb_recovering", "1 while it may lack what it promised.", replica.recovering),
            ("exesdb_quarantined", "1 if its lineage was given up.", lineage["quarantined"]),
        ):
            yield GaugeMetricFamily(name, words, value=float(bool(holds)))
        followed = GaugeMetricFamily("exesdb_lineage", "Always 1.", labels=["lineage"])
        followed.add_metric([lineage["lineage"]], 1.0)
        yield followed


def _words_for(name: str) -> str:
    """What one of the replica's numbers is."""
    if name.startswith(_ENDED):
        return f"Submissions since the start that ended in {name.removeprefix(_ENDED)}."
    return _COUNTED.get(name) or _LEVELS.get(name) or "Told by the replica."
