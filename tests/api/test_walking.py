"""Items are walked over: no map is slow to decode, and nobody else is kept waiting."""

from __future__ import annotations

import random
import struct
import time
from contextlib import suppress
from typing import Any

import cbor2
import pytest

from node.api.limits import INTEGER_KEYS_MAX
from node.api.not_plain import NotPlain, TooManyIntegerKeys, UnusualKeys
from node.api.values import are_plain_items, decode_cbor
from node.api.walking import check_keys, id_of, parts_of
from tests.api.fakes import Node, Turns

EVENTS = "/v1/stores/main/streams/s/events"
CBOR = {"Content-Type": "application/cbor"}


def colliding_integers(bits: int) -> bytes:
    """A map whose keys fill the places where Python looks for them, one after the other."""
    size = 1 << bits
    chain = [12345 & (size - 1)]
    while len(chain) < size * 36 // 100:
        chain.append((5 * chain[-1] + 1) & (size - 1))
    taken = bytearray(size)
    for place in chain:
        taken[place] = 1
    keys, candidate = chain.copy(), size
    while len(keys) < size * 60 // 100:
        place, perturb = candidate & (size - 1), candidate
        while taken[place] and (perturb := perturb >> 5):
            place = (place * 5 + perturb + 1) & (size - 1)
        if taken[place]:
            keys.append(candidate)
        candidate += 1
    items = b"".join(b"\x1a" + struct.pack(">I", key) + b"\x00" for key in keys)
    return b"\xba" + struct.pack(">I", len(keys)) + items


def body_of(*data: Any) -> bytes:
    return cbor2.dumps({"events": [{"event_type": "A", "data": each} for each in data]})


async def test_a_map_of_integers_that_collide_is_refused_at_once():
    encoded = colliding_integers(14)
    began = time.process_time()
    with pytest.raises(TooManyIntegerKeys):
        await decode_cbor(encoded, 64)
    assert not are_plain_items([encoded], 64)
    assert time.process_time() - began < 0.05, "a hundred times less than decoding it takes"


async def test_arrays_as_keys_are_refused_before_they_are_hashed():
    encoded = b"\xb9\x0f\xa0" + b"".join(cbor2.dumps([at, -at]) + b"\x00" for at in range(4_000))
    with pytest.raises(UnusualKeys, match="must be text or integers"):
        await decode_cbor(encoded, 64)


@pytest.mark.parametrize(
    "key", [b"\x80", b"\x82\x01\x02", b"\xa1\x01\x02", b"\xf6", b"\xf9\x3e\x00"]
)
async def test_other_keys_are_refused_in_short_bodies_and_long_ones(node: Node, key: bytes):
    short = body_of(0)[:-1] + b"\xa1" + key + b"\x01"
    for body in (
        short,
        body_of("x" * 1_000, 0)[:-1] + b"\xa1" + key + b"\x01",
        b"\xa1" + key + b"\x01",
    ):
        answer = await node.ask("POST", EVENTS, data=body, headers=CBOR)
        assert (answer.status, answer.body["stored"]) == (400, "no")


async def test_how_many_integer_keys_a_map_may_have_is_a_published_limit(node: Node):
    limits = (await node.ask("GET", "/v1/info")).body["limits"]
    few = {key: [0] for key in range(limits["integer_keys_max"])}
    assert (await node.ask("POST", EVENTS, data=body_of(few), headers=CBOR)).status == 201
    for many in (cbor2.dumps(few | {-1: 0}), colliding_integers(10)):
        answer = await node.ask("POST", EVENTS, data=body_of(0)[:-1] + many, headers=CBOR)
        assert (answer.status, answer.code) == (413, "payload_too_large")
        assert (answer.body["limit"], answer.body["actual"]) == (len(few), len(few) + 1)


async def test_a_batch_with_integer_keys_may_be_as_large_as_any(node: Node):
    body = body_of(*({1: n, 2: "x", 3: [n % 24 for n in range(30)]} for n in range(7_000)))
    answer = await node.ask("POST", EVENTS, data=body, headers=CBOR)
    assert answer.status == 201, answer.body


