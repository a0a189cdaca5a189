"""The library as it comes: what it does wrong and we do not use at all (A8, A12, A20-A23).

What stands beside a part of ours is shown wrong where that part is tested. Here is the rest: doors
that are closed for good, so that nothing of ours has the same name.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pysyncobj.journal as library_journal
import pysyncobj.pickle as library_pickle
import pytest
from pysyncobj.tcp_connection import TcpConnection
from pysyncobj.transport import TCPTransport

from tests.raft.stock import StockCluster


def test_stock_lays_an_older_snapshot_over_a_newer_state() -> None:
    """A8."""
    with StockCluster() as cluster:
        leader = cluster.elect()
        follower = next(one for one in cluster.ids if one != leader)
        front = cluster.nodes[leader]
        for item in range(3):
            front.put(item)
        cluster.run(1)
        front.forceLogCompaction()
        cluster.run(0.5)
        older = front._SyncObj__serializer._Serializer__inMemorySerializedData
        for item in range(3, 6):
            front.put(item)
        cluster.run(1)
        assert cluster.nodes[follower].applied == [0, 1, 2, 3, 4, 5]
        for chunk in ((older, True, False), (b"", False, True)):
            cluster.network.ends[follower].deliver(
                leader,
                {
                    "type": "append_entries",
                    "term": front.term,
                    "commit_index": front.raftCommitIndex,
                    "serialized": chunk,
                },
            )
        assert cluster.nodes[follower].applied == [0, 1, 2]


def test_stock_votes_before_its_vote_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A12: its journal writes the vote, but does not wait until the disk has it."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with StockCluster() as cluster:
        cluster.conf["journalFile"] = str(tmp_path / "journal")
        cluster.restart("n1")
        said: list[str] = []

        def watch(_: str, __: str, message: dict[str, Any]) -> bool:
            said.append(message["type"])
            return False

        cluster.network.watchers.append(watch)
        request = {"type": "request_vote", "term": 9, "last_log_index": 1, "last_log_term": 0}
        cluster.network.ends["n1"].deliver("n0", request)
        assert (said, synced) == (["response_vote"], [])
        cluster.nodes["n1"]._SyncObj__raftLog._destroy()


def test_stock_unpacks_whatever_a_stranger_s_bytes_unpack_to() -> None:
    """A20."""
    received: list[bytes] = []
    connection = TcpConnection(_NoPoller(), onMessageReceived=received.append)
    packed = zlib.compress(library_pickle.dumps(bytes(20_000_000)))
    connection._TcpConnection__readBuffer = struct.pack("i", len(packed)) + packed
    received.append(connection._TcpConnection__processParseMessage())
    assert len(received[0]) > 500 * len(packed)


def test_stock_obeys_a_stranger_s_words_of_administration() -> None:
    """A21: without a password, which is the default, nobody proves anything."""
    removed: list[Any] = []
    transport = TCPTransport.__new__(TCPTransport)
    transport._syncObj = SimpleNamespace(encryptor=None)
    transport._onUtilityMessageCallbacks = {"remove": lambda args, _: removed.append(args)}
    transport._onIncomingMessageReceived(SimpleNamespace(sendRandKey=None), ["remove", "n1:1"])
    assert removed == [["n1:1"]]


def test_stock_lets_a_reader_depose_the_leader() -> None:
    """A21: whoever says `readonly` is heard like a member."""
    with StockCluster() as cluster:
        leader = cluster.elect()
        node = cluster.nodes[leader]
        cluster.network.ends[leader].deliver(
            "a reader",
            {
                "type": "append_entries",
                "term": node.term + 1,
                "commit_index": 1,
                "entries": [],
                "prevLogIdx": 1,
                "prevLogTerm": 0,
            },
        )
        assert not node.leads
        assert node.log == [(1, 0)]


def test_stock_sends_without_end_to_a_peer_that_says_nothing() -> None:
    """A22."""
    with StockCluster(leaderFallbackTimeout=60.0) as cluster:
        leader = cluster.elect()
        silent = next(one for one in cluster.ids if one != leader)
        sent = 0

        def watch(_: str, receiver: str, message: dict[str, Any]) -> bool | None:
            nonlocal sent
            if receiver == silent:
                sent += sum(len(entry) for entry, _, _ in message.get("entries", []))
                return False
            return None

        cluster.network.watchers.append(watch)
        for _ in range(1000):
            cluster.nodes[leader].put("x" * 10_000)
            cluster.run(0.02)
        assert sent > 9_000_000, "of 10 MB"


def test_stock_copies_the_rest_of_its_log_for_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A23."""
    with StockCluster() as cluster:
        leader = cluster.elect()
        follower = next(one for one in cluster.ids if one != leader)
        for _ in range(500):
            cluster.nodes[leader].put("x")
        cluster.run(2)
        copied: list[int] = []
        real = library_journal.MemoryJournal.__getitem__

        def watch(journal: Any, key: Any) -> Any:
            found = real(journal, key)
            copied.append(len(found) if isinstance(key, slice) else 1)
            return found

        monkeypatch.setattr(library_journal.MemoryJournal, "__getitem__", watch)
        cluster.network.ends[follower].deliver(
            leader,
            {
                "type": "append_entries",
                "term": cluster.nodes[leader].term,
                "commit_index": 1,
                "entries": [],
                "prevLogIdx": 2,
                "prevLogTerm": cluster.nodes[leader].term,
            },
        )
        assert max(copied) > 500


class _NoPoller:
    def subscribe(self, *_: Any) -> None: ...

    def unsubscribe(self, *_: Any) -> None: ...
