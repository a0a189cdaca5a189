"""Of two voters one is to be left: what both remember of it while only one of them knows.

`stays` and `goes` are the two. The one that goes leads, and has applied its own removal.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from node.errors import ExesdbError
from node.raft import journal
from node.raft.messages import AppendEntries, MembershipNotice, RecoveryReport
from tests.raft.harness import Cluster
from tests.raft.test_membership_change import add, knows, ready, removed
from tests.raft.test_rebuilding import settled
from tests.raft.test_unheard_changes import (
    elected_beside_its_own_removal,
    has_applied,
    hold_back_that_it_is_committed,
)
from tests.raft.virtual_time import simulate


async def recovering_past_it(cluster: Cluster) -> tuple[str, str]:
    """The one that stays lost its memory, recovers, and is past the entry that leaves it alone."""
    stays, goes = await elected_beside_its_own_removal(cluster)
    hold_back_that_it_is_committed(cluster, goes, stays)
    del cluster[stays]._election._may_stand  # type: ignore[attr-defined]
    await cluster.until(lambda: has_applied(cluster, goes, stays))
    cluster.crash(stays)
    cluster.links.watchers[:] = [
        lambda _, to, said: not (to == stays and isinstance(said, RecoveryReport) and said.leads)
    ]
    await cluster.start(stays)
    await cluster.until(lambda: has_applied(cluster, stays, stays))
    assert cluster[stays].recovering and cluster[goes].leads
    return stays, goes


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_removal_ends_although_the_one_that_stays_is_past_it_and_was_started_anew(
    how: str,
) -> None:
    async def scenario() -> None:
        cluster = Cluster(2)
        stays, goes = await recovering_past_it(cluster)
        if how == "killed":
            cluster.persist(stays)
            cluster.crash(stays)
        else:
            await cluster.stop(stays)
        cluster.links.watchers.clear()
        await cluster.start(stays)
        await cluster.until(lambda: not cluster[stays].recovering)
        await asyncio.sleep(30)  # all are up and connected
        assert not cluster[goes]._journal.memberships.open
        await cluster.until(lambda: cluster[stays].leads and removed(cluster, goes))
        cluster.check()

    simulate(scenario)


@pytest.mark.parametrize("how", ["killed", "stopped", "runs on"])
@pytest.mark.parametrize(("founders", "joins"), [(2, False), (2, True), (3, True)])
def test_who_went_remembers_after_a_restart_that_the_other_one_may_be_alone(
    founders: int, joins: bool, how: str
) -> None:
    """Else the other one, wiped, goes on with it beside those that it has added meanwhile."""

    async def scenario() -> None:
        cluster = Cluster(founders, tails=True, spares=1)
        (new,) = cluster.spares
        if founders == 3:
            leader = await ready(cluster)
            gone = cluster.followers()[0]
            await cluster[leader].remove_member(gone, 2_000)
            await cluster.until(lambda: removed(cluster, gone))
            cluster.crash(gone)
            cluster.ids.remove(gone)
        stays, goes = await elected_beside_its_own_removal(cluster)
        cluster.links.watchers[:] = [
            lambda sender, _, said: sender != stays or not isinstance(said, MembershipNotice)
        ]
        await cluster.until(lambda: has_applied(cluster, goes, stays))
        await cluster.until(lambda: knows(cluster, stays, {stays}))
        cluster.links.cut(goes)  # what the other one said of it was still under way
        cluster.links.watchers.clear()
        cluster.persist(goes)
        if how == "killed":
            cluster.crash(goes)
        elif how == "stopped":
            await cluster.stop(goes)
        if how != "runs on":
            await cluster.start(goes)
        assert not cluster[goes].recovering
        del cluster[stays]._election._may_stand  # type: ignore[attr-defined]
        await add(cluster, new, await cluster.led(stays))
        await settled(cluster, stays, new)
        command = cluster.command()
        await cluster.append(stays, command)
        await cluster.until(lambda: cluster.holds(new, command))
        cluster.crash(stays)
        cluster.wipe(stays)
        if joins:
            cluster.spares.append(stays)
        cluster.links.heal()
        cluster.links.cut(new)
        await cluster.start(stays)
        with suppress(ExesdbError):
            await cluster.append(stays)
        await asyncio.sleep(20)
        assert cluster.leader() is None, f"{new} alone has what was acknowledged"
        cluster.links.heal()
        await settled(cluster, stays, new)
        assert cluster.holds(stays, command)
        cluster.check()

    simulate(scenario)


def test_no_two_are_alone() -> None:
    """Who was to go is started anew, and told to remove the one that was to stay."""

    async def scenario() -> None:
        cluster = Cluster(2)
        stays, goes = await recovering_past_it(cluster)
        await cluster.stop(goes)
        await cluster.start(goes)
        cluster[stays]._election._may_stand = lambda: False  # type: ignore[method-assign]
        await cluster.led(goes)
        del cluster[stays]._election._may_stand  # type: ignore[attr-defined]
        await asyncio.sleep(1)
        assert cluster[stays].recovering, "answers come late"
        cluster.links.watchers.clear()
        removal = asyncio.ensure_future(cluster[goes].remove_member(stays, 2_000))
        cluster[stays]._recovery._next_round = 0.0  # it asks again at that moment
        cluster[stays]._kick()
        with suppress(ExesdbError):
            await removal
        await asyncio.sleep(5)
        assert not (knows(cluster, stays, {stays}) and knows(cluster, goes, {goes}))
        assert not (cluster[stays].leads and cluster[goes].leads)
        cluster.check()

    simulate(scenario)


@pytest.mark.parametrize("first", ["stays", "goes"])
def test_nothing_stands_still_where_both_lost_what_was_applied(first: str) -> None:
    """Two at once may lose events; who the members are must not be open for ever."""

    async def scenario() -> None:
        cluster = Cluster(2, spares=1)
        stays, goes = await recovering_past_it(cluster)
        cluster.crash()
        for index in [at for at in cluster.chronicle.entries if at > 1]:
            del cluster.chronicle.entries[index]
        cluster.links.watchers.clear()
        await cluster.start()
        leads, other = (stays, goes) if first == "stays" else (goes, stays)
        cluster[other]._election._may_stand = lambda: False  # type: ignore[method-assign]
        with suppress(AssertionError):
            await cluster.until(lambda: cluster[leads].leads, 5)
        del cluster[other]._election._may_stand  # type: ignore[attr-defined]
        await asyncio.sleep(10)
        leader = await cluster.led()
        assert not cluster[leader]._journal.memberships.open
        await add(cluster, "n3", leader)
        cluster.check()

    simulate(scenario)


@pytest.mark.parametrize("comes_by", ["the log", "a fill"])
def test_who_joins_a_sole_voter_is_counted_although_the_word_of_it_was_lost(
    comes_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knew two voters before, and was told only once, in vain, that one of them is left."""
    monkeypatch.setattr(journal, "_CUT_ITEMS_MIN", 1)

    async def scenario() -> None:
        kept = 1 if comes_by == "a fill" else 1_000
        cluster = Cluster(3, tails=True, spares=1, log_tail_entries_max=kept)
        stays = await ready(cluster)
        first, second = cluster.followers()
        await cluster[stays].remove_member(first, 2_000)
        await cluster.start("n4")
        await cluster.until(lambda: knows(cluster, "n4", {stays, second}))
        await cluster[stays].remove_member(second, 2_000)
        cluster.links.watchers.append(
            lambda _, to, said: (
                not (to == "n4" and isinstance(said, MembershipNotice | AppendEntries))
            )
        )
        learns = await cluster[stays].add_member("n4", "n4:1", 500)
        assert learns.learner_id == "n4"
        await cluster.fill_log(stays, 5)
        cluster.persist(stays)
        cluster[stays]._cut_log()
        cluster.links.watchers.pop()
        await cluster.until(lambda: knows(cluster, stays, {stays, "n4"}))
        cluster.check()

    simulate(scenario)
