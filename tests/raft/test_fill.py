"""Bringing up a node that is further behind than the leader's log reaches (A2, A3, A8)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import cbor2
import pytest

from node.core import commands
from node.raft import fill_receiver, fill_source, journal
from node.raft.fill_receiver import FillRefused
from node.raft.fill_source import FillSource
from node.raft.messages import Answer, Ask
from node.raft.requests import Requests
from tests.raft.harness import STORE, Cluster
from tests.raft.stock import StockCluster
from tests.raft.virtual_time import simulate


class Direct(Requests):
    """Questions that reach the source without a network; `spoil` may change what it answers."""

    def __init__(self, source: FillSource) -> None:
        self._topics = {
            "fill_begin": source.begin,
            "fill_digest": source.digest,
            "fill_rows": source.rows,
            "fill_places": source.places,
            "fill_snapshots": source.snapshots,
            "fill_subscriptions": source.subscriptions,
            "fill_lives": source.lives,
            "fill_checkpoints": source.checkpoints,
        }
        self.asked: Counter[str] = Counter()
        self.spoil: Callable[[str, Any], Any] = lambda _, answer: answer

    async def ask(self, peer: str, topic: str, body: Any, timeout_s: float) -> Any:
        self.asked[topic] += 1
        answer = cbor2.loads(cbor2.dumps(await self._topics[topic]("me", body)))
        return self.spoil(topic, answer)


async def left_behind(cluster: Cluster, events: int = 30) -> tuple[str, str]:
    """A leader whose log begins behind what the returned node, which is down, has on its disk."""
    await cluster.ready()
    leader = cluster.leader()
    assert leader is not None
    behind = cluster.followers()[0]
    cluster.crash(behind)
    await cluster.led()
    for _ in range(events):
        await cluster.append(leader)
    await cluster.settled()
    cluster.persist()
    others = [one for one in cluster.ids if one != behind]
    await cluster.stop(*others)
    await cluster.start(*others)
    await cluster.settled()
    return await cluster.led(), behind


async def appended_without_end(cluster: Cluster, leader: str) -> None:
    """An append a moment; disks follow at once, so that nothing but fills keeps the log."""
    while True:
        await cluster.append(leader)
        cluster.persist()
        cluster[leader]._cut_log()
        await asyncio.sleep(0.005)


def small_chunks(monkeypatch: pytest.MonkeyPatch, events: int = 3, window: int = 1) -> None:
    """So few events an answer, and answers under way, that a small store needs many."""
    monkeypatch.setattr(fill_source, "SLICE_EVENTS", events)
    monkeypatch.setattr(fill_receiver, "SLICE_EVENTS", events)
    monkeypatch.setattr(fill_receiver, "_WINDOW", window)


class TestStock:
    def test_stock_acknowledges_a_corrupt_snapshot_with_its_own_last_index(self) -> None:
        """A3."""
        with StockCluster() as cluster:
            leader = cluster.elect()
            follower = next(one for one in cluster.ids if one != leader)
            node, front = cluster.nodes[follower], cluster.nodes[leader]
            for _ in range(1000):
                node._SyncObj__raftLog.add(b"\1", node.log[-1][0] + 1, 0)
            said: list[dict[str, Any]] = []
            cluster.network.watchers.append(
                lambda sender, _, message: said.append(message) if sender == follower else None
            )
            for chunk in ((b"garbage", True, False), (b"", False, True)):
                cluster.network.ends[follower].deliver(
                    leader,
                    {
                        "type": "append_entries",
                        "term": front.term,
                        "commit_index": front.raftCommitIndex,
                        "serialized": chunk,
                    },
                )
            assert said[-1]["success"]
            assert said[-1]["next_node_idx"] == node.log[-1][0] + 1

    def test_stock_commits_its_own_divergent_tail_at_the_first_chunk_of_a_snapshot(self) -> None:
        """A2."""
        with StockCluster(leaderFallbackTimeout=30.0) as cluster:
            leader = cluster.elect()
            node = cluster.nodes[leader]
            cluster.network.isolate(leader, cluster.ids)
            told: list[int] = []
            for item in range(3):
                node.put(f"phantom {item}", callback=lambda _, error: told.append(error))
            cluster.run(0.1)
            cluster.network.ends[leader].deliver(
                next(one for one in cluster.ids if one != leader),
                {
                    "type": "append_entries",
                    "term": node.term + 1,
                    "commit_index": 500,
                    "serialized": (b"first chunk", True, False),
                },
            )
            cluster.run(0.1)
            assert node.applied == ["phantom 0", "phantom 1", "phantom 2"]
            assert told == [0, 0, 0], "and it told its clients that all is well"


class TestFilling:
    def test_a_node_behind_the_log_gets_exactly_what_it_lacks(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader, behind = await left_behind(cluster)
            await cluster.start(behind)
            await cluster.settled()
            assert cluster.links.sent["Behind"]
            assert cluster.contents(behind) == cluster.contents(leader)
            cluster.check()

        simulate(scenario)

    def test_appends_go_on_while_a_node_is_filled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        small_chunks(monkeypatch)

        async def scenario() -> None:
            cluster = Cluster(3)
            cluster.links.delay_s = lambda _: 0.005
            leader, behind = await left_behind(cluster)
            await cluster.start(behind)
            await cluster.until(lambda: cluster[behind].filling.active)
            count = 0
            while cluster[behind].filling.active:
                await cluster.append(leader)
                count += 1
            assert count > 3
            await cluster.settled()
            assert cluster.contents(behind) == cluster.contents(leader)
            cluster.check()

        simulate(scenario)

    def test_several_stores_and_their_checkpoints_come_along(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            await cluster.ready()
            leader = await cluster.led()
            for command in (
                commands.create_store("gone", 1),
                commands.create_store("more", 1),
                commands.put_checkpoint("more", "reader", 0),
                commands.delete_store("gone"),
            ):
                await cluster[leader].propose(command, 1000)
            leader, behind = await left_behind(cluster)
            await cluster.start(behind)
            await cluster.settled()
            stores = cluster[behind].state.stores
            assert sorted(stores) == [STORE, "more"]
            assert stores["more"].checkpoints == {"reader": 0}
            cluster.check()

        simulate(scenario)

    def test_a_fill_that_breaks_off_leaves_nothing_and_begins_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small_chunks(monkeypatch)

        async def scenario() -> None:
            cluster = Cluster(3)
            cluster.links.delay_s = lambda _: 0.005
            leader, behind = await left_behind(cluster)
            await cluster.start(behind)
            await cluster.until(lambda: cluster[behind].filling.active)
            await asyncio.sleep(0.03)
            cluster.links.cut(behind)
            await cluster.until(lambda: not cluster[behind].filling.active)
            assert cluster[behind].state.stores == {}
            cluster.links.heal()
            await cluster.settled()
            assert cluster.contents(behind) == cluster.contents(leader)
            cluster.check()

        simulate(scenario)

    def test_a_fill_survives_a_change_of_leader(self, monkeypatch: pytest.MonkeyPatch) -> None:
        small_chunks(monkeypatch)

        async def scenario() -> None:
            cluster = Cluster(3)
            cluster.links.delay_s = lambda _: 0.005
            leader, behind = await left_behind(cluster)
            await cluster.start(behind)
            await cluster.until(lambda: cluster[behind].filling.active)
            await asyncio.sleep(0.03)
            other = next(one for one in cluster.ids if one not in (leader, behind))
            await cluster[leader].transfer_leadership(other, 3000)
            await cluster.append(other)
            await cluster.settled()
            assert cluster.contents(behind) == cluster.contents(other)
            cluster.check()

        simulate(scenario)

    @pytest.mark.parametrize(
        ("log_bytes_max", "rounds"),
        [(1_000_000, range(1, 2)), (400, range(2, 30))],
        ids=["the log is kept meanwhile", "the log is cut meanwhile"],
    )
    def test_a_fill_ends_in_the_log_while_appends_never_stop(
        self, monkeypatch: pytest.MonkeyPatch, log_bytes_max: int, rounds: range
    ) -> None:
        small_chunks(monkeypatch, events=2)
        monkeypatch.setattr(journal, "_CUT_ITEMS_MIN", 1)

        async def scenario() -> None:
            cluster = Cluster(3, log_tail_entries_max=3, log_tail_bytes_max=log_bytes_max)
            cluster.links.delay_s = lambda _: 0.002
            leader, behind = await left_behind(cluster, events=80)
            load = asyncio.create_task(appended_without_end(cluster, leader))
            await cluster.start(behind)
            source, receiver = cluster[leader].filling.source, cluster[behind].filling.receiver
            # It catches up, and stays with the others.
            target = cluster[leader].applied_index + 100
            await cluster.until(lambda: cluster[behind].applied_index >= target)
            assert source.counters["fills_begun"] in rounds
            assert receiver.counters["fill_events_received"] <= cluster._events
            load.cancel()
            await cluster.settled()
            assert cluster.contents(behind) == cluster.contents(leader)
            cluster.check()

        simulate(scenario)

    @pytest.mark.parametrize(
        "body", [None, [], [1, 2, 3], [99, 0, 0, 0, 0], ["x", {}, None, -1, 3], {"a": 1}]
    )
    def test_a_question_that_makes_no_sense_is_answered_no(self, body: Any) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            answers: list[Answer] = []

            def watch(_: str, __: str, message: Any) -> None:
                if isinstance(message, Answer):
                    answers.append(message)

            cluster.links.watchers.append(watch)
            cluster[leader].received(cluster.followers()[0], Ask(1, "fill_rows", body))
            await asyncio.sleep(0.01)
            assert [answer.ok for answer in answers] == [False]

        simulate(scenario)


class TestOlderState:
    def test_an_offer_that_is_not_newer_is_refused(self) -> None:
        """A8: nothing older is laid over something newer."""

        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            follower = cluster.followers()[0]
            with pytest.raises(FillRefused):
                await cluster[follower].filling.receiver.fetch(leader)

        simulate(scenario)
