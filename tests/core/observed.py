"""What can be seen of a state, as plain values, and the means to make commands for it."""

from __future__ import annotations

from typing import Any

from node.core import commands, life_commands
from node.core.frames import ABSENT, encode_frame
from node.core.husks import husk_of, is_husk
from node.core.state import State
from node.core.store import Store
from node.core.subscription_state import encode, take

JSON = "application/json"


def event_id(number: int) -> bytes:
    """The id of the event that a test calls `number`."""
    return number.to_bytes(16, "big")


def frame(number: int, event_type: str = "Happened", data: bytes = b"\x01") -> bytes:
    """A frame with the id `event_id(number)`; `data` is an encoded CBOR item."""
    return encode_frame(event_id(number), event_type, data, ABSENT, JSON, JSON)


def encoded(command: Any) -> bytes:
    """The bytes of a command given as one of the types of `node.core.commands`."""
    encoders = {
        commands.Append: commands.append,
        commands.AppendEach: commands.append_each,
        commands.AppendMany: commands.append_many,
        commands.CreateStore: commands.create_store,
        commands.PutStore: commands.put_store,
        commands.DeleteStore: commands.delete_store,
        commands.PutCheckpoint: commands.put_checkpoint,
        commands.PutSnapshot: commands.put_snapshot,
        commands.DeleteSnapshot: commands.delete_snapshot,
        commands.Barrier: commands.barrier,
        life_commands.DeleteStream: life_commands.delete_stream,
        life_commands.SetMetadata: life_commands.set_metadata,
        life_commands.Expire: life_commands.expire,
    }
    return encoders[type(command)](*command)


def started(*names: str) -> State:
    """A state that has these stores, all of them created by the entry at index 1."""
    state = State()
    state.apply(1, 1, [commands.create_store(name, 1) for name in names or ("main",)])
    return state


def remembered(store: Store) -> dict[bytes, int]:
    """Event id -> position of what the store would recognise; it has no public door."""
    return {**store._recent._older, **store._recent._younger}


def contents(state: State) -> dict[str, Any]:
    """Everything there is in a state."""
    return {
        "applied": (state.applied_index, state.applied_term),
        "stores": {name: store_contents(store) for name, store in state.stores.items()},
    }


def sweep(store: Store, events_max: int = 1_000_000) -> None:
    """Put husks in the places of removed frames, of at most so many events of each stream."""
    for stream in store.stream_list:
        store.sweep(stream, stream.first, events_max, 1 << 40)


def seen_frame(store: Store, position: int) -> bytes:
    """The frame of an event that is kept, and the husk of one that is not, swept or not."""
    stored = store.frame(position)
    return stored if store.kept(position) or is_husk(stored) else husk_of(stored)


def store_contents(store: Store) -> dict[str, Any]:
    """Everything there is in a store, but for what has been swept of it."""
    frames = [seen_frame(store, at) for at in range(1, store.position + 1)]
    records = [store.record(at) for at in range(1, store.position + 1)]
    rows = list(store.rows(0, store.position))
    return {
        "identity": (store.name, store.uid, store.created_us, store.durability),
        "position": (store.position, store.frame_bytes),
        "records": [(*one[:4], frame) for one, frame in zip(records, frames, strict=True)],
        "rows": [(*one[:5], frame) for one, frame in zip(rows, frames, strict=True)],
        "streams": [
            (stream.name, stream.ordinal, stream.version, stream.count, list(stream.positions))
            for stream in store.stream_list
        ],
        "lives": (store.lives.changed_index, store.lives.digest, sorted(store.lives.all())),
        "kept": [(stream.first, stream.limits) for stream in store.stream_list],
        "departed": [(name, one.ordinal) for name, one in store.lives.departed.items()],
        "removed": (store.kept_events, store.lives.next_due_us),
        "by_name": {name: stream.ordinal for name, stream in store.streams.items()},
        "stream_names": list(store.stream_names),
        "types": [(name, store.find_type(name)) for name in store.type_names],
        "checkpoints": dict(store.checkpoints),
        "checkpoint_index": dict(store.checkpoint_index),
        "snapshots": (store.snapshots.kept, store.snapshots.digest, store.snapshots.all()),
        "subscriptions": [
            (take(one).name, take(one).changed_index, encode(take(one)))
            for one in store.subscriptions.by_name.values()
        ],
        "remembered": remembered(store),
        "generations": (dict(store._recent._older), dict(store._recent._younger)),
    }
