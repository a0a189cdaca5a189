"""`exesdb stores` and `exesdb streams`: what there is."""

from __future__ import annotations

import argparse
from urllib.parse import quote

from cluster.access import request, urls_or_default
from cluster.cli import options as shared
from cluster.cli.ending import accepted, run
from cluster.cli.showing import say, say_json

_PAGE_STREAMS = 1_000

_STORES_EXAMPLES = """\
  exesdb stores
  exesdb stores --create orders
  exesdb stores --json | jq -r .store
"""
_STREAMS_EXAMPLES = """\
  exesdb streams
  exesdb streams --prefix order- --json
  exesdb streams --after order-7 --limit 100
"""


def stores(argv: list[str], prog: str = "exesdb stores") -> int:
    """The exit code of `exesdb stores`."""
    made = shared.parser(prog, "List the stores, or make one.", _STORES_EXAMPLES)
    made.add_argument("--create", metavar="STORE", help="make this store first, if it is not there")
    options = made.parse_args(argv)
    return run(prog, _stores(options), options.json)


async def _stores(options: argparse.Namespace) -> None:
    urls, timeout_s = urls_or_default(options.url), options.timeout_ms / 1000
    if options.create:
        path = f"/v1/stores/{quote(options.create, safe='')}"
        accepted(await request("PUT", urls, path, timeout_s=timeout_s))
    params = {"consistency": "leader"}
    reply = await request("GET", urls, "/v1/stores", params=params, timeout_s=timeout_s)
    found = accepted(reply)["stores"]
    if options.json:
        for store in found:
            say_json(store)
        return
    say(f"{'store':<24}  {'streams':>12}  {'events':>12}")
    for store in found:
        say(f"{store['store']:<24}  {store['streams']:>12,}  {store['events']:>12,}")


def streams(argv: list[str], prog: str = "exesdb streams") -> int:
    """The exit code of `exesdb streams`."""
    made = shared.store_parser(prog, "List the streams of a store by name.", _STREAMS_EXAMPLES)
    add = made.add_argument
    add("--prefix", default="", metavar="TEXT", help="only names that begin so")
    add("--after", default="", metavar="NAME", help="begin behind this name")
    add("--limit", type=shared.count, metavar="N", help="at most so many; default all")
    options = made.parse_args(argv)
    return run(prog, _streams(options), options.json)


async def _streams(options: argparse.Namespace) -> None:
    path = f"/v1/stores/{quote(options.store, safe='')}/streams"
    left = options.limit
    after: str | None = options.after
    if not options.json:
        say(f"{'events':>12}  stream")
    while after is not None and left != 0:
        limit = _PAGE_STREAMS if left is None else min(left, _PAGE_STREAMS)
        params = {"prefix": options.prefix, "after": after, "limit": str(limit)}
        urls, timeout_s = urls_or_default(options.url), options.timeout_ms / 1000
        page = accepted(await request("GET", urls, path, params=params, timeout_s=timeout_s))
        for stream in page["streams"]:
            if options.json:
                say_json(stream)
            else:
                say(f"{stream['count']:>12,}  {stream['stream']}")
        left = None if left is None else left - len(page["streams"])
        after = page["next"]
