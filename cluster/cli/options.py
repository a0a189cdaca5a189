"""The options that commands share, and a parser that ends as all commands do."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from cluster.access import DEFAULT_URLS, Params, request, urls_or_default
from cluster.cli import incoming
from cluster.cli.ending import WRONG_USAGE, Failure, accepted, complain, open_closed, written
from cluster.client import ANY, NO_STREAM, STREAM_EXISTS, Client, Filter
from cluster.client_values import quoted

DEFAULT_STORE = "my_store"
TIMEOUT_MS = 15_000
_TIMEOUT_MS_MAX = 300_000

_EXITS = """
exit codes: 0 done, 1 refused or failed, 2 no node could serve (nothing was stored), 3 conflict,
4 not found (but a stream without events is read as an empty one), 5 perhaps stored (repeat it, an
append with the same event ids), 64 wrong options, 130 interrupted
The environment variable EX_ESDB_URL holds addresses too, with commas between them.
"""


class Parser(argparse.ArgumentParser):
    """Wrong options are one line, as JSON where that was asked for, and exit code 64."""

    json = False

    def parse_args(self, args: Sequence[str], namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """The options, with the name of the command under `prog`."""
        open_closed()
        self.json = "--json" in args
        options = super().parse_args(args)
        options.prog = self.prog
        if hasattr(options, "url"):
            try:
                options.nodes = urls_or_default(options.url)
            except ValueError as error:
                self.error(str(error))
        return options

    def print_help(self, file: object = None) -> None:
        """On stdout; leave with exit code 1 if it finds no room there."""
        if code := written(self.prog, self.format_help(), self.json):
            raise SystemExit(code)

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 64."""
        complain(self.prog, Failure(message, WRONG_USAGE, "wrong_usage"), self.json)
        raise SystemExit(WRONG_USAGE)


def parser(prog: str, description: str, examples: str, timeout_ms: int = TIMEOUT_MS) -> Parser:
    """A parser with the options that every command has."""
    made = Parser(
        prog=prog,
        description=description,
        epilog=f"examples:\n{examples.rstrip()}\n{_EXITS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--url", action="append", metavar="URL",
        help=f"a node to ask, repeatable; default {DEFAULT_URLS[0]} to 8103")  # fmt: skip
    add("--json", action="store_true", help="results and errors as JSON, one object a line")
    add("--timeout-ms", type=_timeout_ms, default=timeout_ms, metavar="MS",
        help=f"how long a request may take with all its tries; default {timeout_ms}")  # fmt: skip
    return made


def store_parser(
    prog: str, description: str, examples: str, timeout_ms: int = TIMEOUT_MS
) -> Parser:
    """A parser of a command that works on one store."""
    made = parser(prog, description, examples, timeout_ms)
    made.add_argument("--store", default=DEFAULT_STORE, metavar="STORE",
                      help=f"default {DEFAULT_STORE}")  # fmt: skip
    return made


def filter_options(made: Parser) -> None:
    """Which events a reader wants."""
    made.add_argument("--type", action="append", default=[], metavar="TYPE",
                      help="only events of this type, repeatable")  # fmt: skip
    made.add_argument("--prefix", default="", metavar="TEXT",
                      help="only streams whose names begin so")  # fmt: skip
    made.add_argument("--where", type=_conditions, default=(), metavar="JSON",
                      help="only events of which these conditions hold, a list or a single one, "
                           "such as '{\"path\": \"data.total\", \"equals\": 12}'; tests are "
                           "equals, any_of, prefix, exists")  # fmt: skip


def wanted(options: argparse.Namespace) -> Filter:
    """The filter that `filter_options` describe."""
    return Filter(tuple(options.type), options.prefix, options.where)


def _conditions(text: str) -> list[Any]:
    """Conditions; what they say is judged by the node."""
    try:
        given = msgspec.json.decode(text)
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("is not UTF-8") from None
    except msgspec.DecodeError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from None
    if not isinstance(given, dict | list):
        raise argparse.ArgumentTypeError("must be a list of conditions, or one")
    return [given] if isinstance(given, dict) else given


def client(options: argparse.Namespace) -> Client:
    """A client of the store that the options name."""
    return Client(*options.nodes, store=options.store, timeout_s=options.timeout_ms / 1000)


async def ask(
    options: argparse.Namespace,
    method: str,
    path: str,
    params: Params | None = None,
    body: object = None,
) -> dict[str, Any]:
    """What a node answers to what may be repeated, at any. Raises ClientError and Unreachable.

    The next question goes to the node that answered first of all: others may be frozen, and each
    costs its share of the time.
    """
    timeout_s = options.timeout_ms / 1000
    reply = await request(
        method, options.nodes, path, params=params, json=body, timeout_s=timeout_s, together=True
    )
    options.nodes.sort(key=lambda url: url != reply.url)
    return accepted(method, reply)


async def ask_store(
    options: argparse.Namespace,
    method: str,
    path: str,
    params: Params | None = None,
    body: object = None,
) -> dict[str, Any]:
    """The same of the store that the options name."""
    return await ask(options, method, f"/v1/stores/{quoted(options.store)}{path}", params, body)


def whole(text: str) -> int:
    """A whole number; argparse would name the function where it is none."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def count(text: str) -> int:
    """A whole number from 0."""
    number = whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return number


def positive(text: str) -> int:
    """A whole number from 1."""
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def amount(text: str) -> float:
    """A number from 0, whole or not."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= number < math.inf:  # which is also no for nan
        raise argparse.ArgumentTypeError("must be at least 0, and finite")
    return number


def expected(text: str) -> int | str:
    """An expected version."""
    return text if text in (ANY, NO_STREAM, STREAM_EXISTS) else whole(text)


async def value(given: str | None, as_bytes: bool, what: str) -> Any:
    """The value that an argument stands for: JSON, or bytes; @FILE holds it, @- is stdin."""
    if given is None:
        return None
    content = given.encode()
    if given.startswith("@"):
        try:
            content = await incoming.whole(given[1:])
        except Failure as failure:
            failure.detail = f"{what}: {failure.detail}"
            raise
    if as_bytes:
        return content
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        words = f"{what} is not JSON: {error} (a text needs its quotes: '\"text\"')"
        raise Failure(words, WRONG_USAGE, "wrong_usage") from None


def _timeout_ms(text: str) -> int:
    number = whole(text)
    if not 1 <= number <= _TIMEOUT_MS_MAX:
        raise argparse.ArgumentTypeError(f"must be 1..{_TIMEOUT_MS_MAX}")
    return number
