"""The guest program as a process: settings, credentials, the Lease, the health endpoint."""

import asyncio
import logging
import os
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from cloudprovider import __version__
from cloudprovider.bridge.api import BridgeClient, Hello
from cloudprovider.bridge.client import ClientConfig, GrpcBridge
from cloudprovider.bridge.tlsfiles import CLIENT, TlsFiles
from cloudprovider.core.errors import KubeError
from cloudprovider.core.naming import GUEST_PROGRAM
from cloudprovider.core.tracing import NO_TRACER, Tracer
from cloudprovider.guest.config import GuestConfig
from cloudprovider.guest.leading import Leadership
from cloudprovider.guest.metrics import BridgeCalls, GuestMetrics
from cloudprovider.guest.readings import reading
from cloudprovider.guest.renewal import Renewal
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.credentials import load
from cloudprovider.kube.endpoint import Probes, serve
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.lease import Elector, identity_of
from cloudprovider.kube.metrics import RequestCounter, reading_events
from cloudprovider.kube.registry import Registry
from cloudprovider.kube.resources import NAMESPACES
from cloudprovider.kube.shell import run_in_shell
from cloudprovider.tracing.setup import traced

log = logging.getLogger(__name__)

COMPONENT: Final = GUEST_PROGRAM
LEASE: Final = GUEST_PROGRAM
BACKOFF: Final = Backoff(base=0.5, limit=15.0)


def _utc() -> datetime:
    return datetime.now(UTC)


class GuestProgram:
    """One copy of the guest program: stands by until it leads.

    ``bridge`` makes a client of the host, given who we are; one is made for each term in office. What is to be known
    of both is exported by ``registry``.
    """

    def __init__(
        self,
        config: GuestConfig,
        client: KubeClient,
        bridge: Callable[[Hello], BridgeClient],
        *,
        tracer: Tracer = NO_TRACER,
        rng: random.Random,
        registry: Registry,
    ) -> None:
        self._config = config
        self._tracer = tracer
        self._client = client
        self._bridge = bridge
        self._rng = rng
        self._identity = identity_of(config.identity)
        self._metrics = GuestMetrics(registry)
        self._leadership: Leadership | None = None
        self._events = EventRecorder(client, component=COMPONENT, instance=self._identity, now=_utc, rng=rng)
        registry.read(reading(lambda: self._leadership))
        registry.read(reading_events(lambda: self._events))

    @property
    def not_ready(self) -> Sequence[str]:
        """Why not; a standby is ready."""
        return self._leadership.not_ready if self._leadership is not None else ()

    async def run(self) -> None:
        """Stand by, lead, stand by again, until cancelled; the Lease is released then."""
        elector = Elector(
            self._client,
            namespace=self._config.lease_namespace,
            name=LEASE,
            identity=self._identity,
            now=_utc,
            rng=self._rng,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._events.run(), name="events")
            await elector.run_while_leader(self._lead)

    async def _lead(self, fencing_token: int) -> None:
        hello = Hello(cluster_uid=await self._cluster_uid(), guest_version=__version__)
        bridge = self._bridge(hello)
        try:
            self._leadership = Leadership(
                self._client,
                bridge,
                classes=self._config.classes,
                fencing_token=fencing_token,
                events=self._events,
                metrics=self._metrics,
                rng=self._rng,
                tracer=self._tracer,
                now=_utc,
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(self._leadership.run(), name="leadership")
                if self._config.renewed_secret:
                    group.create_task(self._renewal(bridge).run(), name="renewal")
        finally:
            self._leadership = None
            await bridge.close()

    def _renewal(self, bridge: BridgeClient) -> Renewal:
        return Renewal(
            self._client,
            bridge,
            namespace=self._config.lease_namespace,
            secret=self._config.renewed_secret,
            files=TlsFiles(self._config.tls, CLIENT),
            events=self._events,
            now=_utc,
            rng=self._rng,
        )

    async def _cluster_uid(self) -> str:
        failures = 0
        while True:
            try:
                return (await self._client.get(NAMESPACES, "", "kube-system")).metadata.uid
            except KubeError as error:
                failures += 1
                log.warning("The cluster's identity can't be read; trying again.", extra={"error": str(error)})
                await asyncio.sleep(BACKOFF.delay(failures, self._rng))


async def run(config: GuestConfig) -> None:
    """Run the guest program until SIGTERM or SIGINT. Raises ConfigurationError for settings that can't work."""
    rng = random.Random()  # noqa: S311 - jitter, no secret
    credentials = load(config.kubeconfig or None, config.context or None)
    paths = config.tls
    TlsFiles(paths, CLIENT).load()
    registry = Registry("guest", __version__)
    calls = BridgeCalls(registry)

    def bridge(hello: Hello) -> BridgeClient:
        return GrpcBridge(
            ClientConfig(target=config.bridge, tls=paths, hello=hello, server_name=config.bridge_server_name),
            observer=calls,
        )

    requests = RequestCounter(registry)
    async with (
        traced(COMPONENT, __version__, os.environ, rng=rng) as tracer,
        HttpKubeClient(credentials, program="guest", version=__version__, rng=rng, requests=requests) as client,
    ):
        program = GuestProgram(config, client, bridge, tracer=tracer, rng=rng, registry=registry)

        async def work() -> None:
            async with serve(config.endpoint, Probes(ready=lambda: program.not_ready, metrics=registry.text)):
                await program.run()

        await run_in_shell(credentials, work, program=COMPONENT)
    log.info("The guest program has stopped.")
