"""Who may lead: votes, PreVote, durable promises (A5, A12, f, j), and giving leadership away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from node.core.outcomes import Appended
from node.errors import ExesdbError, MemberMissing, NoLeader, NotReady, ReadBarrierTimeout
from node.raft import library
from node.raft.membership import Membership, founding
from node.raft.messages import (
    Ack,
    AppendEntries,
    PreVote,
    PreVoteRequest,
    RequestVote,
    TermNotice,
    TimeoutNow,
    Vote,
)
from tests.raft.harness import Cluster
from tests.raft.solo import Disk, Solo, starting_at
from tests.raft.stock import StockCluster
from tests.raft.virtual_time import Clock, VirtualLoop, clock, simulate


@pytest.fixture(autouse=True)
def hands() -> Iterator[Clock]:
    """Solo nodes live on a clock that the test turns."""
    hands = Clock()
    with clock(hands):
        yield hands


def vote_request(term: int, index: int = 1, index_term: int = 0) -> dict[str, object]:
    """A vote request, as the library speaks."""
    return {
        "type": "request_vote",
        "term": term,
        "last_log_index": index,
        "last_log_term": index_term,
    }


class TestVotes:
    def test_stock_votes_twice_in_one_term_around_a_restart(self) -> None:
        with StockCluster() as cluster:
            votes: list[str] = []

            def watch(sender: str, receiver: str, message: dict[str, object]) -> bool:
                if sender == "n1" and message["type"] == "response_vote":
                    votes.append(receiver)
                return False

            cluster.network.watchers.append(watch)
            cluster.network.ends["n1"].deliver("n0", vote_request(9))
            cluster.restart("n1")
            cluster.network.ends["n1"].deliver("n2", vote_request(9))
            assert votes == ["n0", "n2"]

    def test_ours_remembers_its_vote_across_a_restart(self) -> None:
        disk = Disk()
        before = Solo(disk=disk)
        assert before.hear("n2", RequestVote(9, 1, 0)) == [("n2", Vote(9))]
        after = Solo(disk=disk, start=starting_at(0, 0, term=disk.term, vote=disk.vote))
        assert after.hear("n3", RequestVote(9, 1, 0)) == []

    def test_a_vote_is_durable_before_it_is_given(self) -> None:
        disk = Disk()
        solo = Solo(disk=disk)
        order: list[str] = []
        disk.save = lambda term, vote: order.append(f"saved {term} for {vote}")  # type: ignore[method-assign]
        solo.send = lambda peer, message: order.append(f"said {message}") is None  # type: ignore[method-assign]
        solo.guard._send = solo.engine._bridge._outbox.send = solo.send
        solo.guard.receive("n2", RequestVote(3, 1, 0))
        assert order == ["saved 3 for None", "saved 3 for n2", "said Vote(term=3)"]

    def test_a_candidacy_is_durable_before_it_is_announced(self) -> None:
        solo = Solo()
        solo.engine.stand()
        said = solo.tick()
        assert [message for _, message in said] == [RequestVote(1, 1, 0)] * 2
        assert solo.disk.saves == [(1, "n1")]

    def test_a_promise_that_cannot_be_kept_stops_the_word(self) -> None:
        disk = Disk()
        solo = Solo(disk=disk)

        def fail(_: int, __: str | None) -> None:
            raise SystemExit("the disk is gone")

        disk.save = fail  # type: ignore[method-assign]
        with pytest.raises(SystemExit):
            solo.hear("n2", RequestVote(3, 1, 0))
        assert solo.take() == []

    def test_stock_counts_one_peer_s_vote_twice(self) -> None:
        with StockCluster(5) as cluster:
            node = cluster.nodes["n0"]
            cluster.network.watchers.append(lambda *_: False)
            node._SyncObj__raftElectionDeadline = 0
            node.doTick(0)
            vote = {"type": "response_vote", "term": node.term}
            cluster.network.ends["n0"].deliver("n1", vote)
            cluster.network.ends["n0"].deliver("n1", vote)
            assert node.leads

    def test_ours_counts_one_vote_a_peer_a_term(self) -> None:
        solo = Solo(size=5)
        solo.engine.stand()
        solo.engine.tick()
        for _ in range(3):
            solo.hear("n2", Vote(1))
        assert solo.engine.role == library.CANDIDATE
        solo.hear("n3", Vote(1))
        assert solo.engine.leads

    def test_a_candidate_with_a_shorter_log_gets_no_vote(self) -> None:
        solo = Solo(start=starting_at(10, 3))
        assert solo.hear("n2", RequestVote(5, 9, 3)) == []
        assert solo.hear("n2", RequestVote(6, 99, 2)) == []
        assert solo.hear("n2", RequestVote(7, 10, 3)) == [("n2", Vote(7))]

    def test_a_request_of_an_old_term_is_answered_with_the_current_one(self) -> None:
        solo = Solo(start=starting_at(0, 0, term=5))
        assert solo.hear("n2", RequestVote(4, 99, 4)) == [("n2", TermNotice(5))]


class TestPreVote:
    def test_stock_lets_a_returning_node_depose_a_healthy_leader(self) -> None:
        with StockCluster(seed=5) as cluster:
            leader = cluster.elect()
            apart = next(one for one in cluster.ids if one != leader)
            term = cluster.nodes[leader].term
            others = [one for one in cluster.ids if one not in (leader, apart)]
            # It hears no one but believes to be connected: a firewall, a readonly client.
            lost = cluster.network.watchers
            lost.append(lambda sender, receiver, _: apart not in (sender, receiver))
            cluster.run(20)
            lost.clear()
            cluster.run(1)
            assert others
            assert cluster.nodes[leader].term > term

    def test_ours_lets_a_returning_node_join_quietly(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            apart = cluster.followers()[0]
            term = cluster[leader]._engine.term
            for other in cluster.ids:
                cluster.links.blackholes |= {(apart, other), (other, apart)}
            await asyncio.sleep(20)
            assert cluster[apart].counters()["prevote_rounds"] > 10
            cluster.links.heal()
            await cluster.settled()
            assert (cluster.leader(), cluster[leader]._engine.term) == (leader, term)

        simulate(scenario)

    def test_a_node_that_hears_its_leader_agrees_to_nobody(self, hands: Clock) -> None:
        solo = Solo()
        solo.hear("n2", AppendEntries(1, 1, 0, 1, []))
        solo.election.request("n3", PreVoteRequest(2, 99, 1, 7))
        assert solo.take() == [("n3", PreVote(1, 7, False))]
        hands.advance(0.5)
        solo.election.request("n3", PreVoteRequest(2, 99, 1, 8))
        assert solo.take() == [("n3", PreVote(1, 8, True))]
        assert (solo.engine.term, solo.disk.vote) == (1, None), "asking changes nothing"

    def test_a_log_that_would_get_no_vote_gets_no_pre_vote(self, hands: Clock) -> None:
        solo = Solo(start=starting_at(10, 3))
        hands.advance(5)
        granted = []
        for index, term in ((9, 3), (99, 2), (10, 3), (1, 4)):
            solo.election.request("n2", PreVoteRequest(4, index, term, 7))
            granted += [message.granted for _, message in solo.take()]
        assert granted == [False, False, True, True]

    def test_nobody_agrees_to_a_term_that_is_over(self, hands: Clock) -> None:
        solo = Solo(start=starting_at(10, 3, term=6))
        hands.advance(5)
        solo.election.request("n2", PreVoteRequest(6, 10, 3, 7))
        assert solo.take() == [("n2", PreVote(6, 7, False))]

    def test_a_leader_agrees_to_nobody(self, hands: Clock) -> None:
        solo = Solo()
        solo.elect()
        hands.advance(5)
        solo.election.request("n3", PreVoteRequest(2, 99, 1, 7))
        assert solo.take() == [("n3", PreVote(1, 7, False))]

    def test_a_round_ends_when_the_leader_is_heard_of(self, hands: Clock) -> None:
        solo = Solo()
        hands.advance(2)
        solo.tick()
        nonce = solo.election._nonce
        solo.hear("n2", AppendEntries(1, 1, 0, 1, []))
        solo.election.answer("n3", PreVote(0, nonce, True))
        solo.tick()
        assert (solo.engine.role, solo.engine.term) == (library.FOLLOWER, 1)

    def test_a_late_answer_counts_for_no_other_round(self, hands: Clock) -> None:
        solo = Solo(size=5)
        hands.advance(2)
        solo.tick()
        nonce = solo.election._nonce
        hands.advance(2)
        solo.tick()
        solo.election.answer("n2", PreVote(0, nonce + 1, True))
        solo.election.answer("n3", PreVote(0, nonce, True))
        solo.tick()
        assert solo.engine.role == library.FOLLOWER

    def test_an_answer_of_a_higher_term_is_adopted(self, hands: Clock) -> None:
        solo = Solo()
        solo.election.answer("n2", PreVote(8, 1, False))
        assert (solo.engine.term, solo.disk.term) == (8, 8)

    def test_who_has_not_heard_of_the_leader_for_long_knows_none(self, hands: Clock) -> None:
        solo = Solo()
        solo.hear("n2", AppendEntries(1, 1, 0, 1, []))
        assert solo.engine.leader == "n2"
        hands.advance(1)
        solo.tick()
        assert solo.engine.leader is None

    def test_a_learner_stands_only_where_the_voters_have_long_been_unable_to(
        self, hands: Clock
    ) -> None:
        *voters, learner = founding({f"n{at}": f"n{at}:1" for at in (1, 2, 3, 4)}).voters
        start = starting_at(10, 3, membership=Membership(1, tuple(voters), learner))
        solo = Solo("n4", size=4, start=start)
        for _ in range(5):
            hands.advance(solo.settings.election_max_ms / 1000)
            assert solo.tick() == []
        hands.advance(solo.settings.election_max_ms / 1000)
        asked = solo.tick()
        assert [peer for peer, _ in asked] == ["n1", "n2", "n3"]
        solo.election.answer("n1", PreVote(3, 1, True))
        assert solo.engine.role == library.FOLLOWER, "it does not count itself"
        solo.election.answer("n2", PreVote(3, 1, True))
        assert RequestVote in {type(message) for _, message in solo.tick()}


class TestFailover:
    def test_a_new_leader_is_there_within_two_seconds(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            loop = asyncio.get_running_loop()
            begun = loop.time()
            cluster.crash(leader)
            await cluster.led()
            assert loop.time() - begun < 2

        simulate(scenario)

    def test_a_leader_without_a_majority_stops_believing_that_it_leads(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            cluster.links.cut(leader)
            await cluster.until(lambda: not cluster[leader].leads, 1.2)
            assert "no leader is known" in cluster[leader].not_ready_reasons()

        simulate(scenario)

    def test_a_node_alone_leads_itself(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(1)
            await cluster.ready()
            outcome, _ = await cluster.append("n1")
            assert isinstance(outcome, Appended)

        simulate(scenario)


class TestANodeThatWasNotRun:
    """The machine had no time for it: what it did not hear in that time was perhaps said."""

    @pytest.mark.parametrize("away_s", [0.5, 1.5, 30.0])
    def test_where_nobody_was_run_nobody_is_doubted(self, away_s: float) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            term = cluster[leader].status().term
            for _ in range(5):
                be_away(away_s)
                await asyncio.sleep(0.3)
                for node_id in cluster.ids:
                    assert cluster[node_id].leader == leader
                    assert cluster[node_id].status().term == term
            outcome, _ = await cluster.append(leader)
            assert isinstance(outcome, Appended)

        simulate(scenario)

    def test_it_agrees_to_nobody_before_it_has_listened(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            one, other = cluster.followers()
            answers: list[PreVote] = []
            cluster.links.watchers.append(
                lambda sender, _, message: (
                    answers.append(message)
                    if sender == one and isinstance(message, PreVote)
                    else None
                )
            )
            be_away(2.0)
            term = cluster[leader].status().term
            cluster[one].received(other, PreVoteRequest(term + 1, 2**40, term, 7))
            assert [answer.granted for answer in answers] == [False]

        simulate(scenario)

    def test_what_it_reads_before_it_notices_gives_no_credit(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            one, other = cluster.followers()
            term = cluster[leader].status().term
            be_away(60.0)
            for node_id in (one, other):
                beat = AppendEntries(term, 10**6, term, 0, [])
                cluster[node_id].received(leader, beat)
                cluster[leader].received(node_id, Ack(term, 1, False, True))
            cluster.links.cut(leader)
            begun = asyncio.get_running_loop().time()
            await cluster.led(one, other)
            await cluster.until(lambda: not cluster[leader].leads)
            assert asyncio.get_running_loop().time() - begun < 3

        simulate(scenario)

    def test_a_dead_leader_is_replaced_also_by_nodes_that_are_seldom_run(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            cluster.crash(leader)
            begun = asyncio.get_running_loop().time()
            while cluster.leader() is None:
                be_away(0.3)
                await asyncio.sleep(0.02)
                assert asyncio.get_running_loop().time() - begun < 15

        simulate(scenario)

    def test_a_leader_that_nobody_answers_stops_leading_also_if_it_is_seldom_run(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            cluster.links.cut(leader)
            begun = asyncio.get_running_loop().time()
            while cluster[leader].leads:
                be_away(0.3)
                await asyncio.sleep(0.02)
                assert asyncio.get_running_loop().time() - begun < 15

        simulate(scenario)


def be_away(seconds: float) -> None:
    """Let time pass in which no node is run."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.moment += seconds


