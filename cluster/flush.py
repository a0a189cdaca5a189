"""Flush: everything committed so far goes to disk on every node, now. Behind `scripts/flush`.

One request to any node (`POST /v1/persistence/force?scope=cluster`) makes that node ask every
member, and it answers when all have fsynced what was committed when the request came, or have
failed. The answer is shown as a table with one row a node; a failed node's row says why.

Exit codes: 0 every member has it on disk; 1 at least one has not; 2 no node could be reached, or
the answer was lost (asking again costs nothing); 130 interrupted.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.access import DEFAULT_URLS, Reply, Unreachable, request, urls_or_default
from cluster.cli.ending import INTERRUPTED, UNREACHABLE, ended, refused, shown
from cluster.cli.options import Parser
from cluster.client_errors import OutcomeUnknown
from cluster.client_values import quoted
from cluster.tables import whole

PROG = "scripts/flush"

_ANSWER_S = 5.0
_EPILOG = """\
examples:
  {prog}
  {prog} --store my_store --url http://10.0.0.1:8101 --url http://10.0.0.2:8101

exit codes: 0 all nodes have it on disk, 1 a node has not, 2 no node could be reached, or none has
answered, 64 wrong options, 130 interrupted
The environment variable EX_ESDB_URL holds addresses too, with commas between them.
"""


class Row(NamedTuple):
    """What one node did. `error` is empty where all is well."""

    node: str
    persisted_index: int | None
    persisted_position: int | None
    bytes: int | None
    duration_ms: float | None
    error: str = ""


def parse(argv: list[str], prog: str = PROG) -> argparse.Namespace:
    """The options, and the command's name; leaves with exit 64 on wrong ones."""
    parser = Parser(
        prog=prog,
        description="Write everything committed so far to disk on every node, and wait for it.",
        epilog=_EPILOG.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--store", metavar="STORE", help="only this store; default all stores")
    add("--url", action="append", metavar="URL",
        help=f"a node to ask, repeatable; default {DEFAULT_URLS[0]} to 8103")  # fmt: skip
    add("--timeout-ms", type=int, default=30_000, metavar="MS",
        help="how long the nodes may take; default 30000")  # fmt: skip
    add("--json", action="store_true", help="print the node's answer instead of a table")
    options = parser.parse_args(argv)
    if not 1 <= options.timeout_ms <= 300_000:
        parser.error("--timeout-ms must be 1..300000")
    return options


async def flush(urls: list[str], store: str | None, timeout_ms: int) -> Reply:
    """Ask for the flush; the answer of the first node that gives one. Raises as `request` does."""
    part = f"/v1/stores/{quoted(store)}" if store else "/v1"
    return await request(
        "POST",
        urls,
        f"{part}/persistence/force",
        params={"scope": "cluster", "timeout_ms": str(timeout_ms)},
        timeout_s=timeout_ms / 1000 + _ANSWER_S,
    )


def rows(reply: Reply) -> list[Row]:
    """One row for each node that the answer names; a refusal names none."""
    done = {name: _row(name, entry) for name, entry in _entries(reply.body, "nodes")}
    failed = {name: _row(name, entry, "failed") for name, entry in _entries(reply.body, "failed")}
    return [row for _, row in sorted((done | failed).items())]


def _entries(body: Mapping[str, Any], key: str) -> Iterable[tuple[str, Any]]:
    """Nodes by name; those that failed may also be a plain list of names."""
    part = body.get(key) or {}
    return part.items() if isinstance(part, dict) else ((str(name), {}) for name in part)


def _row(node: str, entry: Any, failure: str = "") -> Row:
    """A failed node's entry is a problem: its detail says most, its code least."""
    if not isinstance(entry, dict):
        return Row(node, None, None, None, None, str(entry))
    words = (entry.get("detail"), entry.get("code"), entry.get("error"), failure)
    error = next((str(word) for word in words if word), "")
    return Row(
        node,
        entry.get("persisted_index"),
        entry.get("persisted_position"),
        entry.get("bytes"),
        entry.get("duration_ms"),
        error,
    )


def table(rows: list[Row], title: str) -> Table:
    """The rows for a person."""
    made = Table(title=title, title_justify="left")
    made.add_column("node", no_wrap=True)
    for heading in ("persisted index", "position", "bytes", "ms"):
        made.add_column(heading, justify="right")
    made.add_column("result")
    for row in rows:
        result = f"[red]{escape(row.error)}[/]" if row.error else "[green]on disk[/]"
        made.add_row(row.node, *map(_shown, row[1:-1]), result)
    return made


def _shown(number: Any) -> str:
    if number is None:
        return "-"
    return f"{number:,.1f}" if isinstance(number, float) else f"{number:,}"


async def run(options: argparse.Namespace, console: Console) -> int:
    """Flush and show; the exit code."""
    try:
        urls = urls_or_default(options.url)
        reply = await flush(urls, options.store, options.timeout_ms)
    except Unreachable as error:
        return ended(options, error)
    except OutcomeUnknown as error:
        ended(options, error)
        return UNREACHABLE
    results = rows(reply)
    if not results:
        return ended(options, refused(reply))
    if options.json:
        console.print_json(json.dumps(reply.body))
    else:
        title = f"flush of {options.store or 'all stores'} via {reply.url}"
        console.print(whole(table(results, escape(title)), console, prose=("result",)))
    return 0 if reply.status == 200 and not any(row.error for row in results) else 1


def main(argv: list[str], prog: str = PROG) -> int:
    """The exit code."""
    options = parse(argv, prog)
    try:
        return shown(prog, run(options, Console()), options.json)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
