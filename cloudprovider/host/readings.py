"""What stands in the memory of the copy of the host program that leads, read for each scrape."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from cloudprovider.core.addressing import is_ours
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.conditions import find
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.metrics import host as metrics
from cloudprovider.core.metrics.definition import MOST_POOLS, MOST_REASONS, MOST_TENANTS, OTHER
from cloudprovider.host.assembly import Host
from cloudprovider.host.metrics import BridgeCalls
from cloudprovider.kube.metrics import read_queues
from cloudprovider.kube.registry import Names, Readings

_DECIDING = ("Allocated", "Leased", "BackendsFound", "Programmed", "Ready")
"""Conditions in the order in which they come true: the first that is False says what is waited for."""


def reading(
    host: Callable[[], Host | None], bridge: BridgeCalls, *, serving: Callable[[], bool]
) -> Callable[[], Readings]:
    """Return a reader of ``host`` (None while this copy stands by) and of whom its bridge serves."""
    reasons, pools, tenants = Names(MOST_REASONS), Names(MOST_POOLS), Names(MOST_TENANTS)

    def read() -> Readings:
        leads = host()
        yield metrics.LEADER, {(): leads is not None}
        yield metrics.BRIDGE_SERVING, {(): serving()}
        if leads is None:
            return
        clusters = leads.caches.guest_clusters.objects
        yield metrics.GUEST_CLUSTERS, {(): len(clusters)}
        yield metrics.LOAD_BALANCERS, _states(leads.caches.load_balancers.objects.values(), reasons)
        yield from _pools(leads, pools)
        bound = [Tenant(*key) for key, cluster in clusters.items() if cluster.status.cluster_uid]
        connected: dict[tuple[str, ...], float] = {}
        for tenant in bound:
            # All that are left over are one: connected only while each of them is.
            name = (tenants.of(tenant.path),)
            connected[name] = min(connected.get(name, 1), tenant in bridge.open_streams)
        yield metrics.GUEST_CONNECTED, connected
        yield metrics.TENANT_CERTIFICATE_EXPIRY, _expiries(bridge, clusters, tenants)
        yield from read_queues(leads.queues)

    return read


def state_of(lb: LoadBalancer) -> tuple[str, str]:
    """Return the state of a load balancer, and the reason for it."""
    if lb.metadata.deletion_timestamp:
        return "deleting", "Deleting"
    conditions = lb.status.conditions
    ready = find(conditions, "Ready")
    if ready is not None and ready.status == "True":
        return "ready", ready.reason
    found = (find(conditions, kind) for kind in _DECIDING)
    reason = next((c.reason for c in found if c is not None and c.status == "False"), "Pending")
    return "not_ready" if lb.status.addresses else "no_address", reason


def _states(load_balancers: Iterable[LoadBalancer], reasons: Names) -> Mapping[tuple[str, ...], float]:
    counted: Counter[tuple[str, ...]] = Counter()
    for (state, reason), number in Counter(state_of(lb) for lb in load_balancers if is_ours(lb)).items():
        counted[state, reasons.of(reason)] += number
    return counted


def _pools(host: Host, names: Names) -> Readings:
    total, available, allocated = Counter[tuple[str, ...]](), Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for pool in host.caches.pools.objects.values():
        name = (names.of(pool.metadata.name),)
        total[name] += pool.status.total
        available[name] += pool.status.available
        blocks = host.controller.book.ledger.blocks_of(pool.metadata.name)
        allocated[name] += sum(len(block.spec.allocations) for block in blocks)
    yield metrics.POOL_ADDRESSES, total
    yield metrics.POOL_AVAILABLE, available
    yield metrics.POOL_ALLOCATED, allocated


def _expiries(
    bridge: BridgeCalls, clusters: Mapping[tuple[str, str], object], tenants: Names
) -> Mapping[tuple[str, ...], float]:
    for tenant in bridge.shown_until.keys() - {Tenant(*key) for key in clusters}:
        del bridge.shown_until[tenant]
    named = ((tenants.of(tenant.path), ends) for tenant, ends in bridge.shown_until.items())
    return {(name,): ends for name, ends in named if name != OTHER}
