"""A server that gives prepared answers and remembers what it was asked."""

from collections.abc import AsyncIterator
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
async def serving(answers: dict[tuple[str, str], tuple[int, Any]]) -> AsyncIterator[FakeServer]:
    """A server on a free port of loopback, until the end of the block."""
    server = FakeServer(answers)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()
