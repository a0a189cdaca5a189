"""The order in which a node comes up and goes down: what is done before it says a word, and after.

The node is a whole one, alone in its cluster; only its network and its HTTP port are watched ones.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import topology
from cluster.bench.ports import free_ports
from node.config.options import Config
from node.config.values import Address
from node.core import commands
from node.core.outcomes import Appended
from node.persistence.directory import DataDirectory
from node.persistence.faults import FileFault, OnlyCopyDamaged
from node.persistence.state_file import NodeIdentity, StateFile
from node.raft.messages import Message
from node.raft.ports import Listener
from node.raft.replica import EXIT_DIVERGED
from node.service import Info, Service, World
from tests.raft.harness import event

STORE = "main"


class Doors:
    """A node's network and HTTP port: `noted` has what was true when each opened and closed."""

    def __init__(self, look: Callable[[], Any]) -> None:
        self.counters: Counter[str] = Counter()
        self.noted: list[tuple[str, Any]] = []
        self.arrivals = self
        self._look = look

    def network(self, *_: Any) -> Any:
        return Network(self)

    def api(self, *_: Any) -> Any:
        return Api(self)

    def note(self, what: str) -> None:
        self.noted.append((what, self._look()))


class Network:
    """Sessions with nobody."""

    def __init__(self, doors: Doors) -> None:
        self.counters: Counter[str] = Counter()
        self._doors = doors

    async def start(self, _: Listener) -> None:
        self._doors.note("raft port opens")

    async def stop(self) -> None:
        self._doors.note("raft port closes")

    def reach(self, _: Any) -> None:
        """There is nobody to be reached."""

    def send(self, _: str, __: Message) -> bool:
        return False

    def is_connected(self, _: str) -> bool:
        return False

    def incarnation(self, _: str) -> int:
        return 0


class Api:
    """An HTTP port that nobody calls."""

    def __init__(self, doors: Doors) -> None:
        self.arrivals = self
        self._doors = doors

    def arrived(self, _: str) -> None:
        """Somebody would have been told."""

    async def start(self, _: str, __: int) -> None:
        self._doors.note("http port opens")

    async def stop(self) -> None:
        self._doors.note("http port closes")


class Node:
    """One start of the node on a directory."""

    def __init__(self, path: Path) -> None:
        self.doors = Doors(self._look)
        world = World(network=self.doors.network, api=self.doors.api)
        self.service = Service(
            Config(
                node_id="n1",
                store_id=STORE,
                raft_address=Address("n1", 1),
                http_address=Address("n1", 2),
                peers=(),
                cluster_secret="a secret for tests",
                data_dir=path,
                persistence_interval=3_600_000,
            ),
            world,
        )

    def _look(self) -> tuple[int, bool]:
        """How many events are in memory, and whether the stop counts as clean on the disk."""
        store = self.service._state.stores.get(STORE)
        kept = kept_of(self.service._directory)
        return store.position if store else 0, kept.clean

    async def append(self, *numbers: int) -> None:
        for number in numbers:
            command = commands.append(STORE, 1, "s", commands.ANY, [event(number)])
            outcome, _ = await self.service._replica.propose(command, 5000)
            assert isinstance(outcome, Appended)

    async def led(self) -> None:
        async with asyncio.timeout(10):
            while STORE not in self.service._state.stores:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)


def kept_of(directory: DataDirectory) -> NodeIdentity:
    kept = StateFile(directory).load()
    assert kept is not None
    return kept


async def lived(path: Path, *numbers: int) -> Node:
    """A node that started, took these events, and was stopped."""
    node = Node(path)
    await node.service.start()
    await node.led()
    await node.append(*numbers)
    assert await node.service.stop()
    return node


async def test_a_node_says_nothing_before_all_that_it_has_is_loaded(tmp_path: Path) -> None:
    """A10."""
    await lived(tmp_path, 1, 2, 3)
    again = await lived(tmp_path)
    assert again.doors.noted[:2] == [
        ("raft port opens", (3, False)),
        ("http port opens", (3, False)),
    ]


def test_an_interval_that_was_changed_at_run_time_is_told_with_its_source() -> None:
    status = {"interval_ms": 5000}
    info = Info(Config(), dict, lambda: status)
    assert info.config()["persistence_interval"]["source"] == "default"
    status["interval_ms"] = 1000
    told = info.config()["persistence_interval"]
    assert told == {"value": 1000, "source": "PUT /v1/persistence", "unit": "ms"}


