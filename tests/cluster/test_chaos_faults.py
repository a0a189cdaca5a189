"""What a chaos run does to nodes: links that fail one way, rules of loss, damage, and its logs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import cbor2
import pytest

from cluster.chaos import faults, ground
from cluster.chaos.faults import damage
from cluster.chaos.links import Links
from cluster.chaos.rules import Losses
from cluster.chaos.watch import Pulse, logs_tell

HOST = "127.0.0.1"
GREETING = cbor2.dumps(["magic", 1, "a cluster", "n2", "n1", 7, b"nonce"])
SHORT_S = 0.1


class Pair:
    """n2, which dialled n1 through a link; each side can speak and listen."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.Queue()
        )
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._accept, HOST, 0)
        self.links = Links({"n1": self.server.sockets[0].getsockname()[1], "n2": 0})
        self.address = (await self.links.start())["n1"]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.accepted.put_nowait((reader, writer))

    async def dial(
        self, greeting: bytes = GREETING
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(len(greeting).to_bytes(4, "big") + greeting)
        self._writers.append(writer)
        return reader, writer

    async def taken(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """What n1 accepted, once the greeting has come through."""
        async with asyncio.timeout(5):
            reader, writer = await self.accepted.get()
            assert (await reader.readexactly(4 + len(GREETING)))[4:] == GREETING
        return reader, writer

    async def stop(self) -> None:
        await self.links.stop()
        self.server.close()
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    await pair.start()
    try:
        yield pair
    finally:
        await pair.stop()


async def heard(reader: asyncio.StreamReader) -> bytes | None:
    """The next bytes, or None if there are none for a moment."""
    with contextlib.suppress(TimeoutError):
        return await asyncio.wait_for(reader.read(100), SHORT_S)
    return None


async def test_a_link_carries_both_ways(pair: Pair) -> None:
    reader, writer = await pair.dial()
    far_reader, far_writer = await pair.taken()
    writer.write(b"there")
    far_writer.write(b"back")
    assert await far_reader.readexactly(5) == b"there"
    assert await reader.readexactly(4) == b"back"


async def test_one_direction_can_be_silenced_and_what_waited_is_delivered_after_it(
    pair: Pair,
) -> None:
    reader, writer = await pair.dial()
    far_reader, far_writer = await pair.taken()
    (way,) = pair.links.ways(["n2"], ["n1"])
    way.silence()
    writer.write(b"there")
    far_writer.write(b"back")

    assert await reader.readexactly(4) == b"back"
    assert await heard(far_reader) is None
    assert not pair.links.connected("n1", "n2")

    way.end_silence()
    assert await far_reader.readexactly(5) == b"there"
    assert pair.links.connected("n1", "n2")


async def test_nobody_gets_through_anew_while_one_direction_is_silent(pair: Pair) -> None:
    (way,) = pair.links.ways(["n1"], ["n2"])
    way.silence()
    await pair.dial()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pair.accepted.get(), SHORT_S)
    way.end_silence()
    await pair.taken()


@pytest.mark.parametrize("greeting", [b"x", cbor2.dumps(["n3", "n1"]), bytes(2_000)])
async def test_a_stranger_does_not_get_through(pair: Pair, greeting: bytes) -> None:
    reader, _ = await pair.dial(greeting)
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(1), 5) == b""
    assert pair.accepted.empty()


async def test_a_reset_breaks_the_connection_on_both_sides(pair: Pair) -> None:
    reader, _ = await pair.dial()
    far_reader, _ = await pair.taken()
    pair.links.reset(["n1"])
    for side in (reader, far_reader):
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(side.read(1), 5) == b""


async def test_a_fault_that_cannot_be_carried_out_is_a_violation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faults, "PAUSE_S", 0.001)
    here = SimpleNamespace(nodes={"n1": None}, disks=False, violations=[])
    drawn = faults.Faults(here, Losses(1, False), random.Random(1))  # type: ignore[arg-type]
    stop = asyncio.Event()

    async def strike(_: random.Random) -> None:
        stop.set()
        raise RuntimeError("no such disk")

    drawn._kinds = {"full disk": faults._Kind(1, strike)}
    async with asyncio.timeout(5):
        await drawn.run(stop)
    assert len(here.violations) == 1 and "no such disk" in here.violations[0]


async def test_a_node_that_cannot_be_watched_until_it_is_whole_is_a_violation() -> None:
    async def ask(*_: str) -> None:
        raise RuntimeError("no such node")

    here = SimpleNamespace(nodes={"n1": None}, disks=False, violations=[], ask=ask)
    drawn = faults.Faults(here, Losses(1, False), random.Random(1))  # type: ignore[arg-type]
    drawn._heal({"n1": 1})
    await asyncio.gather(*drawn._healing)
    assert len(here.violations) == 1 and "no such node" in here.violations[0]


