"""What can be asked of the replicated state, and how it travels.

A command is a CBOR array that begins with the format version and the kind. It is encoded once, by
the node that took the request, and decoded by every node when it is applied. Whatever is decided
by the node that took the request stands in it as data: the time (`created_us`, microseconds since
1970) and the event ids (inside the frames).

`decode` is the gate of `apply`: it checks the type and range of every field, so that what is behind
it cannot fail. A new kind gets a number, an encoder, a decoder and a place in `state.State`. The
commands of persistent subscriptions stand in `subscription_commands`, those about the life of
streams in `life_commands`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cbor2

from node.core import items
from node.core.fields import MalformedCommand, is_name, is_number, is_time, need
from node.core.frames import is_frame
from node.core.life_commands import (
    DELETE_STREAM,
    EXPIRE,
    SET_METADATA,
    LifeCommand,
    decode_delete_stream,
    decode_expire,
    decode_set_metadata,
)
from node.core.snapshots import KEPT_MAX, is_content
from node.core.subscription_commands import (
    FETCH,
    REPLAY,
    SETTLE,
    SUBSCRIBE,
    UNSUBSCRIBE,
    SubscriptionCommand,
    decode_fetch,
    decode_replay,
    decode_settle,
    decode_subscribe,
    decode_unsubscribe,
)
from node.core.versions import ANY as ANY
from node.core.versions import NO_STREAM as NO_STREAM
from node.core.versions import STREAM_EXISTS as STREAM_EXISTS
from node.core.versions import is_expected

FORMAT = 1
_NESTING_MAX = 16  # the deepest command, a subscription with conditions, has 5

# What an append to a store waits for, unless it says so itself: the memory or the disks of a
# majority, or (the empty one) whatever is the default of the node that takes it.
REPLICATED, PERSISTED, BY_NODE = "replicated", "persisted", ""
DURABILITIES = (REPLICATED, PERSISTED, BY_NODE)

# A store's name becomes a file name on every node. Commands other than its creation need no such
# check: they name a store that exists, or are answered that it does not.
_STORE_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,63}")

_APPEND, _APPEND_MANY, _CREATE_STORE, _DELETE_STORE, _PUT_CHECKPOINT, _BARRIER, _PUT_STORE = range(
    7
)
_PUT_SNAPSHOT, _DELETE_SNAPSHOT = 7, 8
_APPEND_EACH = 12


class Append(NamedTuple):
    """Append frames to one stream."""

    store: str
    created_us: int
    stream: str
    expected: int
    frames: list[bytes]


class AppendEach(NamedTuple):
    """Several appends of one stream each, in order, each as if it had come alone.

    The first `counts[0]` of `frames` belong to `streams[0]`, and so on.
    """

    store: str
    created_us: int
    streams: list[str]
    expected: list[int]
    counts: list[int]
    frames: list[bytes]


class AppendMany(NamedTuple):
    """Append to several streams, and move a checkpoint, in one step or not at all."""

    store: str
    created_us: int
    events: list[tuple[str, bytes]]
    checks: list[tuple[str, int]]
    checkpoint: tuple[str, int] | None


class CreateStore(NamedTuple):
    """Make a store, unless it exists."""

    store: str
    created_us: int


class PutStore(NamedTuple):
    """Make a store, unless it exists, and set its settings; None leaves one as it is."""

    store: str
    created_us: int
    durability: str | None
    snapshots_kept: int | None = None


class DeleteStore(NamedTuple):
    """Remove a store with all that it holds."""

    store: str


class PutCheckpoint(NamedTuple):
    """Move a checkpoint forward."""

    store: str
    name: str
    position: int


class PutSnapshot(NamedTuple):
    """Record a snapshot of an aggregate, in place of one of the same version."""

    store: str
    created_us: int
    source: str
    stream: str
    version: int
    content: bytes


class DeleteSnapshot(NamedTuple):
    """Remove a snapshot of an aggregate."""

    store: str
    source: str
    stream: str
    version: int


class Barrier(NamedTuple):
    """Change nothing: whoever sees it applied has seen all that was acknowledged before."""


Command = (
    Append
    | AppendEach
    | AppendMany
    | CreateStore
    | PutStore
    | DeleteStore
    | PutCheckpoint
    | PutSnapshot
    | DeleteSnapshot
    | LifeCommand
    | SubscriptionCommand
    | Barrier
)


def append(
    store: str, created_us: int, stream: str, expected: int, frames: Sequence[bytes]
) -> bytes:
    """Encode an `Append`; `expected` is an event number or one of the codes above."""
    return cbor2.dumps((FORMAT, _APPEND, store, created_us, stream, expected, frames))


def append_each(
    store: str,
    created_us: int,
    streams: Sequence[str],
    expected: Sequence[int],
    counts: Sequence[int],
    frames: Sequence[bytes],
) -> bytes:
    """Encode an `AppendEach`. In columns: one call into C has all of a turn's appends."""
    return cbor2.dumps((FORMAT, _APPEND_EACH, store, created_us, streams, expected, counts, frames))


