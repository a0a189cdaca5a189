"""What can be asked of the replicated state, and how it travels.

A command is a CBOR array that begins with the format version and the kind. It is encoded once, by
the node that took the request, and decoded by every node when it is applied. Whatever is decided
by the node that took the request stands in it as data: the time (`created_us`, microseconds since
1970) and the event ids (inside the frames).

`decode` is the gate of `apply`: it checks the type and range of every field, so that what is behind
it cannot fail. A new kind gets a number, an encoder, a decoder and a place in `state.State`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cbor2

from node.core.frames import is_frame

FORMAT = 1

# Expected versions that are not an event number.
NO_STREAM = -1
ANY = -2
STREAM_EXISTS = -4

NAME_BYTES_MAX = 255
TIME_US_MAX = 2**62
NUMBER_MAX = 2**62

_APPEND, _APPEND_MANY, _CREATE_STORE, _DELETE_STORE, _PUT_CHECKPOINT, _BARRIER = range(6)


class MalformedCommand(ValueError):
    """The bytes are no command of this version; the text says which field."""


class Append(NamedTuple):
    """Append frames to one stream."""

    store: str
    created_us: int
    stream: str
    expected: int
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


class DeleteStore(NamedTuple):
    """Remove a store with all that it holds."""

    store: str


class PutCheckpoint(NamedTuple):
    """Move a checkpoint forward."""

    store: str
    name: str
    position: int


class Barrier(NamedTuple):
    """Change nothing: whoever sees it applied has seen all that was acknowledged before."""


Command = Append | AppendMany | CreateStore | DeleteStore | PutCheckpoint | Barrier


def append(
    store: str, created_us: int, stream: str, expected: int, frames: Sequence[bytes]
) -> bytes:
    """Encode an `Append`; `expected` is an event number or one of the codes above."""
    return cbor2.dumps((FORMAT, _APPEND, store, created_us, stream, expected, frames))


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


def delete_store(store: str) -> bytes:
    """Encode a `DeleteStore`."""
    return cbor2.dumps((FORMAT, _DELETE_STORE, store))


def put_checkpoint(store: str, name: str, position: int) -> bytes:
    """Encode a `PutCheckpoint`."""
    return cbor2.dumps((FORMAT, _PUT_CHECKPOINT, store, name, position))


def barrier() -> bytes:
    """Encode a `Barrier`."""
    return cbor2.dumps((FORMAT, _BARRIER))


def decode(encoded: bytes) -> Command:
    """Decode and check a command.

    Raises `MalformedCommand`, and nothing else, for anything that is not one.
    """
    try:
        fields = cbor2.loads(encoded)
    except Exception as error:
        raise MalformedCommand(f"not CBOR: {error}") from error
    if not isinstance(fields, list) or len(fields) < 2 or fields[0] != FORMAT:
        raise MalformedCommand("not an array that begins with the format version")
    decoder = _DECODERS.get(fields[1]) if isinstance(fields[1], int) else None
    if decoder is None:
        raise MalformedCommand(f"unknown kind {fields[1]!r}")
    try:
        return decoder(*fields[2:])
    except TypeError as error:
        raise MalformedCommand(f"wrong number of fields: {error}") from error


def _decode_append(store: Any, created_us: Any, stream: Any, expected: Any, frames: Any) -> Append:
    _need(isinstance(frames, list) and bool(frames) and all(map(is_frame, frames)), "frames")
    _need(_is_expected(expected), "expected")
    return Append(_name(store), _time(created_us), _name(stream), expected, frames)


def _decode_append_many(
    store: Any,
    created_us: Any,
    streams: Any,
    refs: Any,
    frames: Any,
    checks: Any,
    checkpoint: Any,
) -> AppendMany:
    _need(isinstance(streams, list) and all(map(_is_name, streams)), "streams")
    _need(isinstance(frames, list) and all(map(is_frame, frames)), "frames")
    _need(isinstance(refs, list) and len(refs) == len(frames), "refs")
    _need(all(type(ref) is int and 0 <= ref < len(streams) for ref in refs), "refs")
    _need(isinstance(checks, list) and all(map(_is_check, checks)), "checks")
    _need(checkpoint is None or _is_checkpoint(checkpoint), "checkpoint")
    return AppendMany(
        _name(store),
        _time(created_us),
        [(streams[ref], frame) for ref, frame in zip(refs, frames, strict=True)],
        [(stream, expected) for stream, expected in checks],
        None if checkpoint is None else (checkpoint[0], checkpoint[1]),
    )


def _decode_create_store(store: Any, created_us: Any) -> CreateStore:
    return CreateStore(_name(store), _time(created_us))


def _decode_delete_store(store: Any) -> DeleteStore:
    return DeleteStore(_name(store))


def _decode_put_checkpoint(store: Any, name: Any, position: Any) -> PutCheckpoint:
    _need(_is_number(position), "position")
    return PutCheckpoint(_name(store), _name(name), position)


def _decode_barrier() -> Barrier:
    return Barrier()


_DECODERS: dict[int, Callable[..., Command]] = {
    _APPEND: _decode_append,
    _APPEND_MANY: _decode_append_many,
    _CREATE_STORE: _decode_create_store,
    _DELETE_STORE: _decode_delete_store,
    _PUT_CHECKPOINT: _decode_put_checkpoint,
    _BARRIER: _decode_barrier,
}


def _need(condition: bool, field: str) -> None:
    if not condition:
        raise MalformedCommand(f"{field} is not as it must be")


def _is_name(value: object) -> bool:
    # The limit is in bytes; most names are short, so ask the cheap thing first.
    if type(value) is not str or not value:
        return False
    try:
        return len(value) * 4 <= NAME_BYTES_MAX or len(value.encode()) <= NAME_BYTES_MAX
    except UnicodeEncodeError:
        return False


def _name(value: object) -> str:
    _need(_is_name(value), "name")
    return value  # type: ignore[return-value]


def _time(value: object) -> int:
    _need(type(value) is int and 0 <= value <= TIME_US_MAX, "created_us")
    return value  # type: ignore[return-value]


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value <= NUMBER_MAX


def _is_expected(value: object) -> bool:
    return _is_number(value) or (type(value) is int and value in (NO_STREAM, ANY, STREAM_EXISTS))


def _is_check(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and _is_name(value[0])
        and _is_expected(value[1])
    )


def _is_checkpoint(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and _is_name(value[0]) and _is_number(value[1])
    )
