"""The peer that appends are measured beside: etcd, three members on this machine, in its defaults.

etcd keeps small values in a Raft log of three nodes, as we do, and is what people know. One thing
differs and is the point of the comparison: before etcd answers, a majority has synced the entry to
disk; our default answer comes from the memory of a majority. The report says so.

Its load comes from a small Go program (closed loop over clientv3, unique keys, 256-byte values),
because wrk does not speak gRPC. It is given with --etcd-bench, or built from source if that is
beside the project and Go is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cluster.bench.ports import free_ports
from cluster.bench.wrk import Load, Outcome

MEMBERS = 3
SOURCE = Path(__file__).resolve().parents[3] / "shared" / "peers" / "etcdbench" / "main.go"

START_LIMIT_S = 30
STOP_LIMIT_S = 10
BUILD_LIMIT_S = 300
WARM_UP_S = 2
"""The load generator's own: it counts nothing before."""
_GRACE_S = 30
_QUOTA_BYTES = 8 << 30


class EtcdMissing(Exception):
    """etcd or its load generator is not here; the message says what to install."""


def find_generator(given: Path | None) -> Path:
    """Return the load generator's program, built if need be. Raises EtcdMissing."""
    if shutil.which("etcd") is None:
        raise EtcdMissing("etcd is not installed; on Debian: apt-get install etcd-server")
    if given is not None:
        if not os.access(given, os.X_OK):
            raise EtcdMissing(f"{given} is not a program")
        return given
    cached = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ex-esdb"
    program = cached / "etcdbench"
    if not program.exists():
        _build(program)
    return program


def _build(program: Path) -> None:
    if not SOURCE.exists():
        raise EtcdMissing(f"no load generator: neither --etcd-bench PATH nor {SOURCE}")
    if shutil.which("go") is None:
        raise EtcdMissing(
            "cannot build the load generator; on Debian: apt-get install golang-go"
            " golang-etcd-server-dev"
        )
    program.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "GO111MODULE": "off",
        "GOPATH": "/usr/share/gocode",
        "GOCACHE": str(program.parent / "go-build"),
    }
    command = ["go", "build", "-o", str(program), str(SOURCE)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=BUILD_LIMIT_S
    )
    if done.returncode != 0:
        raise EtcdMissing(f"cannot build the load generator: {done.stderr.strip()}")


@contextmanager
def running() -> Iterator[str]:
    """Run a fresh cluster, data and all; yield the leader's client address, `host:port`."""
    ports = free_ports(2 * MEMBERS)
    clients, peers = ports[:MEMBERS], ports[MEMBERS:]
    members = ",".join(f"m{n}=http://127.0.0.1:{port}" for n, port in enumerate(peers))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-etcd-")))
        for number, (client, peer) in enumerate(zip(clients, peers, strict=True)):
            stack.enter_context(_member(f"m{number}", directory, client, peer, members))
        yield _await_leader(clients)


@contextmanager
def _member(name: str, directory: Path, client: int, peer: int, members: str) -> Iterator[None]:
    command = [
        "etcd",
        f"--name={name}",
        f"--data-dir={directory / name}",
        f"--initial-cluster={members}",
        "--initial-cluster-state=new",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--quota-backend-bytes={_QUOTA_BYTES}",
        "--log-level=error",
    ]
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_leader(clients: Sequence[int]) -> str:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        for port in clients:
            if _leads(port):
                return f"127.0.0.1:{port}"
        time.sleep(0.1)
    raise RuntimeError(f"etcd elected no leader within {START_LIMIT_S} s")


def _leads(port: int) -> bool:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v3/maintenance/status", data=b"{}", method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=1) as response:
            status = json.load(response)
    except OSError:
        return False
    return bool(status.get("leader") == status["header"]["member_id"])


def load(generator: Path, leader: str, what: Load, prefix: str) -> Outcome:
    """Put values at the leader; a batch of more than one is one transaction."""
    done = subprocess.run(
        [
            str(generator),
            f"-endpoints={leader}",
            f"-c={what.connections}",
            f"-batch={what.batch}",
            f"-d={what.seconds}s",
            f"-prefix={prefix}",
        ],
        capture_output=True,
        text=True,
        timeout=what.seconds + WARM_UP_S + _GRACE_S,
    )
    seen = dict(re.findall(r"(\S+)=([\d.]+)", done.stdout))
    if "events/s" not in seen:
        raise RuntimeError(f"{generator} did not report: {done.stdout} {done.stderr}")
    return Outcome(
        events_per_s=float(seen["events/s"]),
        p50_ms=float(seen["p50"]),
        p99_ms=float(seen["p99"]),
        max_ms=float(seen["max"]),
        events=round(float(seen["events/s"]) * what.seconds),
        failed=int(seen["errs"]),
    )
