"""Real sockets on a real uvloop loop, one a test."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

Main = Callable[[], Awaitable[Any]]


@pytest.fixture
def run() -> Callable[[Main], Any]:
    """Run a coroutine function on a fresh uvloop loop; a test that hangs fails after 20 seconds."""

    async def bounded(main: Main) -> Any:
        return await asyncio.wait_for(main(), 20)

    def runner(main: Main) -> Any:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
            return loop.run(bounded(main))

    return runner
