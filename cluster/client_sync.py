"""The client without `await`, for scripts and for services that have no event loop.

    with SyncClient("127.0.0.1:8101", "127.0.0.1:8102") as client:
        client.append("order-7", [Event("OrderPlaced", {"total": 12})])
        for event in client.read_stream("order-7"):
            print(event.number, event.type)

It is the same client (see `client`), on an event loop in a thread of its own. Calls from several
threads are served side by side. An iterator asks for the next event when it is wanted, so nothing
is read ahead of a slow reader but a page. Consumers of persistent subscriptions, which do read
ahead, are shown in `client_sync_consumer`.

Leaving the client ends whoever still follows the store or consumes, as a loop ends. A call that is
under way in another thread ends in a `ClientError` that says what is certain.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, TypeVar

from cluster.client import ANY, Appended, Client, Event, Filter, Recorded, Subscription
from cluster.client_consumer import IN_FLIGHT
from cluster.client_errors import ClientError
from cluster.client_loop import LoopThread, NotRunning
from cluster.client_snapshots import Snapshot
from cluster.client_streams import StreamInfo
from cluster.client_subscriptions import Parked, PersistentSubscription
from cluster.client_sync_consumer import SyncConsumer

T = TypeVar("T")


class SyncClient:
    """See `Client`, whose arguments and methods these are."""

    def __init__(self, *nodes: str, store: str = "my_store", timeout_s: float = 15.0) -> None:
        self._client = Client(*nodes, store=store, timeout_s=timeout_s)
        self._loop = LoopThread()

    def __enter__(self) -> SyncClient:
        self._loop.start()
        self._wait(self._client.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._wait(self._client.__aexit__(kind, error, trace))
        finally:
            self._loop.stop()

    def append(
        self,
        stream: str,
        events: Sequence[Event],
        expected_version: int | str = ANY,
        durability: str | None = None,
    ) -> Appended:
        """Append events to a stream."""
        return self._wait(self._client.append(stream, events, expected_version, durability))

    def append_many(
        self,
        events: Sequence[tuple[str, Event]],
        checks: Mapping[str, int | str] | None = None,
        checkpoint: tuple[str, int] | None = None,
        durability: str | None = None,
    ) -> Appended:
        """Append to several streams and move a checkpoint, in one step."""
        return self._wait(self._client.append_many(events, checks, checkpoint, durability))

    def read_stream(
        self, stream: str, start: int = 0, backward: bool = False
    ) -> Iterator[Recorded]:
        """The events of a stream."""
        return self._iterate(self._client.read_stream(stream, start, backward))

    def read(
        self, after: int = 0, wanted: Filter | None = None, stream: str | None = None
    ) -> Iterator[Recorded]:
        """The events of the store behind a position, in order."""
        return self._iterate(self._client.read(after, wanted, stream))

    def version(self, stream: str) -> int:
        """The number of the stream's last event; -1 if it has none."""
        return self._wait(self._client.version(stream))

    def checkpoint(self, name: str) -> int | None:
        """Where a checkpoint stands; None if there is none of this name."""
        return self._wait(self._client.checkpoint(name))

    def stream(self, name: str) -> StreamInfo | None:
        """How a stream is; None if there is none."""
        return self._wait(self._client.stream(name))

    def delete_stream(
        self, name: str, expected_version: int | str = ANY, hard: bool = False
    ) -> bool:
        """Delete a stream; False if there was none."""
        return self._wait(self._client.delete_stream(name, expected_version, hard))

    def set_stream_metadata(
        self,
        name: str,
        max_count: int | None = None,
        max_age_ms: int | None = None,
        truncate_before: int | None = None,
    ) -> int:
        """Set all that limits a stream at once; the number of the first event that is kept."""
        work = self._client.set_stream_metadata(name, max_count, max_age_ms, truncate_before)
        return self._wait(work)

    def record_snapshot(
        self,
        source: str,
        stream: str,
        version: int,
        source_type: str,
        data: Any,
        metadata: Any = None,
    ) -> bool:
        """Record a snapshot; True if it stands in place of an earlier one."""
        return self._wait(
            self._client.record_snapshot(source, stream, version, source_type, data, metadata)
        )

    def latest_snapshot(
        self, source: str, stream: str, max_version: int | None = None
    ) -> Snapshot | None:
        """The one with the greatest version; None if there is none."""
        return self._wait(self._client.latest_snapshot(source, stream, max_version))

    def snapshots(self, source: str, stream: str, min_version: int = 0) -> Iterator[Snapshot]:
        """All of a source and stream from a version on, the smallest first."""
        return self._iterate(self._client.snapshots(source, stream, min_version))

    def delete_snapshot(self, source: str, stream: str, version: int) -> bool:
        """Delete a snapshot; False if there was none."""
        return self._wait(self._client.delete_snapshot(source, stream, version))

    def create_subscription(
        self,
        name: str,
        wanted: Filter | None = None,
        stream: str | None = None,
        start_after: int | Literal["end"] = 0,
        ack_timeout_ms: int = 30_000,
        max_retries: int = 10,
        max_in_flight: int = 1_000,
    ) -> None:
        """Make a persistent subscription, or change its bounds."""
        made = self._client.create_subscription(
            name, wanted, stream, start_after, ack_timeout_ms, max_retries, max_in_flight
        )
        self._wait(made)

    def subscription(self, name: str) -> PersistentSubscription | None:
        """How a persistent subscription is; None if there is none of this name."""
        return self._wait(self._client.subscription(name))

    def subscriptions(self) -> list[PersistentSubscription]:
        """All of the store, by name."""
        return self._wait(self._client.subscriptions())

    def delete_subscription(self, name: str) -> bool:
        """Remove a persistent subscription; False if there was none."""
        return self._wait(self._client.delete_subscription(name))

    def consume(self, name: str, consumer: str, max_in_flight: int = IN_FLIGHT) -> SyncConsumer:
        """Work on a persistent subscription under the name `consumer`."""
        return SyncConsumer(self._client.consume(name, consumer, max_in_flight), self._loop)

    def parked(self, name: str, after: int = 0) -> Iterator[Parked]:
        """The events that were given up, behind a position."""
        return self._iterate(self._client.parked(name, after))

    def replay_parked(self, name: str, positions: Sequence[int] | None = None) -> int:
        """Have parked events delivered again, all or those at these positions; how many."""
        return self._wait(self._client.replay_parked(name, positions))

    def subscribe(
        self,
        after: int = 0,
        wanted: Filter | None = None,
        stream: str | None = None,
        lineage: str | None = None,
    ) -> SyncSubscription:
        """Every event behind `after`, and then every one that comes, for ever."""
        subscription = self._client.subscribe(after, wanted, stream, lineage)
        return SyncSubscription(subscription, self._iterate(aiter(subscription)))

    @property
    def lineage(self) -> str | None:
        """The lineage of the cluster, as far as a node has told it."""
        return self._client.lineage

    def _iterate(self, events: AsyncIterator[T]) -> Generator[T, None, None]:
        try:
            while True:
                try:
                    yield self._wait(_next(events))
                except StopAsyncIteration:
                    return
        finally:
            # Not waited for: whoever collects garbage comes here, and that may be the loop itself.
            self._loop.leave(_close(events))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.wait(work)


