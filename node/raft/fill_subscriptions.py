"""The persistent subscriptions in a fill.

An offer names those of each store, with the Raft index of their last change: the same name and the
same index, in histories that are prefixes of one another, are the same subscription. So only those
that changed are brought. `fill_subscriptions (offer, store, places)` is answered with the states of
those at these places of the offer, as many from the beginning as fit a chunk, at least one, and
with a SHA-256 of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import cbor2

from node.core.store import Store
from node.core.subscription import Subscription
from node.core.subscription_state import Taken, decode, encode, take
from node.raft import plain

Ask = Callable[[list[int]], Awaitable[Any]]


def taken_of(store: Store) -> list[Taken]:
    """What is offered of a store."""
    return [take(one) for one in store.subscriptions.by_name.values()]


def described(store: Store) -> list[list[Any]]:
    """What the offer says of them."""
    return [[name, index] for name, index in changes(store).items()]


def changes(store: Store) -> dict[str, int]:
    """The same of a store: the Raft index of the last change of each subscription."""
    return {name: one.changed_index for name, one in store.subscriptions.by_name.items()}


def parsed(description: Any) -> dict[str, int]:
    """The same of a description. Raises `ValueError` or `TypeError`."""
    for name, index in description:
        if type(name) is not str or type(index) is not int or index < 0:
            raise ValueError("a subscription that is none")
    return {name: index for name, index in description}


def chunk(offered: Sequence[Taken], places: Sequence[int], bytes_max: int) -> list[bytes]:
    """The answer to a question."""
    states: list[bytes] = []
    for place in places:
        states.append(encode(offered[place]))
        if sum(map(len, states)) >= bytes_max:
            break
    packed = cbor2.dumps(states)
    return [packed, hashlib.sha256(packed).digest()]


async def bring(
    ask: Ask, wanted: dict[str, int], store: Store, live: Store | None
) -> dict[str, Subscription]:
    """The subscriptions of `store` as offered; what did not change comes from `live`, whose history
    is the same. Raises `ValueError` for answers that make no sense, and what `ask` raises."""
    known = {} if live is None else live.subscriptions.by_name
    brought = {
        name: known[name]
        for name, index in wanted.items()
        if name in known and known[name].changed_index == index
    }
    names = list(wanted)
    lacking = [place for place, name in enumerate(names) if name not in brought]
    while lacking:
        for state in _states(await ask(lacking), len(lacking)):
            name = names[lacking.pop(0)]
            brought[name] = decode(name, wanted[name], state, store)
    return {name: brought[name] for name in names}


def _states(answer: Any, most: int) -> list[bytes]:
    try:
        packed, digest = answer
    except TypeError as error:
        raise ValueError("subscriptions that are none") from error
    if type(packed) is not bytes or hashlib.sha256(packed).digest() != digest:
        raise ValueError("subscriptions with another digest")
    states = plain.loads(packed)
    if type(states) is not list or not 0 < len(states) <= most:
        raise ValueError("subscriptions that were not asked for")
    if any(type(state) is not bytes for state in states):
        raise ValueError("subscriptions that are none")
    return states
