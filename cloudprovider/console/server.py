"""The console put together: an aiohttp application of its pages."""

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from cloudprovider.console.config import ConsoleConfig
from cloudprovider.console.detailpage import DetailPage
from cloudprovider.console.editor import Editor
from cloudprovider.console.editpage import LbKind
from cloudprovider.console.gate import BODY_LIMIT, SESSION, Gate, sign_in
from cloudprovider.console.listpage import ListPage
from cloudprovider.console.live import Streams
from cloudprovider.console.metrics import ConsoleMetrics
from cloudprovider.console.pages import Clock, Pages, told
from cloudprovider.console.pooleditor import PoolKind
from cloudprovider.console.poolspage import PoolPages
from cloudprovider.console.sessions import Session, Sessions
from cloudprovider.console.signin import SignIn
from cloudprovider.console.traffic import TrafficReader
from cloudprovider.console.users import Connect
from cloudprovider.core.errors import ConfigurationError, KubeError
from cloudprovider.core.metrics.console import SESSIONS, STREAMS
from cloudprovider.kube.endpoint import split_address
from cloudprovider.kube.registry import Readings, Registry

log = logging.getLogger(__name__)

PAGE_SECONDS: Final = 20.0
"""For one page, whatever it asks the API server; a live one has as long as it likes."""
SWEEP_SECONDS: Final = 10.0


class Console:
    """The application, its sessions and its streams. ``time`` is monotonic, ``now`` the wall clock; ``registry``
    exports how it is used."""

    def __init__(
        self,
        config: ConsoleConfig,
        connect: Connect,
        *,
        now: Clock,
        time: Callable[[], float],
        rng: random.Random,
        registry: Registry,
    ) -> None:
        self.sessions = Sessions(
            time=time,
            idle=config.idle_minutes * 60.0,
            absolute=config.session_hours * 3600.0,
            most=config.max_sessions,
        )
        self.streams = Streams(rng)
        self._pages = Pages(now)
        gate = Gate(config, self.sessions)
        registry.read(self._read)
        middlewares = [ConsoleMetrics(registry).middleware(), self._in_words(), gate.middleware()]
        self.app = web.Application(client_max_size=BODY_LIMIT, middlewares=middlewares)
        self.app.on_response_prepare.append(gate.add_headers)
        self.app.router.add_get("/static/{name}", self._pages.file)
        for part in (
            SignIn(self._pages, gate, self.sessions, connect),
            ListPage(self._pages, self.streams),
            Editor(self._pages, LbKind()),
            Editor(self._pages, PoolKind()),
            PoolPages(self._pages),
            DetailPage(self._pages, self.streams, TrafficReader(config.agent_metrics, time)),
        ):
            self.app.router.add_routes(part.routes())

    async def sweep(self) -> None:
        """End sessions whose time is over, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._close(self.sessions.expire())

    async def close(self) -> None:
        """End all sessions."""
        await self._close(self.sessions.clear())

    def _read(self) -> Readings:
        yield SESSIONS, {(): len(self.sessions)}
        yield STREAMS, {(): len(self.streams)}

    async def _close(self, ended: tuple[Session, ...]) -> None:
        for session in ended:
            await session.client.close()
            log.info("A session is over", extra={"user": session.user, "sessions": len(self.sessions)})

    def _in_words(self) -> Middleware:
        """What goes wrong, as a page."""
        pages = self._pages

        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                if request.path.startswith("/live/"):
                    return await handler(request)
                async with asyncio.timeout(PAGE_SECONDS):
                    return await handler(request)
            except KubeError as error:
                return pages.error(request, *told(error))
            except TimeoutError:
                return pages.error(request, "No answer", f"This took more than {PAGE_SECONDS:g} s. Try again.", 504)
            except web.HTTPNotFound:
                return pages.error(request, "Not there", "There is no such page.", 404)
            except web.HTTPRequestEntityTooLarge:
                return pages.error(request, "Too large", "That is more than a form may hold.", 413)
            except web.HTTPClientError as error:
                return pages.error(request, "Refused", error.text or error.reason, error.status)
            except web.HTTPException:
                raise
            except Exception:
                session = request.get(SESSION)
                if session is not None and session.ended.is_set():
                    return sign_in(request)  # its client was closed under this page
                log.exception("A page has failed", extra={"path": request.path})
                message = "That is a fault of the console; its log says more."
                return pages.error(request, "Something went wrong", message, 500)

        return middleware


@asynccontextmanager
async def listening(config: ConsoleConfig, console: Console, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    """Serve ``console`` while the block runs; yields the port. Raises ConfigurationError."""
    host, port = split_address(config.console_address)
    # Live pages end at once: with the program, and (cancelled) with their browser.
    runner = web.AppRunner(
        console.app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=1.0
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=tls)
        try:
            await site.start()
        except OSError as error:
            raise ConfigurationError(
                f"the console can't listen on {config.console_address}: {error.strerror or error};"
                " choose another with --console-address"
            ) from error
        (address,) = runner.addresses
        yield int(address[1])
    finally:
        await console.close()
        await runner.cleanup()
