"""The objects that the whole agent is measured with: Services of ten tenants, each of an address of its own."""

from ipaddress import IPv4Address
from typing import Final

from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterStatus, GuestNode
from cloudprovider.core.api.loadbalancer import (
    CLUSTER_LABEL,
    Address,
    Listener,
    LoadBalancer,
    LoadBalancerSpec,
    LoadBalancerStatus,
    ServiceReference,
)
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.kube.fake import FakeCluster
from cloudprovider.kube.resources import GUESTCLUSTERS, LOADBALANCERS
from tests.bench.dataplane.rules import NODES, TENANTS

_FIRST: Final = IPv4Address("10.97.0.1")


def _cluster(tenant: int) -> GuestCluster:
    addresses = [str(IPv4Address("10.99.0.11") + 32 * tenant + i) for i in range(NODES)]
    nodes = [GuestNode(name=f"n{i}", addresses=[address]) for i, address in enumerate(addresses)]
    return GuestCluster(metadata=ObjectMeta(namespace=f"t{tenant}", name="c"), status=GuestClusterStatus(nodes=nodes))


def load_balancer(number: int) -> LoadBalancer:
    tenant, name = number % TENANTS, f"s{number}"
    return LoadBalancer(
        metadata=ObjectMeta(namespace=f"t{tenant}", name=name, labels={CLUSTER_LABEL: "c"}, generation=1),
        spec=LoadBalancerSpec(
            workload_type="cluster",
            listeners=[Listener(port=80, backend_port=30000)],
            service=ServiceReference(namespace="d", name=name, uid="u"),
        ),
        status=LoadBalancerStatus(addresses=[Address(ip=str(_FIRST + number), ip_pool="p", prefix_length=24)]),
    )


def seed(cluster: FakeCluster, count: int) -> None:
    for tenant in range(TENANTS):
        cluster.seed(GUESTCLUSTERS, _cluster(tenant))
    for number in range(count):
        cluster.seed(LOADBALANCERS, load_balancer(number))