def append_many(
    store: str,
    created_us: int,
    events: Sequence[tuple[str, bytes]],
    checks: Sequence[tuple[str, int]],
    checkpoint: tuple[str, int] | None,
) -> bytes:
    """Encode an `AppendMany`. Stream names are sent once each, events refer to them by number."""
    places: dict[str, int] = {}
    refs = [places.setdefault(stream, len(places)) for stream, _ in events]
    frames = [frame for _, frame in events]
    return cbor2.dumps(
        (FORMAT, _APPEND_MANY, store, created_us, list(places), refs, frames, checks, checkpoint)
    )


def create_store(store: str, created_us: int) -> bytes:
    """Encode a `CreateStore`."""
    return cbor2.dumps((FORMAT, _CREATE_STORE, store, created_us))


def put_store(
    store: str, created_us: int, durability: str | None, snapshots_kept: int | None = None
) -> bytes:
    """Encode a `PutStore`; `durability` is one of `DURABILITIES`, `snapshots_kept` at most
    `KEPT_MAX`; None leaves the store's own.
    """
    return cbor2.dumps((FORMAT, _PUT_STORE, store, created_us, durability, snapshots_kept))


def delete_store(store: str) -> bytes:
    """Encode a `DeleteStore`."""
    return cbor2.dumps((FORMAT, _DELETE_STORE, store))


def put_checkpoint(store: str, name: str, position: int) -> bytes:
    """Encode a `PutCheckpoint`."""
    return cbor2.dumps((FORMAT, _PUT_CHECKPOINT, store, name, position))


def put_snapshot(
    store: str, created_us: int, source: str, stream: str, version: int, content: bytes
) -> bytes:
    """Encode a `PutSnapshot`; `content` is made by `snapshots.encode_content`."""
    return cbor2.dumps((FORMAT, _PUT_SNAPSHOT, store, created_us, source, stream, version, content))


def delete_snapshot(store: str, source: str, stream: str, version: int) -> bytes:
    """Encode a `DeleteSnapshot`."""
    return cbor2.dumps((FORMAT, _DELETE_SNAPSHOT, store, source, stream, version))


def barrier() -> bytes:
    """Encode a `Barrier`."""
    return cbor2.dumps((FORMAT, _BARRIER))


def decode(encoded: bytes) -> Command:
    """Decode and check a command.

    Raises `MalformedCommand`, and nothing else, for anything that is not one.
    """
    decoder = _DECODERS.get(encoded[:3])
    if decoder is None:
        raise MalformedCommand("does not begin like a command of this version")
    try:
        fields = items.loads(encoded, _NESTING_MAX)
    except MemoryError:
        raise  # says nothing about the command, and the other nodes may have had enough
    except Exception as error:
        # The library's text stays out of the outcome: it must be the same on every node.
        raise MalformedCommand(f"not CBOR: {type(error).__name__}") from error
    return decoder(fields)


def _decode_append(fields: list[Any]) -> Append:
    _, _, store, created_us, stream, expected, frames = fields
    # One command in a hundred thousand fails here, so the good case is a single expression.
    if not (
        is_name(store)
        and is_time(created_us)
        and is_name(stream)
        and is_expected(expected)
        and type(frames) is list
        and frames
        and all(map(is_frame, frames))
    ):
        raise MalformedCommand("append: a field is not as it must be")
    return Append(store, created_us, stream, expected, frames)


def _decode_append_each(fields: list[Any]) -> AppendEach:
    _, _, store, created_us, streams, expected, counts, frames = fields
    need(is_name(store), "store")
    need(is_time(created_us), "created_us")
    need(type(streams) is list and len(streams) > 0 and all(map(is_name, streams)), "streams")
    need(type(expected) is list and len(expected) == len(streams), "expected")
    need(all(map(is_expected, expected)), "expected")
    need(type(counts) is list and len(counts) == len(streams), "counts")
    need(set(map(type, counts)) == {int} and min(counts) > 0, "counts")
    need(type(frames) is list and len(frames) == sum(counts), "frames")
    need(all(map(is_frame, frames)), "frames")
    return AppendEach(store, created_us, streams, expected, counts, frames)


