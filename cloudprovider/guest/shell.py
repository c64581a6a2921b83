"""kopf as the shell of a program: start-up, login, signals, and an orderly end.

Nothing is watched through kopf: Services are many, and our own typed watch costs a quarter of the CPU. What it gives
is the frame that operators know, and a place for handlers of rare objects.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import aiohttp
import kopf

from cloudprovider.kube.credentials import Credentials

log = logging.getLogger(__name__)

CONNECTIONS: Final = 2
"""kopf asks the API server for little more than its version."""
BACKOFFS: Final = (1, 1, 2, 3, 5, 8, 13)
LONGEST_BACKOFF: Final = 20


class _Backoffs:
    """Seconds between kopf's attempts at a request, without an end: an API server that is away ends no program."""

    def __iter__(self) -> Iterator[float]:
        yield from BACKOFFS
        while True:
            yield LONGEST_BACKOFF


async def run_in_shell(credentials: Credentials, work: Callable[[], Awaitable[None]], *, program: str) -> None:
    """Run ``work`` until it ends, or SIGTERM or SIGINT comes: then it is cancelled and awaited.

    Raises what ``work`` raises. Cancellation does the same as a signal.
    """
    registry = kopf.OperatorRegistry()
    stop = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def _work() -> None:
        await work()

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.networking.error_backoffs = _Backoffs()
        task = asyncio.create_task(_work(), name=program)
        task.add_done_callback(lambda _: stop.set())
        tasks.append(task)

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        authorization = credentials.authorization()
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=credentials.ssl or True),
            headers={"Authorization": authorization} if authorization else {},
        )
        return kopf.AiohttpSession(
            server=credentials.server, aiohttp_session=session, default_namespace=credentials.namespace
        )

    @kopf.on.cleanup(registry=registry)
    async def clean_up(**_: Any) -> None:
        await _end(tasks)

    try:
        await kopf.operator(registry=registry, standalone=True, clusterwide=True, stop_flag=stop)
    finally:
        await _end(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
