"""The host controller: gives load balancers their addresses and takes them back. All that it decides stands in the
objects; a new one takes up where the last one was killed."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

from cloudprovider.core.audit import Findings, audit
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.lbobject import service_of
from cloudprovider.core.news import ADDRESS_RELEASED, NOT_RECORDED
from cloudprovider.core.tracing import Tracer
from cloudprovider.host.book import AddressBook
from cloudprovider.host.caches import Caches
from cloudprovider.host.clock import Clock
from cloudprovider.host.hints import Hints
from cloudprovider.host.hosts import Hosts
from cloudprovider.host.loadbalancers import LoadBalancers
from cloudprovider.host.losses import has_lost_records, is_kept
from cloudprovider.host.machines import Machines
from cloudprovider.host.manualreleases import ManualReleases
from cloudprovider.host.poolstatus import PoolStatuses
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.metrics import Queue
from cloudprovider.kube.resources import IPPOOLS

_log = logging.getLogger(__name__)

AUDIT_SECONDS: Final = 600.0
REOPEN_SECONDS: Final = 15.0
"""How often addresses are looked for that somebody else had, and whose time is over."""


class HostController:
    """Make it before the caches are filled, and :meth:`run` it beside them. ``block_write``: see
    :class:`~cloudprovider.host.batches.Batches`."""

    def __init__(
        self,
        client: KubeClient,
        caches: Caches,
        book: AddressBook,
        hints: Hints,
        events: EventRecorder,
        *,
        machines: Machines,
        tracer: Tracer,
        hosts: Hosts,
        now: Clock,
        rng: random.Random,
        block_write: Callable[[str], None],
    ) -> None:
        self._caches = caches
        self._hints = hints
        self._events = events
        self._now = now
        self.hosts = hosts
        self._rng = rng
        self.book = book
        self.load_balancers = LoadBalancers(
            client,
            caches,
            book,
            hints,
            events,
            machines=machines,
            hosts=hosts,
            tracer=tracer,
            now=now,
            rng=rng,
            block_write=block_write,
        )
        self._pools = PoolStatuses(client, caches, self.book, events, now=now, rng=rng)
        self._releases = ManualReleases(client, caches, self.book, self.load_balancers.batches, events, rng=rng)

    @property
    def queues(self) -> Sequence[Queue]:
        """All work queues, for metrics."""
        return (self.load_balancers.queue, self._pools.queue, self._releases.queue)

    async def run(self) -> None:
        """Work until cancelled."""
        await self._caches.synced()
        self.book.resume()
        self.hosts.begin()
        # Before anything is given: what is in use already must be recorded, or it would be given twice.
        findings = self.audit()
        self._hints.begin(self._tenants(), records_lost=has_lost_records(self._caches, findings))
        if self._hints.may_be_more:
            _log.warning("Records of addresses are lost; new ones are given when every guest has told what it shows.")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.load_balancers.run())
            tasks.create_task(self._pools.run())
            tasks.create_task(self._releases.run())
            tasks.create_task(self.hosts.run())
            tasks.create_task(self._audits())
            tasks.create_task(self._reopen())
            tasks.create_task(self._hear_guests())

    def audit(self) -> Findings:
        """Compare blocks and load balancers, have repaired what differs, both ways, and return it."""
        # Those of a stock provider as well: what was recorded for them (cloudprovider takeover) stays theirs.
        findings = audit(self.book.ledger, self._caches.load_balancers.objects.values())
        dangling = [release for release in findings.dangling if not is_kept(self._caches, release)]
        for release in dangling:
            message = f"{release.address} was recorded for the load balancer {release.owner}, which is gone: given back"
            _log.warning(
                "An address is recorded for a load balancer that is gone; it is given back.",
                extra={"address": str(release.address), "pool": release.pool, "owner": release.owner},
            )
            if (pool := self._caches.pools.get("", release.pool)) is not None:
                self._events.record(IPPOOLS, pool, ADDRESS_RELEASED, message)
        for one in findings.missing:
            _log.warning(
                "A load balancer uses an address that is not recorded for it; it is recorded now."
                if not one.holder
                else "A load balancer shows an address that is recorded for another one; it gets a new one.",
                extra={"address": str(one.address), "pool": one.pool, "owner": one.owner, "holder": one.holder},
            )
            if (pool := self._caches.pools.get("", one.pool)) is not None:
                message = f"{one.address} is used by the load balancer {one.owner}, and was not recorded: it is now"
                if one.holder:
                    message = (
                        f"{one.address} is shown by the load balancer {one.owner}, but recorded for {one.holder}:"
                        f" {one.owner} gets another one"
                    )
                self._events.record(IPPOOLS, pool, NOT_RECORDED, message)
            namespace, _, name = one.owner.partition("/")
            self.load_balancers.batches.want((namespace, name))
        self.load_balancers.batches.release(dangling)
        return findings

    def _tenants(self) -> set[Tenant]:
        """Whose guests may show addresses: those that have been bound, or have load balancers."""
        found = {Tenant(*key) for key, c in self._caches.guest_clusters.objects.items() if c.status.cluster_uid}
        services = (service_of(lb) for lb in self._caches.load_balancers.objects.values())
        return found.union(service[0] for service in services if service is not None)

    async def _hear_guests(self) -> None:
        await self._hints.all_heard()
        self.load_balancers.batches.retry_all()

    async def _audits(self) -> None:
        while True:
            await asyncio.sleep(AUDIT_SECONDS * self._rng.uniform(0.9, 1.0))
            self.audit()

    async def _reopen(self) -> None:
        while True:
            await asyncio.sleep(REOPEN_SECONDS * self._rng.uniform(0.9, 1.0))
            self.load_balancers.batches.reopen(self.book.expired_conflicts(self._now()))
