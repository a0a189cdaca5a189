"""Sessions over real sockets: who may speak, what ends a connection, and the bounds (A19-A21)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import random
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import pytest

from node.raft.lineage import Standing
from node.raft.messages import AppendEntries, Gossip, Vote, encode
from node.raft.session import INCARNATION_BITS, JOINING, Session
from tests.raft.wire import CLUSTER, STANDING, Hand, Node, free_port, pair, until


def listening(**changes: Any) -> Node:
    """n1, to which n2 dials."""
    return Node("n1", free_port(), {"n2": "127.0.0.1:9"}, **changes)


async def established(node: Node, hand: Hand, **changes: Any) -> bool:
    """Take the handshake to its end; whether the node then has a session."""
    assert await hand.greet(**changes)
    before = len(node.ears.told)
    hand.say([hand.prove()])
    try:
        await until(lambda: len(node.ears.told) > before, 1)
    except TimeoutError:
        return False
    return node.transport.is_connected("n2")


class TestHandshake:
    async def test_two_nodes_prove_themselves_and_talk_both_ways_in_order(self) -> None:
        async with pair() as (first, second):
            assert first.ears.told == [("connected", "n2", 1)]
            assert second.ears.told == [("connected", "n1", 1)]
            for term in range(100):
                assert first.transport.send("n2", Vote(term))
                assert second.transport.send("n1", Vote(term))
            await until(lambda: len(first.ears.told) > 100 and len(second.ears.told) > 100)
            assert second.ears.told[1:] == [("n1", Vote(term)) for term in range(100)]

    async def test_an_honest_peer_made_by_hand_is_let_in(self) -> None:
        async with listening() as node, await Hand.dial(node.port) as hand:
            assert await established(node, hand)
            assert hand.theirs[-1] == hand.prove(side="acceptor"), "and the node proves itself"
            hand.message(Vote(3))
            await until(lambda: ("n2", Vote(3)) in node.ears.told)
            assert node.transport.incarnation("n2") == 7

    @pytest.mark.parametrize(
        "changes",
        [
            {"magic": "other"},
            {"version": 1},
            {"cluster": "c2"},
            {"receiver": "n3"},
            {"sender": "n1"},
            {"sender": 5},
            {"sender": "n2\n12:00:00 INFO n1  all is well"},
            {"sender": "x" * 33},
            {"incarnation": -1},
            {"incarnation": "7"},
            {"incarnation": True},
            {"nonce": b"short"},
            {"incarnation": 2**INCARNATION_BITS},
            {"nonce": "n" * 32},
            {"standing": "first"},
            {"standing": ["first", []]},
            {"standing": ["first", "zero", True]},
            {"standing": ["first", [7], True]},
            {"standing": ["first", ["zero"] * 17, True]},
            {"standing": ["x" * 33, [], True]},
            {"standing": ["", [], True]},
            {"standing": ["first", [], 1]},
            {"seen": -1},
            {"seen": "7"},
            {"more": 1},
        ],
        ids=str,
    )
    async def test_a_greeting_is_refused_with(self, changes: dict[str, Any]) -> None:
        async with listening() as node, await Hand.dial(node.port) as hand:
            assert not await hand.greet(**changes)
            assert await hand.closed()
            assert node.ears.told == []

    async def test_a_peer_with_another_secret_is_refused(self) -> None:
        async with listening() as node, await Hand.dial(node.port) as hand:
            assert await hand.greet()
            hand.say([hand.prove(secret=b"guessed")])
            assert await hand.closed()
            assert node.ears.told == []

    async def test_two_nodes_with_different_secrets_never_talk(self) -> None:
        port = free_port()
        async with (
            Node("n1", port, {"n2": "127.0.0.1:9"}) as one,
            Node("n2", free_port(), {"n1": f"127.0.0.1:{port}"}, secret=b"another") as other,
        ):
            await until(lambda: other.transport.counters["connections_refused"] >= 2)
            assert one.ears.told == other.ears.told == []

    async def test_why_there_is_no_session_is_logged_by_both_but_not_each_time(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "node.raft.transport")
        port = free_port()
        async with (
            Node("n1", port, {"n2": "127.0.0.1:9", "n3": "nowhere.invalid:7"}),
            Node("n2", free_port(), {"n1": f"127.0.0.1:{port}"}, secret=b"another") as other,
        ):
            await until(lambda: other.transport.counters["connections_refused"] >= 3)
            await until(lambda: "n3 at nowhere.invalid:7" in caplog.text)
        about = [record.message for record in caplog.records if "with n1" in record.message]
        assert len(about) == 1 and "secret" in about[0]
        assert sum("cannot reach n3" in record.message for record in caplog.records) == 1

    async def test_what_strangers_say_neither_fills_the_log_nor_makes_its_lines(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "node.raft.transport")
        async with listening() as node:
            for number in range(150):
                async with await Hand.dial(node.port) as hand:
                    await hand.greet(receiver=f"n1\n{number}")
                    assert await hand.closed()
            for number in range(150):
                async with await Hand.dial(node.port) as hand:
                    if await hand.greet(sender=f"n{number + 2}"):
                        hand.say([hand.prove(secret=b"guessed")])
                    assert await hand.closed()
            lines = [one.message for one in caplog.records if "closing" in one.message]
            assert 0 < len(lines) <= 100 and not any("\n" in line for line in lines)
            node.transport.refuses(node.transport._session("n2"), "of what must be seen")
            assert "n2: of what must be seen" in caplog.text

    async def test_a_node_that_nobody_knows_here_is_heard_if_it_knows_the_secret(self) -> None:
        """It may know a newer membership than this node."""
        async with listening() as node, await Hand.dial(node.port) as hand:
            assert await hand.greet(sender="n9")
            hand.say([hand.prove()])
            await until(lambda: node.ears.told)
            assert node.ears.told[0][:2] == ("connected", "n9")

    async def test_a_node_that_joins_takes_over_cluster_and_lineage(self) -> None:
        taken: list[str] = []

        def take_over(cluster: str, standing: Standing) -> None:
            taken.append(cluster)
            new.standing = standing

        ports = free_port(), free_port()
        one = Node("n1", ports[0], {})
        new = Node("n2", ports[1], {"n1": f"127.0.0.1:{ports[0]}"})
        new.standing = Standing("none yet", (), founded=False)
        new.transport._identity = new.transport._identity._replace(cluster=JOINING, join=take_over)
        async with one, new:
            await until(lambda: one.ears.told and new.ears.told)
            assert (taken, new.standing) == ([CLUSTER], STANDING)
            assert not new.transport._identity.joins

    async def test_a_node_that_joins_passes_over_a_lineage_that_has_had_no_leader(self) -> None:
        """An order to go on without others may have come to nothing."""
        taken: list[Standing] = []
        ports = free_port(), free_port()
        ordered = Node("n1", ports[0], {}, standing=Standing("second", ("first",), founded=False))
        new = Node("n2", ports[1], {"n1": f"127.0.0.1:{ports[0]}"})
        new.standing = Standing("none yet", (), founded=False)
        new.transport._identity = new.transport._identity._replace(
            cluster=JOINING, join=lambda _, standing: taken.append(standing)
        )
        async with ordered, new:
            await until(lambda: "n1" in new.lineage.refused)
            assert "not had a leader yet" in new.lineage.refused["n1"] and taken == []
            ordered.standing = ordered.standing._replace(founded=True)
            await until(lambda: taken)
            assert taken == [ordered.standing]

    @pytest.mark.parametrize("address", ["a..b:7", f"{64 * 'a'}:7", "127.0.0.1:70000"])
    async def test_an_address_that_can_be_none_ends_no_dialling(
        self, address: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "node.raft.transport")
        async with Node("n2", free_port(), {"n1": address}) as node:
            await until(lambda: f"cannot reach n1 at {address}" in caplog.text)
            assert not node.transport._dialling["n1"].done()

    async def test_two_nodes_that_both_join_refuse_one_another(self) -> None:
        async with listening() as node, await Hand.dial(node.port) as hand:
            node.transport._identity = node.transport._identity._replace(cluster=JOINING)
            async with await Hand.dial(node.port) as other:
                assert not await other.greet(cluster=JOINING)
            assert await hand.greet(), "a member is let in"

    async def test_the_node_s_own_proof_sent_back_to_it_is_refused(self) -> None:
        async with listening() as node, await Hand.dial(node.port) as hand:
            assert await hand.greet()
            hand.say([hand.theirs[-1]])
            assert await hand.closed()
            assert node.ears.told == []

    async def test_a_proof_of_an_earlier_connection_is_refused(self) -> None:
        async with listening() as node:
            async with await Hand.dial(node.port) as hand:
                assert await established(node, hand)
                recorded = hand.prove()
            async with await Hand.dial(node.port) as again:
                assert await again.greet()
                again.say([recorded])
                assert await again.closed()

    async def test_an_older_incarnation_is_refused(self) -> None:
        async with listening() as node:
            async with await Hand.dial(node.port) as hand:
                assert await established(node, hand, incarnation=7)
            async with await Hand.dial(node.port) as older:
                assert not await established(node, older, incarnation=6)
                assert await older.closed()

    @pytest.mark.parametrize("older", ["n1", "n2"])
    async def test_the_older_process_under_an_id_learns_it_and_is_never_connected(
        self, older: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The peer has seen a later one; n2 dials, so each side of a connection learns it."""
        caplog.set_level(logging.INFO, "node.raft.transport")
        ports = {"n1": free_port(), "n2": free_port()}
        nodes = {
            one: Node(one, ports[one], {other: f"127.0.0.1:{ports[other]}"}, incarnation=8)
            for one, other in (("n1", "n2"), ("n2", "n1"))
        }
        peer = "n1" if older == "n2" else "n2"
        nodes[peer].transport._incarnations[older] = 9
        async with nodes["n1"], nodes["n2"]:
            counters = nodes[older].transport.counters
            await until(lambda: counters["connections_refused"] >= 4)
        assert nodes["n1"].ears.told == nodes["n2"].ears.told == []
        words = "it has seen this node in a later incarnation, and refuses it"
        assert words in nodes[older].lineage.refused[peer]
        told = [record for record in caplog.records if words in record.message]
        assert len(told) == 1 and told[0].levelno == logging.WARNING

    async def test_messages_before_the_proof_are_not_heard(self) -> None:
        async with listening() as node, await Hand.dial(node.port) as hand:
            assert await hand.greet()
            hand.message(Vote(1))
            assert await hand.closed()
            assert node.ears.told == []

    @pytest.mark.parametrize("proof", [[], [b""], [b"", b""], ["x"], [None], 7, {}])
    async def test_what_is_no_proof_is_refused(self, proof: Any) -> None:
        async with listening() as node, await Hand.dial(node.port) as hand:
            assert await hand.greet()
            hand.say(proof)
            assert await hand.closed()


