"""What the host cluster's API server has, kept in memory, and the look-ups that need more than one kind."""

import asyncio
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from ipaddress import ip_address

import msgspec

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.kubernetes import EXCLUDE_LABELS, Lease, Namespace, Node, NodeSpec, NodeStatus
from cloudprovider.core.api.kubevirt import VirtualMachineInstance
from cloudprovider.core.api.loadbalancer import VIP_ON_LOOPBACK_ANNOTATION, LoadBalancer
from cloudprovider.core.api.meta import KubeObject, ObjectMeta
from cloudprovider.core.backends import usable
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.hosts import Roster
from cloudprovider.core.lbobject import service_of
from cloudprovider.core.machines import claims_of
from cloudprovider.core.permissions import SYSTEM
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.standing import WEIGHT_ANNOTATION
from cloudprovider.core.wanted import is_for_machines
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.resources import (
    GUESTCLUSTERS,
    IPBLOCKS,
    IPPOOLS,
    LEASES,
    LOADBALANCERS,
    NAMESPACES,
    NODES,
    VIRTUAL_MACHINE_INSTANCES,
)

PROJECT_ID_ANNOTATION = "field.cattle.io/projectId"
"""Rancher's, on a Namespace: "c-xxx:p-yyy"."""

BY_TENANT = "tenant"
BY_SERVICE = "service"
"""(tenant, "namespace/name") of the Service that a load balancer stands for."""
BY_LEASE = "lease"
"""The tenant of a load balancer that has, or wants, an address by DHCP."""
BY_PRIMARY = "primary"
"""(tenant, "namespace/name") of the Service whose address it shares."""
BY_NAMESPACE = "namespace"
BY_ADDRESS = "address"
"""What a load balancer's machines, a machine, or a guest cluster's nodes are reached at."""
BY_LEASED = "leased"
"""An address that a load balancer has by DHCP."""


