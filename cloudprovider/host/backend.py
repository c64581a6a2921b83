"""The bridge's backend: what tenants ask becomes LoadBalancers and GuestCluster status, within the tenants' limits."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Final

from cloudprovider.bridge.api import (
    Hello,
    IssuedCertificate,
    PeerCertificate,
    QuotaExceeded,
    Reason,
    TenantPolicy,
    Welcome,
)
from cloudprovider.bridge.statelog import StateLog
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import TRACE_ANNOTATION, LoadBalancer
from cloudprovider.core.audit import owner_of
from cloudprovider.core.errors import AlreadyExists, BridgeError, Conflict, NotFound
from cloudprovider.core.exchange import (
    Inventory,
    InventoryResult,
    LoadBalancerRequest,
    LoadBalancerState,
    RejectedNode,
    ReportedNode,
    ServiceKey,
    Tenant,
)
from cloudprovider.core.lbobject import difference, object_key, service_of, stands_for, traced, wanted_object
from cloudprovider.core.lbstate import state_of
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.tenancy import check_request
from cloudprovider.core.times import parse_time
from cloudprovider.host.book import AddressBook
from cloudprovider.host.caches import Caches
from cloudprovider.host.certificates import Certificates
from cloudprovider.host.guestclusters import GuestClusterStatuses
from cloudprovider.host.hints import Hints
from cloudprovider.host.inventories import Inventories
from cloudprovider.host.nodes import TenantNodes
from cloudprovider.host.registration import Registration
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.resources import LOADBALANCERS

_log = logging.getLogger(__name__)

Key = tuple[str, str]

GOING_SECONDS: Final = 0.5
"""When to ask again for a load balancer whose predecessor is still going away."""
QUOTA_SECONDS: Final = 30.0
"""When to ask again where the tenant has as many load balancers as it may."""


class HostBackend:
    """A :class:`~cloudprovider.bridge.api.TenantBackend` over the host's API server and its caches.

    Make it before the caches are filled: the logs of states live from their changes.
    """

    def __init__(
        self,
        client: KubeClient,
        caches: Caches,
        hints: Hints,
        book: AddressBook,
        *,
        statuses: GuestClusterStatuses,
        registration: Registration,
        nodes: TenantNodes,
        inventories: Inventories,
        certificates: Certificates,
    ) -> None:
        self._client = client
        self._caches = caches
        self._hints = hints
        self._book = book
        self._statuses = statuses
        self._registration = registration
        self._nodes = nodes
        self._inventories = inventories
        self._certificates = certificates
        self._logs: dict[Tenant, StateLog] = {}
        self._listeners: list[Callable[[Tenant], None]] = []
        self._locks: dict[Key, tuple[asyncio.Lock, list[None]]] = {}
        self._creating: dict[Tenant, int] = {}
        self._leasing: Counter[Tenant] = Counter()
        """Load balancers that begin to ask for DHCP at this moment, and that the cache does not show so yet."""
        self._marked: set[str] = set()
        caches.load_balancers.on_change(self._changed)
        caches.guest_clusters.on_change(self._tenant_changed)

    # --- what the server asks at once ----------------------------------------------------------------------------

    def policy(self, tenant: Tenant) -> TenantPolicy | None:
        """See TenantBackend."""
        cluster = self._caches.guest_cluster(tenant)
        return None if cluster is None else _policy(cluster)

    def on_policy_change(self, listener: Callable[[Tenant], None]) -> Callable[[], None]:
        """See TenantBackend."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def states(self, tenant: Tenant) -> StateLog:
        """See TenantBackend."""
        log = self._logs.get(tenant)
        if log is None:
            log = self._logs[tenant] = StateLog()
            for lb in self._caches.load_balancers_of(tenant):  # of a tenant that was gone for a while
                found = service_of(lb)
                if found is not None:
                    log.publish(state_of(lb, found[1]))
        return log

    # --- calls ---------------------------------------------------------------------------------------------------

    async def connect(self, tenant: Tenant, hello: Hello, certificate: PeerCertificate | None = None) -> Welcome:
        """See TenantBackend."""
        return await self._registration.connect(tenant, self._living(tenant), hello, certificate)

    async def renew_certificate(self, certificate: PeerCertificate, request: bytes) -> IssuedCertificate:
        """See TenantBackend."""
        cluster = self._known(certificate.tenant)
        return await self._certificates.renew(certificate, request, not_before=_revoked_before(cluster))

    async def ensure(
        self,
        tenant: Tenant,
        service: ServiceKey,
        request: LoadBalancerRequest,
        shown_addresses: tuple[IPAddress, ...],
        *,
        trace: str = "",
    ) -> LoadBalancerState:
        """See TenantBackend."""
        cluster = self._living(tenant)
        check_request(tenant, self._caches.project_of(tenant.namespace), cluster.spec, request)
        uid = cluster.status.cluster_uid
        want = traced(wanted_object(tenant, service, request, cluster_uid=uid, limits=cluster.spec), trace)
        async with self._alone(want.key):
            have = self._caches.load_balancers.get(*want.key)
            known = self._hints.knows(want.key)
            if have is None or stands_for(have, tenant, service):
                # Before the object is seen: the controller may decide at once.
                self._hints.tell(tenant, want.key, shown_addresses)
            self._inventories.ensured(want.key)
            try:
                if have is None:
                    have = await self._create(tenant, cluster, want)
                lb = await self._update(tenant, cluster, service, have, want)
            finally:
                have = self._caches.load_balancers.get(*want.key)
                if have is None:
                    self._inventories.forget(want.key)
                if not known and (have is None or not stands_for(have, tenant, service)):
                    self._hints.forget(want.key)
        return state_of(lb, service)

    async def delete(self, tenant: Tenant, service: ServiceKey, *, trace: str = "") -> None:
        """See TenantBackend."""
        self._known(tenant)
        await self._delete(tenant, service, trace)

    async def report_nodes(self, tenant: Tenant, nodes: Sequence[ReportedNode]) -> Sequence[RejectedNode]:
        """See TenantBackend."""
        self._known(tenant)
        return await self._nodes.report(tenant, nodes)

    async def report_inventory(self, tenant: Tenant, inventory: Inventory) -> InventoryResult:
        """See TenantBackend."""
        cluster = self._known(tenant)
        self._inventories.check(cluster, inventory)
        self._take_hints(tenant, cluster, inventory)
        present = {}
        for lb in self._caches.load_balancers_of(tenant):
            found = service_of(lb)
            if found is not None and not self._is_going(lb):
                present[found[1]] = lb.key
        return await self._inventories.report(tenant, cluster, inventory, present, self._delete)

    def _take_hints(self, tenant: Tenant, cluster: GuestCluster, inventory: Inventory) -> None:
        """Note what the Services show, also where the load balancer is gone: the guest is going to ask for it anew."""
        objects = self._caches.load_balancers.objects
        shown = {}
        for item in inventory.items:
            key = object_key(tenant, item.service)
            have = objects.get(key)
            if have is None or stands_for(have, tenant, item.service):
                shown[key] = item.shown_addresses
        room = max(0, cluster.spec.quota.load_balancers - self._caches.count_of(tenant))
        self._hints.tell_all(tenant, shown, objects, complete=inventory.complete, limit=room)

    # --- one load balancer ---------------------------------------------------------------------------------------

    async def _create(self, tenant: Tenant, cluster: GuestCluster, want: LoadBalancer) -> LoadBalancer:
        """Return the object of this name: made now, or found to be there already (an earlier try of ours)."""
        most = cluster.spec.quota.load_balancers
        count = self._caches.count_of(tenant) + self._creating.get(tenant, 0)
        if count >= most:
            raise QuotaExceeded(
                f"the cluster has {count} load balancers, its limit is {most}: delete some, or ask the host's operator"
                " for more (GuestCluster spec.quota.loadBalancers)",
                subject="loadBalancers",
                retry_after=QUOTA_SECONDS,
            )
        with self._counted(tenant, cluster, want):
            self._creating[tenant] = self._creating.get(tenant, 0) + 1
            try:
                made = await self._client.create(LOADBALANCERS, want)
            except AlreadyExists:
                made = await self._client.get(LOADBALANCERS, *want.key)
            finally:
                self._creating[tenant] -= 1
                if not self._creating[tenant]:
                    del self._creating[tenant]
            self._caches.load_balancers.observe(made)
        return made

    @contextmanager
    def _counted(self, tenant: Tenant, cluster: GuestCluster, want: LoadBalancer) -> Iterator[None]:
        """Refuse what could only wait for an address of a pool (the allocator counts again, exactly), and what would
        be a lease too many (nobody else counts those). Until the block ends the cache has to show ``want``."""
        self._check_addresses(tenant, cluster, want)
        if want.spec.ipam != "dhcp":
            yield
            return
        self._leasing[tenant] += 1
        try:
            yield
        finally:
            self._leasing[tenant] -= 1

    def _check_addresses(self, tenant: Tenant, cluster: GuestCluster, want: LoadBalancer) -> None:
        most, count = cluster.spec.quota.addresses, self._book.count(tenant) + self._leasing[tenant]
        ledger = self._book.ledger
        own = any(len(ledger.owners_of(h.pool, h.address)) == 1 for h in ledger.held_by(owner_of(want)))
        if count >= most and not want.spec.primary_service and not own:
            raise QuotaExceeded(
                f"the cluster has {count} addresses, its limit is {most}: delete load balancers that it no longer"
                " needs, share an address (annotation primary-service), or ask the host's operator for more"
                " (GuestCluster spec.quota.addresses)",
                subject="addresses",
                retry_after=QUOTA_SECONDS,
            )

    async def _update(
        self, tenant: Tenant, cluster: GuestCluster, service: ServiceKey, have: LoadBalancer, want: LoadBalancer
    ) -> LoadBalancer:
        if not stands_for(have, tenant, service):
            raise BridgeError(
                f"the host's object {want.metadata.namespace}/{want.metadata.name} is not this Service's: it was made"
                " by somebody else (or its labels were changed); an operator of the host must move it out of the way",
                reason=Reason.IDENTITY_MISMATCH,
                retryable=False,
            )
        if self._is_going(have):
            raise BridgeError(
                "the Service's former load balancer is still going away",
                reason=Reason.UNAVAILABLE,
                retry_after=GOING_SECONDS,
            )
        patch = difference(have, want)
        if not patch:
            return have
        leases = want.spec.ipam == "dhcp" and have.spec.ipam != "dhcp"
        with self._counted(tenant, cluster, want) if leases else nullcontext():
            changed = await self._client.merge_patch(LOADBALANCERS, *want.key, patch)
            self._caches.load_balancers.observe(changed)
        return changed

    async def _delete(self, tenant: Tenant, service: ServiceKey, trace: str = "") -> None:
        key = object_key(tenant, service)
        async with self._alone(key):
            lb = self._caches.load_balancers.get(*key)
            if lb is None or not stands_for(lb, tenant, service):
                self.states(tenant).remove(service)
                return
            if self._is_going(lb):
                return
            try:
                if trace:  # a deletion has no place for it: the one write that a trace costs
                    note = {"metadata": {"uid": lb.metadata.uid, "annotations": {TRACE_ANNOTATION: trace}}}
                    await self._client.merge_patch(LOADBALANCERS, *key, note)
                await self._client.delete(LOADBALANCERS, *key, uid=lb.metadata.uid)
            except NotFound:
                pass  # gone since; the watch tells, and with it the log
            except Conflict as other:
                raise BridgeError(
                    "the load balancer has just been replaced: try again", reason=Reason.UNAVAILABLE, retry_after=1.0
                ) from other
            # The watch needs a moment to show the mark: until then nobody must take the object for a living one.
            if self._caches.load_balancers.get(*key) is not None:
                self._marked.add(lb.metadata.uid)

    def _is_going(self, lb: LoadBalancer) -> bool:
        return bool(lb.metadata.deletion_timestamp) or lb.metadata.uid in self._marked

    @asynccontextmanager
    async def _alone(self, key: Key) -> AsyncIterator[None]:
        """Calls for one object go one after the other."""
        lock, users = self._locks.setdefault(key, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                self._locks.pop(key, None)

    # --- tenants -------------------------------------------------------------------------------------------------

    def _known(self, tenant: Tenant) -> GuestCluster:
        cluster = self._caches.guest_cluster(tenant)
        if cluster is None:
            raise BridgeError(
                f"there is no GuestCluster {tenant.path} on this host: an operator must create it",
                reason=Reason.UNKNOWN_TENANT,
                retryable=False,
            )
        self._statuses.seen(tenant)
        return cluster

    def _living(self, tenant: Tenant) -> GuestCluster:
        cluster = self._known(tenant)
        if cluster.metadata.deletion_timestamp:
            raise BridgeError(
                f"GuestCluster {tenant.path} is being deleted: its load balancers stay for"
                f" {cluster.spec.deletion_grace_period_seconds} s after that, no new ones are made",
                reason=Reason.TENANT_TERMINATING,
            )
        return cluster

    # --- what the caches tell ------------------------------------------------------------------------------------

    def _changed(self, old: LoadBalancer | None, new: LoadBalancer | None) -> None:
        if new is not None:
            found = service_of(new)
            if found is not None:
                tenant, service = found
                self.states(tenant).publish(state_of(new, service))
            return
        if old is None:
            return
        self._marked.discard(old.metadata.uid)
        self._hints.gone(old.key)
        self._inventories.forget(old.key)
        gone = service_of(old)
        if gone is not None:
            tenant, service = gone
            self.states(tenant).remove(service)

    def _tenant_changed(self, old: GuestCluster | None, new: GuestCluster | None) -> None:
        changed = new or old
        if changed is None or (old is not None and new is not None and _essence(old) == _essence(new)):
            return
        tenant = Tenant(*changed.key)
        if new is None:
            self._logs.pop(tenant, None)
            self._hints.tenant_gone(tenant)
        for listener in list(self._listeners):
            listener(tenant)


def _essence(cluster: GuestCluster) -> tuple[object, ...]:
    return cluster.spec, cluster.status.cluster_uid, cluster.metadata.deletion_timestamp


def _policy(cluster: GuestCluster) -> TenantPolicy:
    spec = cluster.spec
    return TenantPolicy(
        cluster_uid=cluster.status.cluster_uid,
        revoked_fingerprints=frozenset(spec.revoked_fingerprints),
        revoked_before=_revoked_before(cluster),
        calls_per_second=spec.quota.calls_per_second,
        streams=spec.quota.streams,
    )


def _revoked_before(cluster: GuestCluster) -> datetime | None:
    text = cluster.spec.revoked_before
    if not text:
        return None
    moment = parse_time(text)
    if moment is None:  # the 31st of June: somebody wanted to lock certificates out, so none is let in
        _log.error(
            "GuestCluster spec.revokedBefore is no date; no certificate of the tenant is accepted until it is one.",
            extra={"namespace": cluster.metadata.namespace, "cluster": cluster.metadata.name, "value": text},
        )
        return datetime.max.replace(tzinfo=UTC)
    return moment
