"""The content of a log entry: the commands of one group commit and whose they are, or a membership.

An entry is the CBOR array ``[1, [[origin, incarnation, sequences, commands], …]]``. Each group has
the commands that one node took; `sequences` are that node's own numbers for them. When the entry is
applied, every node knows by that which of its own requests it has just learned the outcome of, so
that a follower's answer needs no word from the leader, and the follower has already applied what it
answers for.

An entry that changes the membership is ``[2, membership]`` and has no commands (see `membership`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cbor2

from node.raft import plain
from node.raft.membership import Membership

FORMAT = 1
MEMBERSHIP_FORMAT = 2
_MEMBERSHIP_HEAD = bytes((0x82, MEMBERSHIP_FORMAT))  # an array of two, the first of them the format


class MalformedEntry(ValueError):
    """The bytes are no entry of this version."""


class Group(NamedTuple):
    """Commands of one node, in order."""

    origin: str
    incarnation: int
    sequences: list[int]
    commands: list[bytes]


def encode(groups: Sequence[Group]) -> bytes:
    """The bytes of an entry."""
    return cbor2.dumps((FORMAT, groups))


def decode(entry: bytes) -> list[Group]:
    """The groups of an entry; raises `MalformedEntry`, and nothing else."""
    try:
        version, groups = plain.loads(entry)
        decoded = [Group(*group) for group in groups]
    except (plain.NotPlain, TypeError, ValueError) as error:
        raise MalformedEntry(f"no entry: {type(error).__name__}") from error
    if version != FORMAT or not all(map(_is_group, decoded)):
        raise MalformedEntry("not an entry of this version")
    return decoded


def encode_membership(membership: Membership) -> bytes:
    """The bytes of an entry that makes this the membership."""
    return cbor2.dumps((MEMBERSHIP_FORMAT, membership.plain()))


def is_membership(entry: bytes) -> bool:
    """Whether an entry is, or was meant to be, a membership."""
    return entry.startswith(_MEMBERSHIP_HEAD)


def decode_membership(entry: bytes) -> Membership:
    """The membership that an entry makes; raises `MalformedEntry`, and nothing else."""
    try:
        _, membership = plain.loads(entry)
        return Membership.from_plain(membership)
    except (plain.NotPlain, TypeError, ValueError) as error:
        raise MalformedEntry(f"no membership: {type(error).__name__}") from error


def _is_group(group: Group) -> bool:
    return (
        isinstance(group.origin, str)
        and type(group.incarnation) is int
        and isinstance(group.sequences, list)
        and isinstance(group.commands, list)
        and len(group.sequences) == len(group.commands)
        and set(map(type, group.sequences)) <= {int}
        and all(type(command) is bytes for command in group.commands)
    )
