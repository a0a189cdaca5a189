"""When a cluster may be rebuilt without some of its members, and how: all cases of small ones."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import pytest

from cluster.recover_plan import NoPlan, Plan, Report, make

FIVE = ("n1", "n2", "n3", "n4", "n5")


def report(node_id: str, members: Collection[str] = ("n1", "n2", "n3"), **changes: Any) -> Report:
    """A survivor that was a follower of a cluster whose other members are silent."""
    known = Report(
        url=f"http://{node_id}",
        node_id=node_id,
        cluster="c",
        lineage="zero",
        ancestry=(),
        founded=True,
        quarantined=None,
        recovering=False,
        persistent=True,
        leader=None,
        term=4,
        last_term=4,
        last_index=10,
        membership_version=0,
        counted=tuple(members),
        voters={member: f"{member}:1" for member in members},
        learners={},
        reaches=(),
        positions={"main": 8},
    )
    return known._replace(**changes)


def following(plan: Plan, node_id: str, **changes: Any) -> Report:
    """What a survivor says that has the plan: it recovers, in the new lineage."""
    return report(
        node_id,
        plan.voters,
        lineage=plan.lineage,
        ancestry=(plan.parent,),
        founded=False,
        recovering=True,
        membership_version=plan.version,
        **changes,
    )


class TestPlans:
    def test_one_that_was_being_added_is_accounted_for_and_counted_if_it_is_there(self) -> None:
        adding = [
            report(one, learners={"n4": "n4:1"}, recovering=True) for one in ("n1", "n2", "n3")
        ]
        with pytest.raises(NoPlan, match="n4 is a member too"):
            make(adding, [], [])
        assert make(adding, [], ["n4"]).voters.keys() == {"n1", "n2", "n3"}
        learner = report("n4", learners={"n4": "n4:1"}, recovering=True)
        assert make([*adding[:2], learner], [], ["n3"]).voters.keys() == {"n1", "n2", "n4"}

    def test_one_survivor_of_three_goes_on_alone(self) -> None:
        plan = make([report("n1")], [], ["n3", "n2"])
        assert plan.voters == {"n1": "n1:1"}
        assert (plan.parent, plan.version, plan.missing) == ("zero", 1, ("n2", "n3"))
        assert plan.todo == ("n1",)
        assert plan.lineage not in ("zero", "")

    def test_the_furthest_log_is_that_of_the_latest_term_then_the_longest(self) -> None:
        logs = {"n1": (3, 90), "n2": (4, 11), "n3": (4, 12)}
        survivors = [
            report(node_id, [*FIVE, "n6", "n7"], last_term=term, last_index=index)
            for node_id, (term, index) in logs.items()
        ]
        assert make(survivors, [], ["n4", "n5", "n6", "n7"]).furthest == "n3"

    def test_a_majority_that_has_forgotten_needs_a_plan_too(self) -> None:
        survivors = [report("n1"), report("n2", recovering=True)]
        assert make(survivors, [], ["n3"]).voters.keys() == {"n1", "n2"}

    def test_a_membership_change_that_only_one_survivor_has_heard_of_counts(self) -> None:
        older = report("n1", ["n1", "n2", "n3"], membership_version=2)
        newer = report("n2", ["n1", "n2", "n3", "n4"], membership_version=4, recovering=True)
        with pytest.raises(NoPlan, match="n4 is a member too"):
            make([older, newer], [], ["n3"])
        assert make([older, newer], [], ["n3", "n4"]).version == 5

    def test_where_a_survivor_is_lost_that_has_the_plan_it_is_finished_and_another_made(
        self,
    ) -> None:
        """The survivors with and without it can go on together only in its lineage."""
        survivors = [report(one, FIVE, recovering=True) for one in ("n1", "n2", "n3")]
        begun = make(survivors, [], ["n4", "n5"])
        left = [following(begun, "n2"), survivors[2]]
        with pytest.raises(NoPlan, match="n1 is a member too"):
            make(left, [], ["n4", "n5"])
        finishing = make(left, [], ["n1", "n4", "n5"])
        assert finishing.order() == begun.order()
        assert (finishing.todo, finishing.lost) == (("n3",), ("n1",))
        then = make([following(begun, "n2"), following(begun, "n3")], [], ["n1"])
        assert (then.parent, then.voters.keys(), then.lost) == (begun.lineage, {"n2", "n3"}, ())

    def test_the_order_of_answers_changes_nothing(self) -> None:
        survivors = [report("n1", FIVE), report("n2", FIVE)]
        one = make(survivors, [], ["n3", "n4", "n5"])
        other = make(survivors[::-1], [], ["n5", "n4", "n3"])
        assert one == other

    def test_other_survivors_or_other_missing_make_another_lineage(self) -> None:
        halves = [
            make([report("n1", FIVE), report("n2", FIVE)], [], ["n3", "n4", "n5"]),
            make([report("n1", FIVE)], [], ["n2", "n3", "n4", "n5"]),
            make([report("n4", FIVE), report("n5", FIVE)], [], ["n1", "n2", "n3"]),
            make([report("n1", FIVE, lineage="one")], [], ["n2", "n3", "n4", "n5"]),
        ]
        assert len({plan.lineage for plan in halves}) == 4


class TestEveryCaseOfFive:
    """Each member is sure, forgetful, or missing: who must be left alone and who gets a plan."""

    @pytest.mark.parametrize("states", list(itertools.product("sfm", repeat=5)), ids="".join)
    def test_a_plan_is_made_exactly_where_no_leader_can_come(self, states: tuple[str, ...]) -> None:
        by_id = dict(zip(FIVE, states, strict=True))
        reports = [
            report(node_id, FIVE, recovering=state == "f")
            for node_id, state in by_id.items()
            if state != "m"
        ]
        missing = [node_id for node_id, state in by_id.items() if state == "m"]
        can_elect = states.count("s") >= 3 or not missing
        if not reports or can_elect:
            with pytest.raises(NoPlan) as refused:
                make(reports, [], missing)
            assert refused.value.unneeded == bool(reports)
            return
        plan = make(reports, [], missing)
        assert plan.voters.keys() == set(FIVE) - set(missing)
        assert set(plan.todo) == plan.voters.keys()

    @pytest.mark.parametrize("survivors", [("n1",), ("n1", "n2"), ("n2", "n4")])
    def test_interrupted_after_any_of_them_it_is_found_again(self, survivors: tuple[str]) -> None:
        missing = sorted(set(FIVE) - set(survivors))
        plan = make([report(node_id, FIVE) for node_id in survivors], [], missing)
        for done in range(1, len(survivors)):
            reports = [
                following(plan, node_id) if at < done else report(node_id, FIVE)
                for at, node_id in enumerate(survivors)
            ]
            again = make(reports, [], missing)
            assert again == plan._replace(todo=survivors[done:])
        with pytest.raises(NoPlan, match="they elect a leader by themselves") as refused:
            make([following(plan, node_id) for node_id in survivors], [], missing)
        assert refused.value.unneeded

    @pytest.mark.parametrize("there", [False, True])
    def test_it_is_found_again_by_those_who_do_not_know_who_was_being_added(
        self, there: bool
    ) -> None:
        adding = {"learners": {"n6": "n6:1"}, "membership_version": 1}
        first = [report("n1", FIVE, **adding), *([report("n6", FIVE, **adding)] * there)]
        last = report("n2", FIVE)
        missing = ["n3", "n4", "n5", *(["n6"] * (not there))]
        plan = make([*first, last], [], missing)
        done = [following(plan, one.node_id) for one in first]
        assert make([*done, last], [], missing) == plan._replace(todo=("n2",))

    def test_one_that_dies_after_it_got_the_plan_can_be_left_out_by_another(self) -> None:
        plan = make([report("n1", FIVE), report("n2", FIVE)], [], ["n3", "n4", "n5"])
        second = make([following(plan, "n1")], [], ["n2"])
        assert second.parent == plan.lineage
        assert second.voters.keys() == {"n1"}
        assert second.version == plan.version + 1


class TestRefusals:
    def refused(self, *reports: Report, silent: Any = (), missing: Any = ("n3",)) -> NoPlan:
        with pytest.raises(NoPlan) as refused:
            make(reports, silent, missing)
        return refused.value

    def test_where_somebody_leads(self) -> None:
        refusal = self.refused(report("n1", leader="n2"), missing=["n2", "n3"])
        assert refusal.unneeded and "n2 leads (as n1 sees it" in str(refusal)

    def test_where_all_that_survived_lead_already_without_the_missing(self) -> None:
        done = report("n1", ["n1"], lineage="one", ancestry=("zero",), leader="n1")
        assert self.refused(done, missing=["n2", "n3"]).unneeded

    def test_a_silent_survivor(self) -> None:
        refusal = self.refused(report("n1"), silent=["http://n2"])
        assert not refusal.unneeded and "no answer from http://n2" in str(refusal)

    def test_a_member_that_is_not_accounted_for(self) -> None:
        refusal = self.refused(report("n1"))
        assert not refusal.unneeded and "n2 is a member too" in str(refusal)

    def test_a_missing_member_that_answers(self) -> None:
        refusal = self.refused(report("n1"), report("n3"), missing=["n2", "n3"])
        assert "n3 answered, so it is not missing" in str(refusal)

    def test_a_missing_member_that_a_survivor_is_connected_with(self) -> None:
        refusal = self.refused(report("n1", reaches=("n3",)), missing=["n2", "n3"])
        assert "n1 has a connection with n3" in str(refusal)

    def test_a_name_that_is_no_member_s(self) -> None:
        refusal = self.refused(report("n1"), missing=["n2", "n3", "n9"])
        assert "n9 is no member; the members are n1, n2, n3" in str(refusal)

    def test_a_survivor_that_is_no_member(self) -> None:
        assert "n9 is no member" in str(self.refused(report("n9"), missing=["n1", "n2", "n3"]))

    def test_one_node_at_two_addresses(self) -> None:
        twice = report("n1"), report("n1", url="http://other")
        assert "answered at two addresses" in str(self.refused(*twice, missing=["n2", "n3"]))

    def test_a_stranger(self) -> None:
        refusal = self.refused(report("n1", quarantined="quarantined: …"), missing=["n2", "n3"])
        assert "n1 is no survivor; it says: quarantined" in str(refusal)

    def test_a_node_without_a_disk(self) -> None:
        refusal = self.refused(report("n1", persistent=False), missing=["n2", "n3"])
        assert "would lose all by a restart" in str(refusal)

    def test_nodes_of_two_clusters(self) -> None:
        refusal = self.refused(report("n1"), report("n2", cluster="d"))
        assert "different clusters" in str(refusal)

    def test_lineages_that_do_not_follow_each_other(self) -> None:
        left = report("n1", lineage="one", ancestry=("zero",))
        right = report("n2", lineage="two", ancestry=("zero",))
        assert "different lineages" in str(self.refused(left, right))

    def test_an_interrupted_plan_under_other_names(self) -> None:
        plan = make([report("n1", FIVE), report("n2", FIVE)], [], ["n3", "n4", "n5"])
        reports = following(plan, "n1"), report("n2", FIVE), report("n3", FIVE, recovering=True)
        refusal = self.refused(*reports, missing=["n4", "n5"])
        assert not refusal.unneeded and "already follows another plan" in str(refusal)

    def test_survivors_of_a_half_done_plan_whose_cluster_came_back(self) -> None:
        """The old lineage leads again: whoever has the plan is alone, and nothing is done."""
        plan = make([report("n1", FIVE), report("n2", FIVE)], [], ["n3", "n4", "n5"])
        refusal = self.refused(
            following(plan, "n1"), report("n2", FIVE, leader="n4"), missing=["n3", "n4", "n5"]
        )
        assert refusal.unneeded and "n4 leads" in str(refusal)
