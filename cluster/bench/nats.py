"""The peer that pipelined appends are measured beside: NATS JetStream, three replicas in memory.

It acknowledges a message when a majority has it in memory, which is what our default answer says,
too. Its load comes from a small Go program (a closed loop of requests for an ack over at most eight
connections, 256-byte messages), given with --nats-bench, or built from source if that is beside the
project and Go and its NATS library are installed. The stream is made by the few words of the NATS
protocol that this takes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cluster.bench.ports import free_ports

SERVERS = 3
SOURCE = Path(__file__).resolve().parents[3] / "shared" / "peers" / "natsbench" / "main.go"
STREAM = "bench"

START_LIMIT_S = 30
BUILD_LIMIT_S = 300
WARM_UP_S = 2
"""The load generator's own: it counts nothing before."""
_STOP_LIMIT_S = 10
_ANSWER_LIMIT_S = 5
_GRACE_S = 30
_INBOX = "_INBOX.bench"


class NatsMissing(Exception):
    """NATS or its load generator is not here; the message says what to install."""


class Running(NamedTuple):
    """A cluster: its stream's leader, and the numbers of its processes."""

    leader: str
    pids: Sequence[int]


def find_generator(given: Path | None) -> Path:
    """Return the load generator's program, built if need be. Raises NatsMissing."""
    if shutil.which("nats-server") is None:
        raise NatsMissing("NATS is not installed; on Debian: apt-get install nats-server")
    if given is not None:
        if not os.access(given, os.X_OK):
            raise NatsMissing(f"{given} is not a program")
        return given
    cached = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ex-esdb"
    program = cached / "natsbench"
    if not program.exists():
        _build(program)
    return program


def _build(program: Path) -> None:
    if not SOURCE.exists():
        raise NatsMissing(f"no load generator: neither --nats-bench PATH nor {SOURCE}")
    wanted = "apt-get install golang-go golang-github-nats-io-go-nats-dev"
    if shutil.which("go") is None:
        raise NatsMissing(f"cannot build the load generator; on Debian: {wanted}")
    program.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "GO111MODULE": "off",
        "GOPATH": "/usr/share/gocode",
        "GOCACHE": str(program.parent / "go-build"),
    }
    done = subprocess.run(
        ["go", "build", "-o", str(program), str(SOURCE)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_LIMIT_S,
    )
    if done.returncode != 0:
        raise NatsMissing(f"cannot build the load generator; on Debian: {wanted}\n{done.stderr}")


@contextmanager
def running() -> Iterator[Running]:
    """Run a fresh cluster with one stream of three replicas in memory."""
    ports = free_ports(2 * SERVERS)
    clients, peers = ports[:SERVERS], ports[SERVERS:]
    routes = ", ".join(f"nats://127.0.0.1:{port}" for port in peers)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-nats-")))
        pids = [
            stack.enter_context(_server(f"s{number}", directory, client, peer, routes))
            for number, (client, peer) in enumerate(zip(clients, peers, strict=True))
        ]
        leader = _await_stream(clients)
        yield Running(f"nats://127.0.0.1:{clients[int(leader[1:])]}", pids)


@contextmanager
def _server(name: str, directory: Path, client: int, peer: int, routes: str) -> Iterator[int]:
    settings = directory / f"{name}.conf"
    settings.write_text(
        f"server_name: {name}\nlisten: 127.0.0.1:{client}\n"
        f'jetstream {{ store_dir: "{directory / name}", max_mem: 8G, max_file: 1G }}\n'
        f"cluster {{ name: bench, listen: 127.0.0.1:{peer}, routes: [{routes}] }}\n"
    )
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(["nats-server", "-c", str(settings)], stdout=log, stderr=log)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_stream(clients: Sequence[int]) -> str:
    """Make the stream, and return the name of the server that leads it."""
    wanted = {"name": STREAM, "subjects": ["ev.>"], "storage": "memory", "num_replicas": SERVERS}
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        try:
            _ask(clients[0], f"$JS.API.STREAM.CREATE.{STREAM}", wanted)
            found = _ask(clients[0], f"$JS.API.STREAM.INFO.{STREAM}", None)
        except OSError:
            found = {}
        leader: str | None = found.get("cluster", {}).get("leader")
        if leader:
            return leader
        time.sleep(0.2)
    raise RuntimeError(f"NATS made no stream within {START_LIMIT_S} s")


def _ask(port: int, subject: str, body: Any) -> dict[str, Any]:
    """Send one request and return its answer. Raises OSError."""
    payload = b"" if body is None else json.dumps(body).encode()
    with (
        socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_LIMIT_S) as connection,
        connection.makefile("rwb") as stream,
    ):
        stream.write(b'CONNECT {"verbose":false}\r\nSUB %b 1\r\n' % _INBOX.encode())
        head = f"PUB {subject} {_INBOX} {len(payload)}\r\n".encode()
        stream.write(head + payload + b"\r\n")
        stream.flush()
        for line in stream:
            if line.startswith(b"MSG"):
                found: dict[str, Any] = json.loads(stream.read(int(line.split()[-1])))
                return found
            if line.startswith(b"PING"):
                stream.write(b"PONG\r\n")
                stream.flush()
    raise ConnectionResetError(f"no answer to {subject}")


def load(generator: Path, leader: str, under_way: int, seconds: int) -> dict[str, float]:
    """Publish to the leader; `events_per_s`, `p50_ms`, `p99_ms`, `failed`."""
    done = subprocess.run(
        [str(generator), f"-url={leader}", f"-c={under_way}", f"-d={seconds}s"],
        capture_output=True,
        text=True,
        timeout=seconds + WARM_UP_S + _GRACE_S,
    )
    seen = dict(re.findall(r"(\w+)=([\d.]+)", done.stdout))
    if "events_s" not in seen:
        raise RuntimeError(f"{generator} did not report: {done.stdout} {done.stderr}")
    return {
        "events_per_s": float(seen["events_s"]),
        "p50_ms": float(seen["p50_ms"]),
        "p99_ms": float(seen["p99_ms"]),
        "failed": float(seen["errs"]),
    }
