"""Logs: one line an event, for people on a terminal or for programs, and never in the way.

The rest of the node logs with the standard library and adds what a program would look for as
`extra`: `log.info("took a snapshot", extra={"store": name, "bytes": size})`. From that come

    text   20:15:03.127 INFO    n1  took a snapshot  store=my_store bytes=1024
    JSON   {"time":"2026-11-23T20:15:03.127Z","level":"info","node":"n1","logger":"node.raft",
            "message":"took a snapshot","store":"my_store","bytes":1024}      (on one line)

A terminal or a pipe that nobody reads can block a writer for ever, and the event loop must not
wait for that. So a line is made where it is logged, put into a queue, and written by a thread. The
queue holds `LINES_MAX` lines. When it is full the line is dropped and counted, and the count is
logged as soon as there is room: losing lines and saying so is better than losing the cluster.
`stop` waits for the writer, but not longer than `STOP_S`.

PySyncObj and aiohttp may speak from WARNING up, whatever the level of our own loggers: below that
they tell their inner life.
"""

import atexit
import contextlib
import json
import logging
import logging.handlers
import queue
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

LINES_MAX = 10_000
STOP_S = 2.0

_TAMED = ("pysyncobj", "aiohttp", "asyncio")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m", "DEBUG": "\x1b[2m"}


def start(
    node_id: str, level: str = "info", format: str = "auto", stream: TextIO | None = None
) -> "Logs":
    """Send everything that is logged in this process to `stream` (stderr) from now on.

    `level` and `format` are the options log_level and log_format.
    """
    stream = sys.stderr if stream is None else stream
    terminal = stream.isatty()
    text = format == "text" or (format == "auto" and terminal)
    formatter = Text(node_id, colours=terminal) if text else Json(node_id)
    logs = Logs(stream, formatter)
    root = logging.getLogger()
    root.handlers[:] = [logs]
    root.setLevel(level.upper())
    for name in _TAMED:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
    atexit.register(logs.stop)
    return logs


class Logs(logging.handlers.QueueHandler):
    """The handler that makes lines, and the thread that writes them."""

    def __init__(
        self, stream: TextIO, formatter: logging.Formatter, lines_max: int = LINES_MAX
    ) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(lines_max)
        super().__init__(self._lines)
        self.setFormatter(formatter)
        self.dropped = 0
        self._reported = 0
        self._stopped = False
        self._stream = stream
        self._writer = threading.Thread(target=self._write, name="logs", daemon=True)
        self._writer.start()

    def prepare(self, record: logging.LogRecord) -> str:
        """The finished line. Made here, because what a record refers to may change later."""
        return self.format(record)

    def enqueue(self, record: Any) -> None:
        """Hand the line to the writer, or count it as dropped."""
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def stop(self) -> None:
        """Write what is queued, as far as that goes quickly, and log nothing any more."""
        if self._stopped:
            return
        self._stopped = True
        atexit.unregister(self.stop)
        logging.getLogger().removeHandler(self)
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=STOP_S)
        self._writer.join(STOP_S)

    def close(self) -> None:
        """What `logging.shutdown` calls: the process ends, and its last lines say why."""
        self.stop()
        super().close()

    def _write(self) -> None:
        """The thread: write lines until told to end. A stream that is gone swallows the rest."""
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._report_dropped()
                    self._stream.flush()

    def _report_dropped(self) -> None:
        dropped = self.dropped
        if dropped == self._reported:
            return
        count, self._reported = dropped - self._reported, dropped
        text = "log lines were dropped, because they could not be written fast enough"
        record = logging.makeLogRecord(
            {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
            | {"msg": text, "count": count}
        )
        self._stream.write(self.format(record) + "\n")


def extras(record: logging.LogRecord) -> Mapping[str, object]:
    """What was logged as `extra`."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class Text(logging.Formatter):
    """Lines for people: local time, level, node, message, key=value."""

    def __init__(self, node_id: str, colours: bool = False) -> None:
        super().__init__()
        self._node_id = node_id
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback below it if there is one."""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        pairs = " ".join(f"{name}={_plain(value)}" for name, value in extras(record).items())
        words = [f"{time} {record.levelname:<7} {self._node_id}", record.getMessage(), pairs]
        line = self._coloured("  ".join(word for word in words if word), record.levelname)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def _coloured(self, line: str, level: str) -> str:
        colour = _COLOURS.get(level) if self._colours else None
        return f"{colour}{line}\x1b[0m" if colour else line


class Json(logging.Formatter):
    """Lines for programs: one JSON object each, in UTC."""

    def __init__(self, node_id: str) -> None:
        super().__init__()
        self._node_id = node_id

    def format(self, record: logging.LogRecord) -> str:
        """The object. An `extra` cannot hide one of the line's own keys."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "node": self._node_id,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line |= {name: value for name, value in extras(record).items() if name not in line}
        return json.dumps(line, default=str)


def _plain(value: object) -> str:
    """A value behind `key=`: quoted as JSON where it would otherwise not be one word."""
    text = str(value)
    return json.dumps(text) if not text or any(c.isspace() or c in '"=' for c in text) else text
