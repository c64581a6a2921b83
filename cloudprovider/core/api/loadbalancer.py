"""LoadBalancer, ``loadbalancer.harvesterhci.io/v1beta1``: Harvester's fields plus ours.

Written by: the bridge (spec of ``workloadType: cluster``), users (``vm``); status by the host controller
(addresses, ``Allocated``) and by the agent that owns the address (``holder``, ``Programmed``, ``Ready``).
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cloudprovider.core.api.meta import ApiStruct, Condition, KubeObject

Port = Annotated[int, Meta(ge=1, le=65535)]
Protocol = Literal["TCP", "UDP"]
IPFamily = Literal["IPv4", "IPv6"]

CLUSTER_LABEL = "cloudprovider.harvesterhci.io/cluster"
SERVICE_NAMESPACE_LABEL = "cloudprovider.harvesterhci.io/serviceNamespace"
SERVICE_NAME_LABEL = "cloudprovider.harvesterhci.io/serviceName"

# Harvester's own annotations on a LoadBalancer: what the pool selection reads.
NETWORK_ANNOTATION = "loadbalancer.harvesterhci.io/network"
PROJECT_ANNOTATION = "loadbalancer.harvesterhci.io/project"
NAMESPACE_ANNOTATION = "loadbalancer.harvesterhci.io/namespace"
CLUSTER_ANNOTATION = "loadbalancer.harvesterhci.io/cluster"

FINALIZER = "loadbalancer.harvesterhci.io/address-release"


class Listener(ApiStruct, frozen=True, kw_only=True):
    """One port of the address. ``backendPort``: the node port (cluster) or the machine's port (vm).

    A cluster's listener has no ``backendPort`` when its Service sets ``allocateLoadBalancerNodePorts: false``.
    """

    name: Annotated[str, Meta(max_length=63)] = ""
    port: Port
    protocol: Protocol = "TCP"
    backend_port: Port | None = None


class HealthCheck(ApiStruct, frozen=True, kw_only=True):
    """TCP connect check of a backend port; the defaults are those of Harvester's documentation."""

    port: Port | None = None
    success_threshold: Annotated[int, Meta(ge=1, le=100)] = 1
    failure_threshold: Annotated[int, Meta(ge=1, le=100)] = 3
    period_seconds: Annotated[int, Meta(ge=1, le=3600)] = 5
    timeout_seconds: Annotated[int, Meta(ge=1, le=3600)] = 3


class ServiceReference(ApiStruct, frozen=True, kw_only=True):
    """The guest's Service that a cluster load balancer stands for: its identity, compared, never overwritten."""

    namespace: Annotated[str, Meta(min_length=1, max_length=63)]
    name: Annotated[str, Meta(min_length=1, max_length=63)]
    uid: Annotated[str, Meta(min_length=1, max_length=64)]
    cluster_uid: Annotated[str, Meta(max_length=64, description="UID of the guest's kube-system namespace.")] = ""


class LoadBalancerSpec(ApiStruct, frozen=True, kw_only=True):
    """What is wanted."""

    description: Annotated[str, Meta(max_length=1024)] = ""
    workload_type: Annotated[Literal["vm", "cluster", ""], Meta(description="Empty means vm.")] = ""
    ipam: Annotated[Literal["pool", "dhcp", ""], Meta(description="Empty means pool.")] = ""
    ip_pool: Annotated[str, Meta(max_length=253, description="A pool by name; empty: chosen by selector.")] = ""
    listeners: Annotated[list[Listener], Meta(max_length=1000)] = []
    backend_server_selector: Annotated[
        dict[str, list[str]],
        Meta(description="A virtual machine matches when, for every key, its label's value is in the list."),
    ] = {}
    health_check: HealthCheck | None = None

    service: ServiceReference | None = None
    addresses: Annotated[list[str], Meta(max_length=2, description="Addresses asked for, one a family.")] = []
    ip_families: Annotated[list[IPFamily], Meta(max_length=2)] = []
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] = "SingleStack"
    mode: Literal["auto", "dsr", "nat"] = "auto"
    external_traffic_policy: Literal["Cluster", "Local"] = "Cluster"
    endpoint_nodes: Annotated[
        list[str], Meta(max_length=5000, description="Policy Local: the nodes with endpoints to send to.")
    ] = []
    health_check_node_port: Port | None = None
    session_affinity: Literal["None", "ClientIP"] = "None"
    session_affinity_timeout_seconds: Annotated[int, Meta(ge=1, le=86400)] = 10800
    source_ranges: Annotated[
        list[str], Meta(max_length=1000, description="Clients allowed, as CIDRs; empty allows all.")
    ] = []


class AllocatedAddress(ApiStruct, frozen=True, kw_only=True):
    """Harvester's record of the allocation (first address only)."""

    ip_pool: str = ""
    ip: str = ""
    mask: str = ""
    gateway: str = ""


class Address(ApiStruct, frozen=True, kw_only=True):
    """One address that this load balancer has, with all that an agent needs to bring it up."""

    ip: str
    ip_pool: str = ""
    prefix_length: Annotated[int, Meta(ge=0, le=128)]
    gateway: str = ""
    network: Annotated[str, Meta(description='"namespace/name" of the network; empty is the management network.')] = ""


class Holder(ApiStruct, frozen=True, kw_only=True):
    """The agent that owns the addresses and has programmed them."""

    node: str
    generation: Annotated[int, Meta(description="spec generation that the kernel now forwards by.")] = 0
    addresses: list[str] = []
    mode: Literal["dsr", "nat", ""] = ""


class LoadBalancerStatus(ApiStruct, frozen=True, kw_only=True):
    """What is."""

    address: str = ""
    allocated_address: AllocatedAddress | None = None
    addresses: Annotated[list[Address], Meta(max_length=2)] = []
    address_key: Annotated[
        str, Meta(max_length=64, description="Fixed at allocation; decides which host owns the addresses.")
    ] = ""
    backend_servers: list[str] = []
    holder: Holder | None = None
    conditions: list[Condition] = []


class LoadBalancer(KubeObject, frozen=True, kw_only=True):
    """A load balancer of the host cluster."""

    spec: LoadBalancerSpec = msgspec.field(default_factory=LoadBalancerSpec)
    status: LoadBalancerStatus = msgspec.field(default_factory=LoadBalancerStatus)
