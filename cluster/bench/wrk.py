"""Load from wrk, an HTTP load generator in C: on a small machine a Python one would measure itself.

Each run gets a Lua script written here. Every event of every run has its own event id and its own
payload, because a repeated id would be answered from memory as a retry and measure nothing.
The script reports as one line of JSON, with wrk's own latency histogram.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cbor2

DATA_BYTES = 256
STREAMS_PER_THREAD = 50
_MARK = "REPORT "
_GRACE_S = 30
_NOTE = "please deliver to the back door, ring twice; "

# The ids are UUIDs in form: run and thread first, then a count that a run cannot use up.
# `pieces` is one encoded event, cut where its id and its order number go.
_SCRIPT = """
local run, batch, streams = %(run)d, %(batch)d, %(streams)d
local pieces, before, between, after = {%(pieces)s}, %(before)s, %(between)s, %(after)s
local headers = {["Content-Type"] = "%(content_type)s"}
local path = "/v1/stores/%(store)s/streams/order-"
local threads = {}
function setup(thread)
  thread:set("tid", #threads + 1)
  table.insert(threads, thread)
end

local count = 0
local function event()
  count = count + 1
  local id = string.format("%%08x-%%04x-4000-8000-%%012x", run, tid, count)
  return pieces[1] .. id .. pieces[2] .. string.format("%%010d", count) .. pieces[3]
end

function request()
  local events = {}
  for i = 1, batch do events[i] = event() end
  local stream = path .. run .. "-" .. tid .. "-" .. (count %% streams) .. "/events"
  return wrk.format("POST", stream, headers, before .. table.concat(events, between) .. after)
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n%(mark)s{"requests": %%d, "duration_us": %%d, "p50_us": %%d, ' ..
    '"p99_us": %%d, "max_us": %%d, "refused": %%d, "broken": %%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    latency.max, e.status, e.connect + e.read + e.write + e.timeout))
end
"""

_ID_PLACE = "i" * 36
_ORDER_PLACE = "o" * 10


class WrkMissing(Exception):
    """wrk is not installed."""


class Load(NamedTuple):
    """What to send: wrk's connections, events in a request, and for how long."""

    connections: int
    batch: int
    seconds: int
    content_type: Literal["application/json", "application/cbor"] = "application/json"


class Outcome(NamedTuple):
    """What one run of wrk saw."""

    events_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    events: int
    failed: int
    """Requests that were refused or broke off. More than 0 makes the other figures doubtful."""


_runs = itertools.count(1)


def require_wrk() -> None:
    """Raise WrkMissing with what to do about it."""
    if shutil.which("wrk") is None:
        raise WrkMissing("wrk is not installed; on Debian: apt-get install wrk")


def run(address: str, store: str, load: Load) -> Outcome:
    """Append to `store` at the node at `address`, each connection as fast as it is answered."""
    require_wrk()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "append.lua"
        file.write_text(_script(store, load))
        done = subprocess.run(
            [
                "wrk",
                f"-t{min(2, load.connections)}",
                f"-c{load.connections}",
                f"-d{load.seconds}s",
                "--timeout=10s",
                "-s",
                str(file),
                address,
            ],
            capture_output=True,
            text=True,
            timeout=load.seconds + _GRACE_S,
        )
    return _outcome(done.stdout + done.stderr, load.batch)


def _script(store: str, load: Load) -> str:
    if load.content_type == "application/json":
        event = json.dumps(event_template(), separators=(",", ":")).encode()
        before, between, after = b'{"events":[', b",", b"]}"
    else:
        event = cbor2.dumps(event_template())
        before, between, after = cbor_events_head(load.batch), b"", b""
    pieces = re.split(f"{_ID_PLACE}|{_ORDER_PLACE}".encode(), event)
    return _SCRIPT % {
        "run": next(_runs),
        "batch": load.batch,
        "store": store,
        "streams": STREAMS_PER_THREAD,
        "content_type": load.content_type,
        "pieces": ", ".join(map(_lua_string, pieces)),
        "before": _lua_string(before),
        "between": _lua_string(between),
        "after": _lua_string(after),
        "mark": _MARK,
    }


def event_template(event_id: str = _ID_PLACE, order: str = _ORDER_PLACE) -> dict[str, Any]:
    """Return an event whose data is an order, DATA_BYTES long in JSON."""
    data = {
        "order": order,
        "customer": "c-123456",
        "lines": [
            {"sku": "ABC-1", "qty": 2, "price": 1299},
            {"sku": "XYZ-9", "qty": 1, "price": 499},
        ],
        "note": "",
    }
    padding = DATA_BYTES - len(json.dumps(data, separators=(",", ":")))
    data["note"] = (_NOTE * DATA_BYTES)[:padding]
    return {"event_id": event_id, "event_type": "OrderPlaced", "data": data}


def cbor_events_head(events: int) -> bytes:
    """Return what stands before the encoded events in a CBOR body `{"events": [..]}`."""
    return b"\xa1" + cbor2.dumps("events") + b"\x99" + events.to_bytes(2, "big")


def _lua_string(content: bytes) -> str:
    return '"' + "".join(f"\\{byte:03d}" for byte in content) + '"'


def _outcome(output: str, batch: int) -> Outcome:
    line = next((line for line in output.splitlines() if line.startswith(_MARK)), None)
    if line is None:
        raise RuntimeError(f"wrk did not report: {output.strip()}")
    seen = json.loads(line.removeprefix(_MARK))
    failed = seen["refused"] + seen["broken"]
    events = (seen["requests"] - seen["refused"]) * batch
    return Outcome(
        events_per_s=events / (seen["duration_us"] / 1e6),
        p50_ms=seen["p50_us"] / 1e3,
        p99_ms=seen["p99_us"] / 1e3,
        max_ms=seen["max_us"] / 1e3,
        events=events,
        failed=failed,
    )
