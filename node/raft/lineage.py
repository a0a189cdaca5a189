"""Which history a node follows, and with whom it may speak.

When members are gone for good, an operator may rebuild the cluster out of those that are left (see
`service` and `scripts/recover`). The survivors then go on in a new *lineage*. A member that was
given up may come back one day, and could with others of its kind still be a majority of the old
membership: it must neither be listened to nor merged. So each node keeps its lineage and the
lineages given up on the way to it (the ancestry) in its state file, and both are part of the
handshake, proven with the cluster secret. Nodes of different lineages never have a session.

Which of two lineages is the old one is not a matter of time or numbers: the other's ancestry names
it. That is believed only of a lineage that is *founded*, which means that a leader of it was seen.
Before that the operator's override may have reached only some of the survivors, and those that it
has not reached may well have become a healthy cluster again; they must not be quarantined by a node
that can never lead.

    the other's lineage       the other founded, and       this node founded, and   else
    is this node's            its ancestry names this one  its own names the other
    SAME: a session           OLD: quarantine myself       GIVEN_UP: refuse it      STRANGE: refuse
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

ANCESTRY_MAX = 16
LINEAGE_CHARACTERS_MAX = 32
_REFUSED_MAX = 64


class Standing(NamedTuple):
    """A node's lineage, the given-up ones (the latest last), and whether it has had a leader."""

    lineage: str
    ancestry: tuple[str, ...]
    founded: bool

    def followed_by(self, lineage: str) -> Standing:
        """The standing in a new lineage that takes the place of this one."""
        return Standing(lineage, (*self.ancestry, self.lineage)[-ANCESTRY_MAX:], founded=False)


class Verdict(enum.Enum):
    """How a node stands to a peer."""

    SAME = "same"
    OLD = "old"
    GIVEN_UP = "given up"
    STRANGE = "strange"


def judge(own: Standing, other: Standing) -> Verdict:
    """This node's verdict on a peer that has proven its standing."""
    if own.lineage == other.lineage:
        return Verdict.SAME
    if other.founded and own.lineage in other.ancestry:
        return Verdict.OLD
    if own.founded and other.lineage in own.ancestry:
        return Verdict.GIVEN_UP
    return Verdict.STRANGE


def decoded(fields: Any) -> Standing:
    """The standing in a greeting. Raises `ValueError` for anything else."""
    if not isinstance(fields, list) or len(fields) != 3:
        raise ValueError("no standing")
    lineage, ancestry, founded = fields
    if not isinstance(ancestry, list) or len(ancestry) > ANCESTRY_MAX:
        raise ValueError("no ancestry")
    if not all(_is_lineage(one) for one in (lineage, *ancestry)) or not isinstance(founded, bool):
        raise ValueError("no lineage")
    return Standing(lineage, tuple(ancestry), founded)


def _is_lineage(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= LINEAGE_CHARACTERS_MAX


class Lineage:
    """Where this node stands, whom it met, and what follows from that.

    `standing` gives the durable standing of this node. `given_up(standing)` is called when a peer
    has proven that this node's lineage was given up for the peer's: it must make that durable and
    end this life of the node. It is called once, and until that end the node goes on to stand where
    it stood: what it has in memory is of the old lineage. Both are called on the event loop.
    """

    def __init__(
        self, standing: Callable[[], Standing], given_up: Callable[[Standing], None]
    ) -> None:
        self._standing = standing
        self._given_up = given_up
        self._refused: dict[str, str] = {}
        self._last: Standing | None = None

    @property
    def standing(self) -> Standing:
        """Where this life of the node stands."""
        return self._last or self._standing()

    @property
    def refused(self) -> dict[str, str]:
        """Peers that were refused at their last try, and why, in words."""
        return dict(self._refused)

    def refuses(self, peer: str, words: str) -> str:
        """Remember why a peer is refused, until it may have a session; the last `_REFUSED_MAX`."""
        self._refused[peer] = words
        if len(self._refused) > _REFUSED_MAX:
            del self._refused[next(iter(self._refused))]
        return words

    def not_to_be_joined(self, peer: str, other: Standing) -> str | None:
        """Why a node that joins must not take over a proven peer's lineage; None if it may.

        Where members were given up, and no leader was seen since, the order may have come to
        nothing. It may lack just one node to be obeyed after all, against a majority that has gone
        on without it. (The first lineage of a cluster has no other to be wrong about.)
        """
        if not other.ancestry or other.founded:
            return None
        words = (
            f"its lineage {other.lineage} has not had a leader yet, and may have come to nothing"
        )
        return self.refuses(peer, words)

    def met(self, peer: str, other: Standing) -> str | None:
        """Why a proven peer must not have a session; None if it may."""
        own = self.standing
        verdict = judge(own, other)
        if verdict is Verdict.SAME:
            self._refused.pop(peer, None)
            return None
        words = _words(verdict, own.lineage, other)
        if self._refused.get(peer) != words:  # it will try again every second
            hopeless = verdict is Verdict.STRANGE and own.founded and other.founded
            log.log(
                logging.CRITICAL if hopeless else logging.WARNING, "refusing %s: %s", peer, words
            )
        self.refuses(peer, words)
        if verdict is Verdict.OLD and self._last is None:
            self._last = own
            self._given_up(other)
        return words


def _words(verdict: Verdict, own: str, other: Standing) -> str:
    theirs = f"it is of lineage {other.lineage}, this node of {own}"
    if verdict is Verdict.OLD:
        return f"{theirs}, which was given up for it: this node is quarantined"
    if verdict is Verdict.GIVEN_UP:
        return f"{theirs}, and lineage {other.lineage} was given up: it must be added anew"
    if not other.founded:
        return f"{theirs}, and that lineage has not had a leader yet"
    return f"{theirs}, and neither knows the other: an operator must decide which to keep"
