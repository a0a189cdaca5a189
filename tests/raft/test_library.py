"""The seams to PySyncObj, and the doors of it that are closed (A6-A10, A18-A22).

If one of these fails after an upgrade, read the new version line by line before anything else.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import hashlib
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pysyncobj
import pysyncobj.pickle as library_pickle
import pysyncobj.syncobj as upstream
import pytest
from pysyncobj import SyncObj
from pysyncobj.node import Node as LibraryNode
from pysyncobj.serializer import Serializer
from pysyncobj.tcp_connection import TcpConnection
from pysyncobj.transport import TCPTransport

from node.core.outcomes import Appended
from node.raft import library, pinned
from node.raft.messages import AppendEntries
from tests.raft.harness import Cluster
from tests.raft.solo import Solo
from tests.raft.stock import StockCluster
from tests.raft.virtual_time import Clock, clock, simulate

NODE = Path(__file__).parents[2] / "node"


@pytest.fixture(autouse=True)
def hands() -> Iterator[Clock]:
    """Solo nodes live on a clock that the test turns."""
    hands = Clock()
    with clock(hands):
        yield hands


class TestSeams:
    def test_the_installed_library_is_the_one_that_was_read(self) -> None:
        source = Path(upstream.__file__).read_bytes()
        assert hashlib.sha256(source).hexdigest() == pinned.EXPECTED_SHA256
        assert pysyncobj.version.VERSION == pinned.EXPECTED_VERSION == "0.3.17"
        pinned.verify()

    def test_another_source_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pinned, "EXPECTED_SHA256", "0" * 64)
        with pytest.raises(pinned.LibraryChanged):
            Solo()

    def test_another_version_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pinned, "VERSION", "0.3.18")
        with pytest.raises(pinned.LibraryChanged):
            Solo()

    def test_a_seam_that_is_gone_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pinned, "SEAMS", (*pinned.SEAMS, "_SyncObj__gone"))
        with pytest.raises(pinned.LibraryChanged, match="_SyncObj__gone"):
            Solo()

    def test_every_step_that_we_replace_is_there_to_be_replaced(self) -> None:
        replaced = [name for name in vars(library.Engine) if name.startswith("_SyncObj__")]
        assert replaced
        assert all(hasattr(SyncObj, name) for name in replaced)
        assert set(replaced) <= set(pinned.SEAMS)

    def test_every_inner_field_that_we_touch_is_one_of_the_library_s(self) -> None:
        used = {
            node.attr
            for path in (NODE / "raft").glob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and node.attr.startswith("_SyncObj__")
        }
        engine = Solo().engine
        assert used
        assert {name for name in used if not hasattr(engine, name)} == set()

    def test_only_the_library_module_its_bridge_and_its_pin_import_the_library(self) -> None:
        importers = {path.name for path in NODE.rglob("*.py") if "pysyncobj" in _imports(path)}
        assert importers <= {"library.py", "bridge.py", "pinned.py"}

    def test_the_library_runs_no_thread(self) -> None:
        before = set(threading.enumerate())
        solo = Solo()
        solo.elect()
        solo.tick()
        assert set(threading.enumerate()) == before
        assert not solo.engine.tick_thread_alive()


class TestNoPickle:
    def test_nothing_of_the_node_imports_a_pickle(self) -> None:
        dangerous = {"pickle", "cPickle", "_pickle", "dill", "marshal", "shelve", "cloudpickle"}
        for path in NODE.rglob("*.py"):
            assert not _imports(path) & dangerous, path

    def test_stock_runs_code_from_a_stranger_s_bytes(self) -> None:
        """A19: a connection of the library loads what comes in before it knows who sends it."""
        ran: list[str] = []
        _Trap.ran = ran
        received: list[Any] = []
        connection = TcpConnection(_NoPoller(), onMessageReceived=received.append)
        payload = library_pickle.dumps(_Trap())
        import struct
        import zlib

        packed = zlib.compress(payload)
        connection._TcpConnection__readBuffer = struct.pack("i", len(packed)) + packed
        connection._TcpConnection__processParseMessage()
        assert ran == ["code of a stranger"]

    def test_a_cluster_never_unpickles_nor_opens_the_library_s_transport(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("a pickle was loaded, or the library's transport was made")

        monkeypatch.setattr(pickle, "loads", refuse)
        monkeypatch.setattr(pickle, "load", refuse)
        monkeypatch.setattr(pickle, "Unpickler", refuse)
        for name in ("loads", "load", "to_bytes", "Unpickler"):
            if hasattr(library_pickle, name):
                monkeypatch.setattr(library_pickle, name, refuse)
        monkeypatch.setattr(TCPTransport, "__init__", refuse)
        monkeypatch.setattr(TcpConnection, "__init__", refuse)
        monkeypatch.setattr(Serializer, "serialize", refuse)
        monkeypatch.setattr(Serializer, "deserialize", refuse)
        monkeypatch.setattr(Serializer, "setTransmissionData", refuse)
        monkeypatch.setattr(Serializer, "getTransmissionData", refuse)

        async def scenario() -> None:
            cluster = Cluster(3, entry_commands_max=2, peer_window_bytes=500)
            leader = await cluster.ready()
            await cluster.append(cluster.followers()[0], cluster.command(events=500))
            await cluster.fill_log(leader, 20)
            cluster.crash(leader)
            await cluster.led()
            await cluster.start()
            await cluster.settled()
            cluster.persist()
            await cluster.stop()
            await cluster.start()
            await cluster.settled()
            await cluster[await cluster.led()].transfer_leadership(None, 2000)
            await cluster.settled()
            cluster.check()

        simulate(scenario)

    def test_no_message_can_bring_the_library_s_dangerous_keys(self) -> None:
        """`transmission` and `serialized` lead to a pickle; `apply_command` to its queue."""
        solo = Solo()
        seen: list[dict[str, Any]] = []
        inner = solo.engine._bridge._onMessageReceived
        solo.engine._bridge._onMessageReceived = lambda node, message: (
            seen.append(message),
            inner(node, message),
        )
        for message in _one_of_each():
            solo.guard.receive("n2", message)
        assert {message["type"] for message in seen} <= {
            *("append_entries", "next_node_idx", "request_vote", "response_vote", "timeout_now"),
        }
        keys = {key for message in seen for key in message}
        assert not keys & {"transmission", "serialized", "data", "command", "request_id"}
        assert all("prevLogIdx" in one for one in seen if one["type"] == "append_entries")

    def test_an_entry_that_looks_like_a_command_of_the_library_is_only_bytes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> Any:
            raise AssertionError("the library looked into an entry")

        monkeypatch.setattr(SyncObj, "_SyncObj__doApplyCommand", refuse)
        monkeypatch.setattr(SyncObj, "_SyncObj__parseChangeClusterRequest", refuse)
        solo = Solo()
        kinds = [[1, bytes([kind]) + pickle.dumps(("add", "n9"))] for kind in range(6)]
        solo.hear("n2", AppendEntries(1, 1, 0, 1, kinds))
        solo.hear("n2", AppendEntries(1, 7, 1, 7, []))
        solo.tick()
        assert [entry for _, _, entry in solo.applied] == [entry for _, entry in kinds]
        assert sorted(node.id for node in solo.engine.otherNodes) == ["n2", "n3"]


class TestClosedDoors:
    def test_stock_accepts_several_membership_changes_before_one_is_committed(self) -> None:
        """A9."""
        with StockCluster(dynamicMembershipChange=True) as cluster:
            leader = cluster.elect()
            cluster.network.isolate(leader, cluster.ids)
            for number in (7, 8, 9):
                cluster.nodes[leader].addNodeToCluster(LibraryNode(f"n{number}"))
            cluster.run(0.5)
            assert len(cluster.nodes[leader].otherNodes) == 5

    def test_ours_has_no_membership_change_of_the_library(self) -> None:
        solo = Solo()
        for change in (solo.engine.addNodeToCluster, solo.engine.removeNodeFromCluster):
            with pytest.raises(Exception, match="dynamicMembershipChange is disabled"):
                change(LibraryNode("n9"))

    def test_ours_has_no_dump_no_journal_no_password_and_no_tick_thread(self) -> None:
        conf = Solo().engine.conf
        assert (conf.fullDumpFile, conf.journalFile, conf.password) == (None, None, None)
        assert not conf.autoTick
        assert not conf.dynamicMembershipChange

    def test_ours_never_loads_a_dump_nor_compacts(self) -> None:
        solo = Solo()
        with pytest.raises(AssertionError):
            solo.engine._SyncObj__loadDumpFile(clearJournal=True)
        with pytest.raises(AssertionError):
            solo.journal.deleteEntriesTo(1)
        with pytest.raises(AssertionError):
            solo.journal.clear()
        solo.engine.forceLogCompaction()
        solo.tick()

    def test_ours_ignores_the_library_s_command_queue(self) -> None:
        solo = Solo()
        solo.elect()
        before = solo.log()
        solo.engine._applyCommand(b"anything", None, 0)
        solo.tick()
        assert solo.log() == before

    def test_stock_applies_a_command_twice_when_a_callback_raises(self) -> None:
        """A6."""
        with StockCluster() as cluster:
            leader = cluster.elect()

            def callback(_: Any, __: int, raised: list[bool] = []) -> None:  # noqa: B006
                if not raised:
                    raised.append(True)
                    raise ValueError("the client is gone")

            cluster.nodes[leader].put("once", callback=callback)
            cluster.run(1)
            assert cluster.nodes[leader].applied == ["once", "once"]

    def test_stock_applies_a_command_twice_after_a_code_version(self) -> None:
        """A7."""
        with StockCluster() as cluster:
            leader = cluster.elect()
            cluster.nodes[leader]._applyCommand(library_pickle.dumps(7), None, 3)
            cluster.nodes[leader].put("a")
            cluster.run(1)
            cluster.nodes[leader].put("b")
            cluster.run(1)
            assert any(node.applied != ["a", "b"] for node in cluster.nodes.values())

    def test_ours_applies_nothing_twice_even_if_applying_raises(self) -> None:
        solo = Solo(size=1)
        applied: list[int] = []

        def apply(index: int, _: int, __: bytes) -> None:
            applied.append(index)
            raise ValueError("must not happen")

        solo.engine._apply = apply
        solo.engine.stand()
        for _ in range(5):
            with pytest.raises(ValueError, match="must not happen"):
                solo.engine.tick()
                solo.engine.tick()
            solo.engine.append(b"x")
        assert applied == sorted(set(applied))

    def test_ours_survives_a_client_that_went_away(self) -> None:
        async def scenario() -> None:
            cluster = Cluster(3)
            leader = await cluster.ready()
            gone = asyncio.ensure_future(cluster.append(leader))
            await asyncio.sleep(0)
            gone.cancel()
            outcome, _ = await cluster.append(leader)
            assert isinstance(outcome, Appended)
            await cluster.settled()
            cluster.check()

        simulate(scenario)

    def test_the_library_opens_no_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[Any] = []
        real = builtins.open

        def watch(path: Any, *rest: Any, **named: Any) -> Any:
            opened.append(path)
            return real(path, *rest, **named)

        solo_settings = Solo()  # the source is hashed once more below: warm its cache
        monkeypatch.setattr(builtins, "open", watch)
        solo_settings.elect()
        for at in range(100):
            solo_settings.engine.append(b"%d" % at)
            solo_settings.tick()
        assert opened == []


class TestFlow:
    def test_no_more_than_a_window_is_under_way_to_a_peer(self) -> None:
        """A22."""
        solo = Solo(peer_window_bytes=1000)
        solo.elect()
        for _ in range(100):
            solo.engine.append(b"x" * 100)
        entries = [
            len(entry)
            for peer, message in solo.take()
            if peer == "n2" and isinstance(message, AppendEntries)
            for _, entry in message.entries
        ]
        assert sum(entries) <= 1100

    def test_a_long_backlog_is_applied_in_several_turns(self, hands: Clock) -> None:
        """A24: heartbeats find their place in between."""
        solo = Solo()
        entries = [[1, b"x"]] * 100
        solo.hear("n2", AppendEntries(1, 1, 0, 101, entries))
        inner = solo.engine._apply

        def slow(index: int, term: int, entry: bytes) -> None:
            hands.advance(0.001)
            inner(index, term, entry)

        solo.engine._apply = slow
        turns = []
        while len(solo.applied) < 100:
            before = len(solo.applied)
            solo.tick()
            turns.append(len(solo.applied) - before)
        assert 1 <= max(turns) <= 10

    def test_what_is_under_way_does_not_outlive_a_reign(self) -> None:
        solo = Solo(peer_window_bytes=1000)
        solo.elect()
        for _ in range(20):
            solo.engine.append(b"x" * 100)
        # Another leads meanwhile, and its entries take the place of all these.
        solo.hear("n2", AppendEntries(5, 1, 0, 1, [[5, b"other"]]))
        solo.elect()
        solo.take()
        solo.engine.append(b"new")
        said = [message for peer, message in solo.take() if peer == "n3"]
        assert any(isinstance(one, AppendEntries) and one.entries for one in said)


class _Trap:
    """Unpickling it runs `spring`."""

    ran: list[str]

    def __reduce__(self) -> Any:
        return spring, ()


def spring() -> str:
    """What a stranger wants to run."""
    _Trap.ran.append("code of a stranger")
    return "sprung"


class _NoPoller:
    def subscribe(self, *_: Any) -> None: ...

    def unsubscribe(self, *_: Any) -> None: ...


def _one_of_each() -> list[Any]:
    from node.raft import messages as m

    return [
        m.AppendEntries(1, 1, 0, 1, [[1, b"x"]]),
        m.AppendEntries(1, 2, 1, 2, []),
        m.RequestVote(2, 9, 1),
        m.TermNotice(3),
        m.Vote(3),
        m.Ack(3, 1, True, False),
        m.TimeoutNow(3),
    ]


def _imports(path: Path) -> set[str]:
    """The top-level names of the modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found