FIRST = Standing("first", (), founded=True)
SECOND = FIRST.followed_by("second")
SECOND_FOUNDED = SECOND._replace(founded=True)


class TestLineages:
    """A session needs one lineage; what a refused node learns by it is proven with the secret."""

    @contextlib.asynccontextmanager
    async def strangers(
        self, first: Standing, second: Standing
    ) -> AsyncIterator[tuple[Node, Node]]:
        """n1 and n2 with these standings, after n2 has dialled n1 a few times."""
        port = free_port()
        async with (
            Node("n1", port, {"n2": "127.0.0.1:9"}, standing=first) as one,
            Node("n2", free_port(), {"n1": f"127.0.0.1:{port}"}, standing=second) as other,
        ):
            refused = "lineages_refused"
            await until(lambda: min(n.transport.counters[refused] for n in (one, other)) >= 2)
            yield one, other
            assert one.ears.told == other.ears.told == []

    @pytest.mark.parametrize("old", ["dials", "is dialled"])
    async def test_who_was_given_up_learns_it_and_is_refused_by_both(self, old: str) -> None:
        pair = (SECOND_FOUNDED, FIRST) if old == "dials" else (FIRST, SECOND_FOUNDED)
        async with self.strangers(*pair) as (one, other):
            newer, older = (one, other) if old == "dials" else (other, one)
            assert older.given_up == [SECOND_FOUNDED] and newer.given_up == []
            [words] = newer.lineage.refused.values()
            assert "lineage first was given up: it must be added anew" in words
            [words] = older.lineage.refused.values()
            assert "this node is quarantined" in words

    async def test_a_lineage_that_nobody_has_led_yet_quarantines_nobody(self) -> None:
        async with self.strangers(FIRST, SECOND) as (one, other):
            assert one.given_up == other.given_up == []
            assert "has not had a leader yet" in one.lineage.refused["n2"]
            assert other.lineage.refused.keys() == {"n1"}

    async def test_two_lineages_that_do_not_know_each_other_both_refuse(self) -> None:
        other_half = FIRST.followed_by("third")._replace(founded=True)
        async with self.strangers(SECOND_FOUNDED, other_half) as (one, other):
            assert one.given_up == other.given_up == []
            assert "an operator must decide" in one.lineage.refused["n2"]
            assert "an operator must decide" in other.lineage.refused["n1"]

    async def test_one_lineage_is_a_session_whoever_has_seen_a_leader(self) -> None:
        ports = {"n1": free_port(), "n2": free_port()}
        peers = [{"n2": f"127.0.0.1:{ports['n2']}"}, {"n1": f"127.0.0.1:{ports['n1']}"}]
        async with (
            Node("n1", ports["n1"], peers[0], standing=SECOND) as one,
            Node("n2", ports["n2"], peers[1], standing=SECOND_FOUNDED) as other,
        ):
            await until(lambda: one.ears.told and other.ears.told)
            assert one.lineage.refused == other.lineage.refused == {}

    async def test_without_the_secret_nobody_can_have_a_node_quarantined(self) -> None:
        lie = [SECOND.lineage, [FIRST.lineage], True]
        async with listening(standing=FIRST) as node:
            async with await Hand.dial(node.port) as hand:
                assert await hand.greet(standing=lie)
                hand.say([hand.prove(secret=b"guessed")])
                assert await hand.closed()
            async with await Hand.dial(node.port) as hand:
                assert await hand.greet()
                proof = hand.prove()
                hand.mine[7] = lie  # proven with another standing than the one that was said
                hand.say([hand.prove() if hand.prove() != proof else b""])
                assert await hand.closed()
            assert node.given_up == [] and node.ears.told == []


