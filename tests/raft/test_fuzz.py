"""The raft port under fire: nothing a stranger or a mad member sends stops, stalls or fills a node.

Everything here runs against whole replicas on real sockets. The fast tests send a few thousand
frames, the slow ones a hundred thousand; each prints its seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import random
import resource
from collections.abc import AsyncIterator, Iterator

import cbor2
import pytest

from node.core.outcomes import Appended
from node.raft import messages, plain
from node.raft.replica import Replica
from node.raft.session import HELLO_BYTES_MAX
from tests.raft.fuzzing import HELLO, TRAPS, Complaints, Fuzzer, Pulse, complaints, framed
from tests.raft.test_real_cluster import append, cluster
from tests.raft.wire import Hand, until

STALL_MS_MAX = 50
FEW, MANY = 2_000, 100_000
COUNTS = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]
HALF_OPEN = 1_000


@pytest.fixture
def seed() -> int:
    chosen = random.randrange(10**6)
    print(f"seed {chosen}")
    return chosen


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """As a node does once it is loaded: what was there before is not walked again and again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _brief(caplog: pytest.LogCaptureFixture) -> None:
    """What is expected is not kept: a hundred thousand log lines would be what stalls the loop."""
    for name, level in (("session", logging.ERROR), ("guard", logging.CRITICAL + 1)):
        caplog.set_level(level, f"node.raft.{name}")


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[Pulse]:
    """No complaint, and no stall, until the end of the block."""
    with complaints() as heard:
        async with Pulse() as pulse:
            yield pulse
        _nothing(heard)
    print(f"the loop was held for at most {pulse.worst_ms:.1f} ms")
    assert pulse.worst_ms < STALL_MS_MAX


def _nothing(heard: Complaints) -> None:
    assert heard.found == []


async def strange(port: int, fuzzer: Fuzzer, recorded: list[bytes]) -> None:
    """One connection of a stranger."""
    async with await Hand.dial(port) as hand:
        if fuzzer.chance.random() < 0.1 and await hand.greet(sender="n3"):
            # It may repeat what it has overheard, and what it is told.
            recorded.append(hand.theirs[-1])
            hand.say([fuzzer.chance.choice(recorded)])
            assert await hand.closed()
        else:
            hand.raw(fuzzer.noise())
            if fuzzer.chance.random() < 0.5:
                await asyncio.sleep(0.005)  # to be heard before the connection is gone


@pytest.mark.parametrize("frames", COUNTS)
async def test_what_strangers_send_disturbs_nobody(frames: int, seed: int) -> None:
    fuzzer, recorded = Fuzzer(seed), list[bytes]()
    async with cluster() as (nodes, ports), watched():
        term = nodes["n1"].status().term

        async def strangers() -> None:
            for _ in range(frames // 10):
                await strange(ports["n1"], fuzzer, recorded)

        senders = [asyncio.create_task(strangers()) for _ in range(10)]
        number = 0
        while not all(sender.done() for sender in senders):
            number += 1
            outcome, _ = await nodes[f"n{number % 3 + 1}"].propose(append(number), 5000)
            assert isinstance(outcome, Appended)
        await asyncio.gather(*senders)

        await until(lambda: not nodes["n1"]._network._strangers)  # type: ignore[attr-defined]
        assert nodes["n1"].status().term == term
        for node in nodes.values():
            assert node.alarms == []


async def test_a_thousand_connections_that_say_half_a_word_are_few_at_a_time() -> None:
    async with cluster() as (nodes, ports), watched():
        network = nodes["n1"]._network
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        hands = []
        for number in range(HALF_OPEN):
            hands.append(await Hand.dial(ports["n1"]))
            hands[-1].raw(framed(b"\x87" * HELLO_BYTES_MAX)[: number % 1000])
            if number % 10 == 0:
                outcome, _ = await nodes["n2"].propose(append(number + 1), 5000)
                assert isinstance(outcome, Appended)
        strangers = network._strangers  # type: ignore[attr-defined]
        assert len(strangers) <= nodes["n1"].settings.strangers_max
        assert all(len(one._buffer) <= HELLO_BYTES_MAX for one in strangers)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"memory grew by {grown_kib} KiB, the thousand ends of this test included")
        await until(lambda: not strangers)
        for hand in hands:
            await hand.close()


