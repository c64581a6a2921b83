"""Waiting for something, with a limit."""

import asyncio
from collections.abc import Callable

LIMIT = 10.0


async def until(what: str, condition: Callable[[], object], *, limit: float = LIMIT) -> None:
    """Ask again and again until ``condition`` returns something true. Raises AssertionError after ``limit`` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit
    while not condition():
        if loop.time() > deadline:
            raise AssertionError(f"{what}: not within {limit:g} s")
        await asyncio.sleep(0.005)
