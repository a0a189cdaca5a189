"""`exesdb snapshot`: the snapshots of aggregates: the newest one, any one, all; record, delete."""

from __future__ import annotations

import argparse
from typing import Any

from cluster.cli import options as shared
from cluster.cli.ending import NOT_FOUND, Failure, run
from cluster.cli.showing import say, say_json, shortened
from cluster.client_values import quoted

_PAGE_SNAPSHOTS = 100

_EXAMPLES = """\
  exesdb snapshot billing order-7                       the newest
  exesdb snapshot billing order-7 --up-to 40            the newest up to event 40
  exesdb snapshot billing order-7 40                    the one of version 40
  exesdb snapshot billing order-7 40 --record '{"total": 12}' --source-type Order
  exesdb snapshot billing order-7 40 --delete
  exesdb snapshot --list                                all; or of billing: snapshot billing --list
"""


def main(argv: list[str], prog: str = "exesdb snapshot") -> int:
    """The exit code."""
    words = "Read, record, list and delete the snapshots of aggregates."
    made = shared.store_parser(prog, words, _EXAMPLES)
    add = made.add_argument
    add("source", nargs="?", help="the aggregate that made it")
    add("stream", nargs="?", help="whose events are folded in it")
    add("version", nargs="?", type=shared.count, help="number of the last event that is in it")
    add("--up-to", type=shared.count, metavar="VERSION", help="the newest up to this version")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--record", metavar="DATA", help="record it: JSON, or @FILE, or @- for stdin")
    what.add_argument("--delete", action="store_true", help="delete it")
    what.add_argument("--list", action="store_true", help="list what there is")
    add("--source-type", default="aggregate", metavar="TYPE", help="with --record")
    options = made.parse_args(argv)
    if not options.list and options.stream is None:
        made.error("name a source and a stream, or give --list")
    if (options.record is not None or options.delete) and options.version is None:
        made.error("--record and --delete need the version")
    if options.list and options.version is not None:
        made.error("--list goes with no version")
    if options.up_to is not None and (options.version is not None or options.list):
        made.error("--up-to is for reading the newest")
    return run(prog, _work(options), options.json)


async def _work(options: argparse.Namespace) -> None:
    if options.list:
        await _list(options)
    elif options.record is not None:
        body = {
            "source_type": options.source_type,
            "data": await shared.value(options.record, False, "--record"),
        }
        _show(options, await _ask(options, "PUT", _one(options), body=body), "recorded")
    elif options.delete:
        await _ask(options, "DELETE", _one(options))
        if not options.json:
            say(f"deleted: version {options.version} of {options.source} {options.stream}")
    elif options.version is not None:
        _show(options, await _ask(options, "GET", _one(options)))
    else:
        await _newest(options)


async def _newest(options: argparse.Namespace) -> None:
    params = {} if options.up_to is None else {"max_version": str(options.up_to)}
    page = await _ask(options, "GET", _series(options), params)
    if not page["snapshots"]:
        words = f"no snapshot of {options.source} and stream {options.stream}"
        raise Failure(words, NOT_FOUND, "snapshot_not_found")
    _show(options, page["snapshots"][0])


async def _list(options: argparse.Namespace) -> None:
    given = {"source": options.source, "stream": options.stream}
    params = {name: value for name, value in given.items() if value is not None}
    params["limit"] = str(_PAGE_SNAPSHOTS)
    while True:
        page = await _ask(options, "GET", "", params)
        for snapshot in page["snapshots"]:
            _show(options, snapshot)
        if page["next"] is None:
            return
        params["after"] = page["next"]


async def _ask(
    options: argparse.Namespace,
    method: str,
    path: str,
    params: dict[str, str] | None = None,
    body: Any = None,
) -> dict[str, Any]:
    """What is asked here may be repeated, at any node."""
    return await shared.ask_store(options, method, f"/snapshots{path}", params, body)


def _series(options: argparse.Namespace) -> str:
    return f"/{quoted(options.source)}/{quoted(options.stream)}"


def _one(options: argparse.Namespace) -> str:
    return f"{_series(options)}/{options.version}"


def _show(options: argparse.Namespace, snapshot: dict[str, Any], done: str = "") -> None:
    if options.json:
        say_json(snapshot)
        return
    where = f"{snapshot['source_uuid']}  {snapshot['stream_uuid']}@{snapshot['source_version']}"
    octets = snapshot.get("data_base64")
    if done:
        shown = done
    elif octets is not None:
        shown = f"{len(octets) * 3 // 4:,} bytes"
    else:
        shown = shortened(snapshot.get("data"))
    say(f"{snapshot['created_at']}  {where}  {snapshot['source_type']}  {shown}")
