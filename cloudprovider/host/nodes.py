"""The nodes that a tenant's load balancers send to: as reported, checked, written once for the whole cluster."""

import logging
import random
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final

import msgspec

from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterStatus, GuestNode
from cloudprovider.core.errors import InvalidRequest, NotFound, Violation
from cloudprovider.core.exchange import RejectedNode, ReportedNode, Tenant
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.tenancy import NodeRules, check_nodes, node_cidrs
from cloudprovider.host.caches import Caches, readable
from cloudprovider.host.claimants import Claimants
from cloudprovider.host.guestclusters import NODES_REJECTED, GuestClusterStatuses, with_condition
from cloudprovider.host.infrastructure import Infrastructure
from cloudprovider.host.nodeaddresses import NodeAddresses
from cloudprovider.kube.queue import WorkQueue

_log = logging.getLogger(__name__)

MAX_NODES: Final = 5000
_NAMED: Final = 5
"""So many rejected nodes are named in the condition; the guest is told of all."""
_GATHER_SECONDS: Final = 0.2
"""A tenant is checked again this long after the first change that concerns it: a burst costs one check, not many."""


class TenantNodes:
    """Takes reports, and checks them again when what they are held against changes.

    That is: a tenant's CIDRs; and, of the tenants that have reported one of the addresses concerned, what the host
    itself has, and what machines behind load balancers have.
    """

    def __init__(
        self,
        caches: Caches,
        infrastructure: Infrastructure,
        claimants: Claimants,
        statuses: GuestClusterStatuses,
        *,
        rng: random.Random,
    ) -> None:
        self._caches = caches
        self._infrastructure = infrastructure
        self._claimants = claimants
        self._statuses = statuses
        self._reports: dict[Tenant, tuple[ReportedNode, ...]] = {}
        self._addresses = NodeAddresses()
        self.queue: WorkQueue[Tenant] = WorkQueue(self._check_again, name="tenant-nodes", workers=2, rng=rng)
        caches.guest_clusters.on_change(self._changed)
        infrastructure.on_change(self._doubt)
        claimants.on_change(self._doubt)

    async def run(self) -> None:
        """Check again what changed rules make doubtful, until cancelled."""
        await self.queue.run()

    async def report(self, tenant: Tenant, nodes: Sequence[ReportedNode]) -> Sequence[RejectedNode]:
        """Replace the tenant's nodes by those of the report that are accepted; return the others."""
        if len(nodes) > MAX_NODES:
            message = f"{len(nodes)} nodes are more than the {MAX_NODES} that one cluster may send: exclude some"
            raise InvalidRequest(Violation(field="nodes", reason="TooManyNodes", message=message))
        self._reports[tenant] = tuple(nodes)
        self._addresses.put(tenant, nodes)
        return await self._write(tenant)

    async def _write(self, tenant: Tenant) -> Sequence[RejectedNode]:
        rejected: Sequence[RejectedNode] = ()

        def change(status: GuestClusterStatus) -> GuestClusterStatus:
            nonlocal rejected
            cluster = self._caches.guest_cluster(tenant)
            reported = self._reports.get(tenant)
            known = _nodes_of(status) if reported is None else reported
            accepted, rejected = check_nodes(known, self._rules(cluster))
            if reported is None and not rejected:
                return status  # what else was reported, and rejected, to the process before us is not known
            more = f" (and {len(rejected) - _NAMED} more)" if len(rejected) > _NAMED else ""
            message = "; ".join(r.message for r in rejected[:_NAMED]) + more
            return msgspec.structs.replace(
                status,
                nodes=[_guest_node(n) for n in accepted],
                conditions=with_condition(status.conditions, NODES_REJECTED, "AddressNotAccepted", message),
            )

        await self._statuses.update(tenant, change)
        return rejected

    def _doubt(self, addresses: AbstractSet[IPAddress]) -> None:
        """Have the tenants checked that have reported one of the addresses."""
        for tenant in self._addresses.tenants_at(addresses):
            self.queue.add_after(tenant, _GATHER_SECONDS)

    async def _check_again(self, tenant: Tenant) -> None:
        try:
            rejected = await self._write(tenant)
        except NotFound:
            return
        if rejected:
            _log.info("Node addresses are not accepted.", extra={"tenant": tenant.path, "count": len(rejected)})

    def _rules(self, cluster: GuestCluster | None) -> NodeRules:
        host = self._infrastructure.rules()
        return NodeRules(
            cidrs=() if cluster is None else node_cidrs(cluster.spec),
            reserved=host.reserved,
            host_addresses=host.host_addresses,
            gateways=host.gateways,
            is_load_balancer=host.is_load_balancer,
            is_machines=lambda node, address: (
                cluster is not None and self._claimants.is_machines(cluster, node, address)
            ),
        )

    def _changed(self, old: GuestCluster | None, new: GuestCluster | None) -> None:
        if new is None:
            if old is not None:
                tenant = Tenant(*old.key)
                self._reports.pop(tenant, None)
                self._addresses.put(tenant, ())
                self.queue.forget(tenant)
            return
        tenant = Tenant(*new.key)
        if tenant not in self._reports and (old is None or old.status.nodes != new.status.nodes):
            self._addresses.put(tenant, _nodes_of(new.status))
        if old is None:
            if new.status.nodes:  # the rules may have changed while nobody watched
                self.queue.add_after(tenant, _GATHER_SECONDS)
        elif old.spec.node_cidrs != new.spec.node_cidrs:
            self.queue.add(tenant)


def _nodes_of(status: GuestClusterStatus) -> tuple[ReportedNode, ...]:
    """What was accepted before; all that is known until the guest has reported to this process."""
    return tuple(ReportedNode(n.name, tuple(readable(n.addresses)), n.virtual_machine) for n in status.nodes)


def _guest_node(node: ReportedNode) -> GuestNode:
    addresses = [str(address) for address in node.addresses]
    return GuestNode(name=node.name, addresses=addresses, virtual_machine=node.virtual_machine)