async def test_a_node_that_cannot_load_what_it_has_opens_no_port(tmp_path: Path) -> None:
    """A10."""
    await lived(tmp_path, 1, 2, 3)
    database = tmp_path / "node.db"
    database.rename(tmp_path / "elsewhere")
    database.mkdir()  # it can be seen, but not opened: no damage, and no reason to begin anew
    node = Node(tmp_path)
    with pytest.raises(FileFault, match=r"node\.db"):
        await node.service.start()
    assert node.doors.noted == []
    database.rmdir()
    (tmp_path / "elsewhere").rename(database)
    assert (await lived(tmp_path)).doors.noted[0] == ("raft port opens", (3, False))


async def test_a_node_that_nobody_could_fill_does_not_begin_empty_after_damage(
    tmp_path: Path,
) -> None:
    await lived(tmp_path, 1, 2, 3)
    (database,) = (tmp_path / "stores").iterdir()
    content = database.read_bytes()
    database.write_bytes(bytes(100) + content[100:])
    for _ in range(2):  # not at the second try either
        node = Node(tmp_path)
        with pytest.raises(OnlyCopyDamaged, match=r"stores/main.*restore a backup"):
            await node.service.start()
        assert node.doors.noted == []
    database.write_bytes(content)
    assert (await lived(tmp_path)).doors.noted[0] == ("raft port opens", (3, False))


@pytest.mark.parametrize("door", [Network, Api])
async def test_a_port_that_cannot_be_opened_is_named_by_its_option(
    door: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: Any) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(door, "start", refused)
    node = Node(tmp_path)
    named = "raft_address n1:1: " if door is Network else "http_address n1:2: "
    with pytest.raises(OSError, match=named):
        await node.service.start()
    await node.service._worker.stop()
    await node.service._replica.stop()


async def test_a_stop_is_clean_only_when_the_node_has_fallen_silent(tmp_path: Path) -> None:
    node = await lived(tmp_path, 1, 2)
    assert node.doors.noted[2:] == [
        ("http port closes", (2, False)),
        ("raft port closes", (2, False)),
    ]
    with DataDirectory(tmp_path) as directory:
        assert kept_of(directory).clean


@pytest.mark.parametrize("failing", ["the last cycle", "the tail"])
async def test_a_stop_that_cannot_write_everything_is_not_clean(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path)
    await node.service.start()
    await node.led()
    await node.append(1)
    if failing == "the tail":
        close = node.service._tail.close
        monkeypatch.setattr(node.service._tail, "close", lambda: close() and False)
    else:
        stop = node.service._worker.stop

        async def fail() -> bool:
            await stop(final_cycle=False)
            return False

        monkeypatch.setattr(node.service._worker, "stop", fail)
    assert not await node.service.stop()
    with DataDirectory(tmp_path) as directory:
        assert not kept_of(directory).clean
    again = await lived(tmp_path)
    assert again.service._state.stores[STORE].position == 1, "it was in the log's tail"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_node_runs_ends_it_as_a_stop_does(tmp_path: Path, number: int) -> None:
    """Where it is a container's first process, one without a handler would not be heard."""
    program = [sys.executable, "-X", "importtime", "-m", "node", "--data-dir", str(tmp_path / "n")]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "asyncio" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        process.stderr.read()
        assert process.wait(30) == 0
    assert not (tmp_path / "n").exists()


_DEFECTIVE = """
from node.__main__ import main
from node.core.state import State

whole = State.apply

def apply(self, index, term, commands):
    whole(self, index, term, commands)
    if commands:
        raise AssertionError("a defect")

State.apply = apply
main()
"""


def test_a_node_that_cannot_apply_an_entry_ends_and_says_so(tmp_path: Path) -> None:
    """It would hold another state than the others and call it the same."""
    http_port, raft_port = free_ports(2)
    (node,) = topology.local(1, tmp_path, http_port=http_port, raft_port=raft_port).nodes
    program = [sys.executable, "-c", _DEFECTIVE, *node.argv[len(node.program) :]]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert ended.returncode == EXIT_DIVERGED == 71
    assert "could not be applied, the process ends" in ended.stderr
    assert "AssertionError: a defect" in ended.stderr
