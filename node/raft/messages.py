"""What nodes say to one another.

On the wire a message is a CBOR array ``[group, kind, field, …]`` behind a length of four bytes.
`group` is the Raft group the message belongs to; there is one today, number 0, and its place is
kept so that stores can later be spread over several. Term and sender's incarnation are on every
message that matters to Raft: the term as a field, the incarnation bound to the session that the
message came through.

`decode` checks the number and the type of the fields, their range, and that the terms of entries
rise along the log, and raises `MalformedMessage` for anything else; a session that receives such a
message is closed. No text of an error shows what the message held: that may be of any size. Nothing
here, or anywhere a peer's bytes go, can load a pickle.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_origin, get_type_hints

import cbor2

from node.raft import plain

GROUP = 0


class MalformedMessage(ValueError):
    """Bytes from a peer that are no message of this version."""


class AppendEntries(NamedTuple):
    """From the leader: entries that follow (`prev_index`, `prev_term`); none is a heartbeat."""

    term: int
    prev_index: int
    prev_term: int
    commit_index: int
    entries: list[Any]  # [term, entry bytes] each; indexes follow prev_index


class Ack(NamedTuple):
    """To the leader: what the follower has verified, or (`reset`) where to go on from."""

    term: int
    next_index: int
    reset: bool
    success: bool


class RequestVote(NamedTuple):
    """A candidate asks for the vote of a term."""

    term: int
    last_index: int
    last_term: int


class Vote(NamedTuple):
    """The vote of a term, given."""

    term: int


class TimeoutNow(NamedTuple):
    """The leader asks a follower to take over at once."""

    term: int


class TermNotice(NamedTuple):
    """To someone whose term is over: the current one."""

    term: int


class PreVoteRequest(NamedTuple):
    """Would you vote for me in `term`? Changes nothing on either side."""

    term: int
    last_index: int
    last_term: int
    nonce: int


class PreVote(NamedTuple):
    """The answer; `term` is the answering node's own."""

    term: int
    nonce: int
    granted: bool


class RecoveryRequest(NamedTuple):
    """From a node that may have forgotten: who leads, and how far is the log?"""

    nonce: int
    term: int


class RecoveryReport(NamedTuple):
    """The answer to one nonce; the memberships are those of `membership_log`, as plain data."""

    nonce: int
    term: int
    leads: bool
    recovering: bool
    last_term: int
    last_index: int
    committed: list[Any]
    heard: list[Any]


class Behind(NamedTuple):
    """From the leader: what you lack is no longer in my log (which begins at `first_index`)."""

    term: int
    first_index: int


class Propose(NamedTuple):
    """To the leader of `term`: commands, each with the sender's sequence number."""

    term: int
    sequences: list[Any]
    commands: list[Any]


class Refused(NamedTuple):
    """From a node that was asked to propose: these were certainly not put into the log.

    `incarnation` is that of the node that asked, whose numbers begin anew with each; `term` is the
    one in which it asked.
    """

    incarnation: int
    term: int
    sequences: list[Any]
    reason: str


class Gossip(NamedTuple):
    """What a node says of itself a few times a second."""

    role: str
    term: int
    commit_index: int
    applied_index: int
    persisted_index: int
    http_address: str
    raft_address: str


class MembershipNotice(NamedTuple):
    """A membership that is committed, as plain data (see `membership`)."""

    committed: list[Any]


class Ask(NamedTuple):
    """A question that wants an answer: see `requests`."""

    number: int
    topic: str
    body: Any


class Answer(NamedTuple):
    """The answer to question `number`; `ok` is False if `body` says why there is none."""

    number: int
    ok: bool
    body: Any


Message = (
    AppendEntries
    | Ack
    | RequestVote
    | Vote
    | TimeoutNow
    | TermNotice
    | PreVoteRequest
    | PreVote
    | RecoveryRequest
    | RecoveryReport
    | Behind
    | Propose
    | Refused
    | Gossip
    | Ask
    | Answer
    | MembershipNotice
)


def _checked_as(hint: Any) -> type:
    """The type by which a field is checked; `object` for one that may be anything."""
    return object if hint is Any else get_origin(hint) or hint


_KINDS: tuple[type[Any], ...] = (
    AppendEntries,
    Ack,
    RequestVote,
    Vote,
    TimeoutNow,
    TermNotice,
    PreVoteRequest,
    PreVote,
    RecoveryRequest,
    RecoveryReport,
    Behind,
    Propose,
    Refused,
    Gossip,
    Ask,
    Answer,
    MembershipNotice,
)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_SHAPES = [
    # The hints are resolved: as they stand in the classes they are only names of types.
    tuple(_checked_as(hint) for hint in get_type_hints(kind).values())
    for kind in _KINDS
]
_INT_MAX = 2**62
_TEXT_MAX = 1024  # names, addresses, topics, reasons


def encode(message: Message) -> bytes:
    """The bytes of a message, without the length in front."""
    return cbor2.dumps((GROUP, _NUMBERS[type(message)], *message))


def decode(encoded: bytes) -> Message:
    """The message in `encoded`. Raises `MalformedMessage` for anything else."""
    try:
        group, number, *fields = plain.loads(encoded)
        kind, shape = _KINDS[number], _SHAPES[number]
    except (plain.NotPlain, TypeError, ValueError, LookupError) as error:
        raise MalformedMessage(f"no message: {type(error).__name__}") from error
    if group != GROUP or number < 0 or len(fields) != len(shape):
        raise MalformedMessage("wrong group, kind or number of fields")
    for value, expected in zip(fields, shape, strict=True):
        if expected is int:
            if type(value) is not int or not 0 <= value <= _INT_MAX:
                raise MalformedMessage(f"{kind.__name__}: a number is none, or out of range")
        elif not isinstance(value, expected):
            raise MalformedMessage(f"{kind.__name__}: a field is no {expected.__name__}")
        elif expected is str and len(value) > _TEXT_MAX:
            raise MalformedMessage(f"{kind.__name__}: a text is too long")
    message: Message = kind(*fields)
    _check_lists(message)
    return message


def _check_lists(message: Message) -> None:
    if isinstance(message, AppendEntries):
        good = _are_entries(message)
    elif isinstance(message, Propose):
        good = len(message.sequences) == len(message.commands) and all(
            type(item) is bytes for item in message.commands
        )
        good = good and all(type(item) is int for item in message.sequences)
    elif isinstance(message, Refused):
        good = all(type(item) is int for item in message.sequences)
    else:
        return
    if not good:
        raise MalformedMessage(f"{type(message).__name__}: a list holds something else")


def _are_entries(message: AppendEntries) -> bool:
    """Entries whose terms never fall, from the one before them up to the sender's."""
    term = message.prev_term
    for item in message.entries:
        if not _is_entry(item) or item[0] < term:
            return False
        term = item[0]
    return not message.entries or term <= message.term


def _is_entry(item: object) -> bool:
    return (
        type(item) is list
        and len(item) == 2
        and type(item[0]) is int
        and type(item[1]) is bytes
        and len(item[1]) > 0
    )