class SyncSubscription:
    """Events as they come, as an iterator; see `client.Subscription`, whose facts these are."""

    def __init__(self, subscription: Subscription, events: Generator[Recorded, None, None]) -> None:
        self._subscription = subscription
        self._events = events
        self._begun = False

    def __iter__(self) -> SyncSubscription:
        return self

    def __next__(self) -> Recorded:
        try:
            event = next(self._events)
        except NotRunning:
            if self._begun:  # the client was left, which ends it wherever it stands
                raise StopIteration from None
            raise
        self._begun = True
        return event

    def close(self) -> None:
        """Follow no more. Raises `ValueError` while another thread waits in it."""
        self._events.close()

    @property
    def position(self) -> int:
        """That of the last thing it was told: what to go on behind later."""
        return self._subscription.position

    @property
    def lineage(self) -> str | None:
        """The lineage that `position` is of."""
        return self._subscription.lineage

    @property
    def caught_up(self) -> bool:
        """Whether the end of the store, as the node knew it, is reached."""
        return self._subscription.caught_up

    @property
    def last_error(self) -> ClientError | None:
        """Why it is not connected; None while it is."""
        return self._subscription.last_error


async def _next(events: AsyncIterator[T]) -> T:
    return await anext(events)


async def _close(events: Any) -> None:
    with suppress(Exception):  # nobody is there to be told
        await events.aclose()
