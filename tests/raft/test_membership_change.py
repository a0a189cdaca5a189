"""Changing the members of a running cluster (A9), interrupted wherever it can be."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from node.core.commands import Append, decode
from node.core.outcomes import Appended
from node.errors import (
    ExesdbError,
    LastMember,
    MemberExists,
    MemberMissing,
    MemberRecovering,
    MembershipChangeOpen,
    NoLeader,
    NotReady,
    OutcomeUnknown,
)
from node.raft import entries
from node.raft.messages import AppendEntries, MembershipNotice, Message, RecoveryReport
from node.raft.waiting import WAITING_MAX
from tests.raft.harness import Cluster
from tests.raft.virtual_time import simulate

MOMENTS_MS = [
    pytest.param(ms, marks=() if ms == 10 else pytest.mark.slow) for ms in range(0, 60, 5)
]


async def ready(cluster: Cluster) -> str:
    """Start everyone, and wait until the leader has heard that all are well."""
    await cluster.ready()
    await cluster.until(lambda: cluster.leader() and all_well(cluster))
    return await cluster.led()


def all_well(cluster: Cluster) -> bool:
    """Whether the leader knows of nobody who recovers."""
    members = cluster[cluster.leader() or ""].status().members
    return all(member.role in ("leader", "follower") for member in members)


async def add(
    cluster: Cluster, node_id: str, at: str | None = None, timeout_ms: int = 5000
) -> None:
    """Start a node and add it."""
    if node_id not in cluster.replicas:
        await cluster.start(node_id)
    membership = await cluster[at or await cluster.led()].add_member(
        node_id, f"{node_id}:1", timeout_ms
    )
    assert node_id in membership.voter_ids


def voters(cluster: Cluster, node_id: str) -> str:
    """Who is counted, as a node knows, in short."""
    return "".join(voter[1:] for voter in cluster[node_id].voters)


def knows(cluster: Cluster, node_id: str, voters: set[str]) -> bool:
    """Whether a node knows these voters to be certain."""
    return cluster[node_id]._journal.memberships.committed.voter_ids == voters


def removed(cluster: Cluster, node_id: str) -> bool:
    """Whether a node says that it was removed."""
    return any("removed" in reason for reason in cluster[node_id].not_ready_reasons())


async def changed(cluster: Cluster, wanted: str) -> None:
    """Wait until all that are up know these voters, and that they are certain."""

    def same() -> bool:
        logs = [replica._journal.memberships for replica in cluster.replicas.values()]
        return all(not log.open and log.current.learner is None for log in logs) and all(
            voters(cluster, node_id) == wanted for node_id in cluster.replicas
        )

    await cluster.until(same)


async def with_learner_ahead(cluster: Cluster) -> str:
    """n4 is being added, and its disk alone has the last five events; gives the leader."""
    leader = await ready(cluster)
    cluster[leader]._changes._promote = lambda _: None  # type: ignore[method-assign]
    await cluster.start("n4")
    await cluster[leader].add_member("n4", "n4:1", 2000)
    await cluster.settled()
    cluster.persist()
    await cluster.fill_log(leader, 5)
    await cluster.settled()
    cluster.persist("n4")
    return leader


def test_how_far_a_member_is_that_was_never_heard_of_is_not_known() -> None:
    async def scenario() -> None:
        cluster = Cluster(3)
        await cluster.start("n1", "n2")
        await cluster.until(lambda: cluster["n1"].status().members[1].last_contact_ms is not None)
        _, met, missing = cluster["n1"].status().members
        assert missing[3:8] == ("unreachable", None, None, None, None)
        assert None not in met[3:8]
        await cluster.stop("n1", "n2")

    simulate(scenario)


class TestAdding:
    @pytest.mark.parametrize("asked", ["the leader", "a follower"])
    def test_a_new_node_is_brought_up_and_then_counted(self, asked: str) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, spares=1)
            leader = await ready(cluster)
            await cluster.fill_log(leader, 20)
            await add(cluster, "n4", leader if asked == "the leader" else cluster.followers()[0])
            await changed(cluster, "1234")
            await cluster.settled()
            assert len(cluster.contents("n4")) == 20
            cluster.crash(*[one for one in cluster.ids if one != leader][:1])
            await cluster.fill_log(leader, 1)
            cluster.check()

        simulate(scenario)

    def test_one_that_is_far_behind_is_filled_first(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, spares=1, log_tail_entries_max=100)
            leader = await ready(cluster)
            await cluster.fill_log(leader, 500)
            cluster.persist()
            await asyncio.sleep(1)
            assert cluster[leader]._journal.base_index > 100
            await add(cluster, "n4")
            await cluster.settled()
            assert len(cluster.contents("n4")) == 500
            assert voters(cluster, "n4") == "1234"
            cluster.check()

        simulate(scenario)

    def test_a_node_that_is_not_there_is_not_counted_and_can_be_removed_again(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, spares=2)
            leader = await ready(cluster)
            membership = await cluster[leader].add_member("n4", "n4:1", 2000)
            assert membership.learner_id == "n4"
            assert membership.voter_ids == {"n1", "n2", "n3"}
            with pytest.raises(MembershipChangeOpen):
                await cluster[leader].add_member("n5", "n5:1", 2000)
            with pytest.raises(MembershipChangeOpen):
                await cluster[leader].remove_member(cluster.followers()[0], 2000)
            cluster.crash(cluster.followers()[0])
            await cluster.fill_log(leader, 5)
            await cluster.start()
            await cluster.settled()
            without = await cluster[leader].remove_member("n4", 2000)
            assert without.learner_id is None
            cluster.check()

        simulate(scenario)

    @pytest.mark.parametrize("address", ["n4:1", "mistyped:1"])
    def test_one_that_is_added_elsewhere_than_it_says_is_counted_with_a_warning(
        self, address: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, spares=1)
            leader = await ready(cluster)
            await cluster.start("n4")
            membership = await cluster[leader].add_member("n4", address, 5000)
            assert "n4" in membership.voter_ids
            await cluster.settled()
            cluster.check()

        simulate(scenario)
        words = f"n4 is added at {address} and says that it is at 'n4:1'"
        assert caplog.text.count(words) == (address != "n4:1")

    def test_a_new_node_that_does_not_know_the_leader_is_counted_although_a_voter_is_down(
        self,
    ) -> None:
        """It learned that it is no member yet, and dialled nobody any more: the leader could not
        say since when it has its disk, so it waited for the one that is down."""

        async def scenario() -> None:
            cluster = Cluster(3, spares=2)
            leader = await ready(cluster)
            await add(cluster, "n4")
            await cluster[leader].remove_member("n4", 5000)
            down = cluster.followers()[0]
            cluster.crash(down, "n4")
            cluster.links.only_dialled = True
            cluster.links.cut_pair("n5", leader)
            await cluster.start("n5")
            await cluster.until(lambda: cluster["n5"]._changes.outside)
            cluster.links.heal()
            await asyncio.sleep(1)
            await add(cluster, "n5")
            await cluster.settled()
            cluster.check()

        simulate(scenario)

    def test_from_one_node_to_three(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(1, spares=2)
            leader = await ready(cluster)
            await cluster.fill_log(leader, 3)
            await add(cluster, "n2")
            await add(cluster, "n3")
            await cluster.settled()
            cluster.crash(leader)
            await cluster.fill_log(await cluster.led("n2", "n3"), 1)
            await cluster.settled()
            assert len(cluster.contents("n2")) == 4
            cluster.check()

        simulate(scenario)

    def test_nodes_that_are_not_members_are_refused(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, spares=1)
            leader = await ready(cluster)
            with pytest.raises(MemberExists):
                await cluster[leader].add_member("n2", "n9:1", 1000)
            with pytest.raises(MemberExists):
                await cluster[leader].add_member("n9", "n2:1", 1000)
            with pytest.raises(MemberMissing):
                await cluster[leader].remove_member("n4", 1000)
            await cluster.start("n4")
            await asyncio.sleep(5)
            assert cluster["n4"].recovering
            assert "take it in" in cluster["n4"].not_ready_reasons()[0]
            assert cluster.leader() == leader
            cluster.check()

        simulate(scenario)


class TestRemoving:
    def test_a_removed_follower_knows_it_and_disturbs_nobody(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await ready(cluster)
            term = cluster[leader]._engine.term
            gone, left = cluster.followers()
            membership = await cluster[left].remove_member(gone, 2000)
            assert membership.voter_ids == {leader, left}
            await cluster.until(lambda: removed(cluster, gone))
            with pytest.raises(NotReady):
                await cluster.append(gone)
            await asyncio.sleep(10)
            await cluster.fill_log(leader, 1)
            assert cluster[leader]._engine.term == term
            assert cluster.ports[gone].wanted == {}
            cluster.check()

        simulate(scenario)

    def test_a_leader_that_is_to_be_removed_hands_over_first(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await ready(cluster)
            membership = await cluster[leader].remove_member(leader, 5000)
            assert leader not in membership.voter_ids
            assert await cluster.led() != leader
            await cluster.fill_log(await cluster.led(), 3)
            cluster.check()

        simulate(scenario)

    def test_a_member_that_is_down_is_removed_and_learns_it_when_it_returns(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, spares=1)
            leader = await ready(cluster)
            gone = cluster.followers()[0]
            cluster.crash(gone)
            await asyncio.sleep(1)
            await cluster[leader].remove_member(gone, 2000)
            await add(cluster, "n4")
            await cluster.start(gone)
            await cluster.until(lambda: removed(cluster, gone))
            assert cluster.disks[gone].membership is not None
            cluster.crash(gone)
            await cluster.start(gone)
            assert removed(cluster, gone), "it has not forgotten it"
            await cluster.fill_log(await cluster.led(), 1)
            cluster.check()

        simulate(scenario)

    def test_one_that_was_removed_can_be_added_again(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await ready(cluster)
            again = cluster.followers()[0]
            await cluster[leader].remove_member(again, 2000)
            await cluster.until(lambda: removed(cluster, again))
            await cluster.fill_log(leader, 5)
            await add(cluster, again)
            await changed(cluster, "123")
            await cluster.settled()
            assert len(cluster.contents(again)) == 5
            cluster.check()

        simulate(scenario)

    def test_down_to_one_and_not_further(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await ready(cluster)
            for gone in cluster.followers():
                await cluster[leader].remove_member(gone, 2000)
            with pytest.raises(LastMember):
                await cluster[leader].remove_member(leader, 2000)
            await cluster.fill_log(leader, 3)
            cluster.check()

        simulate(scenario)

    def test_of_two_the_one_that_goes_must_have_heard_of_it(self) -> None:
        """Else it would know of nothing that came since, should the other one lose its disk."""

        async def scenario() -> None:
            cluster = Cluster(2)
            leader = await ready(cluster)
            (gone,) = cluster.followers()
            cluster.links.blackholes.add((leader, gone))
            for _ in range(2):  # who asks again waits, too
                with pytest.raises(OutcomeUnknown):
                    await cluster[leader].remove_member(gone, 100)
            cluster.links.heal()
            await cluster.until(lambda: removed(cluster, gone))
            assert cluster.disks[gone].heard.voter_ids == {leader}
            await cluster.fill_log(leader, 3)
            cluster.check()

        simulate(scenario)

    def test_of_two_the_one_that_is_down_cannot_be_removed(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(2, leader_fallback_ms=60_000)
            leader = await ready(cluster)
            (gone,) = cluster.followers()
            cluster.crash(gone)
            with pytest.raises(MemberRecovering, match="must hear of it"):
                await cluster[leader].remove_member(gone, 2000)
            await cluster.start(gone)
            await cluster.until(lambda: all_well(cluster))
            await cluster[leader].remove_member(gone, 2000)
            cluster.check()

        simulate(scenario)

    def test_who_was_left_alone_and_lost_its_disk_does_not_begin_anew(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, spares=1)
            leader = await ready(cluster)
            gone = cluster.followers()
            for one in gone:
                await cluster[leader].remove_member(one, 2000)
            await cluster.until(lambda: knows(cluster, gone[1], {leader}))
            cluster.links.cut(gone[1])
            await add(cluster, "n4")
            await add(cluster, gone[0])
            voters = {leader, "n4", gone[0]}
            await cluster.until(lambda: all(knows(cluster, one, voters) for one in voters))
            cluster.crash(leader)
            cluster.wipe(leader)
            cluster.links.heal(gone[1])
            cluster.links.cut("n4", gone[0])
            # It hears from the one that is no member any more who the members were.
            cluster.links.watchers.append(lambda *said: not isinstance(said[2], RecoveryReport))
            await cluster.start(leader)
            await cluster.until(lambda: knows(cluster, leader, {leader}))
            await asyncio.sleep(5)
            assert cluster[leader].recovering
            cluster.links.watchers.pop()
            cluster.links.heal()
            await cluster.until(lambda: not cluster[leader].recovering)
            cluster.check()

        simulate(scenario)

    def test_it_is_refused_where_too_few_would_be_left(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(4)
            leader = await ready(cluster)
            down, well, _ = cluster.followers()
            cluster.crash(down)
            await asyncio.sleep(1)
            # Three of four are up. Without one of them two of three would be: that is allowed.
            await cluster[leader].remove_member(well, 2000)
            await cluster.until(lambda: removed(cluster, well))
            with pytest.raises(MemberRecovering):
                await cluster[leader].remove_member(
                    next(one for one in cluster.followers() if one != well), 2000
                )
            cluster.check()

        simulate(scenario)

    def test_it_is_refused_while_another_member_recovers(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(4)
            leader = await ready(cluster)
            one, other, _ = cluster.followers()
            cluster.crash(one)
            cluster.links.watchers.append(
                lambda sender, to, message: not (to == one and isinstance(message, AppendEntries))
            )
            await cluster.start(one)
            await cluster.until(lambda: cluster[leader]._members.role_of(one) == "recovering")
            with pytest.raises(MemberRecovering):
                await cluster[leader].remove_member(other, 2000)
            cluster.links.watchers.pop()
            await cluster.settled()
            cluster.check()

        simulate(scenario)

    def test_who_asks_again_waits_for_a_removal_that_is_under_way(self) -> None:
        """It was told that there is no such member, and the removal came to nothing."""

        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await ready(cluster)
            gone, left = cluster.followers()
            cluster.links.blackholes |= {(leader, gone), (leader, left)}
            for _ in range(2):
                with pytest.raises(OutcomeUnknown):
                    await cluster[leader].remove_member(gone, 100)
            assert cluster[leader].leads
            cluster.links.cut(leader)
            await cluster.led(gone, left)
            cluster.links.heal()
            await changed(cluster, "123")
            cluster.check()

        simulate(scenario)

    def test_where_too_many_wait_for_this_node_the_outcome_is_unknown(self) -> None:
        """It was refused as certainly not done, when it was in the log."""

        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await ready(cluster)
            gone = cluster.followers()[0]
            reads = [
                asyncio.ensure_future(cluster[leader].wait_applied(10**9, 60_000))
                for _ in range(WAITING_MAX)
            ]
            await asyncio.sleep(0)
            with pytest.raises(OutcomeUnknown):
                await cluster[leader].remove_member(gone, 2000)
            await cluster.until(lambda: removed(cluster, gone))
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)
            cluster.check()

        simulate(scenario)


class TestInterruptions:
    def test_of_two_requests_at_once_one_is_refused(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, spares=2)
            await ready(cluster)
            await cluster.start("n4", "n5")
            answers = await asyncio.gather(
                *(cluster[at].add_member(new, f"{new}:1", 5000)
                  for at, new in (("n1", "n4"), ("n2", "n5"))),
                return_exceptions=True,
            )  # fmt: skip
            refused = [one for one in answers if isinstance(one, MembershipChangeOpen)]
            assert len(refused) == 1, answers
            cluster.check()

        simulate(scenario)

    def test_nothing_is_changed_by_a_leader_that_cannot_commit(self) -> None:
        """Stock takes on three at once here, and forms a majority of nobody else."""

        async def scenario() -> None:
            cluster = Cluster(3, spares=3)
            leader = await ready(cluster)
            for other in cluster.followers():
                cluster.links.blackholes |= {(leader, other), (other, leader)}
            for refusal, new in zip((OutcomeUnknown, MembershipChangeOpen, MembershipChangeOpen),
                                    cluster.spares, strict=True):  # fmt: skip
                with pytest.raises((refusal, NoLeader)):
                    await cluster[leader].add_member(new, f"{new}:1", 200)
            assert len(cluster[leader]._journal.memberships._in_log) <= 1
            await cluster.led(*[one for one in cluster.ids if one != leader])
            cluster.links.heal()
            await cluster.settled()
            assert voters(cluster, leader) == "123", "what was not committed is taken back"
            assert not cluster[leader]._journal.memberships.open
            cluster.check()

        simulate(scenario)

    def test_a_new_leader_changes_nothing_before_an_entry_of_its_own_is_committed(self) -> None:
        """A change of an earlier leader, which it has not got, may still come into force."""

        async def scenario() -> None:
            cluster = Cluster(3, spares=1)
            leader = await ready(cluster)
            cluster.links.delay_s = lambda _: 0.05
            cluster.crash(leader)
            await cluster.until(cluster.leader)
            new = cluster.leader() or ""
            spare = cluster.spares[0]
            with pytest.raises(NoLeader):
                await cluster[new].add_member(spare, f"{spare}:1", 20)
            assert not cluster[new]._journal.memberships.open
            await cluster.led()

        simulate(scenario)

    def test_a_leader_whose_removal_is_certain_ends_its_reign(self) -> None:
        """It may have been elected while its removal stood in the log and was not committed."""

        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await ready(cluster)
            others = cluster.followers()
            without = cluster[leader]._journal.memberships.current.without(leader)
            cluster[leader]._engine.append(entries.encode_membership(without))
            await cluster.until(lambda: not cluster[leader].leads, 2)
            await cluster.append(await cluster.led(*others))
            cluster.check()

        simulate(scenario)

    def test_a_leader_that_cannot_commit_removes_one_at_most(self) -> None:
        """Two would make it a majority of its own."""

        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await ready(cluster)
            one, other = cluster.followers()
            for peer in (one, other):
                cluster.links.blackholes |= {(leader, peer), (peer, leader)}
            with pytest.raises(OutcomeUnknown):
                await cluster[leader].remove_member(one, 200)
            with pytest.raises(MembershipChangeOpen):
                await cluster[leader].remove_member(other, 200)
            await cluster.led(one, other)
            cluster.links.heal()
            await cluster.settled()
            assert voters(cluster, leader) == "123"
            cluster.check()

        simulate(scenario)

    @pytest.mark.parametrize("delay_ms", MOMENTS_MS)
    @pytest.mark.parametrize("kind", ["add", "remove the leader", "remove a follower"])
    def test_the_leader_is_killed_at_any_moment_of_a_change_under_load(
        self, kind: str, delay_ms: int
    ) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, spares=1, seed=delay_ms + 1)
            leader = await ready(cluster)
            acknowledged: list[Append] = []
            if kind == "add":
                await cluster.start("n4")
                work = cluster[leader].add_member("n4", "n4:1", 2000)
            else:
                gone = leader if kind == "remove the leader" else cluster.followers()[0]
                work = cluster[leader].remove_member(gone, 2000)
            changing = asyncio.ensure_future(work)
            appending = asyncio.ensure_future(self._append(cluster, acknowledged))
            await asyncio.sleep(delay_ms / 1000)
            cluster.crash(leader)
            await cluster.start(leader)
            with suppress(ExesdbError):
                await changing
            await asyncio.sleep(2)
            appending.cancel()
            members = voters(cluster, await cluster.led())
            await self._same(cluster, members)
            assert acknowledged
            for node_id in (f"n{one}" for one in members):
                held = {record.frame for record in cluster.contents(node_id)}
                assert all(set(command.frames) <= held for command in acknowledged)
            cluster.check()

        simulate(scenario)

    async def _append(self, cluster: Cluster, acknowledged: list[Append]) -> None:
        while True:
            for node_id in list(cluster.replicas):
                command = cluster.command()
                with suppress(ExesdbError, KeyError):
                    outcome, _ = await cluster.append(node_id, command, 500)
                    if isinstance(outcome, Appended):
                        decoded = decode(command)
                        assert isinstance(decoded, Append)
                        acknowledged.append(decoded)
            await asyncio.sleep(0.005)

    async def _same(self, cluster: Cluster, members: str) -> None:
        def same() -> bool:
            nodes = [cluster[f"n{one}"] for one in members]
            ends = {node.applied_index for node in nodes} | {
                node._journal.last_index for node in nodes
            }
            return len(ends) == 1 and not any(node.recovering for node in nodes)

        await cluster.until(same)

    def test_a_restart_from_the_disks_keeps_the_members(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, spares=1)
            await ready(cluster)
            await add(cluster, "n4")
            await cluster.fill_log(await cluster.led(), 3)
            await cluster.settled()
            await cluster.stop()
            await cluster.start("n1", "n2", "n3", "n4")
            await cluster.settled()
            assert voters(cluster, "n1") == voters(cluster, "n4") == "1234"
            cluster.check()

        simulate(scenario)

    def test_after_all_were_killed_the_added_one_is_needed_too(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, spares=1)
            await ready(cluster)
            await add(cluster, "n4")
            await cluster.settled()
            cluster.persist()
            cluster.crash()
            await cluster.start("n1", "n2", "n3")
            await asyncio.sleep(10)
            assert cluster.leader() is None
            assert "n4" in cluster["n1"].not_ready_reasons()[0]
            await cluster.start("n4")
            await cluster.settled()
            cluster.check()

        simulate(scenario)

    def test_wiped_nodes_that_know_only_the_founders_start_nothing_without_the_others(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, spares=2)
            await ready(cluster)
            for new in cluster.spares:
                await add(cluster, new)
            await cluster.settled()
            cluster.persist()
            cluster.crash()
            cluster.wipe("n1")
            cluster.wipe("n2")
            await cluster.start("n1", "n2", "n3")
            await asyncio.sleep(10)
            assert cluster.leader() is None, "n3 knows of n4 and n5, and they have been told"
            await cluster.start("n4", "n5")
            await cluster.settled()
            assert voters(cluster, "n1") == "12345"
            cluster.check()

        simulate(scenario)

    def test_a_member_that_missed_many_changes_finds_the_cluster_again(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, spares=2)
            leader = await ready(cluster)
            away = cluster.followers()[0]
            await cluster.stop(away)
            await asyncio.sleep(1)
            for new in cluster.spares:
                await add(cluster, new)
            for gone in [one for one in cluster.ids if one not in (leader, away)]:
                await cluster[await cluster.led()].remove_member(gone, 5000)
                cluster.crash(gone)
            await cluster[await cluster.led()].remove_member(leader, 5000)
            cluster.crash(leader)
            await cluster.start(away)
            await cluster.until(lambda: cluster[away].leader in cluster.spares)
            await cluster.settled()
            assert set(cluster[away].voters) == {away, *cluster.spares}
            cluster.check()

        simulate(scenario)

    def test_a_learner_is_never_asked_for_a_vote_nor_handed_leadership(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, spares=1)
            leader = await ready(cluster)
            said: list[tuple[str, str]] = []

            def watch(sender: str, to: str, message: Message) -> bool:
                said.append((type(message).__name__, to))
                return not (sender == "n4" and type(message).__name__ == "Ack")

            cluster.links.watchers.append(watch)  # it never catches up
            await cluster.start("n4")
            await cluster[leader].add_member("n4", "n4:1", 2000)
            with pytest.raises(MemberMissing):
                await cluster[leader].transfer_leadership("n4", 1000)
            cluster.crash(leader)
            await cluster.led()
            asked = {kind for kind, to in said if to == "n4"}
            assert not asked & {"PreVoteRequest", "RequestVote", "TimeoutNow"}
            assert "n4" not in cluster.chronicle.leaders.values()
            cluster.check()

        simulate(scenario)

    def test_a_learner_stands_where_only_its_log_can_end_a_cold_start(self) -> None:
        """Its promotion was heard of, so it is asked; and after all power went it has most."""

        async def scenario() -> None:
            cluster = Cluster(3, spares=1)
            leader = await with_learner_ahead(cluster)
            for peer in cluster.followers():
                cluster.links.blackholes.add((leader, peer))
            then = cluster[leader]._journal.memberships.current.with_learner_promoted()
            cluster[leader]._engine.append(entries.encode_membership(then))
            cluster.crash()
            cluster.links.heal()
            await cluster.start(*cluster.ids, "n4")
            await cluster.until(lambda: "n4" in cluster.chronicle.leaders.values())
            await cluster.until(lambda: cluster.leader() in ("n1", "n2", "n3"))
            await changed(cluster, "1234")
            await cluster.settled()
            assert all(len(cluster.contents(one)) == 5 for one in cluster.replicas)
            cluster.check()

        simulate(scenario)

    def test_a_learner_whose_disk_alone_has_what_was_committed_is_waited_for(self) -> None:
        """Seed 202098 of 3 nodes: the voters went on without it, and it stood by what it had."""

        async def scenario() -> None:
            cluster = Cluster(3, spares=1)
            await with_learner_ahead(cluster)
            cluster.crash()
            await cluster.start(*cluster.ids)
            await asyncio.sleep(10)
            assert cluster.leader() is None
            assert "n4" in cluster["n1"].not_ready_reasons()[0]
            await cluster.start("n4")
            await changed(cluster, "1234")
            await cluster.settled()
            assert all(len(cluster.contents(one)) == 5 for one in cluster.replicas)
            cluster.check()

        simulate(scenario)

    def test_a_membership_entry_that_is_none_changes_nothing(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await ready(cluster)
            engine = cluster[leader]._engine
            engine.append(entries._MEMBERSHIP_HEAD + b"\x01")
            await cluster.settled()
            assert voters(cluster, leader) == "123"

        simulate(scenario)


def test_a_removal_is_answered_although_a_word_of_it_was_lost() -> None:
    """The only other voter said once that it knows, and that was lost to a full queue."""

    async def scenario() -> None:
        cluster = Cluster(3, tails=True)
        leader = await ready(cluster)
        other, goes = cluster.followers()
        lost: list[MembershipNotice] = []

        def loses(sender: str, to: str, said: object) -> bool:
            if (sender, to) == (other, leader) and isinstance(said, MembershipNotice) and not lost:
                lost.append(said)
                return False
            return True

        cluster.links.watchers.append(loses)
        with suppress(ExesdbError):
            await cluster[leader].remove_member(goes, 5_000)
        assert lost
        await cluster.until(lambda: knows(cluster, other, {leader, other}))
        await cluster.until(lambda: knows(cluster, leader, {leader, other}))
        cluster.crash(goes)
        await asyncio.sleep(60)
        with pytest.raises(ExesdbError) as raised:
            await cluster[leader].remove_member(goes, 5_000)
        assert not isinstance(raised.value, OutcomeUnknown)

    simulate(scenario)
