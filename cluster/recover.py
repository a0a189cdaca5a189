"""Recover: have a cluster go on without members that are gone for good. Behind `scripts/recover`.

It asks every survivor what it holds, makes a plan of the answers (`recover_plan`), shows it, asks
for confirmation, and gives each survivor its order (`POST /v1/cluster/recovery`). Each makes the
order durable and restarts by itself; then they elect a leader among themselves.

What was acknowledged by missing members only is lost. Who is left out becomes a stranger: should it
come back, it is refused, and its data are moved aside. So the plan is refused wherever the cluster
could go on without it, and asked again of each node before it obeys.

It can be interrupted at any point and run again with the same arguments: it then gives the same
plan to those that do not have it yet. If a survivor is lost meanwhile, it is to be named missing,
too: this run finishes the plan with it, and another one makes the next one without it.

Exit codes: 0 done and there is a leader; 1 refused, or not finished; 2 no node could be reached;
3 not needed; 64 wrong options.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.access import Unreachable, request, url_of
from cluster.cli.ending import shown
from cluster.cli.options import Parser
from cluster.client_errors import OutcomeUnknown
from cluster.recover_plan import NoPlan, Plan, Report, make
from cluster.tables import whole

WORD = "recover"
_ANSWER_S = 5.0
_ORDER_S = 90.0
_LEADER_S = 120.0
_AGAIN_S = 0.25
_ROUTE = "/v1/cluster/recovery"
_EPILOG = """\
examples:
  scripts/recover --nodes http://10.0.0.1:8101 --missing n2,n3
  scripts/recover --nodes http://10.0.0.1:8101,http://10.0.0.2:8101 --missing n3,n4,n5 --yes

exit codes: 0 done and there is a leader, 1 refused or not finished, 2 no node could be reached,
3 not needed, 64 wrong options
Start every survivor first. A member that may ever come back with its disk is not gone for good.
"""


def parse(argv: list[str]) -> argparse.Namespace:
    """The options; leaves with exit 64 on wrong ones."""
    parser = Parser(
        prog="scripts/recover",
        description="Have a cluster go on without members that are gone for good.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--nodes", required=True, metavar="URL[,URL]", type=_urls,
        help="the HTTP addresses of all survivors")  # fmt: skip
    add("--missing", default=[], metavar="ID[,ID]", type=_list,
        help="the ids of all members that are gone for good")  # fmt: skip
    add("--yes", action="store_true", help="do not ask for confirmation")
    return parser.parse_args(argv)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _urls(text: str) -> list[str]:
    try:
        return [url_of(part) for part in _list(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


async def look(urls: Collection[str]) -> tuple[list[Report], list[str]]:
    """What each survivor says of itself, and the addresses that gave no answer."""
    answers = await asyncio.gather(*map(_ask, urls))
    silent = [url for url, report in zip(urls, answers, strict=True) if report is None]
    return [report for report in answers if report is not None], silent


async def _ask(url: str) -> Report | None:
    try:
        reply = await request("GET", [url], _ROUTE, timeout_s=_ANSWER_S)
    except Unreachable:
        return None
    return report_of(url, reply.body)


def report_of(url: str, body: dict[str, Any]) -> Report | None:
    """The report in a node's answer; None if it is something else."""
    known = {name: body[name] for name in Report._fields if name in body} | {"url": url}
    if len(known) < len(Report._fields):
        return None
    lists = {name: tuple(known[name]) for name in ("ancestry", "counted", "reaches")}
    return Report(**(known | lists))


async def order(plan: Plan, report: Report) -> str | None:
    """Give one survivor its order; why it was not obeyed, or None."""
    try:
        reply = await request("POST", [report.url], _ROUTE, json=plan.order(), timeout_s=_ORDER_S)
    except (OutcomeUnknown, Unreachable) as error:
        return str(error)
    if reply.status in (200, 202):
        return None
    return str(reply.body.get("detail") or reply.body.get("code") or f"status {reply.status}")


async def led(plan: Plan, urls: Collection[str]) -> str | None:
    """Wait until the survivors have a leader in the new lineage; its id, or None in time."""
    deadline = time.monotonic() + _LEADER_S
    while time.monotonic() < deadline:
        reports, _ = await look(urls)
        for report in reports:
            if report.lineage == plan.lineage and report.leader is not None:
                return report.leader
        await asyncio.sleep(_AGAIN_S)
    return None