def _decode_append_many(fields: list[Any]) -> AppendMany:
    _, _, store, created_us, streams, refs, frames, checks, checkpoint = fields
    need(is_name(store), "store")
    need(is_time(created_us), "created_us")
    need(type(streams) is list and all(map(is_name, streams)), "streams")
    need(type(frames) is list and all(map(is_frame, frames)), "frames")
    need(type(refs) is list and len(refs) == len(frames), "refs")
    need(all(type(ref) is int and 0 <= ref < len(streams) for ref in refs), "refs")
    need(type(checks) is list and all(map(_is_check, checks)), "checks")
    need(checkpoint is None or _is_checkpoint(checkpoint), "checkpoint")
    return AppendMany(
        store,
        created_us,
        list(zip(map(streams.__getitem__, refs), frames, strict=True)),
        [(stream, expected) for stream, expected in checks],
        None if checkpoint is None else (checkpoint[0], checkpoint[1]),
    )


def _decode_create_store(fields: list[Any]) -> CreateStore:
    _, _, store, created_us = fields
    need(type(store) is str and _STORE_NAME.fullmatch(store) is not None, "store")
    need(is_time(created_us), "created_us")
    return CreateStore(store, created_us)


def _decode_put_store(fields: list[Any]) -> PutStore:
    _, _, store, created_us, durability, kept = fields
    need(type(store) is str and _STORE_NAME.fullmatch(store) is not None, "store")
    need(is_time(created_us), "created_us")
    need(durability is None or type(durability) is str, "durability")
    need(durability is None or durability in DURABILITIES, "durability")
    need(kept is None or (is_number(kept) and 1 <= kept <= KEPT_MAX), "snapshots_kept")
    return PutStore(store, created_us, durability, kept)


def _decode_delete_store(fields: list[Any]) -> DeleteStore:
    _, _, store = fields
    need(is_name(store), "store")
    return DeleteStore(store)


def _decode_put_checkpoint(fields: list[Any]) -> PutCheckpoint:
    _, _, store, name, position = fields
    need(is_name(store), "store")
    need(is_name(name), "name")
    need(is_number(position), "position")
    return PutCheckpoint(store, name, position)


def _decode_put_snapshot(fields: list[Any]) -> PutSnapshot:
    _, _, store, created_us, source, stream, version, content = fields
    need(is_name(store), "store")
    need(is_time(created_us), "created_us")
    need(is_name(source), "source")
    need(is_name(stream), "stream")
    need(is_number(version), "version")
    need(is_content(content), "content")
    return PutSnapshot(store, created_us, source, stream, version, content)


def _decode_delete_snapshot(fields: list[Any]) -> DeleteSnapshot:
    _, _, store, source, stream, version = fields
    need(is_name(store), "store")
    need(is_name(source), "source")
    need(is_name(stream), "stream")
    need(is_number(version), "version")
    return DeleteSnapshot(store, source, stream, version)


def _decode_barrier(_: list[Any]) -> Barrier:
    return Barrier()


def _head(kind: int, fields: int) -> bytes:
    """How a command of this kind begins: array of so many fields, format version, kind.

    All three are so small that each is one byte. A command that begins so has that many fields, and
    one that does not is refused before anything of it is decoded.
    """
    return bytes((0x80 | fields, FORMAT, kind))


_DECODERS: dict[bytes, Callable[[list[Any]], Command]] = {
    _head(_APPEND, 7): _decode_append,
    _head(_APPEND_EACH, 8): _decode_append_each,
    _head(_APPEND_MANY, 9): _decode_append_many,
    _head(_CREATE_STORE, 4): _decode_create_store,
    _head(_PUT_STORE, 6): _decode_put_store,
    _head(_DELETE_STORE, 3): _decode_delete_store,
    _head(_PUT_CHECKPOINT, 5): _decode_put_checkpoint,
    _head(_PUT_SNAPSHOT, 8): _decode_put_snapshot,
    _head(_DELETE_SNAPSHOT, 6): _decode_delete_snapshot,
    _head(_BARRIER, 2): _decode_barrier,
    _head(DELETE_STREAM, 6): decode_delete_stream,
    _head(SET_METADATA, 7): decode_set_metadata,
    _head(EXPIRE, 4): decode_expire,
    _head(SUBSCRIBE, 6): decode_subscribe,
    _head(UNSUBSCRIBE, 4): decode_unsubscribe,
    _head(FETCH, 7): decode_fetch,
    _head(SETTLE, 6): decode_settle,
    _head(REPLAY, 6): decode_replay,
}


_DEAR = {_head(FETCH, 7), _head(SETTLE, 6), _head(REPLAY, 6)}


def is_dear(encoded: bytes) -> bool:
    """Whether a command may cost every node some milliseconds: what it names is not all it looks
    at."""
    return encoded[:3] in _DEAR


def _is_check(value: object) -> bool:
    return type(value) is list and len(value) == 2 and is_name(value[0]) and is_expected(value[1])


def _is_checkpoint(value: object) -> bool:
    return type(value) is list and len(value) == 2 and is_name(value[0]) and is_number(value[1])
