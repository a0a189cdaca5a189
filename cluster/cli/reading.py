"""`exesdb read`, `tail` and `subscribe`: events on stdout, a line each.

`read` ends at the present end, `tail` shows the last events, `subscribe` never ends by itself. The
latter two go on at another node when theirs dies; each event comes once and in order. Where they
are ended with Ctrl-C they say how to go on from there.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

from cluster.cli import options as shared
from cluster.cli.ending import DONE, Failure, end_by_sigterm, end_with_reader, run
from cluster.cli.showing import say_event
from cluster.client import Client, Recorded
from cluster.client_consumer import IN_FLIGHT

_PAGE_EVENTS = 1_000

_READ_EXAMPLES = """\
  exesdb read order-7
  exesdb read order-7 --backward --limit 1
  exesdb read --after 1000 --type OrderPlaced --prefix order-      the whole store, by position
  exesdb read --where '{"path": "data.customer.country", "any_of": ["DE", "AT"]}'
  exesdb read --json | jq -r .event_type | sort | uniq -c
"""
_TAIL_EXAMPLES = """\
  exesdb tail                     the last 10 events of the store
  exesdb tail order-7 -n 3
  exesdb tail -f --json           and then every one that comes
"""
_SUBSCRIBE_EXAMPLES = """\
  exesdb subscribe --after 0              all events, then every one that comes
  exesdb subscribe --now --type OrderPlaced
  exesdb subscribe --where '[{"path": "data.total", "exists": true}]'
  exesdb subscribe order-7 --json | while read -r event; do echo "$event"; done
  exesdb subscribe --limit 1 --now        wait for the next event
  exesdb subscribe --persistent mails     share events with others: those of a persistent
                                          subscription; each is acknowledged once it is printed