class TestFrames:
    async def test_a_frame_over_the_limit_closes_the_session(self) -> None:
        async with listening(frame_bytes_max=5000) as node, await Hand.dial(node.port) as hand:
            assert await established(node, hand)
            hand.raw((5001).to_bytes(4, "big"))
            assert await hand.closed()
            assert node.ears.told[-1] == ("disconnected", "n2")

    async def test_a_frame_at_the_limit_is_taken(self) -> None:
        message = AppendEntries(1, 1, 0, 1, [[1, b"x" * 4000]])
        limit = len(encode(message))
        async with listening(frame_bytes_max=limit) as node, await Hand.dial(node.port) as hand:
            assert await established(node, hand)
            hand.message(message)
            await until(lambda: ("n2", message) in node.ears.told)

    async def test_a_stranger_s_frame_is_at_most_a_kilobyte(self) -> None:
        async with listening(handshake_ms=60_000) as node, await Hand.dial(node.port) as hand:
            hand.raw((1025).to_bytes(4, "big"))
            assert await hand.closed()

    @pytest.mark.parametrize(
        "frame",
        [
            encode(Vote(7))[:-1],
            b"",
            b"\x81" * 5000,
            cbor2.dumps([1, 3, 7]),
            cbor2.dumps([0, 99, 7]),
            cbor2.dumps([0, -1, 7]),
            cbor2.dumps([0, 3]),
            cbor2.dumps([0, 3, "7"]),
            cbor2.dumps([0, 3, True]),
            cbor2.dumps([0, 3, 2**63]),
            cbor2.dumps([0, 0, 1, 1, 1, 1, [[1, "not bytes"]]]),
            cbor2.dumps([0, 0, 1, 1, 1, 1, [[1, b""]]]),
            cbor2.dumps({"type": "append_entries", "serialized": b"x"}),
        ],
        ids=lambda frame: frame[:12].hex() or "empty",
    )
    async def test_what_is_no_message_closes_the_session_and_no_other(self, frame: bytes) -> None:
        async with listening() as node, await Hand.dial(node.port) as hand:
            assert await established(node, hand)
            before = len(node.ears.told)
            hand.frame(frame)
            assert await hand.closed()
            assert node.transport.counters["connections_refused"] == 1
            assert node.ears.told[before:] == [("disconnected", "n2")]
            async with await Hand.dial(node.port) as again:
                assert await established(node, again)

    async def test_a_thousand_frames_of_garbage_on_ten_connections_disturb_nobody(self) -> None:
        seed = 20261123
        print(f"seed {seed}")
        chance = random.Random(seed)
        async with pair() as (first, second):
            unhurt = asyncio.create_task(_chat(second))

            async def garbage() -> None:
                for _ in range(100):
                    async with await Hand.dial(first.port) as hand:
                        hand.raw(chance.randbytes(chance.randint(1, 300)))

            await asyncio.gather(*(garbage() for _ in range(10)))
            unhurt.cancel()
            await asyncio.gather(unhurt, return_exceptions=True)
            assert first.ears.told[0] == ("connected", "n2", 1)
            assert {told[0] for told in first.ears.told[1:]} == {"n2"}, "the session went on"
            await until(lambda: not first.transport._strangers)


