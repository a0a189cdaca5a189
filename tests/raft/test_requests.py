"""Questions between nodes, and the numbers by which answers find them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from node.raft import requests as module
from node.raft.messages import Answer, Ask, Message, RecoveryRequest, decode, encode
from node.raft.requests import NoAnswer, Requests
from node.raft.session import INCARNATION_BITS
from tests.raft.solo import Solo, starting_at
from tests.raft.virtual_time import Clock, clock

LATEST_INCARNATION = 2**INCARNATION_BITS - 1  # the greatest that a handshake takes


class Line:
    """Both ends of a line between n1 and n2."""

    def __init__(self) -> None:
        self.said: list[Message] = []
        self.up = True

    def send(self, _: str, message: Message) -> bool:
        self.said.append(message)
        return self.up


async def test_an_answer_finds_its_question() -> None:
    line = Line()
    asking, answering = Requests(line.send, 1), Requests(line.send, 1)

    async def double(_: str, body: Any) -> Any:
        return body * 2

    answering.serve("double", double)
    waiting = asyncio.ensure_future(asking.ask("n2", "double", 21, 5))
    await asyncio.sleep(0)
    question = line.said.pop()
    assert isinstance(question, Ask)
    answering.asked("n1", question)
    await asyncio.sleep(0.01)
    answer = line.said.pop()
    assert isinstance(answer, Answer)
    asking.answered("n3", answer)
    await asyncio.sleep(0.01)
    assert not waiting.done(), "only who was asked may answer"
    asking.answered("n2", answer)
    assert await waiting == 42


async def test_an_answer_to_an_earlier_life_finds_nothing() -> None:
    """It may come late, through the session with the next life."""
    line = Line()
    numbers = []
    for incarnation in (1, 2, LATEST_INCARNATION):
        asking = Requests(line.send, incarnation)
        for _ in range(3):
            with pytest.raises(NoAnswer):
                await asking.ask("n2", "anything", None, 0.001)
            question = line.said.pop()
            assert isinstance(question, Ask)
            assert decode(encode(question)) == question
            numbers.append(question.number)
    assert len(set(numbers)) == 9


async def test_a_lost_connection_ends_the_wait() -> None:
    line = Line()
    asking = Requests(line.send, 1)
    waiting = asyncio.ensure_future(asking.ask("n2", "anything", None, 60))
    await asyncio.sleep(0)
    asking.disconnected("n3")
    await asyncio.sleep(0.01)
    assert not waiting.done()
    asking.disconnected("n2")
    with pytest.raises(NoAnswer):
        await waiting


async def test_no_more_questions_are_worked_on_than_the_bound() -> None:
    line = Line()
    answering = Requests(line.send, 1)
    release = asyncio.Event()

    async def slow(_: str, __: Any) -> Any:
        await release.wait()

    answering.serve("slow", slow)
    for number in range(module._SERVED_MAX + 5):
        answering.asked("n1", Ask(number, "slow", None))
    assert [message.ok for message in line.said if isinstance(message, Answer)] == [False] * 5
    release.set()
    await asyncio.sleep(0.01)
    assert len(line.said) == module._SERVED_MAX + 5
    await answering.stop()


async def test_questions_that_hang_do_not_keep_those_of_another_topic_waiting() -> None:
    """A leader with a disk that hangs is asked for a flush by each round of durable appends."""
    line = Line()
    answering = Requests(line.send, 1)

    async def hang(_: str, __: Any) -> Any:
        await asyncio.Event().wait()

    async def read_index(_: str, __: Any) -> Any:
        return 7

    answering.serve("flush", hang)
    answering.serve("read_index", read_index)
    for number in range(module._SERVED_MAX):
        answering.asked("n1", Ask(number, "flush", None))
    answering.asked("n1", Ask(1000, "read_index", None))
    await asyncio.sleep(0.01)
    assert line.said == [Answer(1000, True, 7)]
    await asyncio.wait_for(answering.stop(), 5)


async def test_an_unknown_topic_and_a_failing_handler_are_answered_no() -> None:
    line = Line()
    answering = Requests(line.send, 1)

    async def fail(_: str, __: Any) -> Any:
        raise ValueError("nothing to say")

    answering.serve("fail", fail)
    answering.asked("n1", Ask(1, "nobody knows", None))
    answering.asked("n1", Ask(2, "fail", None))
    await asyncio.sleep(0.01)
    assert line.said == [
        Answer(1, False, "unknown topic 'nobody knows'"),
        Answer(2, False, "nothing to say"),
    ]


def test_a_recovering_node_s_nonces_fit_into_a_message_in_every_incarnation() -> None:
    with clock(Clock()):
        start = starting_at(0, 0, incarnation=LATEST_INCARNATION, forgetful=True)
        requests = [one for _, one in Solo(start=start).tick() if isinstance(one, RecoveryRequest)]
    assert requests
    assert [decode(encode(one)) for one in requests] == requests
