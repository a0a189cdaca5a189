"""Keys of maps that were chosen to be slow are refused before anything is decoded."""

from __future__ import annotations

import random
import struct
import time
from typing import Any

import cbor2
import pytest

from node.api.map_keys import INTEGER_KEYS_MAX, VALUES_MAX, UnusualKeys, check_keys
from node.api.values import NotPlain, are_plain_items, decode_cbor
from tests.api.fakes import Node

EVENTS = "/v1/stores/main/streams/s/events"


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


def test_a_map_of_integers_that_collide_is_refused_at_once():
    encoded = colliding_integers(14)
    began = time.process_time()
    with pytest.raises(NotPlain, match="more than 256 integers"):
        decode_cbor(encoded, 64)
    assert not are_plain_items([encoded], 64)
    assert time.process_time() - began < 0.05, "a hundred times less than decoding it takes"


def test_arrays_as_keys_are_refused_before_they_are_hashed():
    encoded = b"\xb9\x0f\xa0" + b"".join(cbor2.dumps([at, -at]) + b"\x00" for at in range(4_000))
    with pytest.raises(NotPlain, match="must be text or integers"):
        decode_cbor(encoded, 64)


async def test_such_events_are_not_stored(node: Node):
    data = colliding_integers(10)
    head = cbor2.dumps({"events": [{"event_type": "A", "data": 0}]})[:-1]
    cbor = {"Content-Type": "application/cbor"}
    answer = await node.ask("POST", EVENTS, data=head + data, headers=cbor)
    assert (answer.status, answer.code) == (400, "invalid_request")
    few = cbor2.dumps({at: [at] for at in range(INTEGER_KEYS_MAX)})
    answer = await node.ask("POST", EVENTS, data=head + few, headers=cbor)
    assert answer.status == 201


def test_what_has_integer_keys_has_a_bounded_number_of_values():
    check_keys(cbor2.dumps({1: [0] * (VALUES_MAX - 10)}))
    with pytest.raises(UnusualKeys, match="values"):
        check_keys(cbor2.dumps({1: [0] * VALUES_MAX}))


def value(chance: random.Random, depth: int) -> Any:
    kinds = [None, True, 1.5, -3, 2**40, 2**70, "t" * chance.randrange(300), b"\xff\xbf" * 9]
    if depth and chance.random() < 0.6:
        items = [value(chance, depth - 1) for _ in range(chance.randrange(6))]
        if chance.random() < 0.5:
            return items
        keys = chance.sample([*"abcdef", *range(-3, 300, 40), 2**33, 2**65, b"b"], len(items))
        return dict(zip(keys, items, strict=True))
    return chance.choice(kinds)


def test_the_walk_sees_what_a_decoder_sees():
    """In random items, whole and cut, with lengths that are said in advance and without."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(400):
        item = value(chance, 5)
        small = value(chance, 2)
        many = dict.fromkeys(range(INTEGER_KEYS_MAX + chance.choice([0, 1])), small)
        for encoded in (cbor2.dumps([item, many, "end"]), unsaid([item, many, "end"])):
            try:
                check_keys(encoded)
            except UnusualKeys:
                assert len(many) > INTEGER_KEYS_MAX
            else:
                assert len(many) == INTEGER_KEYS_MAX
            check_keys(encoded[: chance.randrange(20)])


def unsaid(item: Any) -> bytes:
    """The item encoded without lengths of arrays, maps and strings."""
    if isinstance(item, list):
        return b"\x9f" + b"".join(map(unsaid, item)) + b"\xff"
    if isinstance(item, dict):
        return b"\xbf" + b"".join(unsaid(k) + unsaid(v) for k, v in item.items()) + b"\xff"
    if isinstance(item, str) and item:
        return b"\x7f" + cbor2.dumps(item[:2]) + cbor2.dumps(item[2:]) + b"\xff"
    return cbor2.dumps(item)