"""


def read(argv: list[str], prog: str = "exesdb read") -> int:
    """The exit code of `exesdb read`."""
    made = shared.store_parser(
        prog, "Read a stream, or the store in position order.", _READ_EXAMPLES
    )
    add = made.add_argument
    add("stream", nargs="?", help="all streams if none is named")
    add("--from", dest="start", type=shared.count, default=0, metavar="NUMBER",
        help="the first event number of the stream; default 0")  # fmt: skip
    add("--backward", action="store_true", help="from the stream's end to its beginning")
    add("--after", type=shared.count, default=0, metavar="POSITION",
        help="what stands behind this position of the store; default 0")  # fmt: skip
    add("--limit", type=shared.count, metavar="N", help="at most so many events; default all")
    shared.filter_options(made)
    options = made.parse_args(argv)
    if options.stream is None and (options.start or options.backward):
        made.error("--from and --backward need a stream")
    if options.stream is not None and (options.after or options.prefix):
        made.error("--after and --prefix are for the store: name no stream")
    if (options.start or options.backward) and (options.type or options.where):
        made.error("--from and --backward go with neither --type nor --where")
    return run(prog, _read(options), options.json)


async def _read(options: argparse.Namespace) -> None:
    left = options.limit
    async with shared.client(options) as client:
        if options.stream is None or options.type or options.where:
            events = client.read(options.after, shared.wanted(options), options.stream)
        else:
            events = client.read_stream(options.stream, options.start, options.backward)
        if left == 0:
            return
        async for event in events:
            say_event(event, options.json)
            if left is not None:
                left -= 1
                if not left:
                    return


def tail(argv: list[str], prog: str = "exesdb tail") -> int:
    """The exit code of `exesdb tail`."""
    made = shared.store_parser(
        prog, "Show the last events, and then those that come.", _TAIL_EXAMPLES
    )
    add = made.add_argument
    add("stream", nargs="?", help="all streams if none is named")
    add("-n", "--events", type=shared.count, default=10, metavar="N", help="default 10")
    add("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    add("--limit", type=shared.count, metavar="N", help="with -f: end after so many that came")
    shared.filter_options(made)
    options = made.parse_args(argv)
    if options.events > 10_000:
        made.error("-n is at most 10000: use read")
    if options.limit is not None and not options.follow:
        made.error("--limit is for --follow: say how many with -n")
    return run(prog, _tail(options), options.json, DONE if options.follow else 130)


async def _tail(options: argparse.Namespace) -> None:
    head = await _head(options)
    events = await _last(options, head)
    for event in events:
        say_event(event, options.json)
    if options.follow:
        async with shared.client(options) as client:
            await _follow(client, head, options)


async def _head(options: argparse.Namespace) -> int:
    """Where the store ends now, on a node that has what the leader has."""
    params = {"limit": "1", "consistency": "leader"}
    return int((await shared.ask_store(options, "GET", "/events", params))["head"])


async def _last(options: argparse.Namespace, head: int) -> list[Recorded]:
    """The last events up to a position of the store, in order."""
    params = [("direction", "backward"), ("min_position", str(head))]
    params += shared.wanted(options).query()
    if options.stream is not None:
        params.append(("stream", options.stream))
    after = head + 1
    found: list[Recorded] = []
    while len(found) < options.events:
        limit = min(_PAGE_EVENTS, options.events - len(found))
        place = [("after", str(after)), ("limit", str(limit))]
        page = await shared.ask_store(options, "GET", "/events", [*params, *place])
        found += [Recorded.of(plain) for plain in page["events"]]
        if page["is_end"]:
            break
        after = page["next"]
    return found[::-1]


def subscribe(argv: list[str], prog: str = "exesdb subscribe") -> int:
    """The exit code of `exesdb subscribe`."""
    words = "Show every event behind a position, and then every one that comes, until Ctrl-C."
    made = shared.store_parser(prog, words, _SUBSCRIBE_EXAMPLES)
    add = made.add_argument
    add("stream", nargs="?", help="all streams if none is named")
    where = made.add_mutually_exclusive_group()
    where.add_argument("--after", type=shared.count, default=0, metavar="POSITION",
                       help="begin behind this position of the store; default 0")  # fmt: skip
    where.add_argument("--now", action="store_true", help="begin with what comes now")
    add("--limit", type=shared.count, metavar="N", help="end after so many events")
    shared.filter_options(made)
    add("--persistent", metavar="NAME", help="work on this persistent subscription")
    add("--consumer", metavar="NAME", help="under this name; default is host and process")
    options = made.parse_args(argv)
    if options.persistent is None:
        if options.consumer is not None:
            made.error("--consumer is for --persistent")
        return run(prog, _subscribe(options), options.json, DONE)
    chosen = any(shared.wanted(options).plain().values())
    if options.stream or options.after or options.now or chosen:
        made.error("a persistent subscription has its own filter and place")
    return run(prog, _consume(options), options.json, DONE)


async def _subscribe(options: argparse.Namespace) -> None:
    head = await _head(options)  # also tells at once if nobody is there, or no such store
    async with shared.client(options) as client:
        await _follow(client, head if options.now else options.after, options)


async def _consume(options: argparse.Namespace) -> None:
    """Print what is handed out, and acknowledge it then."""
    left = options.limit
    if left == 0:
        return
    end_with_reader()
    end_by_sigterm()  # others get at once what this one leaves
    name = options.consumer or f"{socket.gethostname()}-{os.getpid()}"
    ahead = IN_FLIGHT if left is None else min(left, IN_FLIGHT)
    async with (
        shared.client(options) as client,
        client.consume(options.persistent, name, ahead) as consumer,
    ):
        async for delivery in consumer:
            say_event(delivery.event, options.json)
            sys.stdout.flush()
            if not await delivery.ack():
                where = f"position {delivery.event.position}"
                print(f"{where} was not acknowledged in time: it comes again", file=sys.stderr)
            if left is not None:
                left -= 1
                if not left:
                    return


async def _follow(client: Client, after: int, options: argparse.Namespace) -> None:
    left = options.limit
    if left == 0:
        return
    end_with_reader()
    subscription = client.subscribe(after, shared.wanted(options), options.stream)
    try:
        async for event in subscription:
            say_event(event, options.json)
            sys.stdout.flush()
            if left is not None:
                left -= 1
                if not left:
                    return
    finally:
        if not options.json and sys.stderr.isatty():
            print(f"to go on from here: --after {subscription.position}", file=sys.stderr)
    raise Failure("the subscription ended")
