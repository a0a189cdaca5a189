"""Snapshots of aggregates, as a fill brings them.

Unlike events they change and go, so the source holds on to those that there were when it made the
offer: a list of references. Both sides know a snapshot by its place in the replicated history (see
`core.snapshots`), so what is asked for is just what the asking node lacks:

    fill_places (offer, store, from)      the places of the offered snapshots, in order, from the
                                          `from`th on: as many as fit a chunk, 8 bytes each
    fill_snapshots (offer, store, from, until)
                                          the snapshots themselves: as many as fit a chunk, at least
                                          one

The offer has their number and the digest of all of them. If it is that of the asking node's own,
nothing is asked for. Otherwise those with a place that this node knows are taken from here, the
others are brought, one question at a time, and the digest of the whole must be the offered one.
If it is not, the two histories differ: that is an alarm, and all are brought.

What was brought is kept like the unfinished stores of a fill that broke off.
"""

from __future__ import annotations

import asyncio
import sys
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import accumulate, pairwise, takewhile
from typing import Any, NamedTuple

from node.core.commands import decode, put_snapshot
from node.core.snapshots import Snapshot, Snapshots

PLACES_A_CHUNK = 32 * 1024
SNAPSHOTS_A_CHUNK = 1_024

_PLACE_BYTES = 8
_LOAD_BYTES = 1024 * 1024  # loaded between two turns of the event loop: about a millisecond
_LOADED_MAX = 500

Ask = Callable[[str, list[Any]], Awaitable[Any]]


class Description(NamedTuple):
    """What an offer says of a store's snapshots."""

    kept: int
    held: int
    digest: bytes


def described(snapshots: Snapshots) -> list[Any]:
    """The `Description` of these as it travels."""
    return [snapshots.kept, len(snapshots), _bytes_of(snapshots.digest)]


def fits(snapshots: Snapshots, wanted: Description) -> bool:
    """Whether these are the offered ones."""
    return _bytes_of(snapshots.digest) == wanted.digest


# --- the source's answers ------------------------------------------------------------------------


def places(offered: Sequence[Snapshot], first: int) -> bytes:
    """A chunk of places, least significant byte first."""
    packed = array("Q", (one.place for one in offered[first : first + PLACES_A_CHUNK]))
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def chunk(offered: Sequence[Snapshot], first: int, until: int, bytes_max: int) -> list[Any]:
    """A chunk of snapshots, as lists of their fields."""
    part = offered[first : min(until, first + SNAPSHOTS_A_CHUNK)]
    sizes = accumulate(len(one.content) for one in part)
    fitting = sum(1 for _ in takewhile(lambda size: size <= bytes_max, sizes))
    return [list(one) for one in part[: max(1, fitting)]]


# --- the side that lacks something ---------------------------------------------------------------


async def bring(
    ask: Ask,
    wanted: Description,
    own: Snapshots | None,
    brought: dict[int, Snapshot],
    alarm: Callable[[str], None],
) -> Snapshots:
    """The snapshots as offered: this node's `own`, if they are the same, else new ones.

    What is brought is put into `brought`, by place. `ask(topic, [...])` puts a question about this
    store. Raises `ValueError` for answers that make no sense, and what `ask` raises.
    """
    if own is not None and fits(own, wanted):
        return own
    known = {one.place: one for one in own.all()} if own is not None else {}
    order = await _places(ask, wanted.held)
    await _lacking(ask, order, known, brought)
    made = await _made(wanted, [known.get(place) or brought[place] for place in order])
    if made is None and known:
        alarm("the snapshots differ, all of them are brought over")
        brought.clear()
        await _lacking(ask, order, {}, brought)
        made = await _made(wanted, [brought[place] for place in order])
    if made is None:
        brought.clear()
        raise ValueError("the snapshots are not those that were offered")
    return made


async def _places(ask: Ask, count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        packed = await ask("fill_places", [len(found)])
        if type(packed) is not bytes or not packed or len(packed) % _PLACE_BYTES:
            raise ValueError("places that are none")
        part = array("Q", packed)
        if sys.byteorder == "big":
            part.byteswap()
        found.extend(part)
    if len(found) != count or any(b <= a for a, b in pairwise(found)):
        raise ValueError("places that are out of order, or too many")
    return found


async def _lacking(
    ask: Ask, order: list[int], known: dict[int, Snapshot], brought: dict[int, Snapshot]
) -> None:
    """Bring what is neither known nor brought already."""
    for first, until in _runs(order, known, brought):
        at = first
        while at < until:
            answer = await ask("fill_snapshots", [at, until])
            if type(answer) is not list or not 0 < len(answer) <= until - at:
                raise ValueError("snapshots that were not asked for")
            for place, fields in zip(order[at : at + len(answer)], answer, strict=True):
                brought[place] = _checked(fields, place)
            at += len(answer)


def _runs(
    order: list[int], known: dict[int, Snapshot], brought: dict[int, Snapshot]
) -> Iterator[tuple[int, int]]:
    """Ranges of `order` that are lacking, as (first, until)."""
    first = None
    for at, place in enumerate(order):
        if place in known or place in brought:
            if first is not None:
                yield first, at
                first = None
        elif first is None:
            first = at
    if first is not None:
        yield first, len(order)


async def _made(wanted: Description, snapshots: list[Snapshot]) -> Snapshots | None:
    """The whole of them; None if that is not what was offered."""
    made = Snapshots()
    size, at = 0, 0
    try:
        for until, one in enumerate(snapshots, 1):
            size += len(one.content)
            if size >= _LOAD_BYTES or until - at >= _LOADED_MAX:
                made.load(snapshots[at:until])
                size, at = 0, until
                await asyncio.sleep(0)
        made.load(snapshots[at:])
    except ValueError:
        return None
    return made if fits(made, wanted) else None


def _checked(fields: Any, place: int) -> Snapshot:
    """What came, if it could have been recorded. Raises `ValueError`."""
    if type(fields) is not list or len(fields) != len(Snapshot._fields) or fields[4] != place:
        raise ValueError("a snapshot of another place")
    source, stream, version, created_us, _, content = fields
    decode(put_snapshot("any", created_us, source, stream, version, content))
    return Snapshot(source, stream, version, created_us, place, content)


def _bytes_of(digest: int) -> bytes:
    return digest.to_bytes(32, "big")
