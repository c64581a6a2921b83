"""kopf as the shell of a program: start-up, login, signals, an orderly end, and handlers of what is rare.

What is many (Services, load balancers) is never watched through kopf: our own typed watch costs a quarter of the CPU.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import aiohttp
import kopf

from cloudprovider.kube.credentials import Credentials

CONNECTIONS: Final = 4
"""Left to itself kopf opens a connection for each object that it handles."""
WORKERS: Final = 8
IDLE_SECONDS: Final = 0.1
"""How long a worker waits for more about its object. With a limit on workers and kopf's default of 5 s a kind gets no
further than 10 objects a second."""
BACKOFFS: Final = (1, 1, 2, 3, 5, 8, 13)
LONGEST_BACKOFF: Final = 20
REQUEST_SECONDS: Final = 10.0
PREFIX: Final = "cloudprovider.harvesterhci.io"


class _Backoffs:
    """Seconds between kopf's attempts at a request, without an end: an API server that is away ends no program."""

    def __iter__(self) -> Iterator[float]:
        yield from BACKOFFS
        while True:
            yield LONGEST_BACKOFF


def _readable(record: logging.LogRecord) -> bool:
    """What kopf logs about objects, made fit to be read: without its settings, and a handler that asks to be called
    again is no error."""
    record.__dict__.pop("settings", None)
    if record.levelno == logging.ERROR and "failed temporarily" in record.getMessage():
        record.levelno, record.levelname = logging.INFO, "INFO"
    return True


async def run_in_shell(
    credentials: Credentials,
    work: Callable[[], Awaitable[None]],
    *,
    program: str,
    registry: kopf.OperatorRegistry | None = None,
    finalizer: str = "",
) -> None:
    """Run ``work`` until it ends, or SIGTERM or SIGINT comes: then it is cancelled and awaited.

    ``registry`` holds the handlers of rare objects; ``finalizer`` is what kopf keeps on those with deletion handlers.
    Raises what ``work`` raises. Cancellation does the same as a signal.
    """
    registry = registry if registry is not None else kopf.OperatorRegistry()
    stop = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def _work() -> None:
        await work()

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        _configure(settings, finalizer)
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

    logging.getLogger("kopf.objects").addFilter(_readable)
    try:
        # Peering is not used; left to itself kopf asks for the user's name, and in a container there may be none.
        identity: Any = program  # a NewType of str, for which kopf has no public name
        await kopf.operator(registry=registry, standalone=True, clusterwide=True, stop_flag=stop, identity=identity)
    finally:
        await _end(tasks)
        logging.getLogger("kopf.objects").removeFilter(_readable)
    for task in tasks:
        if not task.cancelled():
            task.result()


def _configure(settings: kopf.OperatorSettings, finalizer: str) -> None:
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.networking.error_backoffs = _Backoffs()
    settings.networking.request_timeout = REQUEST_SECONDS
    settings.queueing.worker_limit = WORKERS
    settings.queueing.idle_timeout = IDLE_SECONDS
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=PREFIX)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=PREFIX)
    if finalizer:
        settings.persistence.finalizer = finalizer


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
