"""The host program as a process: settings, credentials, the Lease, the bridge's port, the health endpoint."""

import asyncio
import logging
import os
import random
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import kopf

from cloudprovider import __version__
from cloudprovider.bridge.server import BridgeServer, ServerConfig
from cloudprovider.bridge.tlsfiles import SERVER, TlsFiles, TlsPaths
from cloudprovider.core.api.kubernetes import Lease
from cloudprovider.core.errors import ConfigurationError
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.tracing import NO_TRACER, Tracer
from cloudprovider.host import beside, webhookserver
from cloudprovider.host.assembly import NAME, Host
from cloudprovider.host.caches import Caches
from cloudprovider.host.clock import utc_now
from cloudprovider.host.config import HostConfig
from cloudprovider.host.frontdoor import FrontDoor
from cloudprovider.host.metrics import AdmissionMetrics, HostMetrics
from cloudprovider.host.readings import reading
from cloudprovider.host.tenants import FINALIZER, TenantEnd, register
from cloudprovider.host.webhook import AdmissionWebhook
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.credentials import load
from cloudprovider.kube.endpoint import Probes, serve
from cloudprovider.kube.lease import Elector, identity_of
from cloudprovider.kube.metrics import RequestCounter, reading_events
from cloudprovider.kube.registry import Registry
from cloudprovider.kube.shell import run_in_shell
from cloudprovider.tracing.setup import traced

log = logging.getLogger(__name__)

STANDBY_SECONDS: Final = 5.0


