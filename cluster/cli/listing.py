"""`exesdb stores` and `exesdb streams`: what there is, and what streams keep."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from cluster.cli import options as shared
from cluster.cli.ending import NOT_FOUND, Failure, run
from cluster.cli.showing import say, say_json
from cluster.client import ANY
from cluster.client_values import quoted

_PAGE_STREAMS = 1_000

_STORES_EXAMPLES = """\
  exesdb stores
  exesdb stores --create orders
  exesdb stores --create orders --durability persisted --snapshots-kept 3       or change these
  exesdb stores --delete orders --yes                   with all that it holds, on all nodes
  exesdb stores --json | jq -r .store
"""
_STREAMS_EXAMPLES = """\
  exesdb streams
  exesdb streams --prefix order- --json
  exesdb streams --after order-7 --limit 100
  exesdb streams show order-7
  exesdb streams keep order-7 --truncate-before 100     what it keeps; without options: everything
  exesdb streams keep visits --max-count 1000 --max-age-ms 86400000
  exesdb streams delete order-7 --expect 12             may be begun anew; --hard: never again
"""

# What may be given for which action.
_OPTIONS = {
    "list": ("prefix", "after", "limit"),
    "keep": ("max_count", "max_age_ms", "truncate_before"),
    "delete": ("expect", "hard"),
}


def stores(argv: list[str], prog: str = "exesdb stores") -> int:
    """The exit code of `exesdb stores`."""
    made = shared.parser(prog, "List the stores; make, change or remove one.", _STORES_EXAMPLES)
    what = made.add_mutually_exclusive_group()
    what.add_argument("--create", metavar="STORE", help="make this store first, if it is not there")
    what.add_argument("--delete", metavar="STORE", help="remove this store first")
    add = made.add_argument
    add("--yes", action="store_true", help="with --delete: yes, everything in it")
    add("--durability", choices=("replicated", "persisted", "default"),
        help="with --create: what appends to it wait for")  # fmt: skip
    add("--snapshots-kept", type=shared.count, metavar="N",
        help="with --create: of each source and stream; 0: as many as there may be")  # fmt: skip
    options = made.parse_args(argv)
    settings = options.durability is not None or options.snapshots_kept is not None
    if settings and options.create is None:
        made.error("--durability and --snapshots-kept need --create")
    if options.yes != (options.delete is not None):
        made.error("to remove a store with all that it holds, give --delete STORE --yes")
    return run(prog, _stores(options), options.json)


async def _stores(options: argparse.Namespace) -> None:
    name = options.create or options.delete
    if name is not None:
        path = f"/v1/stores/{quoted(name)}"
        method, body = ("PUT", _settings(options)) if options.create else ("DELETE", None)
        await shared.ask(options, method, path, body=body)
    found = (await shared.ask(options, "GET", "/v1/stores", {"consistency": "leader"}))["stores"]
    if options.json:
        for store in found:
            say_json(store)
        return
    say(f"{'store':<24}  {'streams':>12}  {'events':>12}")
    for store in found:
        say(f"{store['store']:<24}  {store['streams']:>12,}  {store['events']:>12,}")


def _settings(options: argparse.Namespace) -> dict[str, Any] | None:
    """Those that are given; None leaves all as they are."""
    settings: dict[str, Any] = {}
    if options.durability is not None:
        settings["durability"] = None if options.durability == "default" else options.durability
    if options.snapshots_kept is not None:
        settings["snapshots_kept"] = options.snapshots_kept or None
    return settings or None


def streams(argv: list[str], prog: str = "exesdb streams") -> int:
    """The exit code of `exesdb streams`."""
    words = "List the streams of a store by name; look at one, say what it keeps, delete it."
    made = shared.store_parser(prog, words, _STREAMS_EXAMPLES)
    add = made.add_argument
    add("action", nargs="?", choices=tuple(_WORK), default="list", help="default list")
    add("stream", nargs="?", help="the stream")
    add("--prefix", metavar="TEXT", help="only names that begin so")
    add("--after", metavar="NAME", help="begin behind this name")
    add("--limit", type=shared.count, metavar="N", help="at most so many; default all")
    add("--max-count", type=shared.count, metavar="N", help="keep the last so many events")
    add("--max-age-ms", type=shared.count, metavar="MS", help="keep events for so long")
    add("--truncate-before", type=shared.count, metavar="NUMBER",
        help="keep events from this number on")  # fmt: skip
    add("--expect", type=shared.expected, metavar="VERSION",
        help="delete it only at this version: a number, no_stream, stream_exists")  # fmt: skip
    add("--hard", action="store_true", default=None,
        help="delete it for ever: nobody can append to it again")  # fmt: skip
    options = made.parse_args(argv)
    if (options.stream is None) != (options.action == "list"):
        made.error(f"{options.action} takes {'no' if options.stream else 'the'} name of one")
    for action, names in _OPTIONS.items():
        if action != options.action and any(getattr(options, name) is not None for name in names):
            made.error(f"{', '.join(names)} are for {action}".replace("_", "-"))
    return run(prog, _WORK[options.action](options), options.json)


async def _show(options: argparse.Namespace) -> None:
    async with shared.client(options) as client:
        found = await client.stream(options.stream)
    if found is None:
        raise Failure(f"no stream {options.stream!r}", NOT_FOUND, "stream_not_found")
    facts = asdict(found)
    if options.json:
        say_json(facts)
        return
    for name, value in facts.items():
        say(f"{name:<16}  {'no limit' if value is None else value}")


async def _keep(options: argparse.Namespace) -> None:
    limits = {name: getattr(options, name) for name in _OPTIONS["keep"]}
    async with shared.client(options) as client:
        first = await client.set_stream_metadata(options.stream, **limits)
    if options.json:
        say_json({"stream": options.stream, "first": first})
    else:
        say(f"{options.stream} keeps its events from number {first} on")


async def _delete(options: argparse.Namespace) -> None:
    async with shared.client(options) as client:
        expected = ANY if options.expect is None else options.expect
        deleted = await client.delete_stream(options.stream, expected, bool(options.hard))
    if options.json:
        say_json({"stream": options.stream, "deleted": deleted})
    else:
        say(f"{options.stream} {'is deleted' if deleted else 'was not there'}")


async def _list(options: argparse.Namespace) -> None:
    left = options.limit
    after: str | None = options.after or ""
    heading = "" if options.json else f"{'events':>12}  stream"
    while after is not None and left != 0:
        limit = _PAGE_STREAMS if left is None else min(left, _PAGE_STREAMS)
        params = {"prefix": options.prefix or "", "after": after, "limit": str(limit)}
        page = await shared.ask_store(options, "GET", "/streams", params)
        if heading:
            say(heading)
            heading = ""
        for stream in page["streams"]:
            if options.json:
                say_json(stream)
            else:
                say(f"{stream['count']:>12,}  {stream['stream']}")
        left = None if left is None else left - len(page["streams"])
        after = page["next"]


_WORK = {"list": _list, "show": _show, "keep": _keep, "delete": _delete}
