"""Status: who leads, who follows, and how far each is. Behind `scripts/status`.

Any node can describe the cluster, but the leader hears from everybody and so knows most. So a node
that answers is asked who leads, and then the leader is asked; if it cannot be reached the first
answer has to do, and the title says whose view is shown. One that knows no leader may be cut off or
removed from the cluster, so the other addresses are asked before that is believed.

Two lags matter, both in entries of the replicated log. The applied lag is how far a node's memory
is behind what is committed: reads there are so much older. The persisted lag is how far a node's
disk is behind its memory: that much it would need from the others after a crash.

Exit codes: 0 there is a leader and every member is reachable (with `--leader`: there is one);
1 not so; 2 no node could be reached; 130 interrupted, but for `--watch`, whose end is 0.
"""

import argparse
import asyncio
import contextlib
import json
import sys
from typing import Any, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cluster.access import DEFAULT_URLS, Reply, Unreachable, request, urls_or_default
from cluster.cli.ending import DONE, INTERRUPTED, Failure, ended, refused, shown
from cluster.cli.options import Parser
from cluster.tables import whole

PROG = "scripts/status"

WATCH_S = 1.0
_ANSWER_S = 3.0
_COLOURS = {"leader": "bold green", "follower": "green", "unreachable": "red"}
_EPILOG = """\
examples:
  {prog}
  {prog} --watch --url http://10.0.0.1:8101
  kill -9 $(cat data/$({prog} --leader)/lock)        on the leader's own machine: see who is next

exit codes: 0 there is a leader and all members are reachable, 1 not so, 2 no node could be reached,
64 wrong options, 130 interrupted (with --watch: 0)
The environment variable EX_ESDB_URL holds addresses too, with commas between them.
"""


class Row(NamedTuple):
    """One member. Lags are in log entries; None where it is not known."""

    node: str
    role: str
    http_address: str
    commit_index: int | None
    applied_lag: int | None
    persisted_lag: int | None
    last_contact_ms: float | None


def parse(argv: list[str], prog: str = PROG) -> argparse.Namespace:
    """The options, and the command's name; leaves with exit 64 on wrong ones."""
    parser = Parser(
        prog=prog,
        description="Show the members of a cluster, their roles, and how far each is.",
        epilog=_EPILOG.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--url", action="append", metavar="URL",
        help=f"a node to ask, repeatable; default {DEFAULT_URLS[0]} to 8103")  # fmt: skip
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print the answer instead of a table")
    output.add_argument("--leader", action="store_true", help="print the leader's id, only")
    output.add_argument("--watch", action="store_true", help="show it again every second")
    options = parser.parse_args(argv)
    return options


async def look(urls: list[str]) -> Reply:
    """The cluster as its leader sees it, or as whoever answers does. Raises Unreachable."""
    first = await _view(urls)
    if _leader_address(first.body) is None:
        first = await _view_with_leader(urls[urls.index(first.url) + 1 :]) or first
    address = _leader_address(first.body)
    if address is None or first.body.get("leader") == first.body.get("node_id"):
        return first
    try:
        second = await _view([f"http://{address}"])
    except Unreachable:
        return first
    return second if second.status == 200 else first


async def _view(urls: list[str]) -> Reply:
    return await request("GET", urls, "/v1/cluster", timeout_s=_ANSWER_S)


async def _view_with_leader(urls: list[str]) -> Reply | None:
    for url in urls:
        with contextlib.suppress(Unreachable):
            reply = await _view([url])
            if _leader_address(reply.body) is not None:
                return reply
    return None


def _leader_address(body: dict[str, Any]) -> str | None:
    members = {member["id"]: member for member in body.get("members", [])}
    address = members.get(body.get("leader"), {}).get("http_address")
    return str(address) if address else None


def rows(body: dict[str, Any]) -> list[Row]:
    """One row a member, in the order of their ids."""
    members = body.get("members", [])
    committed = max((member.get("commit_index") or 0 for member in members), default=0)
    return sorted(_row(member, committed) for member in members)


def _row(member: dict[str, Any], committed: int) -> Row:
    applied, persisted = member.get("applied_index"), member.get("persisted_index")
    return Row(
        node=member["id"],
        role=member.get("role", "?"),
        http_address=member.get("http_address") or "?",
        commit_index=member.get("commit_index"),
        applied_lag=_behind(applied, committed),
        persisted_lag=_behind(persisted, applied),
        last_contact_ms=member.get("last_contact_ms"),
    )


def _behind(index: int | None, ahead: int | None) -> int | None:
    return None if index is None or ahead is None else max(0, ahead - index)


def healthy(body: dict[str, Any]) -> bool:
    """Whether there is a leader and nobody is out of reach."""
    return bool(body.get("leader")) and all(row.role != "unreachable" for row in rows(body))


def table(reply: Reply) -> Table:
    """The members for a person."""
    body = reply.body
    leader = body.get("leader") or "none"
    title = f"leader {leader}, term {body.get('term', '?')}, as {body.get('node_id', '?')} sees it"
    made = Table(title=title, title_justify="left")
    for heading in ("node", "role", "http"):
        made.add_column(heading, no_wrap=True)
    for heading in ("commit", "applied lag", "persisted lag", "last contact"):
        made.add_column(heading, justify="right")
    for row in rows(body):
        role = Text(row.role, style=_COLOURS.get(row.role, "yellow"))
        contact = "-" if row.last_contact_ms is None else f"{row.last_contact_ms:,.0f} ms"
        numbers = [_shown(number) for number in row[3:6]]
        made.add_row(row.node, role, escape(row.http_address), *numbers, contact)
    return made


def notes(body: dict[str, Any]) -> list[str]:
    """What the node that was asked waits for, and which peers it refuses, in its own words."""
    node, waits_for = body.get("node_id", "?"), body.get("waits_for") or []
    refused = () if waits_for else (body.get("refused") or {}).items()
    return [
        *(f"{node} is not ready: {words}" for words in waits_for),
        *(f"{node} refuses {peer}: {words}" for peer, words in refused),
    ]


def _shown(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


async def run(options: argparse.Namespace, console: Console) -> int:
    """Look once and show it, or again and again; the exit code."""
    urls = urls_or_default(options.url)
    if options.watch:
        return await _watch(urls, console)
    try:
        reply = await look(urls)
    except Unreachable as error:
        return ended(options, error)
    if options.leader:
        return _say_leader(options, reply)
    if reply.status != 200:
        return ended(options, refused(reply))
    if options.json:
        console.print_json(json.dumps(reply.body))
    else:
        console.print(whole(table(reply), console))
        for note in notes(reply.body):
            console.print(note, highlight=False, markup=False, soft_wrap=True)
    return 0 if healthy(reply.body) else 1


def _say_leader(options: argparse.Namespace, reply: Reply) -> int:
    leader = reply.body.get("leader")
    if leader is None:
        return ended(options, Failure(f"{reply.url} knows no leader", word="no_leader"))
    print(leader)
    return 0


async def _watch(urls: list[str], console: Console) -> int:
    """Until Ctrl-C. A cluster that is gone is shown as that, and watched for its return."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            try:
                live.update(whole(table(await look(urls)), console), refresh=True)
            except Unreachable as error:
                live.update(Text(f"{error.words}\n{error}", "red"), refresh=True)
            await asyncio.sleep(WATCH_S)


def main(argv: list[str], prog: str = PROG) -> int:
    """The exit code; to leave a watch by Ctrl-C is no failure, and all else is not known then."""
    options = parse(argv, prog)
    try:
        return shown(prog, run(options, Console()), options.json)
    except KeyboardInterrupt:
        return DONE if options.watch else INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