async def _chat(node: Node) -> None:
    for term in range(1_000_000):
        node.transport.send("n1", Vote(term))
        await asyncio.sleep(0.001)


class TestBounds:
    async def test_connections_that_prove_nothing_are_closed_in_time(self) -> None:
        async with listening(handshake_ms=100) as node:
            hands = [await Hand.dial(node.port) for _ in range(5)]
            assert all([await hand.closed() for hand in hands])
            await until(lambda: not node.transport._strangers)
            for hand in hands:
                await hand.close()

    async def test_strangers_over_the_bound_are_closed_at_once(self) -> None:
        async with listening(handshake_ms=60_000, strangers_max=3) as node:
            kept = [await Hand.dial(node.port) for _ in range(3)]
            await until(lambda: len(node.transport._strangers) == 3)
            for _ in range(5):
                async with await Hand.dial(node.port) as hand:
                    assert await hand.closed()
            assert len(node.transport._strangers) == 3
            for hand in kept:
                await hand.close()

    async def test_of_connections_that_ended_nothing_is_kept(self) -> None:
        """Each was kept for `handshake_ms`: thousands at once, where many strangers come and go."""
        async with listening(handshake_ms=60_000) as node:
            for _ in range(20):
                async with await Hand.dial(node.port) as hand:
                    hand.raw(b"\xff" * 20)
                    assert await hand.closed()
            async with await Hand.dial(node.port) as hand:
                assert await established(node, hand)
            await until(lambda: not node.transport._sessions and not node.transport._strangers)
            gc.collect()
            kept = [one for one in gc.get_objects() if type(one) is Session]
            assert not [one for one in kept if one._owner is node.transport]

    async def test_a_peer_that_takes_its_time_is_not_dialled_again_meanwhile(self) -> None:
        """Each of those connections became a session later, and ended the one before."""
        taken = []

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken.append(writer)
            await reader.read(-1)
            writer.close()

        port = free_port()
        async with (
            await asyncio.start_server(silent, "127.0.0.1", port),
            Node("n2", free_port(), {"n1": f"127.0.0.1:{port}"}, handshake_ms=1000),
        ):
            await until(lambda: taken)
            await asyncio.sleep(0.7)
            assert len(taken) == 1
            await until(lambda: len(taken) == 2, 4)

    async def test_a_dial_that_failed_keeps_nobody_out(self) -> None:
        peers = {"n0": f"127.0.0.1:{free_port()}", "n2": "127.0.0.1:9"}
        async with Node("n1", free_port(), peers, strangers_max=2) as node:
            for _ in range(5):
                await asyncio.sleep(0.1)  # n0 is dialled, and nobody listens there
                async with await Hand.dial(node.port) as hand:
                    assert await hand.greet()

    async def test_there_is_one_session_a_peer_and_the_newest_wins(self) -> None:
        async with (
            listening() as node,
            await Hand.dial(node.port) as old,
            await Hand.dial(node.port) as new,
        ):
            assert await established(node, old)
            assert await established(node, new)
            assert await old.closed()
            whats = [told[0] for told in node.ears.told]
            assert whats == ["connected", "disconnected", "connected"]
            new.message(Vote(1))
            await until(lambda: ("n2", Vote(1)) in node.ears.told)

    async def test_what_does_not_fit_into_a_peer_s_queue_is_dropped_and_said_so(self) -> None:
        bound = 1_000_000
        async with (
            listening(peer_queue_bytes_max=bound) as node,
            await Hand.dial(node.port) as hand,
        ):
            assert await established(node, hand)
            message = AppendEntries(1, 1, 0, 1, [[1, b"x" * 100_000]])
            for _ in range(1000):
                if not node.transport.send("n2", message):
                    break
            else:
                pytest.fail("everything was taken, though nobody reads")
            assert node.transport._sessions["n2"].queued_bytes <= bound
            assert node.transport.counters["messages_dropped"] == 1

    async def test_a_peer_that_falls_silent_is_disconnected(self) -> None:
        async with listening(silence_ms=300) as node, await Hand.dial(node.port) as hand:
            assert await established(node, hand)
            assert await hand.closed()
            await until(lambda: node.ears.told[-1] == ("disconnected", "n2"))

    async def test_nothing_is_sent_to_a_peer_without_a_session(self) -> None:
        async with listening() as node:
            assert not node.transport.send("n2", Vote(1))
            assert not node.transport.send("stranger", Vote(1))

    async def test_a_peer_that_comes_back_is_dialled_again(self) -> None:
        ports = {"n1": free_port(), "n2": free_port()}
        async with Node("n2", ports["n2"], {"n1": f"127.0.0.1:{ports['n1']}"}) as dialler:
            for incarnation in (1, 2):
                peers = {"n2": f"127.0.0.1:{ports['n2']}"}
                async with Node("n1", ports["n1"], peers, incarnation=incarnation):
                    connected = ("connected", "n1", incarnation)
                    await until(lambda told=connected: told in dialler.ears.told)  # type: ignore[misc]
                await until(lambda: dialler.ears.told[-1] == ("disconnected", "n1"))


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Both sides' contexts with one self-signed certificate."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make certificates with")
    place: Path = tmp_path_factory.mktemp("tls")
    cert, key = place / "cert.pem", place / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert),
        ],
        check=True,
        capture_output=True,
    )
    made = []
    for purpose in (ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH):
        context = ssl.create_default_context(purpose, cafile=str(cert))
        context.load_cert_chain(cert, key)
        context.verify_mode = ssl.CERT_REQUIRED
        made.append(context)
    return made[0], made[1]