def table(reports: list[Report], plan: Plan) -> Table:
    """The survivors and their logs, for a person."""
    made = Table(title=f"plan {plan.lineage}: go on without {', '.join(plan.missing)}",
                 title_justify="left")  # fmt: skip
    for heading in ("survivor", "state"):
        made.add_column(heading, no_wrap=True)
    for heading in ("last term", "last index", "events"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_column("", no_wrap=True)
    for report in sorted(reports, key=lambda one: one.node_id):
        made.add_row(
            report.node_id,
            _state(report, plan),
            f"{report.last_term:,}",
            f"{report.last_index:,}",
            f"{sum(report.positions.values()):,}",
            "furthest log" if report.node_id == plan.furthest else "",
        )
    return made


def _state(report: Report, plan: Plan) -> str:
    if report.node_id not in plan.todo:
        return "has the plan"
    return "recovering" if report.recovering else "forgot nothing"


def consequences(reports: list[Report], plan: Plan) -> str:
    """What it means, in words."""
    furthest = next(report for report in reports if report.node_id == plan.furthest)
    stores = ", ".join(f"{name} {at:,}" for name, at in sorted(furthest.positions.items()))
    missing = ", ".join(plan.missing)
    return (
        f"Members afterwards: {', '.join(sorted(plan.voters))}. "
        f"Lineage {plan.parent} is given up for {plan.lineage}.\n"
        f"Kept: the log of {furthest.node_id}, up to entry {furthest.last_index:,} of term "
        f"{furthest.last_term:,}; applied there so far, by store: {stores or 'none'}.\n"
        f"Lost: acknowledged events after that, which only {missing} had.\n"
        f"Should one of {missing} come back, its data are moved aside and it is no member until it "
        "is added."
    )


async def run(options: argparse.Namespace, console: Console, ask: Callable[[str], str]) -> int:
    """Plan, confirm, carry out; the exit code."""
    reports, silent = await look(options.nodes)
    if not reports:
        _complain(f"no node could be reached at {', '.join(options.nodes)}")
        return 2
    try:
        plan = make(reports, silent, options.missing)
    except NoPlan as refusal:
        _complain(f"{'not needed' if refusal.unneeded else 'refused'}: {refusal}")
        return 3 if refusal.unneeded else 1
    console.print(whole(table(reports, plan), console))
    console.print(consequences(reports, plan), highlight=False, soft_wrap=True)
    if not options.yes and _answer(ask).strip() != WORD:
        _complain("nothing was done")
        return 1
    return await _carry_out(plan, reports, options.nodes, console)


def _answer(ask: Callable[[str], str]) -> str:
    """What was typed. Ctrl-C and an input that has ended are no for an answer."""
    try:
        return ask(f"Type {WORD} to do this: ")
    except (KeyboardInterrupt, EOFError):
        print(file=sys.stderr)
        return ""


async def _carry_out(
    plan: Plan, reports: list[Report], urls: Collection[str], console: Console
) -> int:
    """One survivor after the other: where one refuses, the rest stays as it is."""
    by_id = {report.node_id: report for report in reports}
    for node_id in plan.todo:
        reason = await order(plan, by_id[node_id])
        if reason is not None:
            _complain(f"{node_id}: {reason}\nnot finished; run it again once that is mended")
            return 1
        console.print(f"{node_id} has the plan and restarts", highlight=False)
    if plan.lost:
        lost = ",".join(plan.lost)
        _complain(f"not finished: it was begun with {lost}; run it again with --missing {lost}")
        return 1
    leader = await led(plan, urls)
    if leader is None:
        _complain(f"no leader after {_LEADER_S:g} s; every survivor must run: see their logs")
        return 1
    console.print(f"{leader} leads lineage {plan.lineage}", highlight=False)
    return 0


def _complain(text: str) -> None:
    print(f"scripts/recover: {text}", file=sys.stderr)


def main(argv: list[str]) -> int:
    """The exit code; Ctrl-C leaves things as they are, and can be followed by another run."""
    options = parse(argv)
    try:
        return shown(options.prog, run(options, Console(), input))
    except KeyboardInterrupt:
        _complain("interrupted; run it again to finish")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