class Caches:
    """The informers of the host program. Run :meth:`run` as a task and wait for :meth:`synced`.

    ``time``: monotonic, in seconds; ``namespace``: where the programs' Leases are.
    """

    def __init__(
        self, client: KubeClient, rng: random.Random, *, time: Callable[[], float], namespace: str = SYSTEM
    ) -> None:
        self.load_balancers: Informer[LoadBalancer] = Informer(
            client,
            LOADBALANCERS,
            rng=rng,
            indexes={
                BY_TENANT: _tenant_of,
                BY_LEASE: _lease_of,
                BY_SERVICE: _service_of,
                BY_PRIMARY: _primary_of,
                BY_NAMESPACE: _selecting_in,
                BY_ADDRESS: _sending_to,
                BY_LEASED: leased_by,
            },
        )
        self.pools = Informer(client, IPPOOLS, rng=rng)
        self.blocks = Informer(client, IPBLOCKS, rng=rng)
        self.guest_clusters = Informer(
            client, GUESTCLUSTERS, rng=rng, indexes={BY_NAMESPACE: _namespace_of, BY_ADDRESS: _nodes_at}
        )
        self.namespaces = Informer(client, NAMESPACES, rng=rng, transform=_just_project)
        self.nodes = Informer(client, NODES, rng=rng, transform=_just_addresses)
        self.leases = Informer(client, LEASES, rng=rng, namespace=namespace)
        self.roster = Roster(time)
        """The hosts, as their agents' Leases tell: whoever hears of a Lease's change finds it changed here."""
        self.leases.on_change(self._lease_changed)
        self.machines: Informer[VirtualMachineInstance] = Informer(
            client,
            VIRTUAL_MACHINE_INSTANCES,
            rng=rng,
            indexes={BY_NAMESPACE: _namespace_of, BY_ADDRESS: _claimed_by},
            transform=_just_standing,
            optional=True,
        )
        """Not waited for in :meth:`synced`: a host without virtual machines serves its guest clusters all the same."""
        self._needed = (
            *(self.load_balancers, self.pools, self.blocks, self.guest_clusters),
            *(self.namespaces, self.nodes, self.leases),
        )

    async def run(self) -> None:
        """Keep all caches up to date until cancelled; an error that an informer can't heal ends them all."""
        async with asyncio.TaskGroup() as tasks:
            for informer in (self.load_balancers, self.pools, self.blocks, self.guest_clusters):
                tasks.create_task(informer.run())
            tasks.create_task(self.namespaces.run())
            tasks.create_task(self.nodes.run())
            tasks.create_task(self.leases.run())
            tasks.create_task(self.machines.run())

    def replay(self) -> None:
        """See :meth:`Informer.replay`: for callbacks that have come since."""
        for informer in (self.namespaces, self.nodes, self.leases, self.pools, self.blocks, self.guest_clusters):
            informer.replay()
        self.machines.replay()
        self.load_balancers.replay()

    async def synced(self) -> None:
        """Wait until every cache but that of the machines holds its first list."""
        for informer in self._needed:
            await informer.synced.wait()

    def is_synced(self) -> bool:
        """Whether every cache but that of the machines holds its first list."""
        return all(informer.synced.is_set() for informer in self._needed)

    def _lease_changed(self, old: Lease | None, new: Lease | None) -> None:
        if new is not None:
            self.roster.observe(new)
        elif old is not None:
            self.roster.forget(old)

    @property
    def not_synced(self) -> Sequence[str]:
        """Why not: a sentence for each."""
        return [informer.not_synced for informer in self._needed if informer.not_synced]

    def host_addresses(self) -> frozenset[IPAddress]:
        """Return the addresses of the host's own nodes."""
        return frozenset(address for node in self.nodes.objects.values() for address in addresses_of(node))

    def project_of(self, namespace: str) -> str:
        """Return the project that a namespace is in, "c-xxx/p-yyy"; empty if it is in none."""
        found = self.namespaces.get("", namespace)
        return project_of(found) if found is not None else ""

    def load_balancers_of(self, tenant: Tenant) -> list[LoadBalancer]:
        """Return the objects that stand for Services of a tenant."""
        return list(self.load_balancers.by_index(BY_TENANT, tenant))

    def count_of(self, tenant: Tenant) -> int:
        """Return how many objects stand for Services of a tenant."""
        return self.load_balancers.count(BY_TENANT, tenant)

    def leases_of(self, tenant: Tenant) -> int:
        """Return how many of them have, or want, an address by DHCP."""
        return self.load_balancers.count(BY_LEASE, tenant)

    def standing_for(self, tenant: Tenant, service: str) -> list[LoadBalancer]:
        """Return what stands for the tenant's Service "namespace/name": one, and its namesakes on their way out."""
        return list(self.load_balancers.by_index(BY_SERVICE, (tenant, service)))

    def sharing_with(self, tenant: Tenant, service: str) -> list[LoadBalancer]:
        """Return what shares the addresses of the tenant's Service "namespace/name"."""
        return list(self.load_balancers.by_index(BY_PRIMARY, (tenant, service)))

    def selecting_in(self, namespace: str) -> list[LoadBalancer]:
        """Return the load balancers for virtual machines of a namespace."""
        return list(self.load_balancers.by_index(BY_NAMESPACE, namespace))

    def sending_to(self, address: IPAddress) -> list[LoadBalancer]:
        """Return the load balancers that send to a virtual machine at an address."""
        return list(self.load_balancers.by_index(BY_ADDRESS, str(address)))

    def is_leased(self, address: IPAddress, network: str | None) -> bool:
        """Whether a load balancer has an address of the network (None: of any) by DHCP."""
        found = self.load_balancers.by_index(BY_LEASED, str(address))
        return any(network is None or a.network == network for lb in found for a in lb.status.addresses)

    def machines_in(self, namespace: str) -> list[VirtualMachineInstance]:
        """Return the virtual machines of a namespace."""
        return list(self.machines.by_index(BY_NAMESPACE, namespace))

    def machines_at(self, address: IPAddress) -> list[VirtualMachineInstance]:
        """Return the virtual machines that say they have an address, on whichever network."""
        return list(self.machines.by_index(BY_ADDRESS, address))

    def clusters_in(self, namespace: str) -> list[GuestCluster]:
        """Return the guest clusters of a namespace."""
        return list(self.guest_clusters.by_index(BY_NAMESPACE, namespace))

    def clusters_at(self, address: IPAddress) -> list[GuestCluster]:
        """Return the guest clusters that have a node at an address."""
        return list(self.guest_clusters.by_index(BY_ADDRESS, str(address)))

    def guest_cluster(self, tenant: Tenant) -> GuestCluster | None:
        """Return a tenant's GuestCluster."""
        return self.guest_clusters.get(tenant.namespace, tenant.cluster)


def project_of(namespace: Namespace) -> str:
    """Return Rancher's project of a namespace as "c-xxx/p-yyy"; empty if it is in none."""
    return namespace.metadata.annotations.get(PROJECT_ID_ANNOTATION, "").replace(":", "/", 1)


