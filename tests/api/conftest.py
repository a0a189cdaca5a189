"""A served API for each test that asks for one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.api.fakes import Node, serving


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    """A node with the store `main` and the default limits."""
    async with serving() as served:
        yield served
