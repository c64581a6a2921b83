"""The nodes that a tenant's load balancers send to: as reported, checked, written once for the whole cluster."""

import logging
import random
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

import msgspec

from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterStatus, GuestNode
from cloudprovider.core.errors import InvalidRequest, NotFound, Violation
from cloudprovider.core.exchange import RejectedNode, ReportedNode, Tenant
from cloudprovider.core.plan import IPAddress, IPNetwork
from cloudprovider.core.tenancy import NodeRules, check_nodes, node_cidrs
from cloudprovider.host.book import AddressBook
from cloudprovider.host.caches import Caches
from cloudprovider.host.guestclusters import NODES_REJECTED, GuestClusterStatuses, with_condition
from cloudprovider.kube.queue import WorkQueue

_log = logging.getLogger(__name__)

MAX_NODES: Final = 5000
_NAMED: Final = 5
"""So many rejected nodes are named in the condition; the guest is told of all."""


class TenantNodes:
    """Takes reports, and checks them again when an operator changes a tenant's CIDRs."""

    def __init__(
        self,
        caches: Caches,
        book: AddressBook,
        statuses: GuestClusterStatuses,
        *,
        reserved: Sequence[IPNetwork],
        rng: random.Random,
    ) -> None:
        self._caches = caches
        self._book = book
        self._statuses = statuses
        self._reserved = tuple(reserved)
        self._reports: dict[Tenant, tuple[ReportedNode, ...]] = {}
        self._queue: WorkQueue[Tenant] = WorkQueue(self._check_again, name="tenant-nodes", workers=2, rng=rng)
        caches.guest_clusters.on_change(self._changed)

    async def run(self) -> None:
        """Check again what changed rules make doubtful, until cancelled."""
        await self._queue.run()

    async def report(self, tenant: Tenant, nodes: Sequence[ReportedNode]) -> Sequence[RejectedNode]:
        """Replace the tenant's nodes by those of the report that are accepted; return the others."""
        if len(nodes) > MAX_NODES:
            message = f"{len(nodes)} nodes are more than the {MAX_NODES} that one cluster may send: exclude some"
            raise InvalidRequest(Violation(field="nodes", reason="TooManyNodes", message=message))
        self._reports[tenant] = tuple(nodes)
        return await self._write(tenant)

    async def _write(self, tenant: Tenant) -> Sequence[RejectedNode]:
        rejected: Sequence[RejectedNode] = ()

        def change(status: GuestClusterStatus) -> GuestClusterStatus:
            nonlocal rejected
            cluster = self._caches.guest_cluster(tenant)
            reported = self._reports.get(tenant, _nodes_of(status))
            accepted, rejected = check_nodes(reported, self._rules(cluster))
            more = f" (and {len(rejected) - _NAMED} more)" if len(rejected) > _NAMED else ""
            message = "; ".join(r.message for r in rejected[:_NAMED]) + more
            return msgspec.structs.replace(
                status,
                nodes=[GuestNode(name=n.name, addresses=[str(a) for a in n.addresses]) for n in accepted],
                conditions=with_condition(status.conditions, NODES_REJECTED, "AddressNotAccepted", message),
            )

        await self._statuses.update(tenant, change)
        return rejected

    async def _check_again(self, tenant: Tenant) -> None:
        try:
            rejected = await self._write(tenant)
        except NotFound:
            return
        if rejected:
            _log.info("Node addresses are not accepted.", extra={"tenant": tenant.path, "count": len(rejected)})

    def _rules(self, cluster: GuestCluster | None) -> NodeRules:
        return NodeRules(
            cidrs=() if cluster is None else node_cidrs(cluster.spec),
            reserved=self._reserved,
            host_addresses=self._host_addresses(),
            gateways=self._book.gateways(),
            is_load_balancer=self._book.is_allocated,
        )

    def _host_addresses(self) -> frozenset[IPAddress]:
        found = set()
        for node in self._caches.nodes.objects.values():
            for entry in node.status.addresses:
                try:
                    found.add(ip_address(entry.address))
                except ValueError:
                    continue  # a host name
        return frozenset(found)

    def _changed(self, old: GuestCluster | None, new: GuestCluster | None) -> None:
        if new is None:
            if old is not None:
                self._reports.pop(Tenant(*old.key), None)
        elif old is not None and old.spec.node_cidrs != new.spec.node_cidrs:
            self._queue.add(Tenant(*new.key))


def _nodes_of(status: GuestClusterStatus) -> tuple[ReportedNode, ...]:
    """What was accepted before; all that is known until the guest has reported to this process."""
    return tuple(ReportedNode(n.name, tuple(ip_address(a) for a in n.addresses)) for n in status.nodes)
