"""Members: who belongs to the cluster, and changing that, one node at a time. Behind
`scripts/member`.

Any node can be asked; it hands the request to the leader. To add a node, start it first with
`--join` and a member or two as `--peer`. It is sent the whole history, and counted once it has
caught up. That may take longer than a request waits, so `add` asks again until it is done. So do
both where an answer was lost: whoever was asked may have done it.

Exit codes: 0 done, and for `list` that there is a leader; 1 refused or not done in time; 2 no node
could be reached; 64 wrong options.
"""

import argparse
import asyncio
import contextlib
import sys
import time

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.access import DEFAULT_URLS, Reply, Unreachable, request, urls_or_default
from cluster.cli.ending import shown
from cluster.cli.options import Parser
from cluster.client_errors import OutcomeUnknown
from cluster.client_values import quoted
from cluster.status import look
from cluster.tables import whole

_PATH = "/v1/cluster/members"
_REQUEST_MS, _REQUEST_MS_MIN = 10_000, 1_000
_TIMEOUT_S_MAX = 86_400.0
_AGAIN_S = 0.5
_WAIT = (
    *("membership_change_open", "member_recovering"),
    *("no_leader", "not_ready", "outcome_unknown"),
)
# What says, to a request that was made before, that it was carried out.
_DONE = {"add": "member_exists", "remove": "member_not_found"}
_EPILOG = """\
examples:
  scripts/member list
  scripts/member add n4 10.0.0.4:7101
  scripts/member remove n1 --url http://10.0.0.2:8101

To add a node, start it first: python -m node --join true --node-id n4 --peer n1=10.0.0.1:7101 ...
To replace a node, add the new one and then remove the old one.

exit codes: 0 done, 1 refused or not done in time, 2 no node could be reached, 64 wrong options
The environment variable EX_ESDB_URL holds addresses too, with commas between them.
"""


def parse(argv: list[str]) -> argparse.Namespace:
    """The options; leaves with exit 64 on wrong ones."""
    parser = Parser(
        prog="scripts/member",
        description="Show, add and remove the members of a cluster, one at a time.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = Parser(add_help=False)
    common.add_argument("--url", action="append", metavar="URL",
        help=f"a node to ask, repeatable; default {DEFAULT_URLS[0]} to 8103")  # fmt: skip
    common.add_argument("--timeout", type=_timeout_s, default=300, metavar="SECONDS",
        help="how long to try; default 300")  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", parents=[common], help="who is a member, and who is counted")
    add = commands.add_parser("add", parents=[common], help="add a node that runs with --join")
    add.add_argument("id", help="its node id")
    add.add_argument("raft_address", help="host:port where the others reach its Raft port")
    remove = commands.add_parser("remove", parents=[common], help="remove a node, up or down")
    remove.add_argument("id", help="its node id")
    return parser.parse_args(argv)


def _timeout_s(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) <= _TIMEOUT_S_MAX:  # which is also no for nan
            return seconds
    raise argparse.ArgumentTypeError(f"must be more than 0, at most {_TIMEOUT_S_MAX:g}")


async def run(options: argparse.Namespace, console: Console) -> int:
    """Do it; the exit code."""
    urls = urls_or_default(options.url)
    try:
        if options.command == "list":
            return _list(await look(urls), console)
        return await _change(options, urls, console)
    except Unreachable as error:
        _complain(f"{error.words}\n{error}")
        return 2
    except asyncio.CancelledError:
        _complain("interrupted" if options.command == "list" else f"interrupted; {_later(options)}")
        raise


def _list(reply: Reply, console: Console) -> int:
    table = Table(title=f"members, as {reply.body.get('node_id', '?')} sees them")
    for heading in ("node", "raft address", "role", "counted"):
        table.add_column(heading)
    for member in reply.body.get("members", []):
        counted = "yes" if member.get("voter") else "no"
        table.add_row(member["id"], escape(member["raft_address"]), member["role"], counted)
    console.print(whole(table, console))
    return 0 if reply.body.get("leader") else 1


async def _change(options: argparse.Namespace, urls: list[str], console: Console) -> int:
    """Ask, and again while the cluster is busy or the node still learns."""
    until = time.monotonic() + options.timeout
    perhaps, said = False, ""
    while True:
        try:
            reply = await _ask(options, urls, until - time.monotonic())
        except (OutcomeUnknown, Unreachable) as error:
            if isinstance(error, Unreachable) and not perhaps:
                raise
            reply = Reply("", 504, {"code": "outcome_unknown", "detail": str(error)})
        code = reply.body.get("code")
        perhaps = perhaps or reply.perhaps_stored
        repeated = perhaps and code == _DONE[options.command]
        if reply.status in (200, 201) or repeated:
            voters = ", ".join(reply.body.get("voters", [])) or "as before"
            console.print(f"{options.id}: done; counted are {voters}")
            return 0
        if reply.status != 202 and code not in _WAIT:
            _complain(str(reply.body.get("detail", code)))
            return 1
        words = reply.body.get("detail") or "is learning"
        perhaps = perhaps or reply.status in (202, 504)
        if time.monotonic() >= until:
            _complain(f"not done in time; {_later(options) if perhaps else f'refused: {words}'}")
            return 1
        if words != said:
            console.print(f"{options.id}: {words}", markup=False)
        said = words
        await asyncio.sleep(_AGAIN_S)


def _later(options: argparse.Namespace) -> str:
    """What holds of a request whose end was not waited for."""
    back = f"; to take it back: scripts/member remove {options.id}"
    return f"it may still be done later{back if options.command == 'add' else ''}"


def _complain(text: str) -> None:
    print(f"scripts/member: {text}", file=sys.stderr)


async def _ask(options: argparse.Namespace, urls: list[str], left_s: float) -> Reply:
    wait_ms = max(_REQUEST_MS_MIN, min(_REQUEST_MS, int(left_s * 1000)))
    query, wait_s = f"?timeout_ms={wait_ms}", wait_ms / 1000 + 5
    if options.command == "add":
        body = {"id": options.id, "raft_address": options.raft_address}
        return await request("POST", urls, _PATH + query, json=body, timeout_s=wait_s)
    path = f"{_PATH}/{quoted(options.id)}{query}"
    return await request("DELETE", urls, path, timeout_s=wait_s)


def main(argv: list[str]) -> int:
    """The exit code."""
    options = parse(argv)
    try:
        return shown(options.prog, run(options, Console()))
    except KeyboardInterrupt:
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
