"""The parts of the host program put together over one API server; without a process, a network port or a lease."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final

from cloudprovider.core.naming import HOST_PROGRAM
from cloudprovider.core.permissions import SYSTEM
from cloudprovider.core.plan import IPNetwork
from cloudprovider.core.tracing import NO_TRACER, Tracer
from cloudprovider.host.backend import HostBackend
from cloudprovider.host.book import AddressBook
from cloudprovider.host.caches import Caches
from cloudprovider.host.certificates import Certificates
from cloudprovider.host.claimants import Claimants
from cloudprovider.host.clock import Clock
from cloudprovider.host.controller import HostController
from cloudprovider.host.guestclusters import GuestClusterStatuses
from cloudprovider.host.guestmachines import GuestMachines
from cloudprovider.host.hints import READOPTION_SECONDS, Hints
from cloudprovider.host.hosts import FAILBACK_SECONDS, Hosts
from cloudprovider.host.hosts import SETTLE_SECONDS as HOSTS_SECONDS
from cloudprovider.host.infrastructure import Infrastructure
from cloudprovider.host.inventories import SETTLE_SECONDS, Inventories
from cloudprovider.host.machines import Machines
from cloudprovider.host.metrics import HostMetrics
from cloudprovider.host.nodes import TenantNodes
from cloudprovider.host.registration import Registration
from cloudprovider.host.waits import Waits
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.metrics import Queue

NAME: Final = HOST_PROGRAM
"""The host program's name: of its Lease, and in its events."""


class Host:
    """One term in office. ``backend`` may be asked once ``caches`` have synced, while they and :meth:`run` run.

    ``caches`` are for this term alone, but may have been filled before it: a standby's are.
    ``identity``: which copy of the program this is. ``time`` is monotonic, in seconds.
    ``namespace`` holds the Secrets of the tenants' CA and the bridge's certificate; ``trusted``: the CAs (PEM) that the
    bridge trusts at this moment.
    ``settle_seconds``: see :data:`~cloudprovider.host.inventories.SETTLE_SECONDS`;
    ``readoption_seconds``: see :data:`~cloudprovider.host.hints.READOPTION_SECONDS`; ``hosts_seconds`` and
    ``failback_seconds``: see :data:`~cloudprovider.host.hosts.SETTLE_SECONDS` and what stands below it there.
    """

    def __init__(
        self,
        client: KubeClient,
        caches: Caches,
        *,
        version: str,
        identity: str,
        reserved: Sequence[IPNetwork],
        tracer: Tracer = NO_TRACER,
        now: Clock,
        time: Callable[[], float],
        rng: random.Random,
        metrics: HostMetrics,
        settle_seconds: float = SETTLE_SECONDS,
        readoption_seconds: float = READOPTION_SECONDS,
        namespace: str = SYSTEM,
        trusted: Callable[[], bytes] | None = None,
        hosts_seconds: float = HOSTS_SECONDS,
        failback_seconds: float = FAILBACK_SECONDS,
    ) -> None:
        self.caches = caches
        hints = Hints(time, wait_seconds=readoption_seconds)
        waits = Waits(now=now, time=time, address_after=metrics.address_after, ready_after=metrics.ready_after)
        waits.follow(self.caches.load_balancers)
        self.events = EventRecorder(client, component=NAME, instance=identity, now=now, rng=rng)
        book = AddressBook(self.caches, hints)
        infrastructure = Infrastructure(self.caches, book, reserved=reserved)
        claimants = Claimants(self.caches)
        machines = Machines(self.caches, book, infrastructure, claimants)
        hosts = Hosts(
            self.caches, self.events, time=time, settle_seconds=hosts_seconds, failback_seconds=failback_seconds
        )
        self.controller = HostController(
            client,
            self.caches,
            book,
            hints,
            self.events,
            machines=machines,
            hosts=hosts,
            tracer=tracer,
            now=now,
            rng=rng,
            block_write=metrics.block_write,
        )
        self._statuses = GuestClusterStatuses(client, self.caches, now=now, rng=rng)
        self._nodes = TenantNodes(self.caches, infrastructure, claimants, self._statuses, rng=rng)
        self._machines = GuestMachines(client, self.caches, rng=rng)
        self._certificates = Certificates(
            client, namespace=namespace, events=self.events, now=now, rng=rng, trusted=trusted
        )
        self.backend = HostBackend(
            client,
            self.caches,
            hints,
            book,
            statuses=self._statuses,
            registration=Registration(self._statuses, version=version),
            nodes=self._nodes,
            inventories=Inventories(self._statuses, now=now, time=time, settle_seconds=settle_seconds),
            certificates=self._certificates,
        )
        caches.replay()

    @property
    def queues(self) -> Sequence[Queue]:
        """All work queues, for metrics."""
        return (*self.controller.queues, self._nodes.queue, self._machines.queue)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.controller.run(), name="controller")
            tasks.create_task(self._statuses.run(), name="guest cluster statuses")
            tasks.create_task(self._nodes.run(), name="tenants' nodes")
            tasks.create_task(self._machines.run(), name="guest clusters' machines")
            tasks.create_task(self._certificates.run(), name="certificates")
            tasks.create_task(self.events.run(), name="events")
