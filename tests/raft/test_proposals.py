"""From a command to its outcome: what is certain, what is not, and the bounds (A14, A18, A22)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from pysyncobj import FAIL_REASON

from node.core import commands
from node.core import subscription_commands as asked
from node.core.outcomes import Appended
from node.errors import ExesdbError, NoLeader, NotReady, OutcomeUnknown, Overloaded, PayloadTooLarge
from node.raft.messages import Ack, AppendEntries, Propose, Refused
from tests.raft.harness import STORE, Cluster, event
from tests.raft.stock import StockCluster
from tests.raft.virtual_time import simulate


async def ended(submission: Awaitable[Any]) -> Any:
    """The outcome, or the error, of a submission."""
    try:
        outcome, _ = await submission
        return outcome
    except ExesdbError as error:
        return error


def test_commands_of_one_turn_share_one_entry() -> None:
    async def scenario() -> None:
        cluster = Cluster(3)
        leader = await cluster.ready()
        results = await asyncio.gather(*(cluster.append(leader) for _ in range(100)))
        assert len({index for _, index in results}) == 1
        positions = [outcome.positions[0] for outcome, _ in results]
        assert positions == list(range(1, 101)), "in the order of submission"

    simulate(scenario)


class TestGroupCommit:
    def test_what_arrives_while_entries_are_under_way_shares_the_next(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, entries_in_flight_max=2)
            cluster.links.delay_s = lambda _: 0.05
            leader = await cluster.ready()
            before = cluster[leader].counters()["entries_proposed"]
            submissions = []
            for _ in range(30):
                submissions.append(asyncio.ensure_future(cluster.append(leader)))
                await asyncio.sleep(0.001)
            await asyncio.gather(*submissions)
            assert cluster[leader].counters()["entries_proposed"] - before <= 4
            cluster.check()

        simulate(scenario)

    def test_an_entry_holds_no_more_than_its_bounds(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, entry_commands_max=10)
            leader = await cluster.ready()
            results = await asyncio.gather(*(cluster.append(leader) for _ in range(25)))
            indexes = [index for _, index in results]
            assert max(indexes.count(index) for index in indexes) == 10

        simulate(scenario)

    def test_fetches_share_an_entry_with_few_of_their_kind(self) -> None:
        """Each looks at thousands of events, and an entry is applied in one go."""

        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            for node_id in (leader, *cluster.followers()):
                fetches = [asked.fetch(STORE, 1, f"s-{at}", "c", 1) for at in range(30)]
                ours = [cluster[node_id].propose(fetch, 5_000) for fetch in fetches]
                indexes = [index for _, index in await asyncio.gather(*ours)]
                assert max(indexes.count(index) for index in indexes) == 8
                assert indexes == sorted(indexes)

        simulate(scenario)

    def test_others_get_into_an_entry_although_the_leader_s_own_would_fill_each(self) -> None:
        """Consumers at the leader always have some fetches waiting, of which few fill an entry."""

        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()

            async def consume(name: str) -> None:
                while True:
                    await cluster[leader].propose(asked.fetch(STORE, 1, name, "c", 1), 60_000)

            consumers = [asyncio.ensure_future(consume(f"s-{at}")) for at in range(30)]
            await asyncio.sleep(0.1)
            before = cluster[leader].counters()["entries_proposed"]
            await asyncio.wait_for(cluster.append(cluster.followers()[0]), 5)
            assert cluster[leader].counters()["entries_proposed"] - before <= 6
            for consumer in consumers:
                consumer.cancel()

        simulate(scenario)

    def test_others_do_not_keep_the_leader_s_own_out_of_an_entry(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            follower = cluster.followers()[0]

            async def consume(name: str) -> None:
                while True:
                    await cluster[follower].propose(asked.fetch(STORE, 1, name, "c", 1), 60_000)

            consumers = [asyncio.ensure_future(consume(f"s-{at}")) for at in range(60)]
            await asyncio.sleep(0.1)
            await asyncio.wait_for(cluster.append(leader), 5)
            for consumer in consumers:
                consumer.cancel()

        simulate(scenario)

    def test_a_command_over_the_entry_s_bytes_goes_alone(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, entry_bytes_max=1)
            leader = await cluster.ready()
            results = await asyncio.gather(*(cluster.append(leader) for _ in range(5)))
            assert len({index for _, index in results}) == 5

        simulate(scenario)


class TestForwarding:
    def test_a_follower_answers_when_it_has_applied_the_entry_itself(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            await cluster.ready()
            follower = cluster.followers()[0]
            command = cluster.command()
            outcome, index = await cluster.append(follower, command)
            assert isinstance(outcome, Appended)
            assert cluster[follower].applied_index >= index
            assert cluster.holds(follower, command)

        simulate(scenario)

    def test_a_follower_s_latency_does_not_wait_for_a_heartbeat(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, heartbeat_ms=200, election_min_ms=700)
            await cluster.ready()
            follower = cluster.followers()[0]
            await asyncio.sleep(0.01)
            loop = asyncio.get_running_loop()
            begun = loop.time()
            await cluster.append(follower)
            assert loop.time() - begun < 0.02

        simulate(scenario)

    def test_stock_says_leader_changed_for_what_is_stored_all_the_same(self) -> None:
        with StockCluster(delay_s=0.05) as cluster:
            leader = cluster.elect()
            other, third = (one for one in cluster.ids if one != leader)
            told: list[int] = []
            cluster.nodes[other].put("x", callback=lambda _, error: told.append(error))
            # The command has reached the leader; before its answer is back another leads.
            cluster.run(1, until=lambda: cluster.nodes[leader].log[-1][0] == 3)
            cluster.network.ends[other].deliver(
                third,
                {
                    "type": "append_entries",
                    "term": cluster.nodes[other].term,
                    "commit_index": 1,
                    "entries": [],
                    "prevLogIdx": 1,
                    "prevLogTerm": 0,
                },
            )
            cluster.run(3)
            assert told == [FAIL_REASON.LEADER_CHANGED]
            assert cluster.nodes[leader].applied == ["x"]

    def test_stock_forgets_a_forwarded_command_and_never_calls_back(self) -> None:
        with StockCluster(delay_s=0.05) as cluster:
            leader = cluster.elect()
            other = next(one for one in cluster.ids if one != leader)
            told: list[int] = []
            lost = cluster.network.watchers
            lost.append(lambda _, __, message: message["type"] != "apply_command")
            cluster.nodes[other].put("x", callback=lambda _, error: told.append(error))
            cluster.run(60)
            assert told == []

    def test_ours_ends_a_forwarded_command_that_vanished_within_its_time(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            await cluster.ready()
            follower = cluster.followers()[0]
            cluster.links.watchers.append(lambda _, __, message: not isinstance(message, Propose))
            loop = asyncio.get_running_loop()
            begun = loop.time()
            error = await ended(cluster.append(follower, timeout_ms=700))
            assert isinstance(error, OutcomeUnknown)
            assert 0.7 <= loop.time() - begun < 0.8

        simulate(scenario)

    def test_a_node_that_does_not_lead_refuses_and_the_command_finds_the_leader(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            first, second = cluster.followers()
            refusals: list[Refused] = []

            def watch(_: str, __: str, message: Any) -> None:
                if isinstance(message, Refused):
                    refusals.append(message)

            cluster.links.watchers.append(watch)
            term = cluster[second].status().term
            cluster[second].received(first, Propose(term, [1], [cluster.command()]))
            await asyncio.sleep(0.1)
            assert [message.sequences for message in refusals] == [[1]]
            assert cluster[leader].state.stores[STORE].position == 0

        simulate(scenario)


class TestCertainty:
    def test_an_isolated_leader_does_not_know_the_outcome(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            cluster.links.cut(leader)
            assert isinstance(await ended(cluster.append(leader, timeout_ms=500)), OutcomeUnknown)

        simulate(scenario)

    def test_without_a_leader_it_is_certain_soon_that_nothing_was_stored(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, leader_wait_ms=1500)
            await cluster.ready()
            node_id = cluster.followers()[0]
            cluster.links.cut(node_id)
            await cluster.until(lambda: cluster[node_id].leader is None, 3)
            loop = asyncio.get_running_loop()
            begun = loop.time()
            assert isinstance(await ended(cluster.append(node_id, timeout_ms=9000)), NoLeader)
            assert 1.5 <= loop.time() - begun < 1.7

        simulate(scenario)

    def test_a_submission_waits_for_the_next_leader(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            follower = cluster.followers()[0]
            cluster.crash(leader)
            assert isinstance(await ended(cluster.append(follower)), Appended)

        simulate(scenario)

    def test_what_another_leader_s_entry_displaced_is_stored_once_by_that_leader(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            cluster.links.cut(leader)
            command = cluster.command()
            waiting = asyncio.ensure_future(ended(cluster.append(leader, command, 30_000)))
            successor = await cluster.led(*cluster.followers())
            await cluster.fill_log(successor, 3)
            cluster.links.heal()
            outcome = await waiting
            assert isinstance(outcome, Appended) and not outcome.idempotent
            await cluster.settled()
            assert all(cluster.holds(node_id, command) for node_id in cluster.ids)
            cluster.check()

        simulate(scenario)

    def test_what_was_displaced_and_found_no_leader_in_time_is_absent_everywhere(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            cluster.links.cut(leader)
            command = cluster.command()
            lost = asyncio.ensure_future(ended(cluster.append(leader, command, 4_000)))
            successor = await cluster.led(*cluster.followers())
            await cluster.fill_log(successor, 3)
            # The old leader hears the new one, but its own words are lost.
            cluster.links.heal()
            for peer in set(cluster.ids) - {leader}:
                cluster.links.blackholes.add((leader, peer))
            await cluster.until(lambda: cluster.replicas[leader].leader == successor)
            assert isinstance(await lost, (NoLeader, OutcomeUnknown))
            cluster.links.blackholes.clear()
            await cluster.settled()
            assert not any(cluster.holds(node_id, command) for node_id in cluster.ids)
            cluster.check()

        simulate(scenario)

    def test_a_follower_s_displaced_command_goes_to_the_next_leader(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(5)
            leader = await cluster.ready()
            follower, *others = cluster.followers()
            cluster.links.cut(leader, follower)
            command = cluster.command()
            waiting = asyncio.ensure_future(ended(cluster.append(follower, command, 30_000)))
            successor = await cluster.led(*others)
            await cluster.fill_log(successor, 3)
            cluster.links.heal()
            assert isinstance(await waiting, Appended)
            await cluster.settled()
            cluster.check()

        simulate(scenario)

    def test_a_retry_after_an_unknown_outcome_tells_what_became_of_it(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            follower = cluster.followers()[0]
            command = cluster.command()
            unknown = asyncio.ensure_future(ended(cluster.append(follower, command, 300)))
            # The leader gets the command; but the follower hears no more.
            cluster.links.blackholes.add((leader, follower))
            assert isinstance(await unknown, OutcomeUnknown)
            outcome, _ = await cluster.append(leader, command)
            assert outcome == Appended(0, 0, outcome.positions, {"s": 0}, True)
            assert cluster[leader].state.stores[STORE].position == 1

        simulate(scenario)

    def test_a_stopping_node_tells_what_it_does_not_know(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            cluster.links.cut(leader)
            under_way = asyncio.ensure_future(ended(cluster.append(leader)))
            await asyncio.sleep(0.01)
            await cluster.stop(leader)
            assert isinstance(await under_way, OutcomeUnknown)

        simulate(scenario)

    def test_a_recovering_node_takes_nothing(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            await cluster.start("n1")
            with pytest.raises(NotReady):
                await cluster.append("n1")

        simulate(scenario)

    def test_what_a_fill_passed_over_is_neither_called_refused_nor_tried_again(self) -> None:
        """Its index came with the state of another node: nobody here saw what stood there."""

        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            pending = asyncio.ensure_future(ended(cluster.append(leader, None, 3000)))
            cluster.links.watchers.append(
                lambda sender, _, message: (
                    not (sender == leader and isinstance(message, AppendEntries))
                )
            )
            await asyncio.sleep(0.01)
            proposals = cluster[leader]._proposals
            proposals.skipped()
            proposals.applied(cluster[leader].applied_index + 100, 9, [], [])
            assert isinstance(await pending, OutcomeUnknown)
            assert proposals.counters["commands_handed_on_again"] == 0

        simulate(scenario)

    def test_a_leader_that_leads_again_refuses_what_it_was_asked_in_its_earlier_reign(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            follower = cluster.followers()[0]
            proposals = cluster[leader]._proposals
            said: list[Any] = []
            proposals._send = lambda peer, message: said.append((peer, message)) is None
            term = cluster[leader].status().term
            proposals.proposed(follower, 1, Propose(term - 1, [7], [cluster.command()]))
            assert said == [(follower, Refused(1, term - 1, [7], "not leading"))]

        simulate(scenario)

    def test_who_leads_no_more_is_not_asked_again_and_again_in_its_term(self) -> None:
        """It has stepped down and nobody leads yet; its followers will notice only later."""

        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            follower = cluster.followers()[0]
            asked: list[int] = []

            def passes(_: str, receiver: str, message: Any) -> bool:
                if isinstance(message, Propose):
                    asked.append(message.term)
                return not (receiver == leader and isinstance(message, Ack))

            cluster.links.watchers.append(passes)
            await cluster.until(lambda: not cluster[leader].leads)
            term = cluster[leader].status().term
            assert cluster[follower]._engine.leader == leader
            outcome, _ = await cluster.append(follower, None, 5000)
            assert isinstance(outcome, Appended)
            assert asked.count(term) == 1
            await cluster.settled()
            cluster.check()

        simulate(scenario)

    def test_only_the_leader_can_say_that_it_leads_no_more(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            await cluster.ready()
            follower, other = cluster.followers()
            term, incarnation = cluster[follower].status().term, cluster.disks[follower].incarnation
            cluster[follower].received(other, Refused(incarnation, term, [999], "not leading"))
            outcome, _ = await cluster.append(follower, None, 5000)
            assert isinstance(outcome, Appended)
            assert cluster[follower].status().term == term

        simulate(scenario)

    def test_a_refusal_of_an_earlier_life_is_not_taken_for_one_of_this_life(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            follower = cluster.followers()[0]
            cluster.crash(follower)
            await cluster.start(follower)
            await cluster.settled()
            # The leader still holds a command of the earlier life, under the same number.
            proposals = cluster[leader]._proposals
            proposals.pause()
            said: list[tuple[str, Refused]] = []
            proposals._send = lambda peer, message: said.append((peer, message)) is None
            number = cluster[follower]._proposals._sequence + 1
            term = cluster[leader].status().term
            proposals.proposed(follower, 1, Propose(term, [number], [cluster.command()]))
            cluster.links.watchers.append(
                lambda sender, _, message: (
                    not (sender == leader and isinstance(message, AppendEntries))
                )
            )
            submission = asyncio.ensure_future(ended(cluster.append(follower, None, 500)))
            await asyncio.sleep(0.01)
            cluster[leader]._engine.step_down(follower, 50)
            cluster[leader]._proposals._refuse_foreign()
            before = cluster[follower]._proposals._pending[number].handed_term
            earlier, later = (refusal for _, refusal in said)
            assert (earlier.sequences, later.sequences) == ([number], [number])
            cluster[follower].received(leader, earlier)
            assert before
            assert cluster[follower]._proposals._pending[number].handed_term, "it may be stored"
            await submission

        simulate(scenario)


class TestOpening:
    def test_what_a_leader_opens_its_reign_with_comes_before_all_that_waits(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            for replica in cluster.replicas.values():
                replica.open_reigns_with(lambda: [commands.create_store("late", 1)])
            follower = cluster.followers()[0]
            cluster.crash(leader)
            command = commands.append("late", 1, "s", commands.NO_STREAM, [event(1)])
            assert isinstance(await ended(cluster.append(follower, command)), Appended)

        simulate(scenario)


class TestBounds:
    def test_a_node_takes_no_more_submissions_than_its_bound(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, proposals_max=10)
            leader = await cluster.ready()
            cluster.links.cut(leader)
            waiting = [
                asyncio.ensure_future(ended(cluster.append(leader, None, 500))) for _ in range(10)
            ]
            with pytest.raises(Overloaded) as raised:
                await cluster.append(leader)
            assert raised.value.fields == {"limit": "proposals_max"}
            assert all(isinstance(one, OutcomeUnknown) for one in await asyncio.gather(*waiting))
            assert cluster[leader].counters()["proposals_waiting"] == 0

        simulate(scenario)

    def test_a_node_takes_no_more_bytes_than_its_bound(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3, proposal_bytes_max=300)
            leader = await cluster.ready()
            first = asyncio.ensure_future(ended(cluster.append(leader)))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as raised:
                await cluster.append(leader, cluster.command(events=10))
            assert raised.value.fields == {"limit": "proposal_bytes_max"}
            assert isinstance(await first, Appended)

        simulate(scenario)

    @pytest.mark.parametrize("at", ["leader", "follower"])
    def test_what_would_not_fit_into_a_message_is_certainly_not_stored(self, at: str) -> None:
        """It would be sent to the others again and again, and cost their connections."""

        async def scenario() -> None:
            cluster = Cluster(3, entry_bytes_max=100, frame_bytes_max=1024 * 1024 + 600)
            leader = await cluster.ready()
            node = leader if at == "leader" else cluster.followers()[0]
            long, fits = cluster.command(events=50), cluster.command(events=5)
            with pytest.raises(PayloadTooLarge) as raised:
                await cluster.append(node, long)
            assert raised.value.fields == {"limit": 500, "actual": len(long)}
            assert isinstance(await ended(cluster.append(node, fits)), Appended)
            assert not cluster.holds(leader, long)

        simulate(scenario)

    def test_a_full_leader_refuses_and_it_is_certain_that_nothing_was_stored(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            cluster[leader]._proposals._overloaded = lambda: True
            follower = cluster.followers()[0]
            command = cluster.command()
            assert isinstance(await ended(cluster.append(follower, command)), Overloaded)
            await cluster.settled()
            assert not cluster.holds(leader, command)

        simulate(scenario)

    def test_a_submission_whose_client_went_away_leaves_nothing_behind(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            cluster.links.cut(leader)
            await cluster.until(lambda: cluster[leader].leader is None, 3)
            submission = asyncio.ensure_future(cluster.append(leader))
            await asyncio.sleep(0)
            submission.cancel()
            await asyncio.sleep(0.1)
            assert cluster[leader].counters()["proposals_waiting"] == 0

        simulate(scenario)
