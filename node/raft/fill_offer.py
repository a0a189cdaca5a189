"""What is said in a fill: offers and chunks as they come, checked before anybody believes them."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from node.core.commands import decode, put_store
from node.core.fields import is_number
from node.core.portion import Portion
from node.raft import fill_lives, fill_snapshots, fill_subscriptions, plain

Chunk = tuple[Portion, bytes]  # and the digest behind it


class FillRefused(Exception):
    """The two histories do not fit together, or the other side makes no sense."""


class Offered(NamedTuple):
    """One store as the source describes it; `at` is its place in the offer."""

    at: int
    name: str
    uid: int
    created_us: int
    durability: str
    position: int
    checkpoints: int
    snapshots: fill_snapshots.Description
    subscriptions: dict[str, int]  # by name, the Raft index of the last change
    lives: fill_lives.Description
    moved: dict[str, tuple[int, int]]  # the checkpoints themselves, once they are brought


def offer_of(answer: Any) -> tuple[int, int, int, list[Offered]]:
    """Number, index, term and stores of an offer. Raises `FillRefused`."""
    try:
        number, description, value = answer
        _need(type(description) is bytes and hashlib.sha256(description).digest() == value)
        index, term, described = plain.loads(description)
        _need(all(map(is_number, (number, index, term))))
        offered = [_offered(at, one) for at, one in enumerate(described)]
        _need(len({one.name for one in offered}) == len({one.uid for one in offered}))
        _need(len({one.name for one in offered}) == len(offered))
    except (TypeError, ValueError, AttributeError) as error:
        raise FillRefused(f"an offer that makes no sense: {error}") from error
    return number, index, term, offered


def _offered(at: int, described: Any) -> Offered:
    name, uid, created_us, durability, position, checkpoints, *rest = described
    snapshots, subscribed, lives = rest
    description = fill_snapshots.Description(*snapshots)
    # Raises for what cannot be created.
    decode(put_store(name, created_us, durability, description.kept))
    _need(is_number(description.held) and type(description.digest) is bytes)
    _need(durability is not None and description.kept is not None)
    _need(is_number(uid) and is_number(position) and is_number(checkpoints))
    settled = description, fill_subscriptions.parsed(subscribed), fill_lives.parsed(lives)
    return Offered(at, name, uid, created_us, durability, position, checkpoints, *settled, {})


def chunk_of(answer: Any) -> Chunk:
    """A portion, and the digest behind it. Raises `FillRefused`."""
    try:
        *fields, value = answer
        taken = Portion(*fields)
        _need(is_number(taken.after) and type(value) is bytes)
        _need(all(type(names) is list for names in taken[1:3]))
        _need(all(type(name) is str for names in taken[1:3] for name in names))
        _need(all(type(column) is bytes for column in taken[3:]))
    except (TypeError, ValueError) as error:
        raise FillRefused(f"a chunk that makes no sense: {error}") from error
    return taken, value


def _need(condition: bool) -> None:
    if not condition:
        raise ValueError("a field is not as it must be")
