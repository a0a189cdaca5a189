"""Whole replicas over real sockets: nothing that comes in is ever unpickled (A19-A21)."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import random
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import cbor2
import pysyncobj.pickle as library_pickle
import pytest
from pysyncobj.tcp_connection import TcpConnection
from pysyncobj.transport import TCPTransport

from node.core import commands
from node.core.outcomes import Appended, StoreCreated
from node.core.state import State
from node.raft import messages
from node.raft.lineage import Lineage
from node.raft.ports import RaftSettings, StartingPoint
from node.raft.replica import Replica
from node.raft.session import Identity
from node.raft.transport import Transport
from tests.raft.harness import STORE, event
from tests.raft.solo import Disk
from tests.raft.wire import CLUSTER, SECRET, STANDING, Hand, free_port, until

IDS = ("n1", "n2", "n3")


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Records every use of a pickle, of the library's sockets, and every new thread."""
    used: list[str] = []

    def watch(what: str) -> Any:
        def refuse(*_: Any, **__: Any) -> Any:
            used.append(what)
            raise AssertionError(what)

        return refuse

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, watch(f"pickle.{name}"))
        if hasattr(library_pickle, name):
            monkeypatch.setattr(library_pickle, name, watch(f"pysyncobj.pickle.{name}"))
    monkeypatch.setattr(TCPTransport, "__init__", watch("TCPTransport"))
    monkeypatch.setattr(TcpConnection, "__init__", watch("TcpConnection"))
    threads = set(threading.enumerate())
    yield used
    assert used == []
    assert set(threading.enumerate()) <= threads, "no thread was left behind"


def replica(node_id: str, ports: dict[str, int]) -> Replica:
    """A new node that has forgotten nothing, on its port."""
    addresses = {one: f"127.0.0.1:{port}" for one, port in ports.items()}
    settings = RaftSettings(
        node_id=node_id,
        raft_address=addresses[node_id],
        raft_advertise_address=addresses[node_id],
        http_address="127.0.0.1:1",
        peers={one: address for one, address in addresses.items() if one != node_id},
        secret=SECRET,
    )
    lineage = Lineage(lambda: STANDING, lambda _: None)
    transport = Transport(settings, Identity(node_id, CLUSTER, 1, SECRET, lineage))
    start = StartingPoint(1, 0, None, 0, 0, forgetful=False)
    return Replica(settings, transport, start, State(), Disk(), lambda: False, lambda: 0)


@contextlib.asynccontextmanager
async def cluster() -> AsyncIterator[tuple[dict[str, Replica], dict[str, int]]]:
    """Three replicas and a store."""
    ports = {node_id: free_port() for node_id in IDS}
    nodes = {node_id: replica(node_id, ports) for node_id in IDS}
    for node in nodes.values():
        await node.start()
    await until(lambda: any(not node.not_ready_reasons() for node in nodes.values()), 10)
    outcome, _ = await nodes["n1"].propose(commands.create_store(STORE, 1), 5000)
    assert isinstance(outcome, StoreCreated)
    try:
        yield nodes, ports
    finally:
        for node in nodes.values():
            await node.stop()
        await asyncio.sleep(0.02)


def append(number: int) -> bytes:
    """An append of one event."""
    return commands.append(STORE, 1, "s", commands.ANY, [event(number)])


async def test_a_cluster_takes_garbage_and_every_message_and_goes_on(no_pickle: list[str]) -> None:
    seed = 77
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with cluster() as (nodes, ports):
        for node_id in IDS:
            for _ in range(20):
                async with await Hand.dial(ports[node_id]) as hand:
                    hand.raw(chance.randbytes(200))
                async with await Hand.dial(ports[node_id]) as hand:
                    hand.frame(pickle.dumps({"type": "append_entries"}))
        outcomes = await asyncio.gather(
            *(nodes[IDS[at % 3]].propose(append(at + 1), 5000) for at in range(60))
        )
        assert all(isinstance(outcome, Appended) for outcome, _ in outcomes)
        index = max(index for _, index in outcomes)
        for node in nodes.values():
            await node.wait_applied(index, 5000)
            assert node.state.stores[STORE].position == 60
            assert node.alarms == []
            node.state.check()


async def test_a_member_gone_mad_stops_no_node_with_any_message(no_pickle: list[str]) -> None:
    """It knows the secret, and says every kind of message with fields that make no sense."""
    seed = 78
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with cluster() as (nodes, ports):
        await nodes["n3"].stop()
        async with await Hand.dial(ports["n1"]) as hand:
            assert await hand.greet(sender="n3", incarnation=2)
            hand.say([hand.prove()])
            for _ in range(400):
                hand.frame(_mad(chance))
            gossip = messages.Gossip("follower", 0, 1, 1, 987, "mad:1", "mad:2")
            hand.message(gossip)
            said = {member.id: member for member in nodes["n1"].status().members}
            await until(lambda: _persisted(nodes["n1"], "n3") == 987)
            assert said["n3"].id == "n3"
        outcome, _ = await nodes["n1"].propose(append(1), 5000)
        assert isinstance(outcome, Appended)
        nodes["n1"].state.check()


async def test_what_comes_with_the_end_of_the_handshake_is_heard_of_the_new_life() -> None:
    """What an earlier life said is forgotten; the words of the new one come after that."""
    async with cluster() as (nodes, ports):
        await nodes["n3"].stop()
        async with await Hand.dial(ports["n1"]) as hand:
            assert await hand.greet(sender="n3", incarnation=2)
            gossip = messages.Gossip("follower", 0, 1, 1, 987, "new:1", "new:2")
            hand.together([hand.prove()], gossip)
            await until(lambda: _persisted(nodes["n1"], "n3") == 987)


def _persisted(node: Replica, member: str) -> int:
    return {one.id: one.persisted_index for one in node.status().members}[member]


def _mad(chance: random.Random) -> bytes:
    """A well-formed message without sense, of a term that does not depose anybody."""
    number = chance.randrange(len(messages._KINDS))
    samples: dict[Any, list[Any]] = {
        int: [0, 1, 2, 2**40],
        bool: [True, False],
        str: ["", "fill_begin", "fill_rows", "hand_over", "not leading"],
        list: [[]],
    }
    fields: list[Any] = []
    for name, expected in zip(
        messages._KINDS[number]._fields, messages._SHAPES[number], strict=True
    ):
        value = chance.choice(samples.get(expected, [None, [], [1, 2], {"a": 1}]))
        fields.append(min(value, 1) if name == "term" else value)
    return cbor2.dumps([messages.GROUP, number, *fields])
