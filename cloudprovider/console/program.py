"""The console as a process: settings, TLS, its port, the health endpoint."""

import asyncio
import ipaddress
import logging
import random
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cloudprovider import __version__
from cloudprovider.console.config import ConsoleConfig
from cloudprovider.console.server import Console, listening
from cloudprovider.console.users import connector
from cloudprovider.core.errors import ConfigurationError
from cloudprovider.kube.endpoint import Probes, serve, split_address
from cloudprovider.kube.metrics import RequestCounter
from cloudprovider.kube.registry import Registry

log = logging.getLogger(__name__)

REREAD_SECONDS: Final = 60.0


async def run(config: ConsoleConfig) -> None:
    """Serve the console until cancelled. Raises ConfigurationError for settings that can't work."""
    rng = random.Random()  # noqa: S311 - jitter, no secret
    registry = Registry("console", __version__)
    requests = RequestCounter(registry)
    tls = _tls(config)
    connect = connector(config, rng=rng, requests=requests)
    console = Console(config, connect, now=lambda: datetime.now(UTC), time=time.monotonic, rng=rng, registry=registry)
    async with serve(config.endpoint, Probes(metrics=registry.text)), listening(config, console, tls) as port:
        log.info("The console is served", extra={"port": port, "tls": tls is not None})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(console.sweep(), name="sessions")
            if tls is not None and config.tls_cert is not None:
                tasks.create_task(_reread(tls, config.tls_cert, config.tls_key), name="certificate")


def _tls(config: ConsoleConfig) -> ssl.SSLContext | None:
    """How to serve. Tokens are typed into this page: without TLS only this machine may reach it."""
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigurationError("--tls-cert and --tls-key belong together: give both, or none")
    if config.tls_cert is None:
        host, _ = split_address(config.console_address)
        if not ipaddress.ip_address(host).is_loopback:
            raise ConfigurationError(
                f"{config.console_address} without TLS would show tokens to the network: give --tls-cert and"
                " --tls-key, or listen on 127.0.0.1 with a proxy beside it"
            )
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, config.tls_cert, config.tls_key)
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise ConfigurationError(f"{certificate}: certificate and key can't be loaded: {error}") from error


async def _reread(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Serve a certificate that was renewed in its file; while it can't be read, the old one."""
    while True:
        await asyncio.sleep(REREAD_SECONDS)
        try:
            _load(context, certificate, key)
        except ConfigurationError as error:
            log.warning("The certificate can't be read again", extra={"error": str(error)})
