"""Backups that are interrupted while a thread works: it is over before its file is closed."""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.backup.file import Advance, Finished
from cluster.backup.threads import in_thread
from cluster.backup.writing import Written
from cluster.cli import backing
from tests.cluster.fake_store import serving_store
from tests.cluster.test_backup import events_of, filled, take

LIMIT_S = 10.0


class Thread:
    """Work in a thread that stands still until it may go on; `said` is what it came to."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._begun, self._may_go_on = threading.Event(), threading.Event()

    def work(self, words: str = "done") -> None:
        self._begun.set()
        assert self._may_go_on.wait(LIMIT_S)
        self.said.append(words)

    @asynccontextmanager
    async def interrupting(
        self, work: Coroutine[Any, Any, Any], times: int = 1
    ) -> AsyncIterator[asyncio.Task[Any]]:
        """In the block the task is cancelled, and the thread stands; behind it both are over."""
        task = asyncio.create_task(work)
        assert await asyncio.to_thread(self._begun.wait, LIMIT_S)
        for _ in range(times):
            task.cancel()
            await asyncio.wait({task}, timeout=0.02)
        yield task
        self._may_go_on.set()
        await asyncio.wait({task}, timeout=LIMIT_S)
        assert task.cancelled()


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancellation_waits_for_the_thread_however_often_it_comes(times: int) -> None:
    thread = Thread()
    async with thread.interrupting(in_thread(thread.work), times) as task:
        assert not task.done()
    assert thread.said == ["done"]


async def test_what_a_thread_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="'x'"):
        await in_thread(int, "x")


async def test_a_page_is_written_whole_before_its_file_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread, add = Thread(), Written.add

    def slow(written: Written, *page: Any) -> int:
        thread.work()
        return add(written, *page)

    monkeypatch.setattr(Written, "add", slow)
    store = filled(60)
    store.page_events = 20
    async with serving_store(store) as url:
        async with thread.interrupting(take(tmp_path / "b", url)):
            pass
        with Written.resume(tmp_path / "b") as written:
            assert written.position == 20
        monkeypatch.setattr(Written, "add", add)
        await take(tmp_path / "b", url)
    assert len(events_of(tmp_path / "b")) == 60


@pytest.mark.parametrize("command", [backing._check, backing._restore])
async def test_a_long_check_ends_where_it_tells_how_far_it_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[[argparse.Namespace], Coroutine[Any, Any, None]],
) -> None:
    async with serving_store(filled(3)) as url:
        await take(tmp_path / "b", url)
    thread = Thread()

    def endless(found: Finished, advance: Advance) -> None:
        thread.work()
        while True:
            advance(1)
            assert found.history() is not None  # the file is open

    monkeypatch.setattr(Finished, "check", endless)
    options = argparse.Namespace(file=tmp_path / "b", json=True)
    async with thread.interrupting(command(options)) as task:
        assert not task.done()
