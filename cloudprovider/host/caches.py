"""What the host cluster's API server has, kept in memory, and the look-ups that need more than one kind."""

import asyncio
import random
from collections.abc import Hashable, Iterable, Iterator

import msgspec

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.kubernetes import Namespace, Node, NodeStatus
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.lbobject import service_of
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.resources import GUESTCLUSTERS, IPBLOCKS, IPPOOLS, LOADBALANCERS, NAMESPACES, NODES

PROJECT_ID_ANNOTATION = "field.cattle.io/projectId"
"""Rancher's, on a Namespace: "c-xxx:p-yyy"."""

BY_TENANT = "tenant"
BY_SERVICE = "service"
"""(tenant, "namespace/name") of the Service that a load balancer stands for."""
BY_LEASE = "lease"
"""The tenant of a load balancer that has, or wants, an address by DHCP."""
BY_PRIMARY = "primary"
"""(tenant, "namespace/name") of the Service whose address it shares."""


class Caches:
    """The informers of the host program. Run :meth:`run` as a task and wait for :meth:`synced`."""

    def __init__(self, client: KubeClient, rng: random.Random) -> None:
        self.load_balancers: Informer[LoadBalancer] = Informer(
            client,
            LOADBALANCERS,
            rng=rng,
            indexes={BY_TENANT: _tenant_of, BY_LEASE: _lease_of, BY_SERVICE: _service_of, BY_PRIMARY: _primary_of},
        )
        self.pools = Informer(client, IPPOOLS, rng=rng)
        self.blocks = Informer(client, IPBLOCKS, rng=rng)
        self.guest_clusters = Informer(client, GUESTCLUSTERS, rng=rng)
        self.namespaces = Informer(client, NAMESPACES, rng=rng, transform=_just_project)
        self.nodes = Informer(client, NODES, rng=rng, transform=_just_addresses)

    async def run(self) -> None:
        """Keep all caches up to date until cancelled; an error that an informer can't heal ends them all."""
        async with asyncio.TaskGroup() as tasks:
            for informer in (self.load_balancers, self.pools, self.blocks, self.guest_clusters):
                tasks.create_task(informer.run())
            tasks.create_task(self.namespaces.run())
            tasks.create_task(self.nodes.run())

    async def synced(self) -> None:
        """Wait until every cache holds its first list."""
        for event in self._events():
            await event.wait()

    def is_synced(self) -> bool:
        """Whether every cache holds its first list."""
        return all(event.is_set() for event in self._events())

    def _events(self) -> Iterator[asyncio.Event]:
        yield self.load_balancers.synced
        yield self.pools.synced
        yield self.blocks.synced
        yield self.guest_clusters.synced
        yield self.namespaces.synced
        yield self.nodes.synced

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

    def guest_cluster(self, tenant: Tenant) -> GuestCluster | None:
        """Return a tenant's GuestCluster."""
        return self.guest_clusters.get(tenant.namespace, tenant.cluster)


def project_of(namespace: Namespace) -> str:
    """Return Rancher's project of a namespace as "c-xxx/p-yyy"; empty if it is in none."""
    return namespace.metadata.annotations.get(PROJECT_ID_ANNOTATION, "").replace(":", "/", 1)


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


def _just_project(namespace: Namespace) -> Namespace:
    annotations = namespace.metadata.annotations
    project = annotations.get(PROJECT_ID_ANNOTATION)
    kept = {} if project is None else {PROJECT_ID_ANNOTATION: project}
    return Namespace(metadata=_head(namespace.metadata, kept))


def _just_addresses(node: Node) -> Node:
    return Node(metadata=_head(node.metadata, {}), status=NodeStatus(addresses=node.status.addresses))


def _head(metadata: ObjectMeta, annotations: dict[str, str]) -> ObjectMeta:
    return msgspec.structs.replace(metadata, annotations=annotations, labels={}, owner_references=[], finalizers=[])
