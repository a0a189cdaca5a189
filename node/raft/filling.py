"""When a node is filled, and what becomes of it.

The leader tells a follower that what it lacks is no longer in the log (`Behind`). The follower then
brings the state over (`fill_receiver`, `fill_source`), installs it, and begins its log anew behind
it. A fill that breaks off is begun again after `_AGAIN_S`, and goes on where it was.

What a fill brings is older than the log by the time it took. So that it ends in the log and not in
the next fill, a source keeps its log from the index of its offers on, up to `_LOG_FACTOR` times the
tail that it would keep anyway. Where more is appended during one round than fits, the log is cut
and another round brings what is missing then: each is shorter than the one before, as long as a
chunk travels faster than its events are appended.

It does not matter whether the source still leads when the fill ends: what it offered was committed.
Nothing is installed that is not ahead of what this node knows to be committed (A8).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from node.core.state import State
from node.raft.fill_digests import Digests
from node.raft.fill_offer import FillRefused
from node.raft.fill_receiver import FillReceiver
from node.raft.fill_source import FillSource
from node.raft.library import Engine, now
from node.raft.membership import MalformedMembership, Membership
from node.raft.messages import Behind
from node.raft.ports import RaftSettings
from node.raft.requests import NoAnswer, Requests

log = logging.getLogger(__name__)

_AGAIN_S = 0.25
_ANSWER_S = 10.0
_LOG_FACTOR = 2


class Filling:
    """Both sides of filling, for one node.

    `alarm` is told of what must never happen, and `ended(installed)` that a fill is over: whether
    a new state is in place.
    """

    def __init__(
        self,
        engine: Engine,
        settings: RaftSettings,
        state: State,
        requests: Requests,
        alarm: Callable[[str], None],
        ended: Callable[[bool], None],
    ) -> None:
        self._engine = engine
        self._log_bytes_max = _LOG_FACTOR * settings.log_tail_bytes_max
        self._ended = ended
        digests = Digests()
        self.source = FillSource(state, digests)
        self.receiver = FillReceiver(state, requests, digests, alarm)
        self._task: asyncio.Task[None] | None = None
        self._again_at = 0.0
        self._requests = requests
        requests.serve("fill_members", self._tell_members)
        requests.serve("fill_begin", self.source.begin)
        requests.serve("fill_digest", self.source.digest)
        requests.serve("fill_rows", self.source.rows)
        requests.serve("fill_places", self.source.places)
        requests.serve("fill_snapshots", self.source.snapshots)
        requests.serve("fill_subscriptions", self.source.subscriptions)
        requests.serve("fill_lives", self.source.lives)
        requests.serve("fill_checkpoints", self.source.checkpoints)

    @property
    def active(self) -> bool:
        """Whether this node is being filled."""
        return self._task is not None

    @property
    def counters(self) -> dict[str, int]:
        """Numbers for the metrics."""
        return {**self.source.counters, **self.receiver.counters}

    @property
    def offered_from(self) -> int | None:
        """The index of the oldest state that another node is being filled with; None without."""
        return self.source.log_needed_from

    def behind(self, peer: str, message: Behind) -> None:
        """The leader says that its log does not reach back to where this node ends."""
        engine = self._engine
        current = message.term == engine.term and peer == engine.leader
        lacks = engine.commit_index < message.first_index
        if current and lacks and self._task is None and now() >= self._again_at:
            self._task = asyncio.create_task(self._fill(peer))

    def cancel(self) -> None:
        """End a fill that is under way."""
        if self._task is not None:
            self._task.cancel()

    def expire(self) -> None:
        """To be called a few times a second: drop what nobody goes on with."""
        self.source.expire()
        if self._task is None:
            self.receiver.expire()

    def cut_at_most(self, index: int, log_bytes: int) -> int:
        """Up to where the log may be cut, if it may be cut up to `index` otherwise."""
        needed = self.source.log_needed_from
        if needed is None or log_bytes > self._log_bytes_max:
            return index
        return min(index, needed)

    async def _ask_members(self, source: str, index: int) -> None:
        """Entries that changed the membership may be among those that a fill up to `index` goes
        past. What the source knows now is as of the fill, or later.
        """
        plain = await self._requests.ask(source, "fill_members", None, _ANSWER_S)
        if self._engine.leads:  # who leads counts by its own log only (see `membership_change`)
            raise FillRefused("this node leads now")
        try:
            self._engine.journal.memberships.reached(index, Membership.from_plain(plain))
        except MalformedMembership as error:
            raise FillRefused(f"{source} names no members") from error

    async def _tell_members(self, _: str, __: Any) -> Any:
        memberships = self._engine.journal.memberships
        unsaid = memberships.unsaid
        return (memberships.committed if unsaid is None else unsaid.membership).plain()

    async def _fill(self, source: str) -> None:
        engine, installed = self._engine, False
        try:
            filled = await self.receiver.fetch(source)
            await self._ask_members(source, filled.raft_index)
            if filled.raft_index <= engine.commit_index:
                raise FillRefused("entries came through the log meanwhile")
            self.receiver.install(filled)
            engine.restart_at(filled.raft_index, filled.term)
            installed = True
            log.info("filled by %s up to index %d", source, filled.raft_index)
        except (FillRefused, NoAnswer) as error:
            self._again_at = now() + _AGAIN_S
            log.warning("the fill by %s broke off and will begin again: %s", source, error)
        except Exception:
            self._again_at = now() + _AGAIN_S
            log.exception("the fill by %s broke off and will begin again", source)
        finally:
            self._task = None
            self._ended(installed)
