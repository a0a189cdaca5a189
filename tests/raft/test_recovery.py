"""Nodes that may have forgotten what they promised (A4, A5, A10, and section 2 of the argument)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import ClassVar

import pytest

from node.errors import OutcomeUnknown
from node.raft import library
from node.raft.membership import Membership, founding
from node.raft.messages import (
    Ack,
    AppendEntries,
    PreVote,
    PreVoteRequest,
    RecoveryReport,
    RecoveryRequest,
    RequestVote,
    TermNotice,
    Vote,
)
from node.raft.ports import StartingPoint
from tests.raft.harness import Cluster
from tests.raft.solo import Disk, Solo, starting_at
from tests.raft.stock import StockCluster
from tests.raft.virtual_time import Clock, clock, simulate

NOBODY = [0, [], None]  # says nothing of a membership
JOINING = Membership.from_plain(NOBODY)


@pytest.fixture(autouse=True)
def hands() -> Iterator[Clock]:
    """Solo nodes live on a clock that the test turns."""
    hands = Clock()
    with clock(hands):
        yield hands


def recovering(term: int = 4, index: int = 10) -> Solo:
    """A node of three that may have forgotten something, and has asked its first round."""
    solo = Solo(start=starting_at(index, 3, term=term, forgetful=True))
    asked = solo.tick()
    assert {type(message) for _, message in asked} == {RecoveryRequest}
    return solo


def nonce_of(solo: Solo) -> int:
    """The nonce of the round that is under way."""
    return solo.recovery._nonce


def report(solo: Solo, **changes: object) -> RecoveryReport:
    """The answer of a leader of term 5 whose log ends at 12."""
    answer = RecoveryReport(nonce_of(solo), 5, True, False, 5, 12, NOBODY, NOBODY)
    return answer._replace(**changes)  # type: ignore[arg-type]


class TestStock:
    def test_stock_elects_a_node_without_an_acknowledged_event_after_one_restart(self) -> None:
        """A5."""
        with StockCluster() as cluster:
            leader = cluster.elect()
            restarted, slow = (one for one in cluster.ids if one != leader)
            cluster.network.isolate(slow, cluster.ids)
            told: list[int] = []
            cluster.nodes[leader].put("acked", callback=lambda _, error: told.append(error))
            cluster.run(0.5, without=[slow])
            assert told == [0]
            cluster.network.isolate(leader, cluster.ids)
            cluster.nodes[restarted] = cluster.make(restarted)
            cluster.network.heal(slow, [restarted, slow])
            rest = cluster.nodes
            assert cluster.run(9, without=[leader], until=lambda: cluster.leader(leader))
            successor = rest[cluster.leader(leader) or ""]
            assert not any(b"acked" in entry for entry in successor.entries)

    def test_stock_restarts_from_a_dump_with_a_term_below_that_of_its_log(
        self, tmp_path: object
    ) -> None:
        """A4."""
        with StockCluster(fullDumpFile=None) as cluster:
            cluster.elect()
            for _ in range(3):
                leader = cluster.leader() or ""
                cluster.network.isolate(leader, cluster.ids)
                cluster.run(4, until=lambda one=leader: cluster.leader(one), without=[leader])
                cluster.network.heal(leader, cluster.ids)
                cluster.run(1)
            leader = cluster.leader() or ""
            node = cluster.nodes[leader]
            node.put("x")
            cluster.run(1)
            node.conf.fullDumpFile = f"{tmp_path}/dump"
            node._SyncObj__serializer._Serializer__fileName = f"{tmp_path}/dump"
            node._SyncObj__serializer._Serializer__useFork = False
            node.forceLogCompaction()
            cluster.run(0.5)
            cluster.conf["fullDumpFile"] = f"{tmp_path}/dump"
            again = cluster.make(leader)
            before = again.log
            again.doTick(0)
            assert before == [(1, 0)], "A10: until its first tick it takes part without its state"
            assert again.log[-1][1] > again.term


class TestRules:
    def test_it_gives_no_vote_and_no_pre_vote(self) -> None:
        solo = recovering()
        assert solo.hear("n2", RequestVote(9, 99, 8)) == []
        assert (solo.engine.term, solo.disk.vote) == (9, None), "but learns of the term"
        solo.election.request("n2", PreVoteRequest(10, 99, 8, 1))
        assert solo.take() == [("n2", PreVote(9, 1, False))]

    def test_it_never_stands(self, hands: Clock) -> None:
        solo = recovering()
        for _ in range(20):
            hands.advance(1)
            assert not any(isinstance(message, PreVoteRequest) for _, message in solo.tick())
        assert solo.engine.role == library.FOLLOWER

    def test_it_takes_entries_while_it_recovers(self) -> None:
        solo = recovering()
        said = solo.hear("n2", AppendEntries(5, 10, 3, 10, [[5, b"x"]]))
        assert said == [("n2", Ack(5, 12, False, True))]
        assert solo.recovery.active

    def test_it_leaves_when_it_holds_what_the_leader_held_when_it_answered(self) -> None:
        solo = recovering()
        solo.hear("n2", AppendEntries(5, 10, 3, 10, [[5, b"x"]]))
        solo.recovery.report("n2", report(solo))
        solo.tick()
        assert solo.recovery.active, "entry 12 is still missing"
        assert solo.disk.forgetful
        solo.hear("n2", AppendEntries(5, 11, 5, 10, [[5, b"y"]]))
        solo.tick()
        assert not solo.recovery.active
        assert not solo.disk.forgetful, "and it is on disk that nothing is missing any more"

    def test_contact_with_a_leader_alone_is_not_enough(self) -> None:
        solo = recovering()
        solo.hear("n2", AppendEntries(5, 10, 3, 10, [[5, b"x"], [5, b"y"]]))
        solo.tick()
        assert solo.recovery.active

    def test_what_another_leader_verified_does_not_count(self) -> None:
        solo = recovering()
        solo.hear("n3", AppendEntries(5, 10, 3, 10, [[5, b"x"], [5, b"y"], [5, b"z"]]))
        solo.hear("n2", AppendEntries(6, 10, 3, 10, []))
        solo.recovery.report("n2", report(solo, term=6))
        solo.tick()
        assert solo.recovery.active
        assert solo.engine.verified_index == 10

    def test_it_does_not_count_either_where_the_new_leader_has_not_verified_anything_yet(
        self,
    ) -> None:
        solo = recovering()
        solo.hear("n3", AppendEntries(5, 10, 3, 10, [[5, b"x"], [5, b"y"], [5, b"z"]]))
        solo.hear("n2", AppendEntries(6, 20, 6, 10, []))  # it does not fit: nothing is compared
        solo.recovery.report("n2", report(solo, term=6))
        solo.tick()
        assert solo.recovery.active

    def test_the_answer_of_a_leader_that_leads_no_more_is_of_no_use(self) -> None:
        solo = recovering()
        solo.hear("n2", AppendEntries(5, 10, 3, 10, []))
        solo.recovery.report("n2", report(solo))
        solo.hear("n3", AppendEntries(6, 10, 3, 10, [[6, b"x"], [6, b"y"]]))
        solo.tick()
        assert solo.recovery.active, "entry 12 is here, but another one than n2 spoke of"

    @pytest.mark.parametrize(
        ("why", "changes"),
        [
            ("it answers an older round", {"nonce": 1}),
            ("its term is older than what this node promised", {"term": 3}),
            ("it does not lead", {"leads": False}),
            ("it is recovering itself", {"recovering": True}),
        ],
    )
    def test_a_report_is_of_no_use_if(self, why: str, changes: dict[str, object]) -> None:
        solo = recovering()
        solo.hear("n2", AppendEntries(5, 10, 3, 10, [[5, b"x"], [5, b"y"]]))
        solo.recovery.report("n2", report(solo, **changes))
        solo.tick()
        assert solo.recovery.active, why

    def test_each_round_has_a_nonce_of_its_own_and_of_its_incarnation(self, hands: Clock) -> None:
        nonces = []
        for incarnation in (1, 2):
            start = starting_at(0, 0, incarnation=incarnation, forgetful=True)
            solo = Solo(start=start)
            for _ in range(3):
                hands.advance(1)
                nonces += {
                    message.nonce
                    for _, message in solo.tick()
                    if isinstance(message, RecoveryRequest)
                }
        assert len(set(nonces)) == 6

    def test_whoever_is_asked_by_a_node_of_a_higher_term_steps_down_to_it(self) -> None:
        solo = Solo()
        solo.elect()
        solo.recovery.request("n2", RecoveryRequest(1, 9))
        assert (solo.engine.role, solo.disk.term) == (library.FOLLOWER, 9)
        founding = solo.settings.founding.plain()
        assert solo.take() == [("n2", RecoveryReport(1, 9, False, False, 1, 2, founding, founding))]


class TestBlank:
    """Without a state file a node does not know its own term."""

    def blank(self, **changes: object) -> Solo:
        """A voter of three that has asked its first round."""
        solo = Solo(start=StartingPoint(1, 0, None, 0, 0, forgetful=True, blank=True), **changes)
        solo.tick()
        return solo

    def answers(self, solo: Solo, **terms: int) -> None:
        for peer, term in terms.items():
            leads = peer == "n2"
            solo.recovery.report(peer, report(solo, term=term, leads=leads, last_index=2))
        solo.tick()

    def learns(self, solo: Solo, members: list[object]) -> None:
        solo.journal.memberships.learned(Membership.from_plain(members))
        solo.tick()

    def test_it_obeys_nobody_before_all_have_answered(self) -> None:
        solo = self.blank()
        entries = AppendEntries(5, 1, 0, 1, [[5, b"x"]])
        assert solo.hear("n2", entries) == []
        self.answers(solo, n2=5)
        assert solo.hear("n2", entries) == []
        assert "n3" in solo.recovery.waits_for()
        self.answers(solo, n2=5, n3=5)
        assert solo.hear("n2", entries) == [("n2", Ack(5, 3, False, True))]
        solo.tick()
        assert not solo.recovery.active
        assert not solo.disk.blank

    def test_it_takes_part_in_no_term_before_the_latest_that_anybody_knows(self) -> None:
        solo = self.blank()
        self.answers(solo, n2=5, n3=7)
        assert solo.hear("n2", AppendEntries(5, 1, 0, 1, [])) == [("n2", TermNotice(7))]
        assert solo.disk.term == 7, "and that is on disk"

    def test_it_gives_no_vote_in_that_term_because_it_may_have_given_one(self) -> None:
        solo = self.blank()
        self.answers(solo, n2=5, n3=5)
        solo.hear("n2", AppendEntries(5, 1, 0, 1, [[5, b"x"]]))
        solo.tick()
        assert not solo.recovery.active
        assert solo.hear("n3", RequestVote(5, 9, 5)) == []
        assert solo.hear("n3", RequestVote(6, 9, 5)) == [("n3", Vote(6))]

    def test_answers_of_different_rounds_are_not_added_up(self, hands: Clock) -> None:
        solo = self.blank()
        self.answers(solo, n2=5)
        hands.advance(1)
        solo.tick()
        self.answers(solo, n3=5)
        assert solo.hear("n2", AppendEntries(5, 1, 0, 1, [])) == []

    def test_it_does_not_take_back_a_vote_that_it_still_knows(self) -> None:
        start = StartingPoint(2, 6, "n3", 0, 0, forgetful=True, blank=True)
        solo = Solo(start=start, disk=Disk(term=6, vote="n3"))
        solo.tick()
        self.answers(solo, n2=5, n3=6)
        assert (solo.disk.term, solo.disk.vote) == (6, "n3")

    def test_who_is_not_counted_asks_too_for_it_may_have_been_counted_later(self) -> None:
        voters = Membership.from_plain([3, [["n2", "n2:1"], ["n3", "n3:1"]], ["n1", "n1:1", 0, 0]])
        start = StartingPoint(
            1, 0, None, 0, 0, forgetful=True, blank=True, membership=voters, heard=voters
        )
        solo = Solo(start=start)
        solo.tick()
        entries = AppendEntries(5, 1, 0, 1, [[5, b"x"]])
        assert solo.hear("n2", entries) == []
        self.answers(solo, n2=5, n3=5)
        assert solo.hear("n2", entries) == [("n2", Ack(5, 3, False, True))]

    def test_the_one_that_is_being_added_is_asked_like_a_voter(self) -> None:
        voters = [3, [["n1", "n1:1"], ["n2", "n2:1"]], ["n3", "n3:1", 0, 0]]
        known = Membership.from_plain(voters)
        start = StartingPoint(
            1, 0, None, 0, 0, forgetful=True, blank=True, membership=known, heard=known
        )
        solo = Solo(start=start)
        solo.tick()
        self.answers(solo, n2=5)
        assert not solo.recovery.may_obey()
        assert "n3" in solo.recovery.waits_for()
        self.answers(solo, n2=5, n3=6)
        assert solo.recovery.may_obey()
        assert solo.disk.term == 6

    def test_answers_from_before_a_removal_are_not_enough_after_it(self, hands: Clock) -> None:
        """The one that was removed may have been elected by those that had answered, and led."""
        solo = self.blank()
        self.answers(solo, n2=5)
        self.learns(solo, [1, [["n1", "n1:1"], ["n2", "n2:1"]], None])
        assert not solo.recovery.may_obey()
        hands.advance(1)
        solo.tick()
        self.answers(solo, n2=6)
        assert solo.recovery.may_obey() and solo.disk.term == 6

    def test_who_was_the_only_voter_once_waits_for_those_that_came_later(
        self, hands: Clock
    ) -> None:
        """Seed 938072 of 3 nodes: a removed node told of that time, and no other was reached."""
        solo = self.blank()
        self.learns(solo, [2, [["n1", "n1:1"]], None])
        self.answers(solo, n2=5, n3=5)
        assert solo.recovery.active and not solo.recovery.may_obey()
        assert not solo.recovery.may_stand()
        assert "added when this node was the only one" in solo.recovery.waits_for()
        self.learns(solo, [6, [["n1", "n1:1"], ["n3", "n3:1"], ["n4", "n4:1"]], None])
        assert "n4" in solo.recovery.waits_for()
        hands.advance(1)
        solo.tick()
        self.answers(solo, n3=5, n4=7)
        assert solo.recovery.may_obey()

    def test_a_deposed_leader_cannot_commit_with_a_voter_that_lost_its_disk(self) -> None:
        """Seed 31286 of 3 nodes: the voter had elected, and acknowledged, in a later term."""

        async def scenario() -> None:
            # A leader that is not run for a while does not notice that it leads no more.
            cluster = Cluster(3, leader_fallback_ms=60_000)
            deposed = await cluster.ready()
            one, other = cluster.followers()
            victim, command = await cluster.wiped_meets_deposed(deposed, one, other)
            with pytest.raises(OutcomeUnknown):
                await cluster.append(deposed, None, 5_000)
            cluster.links.heal()
            await cluster.settled()
            assert cluster.holds(victim, command)
            assert cluster.holds(deposed, command)
            cluster.check()

        simulate(scenario)


class TestColdStart:
    def rounds(self, solo: Solo, *reports: tuple[int, int], leads: bool = False) -> None:
        """Let the others answer with these logs, and the next round begin."""
        for peer, (last_term, last_index) in zip(("n2", "n3"), reports, strict=False):
            answer = RecoveryReport(
                nonce_of(solo), 4, leads, True, last_term, last_index, NOBODY, NOBODY
            )
            solo.recovery.report(peer, answer)

    def test_when_all_have_answered_the_longest_log_may_lead(self, hands: Clock) -> None:
        solo = recovering(index=10)
        self.rounds(solo, (3, 12), (2, 40))
        hands.advance(1)
        solo.tick()
        assert not solo.recovery.may_stand()
        assert not solo.recovery.may_vote_for(3, 11)
        assert not solo.recovery.may_vote_for(2, 40), "terms come before indexes"
        assert solo.recovery.may_vote_for(3, 12)

    def test_a_missing_member_might_remember_more(self, hands: Clock) -> None:
        solo = recovering(index=10)
        for _ in range(10):
            self.rounds(solo, (3, 1))
            hands.advance(1)
            solo.tick()
        assert not solo.recovery.may_stand()

    def test_answers_of_different_rounds_are_not_added_up(self, hands: Clock) -> None:
        solo = recovering(index=10)
        self.rounds(solo, (3, 1))
        hands.advance(1)
        solo.tick()
        solo.recovery.report(
            "n3", RecoveryReport(nonce_of(solo), 4, False, True, 3, 1, NOBODY, NOBODY)
        )
        hands.advance(1)
        solo.tick()
        assert not solo.recovery.may_stand()

    def test_there_is_no_floor_while_somebody_leads(self, hands: Clock) -> None:
        solo = recovering(index=10)
        self.rounds(solo, (3, 1), (3, 1), leads=True)
        hands.advance(1)
        solo.tick()
        assert not solo.recovery.may_stand()

    def test_the_log_of_one_that_was_removed_makes_no_floor(self, hands: Clock) -> None:
        """It runs on with what the members have lost, and nobody that is counted can reach it."""
        solo = recovering(index=10)
        two = solo.engine.membership.without("n3").plain()
        for _ in range(2):  # in the first round it hears of the removal
            assert not solo.recovery.may_stand()
            for peer, log in (("n2", (3, 1)), ("n3", (3, 11))):
                answer = report(
                    solo, leads=False, recovering=True, term=4, committed=two, heard=two
                )
                solo.recovery.report(peer, answer._replace(last_term=log[0], last_index=log[1]))
            hands.advance(1)
            solo.tick()
        assert solo.recovery.may_stand()

    def test_answers_that_take_longer_than_a_round_are_waited_for(self, hands: Clock) -> None:
        solo = recovering(index=10)
        for _ in range(8):
            nonce = nonce_of(solo)
            hands.advance(1.5)  # there and back
            solo.tick()
            if nonce_of(solo) == nonce:
                for peer in ("n2", "n3"):
                    solo.recovery.report(peer, report(solo, leads=False, last_term=3, last_index=1))
                hands.advance(3)
                solo.tick()
                break
        assert solo.recovery.may_stand()

    def test_a_vote_under_the_floor_still_compares_the_logs(self, hands: Clock) -> None:
        solo = recovering(index=10)
        self.rounds(solo, (3, 1), (3, 1))
        hands.advance(1)
        solo.tick()
        solo.hear("n3", AppendEntries(5, 10, 3, 10, [[5, b"x"]]))
        assert solo.hear("n2", RequestVote(6, 10, 3)) == []


class TestWords:
    """What an operator reads in status, health and log: what this node waits for."""

    def test_at_first_it_waits_for_everybody(self) -> None:
        words = recovering().recovery.waits_for()
        assert words == "an answer of n2, n3 (a cold start needs all members), or a leader"

    def test_who_answered_the_last_round_is_not_called_silent_in_the_next(
        self, hands: Clock
    ) -> None:
        solo = recovering()
        solo.recovery.report("n2", report(solo, leads=False))
        for _ in range(2):
            assert "an answer of n3 (" in solo.recovery.waits_for()
            hands.advance(5)  # longer than any round
            solo.tick()
        assert "an answer of n2, n3 (" in solo.recovery.waits_for(), "two rounds later it is"

    def test_a_leader_that_is_only_known_by_an_answer(self) -> None:
        solo = recovering()
        solo.recovery.report("n2", report(solo))
        assert solo.recovery.waits_for() == "entries of n2, which leads"

    def test_a_leader_that_sends_entries_and_how_far_they_are(self) -> None:
        solo = recovering()
        solo.hear("n2", AppendEntries(5, 10, 3, 10, [[5, b"x"]]))
        solo.recovery.report("n2", report(solo, last_index=5_000))
        assert solo.recovery.waits_for() == "entries of leader n2: 11 of 5,000 are here"

    def test_all_answered_and_nobody_leads(self) -> None:
        solo = recovering()
        for peer in ("n2", "n3"):
            solo.recovery.report(peer, report(solo, leads=False))
        words = solo.recovery.waits_for()
        assert words == "an election: all members have answered, and nobody leads"

    def test_the_log_tells_it_when_it_changes_and_at_most_every_few_seconds(
        self, hands: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "node.raft.recovery")
        solo = recovering()
        for _ in range(30):
            hands.advance(0.3)
            solo.tick()
            for peer in ("n2", "n3"):
                solo.recovery.report(peer, report(solo, leads=False))
        assert [record.getMessage() for record in caplog.records] == [
            "recovering: waits for an answer of n2, n3 (a cold start needs all members), "
            "or a leader",
            "recovering: waits for an election: all members have answered, and nobody leads",
        ]

    def test_a_node_that_nobody_has_taken_in(self) -> None:
        start = starting_at(0, 0, forgetful=True, membership=JOINING, heard=JOINING)
        assert (
            Solo(start=start).recovery.waits_for()
            == "the members to take it in (`member add n1 n1:1`)"
        )


class TestClusters:
    def test_a_killed_node_comes_back_and_nothing_is_lost(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            command = cluster.command()
            victim, slow = cluster.followers()
            cluster.links.cut(slow)
            await cluster.append(leader, command)
            cluster.crash(victim)
            cluster.links.cut(leader)
            cluster.links.heal(slow)
            cluster.links.cut_pair(leader, slow)
            await cluster.start(victim)
            await asyncio.sleep(20)
            assert cluster.leader() is None, "the two that are connected do not know of the event"
            cluster.links.heal()
            await cluster.settled()
            assert cluster.holds(victim, command)
            assert cluster.holds(slow, command)
            cluster.check()

        simulate(scenario)

    def test_a_cluster_killed_as_a_whole_waits_for_all_members(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            await cluster.fill_log(leader, 10)
            await cluster.settled()
            cluster.persist()
            cluster.crash()
            await cluster.start("n1", "n2")
            await asyncio.sleep(20)
            assert cluster.leader() is None
            assert cluster["n1"].not_ready_reasons()[0] == (
                "recovering: waits for an answer of n3 (a cold start needs all members), "
                "or a leader"
            )
            await cluster.start("n3")
            await cluster.settled()
            assert len(cluster.contents("n1")) == 10
            cluster.check()

        simulate(scenario)

    def test_after_a_cold_start_the_disk_that_reached_furthest_wins(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            cluster.persist()
            await cluster.fill_log(leader, 10)
            await cluster.settled()
            cluster.persist("n2")
            cluster.crash()
            await cluster.start()
            await cluster.settled()
            assert all(len(cluster.contents(node_id)) == 10 for node_id in cluster.ids)
            cluster.check()

        simulate(scenario)

    @pytest.mark.parametrize("survivor", ["the leader", "a follower"])
    def test_when_all_but_one_are_killed_what_the_one_remembers_is_kept(
        self, survivor: str
    ) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            await cluster.fill_log(leader, 10)
            await cluster.settled()
            left = leader if survivor == "the leader" else cluster.followers()[0]
            cluster.crash(*(one for one in cluster.ids if one != left))
            await asyncio.sleep(3)
            await cluster.start()
            await cluster.settled()
            assert all(len(cluster.contents(node_id)) == 10 for node_id in cluster.ids)
            cluster.check()

        simulate(scenario)

    def test_killed_again_and_again_while_it_recovers_a_node_still_comes_back(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            victim = cluster.followers()[0]
            for at in range(10):
                await cluster.fill_log(leader, 3)
                cluster.crash(victim)
                await cluster.start(victim)
                await asyncio.sleep(0.001 * at)
            await cluster.settled()
            assert len(cluster.contents(victim)) == 30
            cluster.check()

        simulate(scenario)

    def test_killed_nodes_that_kept_a_tail_need_no_recovery_and_lose_nothing(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, tails=True)
            leader = await cluster.ready()
            for number in range(5):
                await cluster.fill_log(leader, 10)
                if number % 2:
                    cluster.persist("n1", "n2")
                cluster.crash()
                await cluster.start("n1", "n3")
                assert not cluster["n1"].recovering and not cluster["n3"].recovering
                leader = await cluster.led()
                await cluster.start("n2")
                await cluster.settled()
                assert len(cluster.contents(leader)) == 10 * (number + 1)
                leader = await cluster.led()
            cluster.check()

        simulate(scenario)

    def test_who_is_killed_or_stopped_while_it_recovers_goes_on_with_that(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, tails=True)
            await cluster.start("n1")
            cluster.crash("n1")
            await cluster.start("n1")
            assert cluster["n1"].recovering
            await cluster.stop("n1")
            await cluster.start("n1")
            assert cluster["n1"].recovering
            await cluster.start()
            await cluster.settled()
            cluster.crash("n1")
            await cluster.start("n1")
            assert not cluster["n1"].recovering
            cluster.check()

        simulate(scenario)

    def test_who_was_filled_has_forgotten_until_its_disk_has_that(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, tails=True, log_tail_entries_max=10)
            leader = await cluster.ready()
            victim = cluster.followers()[0]
            cluster.crash(victim)
            await cluster.fill_log(leader, 500)
            cluster.persist()
            await asyncio.sleep(1)
            await cluster.start(victim)
            await cluster.settled()
            assert cluster[victim]._journal.base_index > 100, "it was filled"
            cluster.crash(victim)
            await cluster.start(victim)
            assert cluster[victim].recovering
            await cluster.settled()
            cluster.persist(victim)
            cluster.crash(victim)
            await cluster.start(victim)
            assert not cluster[victim].recovering
            cluster.check()

        simulate(scenario)

    def test_nodes_stopped_in_order_need_no_recovery(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            await cluster.fill_log(leader, 10)
            await cluster.stop()
            await cluster.start("n1", "n2")
            assert not cluster["n1"].recovering
            await cluster.led()
            assert len(cluster.contents(await cluster.led())) == 10
            cluster.check()

        simulate(scenario)

    def test_a_wiped_node_never_votes_by_itself(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            victim = cluster.followers()[0]
            await cluster.fill_log(leader, 5)
            cluster.crash(victim)
            cluster.wipe(victim)
            cluster.crash(leader)
            await cluster.start(victim)
            await asyncio.sleep(20)
            assert cluster.leader() is None
            assert cluster.disks[victim].vote is None
            await cluster.start(leader)
            await cluster.settled()
            cluster.check()

        simulate(scenario)

    def test_a_wiped_node_is_filled_like_a_new_one(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            await cluster.fill_log(leader, 20)
            victim = cluster.followers()[0]
            cluster.crash(victim)
            cluster.wipe(victim)
            await cluster.start(victim)
            await cluster.settled()
            assert len(cluster.contents(victim)) == 20
            cluster.check()

        simulate(scenario)

    def test_a_restarted_follower_s_earlier_word_counts_no_more(self) -> None:
        """What the leader knew of its log was known of its earlier life."""

        async def scenario() -> None:
            cluster = Cluster(5)
            leader = await cluster.ready()
            victim, *others = cluster.followers()
            cluster.links.cut(*others)
            waiting = asyncio.ensure_future(cluster.append(leader, None, 900))
            engine = cluster[leader]._engine
            held = engine.match_index(victim)
            await cluster.until(lambda: engine.match_index(victim) > held)
            cluster.crash(victim)
            await cluster.start(victim)
            await asyncio.sleep(0.0005)
            assert engine.match_index(victim) == 0
            waiting.cancel()

        simulate(scenario)


class TestMemberships:
    """Who all members are may have been forgotten, too."""

    FOUR: ClassVar = [1, [[f"n{at}", f"n{at}:1"] for at in range(1, 5)], None]
    TWO: ClassVar = [1, [[f"n{at}", f"n{at}:1"] for at in range(1, 3)], None]

    def answers(self, solo: Solo, hands: Clock, **memberships: list[list[object]]) -> None:
        """Let these peers answer one round with what they know, and the next round begin."""
        for peer, (committed, heard) in memberships.items():
            answer = RecoveryReport(nonce_of(solo), 4, False, True, 3, 1, committed, heard)
            solo.recovery.report(peer, answer)
        hands.advance(1)
        self.asked = {peer for peer, message in solo.tick() if isinstance(message, RecoveryRequest)}

    def test_a_member_that_others_have_heard_of_is_asked_and_needed(self, hands: Clock) -> None:
        solo = recovering()
        self.answers(solo, hands, n2=[NOBODY, self.FOUR], n3=[NOBODY, NOBODY])
        assert not solo.recovery.may_stand()
        assert self.asked == {"n2", "n3", "n4"}
        self.answers(
            solo, hands, n2=[NOBODY, self.FOUR], n3=[NOBODY, NOBODY], n4=[NOBODY, self.FOUR]
        )
        assert solo.recovery.may_stand()

    def test_whoever_a_change_would_remove_is_needed_until_that_is_committed(
        self, hands: Clock
    ) -> None:
        solo = recovering()
        self.answers(solo, hands, n2=[NOBODY, self.TWO])
        assert not solo.recovery.may_stand()
        self.answers(solo, hands, n2=[self.TWO, self.TWO])
        assert not solo.recovery.may_stand(), "its answer was given before that was known"
        self.answers(solo, hands, n2=[self.TWO, self.TWO])
        assert solo.recovery.may_stand()
        assert solo.disk.membership == Membership.from_plain(self.TWO)


def test_a_leader_that_is_about_to_leave_recovery_counts_by_its_own_log() -> None:
    """A report reaches it behind the vote that elected it, and before its next turn."""
    forgetful = StartingPoint(1, 0, None, 0, 0, forgetful=True)
    solo = Solo(size=5, start=forgetful)
    solo.tick()
    solo.engine.stand()
    solo.engine.tick()
    term = solo.engine.term
    for peer in ("n2", "n3"):
        solo.hear(peer, Vote(term))
    assert solo.engine.leads and solo.recovery.active
    # It was not run here. Meanwhile n3, n4 and n5 elected n3, which removed n4 and n5.
    later = founding({f"n{at}": f"n{at}:1" for at in (1, 2, 3)}).voters
    removed_two = Membership(2, later).plain()
    solo.recovery.report(
        "n3",
        RecoveryReport(solo.recovery._nonce, term, False, False, 0, 1, removed_two, removed_two),
    )
    own = solo.journal.last_index
    solo.tick()
    solo.hear("n2", Ack(term, own + 1, False, True))  # was under way, and is cut off there by now
    solo.tick()
    assert not (solo.engine.leads and solo.engine.commit_index >= own), "two of five"
