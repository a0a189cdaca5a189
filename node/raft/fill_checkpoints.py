"""The checkpoints of a store in a fill: where each stands, and since when.

An offer has how many there are, and holds on to them as they were. All of them are brought, a chunk
after the other: there may be any number, and what does not fit a frame between nodes never arrives.

    fill_checkpoints (offer, store, from)  those from the `from`th on, as many as a chunk has, and a
                                           SHA-256 of them
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import cbor2

from node.core.fields import is_number
from node.core.store import Store
from node.raft import plain

CHECKPOINTS_A_CHUNK = 512  # with the longest names some 140 KiB

Ask = Callable[[int], Awaitable[Any]]


class Taken(NamedTuple):
    """Checkpoints as of one moment, in columns."""

    names: list[str]
    positions: list[int]
    indexes: list[int]


def taken_of(store: Store) -> Taken:
    """What is offered of a store."""
    names = list(store.checkpoints)
    indexes = list(map(store.checkpoint_index.__getitem__, names))
    return Taken(names, list(store.checkpoints.values()), indexes)


def chunk(offered: Taken, first: int) -> list[Any]:
    """The answer to a question."""
    part = slice(first, first + CHECKPOINTS_A_CHUNK)
    packed = cbor2.dumps([column[part] for column in offered])
    return [packed, hashlib.sha256(packed).digest()]


async def bring(ask: Ask, held: int) -> dict[str, tuple[int, int]]:
    """All that were offered: name -> (position, Raft index of the last move).

    Raises `ValueError` for answers that make no sense, and what `ask` raises.
    """
    brought: dict[str, tuple[int, int]] = {}
    while len(brought) < held:
        known = len(brought)
        brought.update(_checked(await ask(known), held - known))
        if len(brought) == known:
            raise ValueError("checkpoints that were brought already")
    return brought


def _checked(answer: Any, most: int) -> dict[str, tuple[int, int]]:
    try:
        packed, digest = answer
    except (TypeError, ValueError) as error:
        raise ValueError("checkpoints that are none") from error
    if type(packed) is not bytes or hashlib.sha256(packed).digest() != digest:
        raise ValueError("checkpoints with another digest")
    columns = plain.loads(packed)
    if type(columns) is not list or len(columns) != 3 or not all(type(c) is list for c in columns):
        raise ValueError("checkpoints that are none")
    names, *numbers = columns
    if not 0 < len(names) <= most or any(len(column) != len(names) for column in numbers):
        raise ValueError("checkpoints that were not asked for")
    if not all(type(name) is str for name in names) or len(set(names)) != len(names):
        raise ValueError("checkpoints that are none")
    if not all(map(is_number, (one for column in numbers for one in column))):
        raise ValueError("checkpoints that are none")
    return dict(zip(names, zip(*numbers, strict=True), strict=True))