async def test_a_node_that_cannot_be_started_again_is_a_violation() -> None:
    class Process:
        """One that ended by itself, and whose program is gone."""

        node, pid = SimpleNamespace(node_id="n1"), 7
        running = False

        async def start(self) -> None:
            if here.violations:
                raise FileNotFoundError("no such program")

        async def wait_ready(self, limit_s: float) -> None:
            pass

        async def wait_exit(self) -> int:
            return 1

    supervisor = SimpleNamespace(nodes={"n1": Process()})
    here = ground.Ground(supervisor, None, False, None)  # type: ignore[arg-type]
    await here.start("n1")
    await asyncio.gather(*here._watchers)
    assert len(here.violations) == 2 and "no such program" in here.violations[1]


def test_a_disk_is_made_full_though_its_node_goes_on_writing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    used, sizes = 1 << 20, []

    def mount(words: list[str]) -> bool:
        nonlocal used
        used += 40_000  # while it was asked, and the command began
        sizes.append(int(words[2].partition("size=")[2]))
        return sizes[-1] >= used

    monkeypatch.setattr(ground, "_run", mount)
    ground._resize(tmp_path, lambda _: used)
    assert len(sizes) == 2 and sizes[-1] - used < 2 * ground._ROOM_BYTES


def test_never_more_than_a_minority_counts_as_having_lost_its_memory() -> None:
    losses = Losses(members=5, kills_forget=False)
    first, _ = losses.lose("n1"), losses.lose("n2")
    assert not losses.may_lose("n3") and losses.may_lose("n1")
    assert losses.may_kill("n3")
    assert losses.whole("n1", first) and losses.may_lose("n3")


def test_a_node_that_loses_its_memory_again_is_not_whole_with_what_it_did_before() -> None:
    losses = Losses(members=3, kills_forget=True)
    first = losses.lose("n1")
    second = losses.lose("n1")
    assert not losses.whole("n1", first) and not losses.may_kill("n2")
    assert losses.whole("n1", second) and losses.may_kill("n2")


@pytest.mark.parametrize("seed", range(20))
def test_damage_changes_one_file_and_never_both_copies_of_the_state(
    seed: int, tmp_path: Path
) -> None:
    for name in ("stores", "tail"):
        (tmp_path / name).mkdir()
    stores = ("stores/a.1.db", "stores/a.1.db-wal")
    names = (*stores, "node.db", "tail/1-000001.tail", "state.1", "state.2", "lock")
    for name in names:
        (tmp_path / name).write_bytes(bytes(1_000))
    touched = damage(tmp_path, random.Random(seed))
    changed = [name for name in names if (tmp_path / name).read_bytes() != bytes(1_000)]
    assert touched is not None and changed == [str(touched.relative_to(tmp_path))]
    assert not {"state.2", "lock"} & set(changed)


def test_there_is_nothing_to_damage_in_an_empty_directory(tmp_path: Path) -> None:
    assert damage(tmp_path, random.Random(1)) is None


def test_a_pause_counts_only_while_a_majority_is_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr("cluster.chaos.watch.time.monotonic", lambda: clock[0])
    pulse = Pulse()
    for at, able in ((101, True), (103, True), (104, False), (120, True), (121, True)):
        clock[0] = at
        pulse.look(able)
    assert pulse.longest_s == 2
    pulse.acknowledged()
    clock[0] = 126
    pulse.look(True)
    assert pulse.longest_s == 5


def test_logs_tell_elections_once_a_term_and_what_must_not_be(tmp_path: Path) -> None:
    def line(message: str, **fields: str) -> str:
        entry = {"level": "info", "logger": "node.raft.replica", "message": message} | fields
        return json.dumps(entry) + "\n"

    (tmp_path / "n1.log").write_text(
        line("term 1, leader n1")
        + line("term 2, leader unknown")
        + line("recovered at index 7 in term 1")
        + line("raft alarm: two leaders", level="critical")
        + line("a step failed", exception="Traceback …")
        + "torn by kill -9"
    )
    (tmp_path / "n2.log").write_text(line("term 1, leader n1") + line("filled by n1 up to index 9"))
    told = logs_tell(sorted(tmp_path.glob("*.log")))
    assert told["elections"] == 1 and told["recoveries"] == 1 and told["fills"] == 1
    assert told["alarms"] == 1 and told["unexpected exceptions"] == 1
    assert told["lines that are no log"] == 1
