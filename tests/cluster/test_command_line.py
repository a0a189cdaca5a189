"""`exesdb`: its list of commands, how each ends, and what stands on stdout and stderr."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from cluster import demo, topology
from cluster.__main__ import COMMANDS, main
from cluster.bench import __main__ as bench
from cluster.bench.report import JsonReport
from cluster.chaos import __main__ as chaos
from cluster.cli import append
from cluster.client_asking import Attempts
from cluster.up import ready_line
from tests.api.fakes import Node
from tests.api.fakes import serving as a_node
from tests.api.fakes import serving as serving_api
from tests.cluster.fake_http import FakeServer, hanging_up, serving
from tests.cluster.fake_store import FakeStore, serving_store
from tests.cluster.test_recover_plan import report
from tests.raft.wire import until

PROJECT = Path(__file__).resolve().parents[2]
STORE = "/v1/stores/my_store"
NAMED = "/v1/stores/main/subscriptions/a%2Fb"
STORED = {"positions": [7], "streams": {"s": 3}, "raft_index": 9, "idempotent": False}
NO_ROOM = "output_failed: [Errno 28] No space left on device\n"
CONFLICT = {"code": "wrong_expected_version", "detail": "so it is", "stream": "s", "current": 4}


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Exesdb = Callable[..., Any]


@pytest.fixture
def exesdb(capsys: pytest.CaptureFixture[str]) -> Exesdb:
    """Runs a command as in a process of its own: on an event loop in another thread."""

    async def run(server: FakeServer | str | None, *words: str) -> Ended:
        url = server.url if isinstance(server, FakeServer) else server or "http://127.0.0.1:9"
        argv = [*words, "--url", url, "--timeout-ms", str(patience_ms(server))]
        code = await asyncio.to_thread(main, argv)
        return Ended(code, *capsys.readouterr())

    return run


def patience_ms(server: FakeServer | str | None) -> int:
    """Short where it will be waited out, since no other try fares better; else no concern."""
    if server is None:
        return 400
    answers = server.answers.values() if isinstance(server, FakeServer) else ()
    return 1_000 if any(status >= 500 for status, _ in answers) else 10_000


def event(position: int, **fields: Any) -> dict[str, Any]:
    plain = {
        "event_stream_id": "s",
        "event_number": position - 1,
        "position": position,
        "event_id": "i",
        "event_type": "A",
        "data": {"n": position},
        "metadata": None,
        "created_epoch": 1_000_000,
    }
    return plain | fields


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: exesdb {name} ")
    assert f"exesdb {name}" in said.split("\n\n", 1)[1]


def test_who_interrupts_a_command_that_has_not_begun_sees_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupted)
    assert main(["read"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["backup", "restore"])
def test_what_takes_longer_says_how_long_it_may_take(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    assert "with all its tries; default 60000 " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_options_are_one_line_or_one_object_for_every_command(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--nonsense", "--json"]) == 64
    found = capsys.readouterr()
    assert found.out == ""
    assert json.loads(found.err)["error"] == "wrong_usage"
    assert main([name, "--nonsense"]) == 64
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith(f"exesdb {name}: wrong_usage: ")
    assert found.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("chaos --minutes nan", "--minutes: must be at least 0, and finite"),
        ("chaos --minutes 0", "--minutes and --events-per-second must be more than 0"),
        ("chaos --events-per-second inf", "--events-per-second: must be at least 0, and finite"),
        ("chaos --leader-kills -1", "--leader-kills: must be at least 0"),
        ("chaos --steady-minutes x", "--steady-minutes: 'x' is not a number"),
        ("chaos --seed x", "--seed: 'x' is not a whole number"),
        ("chaos --data-dir /dev", "--data-dir: /dev is no empty directory"),
        ("chaos --data-dir /dev/null", "--data-dir: /dev/null is no empty directory"),
        ("demo --rows 0", "--rows: must be at least 1"),
        ("demo --http-port x", "--http-port: 'x' is not a whole number"),
        ("bench memory --seconds x", "--seconds: 'x' is not a whole number"),
        ("bench memory --repetitions 0", "--repetitions: must be at least 1"),
    ],
)
def test_wrong_options_of_the_tools_are_one_line_and_exit_64_too(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *argv = words.split()
    tool = {"chaos": chaos.main, "demo": demo.main, "bench": bench.main}[name]
    with pytest.raises(SystemExit) as leaving:
        tool(argv)
    assert leaving.value.code == 64
    found = capsys.readouterr().err
    assert found.startswith(f"scripts/{name}: wrong_usage: ") and found.endswith(f"{said}\n")


def test_an_address_that_is_none_is_a_wrong_option_and_nothing_was_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["append", "s", "T", "--url", "ftp://127.0.0.1:8101"]) == 64
    assert "is no address of a node" in capsys.readouterr().err
    monkeypatch.setenv("EX_ESDB_URL", "127.0.0.1:8101,127.0.0.1:81020")
    assert main(["status"]) == 64


async def test_a_store_whose_name_cannot_be_is_refused_as_that(exesdb: Exesdb) -> None:
    async with a_node() as node:
        url = f"http://127.0.0.1:{node.port}"
        ended = await exesdb(url, "append", "s", "T", "--store", "a/b")
    assert ended.code == 1 and "invalid_request: store: must match" in ended.err


@pytest.mark.parametrize("name", ["status", "flush", "stores", "streams", "read", "tail"])
def test_no_node_is_one_object_where_json_is_asked_for(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = () if name in ("status", "flush") else ("--timeout-ms", "300")
    assert main([name, "--json", "--url", "http://127.0.0.1:9", *options]) == 2
    found = capsys.readouterr()
    assert found.out == "" and "127.0.0.1:9" in json.loads(found.err)["detail"]


def test_the_list_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["append"],
        ["append", "s"],
        ["append", "s", "T", "not json"],
        ["append", "s", "T", "@/does/not/exist"],
        ["append", "s", "T", "--expect", "x"],
        ["append", "--lines", "-", "--expect", "3"],
        ["read", "s", "--after", "3"],
        ["read", "--backward"],
        ["read", "s", "--from", "3", "--where", '{"path": "data", "equals": 1}'],
        ["read", "--where", "not json"],
        ["tail", "--where", "12"],
        ["tail", "-n", "-1"],
        ["tail", "--limit", "3"],
        ["snapshot", "b"],
        ["snapshot", "b", "s", "3", "--list"],
        ["snapshot", "b", "s", "--delete"],
        ["snapshot", "b", "s", "3", "--up-to", "4"],
        ["subscribe", "--now", "--after", "3"],
        ["subscribe", "--persistent", "m", "--now"],
        ["subscribe", "--consumer", "c"],
        ["subscriptions", "nonsense"],
        ["subscriptions", "show"],
        ["subscriptions", "list", "m"],
        ["subscriptions", "parked", "m", "3"],
        ["subscriptions", "show", "m", "--max-retries", "0"],
        ["subscriptions", "create", "m", "--start-after", "x"],
        ["streams", "--nonsense"],
        ["streams", "s"],
        ["streams", "delete"],
        ["streams", "list", "s"],
        ["streams", "keep", "s", "--hard"],
        ["streams", "delete", "s", "--expect", "x"],
        ["flush", "--timeout-ms", "0"],
    ],
)
def test_wrong_usage_is_exit_64_and_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 64
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines()[-1].startswith("exesdb")


@pytest.mark.parametrize(
    "words",
    [
        ["read", "--limit", "x"],
        ["append", "s", "T", "--expect", "x"],
        ["tail", "--timeout-ms", "x"],
    ],
)
def test_what_is_no_number_is_called_that(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 64
    assert capsys.readouterr().err.endswith(f"argument {words[-2]}: 'x' is not a whole number\n")


async def test_an_append_says_where_the_event_stands(exesdb: Exesdb) -> None:
    async with serving({("POST", f"{STORE}/streams/s/events"): (201, STORED)}) as server:
        assert await exesdb(server, "append", "s", "T", '{"x": 1}') == (
            0,
            "stored: event 3 of s, position 7\n",
            "",
        )
        code, out, _ = await exesdb(server, "append", "s", "T", "--json")
        assert code == 0 and json.loads(out) == STORED


@pytest.mark.parametrize("given", [None, "replicated", "persisted"])
async def test_an_append_waits_for_what_it_says_or_for_what_the_store_does(
    exesdb: Exesdb, tmp_path: Path, given: str | None
) -> None:
    """Also where the store says `persisted`, and this append is not to wait for a disk."""
    words = [] if given is None else ["--durability", given]
    (file := tmp_path / "lines").write_text('{"stream": "s", "event_type": "T"}')
    paths = (f"{STORE}/streams/s/events", f"{STORE}/append")
    async with serving({("POST", path): (201, STORED) for path in paths}) as server:
        assert (await exesdb(server, "append", "s", "T", *words)).code == 0
        assert (await exesdb(server, "append", "--lines", str(file), *words)).code == 0
        sent = [query.get("durability") for what, query in server.asked if what[:4] == "POST"]
        assert sent == [given, given]


@pytest.mark.parametrize(
    ("status", "problem", "code"),
    [
        (409, CONFLICT, 3),
        (422, {"code": "event_id_reused", "detail": "so it is"}, 3),
        (404, {"code": "store_not_found", "detail": "so it is"}, 4),
        (503, {"code": "no_leader", "detail": "so it is"}, 2),
        (504, {"code": "outcome_unknown", "detail": "so it is"}, 5),
        (413, {"code": "payload_too_large", "detail": "so it is"}, 1),
    ],
)
async def test_each_kind_of_refusal_has_its_exit_code_and_is_one_line(
    exesdb: Exesdb, status: int, problem: dict[str, Any], code: int
) -> None:
    async with serving({("POST", f"{STORE}/streams/s/events"): (status, problem)}) as server:
        event_id = str(UUID(int=7))
        ended = await exesdb(server, "append", "s", "T", "--id", event_id)
        again = f"; to repeat it safely: --id {event_id}" if code == 5 else ""
        assert ended == (code, "", f"exesdb append: {problem['code']}: so it is{again}\n")
        ended = await exesdb(server, "append", "s", "T", "--json")
        said = json.loads(ended.err)
        assert ended.code == code and (said["error"], said["detail"]) == (
            problem["code"],
            "so it is",
        )
        assert said["stored"] is (code == 5) and said["retry"] is (code in (2, 5))
        assert said.get("current") == problem.get("current")


async def test_no_node_at_all_is_exit_2(exesdb: Exesdb) -> None:
    for words in (["append", "s", "T"], ["read"], ["tail"], ["subscribe"], ["stores"], ["streams"]):
        code, out, err = await exesdb(None, *words)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "127.0.0.1:9" in err and "event" not in out.replace("events  stream", "")


@pytest.mark.parametrize(
    "words",
    [
        "stores --create orders",
        "stores --delete orders --yes",
        "snapshot billing order-7 40 --record 12",
        "snapshot billing order-7 40 --delete",
        "subscriptions create mails",
        "subscriptions delete mails",
        "subscriptions replay mails",
    ],
)
async def test_a_change_whose_answer_is_lost_is_perhaps_stored(exesdb: Exesdb, words: str) -> None:
    async with hanging_up() as url:
        code, out, err = await exesdb(url, *words.split())
        assert (code, out) == (5, "")
        assert err.startswith(f"exesdb {words.split()[0]}: outcome_unknown: {url}: ")
        said = json.loads((await exesdb(url, *words.split(), "--json")).err)
    assert (said["error"], said["stored"], said["retry"]) == ("outcome_unknown", True, True)
    ended = await exesdb(None, *words.split(), "--json")
    said = json.loads(ended.err)
    assert (ended.code, said["error"], said["stored"], said["retry"]) == (
        *(2, "unreachable"),
        *(False, True),
    )


async def test_a_change_is_open_where_its_first_try_was_lost_and_the_next_is_refused() -> None:
    path = f"{STORE}/snapshots/billing/order-7/40"
    gone = (404, {"code": "snapshot_not_found", "detail": "so it is"})
    async with hanging_up() as lost, serving({("DELETE", path): gone}) as up:
        words = ["snapshot", "billing", "order-7", "40", "--delete", "--url", lost]
        assert await asyncio.to_thread(main, [*words, "--url", up.url]) == 5


@pytest.mark.parametrize(
    ("status", "problem", "code"),
    [
        (500, {"code": "internal_error", "detail": "so it is"}, 5),
        (502, {"message": "the connection broke"}, 5),
        (503, {"code": "no_leader", "detail": "so it is"}, 2),
        (504, {"code": "outcome_unknown", "detail": "so it is"}, 5),
    ],
)
async def test_a_server_that_failed_leaves_a_change_open_unless_it_promises_otherwise(
    exesdb: Exesdb, status: int, problem: dict[str, Any], code: int
) -> None:
    async with serving({("PUT", "/v1/stores/orders"): (status, problem)}) as server:
        ended = await exesdb(server, "stores", "--create", "orders", "--json")
    assert (ended.code, json.loads(ended.err)["stored"]) == (code, code == 5)


async def test_an_answer_that_cannot_be_read_is_called_that(exesdb: Exesdb) -> None:
    async with serving({("GET", "/v1/stores"): (200, "hello")}) as odd:
        code, out, err = await exesdb(odd, "stores")
    assert (code, out) == (1, "")
    assert err.startswith("exesdb stores: unreadable: no node gave an answer that can be read (")


async def test_who_was_silent_is_not_asked_first_again() -> None:
    page = {"streams": [{"stream": "s", "count": 1}], "next": "s"}
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        url = "http://{}:{}".format(*frozen.getsockname())
        async with serving({("GET", f"{STORE}/streams"): (200, page)}) as up:
            words = ["streams", "--limit", "3", "--url", url, "--url", up.url]
            code = await asyncio.to_thread(main, [*words, "--timeout-ms", "1000"])
            assert code == 0 and len(up.asked) == 3
        frozen.setblocking(False)
        frozen.accept()[0].close()
        with pytest.raises(BlockingIOError):  # nobody else has come
            frozen.accept()


async def test_lines_are_appended_in_requests_that_expect_one_another(
    exesdb: Exesdb, tmp_path: Path
) -> None:
    file = tmp_path / "events.jsonl"
    lines = [{"event_type": "T", "data": number} for number in range(1_100)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = FakeStore([])
    async with serving_store(store) as url:
        words = ["append", "a", "--lines", str(file), "--expect", "-1", "--store", "s", "--json"]
        ended = await exesdb(url, *words)
        again = await exesdb(url, *words)
    done = json.loads(ended.out)
    assert ended.code == 0 and (done["events"], done["requests"]) == (1_100, 3)
    assert [event["data"] for event in store.events] == list(range(1_100))
    assert again.code == 3 and len(store.events) == 1_100


async def test_a_wrong_line_is_named_and_what_was_stored_before_is_told(
    exesdb: Exesdb, tmp_path: Path
) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text('{"event_type": "T"}\n' * 600 + "\n" + '{"type": "T"}\n')
    async with serving({("POST", f"{STORE}/append"): (201, STORED)}) as server:
        code, out, err = await exesdb(server, "append", "s", "--lines", str(file))
        told = await exesdb(server, "append", "s", "--lines", str(file), "--json")
    assert code == 64 and err.startswith("exesdb append: wrong_input: line 602: ")
    assert err.endswith("; not stored from line 501 on\n")
    assert out == "stored 500 events, the last at position 7\n"
    said = json.loads(told.err)
    assert (said["stored"], said["lines"]) == (False, [501, 602])
    assert "not stored" not in said["detail"]


async def test_what_is_not_utf_8_is_one_line_that_says_so(exesdb: Exesdb, tmp_path: Path) -> None:
    (file := tmp_path / "lines").write_bytes(b'\n{"event_type": "T", "data": "\xff"}\n')
    for words in (("s", "--lines", str(file)), ("s", "T", f"@{file}")):
        code, out, err = await exesdb(None, "append", *words)
        assert (code, out, len(err.splitlines())) == (64, "", 1) and "'utf-8' codec" in err


async def test_a_line_without_an_end_is_named(exesdb: Exesdb, tmp_path: Path) -> None:
    (file := tmp_path / "lines").write_bytes(b"\n" * 3 + b"x" * (append.LINE_BYTES_MAX + 1))
    code, _, err = await exesdb(None, "append", "s", "--lines", str(file))
    assert code == 64
    assert err == (
        "exesdb append: wrong_input: line 4 is longer than 8,388,608 bytes;"
        " not stored from line 1 on\n"
    )


@pytest.mark.parametrize(
    ("file", "code", "out", "err"),
    [
        ("/dev/null", 0, "stored 0 events, the last at position 0\n", ""),
        ("/", 64, "", "exesdb append: wrong_usage: /: Is a directory\n"),
    ],
)
async def test_lines_may_be_none_at_all_but_not_a_directory(
    exesdb: Exesdb, file: str, code: int, out: str, err: str
) -> None:
    """Standard input of a service is /dev/null, which nobody can wait for."""
    async with serving({}) as server:
        assert await exesdb(server, "append", "s", "--lines", file) == (code, out, err)


async def test_events_are_lines_for_a_person_or_as_json(exesdb: Exesdb) -> None:
    octets = event(2, data_base64="AAE=")
    del octets["data"]
    page = {"events": [event(1), octets], "next": 2, "is_end": True}
    async with serving({("GET", f"{STORE}/events"): (200, page)}) as server:
        code, out, _ = await exesdb(server, "read")
        first, second = out.splitlines()
        assert code == 0 and first.split() == [
            *("1", "1970-01-01", "00:00:01.000", "0@s", "A", '{"n":1}')
        ]
        assert second.endswith("2 bytes")
        _, out, _ = await exesdb(server, "read", "--json", "--limit", "1")
        (line,) = out.splitlines()
        assert json.loads(line) == event(1)
        _, out, _ = await exesdb(server, "read", "--json")
        assert json.loads(out.splitlines()[1]) == octets


async def test_tail_shows_the_last_events_in_order(exesdb: Exesdb) -> None:
    page = {"events": [event(9), event(8)], "next": 8, "is_end": False, "head": 9}
    async with serving({("GET", f"{STORE}/events"): (200, page)}) as server:
        code, out, _ = await exesdb(server, "tail", "-n", "2")
        assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["8", "9"]
        assert server.asked[-1][1] == {
            "direction": "backward",
            "min_position": "9",
            "after": "10",
            "limit": "2",
        }


@pytest.mark.parametrize("words", [["read"], ["tail"], ["read", "s"], ["tail", "s"]])
async def test_conditions_are_handed_on(exesdb: Exesdb, words: list[str]) -> None:
    page = {"events": [event(9)], "next": 8, "is_end": True, "head": 9}
    condition = {"path": "data.n", "any_of": [1, "é"]}
    async with serving({("GET", f"{STORE}/events"): (200, page)}) as server:
        for given in (condition, [condition]):
            ended = await exesdb(server, *words, "--type", "A", "--where", json.dumps(given))
            assert ended.code == 0 and len(ended.out.splitlines()) == 1
            _, query = server.asked[-1]
            assert json.loads(query["where"]) == [condition] and query["type"] == "A"
            assert query.get("stream") == (words[1] if len(words) > 1 else None)


async def test_streams_are_listed_page_by_page(exesdb: Exesdb) -> None:
    page = {"streams": [{"stream": "a", "version": 1, "count": 2}], "next": None}
    async with serving({("GET", f"{STORE}/streams"): (200, page)}) as server:
        assert (await exesdb(server, "streams")).out == "      events  stream\n           2  a\n"
        assert json.loads((await exesdb(server, "streams", "--json")).out) == page["streams"][0]


async def test_where_streams_cannot_be_listed_there_is_no_list(exesdb: Exesdb) -> None:
    problem = {"code": "store_not_found", "detail": "no store 'nope'"}
    async with serving({("GET", "/v1/stores/nope/streams"): (404, problem)}) as server:
        code, out, _ = await exesdb(server, "streams", "--store", "nope")
    assert (code, out) == (4, "")


async def test_streams_are_looked_at_truncated_and_deleted(exesdb: Exesdb) -> None:
    limits = {"max_count": 3, "max_age_ms": None, "truncate_before": None}
    told = {"stream": "s/1", "first_event_number": 4, "metadata": {"max_count": 3}}
    answers: dict[tuple[str, str], tuple[int, Any]] = {
        ("GET", f"{STORE}/streams/s/1"): (200, {**told, "version": 6, "count": 3}),
        ("PUT", f"{STORE}/streams/s/1/metadata"): (200, told),
        ("DELETE", f"{STORE}/streams/s/1"): (204, None),
    }
    async with serving(answers) as server:
        shown = await exesdb(server, "streams", "show", "s/1", "--json")
        assert json.loads(shown.out) == {
            **{"name": "s/1", "version": 6, "count": 3, "first": 4},
            **limits,
        }
        kept = await exesdb(server, "streams", "keep", "s/1", "--max-count", "3")
        assert kept.out == "s/1 keeps its events from number 4 on\n"
        gone = await exesdb(server, "streams", "delete", "s/1", "--expect", "6", "--hard")
        assert gone.out == "s/1 is deleted\n"
        _, query = server.asked[-1]
        assert (query["expected_version"], query["hard"]) == ("6", "true")
        answers.clear()
        assert (await exesdb(server, "streams", "show", "s/1")).code == 4


async def test_a_store_can_be_made(exesdb: Exesdb) -> None:
    store = {"store": "orders", "streams": 0, "events": 0, "position": 0}
    answers: dict[tuple[str, str], tuple[int, Any]] = {
        ("PUT", "/v1/stores/orders"): (201, store),
        ("GET", "/v1/stores"): (200, {"stores": [store]}),
    }
    async with serving(answers) as server:
        ended = await exesdb(server, "stores", "--create", "orders", "--json")
    assert ended.code == 0 and json.loads(ended.out) == store


async def test_a_store_is_changed_and_removed_only_as_it_is_said(exesdb: Exesdb) -> None:
    async with serving_api() as node:
        url, orders = f"http://127.0.0.1:{node.port}", "/v1/stores/orders"
        words = ("stores", "--create", "orders", "--durability", "persisted")
        assert (await exesdb(url, *words, "--snapshots-kept", "3")).code == 0
        facts = (await node.ask("GET", orders)).body
        assert (facts["durability"], facts["snapshots_kept"]) == ("persisted", 3)
        words = ("stores", "--create", "orders", "--durability", "default")
        assert (await exesdb(url, *words)).code == 0
        facts = (await node.ask("GET", orders)).body
        assert (facts["durability"], facts["snapshots_kept"]) == (None, 3)
        assert (await exesdb(url, "stores", "--delete", "orders")).code == 64
        assert (await exesdb(url, "stores", "--durability", "default")).code == 64
        assert (await node.ask("GET", orders)).status == 200
        left = await exesdb(url, "stores", "--delete", "orders", "--yes")
        assert left.code == 0 and "orders" not in left.out and "main" in left.out
        assert (await exesdb(url, "stores", "--delete", "orders", "--yes")).code == 4


async def test_a_reader_that_has_seen_enough_ends_it_quietly() -> None:
    page = {"events": [event(n) for n in range(1, 2_000)], "next": 1_999, "is_end": False}
    async with serving({("GET", f"{STORE}/events"): (200, page)}) as server:
        command = [sys.executable, "-m", "cluster", "read", "--url", server.url]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
        )
        assert process.stdout is not None and process.stderr is not None
        async with asyncio.timeout(20):
            assert await process.stdout.readline()
            process.stdout._transport.close()  # type: ignore[attr-defined]
            assert (await process.stderr.read(), await process.wait()) == (b"", 0)


@pytest.mark.parametrize(
    "words",
    [["subscribe"], ["tail", "-f"], ["subscribe", "--persistent", "jobs", "--consumer", "c"]],
)
async def test_who_follows_ends_with_its_reader_though_nothing_comes(words: list[str]) -> None:
    async with a_node() as node:
        url = f"http://127.0.0.1:{node.port}"
        await node.ask("PUT", "/v1/stores/main/subscriptions/jobs", json={})
        await node.append("s", 1)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cluster", *words, "--store", "main", "--url", url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=PROJECT,
        )
        assert process.stdout is not None and process.stderr is not None
        async with asyncio.timeout(20):
            assert await process.stdout.readline()
            process.stdout._transport.close()  # type: ignore[attr-defined]
            assert (await process.stderr.read(), await process.wait()) == (b"", 0)


@pytest.mark.parametrize("events", [1, 2_000])
async def test_a_disk_without_room_for_the_output_is_one_line_and_exit_1(events: int) -> None:
    page = {"events": [event(n) for n in range(1, events + 1)], "next": events, "is_end": True}
    async with serving({("GET", f"{STORE}/events"): (200, page)}) as server:
        words = ("cluster", "read", "--url", server.url)
        assert await without_room(*words) == (1, f"exesdb read: {NO_ROOM}")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("status",), {"node_id": "n1", "leader": "n1", "members": []}),
        (("status", "--json"), {"node_id": "n1", "leader": "n1", "members": []}),
        (("flush",), {"nodes": {"n1": {}}}),
        (("member", "list"), {"node_id": "n1", "leader": "n1", "members": []}),
        (("recover", "--missing", "n2,n3"), report("n1")._asdict()),
    ],
)
async def test_no_table_without_room_for_it_is_a_traceback(
    words: tuple[str, ...], answer: dict[str, Any]
) -> None:
    routes = (("GET", "/v1/cluster"), ("GET", "/v1/cluster/recovery"))
    force = ("POST", "/v1/persistence/force")
    async with serving({route: (200, answer) for route in (*routes, force)}) as server:
        where = "--nodes" if "recover" in words else "--url"
        code, said = await without_room(f"cluster.{words[0]}", *words[1:], where, server.url)
    if "--json" in words:
        assert (code, json.loads(said)["error"]) == (1, "output_failed")
    else:
        assert (code, said) == (1, f"scripts/{words[0]}: {NO_ROOM}")


@pytest.mark.parametrize(
    ("words", "prog"),
    [
        (("cluster", "--help"), "exesdb"),
        (("cluster", "read", "--help"), "exesdb read"),
        (("cluster.status", "--help"), "scripts/status"),
        (("cluster.member", "add", "--help"), "scripts/member add"),
    ],
)
async def test_no_help_without_room_for_it_is_a_traceback(
    words: tuple[str, ...], prog: str
) -> None:
    assert await without_room(*words) == (1, f"{prog}: {NO_ROOM}")


@pytest.mark.parametrize("words", [("--help",), ("read", "--help"), ("read",), ("nonsense",)])
async def test_what_is_closed_is_not_written_to(words: tuple[str, ...]) -> None:
    """Neither results to a closed stdout, nor what went wrong to stdout for a closed stderr."""
    page = {"events": [event(1)], "next": 1, "is_end": True}
    async with serving({("GET", f"{STORE}/events"): (200, page)}) as server:
        where = ("--url", server.url) if words == ("read",) else ()
        command = shlex.join([sys.executable, "-m", "cluster", *words, *where])
        for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
            process = await asyncio.create_subprocess_shell(
                f"{command} {closed}",
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=PROJECT,
            )
            async with asyncio.timeout(20):
                out, err = await process.communicate()
            wrong = words == ("nonsense",)
            assert process.returncode == (64 if wrong else 0)
            assert bool(out) == (closed == "2>&-" and not wrong)
            assert bool(err) == (closed == ">&-" and wrong)


async def test_a_cluster_whose_start_cannot_be_told_is_not_started(tmp_path: Path) -> None:
    words = ("cluster.up", "--data-dir", str(tmp_path / "data"))
    assert await without_room(*words) == (1, f"scripts/cluster: {NO_ROOM}")
    assert not (tmp_path / "data").exists()


async def without_room(*words: str) -> tuple[int | None, str]:
    """How a command ends whose output goes to a full disk, and what it says of that."""
    full = os.open("/dev/full", os.O_WRONLY)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *words), stdout=full, stderr=subprocess.PIPE, cwd=PROJECT
    )
    os.close(full)
    async with asyncio.timeout(20):
        _, said = await process.communicate()
    return process.returncode, said.decode()


async def test_who_ends_a_consumer_by_sigterm_leaves_nothing_with_it() -> None:
    path = f"{STORE}/subscriptions/jobs"
    handed_out = [
        event(n) | {"event_stream_id": f"s{n}", "delivery_id": f"d{n}", "attempt": 1}
        for n in (1, 2, 3)
    ]
    answers: dict[tuple[str, str], tuple[int, Any]] = {
        ("GET", path): (200, {"ack_timeout_ms": 30_000}),
        ("POST", f"{path}/fetch"): (200, {"events": handed_out}),
        ("POST", f"{path}/ack"): (503, {"code": "no_leader"}),
        ("POST", f"{path}/nack"): (200, {"stale": []}),
    }
    async with serving(answers) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cluster", "subscribe", "--persistent", "jobs"),
            *("--limit", "3", "--url", server.url),
            stdout=subprocess.PIPE,
            cwd=PROJECT,
        )
        async with asyncio.timeout(20):
            await until(lambda: any("ack" in what for what, _ in server.asked), 20)
            process.terminate()
            server.answers[("POST", f"{path}/ack")] = (200, {"stale": []})
            out, _ = await process.communicate()
    assert (process.returncode, len(out.splitlines())) == (0, 1)
    assert server.asked[-1][0] == f"POST {path}/nack"
    assert json.loads(server.bodies[-1]) == {"action": "give_back", "delivery_ids": ["d2", "d3"]}


async def test_who_does_not_know_whether_it_was_stored_is_told_the_id_to_repeat_it_with(
    exesdb: Exesdb,
) -> None:
    answer = (504, {"code": "outcome_unknown", "detail": "so it is"})
    async with serving({("POST", f"{STORE}/streams/s/events"): answer}) as server:
        told = json.loads((await exesdb(server, "append", "s", "T", "--json")).err)["event_id"]
        sent = [json.loads(body)["events"][0]["event_id"] for body in server.bodies]
    assert UUID(told) and set(sent) == {told}


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ((504, "outcome_unknown"), 5, "lines 2 to 4 are perhaps stored, and nothing behind them"),
        ((409, "wrong_expected_version"), 3, "not stored from line 2 on"),
    ],
)
async def test_a_run_of_lines_that_breaks_off_says_where(
    exesdb: Exesdb, tmp_path: Path, answer: tuple[int, str], code: int, words: str
) -> None:
    file = tmp_path / "lines"
    file.write_text("\n" + '{"event_type": "T"}\n' * 3)
    reply = (answer[0], {"code": answer[1], "detail": "so it is"})
    async with serving({("POST", f"{STORE}/append"): reply}) as server:
        ended = await exesdb(server, "append", "s", "--lines", str(file))
        assert (ended.code, ended.err.rstrip().rpartition("; ")[2]) == (code, words)
        told = json.loads((await exesdb(server, "append", "s", "--lines", str(file), "--json")).err)
        sent = [event["event_id"] for event in json.loads(server.bodies[-1])["events"]]
    assert told["lines"] == [2, 4] and told.get("event_ids", sent) == sent
    assert ("event_ids" in told) == (code == 5)


@pytest.mark.parametrize(
    "words", [["append", "s", "T", "@PIPE"], ["snapshot", "b", "s", "3", "--record", "@PIPE"]]
)
async def test_ctrl_c_ends_a_command_whose_input_does_not_come(
    words: list[str], tmp_path: Path
) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cluster", *words[:-1], f"@{pipe}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=PROJECT,
    )
    writers: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):  # nobody reads yet
            writers.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    try:
        await until(is_read, 20)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(5):
            assert (await process.communicate(), process.returncode) == ((b"", None), 130)
    finally:
        for writer in writers:
            os.close(writer)
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_a_file_without_an_end_is_not_held_in_memory(exesdb: Exesdb) -> None:
    ended = await exesdb(None, "append", "s", "T", "@/dev/zero", "--bytes")
    words = "data: /dev/zero is longer than 16,777,216 bytes"
    assert ended == (64, "", f"exesdb append: wrong_usage: {words}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_an_append_of_lines_with_what_was_stored(number: int) -> None:
    async with serving({("POST", f"{STORE}/append"): (201, STORED)}) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cluster", "append", "--lines", "-", "--url", server.url),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=PROJECT,
        )
        assert process.stdin is not None
        process.stdin.write(b'{"event_type": "T", "stream": "s"}\n')
        async with asyncio.timeout(20):
            await until(lambda: server.bodies, 20)
            server.answers[("POST", f"{STORE}/append")] = (504, {"code": "outcome_unknown"})
            process.stdin.write(b'{"event_type": "T", "stream": "s"}\n')
            await until(lambda: len(server.bodies) == 2)
            process.send_signal(number)
            out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"stored 1 events, the last at position 7\n")
    words = b"lines 2 to 2 are perhaps stored, and nothing behind them"
    assert err == b"exesdb append: interrupted: " + words + b"\n"


async def test_who_interrupts_an_append_is_told_what_is_perhaps_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tmp_path / "lines").write_text("\n" + '{"event_type": "T"}\n' * 3)
    reply = (504, {"code": "outcome_unknown", "detail": "so it is"})
    paths = (f"{STORE}/streams/s/events", f"{STORE}/append")
    async with serving({("POST", path): reply for path in paths}) as server:
        where = ("--url", server.url)

        async def interrupted(*words: str) -> str:
            options = append._parse(["s", *words, *where], "exesdb append")
            work = append._lines(options) if options.lines else append._one(options)
            task = asyncio.create_task(work)
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return capsys.readouterr().err

        begin = "exesdb append: interrupted: "
        lines = ("--lines", str(file))
        assert await interrupted(*lines) == (
            f"{begin}lines 2 to 4 are perhaps stored, and nothing behind them\n"
        )
        told = json.loads(await interrupted(*lines, "--json"))
        assert (told["lines"], told["stored"], len(told["event_ids"])) == ([2, 4], True, 3)
        event_id = "1ed53c4d-d914-47a1-b5eb-6b3caec1593f"
        assert await interrupted("T", "--id", event_id) == (
            f"{begin}perhaps stored; to repeat it safely: --id {event_id}\n"
        )


async def test_who_interrupts_an_append_before_anything_was_sent_is_told_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a node answers, but only that it cannot serve now."""
    between_tries = asyncio.Event()

    async def pause(*_: object) -> None:
        between_tries.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Attempts, "failed", pause)
    (file := tmp_path / "lines").write_text("\n" + '{"event_type": "T"}\n' * 3)
    refusal = (503, {"code": "no_leader", "detail": "so it is"})
    paths = (f"{STORE}/streams/s/events", f"{STORE}/append")
    async with serving({("POST", path): refusal for path in paths}) as server:
        for url in ("http://127.0.0.1:9", server.url):
            for words in (("T",), ("--lines", str(file))):
                options = append._parse(["s", *words, "--url", url, "--json"], "exesdb append")
                work = append._lines(options) if options.lines else append._one(options)
                task = asyncio.create_task(work)
                between_tries.clear()
                await asyncio.wait_for(between_tries.wait(), 5)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                told = json.loads(capsys.readouterr().err)
                assert (told["error"], told["stored"]) == ("interrupted", False)
                assert told.get("lines", [2, 4]) == [2, 4]
                assert ("not stored from line 2 on" in told["detail"]) == ("lines" in told)


