"""`exesdb subscriptions`: the persistent subscriptions of a store, and what is parked in them."""

from __future__ import annotations

import argparse
import json
from typing import Any

from cluster.cli import options as shared
from cluster.cli.ending import run
from cluster.cli.showing import say, say_event, say_json
from cluster.client import Recorded
from cluster.client_values import quoted

_PAGE_EVENTS = 1_000
_ACTIONS = ("list", "create", "show", "delete", "parked", "replay")
_BOUNDS = ("ack_timeout_ms", "max_retries", "max_in_flight")

_EXAMPLES = """\
  exesdb subscriptions                                       all: how far they are, and if stalled
  exesdb subscriptions create mails --type OrderPlaced --prefix order- --max-retries 3
  exesdb subscriptions create audit --start-after end --ack-timeout-ms 5000
  exesdb subscribe --persistent mails                        work on it: what is printed is
                                                             acknowledged
  exesdb subscriptions show mails --json | jq .consumers
  exesdb subscriptions parked mails                          what was given up, and why
  exesdb subscriptions replay mails 17 18                    once more; without positions: all
  exesdb subscriptions delete mails

create changes the bounds of one that is there. Its filter and its start never change.
"""


def main(argv: list[str], prog: str = "exesdb subscriptions") -> int:
    """The exit code."""
    words = "List, make, look at and delete persistent subscriptions, and what is parked in them."
    made = shared.store_parser(prog, words, _EXAMPLES)
    add = made.add_argument
    add("action", nargs="?", choices=_ACTIONS, default="list", help="default list")
    add("name", nargs="?", help="the subscription")
    add("positions", nargs="*", type=shared.count, metavar="position", help="for replay")
    shared.filter_options(made)
    add("--stream", metavar="STREAM", help="only events of this stream")
    add("--start-after", type=_start, metavar="POSITION",
        help="begin behind this position, or behind the end: `end`; default 0")  # fmt: skip
    add("--ack-timeout-ms", type=shared.count, metavar="MS", help="default 30000")
    add("--max-retries", type=shared.count, metavar="N", help="then an event is parked; default 10")
    add("--max-in-flight", type=shared.count, metavar="N",
        help="what all consumers together have not settled; default 1000")  # fmt: skip
    options = made.parse_args(argv)
    given = (*shared.wanted(options).plain().values(), options.stream, options.start_after)
    bounds = [getattr(options, name) for name in _BOUNDS]
    if (options.name is None) != (options.action == "list"):
        made.error(f"{options.action} takes {'no' if options.name else 'the'} name of one")
    if options.positions and options.action != "replay":
        made.error("positions are for replay")
    if options.action != "create" and (any(given) or bounds != [None] * len(bounds)):
        made.error("filter, start and bounds are for create")
    return run(prog, _WORK[options.action](options), options.json)


def _start(text: str) -> int | str:
    return text if text == "end" else shared.count(text)


async def _list(options: argparse.Namespace) -> None:
    page = await _ask(options, "GET", "", {"consistency": "leader"})
    if not options.json:
        say(f"{'lag':>10}  {'in flight':>10}  {'parked':>8}  {'stalled':<16}  subscription")
    for one in page["subscriptions"]:
        if options.json:
            say_json(one)
        else:
            say(
                f"{one['lag']:>10,}  {one['in_flight']:>10,}  {one['parked']:>8,}"
                f"  {one['stalled'] or 'no':<16}  {one['name']}"
            )


async def _create(options: argparse.Namespace) -> None:
    wanted = {**shared.wanted(options).plain(), "stream": options.stream}
    bounds = {name: getattr(options, name) for name in _BOUNDS}
    body = {name: value for name, value in bounds.items() if value is not None}
    body |= {"filter": wanted, "start_after": options.start_after or 0}
    done = await _ask(options, "PUT", _one(options), body=body)
    if options.json:
        say_json(done)
    else:
        say(f"there is: {options.name}")


async def _show(options: argparse.Namespace) -> None:
    one = await _ask(options, "GET", _one(options), {"consistency": "leader"})
    if options.json:
        say_json(one)
        return
    flat = {
        **{name: value for name, value in one.items() if not isinstance(value, dict)},
        **{f"filter.{name}": _part(value) for name, value in one["filter"].items()},
        **{f"totals.{name}": value for name, value in one["totals"].items()},
        **{f"in flight with {name}": count for name, count in one["consumers"].items()},
    }
    width = max(map(len, flat))
    for name, value in flat.items():
        shown = f"{value:,}" if type(value) is int and not name.endswith("epoch") else value
        say(f"{name:<{width}}  {'no' if shown is None else shown}")


def _part(value: Any) -> str:
    """A part of a filter as it can be given again; one that is not given takes every event."""
    return json.dumps(value, ensure_ascii=False) if value else "any"


async def _delete(options: argparse.Namespace) -> None:
    await _ask(options, "DELETE", _one(options))
    if not options.json:
        say(f"deleted: {options.name}")


async def _parked(options: argparse.Namespace) -> None:
    params = {"after": "0", "limit": str(_PAGE_EVENTS), "consistency": "leader"}
    while True:
        page = await _ask(options, "GET", f"{_one(options)}/parked", params)
        for one in page["events"]:
            if options.json:
                say_json(one)
            else:
                say_event(Recorded.of(one), False)
                why = "by" if one["why"] == "by_consumer" else "after its retries, last with"
                say(f"{'':>8}  {one['attempts']} deliveries; parked {why} {one['consumer']}")
        if page["next"] is None:
            return
        params["after"] = str(page["next"])


async def _replay(options: argparse.Namespace) -> None:
    body = {"positions": options.positions} if options.positions else {}
    done = await _ask(options, "POST", f"{_one(options)}/parked/replay", body=body)
    if options.json:
        say_json(done)
    else:
        say(f"to be handed out once more: {done['replayed']:,}")


_WORK = {
    "list": _list,
    "create": _create,
    "show": _show,
    "delete": _delete,
    "parked": _parked,
    "replay": _replay,
}


async def _ask(
    options: argparse.Namespace,
    method: str,
    path: str,
    params: dict[str, str] | None = None,
    body: Any = None,
) -> dict[str, Any]:
    """What is asked here may be repeated, at any node."""
    return await shared.ask_store(options, method, f"/subscriptions{path}", params, body)


def _one(options: argparse.Namespace) -> str:
    return f"/{quoted(options.name)}"
