"""Logs: what a line looks like, and that logging never waits for whoever should read it."""

import io
import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from node import logs

log = logging.getLogger("node.trial")


class Terminal(io.StringIO):
    """A stream that says that a person sits before it."""

    def isatty(self) -> bool:
        return True


class Clogged(io.StringIO):
    """A stream that takes nothing until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.opened = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.opened.wait(10)
        return super().write(text)


@pytest.fixture(autouse=True)
def everything_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for name in ("pysyncobj", "aiohttp", "asyncio"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def written(stream: io.StringIO, level: str = "info", format: str = "text") -> list[str]:
    """What stands in the stream after a few lines of every kind were logged."""
    started = logs.start("n1", level, format, stream)
    log.debug("too much detail")
    log.info("persisting %d stores", 3, extra={"store": "my store", "bytes": 10})
    log.warning("careful")
    started.stop()
    return stream.getvalue().splitlines()


def test_a_line_for_people_has_time_level_node_message_and_pairs() -> None:
    lines = written(io.StringIO())
    pattern = r'\d\d:\d\d:\d\d\.\d{3} INFO    n1  persisting 3 stores  store="my store" bytes=10'
    assert re.fullmatch(pattern, lines[0])
    assert lines[1].endswith("WARNING n1  careful") and len(lines) == 2


def test_a_line_for_programs_is_one_json_object() -> None:
    lines = written(io.StringIO(), format="json")
    line = json.loads(lines[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "node": "n1",
        "logger": "node.trial",
        "message": "persisting 3 stores",
        "store": "my store",
        "bytes": 10,
    }


def test_auto_is_text_on_a_terminal_and_json_elsewhere() -> None:
    assert written(Terminal(), format="auto")[0].startswith(tuple("0123456789"))
    assert json.loads(written(io.StringIO(), format="auto")[0])["node"] == "n1"


def test_colours_are_for_terminals_only() -> None:
    assert "\x1b[33m" in written(Terminal())[1]
    assert "\x1b" not in "".join(written(io.StringIO()))


def test_the_level_decides_what_is_written() -> None:
    assert len(written(io.StringIO(), level="debug")) == 3
    assert len(written(io.StringIO(), level="error")) == 0


@pytest.mark.parametrize("format", ["text", "json"])
def test_an_exception_is_written_with_its_traceback(format: str) -> None:
    stream = io.StringIO()
    started = logs.start("n1", "info", format, stream)
    try:
        raise RuntimeError("the disk is on fire")
    except RuntimeError:
        log.exception("a cycle failed")
    started.stop()
    assert "a cycle failed" in stream.getvalue() and "the disk is on fire" in stream.getvalue()
    assert "Traceback" in stream.getvalue()


def test_an_extra_cannot_pose_as_the_lines_own_keys() -> None:
    stream = io.StringIO()
    started = logs.start("n1", "info", "json", stream)
    log.info("true", extra={"node": "n9", "level": "none", "odd": object})
    started.stop()
    line = json.loads(stream.getvalue())
    assert (line["node"], line["level"], line["message"]) == ("n1", "info", "true")


def test_the_libraries_keep_quiet_below_warning() -> None:
    stream = io.StringIO()
    started = logs.start("n1", "debug", "text", stream)
    for name in ("pysyncobj.syncobj", "aiohttp.access", "asyncio"):
        logging.getLogger(name).info("inner life")
        logging.getLogger(name).error("a fault of %s", name)
    started.stop()
    assert "inner life" not in stream.getvalue()
    assert stream.getvalue().count("a fault of") == 3


def test_logging_does_not_wait_for_a_clogged_stream_and_counts_what_it_drops() -> None:
    stream = Clogged()
    handler = logs.Logs(stream, logs.Text("n1"), lines_max=10)
    record = logging.makeLogRecord({"msg": "word", "levelname": "INFO"})
    handler.handle(record)
    assert stream.reached.wait(10)
    started = time.monotonic()
    for _ in range(100):
        handler.handle(record)
    assert time.monotonic() - started < 1
    assert handler.dropped == 90
    stream.opened.set()
    handler.stop()
    assert stream.getvalue().count("word") == 11
    assert "log lines were dropped" in stream.getvalue() and "count=90" in stream.getvalue()


def test_stopping_waits_for_a_clogged_stream_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "STOP_S", 0.05)
    stream = Clogged()
    handler = logs.Logs(stream, logs.Text("n1"), lines_max=1)
    record = logging.makeLogRecord({"msg": "word"})
    handler.handle(record)
    assert stream.reached.wait(10)
    handler.handle(record)
    started = time.monotonic()
    handler.stop()
    assert time.monotonic() - started < 5
    stream.opened.set()


def test_a_stream_that_is_gone_ends_nothing() -> None:
    stream = io.StringIO()
    started = logs.start("n1", "info", "text", stream)
    stream.close()
    log.info("into the void")
    started.stop()


def test_the_last_words_of_a_process_that_ends_at_once_are_written() -> None:
    """A promise that cannot be kept, or an entry that cannot be applied, ends it by `os._exit`."""
    code = """
import logging, os
from node import logs
logs.start("n1", "info", "json")
logging.getLogger("node.trial").critical("the process ends")
logging.shutdown()
os._exit(70)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 70
    assert "the process ends" in ended.stderr
