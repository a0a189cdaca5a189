"""Questions between nodes that want an answer.

`ask` sends a question under a topic and waits for the answer, within a bound. `serve` names who
answers a topic here. What is asked this way changes nothing by itself or may be asked twice: an
answer that is lost, or comes too late, is asked for again by whoever needs it.

At most `_SERVED_MAX` questions of a topic are worked on at once; more are answered "busy". Topics
do not share that: a disk that hangs keeps flushes, of which each round of durable appends brings
one, and reads must not find the leader busy for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from node.raft.messages import Answer, Ask, Message

log = logging.getLogger(__name__)

Handler = Callable[[str, Any], Awaitable[Any]]

_SERVED_MAX = 64
_NUMBERS_BITS = 20  # incarnations have 42, and a message's numbers 62


class NoAnswer(Exception):
    """The peer is not connected, did not answer in time, or said why it does not."""


class Requests:
    """Both sides of questions and answers, for one node.

    Questions are numbered anew in each incarnation, from another start: an answer that was asked
    for in an earlier life may still come, and must not be taken for one of this life.
    """

    def __init__(self, send: Callable[[str, Message], bool], incarnation: int) -> None:
        self._send = send
        self._handlers: dict[str, Handler] = {}
        self._waiting: dict[int, tuple[str, asyncio.Future[Any]]] = {}
        self._served: dict[str, set[asyncio.Task[None]]] = {}
        self._number = incarnation << _NUMBERS_BITS

    def serve(self, topic: str, handler: Handler) -> None:
        """Let `handler(peer, body)` answer a topic; an exception of its is the answer "no"."""
        self._handlers[topic] = handler
        self._served.setdefault(topic, set())

    async def ask(self, peer: str, topic: str, body: Any, timeout_s: float) -> Any:
        """The peer's answer. Raises `NoAnswer`."""
        self._number += 1
        number = self._number
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if not self._send(peer, Ask(number, topic, body)):
            raise NoAnswer(f"{peer} is not connected")
        self._waiting[number] = peer, future
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError as error:
            raise NoAnswer(f"{peer} did not answer within {timeout_s:g} s") from error
        finally:
            self._waiting.pop(number, None)

    def asked(self, peer: str, message: Ask) -> None:
        """A peer's question: work on it, and answer."""
        handler = self._handlers.get(message.topic)
        if handler is None or len(self._served[message.topic]) >= _SERVED_MAX:
            why = "busy" if handler else f"unknown topic {message.topic!r}"
            self._send(peer, Answer(message.number, False, why))
            return
        task = asyncio.ensure_future(self._work(peer, message, handler))
        self._served[message.topic].add(task)
        task.add_done_callback(self._served[message.topic].discard)

    def answered(self, peer: str, message: Answer) -> None:
        """A peer's answer; one that nobody waits for is dropped."""
        asked, future = self._waiting.get(message.number, ("", None))
        if future is None or future.done() or asked != peer:
            return
        if message.ok:
            future.set_result(message.body)
        else:
            future.set_exception(NoAnswer(f"{peer}: {message.body}"))

    def disconnected(self, peer: str) -> None:
        """Nothing that was asked of the peer will be answered."""
        for asked, future in list(self._waiting.values()):
            if asked == peer and not future.done():
                future.set_exception(NoAnswer(f"lost the connection with {peer}"))

    async def stop(self) -> None:
        """End the work on questions."""
        tasks = [task for served in self._served.values() for task in served]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, peer: str, message: Ask, handler: Handler) -> None:
        try:
            answer = Answer(message.number, True, await handler(peer, message.body))
        except Exception as error:
            answer = Answer(message.number, False, str(error) or repr(error))
        self._send(peer, answer)
