"""Several appends in one command, each for itself: `Store.append` for all appends of a turn.

What comes of them is what would come of one `Store.append` after the other, and `_in_turn` does
just that. But almost always all event ids are new. Then only the streams are looked at one after
the other, and the columns grow by all events at once, at half of the cost. It is a part of `Store`
that stands apart for its length, and so it reaches into the columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress, repeat

from node.core.commands import ANY, NO_STREAM, AppendEach
from node.core.frames import frame_id
from node.core.outcomes import (
    Appended,
    AppendedEach,
    EventIdReused,
    StreamDeleted,
    WrongExpectedVersion,
)
from node.core.store import Store
from node.core.stream import NO_LIMITS
from node.core.versions import as_expected

_Others = dict[int, Appended | WrongExpectedVersion | EventIdReused | StreamDeleted]


def append_each(store: Store, command: AppendEach, index: int) -> AppendedEach:
    """Append to several streams, each where its own writer expects it, or find an earlier try.

    `index` is the Raft index of the command.
    """
    frames = command.frames
    ids = list(map(frame_id, frames))
    if store._recent.knows_any(ids) or len(set(ids)) < len(ids):
        return _in_turn(store, command, index)
    ordinals: list[int] = []
    numbers: list[int] = []
    outcome = _place(store, command, index, ordinals, numbers)
    if outcome.others:
        stored = [place not in outcome.others for place in range(len(command.counts))]
        taken = list(_by_event(stored, command.counts))
        frames, ids = list(compress(frames, taken)), list(compress(ids, taken))
    if frames:
        _write(store, ordinals, numbers, frames, ids, command.created_us)
        if len(store.lives):
            _limit(store, ordinals)
    return outcome


def _place(
    store: Store, command: AppendEach, index: int, ordinals: list[int], numbers: list[int]
) -> AppendedEach:
    """Give the events their positions; `ordinals` and `numbers` are to get those of each."""
    streams, position = store.streams, store.position
    first_numbers: list[int] = []
    first_positions: list[int] = []
    others: _Others = {}
    for stream, expected, count in zip(
        command.streams, command.expected, command.counts, strict=True
    ):
        found = streams.get(stream)
        current = NO_STREAM if found is None else len(found.positions) - 1
        refusal: WrongExpectedVersion | StreamDeleted | None = None
        if found is None and store.lives.is_over(stream):
            refusal = StreamDeleted(stream)
        elif expected != ANY and not as_expected(expected, current):
            refusal = WrongExpectedVersion(stream, expected, current)
        if refusal is not None:
            others[len(first_numbers)] = refusal
            first_numbers.append(0)
            first_positions.append(0)
            continue
        if found is None:
            found = store._begin(stream, index)
        number = len(found.positions)
        first_numbers.append(number)
        first_positions.append(position + 1)
        if count == 1:
            found.positions.append(position + 1)
            ordinals.append(found.ordinal)
            numbers.append(number)
        else:
            found.positions.extend(range(position + 1, position + 1 + count))
            ordinals.extend(repeat(found.ordinal, count))
            numbers.extend(range(number, number + count))
        position += count
    return AppendedEach(first_numbers, first_positions, others)


def _write(
    store: Store,
    ordinals: Sequence[int],
    numbers: Sequence[int],
    frames: Sequence[bytes],
    ids: Sequence[bytes],
    created_us: int,
) -> None:
    """Add the events to the columns."""
    created, after = store._created, len(store._frames)
    if created and created[-1] > created_us:
        created_us = created[-1]
    store._frames.extend(frames)
    store._stream_of.extend(ordinals)
    store._number_of.extend(numbers)
    created.extend(repeat(created_us, len(frames)))
    store._type_of.extend(map(store._type, frames))
    store._recent.extend(ids, range(after + 1, after + 1 + len(frames)))
    store.frame_bytes += sum(map(len, frames))


def _limit(store: Store, ordinals: Sequence[int]) -> None:
    """Remove what the streams' limits no longer allow."""
    for ordinal in dict.fromkeys(ordinals):
        stream = store.stream_list[ordinal]
        if stream.limits is not NO_LIMITS:
            store.lives.appended(stream, store)


def _in_turn(store: Store, command: AppendEach, index: int) -> AppendedEach:
    """The same, one append after the other."""
    numbers: list[int] = []
    positions: list[int] = []
    others: _Others = {}
    at = 0
    for stream, expected, count in zip(
        command.streams, command.expected, command.counts, strict=True
    ):
        frames = command.frames[at : at + count]
        at += count
        outcome = store.append(stream, expected, frames, command.created_us, index)
        if type(outcome) is Appended and not outcome.idempotent:
            numbers.append(outcome.first_version)
            positions.append(outcome.positions[0])
        else:
            others[len(numbers)] = outcome
            numbers.append(0)
            positions.append(0)
    return AppendedEach(numbers, positions, others)


def _by_event(of_appends: Iterable[bool], counts: Iterable[int]) -> Iterator[bool]:
    return chain.from_iterable(map(repeat, of_appends, counts))