class TestTls:
    async def test_nodes_talk_over_tls(
        self, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
    ) -> None:
        server, client = contexts
        async with pair(server_tls=server, client_tls=client) as (first, second):
            gossip = Gossip("leader", 1, 2, 3, 4, "a:1", "b:2")
            first.transport.send("n2", gossip)
            await until(lambda: ("n1", gossip) in second.ears.told)

    async def test_a_peer_without_tls_is_closed(
        self, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
    ) -> None:
        server, client = contexts
        async with (
            listening(server_tls=server, client_tls=client) as node,
            await Hand.dial(node.port) as hand,
        ):
            assert not await hand.greet()
            assert node.ears.told == []

    @pytest.mark.parametrize("with_tls", ["n1", "n2"])
    async def test_where_one_has_tls_and_the_other_has_not_both_say_so(
        self,
        contexts: tuple[ssl.SSLContext, ssl.SSLContext],
        with_tls: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO, "node.raft.transport")
        server, client = contexts
        tls = {with_tls: {"server_tls": server, "client_tls": client}}
        ports = {"n1": free_port(), "n2": free_port()}
        first = Node("n1", ports["n1"], {"n2": f"127.0.0.1:{ports['n2']}"}, **tls.get("n1", {}))
        second = Node("n2", ports["n2"], {"n1": f"127.0.0.1:{ports['n1']}"}, **tls.get("n2", {}))
        other = "n2" if with_tls == "n1" else "n1"
        said = {
            "closing the connection with 127.0.0.1: it speaks TLS, and this node does not",
            "closing the connection with 127.0.0.1: it speaks no TLS, and this node does",
            f"cannot reach {other} at 127.0.0.1:{ports[other]}: it hangs up where TLS begins",
        }
        async with first, second:
            await until(lambda: said <= set(caplog.messages))
        assert set(caplog.messages) == said

    async def test_strangers_that_never_begin_tls_are_bounded_too(
        self, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
    ) -> None:
        server, client = contexts
        tls = {"server_tls": server, "client_tls": client}
        port = free_port()
        async with Node("n1", port, {"n2": "127.0.0.1:9"}, strangers_max=3, **tls) as node:
            kept = [await Hand.dial(port) for _ in range(3)]
            begun = asyncio.get_running_loop().time()
            for _ in range(5):
                async with await Hand.dial(port) as hand:
                    assert await hand.closed()
            assert asyncio.get_running_loop().time() - begun < 1
            assert len(node.transport._strangers) == 3
            await kept.pop().close()
            await until(lambda: len(node.transport._strangers) == 2)
            async with Node("n2", free_port(), {"n1": f"127.0.0.1:{port}"}, **tls):
                await until(lambda: node.ears.told == [("connected", "n2", 1)])
            for hand in kept:
                await hand.close()

    async def test_a_name_may_have_addresses_of_a_kind_that_the_machine_has_not(
        self, contexts: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So it is with localhost, where the kernel was started without IPv6."""
        server, client = contexts
        create = socket.create_server

        def without_ipv6(address: Any, *, family: int, **changes: Any) -> socket.socket:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            return create(address, family=family, **changes)

        async def both(*_: Any, **__: Any) -> list[Any]:
            found = (socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port))
            return [(family, socket.SOCK_STREAM, 6, "", address) for family, address in found]

        port = free_port()
        node = Node("n1", port, {}, server_tls=server, client_tls=client)
        with monkeypatch.context() as patch:
            patch.setattr(socket, "create_server", without_ipv6)
            patch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
            await node.transport.start(node.ears)
        try:
            async with Node(
                "n2", free_port(), {"n1": f"127.0.0.1:{port}"}, server_tls=server, client_tls=client
            ):
                await until(lambda: node.ears.told == [("connected", "n2", 1)])
        finally:
            await node.transport.stop()

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    async def test_a_port_that_is_taken_is_an_error(
        self, contexts: tuple[ssl.SSLContext, ssl.SSLContext], host: str
    ) -> None:
        server, client = contexts
        async with listening(server_tls=server, client_tls=client) as node:
            other = listening(server_tls=server, client_tls=client)
            other.transport._settings = replace(other.settings, raft_address=f"{host}:{node.port}")
            with pytest.raises(OSError, match="in use"):
                await other.transport.start(other.ears)


@pytest.mark.parametrize("turns", range(4))
async def test_a_stop_ends_a_dial_that_fails_in_the_same_moment(monkeypatch, turns):
    """`asyncio.wait_for` of Python 3.11 forgets a cancellation that comes together with a result,
    and the dialling went on for ever: a node that stopped as its peers did never ended.
    """
    refusing = asyncio.Event()
    dialling = asyncio.Event()

    async def refused(*_: Any, **__: Any) -> None:
        dialling.set()
        await refusing.wait()
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", refused)
    async with Node("n2", free_port(), {"n1": f"127.0.0.1:{free_port()}"}) as node:
        await asyncio.wait_for(dialling.wait(), 2)
        refusing.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        stopping = asyncio.ensure_future(node.transport.stop())
        done, _ = await asyncio.wait([stopping], timeout=2)
        assert done == {stopping}
