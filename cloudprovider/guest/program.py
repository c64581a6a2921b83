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
from cloudprovider.guest.metrics import GuestMetrics
from cloudprovider.guest.renewal import Renewal
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.credentials import load
from cloudprovider.kube.endpoint import Probes, serve
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.lease import Elector, identity_of
from cloudprovider.kube.metrics import RequestCounter, exposition
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

    ``bridge`` makes a client of the host, given who we are; one is made for each term in office. ``certificate_ends``:
    when the certificate ends that is shown to the host.
    """

    def __init__(
        self,
        config: GuestConfig,
        client: KubeClient,
        bridge: Callable[[Hello], BridgeClient],
        *,
        tracer: Tracer = NO_TRACER,
        certificate_ends: Callable[[], datetime | None] = lambda: None,
        rng: random.Random,
    ) -> None:
        self._certificate_ends = certificate_ends
        self._config = config
        self._tracer = tracer
        self._client = client
        self._bridge = bridge
        self._rng = rng
        self._identity = identity_of(config.identity)
        self._metrics = GuestMetrics()
        self._leadership: Leadership | None = None
        self._events = EventRecorder(client, component=COMPONENT, instance=self._identity, now=_utc, rng=rng)

    @property
    def not_ready(self) -> Sequence[str]:
        """Why not; a standby is ready."""
        return self._leadership.not_ready if self._leadership is not None else ()

    def metrics(self) -> str:
        """Our own metrics, in Prometheus' text format."""
        leadership = self._leadership
        gauges = {
            "cloudprovider_guest_leader": ("1 while this copy leads.", float(leadership is not None)),
            "cloudprovider_guest_events_dropped": ("Events that were too many.", float(self._events.dropped)),
        }
        if (ends := self._certificate_ends()) is not None:
            text = "When the certificate for the host's bridge ends, in seconds since 1970."
            gauges["cloudprovider_guest_certificate_expiry_timestamp_seconds"] = (text, ends.timestamp())
        if leadership is not None:
            stats = leadership.queue.stats
            gauges |= {
                "cloudprovider_guest_bridge_connected": (
                    "1 while the host is heard.",
                    float(leadership.host.connected),
                ),
                "cloudprovider_guest_load_balancers": (
                    "Load balancers the host has for us.",
                    float(len(leadership.host)),
                ),
                "cloudprovider_guest_queue_ready": ("Services waiting to be worked on.", float(stats.ready)),
                "cloudprovider_guest_queue_failing": ("Services whose last work failed.", float(stats.failing)),
                "cloudprovider_guest_queue_failures": ("Failures of work on Services.", float(stats.failures)),
            }
        return self._metrics.exposition(gauges)

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
    files = TlsFiles(paths, CLIENT)
    files.load()

    def bridge(hello: Hello) -> BridgeClient:
        return GrpcBridge(
            ClientConfig(target=config.bridge, tls=paths, hello=hello, server_name=config.bridge_server_name)
        )

    requests = RequestCounter()
    async with (
        traced(COMPONENT, __version__, os.environ, rng=rng) as tracer,
        HttpKubeClient(credentials, program="guest", version=__version__, rng=rng, requests=requests) as client,
    ):
        program = GuestProgram(config, client, bridge, tracer=tracer, certificate_ends=files.ends, rng=rng)

        async def work() -> None:
            probes = Probes(ready=lambda: program.not_ready, metrics=lambda: exposition(requests) + program.metrics())
            async with serve(config.endpoint, probes):
                await program.run()

        await run_in_shell(credentials, work, program=COMPONENT)
    log.info("The guest program has stopped.")