async def test_events_are_written_as_utf_8_where_the_locale_knows_no_such_letters() -> None:
    page = {"events": [event(1, data="größe"), event(2)], "next": 2, "is_end": True}
    async with serving({("GET", f"{STORE}/events"): (200, page)}) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cluster", "read", "--json", "--url", server.url),
            stdout=subprocess.PIPE,
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT), "PYTHONIOENCODING": "ascii"},
        )
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert [json.loads(line)["data"] for line in out.splitlines()] == ["größe", {"n": 2}]


@pytest.mark.parametrize("words", [["read", "\udcff"], ["append", "s", "T", '"\udcff"']])
async def test_what_is_no_text_is_a_wrong_option(exesdb: Exesdb, words: list[str]) -> None:
    ended = await exesdb(None, *words)
    assert ended.code == 64 and "'\\udcff' is not UTF-8" in ended.err


def test_conditions_that_are_no_text_are_called_that(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", "--where", '{"path": "data", "equals": "\udcff"}']) == 64
    said = capsys.readouterr().err
    assert said == "exesdb read: wrong_usage: argument --where: is not UTF-8\n"


def test_the_figures_of_a_benchmark_can_be_json(capsys: pytest.CaptureFixture[str]) -> None:
    report = JsonReport()
    report.heading("append", "at 64 connections")
    report.progress("under way")
    report.table(["what", "events/s"], [["one", "9"], ["two", "8"]])
    report.verdict("append", "2.1 x", "2 x", met=True)
    said = capsys.readouterr()
    assert [json.loads(line) for line in said.out.splitlines()] == [
        {"heading": "append", "settings": "at 64 connections"},
        {
            "table": "append",
            "rows": [{"what": "one", "events/s": "9"}, {"what": "two", "events/s": "8"}],
        },
        {"verdict": "append", "value": "2.1 x", "target": "2 x", "met": True},
    ]
    assert "under way" in said.err


def test_a_program_learns_the_addresses_of_a_cluster_that_is_up() -> None:
    said = ready_line(topology.local(2, Path("/d")), "orders")
    assert said["store"] == "orders"
    assert said["nodes"][1] == {"id": "n2", "url": "http://127.0.0.1:8102", "data_dir": "/d/n2"}


def snapshot(version: int) -> dict[str, Any]:
    return {
        "source_uuid": "billing",
        "stream_uuid": "s/1",
        "source_version": version,
        "source_type": "Order",
        "created_at": "1970-01-01T00:00:01.000000Z",
        "created_epoch": 1_000_000,
        "data": {"total": version},
        "metadata": None,
    }


async def test_snapshots_are_read_recorded_listed_and_deleted(exesdb: Exesdb) -> None:
    series = f"{STORE}/snapshots/billing/s/1"  # the fake sees what was decoded
    answers: dict[tuple[str, str], tuple[int, Any]] = {
        ("GET", series): (200, {"snapshots": [snapshot(40)], "next": None}),
        ("GET", f"{series}/30"): (200, snapshot(30)),
        ("PUT", f"{series}/30"): (201, snapshot(30)),
        ("DELETE", f"{series}/30"): (204, ""),
        ("GET", f"{STORE}/snapshots"): (200, {"snapshots": [snapshot(1)] * 2, "next": None}),
    }
    async with serving(answers) as server:
        code, out, _ = await exesdb(server, "snapshot", "billing", "s/1", "--up-to", "45")
        assert code == 0 and out.split()[1:] == ["billing", "s/1@40", "Order", '{"total":40}']
        assert server.asked[-1][1] == {"max_version": "45"}
        code, out, _ = await exesdb(server, "snapshot", "billing", "s/1", "30", "--json")
        assert code == 0 and json.loads(out) == snapshot(30)
        ended = await exesdb(server, "snapshot", "billing", "s/1", "30", "--record", '{"t": 1}')
        assert ended.code == 0 and ended.out.endswith("recorded\n")
        assert (await exesdb(server, "snapshot", "billing", "s/1", "30", "--delete")).code == 0
        assert server.asked[-1][0] == f"DELETE {series}/30"
        listed = await exesdb(server, "snapshot", "--list", "--json")
        assert [json.loads(line) for line in listed.out.splitlines()] == [snapshot(1)] * 2


async def test_no_snapshot_is_exit_4(exesdb: Exesdb) -> None:
    missing = {"code": "snapshot_not_found", "detail": "none", "status": 404}
    answers: dict[tuple[str, str], tuple[int, Any]] = {
        ("GET", f"{STORE}/snapshots/b/s"): (200, {"snapshots": [], "next": None}),
        ("GET", f"{STORE}/snapshots/b/s/3"): (404, missing),
    }
    async with serving(answers) as server:
        for words in (["b", "s"], ["b", "s", "3"]):
            code, out, err = await exesdb(server, "snapshot", *words)
            assert (code, out) == (4, "") and "snapshot_not_found" in err


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node() as served:
        yield served


async def test_a_persistent_subscription_from_its_making_to_its_end(
    exesdb: Exesdb, node: Node
) -> None:
    async def run(*words: str) -> Ended:
        return await exesdb(f"127.0.0.1:{node.port}", *words, "--store", "main")

    await node.append("order-1", 2)
    await node.append("other")
    bounds = ("--max-retries", "0", "--ack-timeout-ms", "5000")
    for _ in range(2):
        made = await run("subscriptions", "create", "a/b", "--prefix", "order-", *bounds)
        assert made == (0, "there is: a/b\n", "")
    assert (await run("subscriptions", "create", "a/b")).code == 3
    one = json.loads((await run("subscriptions", "--json")).out)
    shown = json.loads((await run("subscriptions", "show", "a/b", "--json")).out)
    assert one == shown
    assert (one["name"], one["max_retries"], one["ack_timeout_ms"]) == ("a/b", 0, 5_000)
    listed = (await run("subscriptions")).out.splitlines()
    assert listed[1].split() == ["3", "0", "0", "no", "a/b"]

    words = ("subscribe", "--persistent", "a/b", "--json", "--limit", "1", "--consumer", "me")
    for number in range(2):
        code, out, err = await run(*words)
        assert (code, err, json.loads(out)["event_number"]) == (0, "", number)
    shown = (await run("subscriptions", "show", "a/b")).out
    assert "totals.acked" in shown and "lag" in shown
    lines = dict(line.split(None, 1) for line in shown.splitlines())
    assert lines["filter.stream_prefix"] == '"order-"' and lines["filter.stream"] == "any"

    await node.append("order-1")
    fetched = await node.ask("POST", f"{NAMED}/fetch", json={"consumer": "me"})
    ids = [delivery["delivery_id"] for delivery in fetched.body["events"]]
    await node.ask("POST", f"{NAMED}/nack", json={"delivery_ids": ids})
    parked = await run("subscriptions", "parked", "a/b")
    assert "parked after its retries, last with me" in parked.out
    said = json.loads((await run("subscriptions", "parked", "a/b", "--json")).out)
    assert (said["position"], said["attempts"]) == (4, 1)
    assert "once more: 0" in (await run("subscriptions", "replay", "a/b", "7")).out
    assert "once more: 1" in (await run("subscriptions", "replay", "a/b")).out
    assert (await run("subscriptions", "delete", "a/b")).out == "deleted: a/b\n"
    for words in (("subscriptions", "show", "a/b"), ("subscribe", "--persistent", "a/b")):
        assert (await run(*words)).code == 4


async def test_a_stream_without_events_is_read_as_an_empty_one(exesdb: Exesdb, node: Node) -> None:
    """As in the API; a store that is not there is another matter."""
    for words in (("read", "nothing"), ("tail", "nothing")):
        url = f"127.0.0.1:{node.port}"
        assert await exesdb(url, *words, "--store", "main") == (0, "", "")
        assert (await exesdb(url, *words, "--store", "nowhere")).code == 4
