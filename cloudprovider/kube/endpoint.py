"""The HTTP endpoint that a kubelet probes and Prometheus scrapes: ``/livez``, ``/readyz``, ``/metrics``.

Programs hand in three functions. A probe answers 200 "ok", or 503 with one line
for each reason, so that ``kubectl describe pod`` shows why. The functions must not block: they read what is known.
"""

import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from cloudprovider.core.errors import ConfigurationError
from cloudprovider.kube.registry import CONTENT_TYPE

Reasons = Sequence[str]
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _none() -> Reasons:
    return ()


async def _empty() -> bytes:
    return b""


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What the endpoint asks. ``live`` and ``ready`` return reasons why not; none means yes.

    Not live: the process should be killed and started anew. Not ready: it should not (yet) be relied upon.
    ``metrics`` returns Prometheus' text format (:meth:`cloudprovider.kube.registry.Registry.text`).
    """

    live: Callable[[], Reasons] = _none
    ready: Callable[[], Reasons] = _none
    metrics: Callable[[], Awaitable[bytes]] = _empty


def split_address(endpoint: str) -> tuple[str, int]:
    """Return (address, port) of "ADDRESS:PORT", "[ADDRESS]:PORT" for IPv6. Port 0: any free one.

    Raises ConfigurationError if it is not of this form.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        address = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
        if (address.version == 6) != host.startswith("[") or not port.isdecimal() or int(port) > 65535:
            raise ValueError
    except ValueError:
        raise ConfigurationError(
            f'"{endpoint}" is not ADDRESS:PORT: write it as 127.0.0.1:8080 or [::1]:8080, 0.0.0.0 for all addresses'
        ) from None
    return str(address), int(port)


@asynccontextmanager
async def serve(endpoint: str, probes: Probes) -> AsyncIterator[int]:
    """Listen on ``endpoint`` ("ADDRESS:PORT") while the block runs; yields the port.

    Raises ConfigurationError if the address is malformed or can't be listened on.
    """
    host, port = split_address(endpoint)
    app = web.Application()
    app.router.add_get("/livez", _probe(probes.live))
    app.router.add_get("/readyz", _probe(probes.ready))
    app.router.add_get("/metrics", _metrics(probes.metrics))
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as e:
            raise ConfigurationError(
                f"the health endpoint can't listen on {endpoint}: {e.strerror or e}; choose another with --endpoint"
            ) from e
        yield _port_of(runner)
    finally:
        await runner.cleanup()


def _probe(reasons: Callable[[], Reasons]) -> _Handler:
    async def handle(_: web.Request) -> web.Response:
        found = reasons()
        return web.Response(text="\n".join(found) + "\n" if found else "ok\n", status=503 if found else 200)

    return handle


def _metrics(text: Callable[[], Awaitable[bytes]]) -> _Handler:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=await text(), headers={"Content-Type": CONTENT_TYPE})

    return handle


def _port_of(runner: web.AppRunner) -> int:
    (address,) = runner.addresses
    return int(address[1])
