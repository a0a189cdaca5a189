"""How much a read may rely on (h)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from node.core.state import State
from node.errors import ExesdbError, NoLeader, ReadBarrierTimeout
from node.raft.entries import Group, encode
from node.raft.library import now
from node.raft.messages import Ack, Answer, AppendEntries, Ask, Message, TermNotice
from node.raft.reads import Reads
from node.raft.requests import Requests
from node.raft.waiting import Waiting
from tests.raft.harness import STORE, Cluster
from tests.raft.solo import Solo
from tests.raft.stock import StockCluster
from tests.raft.virtual_time import simulate


class TestBarriers:
    def test_stock_has_two_leaders_for_many_seconds(self) -> None:
        with StockCluster(seed=5) as cluster:
            leader = cluster.elect()
            cluster.network.isolate(leader, cluster.ids)
            both = 0.0

            def watch() -> None:
                nonlocal both
                both += 0.01 * (sum(node.leads for node in cluster.nodes.values()) == 2)

            cluster.run(40, each=watch)
            assert both > 10

    @pytest.mark.parametrize("level", ["leader", "linearizable"])
    def test_after_a_barrier_a_follower_holds_what_was_acknowledged_anywhere(
        self, level: str
    ) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            cluster.links.delay_s = lambda chance: 0.05 * chance.random()
            leader = await cluster.ready()
            for node_id in cluster.followers():
                for _ in range(10):
                    command = cluster.command()
                    await cluster.append(leader, command)
                    await cluster[node_id].barrier(level, 2000)
                    assert cluster.holds(node_id, command)
            cluster.check()

        simulate(scenario)

    def test_what_the_leader_had_is_awaited_and_not_only_asked_for(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            follower = cluster.followers()[0]

            def without_entries(sender: str, receiver: str, message: Message) -> bool | None:
                kept = (sender, receiver) == (leader, follower)
                return False if kept and isinstance(message, AppendEntries) else None

            cluster.links.watchers.append(without_entries)
            command = cluster.command()
            await cluster.append(leader, command)
            with pytest.raises(ReadBarrierTimeout):
                await cluster[follower].barrier("leader", 200)
            cluster.links.watchers.remove(without_entries)
            await cluster[follower].barrier("leader", 2000)
            assert cluster.holds(follower, command)

        simulate(scenario)

    def test_a_deposed_leader_never_passes_a_linearizable_barrier(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, leader_fallback_ms=30_000)
            leader = await cluster.ready()
            cluster.links.cut(leader)
            successor = await cluster.led(*cluster.followers())
            await cluster.append(successor)
            assert cluster[leader].leads, "it still believes"
            loop = asyncio.get_running_loop()
            begun = loop.time()
            with pytest.raises(ReadBarrierTimeout):
                await cluster[leader].barrier("linearizable", 800)
            assert loop.time() - begun < 1

        simulate(scenario)

    def test_a_barrier_that_was_under_way_at_a_deposition_sees_the_new_leader_s_entries(
        self,
    ) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, leader_fallback_ms=30_000)
            leader = await cluster.ready()
            cluster.links.cut(leader)
            waiting = asyncio.ensure_future(cluster[leader].barrier("linearizable", 20_000))
            successor = await cluster.led(*cluster.followers())
            command = cluster.command()
            await cluster.append(successor, command)
            cluster.links.heal()
            try:
                await waiting
            except ExesdbError:
                return
            assert cluster.holds(leader, command)

        simulate(scenario)

    def test_a_new_leader_answers_only_when_it_is_sure_of_the_past(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            cluster.links.delay_s = lambda _: 0.02
            leader = await cluster.ready()
            command = cluster.command()
            await cluster.append(leader, command)
            cluster.crash(leader)
            await cluster.until(lambda: cluster.leader())
            new = cluster.leader()
            assert new is not None
            assert cluster[new].not_ready_reasons()
            await cluster[new].barrier("leader", 2000)
            assert cluster.holds(new, command)

        simulate(scenario)

    def test_a_read_at_a_leader_that_is_replaced_at_once_asks_the_next_one(self) -> None:
        """It has not applied an entry of its own term, and never will."""

        async def scenario() -> None:
            cluster = Cluster(3, leader_fallback_ms=60_000)
            first = await cluster.ready()
            cluster.links.watchers.append(
                lambda sender, _, message: sender == first or not isinstance(message, AppendEntries)
            )
            cluster.links.cut(first)
            second, third = cluster.followers()
            await cluster.until(lambda: cluster[second].leads or cluster[third].leads)
            brief = second if cluster[second].leads else third
            reading = asyncio.ensure_future(cluster[brief].barrier("leader", 30_000))
            await asyncio.sleep(0.1)
            assert not reading.done()
            cluster.links.watchers.pop()
            cluster.links.heal()
            cluster.links.cut(brief)
            await cluster.until(
                lambda: any(cluster[one].leads for one in cluster.ids if one not in (first, brief))
            )
            cluster.links.heal()
            began = asyncio.get_running_loop().time()
            await reading
            assert asyncio.get_running_loop().time() - began < 3

        simulate(scenario)

    @pytest.mark.parametrize("level", ["leader", "linearizable"])
    def test_without_a_leader_a_barrier_ends_in_time(self, level: str) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, leader_wait_ms=500)
            await cluster.ready()
            alone = cluster.followers()[0]
            cluster.links.cut(alone)
            await cluster.until(lambda: cluster[alone].leader is None)
            loop = asyncio.get_running_loop()
            begun = loop.time()
            with pytest.raises((NoLeader, ReadBarrierTimeout)):
                await cluster[alone].barrier(level, 3000)
            assert loop.time() - begun < 1

        simulate(scenario)


class TestWaiting:
    def test_a_read_waits_for_the_index_that_its_client_has_seen(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            follower = cluster.followers()[0]
            command = cluster.command()
            _, index = await cluster.append(leader, command)
            assert cluster[follower].applied_index < index
            await cluster[follower].wait_applied(index, 1000)
            assert cluster.holds(follower, command)

        simulate(scenario)

    def test_a_read_waits_for_a_position(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            follower = cluster.followers()[0]
            waiting = asyncio.ensure_future(cluster[follower].wait_position(STORE, 5, 1000))
            await cluster.fill_log(leader, 5)
            assert await waiting
            assert cluster[follower].state.stores[STORE].position == 5
            assert not await cluster[follower].wait_position(STORE, 6, 50)

        simulate(scenario)

    def test_waiting_ends_in_time(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            with pytest.raises(ReadBarrierTimeout):
                await cluster[leader].wait_applied(10_000, 100)
            assert cluster[leader]._waiting._lines == cluster[leader]._waiting._waiting == {}

        simulate(scenario)

    async def test_a_leader_that_is_gone_before_the_read_runs_is_waited_for_again(self) -> None:
        """Its first message and the next term's come in one turn of the loop."""
        solo, waiting = Solo(), Waiting()
        reads = reads_of(solo, Requests(solo.send, 1), waiting)
        asked = asyncio.create_task(reads.leader(now() + 5))
        await asyncio.sleep(0)
        solo.hear("n2", AppendEntries(1, 1, 0, 1, []))
        waiting.advanced()
        solo.hear("n3", TermNotice(2))
        assert solo.engine.leader is None
        await asyncio.sleep(0.01)
        assert not asked.done()
        solo.hear("n3", AppendEntries(2, 1, 0, 1, []))
        waiting.advanced()
        assert await asked == "n3"