class TestHandOver:
    @pytest.mark.parametrize("asked", ["the leader", "a follower"])
    def test_leadership_goes_to_the_member_that_was_named(self, asked: str) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            target, other = cluster.followers()
            at = leader if asked == "the leader" else other
            assert await cluster[at].transfer_leadership(target, 3000) == target
            assert await cluster.led() == target
            await cluster.settled()
            cluster.check()

        simulate(scenario)

    def test_leadership_goes_to_the_furthest_where_nobody_is_named(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            assert await cluster[leader].transfer_leadership(None, 3000) in cluster.ids
            assert await cluster.led() != leader

        simulate(scenario)

    def test_no_append_fails_while_leadership_moves(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            target = cluster.followers()[0]
            appends = []
            for at in range(200):
                appends.append(asyncio.ensure_future(cluster.append(cluster.ids[at % 3])))
                if at == 100:
                    moving = asyncio.ensure_future(
                        cluster[leader].transfer_leadership(target, 3000)
                    )
                await asyncio.sleep(0.001)
            assert await moving == target
            results = await asyncio.gather(*appends, return_exceptions=True)
            errors = [one for one in results if isinstance(one, ExesdbError)]
            assert errors == []
            await cluster.settled()
            assert cluster[leader].state.stores["main"].position == 200
            cluster.check()

        simulate(scenario)

    def test_leadership_moves_also_while_entries_are_always_under_way(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            cluster.links.delay_s = lambda _: 0.02
            target = cluster.followers()[0]
            loop = asyncio.get_running_loop()
            end = loop.time() + 1.0

            async def write() -> None:
                while loop.time() < end:
                    await cluster.append(leader, None, 5000)

            writers = []
            for _ in range(20):
                writers.append(asyncio.ensure_future(write()))
                await asyncio.sleep(0.003)
            assert await cluster[leader].transfer_leadership(target, 500) == target
            await asyncio.gather(*writers)
            await cluster.settled()
            cluster.check()

        simulate(scenario)

    def test_nobody_shows_another_leader_than_the_one_it_follows(self) -> None:
        """What members say of themselves may be older than the last election."""

        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            await asyncio.sleep(1)  # all have said who they are
            for target in cluster.followers() * 2:
                await cluster[leader].transfer_leadership(target, 3000)
                leader = target
                for _ in range(60):
                    for node in cluster.ids:
                        status = cluster[node].status()
                        leads = [one.id for one in status.members if one.role == "leader"]
                        assert leads == [one for one in [status.leader] if one is not None]
                    await asyncio.sleep(0.005)

        simulate(scenario)

    def test_alone_there_is_nobody_to_hand_leadership_to(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(1)
            leader = await cluster.ready()
            with pytest.raises(NotReady):
                await cluster[leader].transfer_leadership(None, 60_000)
            assert cluster[leader].leads

        simulate(scenario)

    def test_a_member_that_is_down_cannot_be_given_leadership(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            target = cluster.followers()[0]
            cluster.crash(target)
            began = asyncio.get_running_loop().time()
            with pytest.raises(NotReady):
                await cluster[leader].transfer_leadership(target, 60_000)
            assert asyncio.get_running_loop().time() - began < 0.1
            with pytest.raises(NotReady, match="not connected"):  # asked at another one, too
                other = next(one for one in cluster.followers() if one != target)
                await cluster[other].transfer_leadership(target, 60_000)
            assert cluster[leader].leads
            outcome, _ = await cluster.append(leader)
            assert isinstance(outcome, Appended), "it goes on as if nothing had been asked"

        simulate(scenario)

    def test_a_member_that_does_not_take_over_holds_no_append_up_for_long(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            target, other = cluster.followers()
            cluster.links.blackholes |= {(target, leader), (target, other)}
            moving = asyncio.ensure_future(cluster[leader].transfer_leadership(target, 300_000))
            await asyncio.sleep(0.05)
            outcome, _ = await cluster.append(leader, None, 5000)
            assert isinstance(outcome, Appended), "however long who asked would wait"
            with pytest.raises(ReadBarrierTimeout):
                await moving
            assert cluster[leader].leads
            cluster.check()

        simulate(scenario)

    def test_of_two_hand_overs_at_once_the_first_to_end_lets_nothing_through(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, leader_wait_ms=400)
            leader = await cluster.ready()
            target, other = cluster.followers()
            cluster.links.blackholes |= {(target, leader), (target, other)}
            moving = [asyncio.ensure_future(cluster[leader].transfer_leadership(target, 60_000))]
            await asyncio.sleep(0.3)
            moving.append(
                asyncio.ensure_future(cluster[leader].transfer_leadership(target, 60_000))
            )
            await asyncio.wait(moving, return_when=asyncio.FIRST_COMPLETED)
            before = cluster[leader].counters()["entries_proposed"]
            waiting = asyncio.ensure_future(cluster.append(leader, None, 5000))
            await asyncio.sleep(0.1)
            assert not moving[1].done()
            assert cluster[leader].counters()["entries_proposed"] == before
            outcome, _ = await waiting
            assert isinstance(outcome, Appended), "once both are over"
            await asyncio.gather(*moving, return_exceptions=True)

        simulate(scenario)

    def test_nobody_can_be_given_leadership_who_is_no_member(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            with pytest.raises(MemberMissing):
                await cluster[leader].transfer_leadership("n9", 1000)

        simulate(scenario)

    def test_without_a_leader_there_is_nothing_to_hand_over(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            await cluster.start("n1")
            with pytest.raises(NoLeader):
                await cluster["n1"].transfer_leadership(None, 500)

        simulate(scenario)

    def test_a_recovering_node_does_not_take_over(self) -> None:
        solo = Solo(start=starting_at(0, 0, forgetful=True))
        solo.hear("n2", AppendEntries(1, 1, 0, 1, []))
        solo.hear("n2", TimeoutNow(1))
        assert solo.tick() is not None
        assert solo.engine.role == library.FOLLOWER

    def test_only_the_leader_can_ask_a_node_to_take_over(self) -> None:
        solo = Solo()
        solo.hear("n2", AppendEntries(1, 1, 0, 1, []))
        solo.hear("n3", TimeoutNow(1))
        solo.tick()
        assert solo.engine.role == library.FOLLOWER
        solo.hear("n2", TimeoutNow(1))
        solo.tick()
        assert solo.engine.role == library.CANDIDATE
