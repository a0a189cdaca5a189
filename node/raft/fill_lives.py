"""The lives of streams in a fill: which are deleted or limited, and what of them is removed.

An offer has how many lives a store has and their digest (see `core.lives`). If these are the asking
node's own, nothing is asked for. Otherwise all are brought, a few bytes each, and loaded into the
store that is made beside the one that is read, once all of its events are there: what a stream
keeps belongs to the same index as the rest.

    fill_lives (offer, store, from)       the lives from the `from`th on, in order of change: as
                                          many as fit a chunk
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from node.core.fields import is_number
from node.core.life_commands import limits_of
from node.core.lives import Life, Lives
from node.core.store import Store

_LIVES_A_CHUNK = 4_096
_LIVES_A_STEP = 250  # loaded between two turns of the event loop: about a millisecond
_DIGEST_BYTES = 32

Ask = Callable[[int], Awaitable[Any]]


class Description(NamedTuple):
    """What an offer says of a store's lives."""

    held: int
    digest: bytes


def described(lives: Lives) -> list[Any]:
    """The `Description` of these as it travels."""
    return [len(lives), _bytes_of(lives)]


def parsed(description: Any) -> Description:
    """The inverse. Raises `ValueError` or `TypeError`."""
    held, digest = description
    if not is_number(held) or type(digest) is not bytes:
        raise ValueError("lives that are none")
    return Description(held, digest)


def fits(lives: Lives, wanted: Description) -> bool:
    """Whether these are the offered ones."""
    return _bytes_of(lives) == wanted.digest


def chunk(offered: Sequence[Life], first: int) -> list[Any]:
    """The answer to a question."""
    return [[*life[:4], *life.limits] for life in offered[first : first + _LIVES_A_CHUNK]]


async def bring(ask: Ask, wanted: Description) -> list[Life]:
    """All that was offered. Raises `ValueError` for what makes no sense, and what `ask` raises."""
    brought: list[Life] = []
    while len(brought) < wanted.held:
        answer = await ask(len(brought))
        if type(answer) is not list or not 0 < len(answer) <= wanted.held - len(brought):
            raise ValueError("lives that were not asked for")
        brought.extend(map(_checked, answer))
    return brought


async def load(store: Store, lives: Sequence[Life], wanted: Description) -> None:
    """Load them into a store that nobody reads yet. Raises `ValueError` where they do not fit."""
    for at in range(0, len(lives), _LIVES_A_STEP):
        store.lives.load(lives[at : at + _LIVES_A_STEP], store)
        await asyncio.sleep(0)
    store.load_lives(())
    if not fits(store.lives, wanted):
        raise ValueError(f"the lives of store {store.name} are not those that were offered")


def _checked(fields: Any) -> Life:
    if type(fields) is not list or len(fields) != 7 or not all(map(is_number, fields[:4])):
        raise ValueError("a life that is none")
    ordinal, changed_index, state, first, *limits = fields
    return Life(ordinal, changed_index, state, first, limits_of(limits))


def _bytes_of(lives: Lives) -> bytes:
    return lives.digest.to_bytes(_DIGEST_BYTES, "big")
