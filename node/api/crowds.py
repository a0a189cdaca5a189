"""Crowds: those who follow the same events in the same form, and have seen all that there is.

What they are sent from there on is the same for all, byte by byte. So a crowd has one course and
one task: it waits for the store's next change, looks, makes what is to be said once, and puts it
into the connection of each member. Nobody is woken for it: of a hundred members each costs a system
call and a microsecond or two, however many events came meanwhile.

A follower comes here when it has seen all that the store has, which may be more than the crowd has
looked at; it is then told only what lies behind that. It stays until

    it is slow          more waits for its client than the connection holds. It waits for room by
                        itself, goes on from the last thing it was sent, and comes back when it has
                        caught up; so a client that stands still holds nobody up
    its client is gone
    the crowd ends      the store was deleted, or the node stops: each tells its client so

After a look, a crowd rests for `Shared.rest_s`, so that what it writes is worth the system calls. A
crowd that has fallen back by more than a look gives does not rest, and takes in nobody until it is
at the end again: who has caught up need not be told that others have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from node.api.arrivals import Arrivals
from node.api.courses import Course, Form, Piece
from node.api.streamed import Outflow, chunk
from node.core.filters import Filter
from node.core.store import Store
from node.errors import NotReady

HEARTBEAT_S = 10.0

_SLICE_MEMBERS = 100  # written to between two turns of the event loop; that takes 1 ms


class Shared(Protocol):
    """What all followers of a node share."""

    arrivals: Arrivals
    events_sent: int

    @property
    def rest_s(self) -> float:
        """How long to rest after a look."""
        ...

    def as_it_is(self, store: Store) -> Store:
        """The store as of now. Raises `StoreMissing`."""
        ...


class Member:
    """A follower in a crowd. It came with all up to `knows`; the last `id` it was sent is `sent`.

    `left` is done once it is no member any more: with an error, where that is its last word. Then
    `is_behind` says whether it is still to hear that it has caught up.
    """

    __slots__ = ("is_behind", "knows", "left", "outflow", "sent")

    def __init__(self, outflow: Outflow, knows: int, sent: int) -> None:
        self.outflow = outflow
        self.knows = knows
        self.sent = sent
        self.is_behind = False
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _Kind(NamedTuple):
    """What members of a crowd have in common."""

    store_uid: int
    wanted: Filter
    form: Form
    chunked: bool


class Crowds:
    """All crowds of a node; there is none without a member, or for a rest at most."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._crowds: dict[_Kind, Crowd] = {}

    def find(self, store: Store, course: Course, chunked: bool) -> Crowd | None:
        """The crowd for who has come to the end of the store; None while it is behind itself."""
        kind = _Kind(store.uid, course.wanted, course.form, chunked)
        crowd = self._crowds.get(kind)
        if crowd is None:
            crowd = self._crowds[kind] = Crowd(self._shared, store, course, chunked)
            crowd.task = asyncio.create_task(self._run(kind, crowd))
        return None if crowd.is_behind else crowd

    async def _run(self, kind: _Kind, crowd: Crowd) -> None:
        """A crowd from its first member to its last."""
        try:
            await crowd.run()
        except Exception as error:  # they tell it to their clients, or to the log
            crowd.dismiss(error)
        finally:
            del self._crowds[kind]


class Crowd:
    """Those who are sent the same."""

    def __init__(self, shared: Shared, store: Store, course: Course, chunked: bool) -> None:
        self.task: asyncio.Task[None] | None = None
        self._shared = shared
        self._store = store
        self._course = course.beside(store.position, False)
        self._chunked = chunked
        self._was_behind = False
        self._told_at = asyncio.get_running_loop().time()  # when all members were last told
        self._change: asyncio.Future[None] | None = None
        self._members: dict[Member, None] = {}  # a set, in the order in which they came

    @property
    def is_behind(self) -> bool:
        """Whether it has fallen back: all members are to hear when it has caught up."""
        return self._course.is_behind

    def join(self, course: Course, outflow: Outflow, sent: int) -> Member:
        """Take in who has seen the store to its end on this course. To be called at once: what is
        appended in between would be missed."""
        self._course.owe(course)
        member = Member(outflow, course.position, sent)
        self._members[member] = None
        return member

    def leave(self, member: Member, error: Exception | None = None) -> None:
        """The counterpart of `join`, wherever it comes from; later ones count for nothing."""
        self._members.pop(member, None)
        if not member.left.done():
            if error is None:
                member.left.set_result(None)
            else:
                member.left.set_exception(error)
        if not self._members and self._change is not None:
            self._change.cancel()  # to wake the task, which then ends

    def dismiss(self, error: Exception) -> None:
        """All leave, with this as the reason."""
        for member in list(self._members):
            self.leave(member, error)

    async def run(self) -> None:
        """Look, tell and wait until nobody is left. Raises `NotReady`, `StoreMissing`."""
        shared, course = self._shared, self._course
        while self._members:
            if shared.arrivals.stopped:
                raise NotReady("this node is stopping; go on at another one")
            change = self._change = shared.arrivals.next(self._store.name)
            try:
                if not await self._look() and course.position >= self._store.position:
                    await self._idle(change)
                self._beat()
            finally:
                self._change = None
                shared.arrivals.forget(self._store.name, change)
            await asyncio.sleep(0 if course.is_behind else shared.rest_s)

    async def _look(self) -> bool:
        """Say what has to be said about the positions behind the last; whether there was any."""
        store = self._store = self._shared.as_it_is(self._store)
        before, self._was_behind = self._course.position, self.is_behind
        said = await self._course.look(store, asyncio.get_running_loop().time())
        pieces = self._framed(said.pieces(before))
        members, all_are_told = list(self._members), True
        for start in range(0, len(members), _SLICE_MEMBERS):
            if start:
                await asyncio.sleep(0)
            for member in members[start : start + _SLICE_MEMBERS]:
                if member.knows <= before:
                    self._tell(member, pieces)
                else:
                    own = self._framed(said.pieces(member.knows))
                    all_are_told = all_are_told and bool(own)
                    self._tell(member, own)
        if pieces and all_are_told:
            self._told_at = asyncio.get_running_loop().time()
        return bool(pieces)

    async def _idle(self, change: asyncio.Future[None]) -> None:
        """Wait for the store's next change, or until a sign of life is due."""
        due = self._told_at + HEARTBEAT_S - asyncio.get_running_loop().time()
        await asyncio.wait([change], timeout=max(0.0, due))

    def _beat(self) -> None:
        """A sign of life, where one is due. Changes that are no events do not put it off."""
        moment = asyncio.get_running_loop().time()
        if moment < self._told_at + HEARTBEAT_S:
            return
        self._told_at = moment
        heartbeat = self._course.form.heartbeat
        framed = chunk(heartbeat) if self._chunked else heartbeat
        for member in list(self._members):
            if not member.outflow.put(framed):
                self.leave(member)

    def _framed(self, pieces: list[Piece]) -> list[Piece]:
        """The pieces as they go over a connection."""
        if not self._chunked:
            return pieces
        return [Piece(chunk(piece.written), piece.events, piece.last) for piece in pieces]

    def _tell(self, member: Member, pieces: Sequence[Piece]) -> None:
        """Write as much as there is room for; who has none goes on by itself."""
        for count, (framed, events, last) in enumerate(pieces, 1):
            if member.left.done():
                return
            has_room = member.outflow.put(framed)
            member.sent = last
            self._shared.events_sent += events
            if not has_room:
                member.is_behind = self.is_behind or (self._was_behind and count < len(pieces))
                self.leave(member)