def differ(old: VirtualMachineInstance | None, new: VirtualMachineInstance | None) -> bool:
    """Whether a machine has changed in anything that is kept of it but its version."""
    return old is None or new is None or _kept(old) != _kept(new)


def _kept(vmi: VirtualMachineInstance) -> tuple[object, ...]:
    metadata = vmi.metadata
    return metadata.uid, metadata.labels, metadata.annotations, metadata.deletion_timestamp, vmi.spec, vmi.status


def _tenant_of(lb: LoadBalancer) -> Iterable[Hashable]:
    found = service_of(lb)
    return () if found is None else (found[0],)


def _lease_of(lb: LoadBalancer) -> Iterable[Hashable]:
    return _tenant_of(lb) if lb.spec.ipam == "dhcp" else ()


def _service_of(lb: LoadBalancer) -> Iterable[Hashable]:
    found = service_of(lb)
    return () if found is None else ((found[0], found[1].path),)


def _primary_of(lb: LoadBalancer) -> Iterable[Hashable]:
    found = service_of(lb)
    return () if found is None or not lb.spec.primary_service else ((found[0], lb.spec.primary_service),)


def _namespace_of(obj: KubeObject) -> Iterable[Hashable]:
    return (obj.metadata.namespace,)


def _selecting_in(lb: LoadBalancer) -> Iterable[Hashable]:
    return (lb.metadata.namespace,) if is_for_machines(lb) else ()


def _sending_to(lb: LoadBalancer) -> Iterable[Hashable]:
    return (address for backend in usable(lb.status.backends) for address in backend.addresses)


def leased_by(lb: LoadBalancer) -> Sequence[str]:
    """Return the addresses that a load balancer has by DHCP."""
    return [address.ip for address in lb.status.addresses if not address.ip_pool]


def _nodes_at(cluster: GuestCluster) -> Iterable[Hashable]:
    return (address for node in cluster.status.nodes for address in node.addresses)


def _claimed_by(vmi: VirtualMachineInstance) -> Iterable[Hashable]:
    return (address for _, address in claims_of(vmi))


def _just_standing(vmi: VirtualMachineInstance) -> VirtualMachineInstance:
    """Which load balancers it is behind, and where it stands; most of what changes in an instance is neither."""
    direct = vmi.metadata.annotations.get(VIP_ON_LOOPBACK_ANNOTATION)
    kept = {} if direct is None else {VIP_ON_LOOPBACK_ANNOTATION: direct}
    status = msgspec.structs.replace(
        vmi.status, node_name="", conditions=[c for c in vmi.status.conditions if c.type == "AgentConnected"]
    )
    metadata = msgspec.structs.replace(_head(vmi.metadata, kept), labels=vmi.metadata.labels)
    return VirtualMachineInstance(metadata=metadata, spec=vmi.spec, status=status)


def _just_project(namespace: Namespace) -> Namespace:
    annotations = namespace.metadata.annotations
    project = annotations.get(PROJECT_ID_ANNOTATION)
    kept = {} if project is None else {PROJECT_ID_ANNOTATION: project}
    return Namespace(metadata=_head(namespace.metadata, kept))


def _just_addresses(node: Node) -> Node:
    """Where it is, and what says how many load balancers are to be its."""
    weight = node.metadata.annotations.get(WEIGHT_ANNOTATION)
    head = _head(node.metadata, {} if weight is None else {WEIGHT_ANNOTATION: weight})
    labels = {label: value for label, value in node.metadata.labels.items() if label in EXCLUDE_LABELS}
    return Node(
        metadata=msgspec.structs.replace(head, labels=labels),
        spec=NodeSpec(unschedulable=node.spec.unschedulable),
        status=NodeStatus(addresses=node.status.addresses),
    )


def _head(metadata: ObjectMeta, annotations: dict[str, str]) -> ObjectMeta:
    return msgspec.structs.replace(metadata, annotations=annotations, labels={}, owner_references=[], finalizers=[])


def readable(texts: Iterable[str]) -> Iterator[IPAddress]:
    """Yield the addresses among the texts: a Node lists host names too."""
    for text in texts:
        try:
            yield ip_address(text)
        except ValueError:
            continue


def addresses_of(node: Node | None) -> frozenset[IPAddress]:
    """Return a node's addresses; none of no node."""
    return frozenset() if node is None else frozenset(readable(entry.address for entry in node.status.addresses))
