"""All load balancers on one page: a row each, on the host from its objects, in a guest from its Services."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.kubernetes import SERVICE_NAME_LABEL, EndpointSlice, Node, Service
from cloudprovider.core.api.loadbalancer import CLUSTER_LABEL, LoadBalancer
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.backends import takes_traffic
from cloudprovider.core.conditions import find
from cloudprovider.core.conditiontypes import SERVICE_READY
from cloudprovider.core.guestnodes import select_nodes
from cloudprovider.core.nodehealth import NodesWanted, nodes_wanted
from cloudprovider.core.translate import endpoint_nodes


@dataclass(frozen=True)
class Count:
    """How many backends there are, and how many of them take traffic; unknown where they can't be seen."""

    healthy: int = 0
    total: int = 0
    known: bool = False


class ListenerRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One port of the address."""

    port: int
    protocol: str


class Row(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One load balancer. ``workload``: "vm" or "cluster"; ``service``: the guest's, "cluster: namespace/name" on the
    host. ``healthy`` and ``backends`` None: can't be seen. ``ready``: "True", "False" or "Unknown"."""

    namespace: str
    name: str
    workload: Literal["vm", "cluster"]
    service: str = ""
    addresses: list[str]
    listeners: list[ListenerRow]
    healthy: int | None
    backends: int | None
    ready: str
    reason: str = ""
    message: str = ""
    created: str = ""


def health_of(lb: LoadBalancer, cluster: GuestCluster | None) -> Count:
    """Count a load balancer's backends: machines by its status, a guest's nodes by its GuestCluster."""
    if lb.spec.workload_type != "cluster":
        total = sum(1 for b in lb.status.backends if b.addresses or b.reason)
        return Count(sum(1 for b in lb.status.backends if takes_traffic(lb, b)), total, known=True)
    if cluster is None:
        return Count()
    return count_nodes(nodes_wanted(lb), cluster)


def count_nodes(wanted: NodesWanted, cluster: GuestCluster) -> Count:
    """Count the nodes of a guest that a load balancer of its goes to."""
    return Count(len(wanted.taking(cluster)), len(wanted.of(cluster)), known=True)


def guest_cluster_of(lb: LoadBalancer, clusters: Mapping[tuple[str, str], GuestCluster] | None) -> GuestCluster | None:
    """Return the guest cluster of a load balancer; None where it can't be seen, and for virtual machines."""
    return (clusters or {}).get(cluster_key(lb))


def cluster_key(lb: LoadBalancer) -> tuple[str, str]:
    """(namespace, name) of the guest cluster of a load balancer; of no name for virtual machines."""
    return lb.metadata.namespace, lb.metadata.labels.get(CLUSTER_LABEL, "")


def host_rows(balancers: Iterable[LoadBalancer], clusters: Mapping[tuple[str, str], GuestCluster] | None) -> list[Row]:
    """Return the host's load balancers, by namespace and name. ``clusters`` None: they can't be read."""
    return [_of_host(lb, clusters) for lb in sorted(balancers, key=lambda x: x.key)]


def guest_rows(
    services: Iterable[Service], nodes: Sequence[Node] | None, slices: Sequence[EndpointSlice] | None, now: datetime
) -> list[Row]:
    """Return a guest's Services of type LoadBalancer, by namespace and name. None: they can't be read."""
    taking = None if nodes is None else {n.name for n in select_nodes(nodes, in_use=None, now=now).nodes}
    found = sorted((s for s in services if s.spec.type == "LoadBalancer"), key=lambda s: s.key)
    return [_of_guest(service, taking, nodes, slices) for service in found]


def nodes_of(service: Service, taking: Collection[str], total: int, slices: Sequence[EndpointSlice] | None) -> Count:
    """Count the nodes of a guest that take a Service's traffic. ``taking``: those that take any."""
    if service.spec.external_traffic_policy != "Local":
        return Count(len(taking), total, known=True)
    if slices is None:
        return Count()
    mine = endpoint_nodes(service, slices_of(service, slices))
    return Count(sum(1 for name in mine if name in taking), len(mine), known=True)


def slices_of(service: Service, slices: Iterable[EndpointSlice]) -> list[EndpointSlice]:
    """Return a Service's own EndpointSlices."""
    return [
        s
        for s in slices
        if s.metadata.namespace == service.metadata.namespace
        and s.metadata.labels.get(SERVICE_NAME_LABEL) == service.metadata.name
    ]


def _of_host(lb: LoadBalancer, clusters: Mapping[tuple[str, str], GuestCluster] | None) -> Row:
    guest = lb.spec.workload_type == "cluster"
    cluster = lb.metadata.labels.get(CLUSTER_LABEL, "")
    counted = health_of(lb, guest_cluster_of(lb, clusters))
    said = _worst(lb)
    reference = lb.spec.service
    whose = f"{cluster}: {reference.namespace}/{reference.name}" if reference is not None else cluster
    return Row(
        namespace=lb.metadata.namespace,
        name=lb.metadata.name,
        workload="cluster" if guest else "vm",
        service=whose if guest else "",
        addresses=[a.ip for a in lb.status.addresses] or ([lb.status.address] if lb.status.address else []),
        listeners=[ListenerRow(port=x.port, protocol=x.protocol) for x in lb.spec.listeners],
        healthy=counted.healthy if counted.known else None,
        backends=counted.total if counted.known else None,
        ready=said.status if said is not None else "Unknown",
        reason=said.reason if said is not None and said.status != "True" else "",
        message=said.message if said is not None and said.status != "True" else "",
        created=lb.metadata.creation_timestamp,
    )


def _worst(lb: LoadBalancer) -> Condition | None:
    """What keeps it from serving: the first of the conditions that is not fulfilled, else ``Ready``."""
    said = [find(lb.status.conditions, kind) for kind in ("Allocated", "Owned", "Programmed", "Ready")]
    return next((c for c in said if c is not None and c.status == "False"), said[-1])


def _of_guest(
    service: Service,
    taking: Collection[str] | None,
    nodes: Sequence[Node] | None,
    slices: Sequence[EndpointSlice] | None,
) -> Row:
    counted = Count() if taking is None or nodes is None else nodes_of(service, taking, len(nodes), slices)
    said = find(service.status.conditions, SERVICE_READY)
    return Row(
        namespace=service.metadata.namespace,
        name=service.metadata.name,
        workload="cluster",
        service=f"{service.metadata.namespace}/{service.metadata.name}",
        addresses=[i.ip or i.hostname for i in service.status.load_balancer.ingress],
        listeners=[ListenerRow(port=p.port, protocol=p.protocol) for p in service.spec.ports],
        healthy=counted.healthy if counted.known else None,
        backends=counted.total if counted.known else None,
        ready=said.status if said is not None else "Unknown",
        reason=said.reason if said is not None and said.status != "True" else "",
        message=said.message if said is not None and said.status != "True" else "",
        created=service.metadata.creation_timestamp,
    )