def reads_of(solo: Solo, requests: Requests, waiting: Waiting) -> Reads:
    """The reads of one node, which proposes nothing."""
    nothing: Any = None
    return Reads(solo.engine, solo.settings, State(), requests, waiting, nothing)


async def test_what_is_committed_counts_even_where_the_leader_is_still_applying_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever sent it may have applied it sooner, and answered."""
    monkeypatch.setattr("node.raft.library._APPLY_S", -1.0)  # one entry a turn
    solo, waiting = Solo(), Waiting()
    reads = reads_of(solo, Requests(solo.send, 1), waiting)
    solo.elect()
    for number in range(5):
        last = solo.engine.append(encode([Group("n1", 1, [number], [b"c"])]))
    solo.tick()
    solo.hear("n2", Ack(solo.engine.term, last + 1, False, True))
    solo.tick()
    while not solo.engine.leads_with_own_entry_applied():
        solo.tick()
    assert solo.engine.applied_index < solo.engine.commit_index == last
    assert await reads.serve_read_index("n3", None) == last
    own = asyncio.create_task(reads.barrier("leader", 60_000))
    await asyncio.sleep(0.01)
    assert not own.done()
    own.cancel()


async def test_reads_that_wait_for_what_is_far_ahead_make_no_entry_dear() -> None:
    """10,000 of them took 7 ms of each entry that was applied."""
    looked, waiting, numbers = 0, Waiting(), {"a": 5, "b": 0}

    def number(key: str) -> int:
        nonlocal looked
        looked += 1
        return numbers[key]

    def reach(key: str, wanted: int, timeout_ms: int = 60_000) -> asyncio.Task[None]:
        return asyncio.create_task(
            waiting.reach(key, lambda: number(key), wanted, timeout_ms, "what it wants")
        )

    first, other, hasty = reach("a", 7), reach("b", 1), reach("a", 6, 1)
    far = [reach("a", 1000 + at) for at in range(500)]
    with pytest.raises(ReadBarrierTimeout):
        await hasty
    before = looked
    for at in (6, 7):
        numbers["a"] = at
        waiting.advanced()
    assert looked - before == 4, "once a key, however many wait"
    await asyncio.wait_for(first, 5)
    assert not other.done()
    numbers["a"] = 1498
    numbers["b"] = 1
    waiting.advanced()
    await asyncio.wait_for(asyncio.gather(other, *far[:499]), 5)
    assert not far[499].done()
    far[499].cancel()
    await asyncio.gather(far[499], return_exceptions=True)
    assert waiting._lines == waiting._waiting == {} and waiting._count == 0


class TestManyReads:
    """A question for each kept the leader too busy to answer: 9,000 reads at one follower all
    timed out, a second late, and the loops of both stood still for as long.
    """

    async def test_reads_of_one_turn_share_a_question_and_a_later_one_asks_anew(self) -> None:
        solo = Solo()
        requests = Requests(solo.send, 1)
        reads = reads_of(solo, requests, Waiting())
        solo.hear("n2", AppendEntries(1, 1, 0, 1, []))
        early = [asyncio.create_task(reads.barrier("leader", 5000)) for _ in range(500)]
        await asyncio.sleep(0.01)
        late = asyncio.create_task(reads.barrier("leader", 5000))
        await asyncio.sleep(0.01)
        (first, second) = [one for to, one in solo.take() if isinstance(one, Ask) and to == "n2"]
        requests.answered("n2", Answer(first.number, True, 0))
        await asyncio.wait_for(asyncio.gather(*early), 5)
        assert not late.done(), "what was asked before it came says nothing of it"
        requests.answered("n2", Answer(second.number, True, 0))
        await asyncio.wait_for(late, 5)

    async def test_each_read_that_shares_a_question_keeps_its_own_time(self) -> None:
        solo = Solo()
        reads = reads_of(solo, Requests(solo.send, 1), Waiting())
        solo.hear("n2", AppendEntries(1, 1, 0, 1, []))
        patient = asyncio.create_task(reads.barrier("leader", 60_000))
        hasty = asyncio.create_task(reads.barrier("leader", 50))
        gone = asyncio.create_task(reads.barrier("leader", 60_000))
        await asyncio.sleep(0.01)
        gone.cancel()
        with pytest.raises(ReadBarrierTimeout):
            await asyncio.wait_for(hasty, 5)
        assert not patient.done()
        patient.cancel()
        await asyncio.gather(patient, gone, return_exceptions=True)