async def test_a_long_walk_gives_others_turns():
    encoded = cbor2.dumps({1: [1] * 1_000_000})
    async with Turns() as turns:
        await check_keys(encoded)
    assert turns.longest_s < turns.took_s / 10


async def test_many_short_walks_give_others_turns():
    encoded = cbor2.dumps({1: [1] * 2_000})
    async with Turns() as turns:
        for _ in range(300):
            await check_keys(encoded)
    assert turns.longest_s < turns.took_s / 10


def value(chance: random.Random, depth: int) -> Any:
    kinds = [None, True, 1.5, -3, 2**40, 2**70, "t" * chance.randrange(300), b"\xff\xbf" * 9]
    if depth and chance.random() < 0.6:
        items = [value(chance, depth - 1) for _ in range(chance.randrange(6))]
        if chance.random() < 0.5:
            return items
        keys = chance.sample([*"abcdef", *range(-3, 300, 40), 2**33, 2**65, b"b"], len(items))
        return dict(zip(keys, items, strict=True))
    return chance.choice(kinds)


async def test_the_walk_sees_what_a_decoder_sees():
    """In random items, whole and cut, with lengths that are said in advance and without."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(200):
        item = value(chance, 5)
        small = value(chance, 2)
        many = dict.fromkeys(range(INTEGER_KEYS_MAX + chance.choice([0, 1])), small)
        for encoded in (cbor2.dumps([item, many, "end"]), unsaid([item, many, "end"])):
            try:
                await check_keys(encoded)
            except TooManyIntegerKeys:
                assert len(many) > INTEGER_KEYS_MAX
            else:
                assert len(many) == INTEGER_KEYS_MAX
            with suppress(TooManyIntegerKeys):
                await check_keys(encoded[: chance.randrange(len(encoded))])


async def test_a_message_is_split_where_its_requests_end():
    """Random ones, with lengths said in advance and without; cut, or longer, they are none."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(300):
        items = [[value(chance, 3) for _ in range(chance.randrange(4))] for _ in range(4)]
        parts = [chance.choice((cbor2.dumps, unsaid))(item) for item in items]
        joined = b"".join(parts)
        for message in (
            b"\x84" + joined,
            b"\x9a\x00\x00\x00\x04" + joined,
            b"\x9f" + joined + b"\xff",
        ):
            assert await parts_of(message) == parts
            cut = message[: chance.randrange(len(message))]
            for wrong in (cut, message + b"\x80", b"\xc6" + message, b"\x81" + message[:-1]):
                with pytest.raises(NotPlain, match="array of requests"):
                    await parts_of(wrong)


@pytest.mark.parametrize("other", [0, "x", b"x", {}, None, 1.5, 2**70])
async def test_a_message_with_anything_else_than_arrays_is_no_array_of_requests(other: Any):
    assert await parts_of(b"\x80") == await parts_of(b"\x9f\xff") == []
    for message in (other, [other], [[], other], [other, []]):
        with pytest.raises(NotPlain, match="array of requests"):
            await parts_of(cbor2.dumps(message))


def test_the_id_of_a_request_stands_behind_its_kind():
    for number in (0, 23, 24, 2**8, 2**16, 2**63 - 1):
        for encode in (cbor2.dumps, unsaid):
            assert id_of(encode(["", number])) == id_of(encode(["", number, [[]], 5])) == number
    for request in (
        [],
        ["append"],
        [1, 2],
        [["x"], 2],
        ["x", "2"],
        ["x", -1],
        ["x", [1]],
        ["x", None],
    ):
        assert id_of(cbor2.dumps(request)) is None


def unsaid(item: Any) -> bytes:
    """The item encoded without lengths of arrays, maps and strings."""
    if isinstance(item, list):
        return b"\x9f" + b"".join(map(unsaid, item)) + b"\xff"
    if isinstance(item, dict):
        return b"\xbf" + b"".join(unsaid(k) + unsaid(v) for k, v in item.items()) + b"\xff"
    if isinstance(item, str) and item:
        return b"\x7f" + cbor2.dumps(item[:2]) + cbor2.dumps(item[2:]) + b"\xff"
    return cbor2.dumps(item)
