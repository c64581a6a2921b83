"""Whether a host has lost what it had written: restored from a backup, as a rule without statuses, or without blocks.

Only what a host that was merely restarted never leaves behind counts: a record is written before the status shows its
address, and the object is gone after its record. A load balancer without address proves nothing (its program may have
been killed before it gave one) as long as there are blocks at all.
"""

from cloudprovider.core.addressing import is_ours, shown
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.audit import Findings
from cloudprovider.core.conditions import find
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.placement import ALLOCATED
from cloudprovider.core.wants import Release
from cloudprovider.host.caches import Caches


def has_lost_records(caches: Caches, findings: Findings) -> bool:
    """Whether records of addresses in use are missing. ``findings``: of the audit at the start."""
    if not caches.blocks.objects and (
        any(_is_without_word(lb) for lb in caches.load_balancers.objects.values())
        or any(_had_services(caches, cluster) for cluster in caches.guest_clusters.objects.values())
    ):
        return True
    return any(_is_missing(caches, one.owner, one.pool) for one in findings.missing) or any(
        is_kept(caches, release) for release in findings.dangling
    )


def is_kept(caches: Caches, release: Release) -> bool:
    """Whether a record without its owner is for an object that has been made anew (restored) under the same name and
    shows no address yet: it takes over what its namesake had, as soon as it asks for one."""
    lb = _load_balancer(caches, release.owner)
    return lb is not None and is_ours(lb) and lb.metadata.uid != release.uid and not shown(lb)


def _is_without_word(lb: LoadBalancer) -> bool:
    """Whether no host has ever decided about a load balancer that it should have."""
    return is_ours(lb) and not lb.metadata.deletion_timestamp and find(lb.status.conditions, ALLOCATED) is None


def _had_services(caches: Caches, cluster: GuestCluster) -> bool:
    """Whether a guest has reported Services, and has not one load balancer."""
    inventory = cluster.status.inventory
    return inventory is not None and inventory.services > 0 and not caches.load_balancers_of(Tenant(*cluster.key))


def _is_missing(caches: Caches, owner: str, pool: str) -> bool:
    """Whether an address shown should have a record: what is being deleted has given its back, and the blocks of a
    pool are deleted with it."""
    return _load_balancer(caches, owner) is not None and caches.pools.get("", pool) is not None


def _load_balancer(caches: Caches, owner: str) -> LoadBalancer | None:
    namespace, _, name = owner.partition("/")
    lb = caches.load_balancers.get(namespace, name)
    return None if lb is None or lb.metadata.deletion_timestamp else lb
