"""Which of two nodes that meet follows the history that counts."""

from __future__ import annotations

import pytest

from node.raft.lineage import ANCESTRY_MAX, Lineage, Standing, Verdict, judge

ZERO = Standing("zero", (), founded=True)
NEW = ZERO.followed_by("one")
ONE = NEW._replace(founded=True)
TWO = ONE.followed_by("two")._replace(founded=True)
BESIDE = ZERO.followed_by("beside")._replace(founded=True)
BLANK = Standing("zero", (), founded=False)

SAME, OLD, GIVEN_UP, STRANGE = Verdict.SAME, Verdict.OLD, Verdict.GIVEN_UP, Verdict.STRANGE


@pytest.mark.parametrize(
    ("own", "other", "verdict"),
    [
        (ZERO, ZERO, SAME),
        (ONE, NEW, SAME),
        (NEW, ONE, SAME),
        (ZERO, ONE, OLD),
        (ONE, ZERO, GIVEN_UP),
        (ZERO, TWO, OLD),
        (BLANK, ONE, OLD),
        (ONE, BLANK, GIVEN_UP),
        (ZERO, NEW, STRANGE),
        (NEW, ZERO, STRANGE),
        (NEW, TWO, OLD),
        (ONE, BESIDE, STRANGE),
    ],
)
def test_the_founded_descendant_counts(own: Standing, other: Standing, verdict: Verdict) -> None:
    assert judge(own, other) is verdict


@pytest.mark.parametrize("own", [ZERO, NEW, ONE, TWO, BESIDE, BLANK])
@pytest.mark.parametrize("other", [ZERO, NEW, ONE, TWO, BESIDE, BLANK])
def test_two_nodes_never_think_the_same_of_each_other_that_only_one_can_be(
    own: Standing, other: Standing
) -> None:
    mirrored = {SAME: SAME, OLD: GIVEN_UP, GIVEN_UP: OLD, STRANGE: STRANGE}
    assert judge(other, own) is mirrored[judge(own, other)]


def test_an_ancestry_keeps_the_latest_lineages() -> None:
    standing = ZERO
    for number in range(2 * ANCESTRY_MAX):
        standing = standing.followed_by(str(number))
    assert len(standing.ancestry) == ANCESTRY_MAX
    assert standing.ancestry[-1] == str(2 * ANCESTRY_MAX - 2)


def test_who_is_met_again_in_one_lineage_is_refused_no_more() -> None:
    lineage = Lineage(lambda: ONE, lambda _: None)
    assert lineage.met("n2", ZERO) is not None
    assert lineage.refused.keys() == {"n2"}
    assert lineage.met("n2", ONE) is None
    assert lineage.refused == {}


def test_two_histories_that_an_operator_must_choose_between_are_an_alarm_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lineage = Lineage(lambda: ONE, lambda _: None)
    for _ in range(3):
        lineage.met("n2", BESIDE)
        lineage.met("n3", ZERO)
    told = [(record.levelname, record.getMessage()[:12]) for record in caplog.records]
    assert told == [("CRITICAL", "refusing n2:"), ("WARNING", "refusing n3:")], "once each"


def test_who_was_given_up_never_speaks_with_the_newer_lineage_in_this_life() -> None:
    """Its disk says the newer one at once; its memory is still of the older, until it restarts."""
    disk = [ZERO]
    told: list[Standing] = []

    def quarantine(newer: Standing) -> None:
        told.append(newer)
        disk[0] = newer._replace(founded=False)

    lineage = Lineage(lambda: disk[0], quarantine)
    for _ in range(3):
        assert lineage.met("n1", ONE) is not None
        assert lineage.standing == ZERO
    assert told == [ONE]


def test_only_so_many_refused_peers_are_remembered() -> None:
    lineage = Lineage(lambda: ONE, lambda _: None)
    for number in range(100):
        lineage.met(f"n{number}", ZERO)
    assert list(lineage.refused) == [f"n{number}" for number in range(36, 100)]
