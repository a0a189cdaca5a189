"""How a command ends: one exit code, and one readable line if it did not go well.

    code
    0     done; also when the reader of a pipe has seen enough
    1     refused, or failed
    2     no node could be reached, or none could serve: certainly nothing was stored
    3     conflict: the stream, event id, checkpoint or subscription is not as the request says
    4     there is no such store, stream, checkpoint, snapshot or subscription; to read a stream
          without events is none of that, as in the API
    5     a change whose outcome is not known: repeat it, an append with the same event ids
    64    wrong options
    130   interrupted

With `--json` the line on stderr is an object: `error` (the API's code, or a word of this program),
`detail`, `stored` (may something be in the store?), `retry` (can the same call succeed later?), and
the fields of the API's problem.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import io
import os
import signal
import stat
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec

from cluster.access import Reply, Unreachable
from cluster.client_answers import refusal
from cluster.client_errors import (
    ClientError,
    EventIdReused,
    NotFound,
    OutcomeUnknown,
    SubscriptionExists,
    Unavailable,
    WrongExpectedVersion,
    of_problem,
)

DONE, FAILED, UNREACHABLE, CONFLICT, NOT_FOUND, UNKNOWN = range(6)
WRONG_USAGE, INTERRUPTED = 64, 130

_CODES: tuple[tuple[type[ClientError], int], ...] = (
    (WrongExpectedVersion, CONFLICT),
    (EventIdReused, CONFLICT),
    (SubscriptionExists, CONFLICT),
    (NotFound, NOT_FOUND),
    (Unavailable, UNREACHABLE),
    (OutcomeUnknown, UNKNOWN),
)
_NOT_SHOWN = frozenset(("type", "title", "detail", "code", "stored"))


class Failure(Exception):
    """A command cannot do what it was told. `word` is its name for programs."""

    def __init__(
        self,
        detail: str,
        exit_code: int = FAILED,
        word: str = "failed",
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.exit_code = exit_code
        self.word = word
        self.fields = dict(fields or {})


def run(
    prog: str, work: Coroutine[Any, Any, None], as_json: bool, interrupted: int = INTERRUPTED
) -> int:
    """Do the work of a command; the exit code. `interrupted` is what Ctrl-C counts as.

    Events are UTF-8, and are written so whatever the locale: a letter that it does not know must
    not end a command between two events.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")

    async def done() -> int:
        await work
        return DONE

    try:
        return shown(prog, done(), as_json)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return interrupted
    except UnicodeEncodeError as error:
        part = ascii(error.object[error.start : error.end])
        complain(prog, Failure(f"{part} is not UTF-8", WRONG_USAGE, "wrong_usage"), as_json)
        return WRONG_USAGE
    except (ClientError, Unreachable, Failure) as error:
        failure = failure_of(error)
        complain(prog, failure, as_json)
        return failure.exit_code


def end_by_sigterm() -> None:
    """From now on SIGTERM ends this task as Ctrl-C does, which can still say what it has done."""
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(RuntimeError):  # only the main thread hears signals
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def end_with_reader() -> None:
    """From now on this task ends, as by Ctrl-C, when nobody is left who could read our output.

    Who follows may have nothing to write for long, and without a write would not notice.
    """
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(OSError):  # stdout is no file, as in a test
        number = sys.stdout.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(number).st_mode)
        # The writing end of a pipe gets ready to be read only by the end of its last reader.
        if is_pipe and fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
            asyncio.get_running_loop().add_reader(number, task.cancel)


def open_closed() -> None:
    """What the caller has closed is /dev/null, and not the next thing that is opened."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # until the end


def written(prog: str, text: str, as_json: bool = False) -> int:
    """Write a text, such as a command's help; the exit code."""

    def write() -> int:
        sys.stdout.write(text)
        return DONE

    return _with_room(prog, write, as_json)


def shown(prog: str, work: Coroutine[Any, Any, int], as_json: bool = False) -> int:
    """Do work that ends in an exit code; another one where its output finds no room."""
    return _with_room(prog, lambda: asyncio.run(work), as_json)


def _with_room(prog: str, work: Callable[[], int], as_json: bool) -> int:
    try:
        code = work()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has seen enough
        _write_no_more()
        return DONE
    except OSError as error:
        _write_no_more()
        complain(prog, Failure(str(error), word="output_failed"), as_json)
        return FAILED


def _write_no_more() -> None:
    """What is left of our output goes nowhere: Python would complain once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def ended(options: argparse.Namespace, error: ClientError | Unreachable | Failure) -> int:
    """Say what went wrong, in one line or as JSON; the exit code."""
    failure = failure_of(error)
    complain(options.prog, failure, options.json)
    return failure.exit_code


def failure_of(error: ClientError | Unreachable | Failure) -> Failure:
    """What went wrong, as this program tells it."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, Unreachable):
        reasons = "; ".join(f"{url}: {reason}" for url, reason in error.reasons.items())
        code, word = (FAILED, "unreadable") if error.answered else (UNREACHABLE, "unreachable")
        fields = {"stored": False, "retry": not error.answered}
        return Failure(f"{error.words} ({reasons})", code, word, fields)
    exit_code = next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)
    if error.code == "checkpoint_not_increasing":
        exit_code = CONFLICT
    if error.stored:
        exit_code = UNKNOWN
    fields = {name: value for name, value in error.fields.items() if name not in _NOT_SHOWN}
    word = error.code or ("unreachable" if exit_code == UNREACHABLE else "outcome_unknown")
    return Failure(
        error.detail, exit_code, word, fields | {"stored": error.stored, "retry": error.retry}
    )


def refused(reply: Reply) -> Failure:
    """What a node refused, for a command all of whose refusals end with the same exit code."""
    error = of_problem(reply.status, reply.body)
    detail = f"{reply.url} says: {reply.body.get('detail') or error.code or reply.status}"
    return Failure(detail, word=error.code or "failed", fields=failure_of(error).fields)


def complain(prog: str, failure: Failure, as_json: bool) -> None:
    """One line on stderr."""
    if as_json:
        plain = {"error": failure.word, "detail": failure.detail, **failure.fields}
        print(msgspec.json.encode(plain).decode(), file=sys.stderr)
    else:
        detail = " ".join(failure.detail.split())
        print(f"{prog}: {failure.word}: {detail}", file=sys.stderr)


def accepted(method: str, reply: Reply) -> dict[str, Any]:
    """The body of an answer. Raises ClientError if it is a refusal."""
    if reply.status >= 400:
        error = refusal(method, reply.status, reply.body)
        error.stored = error.stored or reply.perhaps_stored
        raise error
    return reply.body
