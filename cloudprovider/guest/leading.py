"""What the leading copy of the guest program does, from winning the Lease to losing it."""

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from cloudprovider.bridge.api import BridgeClient
from cloudprovider.core.annotations import is_read
from cloudprovider.core.api.kubernetes import Service
from cloudprovider.core.exchange import LoadBalancerState, ServiceKey
from cloudprovider.core.tracing import NO_TRACER, Tracer
from cloudprovider.core.translate import Classes
from cloudprovider.guest.endpoints import LocalEndpoints
from cloudprovider.guest.hostview import HostView, Name
from cloudprovider.guest.inventory import InventoryReporter
from cloudprovider.guest.metrics import GuestMetrics
from cloudprovider.guest.nodes import NodeReporter
from cloudprovider.guest.nodes import slim as slim_node
from cloudprovider.guest.services import ServiceController
from cloudprovider.guest.traces import ServiceTraces
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.queue import WorkQueue
from cloudprovider.kube.resources import NODES, SERVICES

WORKERS: Final = 64
"""Services worked on at a time: twice the API client's connections, as each also waits for the host."""


def slim_service(service: Service) -> Service:
    """Return ``service`` without the annotations that nobody here reads (kubectl's last-applied above all)."""
    meta = service.metadata
    annotations = {k: v for k, v in meta.annotations.items() if is_read(k)}
    return msgspec.structs.replace(
        service,
        metadata=msgspec.structs.replace(meta, annotations=annotations, labels={}, owner_references=[]),
    )


class Leadership:
    """One term in office: informers, queue, stream and reports, wired together. Made for one :meth:`run`."""

    def __init__(
        self,
        client: KubeClient,
        bridge: BridgeClient,
        *,
        classes: Classes,
        fencing_token: int,
        events: EventRecorder,
        metrics: GuestMetrics,
        rng: random.Random,
        tracer: Tracer = NO_TRACER,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.host = HostView(bridge)
        self.services = Informer(client, SERVICES, rng=rng, transform=slim_service)
        self.node_informer = Informer(client, NODES, rng=rng, transform=slim_node)
        self.endpoints = LocalEndpoints(client, rng=rng, changed=self._endpoints_changed)
        self.inventory = InventoryReporter(
            client,
            bridge,
            self.services,
            classes=classes,
            fencing_token=fencing_token,
            connected=lambda: self.host.connected,
            rng=rng,
        )
        self.nodes = NodeReporter(
            bridge,
            self.node_informer,
            events=events,
            connected=lambda: self.host.connected,
            rng=rng,
            now=now,
        )
        self._traces = ServiceTraces(tracer)
        self.controller = ServiceController(
            client,
            bridge,
            self.services,
            self.host,
            self.endpoints,
            classes=classes,
            events=events,
            metrics=metrics,
            rng=rng,
            gate=self.inventory.gate,
            vanished=self.inventory.request,
            traces=self._traces,
            now=now,
        )
        # New Services and those whose answer has come take turns: in a burst what is begun gets finished.
        self.queue = WorkQueue(
            self.controller.handle, name="services", workers=WORKERS, rng=rng, group=self.host.has_addresses
        )
        self.services.on_change(self._service_changed)
        self.host.on_state(self._state_changed)
        self.host.on_connected(self.nodes.again)
        self.host.on_connected(self._all_again)
        self.host.on_synced(self.inventory.request)
        self.host.on_synced(self._all_again)

    @property
    def not_ready(self) -> Sequence[str]:
        """Why the work does not go as it should; nothing if it does."""
        reasons = [
            f"the API server has not listed its {what} yet"
            for what, informer in (("Services", self.services), ("Nodes", self.node_informer))
            if not informer.synced.is_set()
        ]
        if not self.host.connected:
            error = self.host.error
            reasons.append(f"the host is not reached: {error}" if error else "the host is not reached yet")
        return reasons

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.services.run(), name="services")
            group.create_task(self.node_informer.run(), name="nodes")
            # Without the Services every state would look like a leftover.
            await self.services.synced.wait()
            group.create_task(self.host.run(), name="host")
            group.create_task(self.nodes.run(), name="node reports")
            group.create_task(self.endpoints.run(), name="endpoints")
            group.create_task(self.inventory.run(), name="inventory")
            group.create_task(self.queue.run(), name="service queue")

    def _service_changed(self, old: Service | None, new: Service | None) -> None:
        service = new or old
        if service is not None and self.controller.concerns(service):
            self._traces.changed(old, new, listed=not self.services.synced.is_set())
            self.queue.add(service.key)

    def _state_changed(self, key: ServiceKey, state: LoadBalancerState | None) -> None:
        next_in_line = self.controller.heard(key, state)
        for name in ((key.namespace, key.name), next_in_line):
            if name is not None and name in self.services.objects:
                self.queue.add(name)

    def _endpoints_changed(self, name: Name) -> None:
        service = self.services.get(*name)
        if service is not None and service.spec.external_traffic_policy == "Local":
            self._service_changed(service, service)

    def _all_again(self) -> None:
        for service in self.services.objects.values():
            self._service_changed(service, service)
