"""The command line: `exesdb COMMAND`, or `python -m cluster COMMAND`.

This is the list of commands. Each is a function of (arguments, its own name) that returns the exit
code, in a module that is imported when it is asked for, so that `exesdb read` does not pay for what
only `exesdb bench` needs. What stands behind `scripts/cluster`, `scripts/status`, `scripts/flush`,
and `scripts/bench` is here under `up`, `status`, `flush` and `bench`.
"""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

WRONG_USAGE, INTERRUPTED = 64, 130
_ARGPARSE_USAGE = 2


class Command(NamedTuple):
    """Where a command is, and what it does in a few words."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "up": Command("cluster.up", "main", "run a cluster on this machine, in the foreground"),
    "status": Command("cluster.status", "main", "members, roles, and how far each is"),
    "stores": Command("cluster.cli.listing", "stores", "list the stores, or make one"),
    "streams": Command("cluster.cli.listing", "streams", "list the streams of a store"),
    "append": Command("cluster.cli.append", "main", "append events: arguments, files, JSON lines"),
    "read": Command("cluster.cli.reading", "read", "read a stream, or the store by position"),
    "tail": Command("cluster.cli.reading", "tail", "the last events, and those that come"),
    "subscribe": Command("cluster.cli.reading", "subscribe", "every event, then every new one"),
    "subscriptions": Command(
        "cluster.cli.subscriptions", "main", "persistent subscriptions: make, look at, replay"
    ),
    "snapshot": Command("cluster.cli.snapshot", "main", "snapshots of aggregates"),
    "flush": Command("cluster.flush", "main", "have everything on disk, on all nodes"),
    "backup": Command("cluster.cli.backing", "backup", "a store, as it is now, into a file"),
    "restore": Command("cluster.cli.backing", "restore", "a file into an empty store"),
    "bench": Command("cluster.bench.__main__", "main", "measure the event store on this machine"),
}

_EXAMPLES = """\
examples:
  exesdb up                                                 three nodes, until Ctrl-C
  exesdb append order-7 OrderPlaced '{"total": 12}'         in another terminal
  exesdb read order-7
  exesdb tail -f --json | jq .data
  exesdb append order-7 --lines events.jsonl --expect 0

`exesdb COMMAND --help` has the options and examples of a command. Nodes are found at --url,
EX_ESDB_URL (commas between), or on ports 8101 to 8103 of this machine.
"""


def usage() -> str:
    """What `exesdb --help` says."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    listed = "\n".join(lines)
    return f"usage: exesdb COMMAND [OPTION]...\n\ncommands:\n{listed}\n\n{_EXAMPLES}"


def main(argv: list[str] | None = None) -> int:
    """Run a command; its exit code."""
    words = sys.argv[1:] if argv is None else argv
    command = COMMANDS.get(words[0]) if words else None
    if command is None:
        return _without_command(words)
    try:
        function = getattr(importlib.import_module(command.module), command.function)
        return int(function(words[1:], f"exesdb {words[0]}"))
    except KeyboardInterrupt:  # while it was imported, which may take a second
        return INTERRUPTED
    except SystemExit as leaving:  # argparse has no other way to end
        return WRONG_USAGE if leaving.code == _ARGPARSE_USAGE else int(leaving.code or 0)


def _without_command(words: list[str]) -> int:
    """The list of commands, or that there is no such one."""
    ending = importlib.import_module("cluster.cli.ending")
    ending.open_closed()
    if words and words[0] in ("-h", "--help", "help"):
        return int(ending.written("exesdb", usage()))
    said = f"there is no command {words[0]!r}" if words else "name a command"
    print(f"exesdb: {said}; exesdb --help lists them", file=sys.stderr)
    return WRONG_USAGE


if __name__ == "__main__":
    sys.exit(main())