class Mad:
    """n3, which knows the secret and says whatever the fuzzer makes up.

    It speaks of terms that have a leader, and of those up to `leap` after them. In a term that has
    none, its word that it leads would be as good as that of any other member.
    """

    def __init__(self, port: int, node: Replica, fuzzer: Fuzzer, leap: int) -> None:
        self._port = port
        self._node = node
        self._fuzzer = fuzzer
        self._leap = leap

    async def rave(self, frames: int) -> None:
        """Send so many frames, with as many sessions as that takes."""
        while frames > 0:
            async with await Hand.dial(self._port) as hand:
                if not await hand.greet(sender="n3", receiver=self._node.settings.node_id):
                    continue  # the node is not listening, or is full for a moment
                hand.say([hand.prove()])
                frames -= await self._burst(hand, min(frames, 10))

    async def _burst(self, hand: Hand, frames: int) -> int:
        gone = asyncio.create_task(hand.closed())
        sent = 0
        while sent < frames and not gone.done():
            hand.frame(self._message())
            sent += 1
            await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        return sent

    def _message(self) -> bytes:
        term, index = self._node.status().term, self._node.applied_index
        if self._node.leader is None:
            term -= 1
        return self._fuzzer.message(term, index, term + self._leap)


def test_a_fuzzed_message_is_of_no_later_term_than_allowed(seed: int) -> None:
    fuzzer = Fuzzer(seed)
    for _ in range(20_000):
        with contextlib.suppress(messages.MalformedMessage):
            assert getattr(messages.decode(fuzzer.message(4, 9, 4)), "term", 0) <= 4


def _print_understood(node: Replica, frames: int) -> None:
    understood = node.counters()["messages_received"]
    print(f"{node.settings.node_id} understood {understood} messages, its peer's included")
    assert understood > frames // 2, "most of it was never looked at"


@contextlib.asynccontextmanager
async def without_n3() -> AsyncIterator[tuple[dict[str, Replica], dict[str, int]]]:
    """Three nodes of which n3 is gone, and n1 or n2 leads."""
    async with cluster() as (nodes, ports):
        await nodes["n3"].stop()
        two = [nodes["n1"], nodes["n2"]]
        await until(lambda: any(node.leads and not node.not_ready_reasons() for node in two))
        yield nodes, ports


@pytest.mark.parametrize("frames", COUNTS)
async def test_a_mad_member_in_the_term_of_the_others_stops_nothing(frames: int, seed: int) -> None:
    async with without_n3() as (nodes, ports), watched():
        raving = [
            asyncio.create_task(
                Mad(ports[one], nodes[one], Fuzzer(seed + at), leap=0).rave(frames // 2)
            )
            for at, one in enumerate(("n1", "n2"))
        ]
        number = 0
        while not all(task.done() for task in raving):
            number += 1
            outcome, _ = await nodes["n1"].propose(append(number), 20_000)
            assert isinstance(outcome, Appended)
        await asyncio.gather(*raving)
        _print_understood(nodes["n1"], frames // 2)

        outcome, index = await nodes["n2"].propose(append(number + 1), 10_000)
        for node_id in ("n1", "n2"):
            await nodes[node_id].wait_applied(index, 5000)
            nodes[node_id].state.check()
            assert nodes[node_id].state.stores["main"].position == number + 1


@pytest.mark.parametrize("frames", COUNTS)
async def test_a_mad_member_of_any_term_wedges_no_node(frames: int, seed: int) -> None:
    """It may lead, and so decide what is in the log; what it decides must still be survived."""
    async with without_n3() as (nodes, ports), watched():
        await asyncio.gather(
            *(
                Mad(ports[one], nodes[one], Fuzzer(seed + at), leap=2**62).rave(frames // 2)
                for at, one in enumerate(("n1", "n2"))
            )
        )
        _print_understood(nodes["n1"], frames // 2)
        for node_id in ("n1", "n2"):
            turned: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            nodes[node_id].state.check()
            asyncio.get_running_loop().call_soon(turned.set_result, None)
            await turned
            assert nodes[node_id].status().term < 2**61, "terms are left to elect a leader in"


async def test_no_trap_in_a_greeting_costs_time() -> None:
    async with cluster() as (_, ports), watched():
        for trap in TRAPS:
            for at in range(len(HELLO)):
                fields = [cbor2.dumps(field) for field in HELLO]
                fields[at] = trap
                async with await Hand.dial(ports["n1"]) as hand:
                    hand.frame((b"\x88" + b"".join(fields))[:HELLO_BYTES_MAX])
                    assert await hand.closed()


def test_no_tag_is_understood() -> None:
    contents = (0, 5.5, "x", b"x" * 16, "2020-01-01T00:00:00Z", [1, 2], {"a": 1}, None)
    for tag, content in itertools.product((*range(300), 1004, 43000, 55799, 2**63), contents):
        with pytest.raises(plain.NotPlain):
            plain.loads(cbor2.dumps(cbor2.CBORTag(tag, content)))
