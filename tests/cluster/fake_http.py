"""Servers in the place of nodes, and one with prepared answers that remembers what it was asked."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


class FakeServer:
    """Answers by (method, path); what is not prepared is 404. `asked` holds the requests.

    `bodies` are what they brought.
    """

    def __init__(self, answers: dict[tuple[str, str], tuple[int, Any]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.bodies: list[bytes] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((f"{request.method} {request.path}", dict(request.query)))
        if request.can_read_body:
            self.bodies.append(await request.read())
        status, body = self.answers.get((request.method, request.path), (404, {"code": "none"}))
        if body is None:
            return web.Response(status=status)
        if isinstance(body, str):
            return web.Response(status=status, text=body)
        return web.json_response(body, status=status)


@asynccontextmanager
async def answering(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    """The address of a server on a free port of loopback that gives this answer to everything."""
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(answers: dict[tuple[str, str], tuple[int, Any]]) -> AsyncIterator[FakeServer]:
    """A server with prepared answers, until the end of the block."""
    server = FakeServer(answers)
    async with answering(server.answer) as server.url:
        yield server


@asynccontextmanager
async def hanging_up() -> AsyncIterator[str]:
    """The address of a server that takes requests, and ends the connection without an answer."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        yield "http://{}:{}".format(*server.sockets[0].getsockname())
