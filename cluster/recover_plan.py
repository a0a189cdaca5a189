"""The plan by which a cluster goes on without members that are gone for good. Pure.

`make` looks at what the survivors say of themselves and gives a plan, or says why there is none. It
refuses more than it allows, because a plan that is carried out cannot be taken back: the missing
members, should one return, are strangers from then on. So a plan needs that

* every member is accounted for: it answers, or the operator has named it missing, not both. So is
  a node that was being added: the survivors would wait for it, too. If it answers it is counted;
* nobody leads, and the survivors could not elect a leader by themselves: those that have forgotten
  nothing, and hold no more than one of them, are no majority by that one's log;
* no survivor has a connection with a missing member;
* all survivors follow one lineage, and are no strangers themselves.

The new lineage is a digest of the old one, the survivors and the missing. So a plan that was
interrupted between two nodes is found again, and finished, by making it anew: those that have it
already say so by their lineage. Where a survivor is lost meanwhile, the others can go on together
only in the lineage that some follow already: so that plan is finished first, with the lost one in
it, and the next one gives it up. The furthest log among the survivors is what the cluster goes on
with; the nodes see to that themselves, and need all survivors for it (a cold start).
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple


class Report(NamedTuple):
    """What a node says of itself (`GET /v1/cluster/recovery`)."""

    url: str
    node_id: str
    cluster: str
    lineage: str
    ancestry: tuple[str, ...]
    founded: bool
    quarantined: str | None
    recovering: bool
    persistent: bool
    leader: str | None
    term: int
    last_term: int
    last_index: int
    membership_version: int
    counted: tuple[str, ...]
    voters: Mapping[str, str]
    learners: Mapping[str, str]
    reaches: tuple[str, ...]
    positions: Mapping[str, int]

    @property
    def log(self) -> tuple[int, int]:
        """How far its log is; the greatest one leads."""
        return self.last_term, self.last_index


class Plan(NamedTuple):
    """What is to be done: `todo` are the survivors that do not have it yet, `lost` those that are
    missing since it was begun.
    """

    lineage: str
    parent: str
    version: int
    voters: Mapping[str, str]
    missing: tuple[str, ...]
    furthest: str
    todo: tuple[str, ...]
    lost: tuple[str, ...] = ()

    def order(self) -> dict[str, Any]:
        """What is sent to each survivor."""
        return {
            "lineage": self.lineage,
            "parent": self.parent,
            "membership_version": self.version,
            "voters": dict(sorted(self.voters.items())),
            "missing": list(self.missing),
        }


class NoPlan(Exception):
    """There is no plan. `unneeded` says that the cluster does without, or will by itself."""

    def __init__(self, reason: str, unneeded: bool = False) -> None:
        super().__init__(reason)
        self.unneeded = unneeded


def make(reports: Sequence[Report], silent: Collection[str], missing: Collection[str]) -> Plan:
    """The plan to go on without `missing`. `silent` are addresses that gave no answer.

    Raises `NoPlan`.
    """
    _check_nobody_leads(reports)
    _check_answers(reports, silent, missing)
    before, after = _by_lineage(reports)
    _check_not_done(before, missing)
    parent = before[0].lineage
    members: dict[str, str] = {}
    for report in (*after, *before):
        members |= {**report.learners, **report.voters}
    # Those who had heard of a missing one may all have the plan already: its lineage names them.
    _check_members(reports, members.keys() | set(missing if after else ()), missing)
    _check_needed(before, missing)
    lost = _lost(parent, after, missing)
    survivors = {one: members[one] for one in (*(report.node_id for report in reports), *lost)}
    missing = set(missing).difference(lost)
    plan = Plan(
        lineage=_lineage(parent, survivors, missing),
        parent=parent,
        version=_version(before, after),
        voters=survivors,
        missing=tuple(sorted(missing)),
        furthest=max(reports, key=lambda report: (report.log, report.node_id)).node_id,
        todo=tuple(sorted(report.node_id for report in before)),
        lost=lost,
    )
    _check_same(plan, after)
    return plan


def _check_answers(
    reports: Sequence[Report], silent: Collection[str], missing: Collection[str]
) -> None:
    """Who answers is alive, and nobody may be left out by an oversight."""
    if silent:
        raise NoPlan(
            f"no answer from {_names(silent)}: start what runs there, or, if it is gone for good, "
            "leave the address out and name the member with --missing"
        )
    if not reports:
        raise NoPlan("no survivor is named: give the addresses of all that are left with --nodes")
    ids = [report.node_id for report in reports]
    twice = {node_id for node_id in ids if ids.count(node_id) > 1}
    if twice:
        raise NoPlan(f"{_names(twice)} answered at two addresses; name each survivor once")
    alive = set(ids) & set(missing)
    if alive:
        raise NoPlan(f"{_names(alive)} answered, so it is not missing")
    for report in reports:
        if report.quarantined:
            raise NoPlan(f"{report.node_id} is no survivor; it says: {report.quarantined}")
        if not report.persistent:
            raise NoPlan(
                f"{report.node_id} keeps its data in memory only, and would lose all by a restart"
            )
        reached = set(report.reaches) & set(missing)
        if reached:
            raise NoPlan(
                f"{report.node_id} has a connection with {_names(reached)}: not gone for good"
            )


def _by_lineage(reports: Sequence[Report]) -> tuple[list[Report], list[Report]]:
    """The survivors without and with the plan that is being carried out, if one is."""
    if len({report.cluster for report in reports}) > 1:
        raise NoPlan("these nodes are of different clusters")
    lineages = sorted({report.lineage for report in reports})
    if len(lineages) == 1:
        return list(reports), []
    for parent in lineages:
        before = [report for report in reports if report.lineage == parent]
        after = [report for report in reports if report.lineage != parent]
        if len(lineages) == 2 and all(report.ancestry[-1:] == (parent,) for report in after):
            return before, after
    raise NoPlan(
        "these nodes follow different lineages, none of which is the other's next: "
        + ", ".join(f"{report.node_id} {report.lineage}" for report in reports)
        + "; decide which to keep, and name only its nodes"
    )


def _check_members(
    reports: Sequence[Report], members: Collection[str], missing: Collection[str]
) -> None:
    """Everyone is accounted for, and nobody is named that the cluster does not know."""
    answered = {report.node_id for report in reports}
    unknown = (answered | set(missing)) - set(members)
    if unknown:
        raise NoPlan(f"{_names(unknown)} is no member; the members are {_names(members)}")
    unaccounted = set(members) - answered - set(missing)
    if unaccounted:
        raise NoPlan(
            f"{_names(unaccounted)} is a member too: give its address with --nodes, or name it with"
            " --missing if it is gone for good"
        )


def _check_nobody_leads(reports: Sequence[Report]) -> None:
    for report in reports:
        if report.leader is not None:
            raise NoPlan(
                f"{report.leader} leads (as {report.node_id} sees it, in term {report.term}): the "
                "cluster works; a lost member is removed by a change of membership",
                unneeded=True,
            )


def _check_not_done(reports: Sequence[Report], missing: Collection[str]) -> None:
    """Where all survivors have the plan already, they only need time for their election."""
    first, answered = reports[0], {report.node_id for report in reports}
    if not first.ancestry or answered != first.voters.keys():
        return
    if first.lineage == _lineage(first.ancestry[-1], answered, missing):
        raise NoPlan(
            f"{_names(answered)} all follow lineage {first.lineage} already, without "
            f"{_names(missing)}: they elect a leader by themselves",
            unneeded=True,
        )


def _check_needed(before: Sequence[Report], missing: Collection[str]) -> None:
    """Survivors that can elect a leader by themselves must be left to do so."""
    sure = [report for report in before if not report.recovering]
    for one in sure:
        # A change that only some have in their logs may keep a majority from agreeing.
        agree = {other.node_id for other in sure if other.log <= one.log} & set(one.counted)
        if 2 * len(agree) > len(one.counted):
            raise NoPlan(
                f"{_names(agree)} are a majority and have forgotten nothing: they elect a leader "
                "by themselves",
                unneeded=True,
            )
    newest = max(before, key=lambda report: report.membership_version)
    if not missing:
        raise NoPlan(
            f"all members answer ({_names(newest.voters)}): they make a cold start by themselves",
            unneeded=True,
        )


def _lost(parent: str, after: Sequence[Report], missing: Collection[str]) -> tuple[str, ...]:
    """Who is missing and was a survivor when the plan was begun that some have already."""
    for report in after[:1]:
        lost = report.voters.keys() & set(missing)
        if report.lineage == _lineage(parent, report.voters.keys(), set(missing) - lost):
            return tuple(sorted(lost))
    return ()


def _check_same(plan: Plan, after: Sequence[Report]) -> None:
    for report in after:
        if report.lineage != plan.lineage or report.voters.keys() != plan.voters.keys():
            raise NoPlan(
                f"{report.node_id} already follows another plan, lineage {report.lineage} with "
                f"{_names(report.voters)}: name exactly the members that were missing then"
            )


def _lineage(parent: str, survivors: Collection[str], missing: Collection[str]) -> str:
    named = json.dumps([parent, sorted(survivors), sorted(missing)])
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def _version(before: Sequence[Report], after: Sequence[Report]) -> int:
    """Newer than any membership that a survivor has ever heard of, and one for all of them."""
    if after:
        return max(report.membership_version for report in after)
    return 1 + max(report.membership_version for report in before)


def _names(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
