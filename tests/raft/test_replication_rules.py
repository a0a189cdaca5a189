"""What a follower keeps and a leader believes: stock beside ours (A1, A15-A17, a, k)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from node.raft import library
from node.raft.entries import encode_membership
from node.raft.membership import Member
from node.raft.messages import (
    Ack,
    AppendEntries,
    RequestVote,
    TermNotice,
    Vote,
)
from tests.raft.harness import Cluster
from tests.raft.solo import Solo, starting_at
from tests.raft.stock import StockCluster, StockNode
from tests.raft.virtual_time import Clock, clock, simulate


@pytest.fixture(autouse=True)
def time() -> Iterator[Clock]:
    """Solo nodes live on a clock that stands still."""
    hands = Clock()
    with clock(hands):
        yield hands


def follower(entries: int, term: int = 1) -> Solo:
    """A follower of n2 that holds `entries` entries behind the first, none of them committed."""
    solo = Solo()
    solo.hear("n2", AppendEntries(term, 1, 0, 1, [[term, b"e%d" % at] for at in range(entries)]))
    solo.take()
    return solo


class TestResending:
    """A1: a message that repeats what a follower has cuts what it acknowledged behind it."""

    def test_stock_drops_acknowledged_entries_when_an_older_message_is_repeated(self) -> None:
        with StockCluster() as cluster:
            leader = cluster.elect()
            other = next(one for one in cluster.ids if one != leader)
            captured: list[dict[str, Any]] = []

            def watch(_: str, receiver: str, message: dict[str, Any]) -> None:
                if receiver == other and message.get("entries"):
                    captured.append(message)

            cluster.network.watchers.append(watch)
            for item in range(10):
                cluster.nodes[leader].put(item)
                cluster.run(0.2)
            held = cluster.nodes[other].log[-1][0]
            cluster.network.ends[other].deliver(leader, captured[0])
            assert cluster.nodes[other].log[-1][0] < held
            assert cluster.nodes[other].raftCommitIndex < held, "even the commit index went back"

    def test_stock_leads_both_followers_behind_what_is_committed_and_loses_it(self) -> None:
        with StockCluster(
            seed=1,
            delay_s=0.02,
            raftMinTimeout=1.0,
            raftMaxTimeout=2.0,
            appendEntriesPeriod=0.02,
        ) as cluster:
            leader = cluster.elect()
            cluster.network.bytes_per_s = 10e6
            front = cluster.nodes[leader]
            others = [one for one in cluster.ids if one != leader]
            acknowledged: list[int] = []
            sent = 0

            def feed() -> None:
                nonlocal sent
                number = sent
                sent += 1
                front.put(
                    (number, "x" * 30_000),
                    callback=lambda _, error: acknowledged.append(number) if not error else None,
                )

            def shorter() -> bool:
                logs = [cluster.nodes[one].log[-1][0] for one in others]
                return all(last < front.raftCommitIndex for last in logs)

            assert cluster.run(5, until=shorter, each=feed, step_s=0.005)
            cluster.network.isolate(leader, cluster.ids)
            cluster.network.forget()
            cluster.run(8, without=[leader])
            survivor = cluster.nodes[cluster.leader(leader) or others[0]]
            kept = {item[0] for item in survivor.applied}
            assert set(acknowledged) - kept, "acknowledged events are gone with one leader"

    def test_ours_keeps_what_stands_behind_a_repeated_message(self) -> None:
        solo = follower(10)
        held = solo.log()
        for start in range(1, 10):
            term = 0 if start == 1 else 1
            repeated = AppendEntries(1, start, term, 1, [[1, b"e%d" % (start - 1)]])
            assert solo.hear("n2", repeated) == [("n2", Ack(1, start + 2, False, True))]
            assert solo.log() == held

    def test_ours_acknowledges_only_what_the_message_covered(self) -> None:
        solo = follower(10)
        heartbeat = AppendEntries(1, 4, 1, 11, [])
        assert solo.hear("n2", heartbeat) == [("n2", Ack(1, 5, False, True))]
        assert solo.engine.commit_index == 4, "what was not compared is not committed"

    def test_ours_takes_the_new_part_of_an_overlapping_message(self) -> None:
        solo = follower(3)
        message = AppendEntries(1, 2, 1, 3, [[1, b"e1"], [1, b"e2"], [1, b"new"]])
        assert solo.hear("n2", message) == [("n2", Ack(1, 6, False, True))]
        assert solo.log()[-1] == (5, 1)
        assert solo.engine.commit_index == 3

    def test_ours_cuts_where_the_terms_really_differ(self) -> None:
        solo = follower(5)
        message = AppendEntries(2, 3, 1, 1, [[2, b"other"]])
        assert solo.hear("n3", message) == [("n3", Ack(2, 5, False, True))]
        assert solo.log() == [(1, 0), (2, 1), (3, 1), (4, 2)]
        assert solo.journal.bytes == len(b"e0" + b"e1" + b"other")

    def test_ours_never_cuts_at_or_below_the_commit_index(self) -> None:
        solo = follower(5)
        solo.hear("n2", AppendEntries(1, 6, 1, 5, []))
        held = solo.log()
        solo.hear("n3", AppendEntries(2, 3, 1, 5, [[2, b"other"]]))
        assert solo.log() == held
        assert len(solo.guard.alarms) == 1

    def test_a_leader_sends_each_entry_once_to_a_follower_that_keeps_up(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            entries: list[int] = []

            def watch(sender: str, _: str, message: Any) -> None:
                if sender == leader and isinstance(message, AppendEntries):
                    entries.append(len(message.entries))

            cluster.links.watchers.append(watch)
            cluster.links.delay_s = lambda _: 0.02
            for _ in range(50):
                await cluster.append(leader)
            assert sum(entries) == 2 * 50
            cluster.check()

        simulate(scenario)


class TestConflicts:
    """A15, A16: replies to messages that do not fit."""

    def test_stock_needs_minutes_for_one_divergent_entry_under_a_backlog(self) -> None:
        with StockCluster(seed=5, appendEntriesBatchSizeBytes=2**16) as cluster:
            leader = cluster.elect()
            apart = next(one for one in cluster.ids if one != leader)
            cluster.network.isolate(apart, cluster.ids)
            node = cluster.nodes[apart]
            node._SyncObj__raftLog.add(b"\1", node.log[-1][0] + 1, 0)
            for _ in range(20):
                cluster.nodes[leader].put("x" * 10_000)
            cluster.run(1, without=[apart])
            cluster.network.heal(apart, cluster.ids)
            front = cluster.nodes[leader]
            converged = cluster.run(30, until=lambda: node.raftLastApplied == front.raftLastApplied)
            assert not converged

    def test_ours_needs_one_exchange_for_a_divergent_tail_under_a_backlog(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, peer_window_bytes=1 << 20)
            leader = await cluster.ready()
            apart = cluster.followers()[0]
            cluster.links.cut(apart)
            await cluster.fill_log(leader, 50)
            journal = cluster[apart]._journal
            for _ in range(300):
                journal.add(b"divergent", journal.last_index + 1, 0)
            cluster.links.heal()
            await cluster.until(
                lambda: cluster[apart].applied_index == cluster[leader].applied_index, 0.5
            )
            cluster.check()

        simulate(scenario)

    def test_a_reset_tells_the_commit_index_for_that_always_agrees(self) -> None:
        solo = follower(5)
        solo.hear("n2", AppendEntries(1, 6, 1, 4, []))
        assert solo.hear("n2", AppendEntries(1, 9, 1, 9, [])) == [("n2", Ack(1, 5, True, False))]

    def test_a_reset_never_takes_back_what_the_peer_is_known_to_hold(self) -> None:
        solo = Solo()
        solo.elect()
        for at in range(4):
            solo.engine.append(b"e%d" % at)
        solo.take()
        solo.hear("n2", Ack(1, 5, False, True))
        again = solo.hear("n2", Ack(1, 2, True, False))
        assert solo.engine.match_index("n2") == 4
        sent = [message for peer, message in again if peer == "n2"]
        assert [(one.prev_index, len(one.entries)) for one in sent] == [(4, 2)]

    def test_the_resets_behind_the_first_do_not_send_everything_again(self) -> None:
        solo = Solo()
        solo.elect()
        for at in range(4):
            solo.engine.append(b"e%d" % at)
        solo.take()
        first = solo.hear("n2", Ack(1, 2, True, False))
        again = solo.hear("n2", Ack(1, 2, True, False))
        assert [len(message.entries) for _, message in first if isinstance(message, AppendEntries)]
        assert again == []


class TestOldTerms:
    """A17 and a: what was said in an earlier term."""

    def test_stock_counts_an_ack_of_another_term(self) -> None:
        with StockCluster(5) as cluster:
            leader = cluster.elect()
            others = [one for one in cluster.ids if one != leader]
            for one in others[:3]:
                cluster.network.isolate(one, cluster.ids)
            late = {"type": "next_node_idx", "next_node_idx": 100, "reset": False, "success": True}
            for one in others[:2]:
                cluster.network.ends[leader].deliver(one, late)
            outcome: list[int] = []
            cluster.nodes[leader].put("x", callback=lambda _, error: outcome.append(error))
            cluster.run(0.3, without=others)
            assert outcome == [0], "acknowledged by a leader that has no majority"

    def test_ours_does_not_count_an_ack_of_another_term(self) -> None:
        solo = Solo(size=5)
        solo.elect()
        solo.engine.append(b"x")
        solo.take()
        for peer in ("n2", "n3"):
            assert solo.hear(peer, Ack(0, 4, False, True)) == []
        solo.tick()
        assert solo.engine.commit_index == 1
        assert solo.engine.match_index("n2") == 0

    def test_ours_steps_down_at_an_ack_of_a_higher_term(self) -> None:
        solo = Solo()
        solo.elect()
        solo.hear("n2", Ack(7, 2, False, True))
        assert (solo.engine.leads, solo.engine.term, solo.disk.term) == (False, 7, 7)

    def test_ours_does_not_believe_an_ack_of_what_was_never_sent(self) -> None:
        solo = Solo()
        solo.elect()
        solo.hear("n2", Ack(1, 100, False, True))
        solo.tick()
        assert solo.engine.match_index("n2") == 0
        assert len(solo.guard.alarms) == 1

    def test_stock_never_tells_a_deposed_leader(self) -> None:
        with StockCluster() as cluster:
            leader = cluster.elect()
            one = next(name for name in cluster.ids if name != leader)
            said: list[str] = []
            cluster.network.watchers.append(
                lambda sender, _, message: said.append(message["type"]) if sender == one else None
            )
            cluster.network.ends[one].deliver(
                leader,
                {"type": "append_entries", "term": -1, "commit_index": 1, "entries": []},
            )
            assert said == []

    @pytest.mark.parametrize(
        "message",
        [AppendEntries(3, 1, 0, 1, []), RequestVote(3, 1, 0)],
        ids=lambda message: type(message).__name__,
    )
    def test_ours_answers_an_old_term_with_the_current_one(self, message: Any) -> None:
        solo = Solo(start=starting_at(0, 0, term=5))
        assert solo.hear("n2", message) == [("n2", TermNotice(5))]
        assert solo.engine.leader is None

    def test_a_deposed_leader_steps_down_at_the_notice(self) -> None:
        solo = Solo()
        solo.elect()
        solo.hear("n2", TermNotice(9))
        assert (solo.engine.role, solo.engine.term, solo.disk.term) == ("follower", 9, 9)


class TestTwoLeaders:
    """k: a second leader in one term."""

    def test_stock_obeys_a_second_leader_of_one_term(self) -> None:
        with StockCluster() as cluster:
            leader = cluster.elect()
            other = next(one for one in cluster.ids if one != leader)
            node: StockNode = cluster.nodes[leader]
            cluster.network.ends[leader].deliver(
                other,
                {
                    "type": "append_entries",
                    "term": node.term,
                    "commit_index": 1,
                    "entries": [],
                    "prevLogIdx": 1,
                    "prevLogTerm": 0,
                },
            )
            assert not node.leads
            assert node.log == [(1, 0)], "it even dropped its own committed entry"

    def test_ours_refuses_a_second_leader_and_reports_it(self) -> None:
        solo = follower(2)
        held = solo.log()
        assert solo.hear("n3", AppendEntries(1, 1, 0, 1, [[1, b"x"]])) == []
        assert (solo.log(), solo.engine.leader) == (held, "n2")
        assert len(solo.guard.alarms) == 1

    def test_ours_refuses_it_also_when_the_first_has_been_silent_for_long(
        self, time: Clock
    ) -> None:
        solo = follower(2)
        time.advance(5)
        solo.tick()
        assert solo.engine.leader is None
        assert solo.hear("n3", AppendEntries(1, 1, 0, 1, [[1, b"x"]])) == []
        assert len(solo.guard.alarms) == 1

    def test_ours_goes_on_leading_when_another_claims_its_term(self) -> None:
        solo = Solo()
        solo.elect()
        assert solo.hear("n2", AppendEntries(1, 1, 0, 1, [])) == []
        assert solo.engine.leads
        assert len(solo.guard.alarms) == 1


class TestStrangers:
    """a: the word of who is no member."""

    def test_stock_trips_over_an_ack_of_a_stranger(self) -> None:
        with StockCluster() as cluster:
            leader = cluster.elect()
            ack = {"type": "next_node_idx", "next_node_idx": 2, "reset": False, "success": True}
            cluster.network.ends[leader].deliver("n9", ack)
            assert cluster.network.ends[leader].errors

    def test_ours_does_not_count_an_ack_of_a_stranger(self) -> None:
        solo = Solo()
        solo.elect()
        solo.engine.append(b"x")
        solo.take()
        assert solo.hear("n9", Ack(1, 4, False, True)) == []
        solo.tick()
        assert (solo.engine.commit_index, solo.engine.match_index("n9")) == (1, 0)

    def test_ours_counts_neither_the_ack_nor_the_vote_of_a_learner(self) -> None:
        solo = Solo()
        learning = solo.settings.founding.with_learner(Member("n4", "n4:1"))
        solo.hear("n2", AppendEntries(1, 1, 0, 1, [[1, encode_membership(learning)]]))
        solo.engine.stand()
        solo.tick()
        solo.hear("n4", Vote(2))
        assert solo.engine.role == library.CANDIDATE
        solo.hear("n3", Vote(2))
        assert solo.engine.leads
        solo.hear("n4", Ack(2, 4, False, True))
        solo.tick()
        assert (solo.engine.match_index("n4"), solo.engine.commit_index) == (3, 1)
        solo.hear("n3", Ack(2, 4, False, True))
        solo.tick()
        assert solo.engine.commit_index == 3

    def test_a_leader_that_is_no_voter_any_more_does_not_count_itself(self) -> None:
        solo = Solo()
        solo.elect()
        solo.engine.append(encode_membership(solo.settings.founding.without("n1")))
        solo.hear("n2", Ack(1, 4, False, True))
        solo.tick()
        assert solo.engine.commit_index == 1
        solo.hear("n3", Ack(1, 4, False, True))
        solo.tick()
        assert solo.engine.commit_index == 3

    def test_a_term_that_no_elections_could_have_led_to_is_not_believed(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            term = cluster[leader].status().term
            cluster[leader].received(cluster.followers()[0], TermNotice(2**62))
            assert cluster[leader].leads
            assert cluster[leader].status().term == term
            assert len(cluster[leader].alarms) == 1

        simulate(scenario)


class TestAfterARestart:
    """Messages that reach below the base of the log."""

    def test_entries_up_to_the_base_are_taken_as_known(self) -> None:
        solo = Solo(start=starting_at(10, 3))
        message = AppendEntries(4, 8, 3, 11, [[3, b"a"], [3, b"b"], [4, b"c"]])
        assert solo.hear("n2", message) == [("n2", Ack(4, 12, False, True))]
        assert solo.log() == [(10, 3), (11, 4)]

    def test_another_term_at_the_base_is_refused_and_reported(self) -> None:
        solo = Solo(start=starting_at(10, 3))
        message = AppendEntries(4, 8, 2, 11, [[2, b"a"], [2, b"b"], [4, b"c"]])
        assert solo.hear("n2", message) == [("n2", Ack(4, 11, True, False))]
        assert solo.log() == [(10, 3)]
        assert len(solo.guard.alarms) == 1

    def test_a_message_that_ends_before_the_base_is_answered_by_a_reset(self) -> None:
        solo = Solo(start=starting_at(10, 3))
        assert solo.hear("n2", AppendEntries(4, 2, 1, 11, [[1, b"a"]])) == [
            ("n2", Ack(4, 11, True, False))
        ]
        assert solo.guard.alarms == []

    def test_a_tail_of_another_history_than_the_cut_is_not_taken(self) -> None:
        # Entry 11 stood behind another entry 10 than the one that was committed in the end.
        start = starting_at(10, 2, term=4, tail=((10, 1, b"a"), (11, 3, b"b")))
        assert Solo(start=start).log() == [(10, 2)]

    def test_a_tail_that_follows_the_cut_is_taken(self) -> None:
        start = starting_at(10, 2, term=4, tail=((10, 2, b"a"), (11, 3, b"b"), (12, 3, b"c")))
        solo = Solo(start=start)
        assert solo.log() == [(10, 2), (11, 3), (12, 3)]
        assert solo.engine.commit_index == 10, "a tail is not committed by being there"


def test_votes_of_an_old_term_do_not_count() -> None:
    solo = Solo()
    solo.engine.stand()
    solo.engine.tick()
    for peer in ("n2", "n3"):
        solo.hear(peer, Vote(solo.engine.term - 1))
    assert solo.engine.role == library.CANDIDATE


def test_a_vote_of_an_older_term_than_the_log_is_not_taken_for_one_of_the_log_s_term() -> None:
    solo = Solo(start=starting_at(10, 4, term=3, vote="n2"))
    assert (solo.engine.term, solo.journal.getVotedForNodeId()) == (4, None)