class HostProgram:
    """One copy of the host program: stands by until it leads, with its caches filled, so that it serves at once then.
    Allocating is safe with two leaders (each block is a compare-and-swap), but guests must find one bridge."""

    def __init__(
        self,
        config: HostConfig,
        client: KubeClient,
        *,
        tracer: Tracer = NO_TRACER,
        rng: random.Random,
        registry: Registry,
    ) -> None:
        self._config = config
        self._tracer = tracer
        self._metrics = HostMetrics(registry)
        registry.read(reading(lambda: self._host, self._metrics.bridge, serving=lambda: self._serving))
        registry.read(reading_events(lambda: self._host.events if self._host is not None else None))
        self._client = client
        self._rng = rng
        self._identity = identity_of(config.identity)
        self._host: Host | None = None
        self._server: BridgeServer | None = None
        self._serving = False
        self._elector = Elector(
            client,
            namespace=config.lease_namespace,
            name=NAME,
            identity=self._identity,
            now=utc_now,
            rng=rng,
            node=config.node_name,
            is_dead=self._is_unheard,
        )
        self._caches = self._empty()
        self._spent = asyncio.Event()

    @property
    def not_ready(self) -> Sequence[str]:
        """Why not; a standby is ready when it could lead at once."""
        if self._host is None:
            if not self._elector.stands_by:
                return (f"no copy leads (Lease {self._config.lease_namespace}/{NAME})",)
            return self._caches.not_synced
        if missing := self._host.caches.not_synced:
            return missing
        return () if self._serving else ("the bridge is not listening yet",)

    async def proceed(self, tenant: Tenant, deleted_at: datetime, grace_seconds: int) -> float | None:
        """See :meth:`TenantEnd.proceed`; a copy that does not lead leaves it to the one that does."""
        host = self._host
        if host is None or not host.caches.is_synced():
            return STANDBY_SECONDS
        return await TenantEnd(self._client, host.caches, now=utc_now).proceed(tenant, deleted_at, grace_seconds)

    async def run(self) -> None:
        """Stand by, lead, stand by again, until cancelled; the Lease is released then."""
        async with asyncio.TaskGroup() as tasks:
            filling = tasks.create_task(self._keep_filled(), name="caches")
            await self._elector.run_while_leader(self._lead)
            filling.cancel()

    async def _keep_filled(self) -> None:
        """Follow the API server, leading or not; each term has caches of its own, as its parts hang on them."""
        while True:
            self._spent.clear()
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(self._caches.run())
                await self._spent.wait()
                running.cancel()
            self._caches = self._empty()

    def _is_unheard(self, node: str) -> bool:
        return self._caches.roster.is_unheard(node)

    def _empty(self) -> Caches:
        caches = Caches(self._client, self._rng, time=time.monotonic, namespace=self._config.lease_namespace)
        caches.leases.on_change(self._lease_changed)
        return caches

    def _lease_changed(self, old: Lease | None, new: Lease | None) -> None:
        """The leader's Lease is free, or gone: whoever stands by need not wait until it looks again."""
        lease = new or old
        if lease is not None and lease.metadata.name == NAME and (new is None or not new.spec.holder_identity):
            self._elector.wake()

    async def _lead(self, _: int) -> None:
        await beside.stand_alone(self._client, self._rng)
        config = self._config
        host = self._host = Host(
            self._client,
            self._caches,
            version=__version__,
            identity=self._identity,
            reserved=config.reserved_cidrs,
            tracer=self._tracer,
            now=utc_now,
            time=time.monotonic,
            rng=self._rng,
            namespace=config.lease_namespace,
            trusted=lambda: TlsFiles(tls_paths(config), SERVER).load().ca,
            metrics=self._metrics,
        )
        server = self._server = BridgeServer(
            ServerConfig(listen=config.bridge_address, tls=tls_paths(config), trust_domain=config.trust_domain),
            host.backend,
            tracer=self._tracer,
            observer=self._metrics.bridge,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(host.run(), name="host")
                tasks.create_task(self._serve(host, server), name="bridge")
        finally:
            self._serving = False
            self._host = None
            self._spent.set()
            # Within the margin that the Lease leaves after its renew deadline.
            await server.stop(grace=1.0)

    async def _serve(self, host: Host, server: BridgeServer) -> None:
        await host.caches.synced()
        await server.start()
        self._serving = True
        config = self._config
        if config.pod_address is not None:
            port = int(config.bridge_address.rpartition(":")[2])
            await FrontDoor(self._client, config.lease_namespace, config.pod_address, port, rng=self._rng).run()


def tls_paths(config: HostConfig) -> TlsPaths:
    """Return where the bridge's certificate, its key and the tenants' CA are."""
    return TlsPaths(certificate=config.tls_cert, key=config.tls_key, ca=config.tenant_ca)


async def run(config: HostConfig) -> None:
    """Run the host program until SIGTERM or SIGINT. Raises ConfigurationError for settings that can't work."""
    rng = random.Random()  # noqa: S311 - jitter, no secret
    credentials = load(config.kubeconfig or None, config.context or None)
    TlsFiles(tls_paths(config), SERVER).load()
    metrics = Registry("host", __version__)
    requests = RequestCounter(metrics)
    registry = kopf.OperatorRegistry()
    async with (
        traced(NAME, __version__, os.environ, rng=rng) as tracer,
        HttpKubeClient(credentials, program="host", version=__version__, rng=rng, requests=requests) as client,
    ):
        program = HostProgram(config, client, tracer=tracer, rng=rng, registry=metrics)
        register(registry, program)

        admission = AdmissionMetrics(metrics)
        webhook = AdmissionWebhook(client, took=admission.took)
        admission.follow(webhook.reviews)

        async def serve_webhook() -> None:
            place, namespace = config.webhook_address, config.lease_namespace
            await webhookserver.run(
                client, webhook, place, namespace=namespace, now=utc_now, rng=rng, certified=admission.certified
            )

        async def work() -> None:
            async with serve(config.endpoint, Probes(ready=lambda: program.not_ready, metrics=metrics.text)):
                try:
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(program.run(), name="host")
                        if config.webhook_address:
                            # While another copy leads too: admission must not wait for a leader.
                            tasks.create_task(serve_webhook(), name="webhook")
                except* ConfigurationError as group:
                    raise _first(group) from None

        await run_in_shell(credentials, work, program=NAME, registry=registry, finalizer=FINALIZER)
    log.info("The host program has stopped.")


def _first(error: BaseException) -> BaseException:
    """The first exception of groups within groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
